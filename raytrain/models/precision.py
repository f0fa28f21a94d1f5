"""Number formats: which one a processor computes in, and how a network runs in it."""

from __future__ import annotations

import torch
import torch.distributed as dist


def default_precision(device: torch.device) -> str:
    """Returns `bf16` if the processor computes in it, else `fp32`."""
    if _computes_in_bf16(device):
        return "bf16"
    return "fp32"


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Older GPUs emulate bf16, slower than they compute in fp32.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capable = torch.cpu.get_capabilities()
    return bool(capable.get("avx512_bf16") or capable.get("amx_bf16"))


def agreed_precision(wanted: str, device: torch.device, world: int) -> str:
    """Replaces `auto` by the default precision of rank 0. All ranks call it together.

    All ranks must compute in the same precision, even if their processors differ.

    Args:
        wanted: auto, bf16, fp32 or fp64.
        device: the device that this process computes on.
        world: number of ranks.
    """
    if wanted != "auto":
        return wanted
    chosen = [default_precision(device)]
    if world > 1:
        dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def keep_fp32() -> None:
    """Makes cuDNN compute fp32 convolutions in fp32.

    By default it rounds their inputs to TF32, which keeps 10 of the 23 bits of the mantissa.
    Matrix products keep all bits by default. bf16 is not affected.
    """
    torch.backends.cudnn.allow_tf32 = False


def dtype_of(precision: str) -> torch.dtype:
    """Returns the type of weights, pixels and targets."""
    if precision == "fp64":
        return torch.float64
    # Also for bf16: its weights are float32, and only `autocast` computes in bf16.
    return torch.float32


def autocast(precision: str, device: torch.device, keeps_casts: bool = True) -> torch.autocast:
    """Returns the context in which the forward pass of a network runs.

    Args:
        precision: bf16, fp32 or fp64.
        device: the device that the network is on.
        keeps_casts: whether a weight is cast only once within the context. Use False to capture a
            CUDA graph, which must contain the casts.
    """
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=keeps_casts
    )
