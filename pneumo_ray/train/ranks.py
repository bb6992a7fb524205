"""What the ranks of a training do together: take the buffers of rank 0, and add up."""

import torch.distributed as dist
from torch import Tensor, nn


def take_buffers(*networks: nn.Module) -> None:
    """Give every rank the buffers of rank 0, which are saved: each has BatchNorm statistics of its own images."""
    if dist.is_initialized():
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


def add_up(*tensors: Tensor) -> None:
    """Replace tensors, on each rank of one shape, by their sums over all ranks."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
