"""How the network of a stage runs: eagerly, as CUDA graphs, or compiled; by what the planned steps can earn back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raytrain.training.precision import autocast, dtype_of

# Capturing graphs takes about as long as 20 steps; compiling takes a minute, and earns a tenth of a step of some ms.
GRAPHS_FROM_STEPS = 200
COMPILED_FROM_STEPS = 50_000


def chosen(choice: str, device: torch.device, steps: int) -> str:
    """`auto` resolved for a stage of so many steps.

    On a CPU always eager: a compiled step gained 3 % there (docs/speed.md), and gives other bits.
    """
    if choice != "auto":
        return choice
    if device.type != "cuda" or steps < GRAPHS_FROM_STEPS:
        return "eager"
    return "compiled" if steps >= COMPILED_FROM_STEPS else "graphs"


def set_execution(
    model: nn.Module, how: str, shape: tuple[int, ...], precision: str, device: torch.device,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Makes the network take training batches of one shape the fast way; all others, and validation, run eagerly.

    Args:
        model: before DDP wraps it; a way it was given earlier is taken back.
        how: eager, graphs or compiled.
        shape: of the pixels (B, 3, S, S) of a pass.
        precision: as in the recipe.
        device: where it trains.
        say: hears of it where graphs are not possible; the stage then runs eagerly.
    """
    model.__dict__.pop("forward", None)
    eager = model.forward
    if how == "graphs":
        fast = _graphed(model, shape, precision, device, say)
    else:
        # With graphs of its own on a GPU, where launching kernels takes longer than small batches compute.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        fast = torch.compile(eager, dynamic=False, mode=mode) if how == "compiled" else None
    if fast is None:
        return
    way = fast

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        suits = model.training and torch.is_grad_enabled() and tuple(pixels.shape) == shape
        result: torch.Tensor = (way if suits else eager)(pixels)
        return result

    model.forward = forward


def _graphed(
    model: nn.Module, shape: tuple[int, ...], precision: str, device: torch.device, say: Callable[[str], None]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Forward and backward of the network as CUDA graphs, or None where they cannot be captured."""
    if device.type != "cuda":
        say("CUDA graphs need a GPU: the network runs eagerly")
        return None
    # Capturing runs the network a few times, which moves the statistics of BatchNorm.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    sample = torch.zeros(shape, dtype=dtype_of(precision), device=device).contiguous(memory_format=torch.channels_last)
    try:
        with autocast(precision, device, keeps_casts=False):
            torch.cuda.make_graphed_callables(model, (sample,))
        graphed: Callable[[torch.Tensor], torch.Tensor] = model.__dict__.pop("forward")
        return graphed
    except RuntimeError as error:
        model.__dict__.pop("forward", None)
        say(f"CUDA graphs are not possible here ({str(error).splitlines()[0]}): the network runs eagerly")
        return None
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
