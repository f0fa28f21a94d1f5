"""What each choice in the training step is worth, on a CPU. No Ray.

The step as it is trains in turn with the same step without one of its choices.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass

import torch

from raytrain.bench.blocks import Group, alternate, ratios
from raytrain.bench.figures import Figure
from raytrain.bench.measurement import Measurement
from raytrain.bench.sides import Ceiling, RandomBatch
from raytrain.config import LAYER_GROUPS
from raytrain.machine import usable_cpus
from raytrain.models import networks
from raytrain.models.precision import agreed_precision
from raytrain.training import execution, optim
from raytrain.training.memory import keep_freed_memory

logger = logging.getLogger(__name__)


# Any rate that moves the weights a little; no result depends on it.
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
DROPOUT = 0.5


@dataclass(frozen=True)
class StepOptions:
    """The choices in the step; the defaults are those of the program.

    Attributes:
        precision: auto, fp32 or bf16.
        keeps_memory: the allocator keeps freed memory instead of returning it to the system.
        channels_last: memory format of weights and pixels.
        fused: AdamW updates all weights in one operation.
        execution: eager or compiled.
    """

    precision: str = "auto"
    keeps_memory: bool = True
    channels_last: bool = True
    fused: bool = True
    execution: str = "eager"


@dataclass(frozen=True)
class Variant:
    """A step in which one choice differs, and its description."""

    label: str
    options: StepOptions


VARIANTS = {
    "fp32": Variant("fp32 instead of bf16", StepOptions(precision="fp32")),
    "memory": Variant("memory given back to the system", StepOptions(keeps_memory=False)),
    "channels-first": Variant("channels first", StepOptions(channels_last=False)),
    "unfused": Variant("AdamW weight by weight", StepOptions(fused=False)),
    "compiled": Variant("torch.compile", StepOptions(execution="compiled")),
}


def variants(measured: Measurement) -> list[Figure]:
    """Measures the rate of each variant as a share of the program's own step, and its first step.

    Args:
        measured: its stage gives the network, the size and the batch.
    """
    size = measured.stage.size
    shape = (measured.batch_size, 3, size, size)
    arch = measured.recipe.model.arch
    common = (arch, len(measured.dataset.classes), shape)
    about = f"{arch} {size} px batch {measured.batch_size}"
    figures = []
    # A process for each side: the allocator's settings and compiled code hold for a whole process.
    with closing(Group(1, step_only, *common, StepOptions())) as ours:
        for name, variant in VARIANTS.items():
            logger.info(f"{about}: the step as it is, and with {variant.label}, in turn")
            with closing(Group(1, step_only, *common, variant.options)) as other:
                began = time.perf_counter()
                other.block(1)
                first_s = time.perf_counter() - began
                rates = alternate(
                    {"ours": ours, name: other}, pairs=measured.pairs, steps=measured.block
                )
            shares = ratios(rates[name], rates["ours"])
            label = f"{variant.label} / as it is"
            figures.append(Figure(f"variants.{name}", label, "", shares, about))
            label = "  its first step, compiling included"
            figures.append(Figure(f"variants.{name}.first", label, "s", (first_s,), about))
    return figures


def step_only(
    rank: int, arch: str, outputs: int, shape: tuple[int, ...], options: StepOptions
) -> Ceiling:
    """Builds the side of a process of a `Group`: the step alone, on all CPUs of this process.

    Args:
        rank: of the process, always 0; `Group` passes it.
        arch: name of the network.
        outputs: logits of the network.
        shape: of the pixels, (B, 3, S, S).
        options: the choices in the step.
    """
    cpu = torch.device("cpu")
    torch.set_num_threads(usable_cpus())
    if options.keeps_memory:
        keep_freed_memory()
    precision = agreed_precision(options.precision, cpu, 1)
    model = networks.build(arch, outputs, DROPOUT)
    networks.to_device(model, cpu)
    execution.set_execution(model, options.execution, shape, precision, cpu)
    optimizer = optim.make_optimizer(model, [LEARNING_RATE] * LAYER_GROUPS, WEIGHT_DECAY)
    for group in optimizer.param_groups:
        group["fused"] = options.fused
    side = Ceiling(model, optimizer, RandomBatch(shape, outputs, precision, cpu))
    if not options.channels_last:
        # Both were made channels-last above, as in training.
        model.to(memory_format=torch.contiguous_format)
        side.pixels = side.pixels.contiguous()
    return side
