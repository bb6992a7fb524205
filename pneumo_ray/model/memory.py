"""What torch raises where there is too little memory: its own error on a GPU, several others on a CPU."""

import torch

_WORDS = (
    "DefaultCPUAllocator",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "out of memory",
)
"""In the messages of torch's and oneDNN's RuntimeErrors on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation of memory, so that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
