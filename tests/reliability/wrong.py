"""R20: checkpoints that are broken or for something else, refused by the commands that would use them, each for its reason."""

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import safetensors.torch
import torch
from figures import Case, Checks, Figure, Outcome
from group import run_alone
from hostile import rehashed
from sentences import flaw, flaw_of, said
from workshop import CLASSES, dataset, recipe

from raytrain.checkpoints import layout
from raytrain.errors import RaytrainError
from raytrain.models import networks

ARCH = "timm:test_resnet"


@cache
def _shared(folder: Path) -> tuple[str, Path]:
    """(dataset, checkpoint) of a run of one stage, made once."""
    path = dataset(folder / "data", 64)
    settings = recipe(path, (32, 64), epochs=1).model_copy(update={"select": "1"})
    run_alone(settings, folder / "run")
    return path, folder / "run" / "checkpoints" / "last"


def _file(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Another content, or none, of a file of the checkpoint."""

    def harm(path: Path) -> None:
        content = change((path / name).read_bytes())
        (path / name).unlink()
        if content is not None:
            (path / name).write_bytes(content)

    return harm


def _meta(**changes: object) -> Callable[[Path], None]:
    """Another meta.json, with a manifest that agrees; a field that is None goes."""

    def harm(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text()) | changes
        rehashed(
            path, meta_json=json.dumps({k: v for k, v in meta.items() if v is not None}).encode()
        )

    return harm


def _weights(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], None]:
    """Other weights, averages included, with a manifest that agrees."""

    def harm(path: Path) -> None:
        for name in ("model.safetensors", "ema.safetensors"):
            state = change(safetensors.torch.load((path / name).read_bytes()))
            (path / name).write_bytes(safetensors.torch.save(state))
        rehashed(path)

    return harm


def _not_finite(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"head.7.weight": torch.full_like(state["head.7.weight"], float("nan"))}


def _another_network(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return networks.build("resnet18", len(CLASSES), 0.5).state_dict()


def _one_class_fewer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {
        f"head.7.{part}": state[f"head.7.{part}"][1:].contiguous() for part in ("weight", "bias")
    }


def _replaced_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("weights")


def _emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


WEIGHTS = "model.safetensors"
MANIFEST = layout.MANIFEST
# name: (harm, the word of the reason)
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (_file(WEIGHTS, lambda c: c[: len(c) // 2]), WEIGHTS),
    "weights without bytes": (_file(WEIGHTS, lambda c: b""), WEIGHTS),
    "text for weights": (_file(WEIGHTS, lambda c: b"not weights"), WEIGHTS),
    "weights missing": (_file(WEIGHTS, lambda c: None), "incomplete"),
    "a flipped bit in the weights": (
        _file(WEIGHTS, lambda c: c[:999] + bytes([c[999] ^ 1]) + c[1000:]),
        WEIGHTS,
    ),
    "averages cut": (_file("ema.safetensors", lambda c: c[:-1]), "ema.safetensors"),
    "state of training cut": (_file("train_state.pt", lambda c: c[:-1]), "train_state.pt"),
    "manifest missing": (_file(MANIFEST, lambda c: None), "no checkpoint"),
    "manifest without bytes": (_file(MANIFEST, lambda c: b""), "incomplete"),
    "manifest cut": (_file(MANIFEST, lambda c: c[:40]), "incomplete"),
    "manifest that names nothing": (_file(MANIFEST, lambda c: b"{}"), "does not name"),
    "manifest that is a list": (_file(MANIFEST, lambda c: b"[1]"), "is not a JSON object"),
    "meta.json missing": (_file("meta.json", lambda c: None), "incomplete"),
    "meta.json that is text": (lambda path: rehashed(path, meta_json=b"hello"), "meta.json"),
    "meta.json without classes": (_meta(classes=None), "classes"),
    "text with a right hash for weights": (
        lambda path: rehashed(path, model_safetensors=b"x" * 99, ema_safetensors=b"x" * 99),
        "no plain tensors",
    ),
    "weights that are not finite": (_weights(_not_finite), "not finite"),
    "no files": (_emptied, "no checkpoint"),
    "a file in its place": (_replaced_by_a_file, "no checkpoint"),
    "other classes": (_meta(classes=[*CLASSES[:-1], "lava"]), "other classes"),
    "classes in another order": (_meta(classes=CLASSES[::-1]), "another order"),
    "fewer classes": (_meta(classes=CLASSES[1:]), "4 other classes"),
    "weights of another network": (_weights(_another_network), "do not fit"),
    "weights of fewer classes": (_weights(_one_class_fewer), "do not fit"),
}
# These, only one who starts from it can know.
TO_START_FROM = {
    "another network": (_meta(arch="resnet18"), "is a resnet18"),
    "pixels normalised otherwise": (_meta(normalize="none"), "normalised by none"),
}
# These are the run's own.
OWN = {
    "another dataset": (_meta(dataset_hash="0" * 64), "is not the one"),
    "another split": (_meta(split_hash="0" * 64), "is not the one"),
}


def refused(name: str, command: str, folder: Path) -> Outcome:
    """One broken checkpoint, in one use of it."""
    checks, (dataset, good) = Checks(), _shared(folder.parent / "wrong-checkpoints")
    harm, word = (BROKEN | TO_START_FROM)[name]
    bad = folder / "runs" / "checkpoint"
    shutil.copytree(good, bad)
    harm(bad)
    if command == "predict":
        arguments = [
            "predict",
            "--checkpoint",
            str(bad),
            "--dataset",
            dataset,
            "--out",
            str(folder / "p.parquet"),
        ]
    else:
        arguments = [
            "train",
            "--config",
            "smoke",
            "--dataset",
            dataset,
            "--model.arch",
            ARCH,
            "--storage",
            str(folder / "store"),
            "--init-from",
            str(bad),
            "--dry-run",
        ]
    with patch(
        "raytrain.distributed.predict._run", side_effect=AssertionError("it was not refused")
    ):
        done = said(arguments)
    what = f"{command} with {name}"
    checks.add(done.code == 2, f"{what}: exit code {done.code} {done.text[-400:]}")
    checks.add(word in done.error.partition("\n")[0], f"{what}: no {word!r} in {done.error}")
    checks.add(not flaw(done.error), f"{what}: {flaw(done.error)}")
    checks.add(not (folder / "p.parquet").exists(), f"{what}: predicted all the same")
    return checks.outcome()


def own_refused(name: str, folder: Path) -> Outcome:
    """A run whose own checkpoint was trained on something else."""
    checks, (dataset, good) = Checks(), _shared(folder.parent / "wrong-checkpoints")
    harm, word = OWN[name]
    shutil.copytree(good.parents[1], folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "best")
    for path in (folder / "run" / "checkpoints").iterdir():
        harm(path)
    try:
        run_alone(recipe(dataset, (32, 64), epochs=1), folder / "run")
        checks.add(False, f"{name}: trained all the same")
    except RaytrainError as error:
        checks.add(word in error.what and not flaw_of(error), str(error))
    return checks.outcome()


FIGURES = [
    Figure(
        "R20",
        "broken or wrong checkpoints refused, each for its reason in one line",
        "all of >= 20",
        [
            *(
                Case(f"predict with {name}", partial(refused, name, "predict"), n % 4 == 0)
                for n, name in enumerate(BROKEN)
            ),
            *(
                Case(f"start from {name}", partial(refused, name, "train"), name in TO_START_FROM)
                for name in BROKEN | TO_START_FROM
            ),
            *(
                Case(f"go on with {name}", partial(own_refused, name), name == "another dataset")
                for name in OWN
            ),
        ],
        lambda outcomes: f"{sum(o.passed == o.of for o in outcomes)}/{len(outcomes)}",
    ),
]
