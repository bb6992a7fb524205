"""Compilation for inference, and where compiled code is kept between runs."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable that names the folder of compiled code; one that is set already is kept."""


def keep_compiled_code() -> None:
    """Keep what torch compiles in this process in the user's own cache folder, so that the next run finds it.

    torch's default lies in the folder for temporary files under a name that anyone can foresee, and what lies there is
    run. Where the user has no folder that can be written, the default stays.
    """
    if CACHE_VARIABLE in os.environ:
        return
    with suppress(OSError, RuntimeError):  # a home that is missing or cannot be written
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumo_ray" / "compiled"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            os.environ[CACHE_VARIABLE] = str(folder)


def compiled_with_constants(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a network's function, compiled at its first batch with the weights as constants.

    Torch 2.15 has no public switch for it: `torch.compile(..., options={"freezing": True})` reaches the backend but not the
    tracer, which leaves the weights arguments and folds nothing.
    """
    keep_compiled_code()
    torch._inductor.config.freezing = True
    compiled: Callable[[Tensor], Tensor] = torch.compile(function, dynamic=False)
    return compiled
