"""Of a check: which versions run, and whether graphs compute what the eager network computes. No ray."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from raytrain.bench.figures import machine
from raytrain.bench.schedule import NEEDED
from raytrain.bench.verdicts import (
    NEEDS_GPU,
    Found,
    Setting,
    Skip,
    Verdict,
    close,
    replays_counted,
    tried,
)
from raytrain.data.dataset import open_dataset
from raytrain.log import heard
from raytrain.models import networks
from raytrain.models.precision import keep_fp32
from raytrain.training import execution
from raytrain.training.hooks import Hooks
from raytrain.training.loop import Trainer, fit
from raytrain.training.step import Stepper

STEPS = 3
# Of the largest gradient: cuDNN may take another algorithm for a capture than for an eager pass.
ROUNDING = 2e-3
SEED = 7


def versions(setting: Setting) -> Iterator[Verdict]:
    """What runs here, and one graph."""
    yield tried("versions", "imports", lambda: _versions(setting))
    yield tried("versions", "a graphed pass", lambda: _one_graph(setting))


def _versions(setting: Setting) -> Found:
    found = machine() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if setting.on_gpu:
        found["capability"] = list(torch.cuda.get_device_capability())
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    return (
        True,
        f"{found['gpu'] or found['cpu']}, torch {torch.__version__}, CUDA {found['cuda']}",
        found,
    )


def _one_graph(setting: Setting) -> Found:
    """One pass of a new network, eagerly and as a graph: gradients and the statistics of BatchNorm."""
    need_gpu(setting)
    keep_fp32()
    device, shape = torch.device(setting.device), (setting.batch, 3, setting.size, setting.size)
    torch.manual_seed(SEED)
    model = networks.build(setting.arch, 5, 0.0)
    networks.to_device(model, device)
    pixels = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    statistics = [buffer.clone() for buffer in model.buffers()]
    found = []
    for how in ("eager", "graphs"):
        with heard(_refuse):
            execution.set_execution(model, how, shape, "fp32", device)
        kept = all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))
        if not kept:
            return False, f"setting {how} moved the statistics of BatchNorm", {}
        model(pixels).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), statistics, strict=True):
                buffer.copy_(before)
    return close(_difference(*found), ROUNDING, "largest difference of a gradient")


def numbers(setting: Setting) -> Iterator[Verdict]:
    """Eager against graphs, in fp32 without TF32; which stages replay; the range test; an infinite gradient."""
    keep_fp32()
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "the whole network": ({}, {}),
        "a frozen body": ({"freeze": True}, {}),
        "two passes": ({}, {"accumulate": 2}),
        "three passes": ({}, {"accumulate": 3}),
        "dropout": ({}, {"dropout": 0.5}),
    }
    for name, (stage, train) in cases.items():
        yield tried("numbers", f"eager and graphs, {name}", partial(_alike, setting, stage, train))
    yield tried("numbers", "replays in four stages", lambda: _replays(setting))
    yield tried("numbers", "range test after a frozen stage", lambda: _range_test(setting))
    yield tried("numbers", "an infinite gradient", lambda: _infinite(setting))


def _alike(setting: Setting, stage: dict[str, Any], changes: dict[str, Any]) -> Found:
    """The gradients of three steps of an epoch, the last and smaller batch among them."""
    changes = {"dropout": 0.0} | changes
    found = [_gradients(setting, how, stage, changes) for how in ("eager", "graphs")]
    return close(
        _difference(*found), ROUNDING, f"largest difference of a gradient in {STEPS} steps"
    )


def _gradients(
    setting: Setting, how: str, stage: dict[str, Any], changes: dict[str, Any]
) -> list[torch.Tensor]:
    """All gradients of some steps, all at the same weights, in one list."""
    found: list[torch.Tensor] = []

    def note(step: Stepper) -> None:
        found.extend(p.grad.detach().double().cpu() for p in step.trained if p.grad is not None)

    def work(trainer: Trainer, step: Stepper) -> None:
        step.optimizer.register_step_pre_hook(lambda *_: note(step))
        for group in step.optimizer.param_groups:
            group["lr"] = 0.0
        batches = trainer.batches(1, 1)
        trainer.model.train()
        for number, rows in enumerate([*batches[: STEPS - 1], batches[0][: setting.batch // 2]]):
            step(rows, 1, number)

    # With fixed statistics nothing but the weights says what a step gives.
    in_stage(setting, how, [stage], {"batch_norm": "fixed"} | changes, work)
    return found


def in_stage(
    setting: Setting,
    how: str,
    stages: list[dict[str, Any]],
    changes: dict[str, Any],
    work: Callable[[Trainer, Stepper], None],
) -> None:
    """Begins the first stage of a recipe and does some work in it."""
    recipe = setting.recipe(stages, execution=how if setting.on_gpu else "eager", **changes)
    with tempfile.TemporaryDirectory(prefix="raytrain-check-") as run:
        trainer = Trainer(recipe, open_dataset(setting.dataset), run, setting.worker, Hooks())
        with closing(trainer.placed.feed), closing(trainer.saver), heard(_refuse_graphs):
            work(trainer, trainer.start_stage(1))


def _replays(setting: Setting) -> Found:
    """Each stage of a run replays a graph twice for each batch of the stage's size."""
    need_gpu(setting)
    stages = [{"freeze": number % 2 == 0, "epochs": 1} for number in range(4)]
    recipe, counts = setting.recipe(stages, execution="graphs", drop_last=True), list[int]()
    dataset = open_dataset(setting.dataset)
    with (
        replays_counted() as count,
        heard(_refuse_graphs),
        tempfile.TemporaryDirectory(prefix="raytrain-check-") as run,
    ):

        def note(number: int, model: nn.Module) -> None:
            counts.append(count[0] - sum(counts))

        finished(lambda: fit(recipe, dataset, run, setting.worker, Hooks(on_stage_end=note)))
    wanted = 2 * (len(dataset.part_rows("random", "train")) // setting.batch)
    return counts == [wanted] * 4, f"{counts}, {wanted} each are right", {"replays": counts}


def _range_test(setting: Setting) -> Found:
    """After a stage whose body was frozen every weight of the next one has a gradient in its range test."""
    lacking: list[int] = []

    def work(trainer: Trainer, step: Stepper) -> None:
        make = trainer._stepper

        def noted(*arguments: Any) -> Stepper:
            made = make(*arguments)
            made.optimizer.register_step_pre_hook(
                lambda *_: lacking.append(sum(p.grad is None for p in made.trained))
            )
            return made

        with mock.patch.object(trainer, "_stepper", noted):
            trainer.range_test(2)

    in_stage(setting, "graphs", [{"freeze": True}, {}], {}, work)
    return (
        max(lacking) == 0,
        f"{max(lacking)} weights without a gradient in {len(lacking)} steps",
        {"lacking": lacking[0]},
    )


def _infinite(setting: Setting) -> Found:
    """A step whose gradient is infinite leaves all weights as they are, and says so."""
    told, moved = list[float](), list[bool]()

    def work(trainer: Trainer, step: Stepper) -> None:
        before = [p.detach().clone() for p in step.trained]
        bias = next(p for p in reversed(step.trained) if p.dim() == 1)
        bias.register_hook(lambda gradient: gradient * math.inf)
        trainer.model.train()
        told.append(float(step(trainer.batches(1, 1)[0], 1, 0).values[1]))
        moved.extend(not torch.equal(a, b) for a, b in zip(before, step.trained, strict=True))

    in_stage(setting, "graphs", [{}], {}, work)
    return (
        told == [1.0] and not any(moved),
        f"{sum(moved)} of {len(moved)} weights moved, told {bool(told[0])}",
        {},
    )


def _difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest difference as a share of the largest value; infinite where there are not as many."""
    if len(one) != len(other) or not one:
        return math.inf
    largest = max(float(tensor.abs().max()) for tensor in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / largest


def need_gpu(setting: Setting) -> None:
    """Raises Skip on a CPU."""
    if not setting.on_gpu:
        raise Skip(NEEDS_GPU)


def _refuse(line: str) -> None:
    raise RuntimeError(line)


def _refuse_graphs(line: str) -> None:
    """A stage that silently ran eagerly would prove nothing."""
    if line.startswith("CUDA graphs"):
        _refuse(line)


def finished(run: Callable[[], object]) -> None:
    """Runs a fit up to its TensorBoard events, whose package may be missing: all else is done by then.

    Raises:
        Skip: the package that checkpoints are written with is not installed.
    """
    if importlib.util.find_spec(NEEDED) is None:
        raise Skip(f"the package {NEEDED} is not installed")
    try:
        run()
    except ModuleNotFoundError as error:
        if error.name != "tensorboardX":
            raise
