"""What each choice of the step is worth: the step as it is against the same step without that choice, in turn. No ray."""

from __future__ import annotations

import logging
import os
import time
from contextlib import closing
from typing import Any

import torch

from raytrain.bench.blocks import Group, alternate, ratios
from raytrain.bench.figures import Figure
from raytrain.bench.sides import Ceiling
from raytrain.config import LAYER_GROUPS, Recipe
from raytrain.models import networks
from raytrain.models.precision import agreed_precision
from raytrain.training import execution, optim
from raytrain.training.memory import keep_freed_memory

logger = logging.getLogger(__name__)


RATE = 1e-4
OURS: dict[str, Any] = {
    "precision": "auto",
    "keeps_memory": True,
    "channels_last": True,
    "fused": True,
    "how": "eager",
}
# What is changed, and in which words.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32 instead of bf16", {"precision": "fp32"}),
    "memory": ("memory given back to the system", {"keeps_memory": False}),
    "channels-first": ("channels first", {"channels_last": False}),
    "unfused": ("AdamW weight by weight", {"fused": False}),
    "compiled": ("torch.compile", {"how": "compiled"}),
}


def variants(recipe: Recipe, outputs: int, number: int, pairs: int, block: int) -> list[Figure]:
    """Each variant's rate as a share of ours, and its first step; one stage, on the CPU, each side in a process of its own.

    Args:
        recipe: whose stage `number` gives network, size and batch.
        outputs: logits of the network.
        pairs, block: as in `alternate`.
    """
    stage = recipe.stages[number - 1]
    common = (recipe.model.arch, outputs, (recipe.batch_size(stage), 3, stage.size, stage.size))
    about = f"{recipe.model.arch} {stage.size} px batch {recipe.batch_size(stage)}"
    found = []
    with closing(Group(1, step_only, *common, OURS)) as ours:
        for name, (words, change) in VARIANTS.items():
            logger.info(f"{about}: the step as it is, and with {words}, in turn")
            with closing(Group(1, step_only, *common, OURS | change)) as other:
                began = time.perf_counter()
                other.block(1)
                first = time.perf_counter() - began
                rates = alternate({"ours": ours, name: other}, pairs=pairs, steps=block)
            found += [
                Figure(
                    f"variants.{name}",
                    f"{words} / as it is",
                    "",
                    ratios(rates[name], rates["ours"]),
                    about,
                ),
                Figure(
                    f"variants.{name}.first",
                    "  its first step, compiling included",
                    "s",
                    (first,),
                    about,
                ),
            ]
    return found


def step_only(
    rank: int, arch: str, outputs: int, shape: tuple[int, ...], options: dict[str, Any]
) -> Ceiling:
    """The step alone in this process, with all of its CPUs."""
    cpu = torch.device("cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options["keeps_memory"]:
        keep_freed_memory()
    precision = agreed_precision(options["precision"], cpu, 1)
    model = networks.build(arch, outputs, 0.5)
    networks.to_device(model, cpu)
    execution.set_execution(model, options["how"], shape, precision, cpu, print)
    optimizer = optim.make_optimizer(model, [RATE] * LAYER_GROUPS, 0.01)
    for group in optimizer.param_groups:
        group["fused"] = options["fused"]
    side = Ceiling(model, optimizer, shape, outputs, precision, cpu)
    if not options["channels_last"]:
        model.to(memory_format=torch.contiguous_format)
        side.pixels = side.pixels.contiguous()
    return side
