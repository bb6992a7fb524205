"""The live table of a study, drawn into text; no Ray."""

import time
from types import SimpleNamespace

import pytest
import rich
from rich.console import Console

from pneumo_ray.tune.board import Board
from pneumo_ray.tune.study import Range, Study, Trial

SEARCH = Study("s", "rates", space={"optim.lr": Range(1e-6, 1e-1, log=True), "optim.weight_decay": (1e-4,)})
NUMBERS = {"val_loss": 0.5, "val_auc": 0.75}


def trials(count: int) -> dict[str, Trial]:
    return {f"{n:03d}": Trial(f"{n:03d}", f"{n:03d}", {"optim.lr": 10.0**-n}, 0) for n in range(count)}


def tune_trial(name: str, **config) -> SimpleNamespace:
    return SimpleNamespace(config={"name": name, **config})


def drawn(board: Board, monkeypatch, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False)
    monkeypatch.setattr(rich, "_console", console)
    with console.capture() as said:
        console.print(board._table())
    lines = said.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= height
    return [line.rstrip() for line in lines if line.strip()]


def test_an_empty_board_names_what_it_awaits(monkeypatch):
    assert "waiting for the cluster" in drawn(Board(trials(2), 3, SEARCH), monkeypatch)[-1]


def test_rows_have_plan_order_draws_and_status(monkeypatch):
    stopped = set()
    board = Board(trials(3), 3, SEARCH, stopped)
    for name in ("001", "000"):
        board.on_trial_start(0, [], tune_trial(name))
        board.on_trial_result(0, [], tune_trial(name), {"epoch": 1, **NUMBERS})
    board.on_trial_start(0, [], tune_trial("002", settings={"optim.lr": 0.0312}))
    stopped.add("001")
    for name in ("000", "001"):
        board.on_trial_complete(0, [], tune_trial(name))
    title, header, _, *rows = drawn(board, monkeypatch)
    assert "2 of 3 trials" in title
    assert header.split() == ["trial", "lr", "weight", "decay", "status", "epoch", "val", "loss", "best", "val", "AUC"]
    assert [row.split()[:3] for row in rows] == [
        ["000", "1", "done"],
        ["001", "0.1", "stopped"],
        ["002", "0.031", "running"],
    ]


def test_a_file_gets_lines_of_running_trials(monkeypatch, capsys):
    monkeypatch.setattr("pneumo_ray.tune.board.QUIET_SECONDS", 0.01)
    board = Board(trials(3), 3, SEARCH)

    def said() -> str:
        capsys.readouterr()
        time.sleep(0.5)
        return capsys.readouterr().out.splitlines()[-1]

    with board.shown():
        assert said().startswith("waiting for the cluster  (0 of 3 over, ")
        for name in trials(3):
            board.on_trial_start(0, [], tune_trial(name))
        board.on_trial_complete(0, [], tune_trial("000"))
        board.on_trial_result(0, [], tune_trial("001"), {"epoch": 2, **NUMBERS})
        line = "001  epoch 2/3  best val loss 0.5000  val AUC 0.7500; 002  in its first epoch  (1 of 3 over, "
        assert said().startswith(line)


def test_running_trials_are_shown_first(monkeypatch):
    board = Board(trials(40), 3, SEARCH)
    for name in trials(40):
        board.on_trial_start(0, [], tune_trial(name))
        if name not in ("003", "039"):
            board.on_trial_complete(0, [], tune_trial(name))
    lines = drawn(board, monkeypatch, height=12)
    shown = [line.split()[0] for line in lines[3:-1]]
    assert shown[0] == "003"
    assert shown[-2:] == ["038", "039"]
    assert lines[-1].split() == [str(40 - len(shown)), "more"]


def test_an_interrupted_board_shows_nothing_running(monkeypatch, capsys):
    board = Board(trials(2), 3, SEARCH)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    board.on_trial_start(0, [], tune_trial("000"))
    with pytest.raises(KeyboardInterrupt), board.shown():
        raise KeyboardInterrupt
    board.on_trial_result(0, [], tune_trial("000"), {"epoch": 1, **NUMBERS})
    title, header, _, row = drawn(board, monkeypatch)
    assert "0 of 2 trials" in title
    assert header.split() == ["trial", "lr", "weight", "decay", "status", "epoch", "val", "loss", "best", "val", "AUC"]
    assert row.split() == ["000", "1", "interrupted", "1/3", "0.5000", "0.5000", "0.7500"]
