"""Which tickets share a block of the training stream."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pneumo_ray.errors import ManifestError
from pneumo_ray.train.ray_stream import TicketBlocks, Unhurried, tickets_in


@given(turns=st.integers(0, 40), each=st.integers(0, 60), world_size=st.integers(1, 9), per_block=st.integers(1, 8))
def test_dealt_blocks_give_every_rank_its_tickets(turns, each, world_size, per_block):
    first = turns * world_size
    blocks = TicketBlocks(first, each, world_size, per_block)
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    for block in range(blocks.count):
        dealt[block % world_size] += blocks.tickets(block)
    assert dealt == [[first + rank + i * world_size for i in range(each)] for rank in range(world_size)]


@pytest.mark.parametrize(("each", "per_block"), [(10, 4), (8, 4), (1, 8)])
def test_blocks_of_one_turn_are_equally_long(each, per_block):
    """Ray's splitter gives the next block to the rank that has the fewest rows: in turn only if all have as many."""
    blocks = TicketBlocks(0, each, 3, per_block)
    lengths = [len(blocks.tickets(block)) for block in range(blocks.count)]
    assert [set(lengths[turn : turn + 3]) for turn in range(0, len(lengths), 3)] == [
        {min(per_block, each - turn * per_block)} for turn in range(len(lengths) // 3)
    ]


def test_a_failed_ticket_ends_its_block():
    block = {"ticket": np.array([[4, 6, 8]]), "row": np.arange(6).reshape(1, 3, 2), "error": np.array(["no such file"])}
    tickets = tickets_in(block)
    assert [next(tickets)["row"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ManifestError, match="no such file"):
        next(tickets)
    whole = list(tickets_in(block | {"error": np.array([""])}))
    assert [int(ticket["ticket"]) for ticket in whole] == [4, 6, 8]


def test_the_pause_answers_every_event_of_ray_data():
    events = {name for name in vars(ExecutionCallback) if not name.startswith("_")}
    assert events
    assert events <= set(vars(Unhurried))
