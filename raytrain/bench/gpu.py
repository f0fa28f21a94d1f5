"""Figures that exist only for a GPU. No Ray.

These are the rate of its matrix products, the share of it that training reaches, how long it has
no work, and which way of running the network is fastest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from raytrain.bench.blocks import Side, alternate
from raytrain.bench.figures import Figure
from raytrain.bench.measurement import TILES_PER_S
from raytrain.bench.sides import Ceiling, Loop, RandomBatch, wait_for
from raytrain.config import LAYER_GROUPS
from raytrain.models import layer_groups, networks
from raytrain.training import execution, optim

logger = logging.getLogger(__name__)


# One matrix product in the forward pass takes two more in the backward pass: the gradient of the
# weights and the gradient of the input.
PASSES = 3
# Large enough that the GPU computes all the time and waits neither for memory nor for launches.
MATRIX_SIDE = 8192
MATRIX_ROUNDS = 20
# Any rate that moves the weights a little; no result depends on it.
LEARNING_RATE = 1e-4
EXECUTIONS = ("eager", "graphs", "compiled")
# Start and end of a kernel, in any unit of time.
Span = tuple[float, float]


def figures(loop: Loop, rates: list[float], *, pairs: int, block: int) -> Iterator[Figure]:
    """Measures one stage on a GPU; on a CPU there are no figures.

    Args:
        loop: in that stage.
        rates: tiles per second of its training.
        pairs: as in `alternate`.
        block: steps of a block, as in `alternate`.
    """
    if loop.device.type != "cuda":
        return
    yield from _matrix_figures(loop, rates)
    sides: dict[str, Side] = {"loop": loop, "ceiling": Ceiling.of(loop)}
    for name, side in sides.items():
        idle = tuple(idle_share(side, block) for _ in range(pairs))
        label = f"GPU without a kernel, {name}"
        yield Figure(f"{loop.name}.idle.{name}", label, "", idle, loop.about)
    yield from _ceilings(loop, pairs=pairs, block=block)


def _matrix_figures(loop: Loop, rates: list[float]) -> Iterator[Figure]:
    """The rate of matrix products, and the share of it that training reaches in each round."""
    operations = operations_per_tile(loop.opened.model, loop.stage.size, loop.device)
    reachable = matrix_rate(loop.device)
    teraflops = (reachable / 1e12,)
    yield Figure(f"{loop.name}.matrix", "matrix product, bf16", "TFLOP/s", teraflops, loop.about)
    shares = tuple(rate * operations / reachable for rate in rates)
    about = loop.about
    if loop.stage.freeze:
        # A frozen body has no backward pass, so less is computed than is counted.
        about = f"{about}; counted as if nothing was frozen"
    yield Figure(f"{loop.name}.chip", "share of the matrix rate", "", shares, about)


def _ceilings(loop: Loop, *, pairs: int, block: int) -> Iterator[Figure]:
    """The ceiling of each execution, and the share of the best one that the run's own reaches."""
    names = ", ".join(EXECUTIONS)
    logger.info(f"{loop.about}: the ceilings of {names} and of what the run chose, in turn")
    sides: dict[str, Side] = {"chosen": Ceiling.of(loop)}
    for how in EXECUTIONS:
        try:
            side = _ceiling(loop, how)
            # Compiling happens in the first step, and so do its errors.
            side.block(1)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            logger.info(f"  {how} is not possible here: {reason}")
            continue
        sides[how] = side
    rates = alternate(sides, pairs=pairs, steps=block)
    chosen = rates.pop("chosen")
    for how, found in rates.items():
        label = f"step only, {how}"
        values = tuple(found)
        yield Figure(f"{loop.name}.ceiling.{how}", label, TILES_PER_S, values, loop.about)
    shares = []
    for own, *others in zip(chosen, *rates.values(), strict=True):
        shares.append(own / max(others))
    label = "step only / best of these"
    yield Figure(f"{loop.name}.ceiling.share", label, "", tuple(shares), loop.about)


def _ceiling(loop: Loop, how: str) -> Ceiling:
    """A ceiling with a network of its own, which runs eagerly, as graphs or compiled."""
    recipe = loop.recipe
    stage = loop.stage
    outputs = len(loop.opened.dataset.classes)
    precision = recipe.train.precision
    model = networks.build(
        recipe.model.arch, outputs, recipe.model.dropout, recipe.model.batch_norm
    )
    networks.to_device(model, loop.device)
    # Before the execution is set: a captured graph contains only the gradients of that moment.
    layer_groups.set_frozen(model, stage.frozen_groups)
    shape = (recipe.batch_size(stage), 3, stage.size, stage.size)
    execution.set_execution(model, how, shape, precision, loop.device)
    optimizer = optim.make_optimizer(model, [LEARNING_RATE] * LAYER_GROUPS, recipe.train.wd)
    return Ceiling(model, optimizer, RandomBatch(shape, outputs, precision, loop.device))


def operations_per_tile(model: nn.Module, size: int, device: torch.device) -> int:
    """Counts the floating point operations of a training step for one tile.

    They are those of the forward pass as torch counts them (a multiplication and an addition are
    two), times three: the backward pass takes two products for each one of the forward pass.

    Args:
        model: keeps its mode, training or evaluation.
        size: side of the tile, pixels.
        device: where the model is.
    """
    # Only GPUs need it, and importing it takes a while.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    was_training = model.training
    pixels = torch.zeros(1, 3, size, size, device=device, dtype=next(model.parameters()).dtype)
    # In training mode BatchNorm would refuse a single tile or move its statistics.
    model.eval()
    with counter, torch.no_grad():
        model(pixels)
    model.train(was_training)
    return PASSES * int(counter.get_total_flops())


def matrix_rate(
    device: torch.device, side: int = MATRIX_SIDE, rounds: int = MATRIX_ROUNDS
) -> float:
    """Floating point operations per second of a bf16 product of two square matrices.

    A product of n x n matrices takes 2 n^3 operations: n^3 multiplications and as many additions.

    Args:
        device: a GPU.
        side: rows of a matrix, n.
        rounds: number of products that are timed together.
    """
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    # The first products load the library and choose its algorithm.
    for _ in range(3):
        a @ b
    wait_for(device)
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    wait_for(device)
    return 2 * side**3 * rounds / (time.perf_counter() - began)


def idle_share(side: Side, steps: int) -> float:
    """Trains a block. Returns the share of its time in which no kernel ran on the GPU.

    The time is that between the first and the last kernel.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        side.block(steps)
    spans = []
    for event in watched.events() or ():
        if _is_kernel(event):
            spans.append((event.time_range.start, event.time_range.end))
    return uncovered_share(spans)


def _is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is work of the GPU."""
    if event.device_type.name != "CUDA" or event.is_user_annotation:
        return False
    # A copy to the GPU is no work: a step that has to wait for one is waiting for its tiles.
    return not event.name.startswith("Memcpy HtoD")


def uncovered_share(spans: Iterable[Span]) -> float:
    """The share of the time from the first start to the last end that no span covers.

    Spans may overlap, as kernels of several streams do. Without any span the share is 1.
    """
    ordered = sorted(spans)
    if not ordered:
        return 1.0
    first = ordered[0][0]
    # Everything before this moment is counted already.
    reached = first
    covered = 0.0
    for start, end in ordered:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    if reached == first:
        return 0.0
    return 1.0 - covered / (reached - first)
