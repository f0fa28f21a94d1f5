"""Number formats: which one a processor computes in, and how a network runs in it."""

from __future__ import annotations

import torch
import torch.distributed as dist


def default_precision(device: torch.device) -> str:
    """`bf16` where the processor computes in it, else `fp32`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu.get_capabilities()
    return "bf16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "fp32"


def agreed_precision(wanted: str, device: torch.device, world: int) -> str:
    """Replaces `auto` by what rank 0's processor has: all ranks must compute alike."""
    if wanted != "auto":
        return wanted
    chosen = [default_precision(device)]
    if world > 1:
        dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def keep_fp32() -> None:
    """Makes fp32 mean fp32 on a GPU: unless told, cuDNN rounds what a convolution multiplies to TF32, 10 bits of 23.

    Products of matrices keep all bits by default. bf16 is not touched by it.
    """
    torch.backends.cudnn.allow_tf32 = False


def dtype_of(precision: str) -> torch.dtype:
    """Type of weights, pixels and targets; bf16 is a matter of `autocast` alone."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: str, device: torch.device, keeps_casts: bool = True) -> torch.autocast:
    """The context in which a network runs forward; without kept casts for capturing graphs, which must contain them."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=keeps_casts
    )
