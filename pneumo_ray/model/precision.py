"""Mixed precision by device: bfloat16 where it is fast, float16 with a loss scaler, or none."""

from contextlib import AbstractContextManager, nullcontext

import torch

from pneumo_ray.config import Amp
from pneumo_ray.errors import ConfigError


def amp_dtype(choice: Amp, device: torch.device) -> torch.dtype | None:
    """Return the type that the network computes in, or None for float32 throughout.

    Raises:
        ConfigError: if float16 is asked for on a CPU.
    """
    if choice == "off":
        return None
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp16":
        if device.type == "cpu":
            raise ConfigError("--amp fp16 needs a GPU; use bf16, auto or off")
        return torch.float16
    if device.type == "cpu":
        # Without the instructions bfloat16 is emulated, and slower than float32.
        found = torch.cpu.get_capabilities()
        return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the network runs forward."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
