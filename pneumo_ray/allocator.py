"""The memory allocator of processes that compute on a CPU: jemalloc, preloaded where there is one.

glibc returns every large tensor to the kernel and faults its pages in again at the next step. jemalloc with these options
keeps them: a ResNet-50 trains 1.16 times and scores 1.35 times as fast (docs/benchmarks.md). It must be there before the
process starts, so it is part of the environment that a process is started with. Tasks that read images run in processes
that Ray has started before: there glibc itself is told to keep freed memory.
"""

import ctypes
import ctypes.util
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

OPTIONS = "dirty_decay_ms:-1,muzzy_decay_ms:-1,lg_extent_max_active_fit:48,thp:always"
"""Of jemalloc: freed pages stay with the process, and are huge where the kernel has huge pages. Neighbours that are free become
one extent, of which any size may be cut: by default none that is 64 times smaller is, and the process grows."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
_KEPT_BYTES = 256 << 20
_LARGEST_KEPT = 32 << 20
"""Bytes of the largest block that is kept: glibc accepts no more."""

_PURGE_ALL = b"arena.4096.purge"
"""Of jemalloc's mallctl(3); 4096 stands for all arenas."""

_SEPARATORS = set(" :$")
"""What LD_PRELOAD cannot hold in a path, or Ray would expand."""


def find_jemalloc() -> str | None:
    """Return this machine's jemalloc as LD_PRELOAD takes it, the one in Ray's wheel or the system's; None without either."""
    if not sys.platform.startswith("linux"):
        return None
    spec = find_spec("ray")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        library = Path(folder, "core", "libjemalloc.so")
        if library.is_file() and not _SEPARATORS & set(str(library)):
            return str(library)
    return ctypes.util.find_library("jemalloc")


def preloaded(libraries: Iterable[str | None]) -> dict[str, str]:
    """Return the environment variables of a process that preloads jemalloc; none where no machine has it.

    Args:
        libraries: what `find_jemalloc` returned on each machine that the process may start on. A machine loads the one that
            it has and passes over the others. What it preloads anyway stays first.
    """
    found = dict.fromkeys(library for library in libraries if library is not None)
    return {"LD_PRELOAD": ":".join(("${LD_PRELOAD}", *found)), "MALLOC_CONF": OPTIONS} if found else {}


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MB of what it has freed, instead of having its pages zeroed again for each image.

    It changes nothing where the C library is not glibc, or jemalloc is preloaded.
    """
    with suppress(OSError, AttributeError):  # another system, another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


def return_freed_memory() -> None:
    """Give back to the kernel what this process has freed, between two works whose tensors differ in size.

    Kept pages serve tensors of the sizes that they were made for: without this, a process that trains one network after the
    other grows with each of them.
    """
    with suppress(OSError, AttributeError):  # another system, another C library
        library = ctypes.CDLL(None)
        if hasattr(library, "mallctl"):
            library.mallctl(_PURGE_ALL, None, None, None, ctypes.c_size_t(0))
        else:
            library.malloc_trim(ctypes.c_size_t(0))
