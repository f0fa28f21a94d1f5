"""What is measured on a GPU alone: its matrix rate, the share of it that training reaches, how long it has no work, and
which way of running the network is fastest."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from raytrain.bench.blocks import Side, alternate
from raytrain.bench.figures import Figure
from raytrain.bench.sides import Ceiling, Loop, wait_for
from raytrain.config import LAYER_GROUPS
from raytrain.models import layer_groups, networks
from raytrain.training import execution, optim

logger = logging.getLogger(__name__)


# Backward computes two products for each one of forward.
PASSES = 3
MATRIX_SIDE, MATRIX_ROUNDS = 8192, 20
RATE = 1e-4
EXECUTIONS = ("eager", "graphs", "compiled")
Span = tuple[float, float]


def figures(loop: Loop, rates: list[float], *, pairs: int, block: int) -> Iterator[Figure]:
    """Of one stage: share of the matrix rate, idle shares, ceilings; nothing without a GPU.

    Args:
        loop: in that stage.
        rates: of its training, tiles per second.
        pairs, block: as in `alternate`.
    """
    if loop.device.type != "cuda":
        return
    work = operations_per_tile(loop.trainer.model, loop.stage.size, loop.device)
    reachable = matrix_rate(loop.device)
    yield Figure(
        f"{loop.name}.matrix", "matrix product, bf16", "TFLOP/s", (reachable / 1e12,), loop.about
    )
    shares = tuple(rate * work / reachable for rate in rates)
    counted = "" if not loop.stage.freeze else "; counted as if nothing was frozen"
    yield Figure(f"{loop.name}.chip", "share of the matrix rate", "", shares, loop.about + counted)
    sides: dict[str, Side] = {"loop": loop, "ceiling": Ceiling.of(loop)}
    for name, side in sides.items():
        idle = tuple(idle_share(side, block) for _ in range(pairs))
        yield Figure(
            f"{loop.name}.idle.{name}", f"GPU without a kernel, {name}", "", idle, loop.about
        )
    yield from _ceilings(loop, pairs=pairs, block=block)


def _ceilings(loop: Loop, *, pairs: int, block: int) -> Iterator[Figure]:
    """Ceilings of the network run in each way, and what share of the best of them the run's own way reaches."""
    logger.info(
        f"{loop.about}: the ceilings of {', '.join(EXECUTIONS)} and of what the run chose, in turn"
    )
    sides: dict[str, Side] = {"chosen": Ceiling.of(loop)}
    for how in EXECUTIONS:
        try:
            side = _ceiling(loop, how)
            side.block(1)
        except RuntimeError as error:
            logger.info(f"  {how} is not possible here: {str(error).strip().splitlines()[0]}")
        else:
            sides[how] = side
    rates = alternate(sides, pairs=pairs, steps=block)
    chosen = rates.pop("chosen")
    for how, found in rates.items():
        yield Figure(
            f"{loop.name}.ceiling.{how}", f"step only, {how}", "tiles/s", tuple(found), loop.about
        )
    shares = tuple(own / max(others) for own, *others in zip(chosen, *rates.values(), strict=True))
    yield Figure(f"{loop.name}.ceiling.share", "step only / best of these", "", shares, loop.about)


def _ceiling(loop: Loop, how: str) -> Ceiling:
    """That of a network of its own, run in one way."""
    recipe, stage, device, outputs = (
        loop.recipe,
        loop.stage,
        loop.device,
        len(loop.trainer.dataset.classes),
    )
    model = networks.build(
        recipe.model.arch, outputs, recipe.model.dropout, recipe.model.batch_norm
    )
    networks.to_device(model, device)
    layer_groups.set_frozen(model, stage.frozen_groups)
    shape = (recipe.batch_size(stage), 3, stage.size, stage.size)
    execution.set_execution(model, how, shape, recipe.train.precision, device)
    optimizer = optim.make_optimizer(model, [RATE] * LAYER_GROUPS, recipe.train.wd)
    return Ceiling(model, optimizer, shape, outputs, recipe.train.precision, device)


def operations_per_tile(model: nn.Module, size: int, device: torch.device) -> int:
    """Floating point operations of a training step for one tile: the forward pass as torch counts it, three times."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    was_training = model.training
    pixels = torch.zeros(1, 3, size, size, device=device, dtype=next(model.parameters()).dtype)
    with counter, torch.no_grad():
        model.eval()(pixels)
    model.train(was_training)
    return PASSES * int(counter.get_total_flops())


def matrix_rate(
    device: torch.device, side: int = MATRIX_SIDE, rounds: int = MATRIX_ROUNDS
) -> float:
    """Floating point operations per second of a bf16 matrix product of this side."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait_for(device)
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    wait_for(device)
    return 2 * side**3 * rounds / (time.perf_counter() - began)


def idle_share(side: Side, steps: int) -> float:
    """Share of the time between the first and the last kernel of a block in which no kernel ran.

    Copies to the GPU do not count as work: a step that has to wait for one waits for data.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        side.block(steps)
    return gaps(
        (event.time_range.start, event.time_range.end)
        for event in watched.events() or ()
        if event.device_type.name == "CUDA"
        and not event.is_user_annotation
        and not event.name.startswith("Memcpy HtoD")
    )


def gaps(spans: Iterable[Span]) -> float:
    """Share of the time from the first start to the last end that no span covers; 1 where there is none."""
    ordered = sorted(spans)
    if not ordered:
        return 1.0
    first = reached = ordered[0][0]
    busy = 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1.0 - busy / (reached - first) if reached > first else 0.0
