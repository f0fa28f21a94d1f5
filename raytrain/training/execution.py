"""How the network of a stage runs: eagerly, as CUDA graphs, or compiled; by what the planned steps
can earn back.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch
from torch import nn

from raytrain.models.precision import autocast, dtype_of

logger = logging.getLogger(__name__)


# Pixels (B, C, S, S) to logits (B, K).
Forward = Callable[[torch.Tensor], torch.Tensor]

# Capturing graphs takes about as long as 20 steps; compiling takes a minute, and earns a tenth of a
# step of some ms.
GRAPHS_FROM_STEPS = 200
COMPILED_FROM_STEPS = 50_000
# torch.backends.cudnn.benchmark stays off until it is measured (`python -m raytrain.bench --check`
# does): sizes are fixed within a stage, so trying cuDNN's algorithms may pay, but other ones give
# other bits from run to run.


def chosen(choice: str, device: torch.device, steps: int, world: int = 1) -> str:
    """`auto` resolved for a stage of so many steps.

    On a CPU always eager: a compiled step gained 3 % there (docs/speed.md), and gives other bits.
    So with several workers: a graph gives all its gradients after its last kernel, so that none
    travels while others are computed; not measured.
    """
    if choice != "auto":
        return choice
    if device.type != "cuda" or steps < GRAPHS_FROM_STEPS or world > 1:
        return "eager"
    if steps >= COMPILED_FROM_STEPS:
        return "compiled"
    return "graphs"


def has_graphs(device: torch.device) -> bool:
    """Whether CUDA graphs can be captured on a device."""
    return device.type == "cuda"


def run_eagerly(model: nn.Module) -> None:
    """Takes back a fast way that the network was given, and frees its graphs."""
    model.__dict__.pop("forward", None)
    # The closures of a fast way and the network refer to each other. Freed by chance later on, a
    # graph could be destroyed while another is captured, which CUDA forbids.
    gc.collect()


def reuses_gradients(model: nn.Module) -> bool:
    """Whether a backward pass overwrites the gradients of the pass before, which must then be added
    elsewhere.

    Args:
        model: without DDP.
    """
    return "forward" in vars(model)


def set_execution(
    model: nn.Module, how: str, shape: tuple[int, ...], precision: str, device: torch.device
) -> None:
    """Makes the network take training batches of one shape the fast way; all others, and
    validation, run eagerly.

    Args:
        model: before DDP wraps it; a way it was given earlier is taken back.
        how: eager, graphs or compiled.
        shape: of the pixels (B, C, S, S) of a pass.
        precision: as in the recipe.
        device: where it trains.
    """
    run_eagerly(model)
    eager = model.forward
    fast = None
    if how == "graphs":
        fast = _graphed(model, shape, precision, device)
    elif how == "compiled":
        fast = _compiled(eager, device)
    if fast is None:
        return
    chosen_forward = fast

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        in_training = model.training and torch.is_grad_enabled()
        if in_training and tuple(pixels.shape) == shape:
            return chosen_forward(pixels)
        logits: torch.Tensor = eager(pixels)
        return logits

    model.forward = forward


def _compiled(eager: Forward, device: torch.device) -> Forward:
    mode = "default"
    if device.type == "cuda":
        # With graphs of its own, where launching kernels takes longer than small batches compute.
        mode = "reduce-overhead"
    compiled: Forward = torch.compile(eager, dynamic=False, mode=mode)
    return compiled


def _graphed(
    model: nn.Module, shape: tuple[int, ...], precision: str, device: torch.device
) -> Forward | None:
    """Forward and backward of the network as CUDA graphs, or None where they cannot be captured."""
    if not has_graphs(device):
        logger.info("CUDA graphs need a GPU: the network runs eagerly")
        return None
    # A graph holds one mode, and validation leaves the network in the other: in training the graph
    # would never be taken.
    model.train()
    # Capturing runs the network a few times, which moves the statistics of BatchNorm.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    sample = torch.zeros(shape, dtype=dtype_of(precision), device=device)
    sample = sample.contiguous(memory_format=torch.channels_last)
    try:
        with autocast(precision, device, keeps_casts=False):
            torch.cuda.make_graphed_callables(model, (sample,))
        _accept_streams()
        graphed: Forward = model.__dict__.pop("forward")
        return graphed
    except RuntimeError as error:
        model.__dict__.pop("forward", None)
        reason = str(error).splitlines()[0]
        logger.info(f"CUDA graphs are not possible here ({reason}): the network runs eagerly")
        return None
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)


def _accept_streams() -> None:
    """Lets gradients come from the stream of the capture: it is done when a replay on the training
    stream begins.

    Otherwise torch warns, and waits for that stream for every weight in every step.
    """
    accept = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if accept is not None:
        accept(False)
