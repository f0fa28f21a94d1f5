"""Parts of the check: which versions run, and whether CUDA graphs compute right. No Ray.

The right numbers are those of the same network that runs eagerly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from raytrain.bench.check_common import (
    opened_stage,
    refuse_fallback,
    temporary_directory,
    whole_run,
)
from raytrain.bench.figures import machine
from raytrain.bench.verdicts import (
    Found,
    Setting,
    Verdict,
    need_gpu,
    replays_counted,
    tried,
    within,
)
from raytrain.data.dataset import open_dataset
from raytrain.log import heard
from raytrain.models import networks
from raytrain.models.precision import keep_fp32
from raytrain.training import execution
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics

# Steps whose gradients are compared.
STEPS = 3
# Limit of a difference, as a share of the largest gradient. It is not zero because cuDNN may take
# another algorithm for a capture than for an eager pass.
ROUNDING = 2e-3
SEED = 7
# Logits of the network in the first comparison.
OUTPUTS = 5


def versions(setting: Setting) -> Iterator[Verdict]:
    """Tries the imports and one graph."""
    yield tried("versions", "imports", partial(_versions, setting))
    yield tried("versions", "a graphed pass", partial(_one_graph, setting))


def _versions(setting: Setting) -> Found:
    found = machine()
    found["cuda"] = torch.version.cuda
    found["cudnn"] = torch.backends.cudnn.version()
    if setting.on_gpu:
        found["capability"] = list(torch.cuda.get_device_capability())
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    processor = found["gpu"] or found["cpu"]
    detail = f"{processor}, torch {torch.__version__}, CUDA {found['cuda']}"
    return Found(True, detail, found)


def _one_graph(setting: Setting) -> Found:
    """Compares one pass of a new network, eagerly and as a graph.

    Compared are the gradients, and whether the capture leaves BatchNorm's statistics alone.
    """
    need_gpu(setting)
    keep_fp32()
    device = torch.device(setting.device)
    shape = (setting.batch, 3, setting.size, setting.size)
    torch.manual_seed(SEED)
    # Without dropout, whose random numbers would differ between the two passes.
    model = networks.build(setting.arch, OUTPUTS, dropout=0.0)
    networks.to_device(model, device)
    pixels = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    statistics = [buffer.clone() for buffer in model.buffers()]
    gradients = []
    for how in ("eager", "graphs"):
        # Every message about the execution is about a fallback.
        with heard(_refuse):
            execution.set_execution(model, how, shape, "fp32", device)
        if not _equal(statistics, list(model.buffers())):
            return Found(False, f"setting {how} moved the statistics of BatchNorm", {})
        model(pixels).sum().backward()
        gradients.append(_gradients(list(model.parameters())))
        model.zero_grad()
        _restore(model, statistics)
    difference = _difference(*gradients)
    return within(difference, ROUNDING, "largest difference of a gradient")


def _refuse(message: str) -> None:
    raise RuntimeError(message)


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _gradients(weights: list[nn.Parameter]) -> list[torch.Tensor]:
    """Copies of the gradients that there are."""
    return [weight.grad.clone() for weight in weights if weight.grad is not None]


def _restore(model: nn.Module, buffers: list[torch.Tensor]) -> None:
    """Gives the buffers of a model their values back, in place: a graph knows their addresses."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def numbers(setting: Setting) -> Iterator[Verdict]:
    """Compares eager steps to graphs in fp32 without TF32, and tries special cases of graphs."""
    keep_fp32()
    # What differs in the stage, and in the rest of the recipe.
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "the whole network": ({}, {}),
        "a frozen body": ({"freeze": True}, {}),
        "two passes": ({}, {"accumulate": 2}),
        "three passes": ({}, {"accumulate": 3}),
        "dropout": ({}, {"dropout": 0.5}),
    }
    for name, (stage, changes) in cases.items():
        trial = partial(_eager_and_graphs, setting, stage, changes)
        yield tried("numbers", f"eager and graphs, {name}", trial)
    yield tried("numbers", "replays in four stages", partial(_replays, setting))
    yield tried("numbers", "range test after a frozen stage", partial(_range_test, setting))
    yield tried("numbers", "an infinite gradient", partial(_infinite, setting))


def _eager_and_graphs(setting: Setting, stage: dict[str, Any], changes: dict[str, Any]) -> Found:
    """Compares the gradients of some steps of an epoch, its last and smaller batch included."""
    changes = {"dropout": 0.0} | changes
    eager = _gradients_of_steps(setting, "eager", stage, changes)
    graphs = _gradients_of_steps(setting, "graphs", stage, changes)
    what = f"largest difference of a gradient in {STEPS} steps"
    return within(_difference(eager, graphs), ROUNDING, what)


def _gradients_of_steps(
    setting: Setting, how: str, stage: dict[str, Any], changes: dict[str, Any]
) -> list[torch.Tensor]:
    """All gradients of some steps in one list, each float64 on the CPU."""
    found: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in _weights_of(optimizer):
            if weight.grad is not None:
                found.append(weight.grad.detach().double().cpu())

    # With fixed statistics of BatchNorm a step depends on nothing but the weights.
    changes = {"batch_norm": "fixed"} | changes
    with opened_stage(setting, how, [stage], **changes) as opened:
        # Before the update, which clears the gradients.
        opened.optimizer.register_step_pre_hook(note)
        # The weights must not move: differences of early steps would add up in later ones.
        for group in opened.optimizer.param_groups:
            group["lr"] = 0.0
        batches = opened.batches(1)
        opened.model.train()
        # A graph is captured for full batches, so the smaller one has to run eagerly.
        smaller = batches[0][: setting.batch // 2]
        for position, rows in enumerate([*batches[: STEPS - 1], smaller]):
            opened.train_on(rows, position)
    return found


def _weights_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _replays(setting: Setting) -> Found:
    """Counts the replays of graphs in each stage of a run: two for each batch."""
    need_gpu(setting)
    stages = [{"freeze": number % 2 == 0, "epochs": 1} for number in range(4)]
    # Only full batches are replayed.
    recipe = setting.recipe(stages, execution="graphs", drop_last=True)
    counts: list[int] = []
    with replays_counted() as count, heard(refuse_fallback), temporary_directory() as run:

        def note(metrics: Metrics) -> None:
            # A stage has one epoch.
            counts.append(count[0] - sum(counts))

        whole_run(setting, recipe, run, Hooks(report=note))
    train_rows = open_dataset(setting.dataset).part_rows("random", "train")
    wanted = 2 * (len(train_rows) // setting.batch)
    detail = f"{counts}, {wanted} each are right"
    return Found(counts == [wanted] * len(stages), detail, {"replays": counts})


def _range_test(setting: Setting) -> Found:
    """Checks that in a range test after a frozen stage every weight has a gradient.

    The graphs of the frozen stage know which weights were frozen then, and must not be used.
    """
    lacking: list[int] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        without = [weight for weight in _weights_of(optimizer) if weight.grad is None]
        lacking.append(len(without))

    with opened_stage(setting, "graphs", [{"freeze": True}, {}]) as opened:
        # For all optimisers, since the range test makes one of its own.
        hook = register_optimizer_step_pre_hook(note)
        try:
            opened.range_test(2)
        finally:
            hook.remove()
    detail = f"{max(lacking)} weights without a gradient in {len(lacking)} steps"
    return Found(max(lacking) == 0, detail, {"lacking": lacking[0]})


def _infinite(setting: Setting) -> Found:
    """Checks that a step with an infinite gradient leaves all weights alone and reports it."""
    with opened_stage(setting, "graphs", [{}]) as opened:
        before = [weight.detach().clone() for weight in opened.trained]
        _make_a_gradient_infinite(opened.trained)
        opened.model.train()
        outcome = opened.train_on(opened.batches(1)[0], 0)
        # The second value is 1.0 where the step was left out.
        reported = float(outcome.values[1])
        moved = 0
        for weight, old in zip(opened.trained, before, strict=True):
            if not torch.equal(weight, old):
                moved += 1
    detail = f"{moved} of {len(before)} weights moved, reported {reported != 0.0}"
    return Found(reported == 1.0 and moved == 0, detail, {})


def _make_a_gradient_infinite(weights: Sequence[torch.Tensor]) -> None:
    """Multiplies the gradient of the last bias by infinity in every backward pass."""
    # Any weight would do; a bias has few values.
    for weight in reversed(weights):
        if weight.dim() == 1:
            weight.register_hook(lambda gradient: gradient * math.inf)
            return


def _difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference as a share of the largest value of the first list.

    It is infinite if the lists differ in length or are empty.
    """
    if len(one) != len(other) or not one:
        return math.inf
    largest = max(float(tensor.abs().max()) for tensor in one)
    difference = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    return difference / largest
