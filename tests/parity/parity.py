"""Does this checkout compute what a parent commit computes? Byte for byte, on this machine.

    python tests/parity/parity.py --parent REV --out DIR [--real ../shared/data/planet] [--only synthetic]

Both commits run the same commands in turn, under the same absolute paths: ingest, training through four stages with one
worker and with two (averages, mixup and accumulation in one of them), predict, evaluate, submission. Then this checkout
resumes a run that the parent has begun, starts a run from a checkpoint of it, and predicts with it.

Equal must be: pictures, shards, splits, dataset.json, the key and the pixels of the tile cache, weights, metrics.jsonl,
predictions, thresholds, submission, history.csv but for its times, train_state.pt by value. meta.json may gain keys.
No hash is kept in the repository, since bits follow the processor. The exit code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
# The package `raytrain.cli` was a module before 29 November 2026.
MAIN = """
try:
    from raytrain.cli.main import main
except ModuleNotFoundError:
    from raytrain.cli import main
main()
"""
PAINT = """
import sys
from pathlib import Path
from raytrain.data import synthetic
synthetic.write(Path(sys.argv[1]), int(sys.argv[2]), 7)
"""
TILES = 240
TIMES = ("images_per_s", "seconds")
RECIPE = {
    "model": {"arch": "timm:test_resnet", "weights": "none", "dropout": 0.25},
    "data": {"split": "random"},
    "train": {"batch_size": 16, "precision": "fp32", "threads": 1, "seed": 3},
    "stages": [
        {"size": 32, "epochs": 1, "freeze": True, "lr": 0.01},
        {"size": 32, "epochs": 2, "freeze": False, "lr": [1e-4, 0.002]},
        {"size": 64, "epochs": 1, "freeze": True, "lr": 0.005},
        {"size": 64, "epochs": 1, "freeze": False, "lr": [1e-4, 0.001]},
    ],
}
OPTIONS = ["--train.ema", "0.9", "--train.mixup", "0.4", "--train.accumulate", "2"]


@dataclass
class Side:
    """A commit that is checked out, and where its results are kept after its turn."""

    name: str
    checkout: Path
    results: Path

    def environment(self, work: Path) -> dict[str, str]:
        """Its code first on the path, with a home and a tile cache in the work folder."""
        own = {
            "PYTHONPATH": str(self.checkout),
            "HOME": str(work / "home"),
            "RAYTRAIN_CACHE": str(work / "cache"),
            "RAY_AUTH_MODE": "disabled",
        }
        return os.environ | own

    def run(self, work: Path, *words: str) -> None:
        """Runs a command of raytrain in the work folder; its output goes to a file."""
        self.python(work, MAIN, *words)

    def python(self, work: Path, code: str, *words: str) -> None:
        """Runs some code with arguments.

        Raises:
            SystemExit: it failed.
        """
        log = work / "commands.log"
        print(f"  {self.name}: {shlex.join(words)[:120]}", flush=True)
        with log.open("a") as file:
            file.write(f"$ {shlex.join(words)}\n")
            file.flush()
            done = subprocess.run(
                [sys.executable, "-c", code, *words],
                cwd=work,
                env=self.environment(work),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            print(log.read_text()[-3000:])
            sys.exit(f"{self.name} ended with exit code {done.returncode}")


@dataclass
class Comparison:
    """What was compared, and what differs."""

    compared: int = 0
    differences: list[str] = field(default_factory=list)

    def check(self, same: bool, what: str) -> None:
        """Counts a comparison."""
        self.compared += 1
        if not same:
            self.differences.append(what)
            print(f"  DIFFERENT: {what}", flush=True)


def main(words: list[str]) -> int:
    """Compares the two commits. Returns the exit code."""
    options = _parser().parse_args(words)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    parent = Side("parent", out / "parent-checkout", out / "parent")
    _check_out(options.parent, parent.checkout)
    new = Side("new", ROOT, out / "new")
    comparison = Comparison()
    kinds = ["synthetic"]
    if options.real is not None:
        kinds.append("real")
    for kind in kinds:
        if options.only not in (None, kind):
            continue
        print(f"{kind} tiles", flush=True)
        work = out / "work"
        for side in (parent, new):
            shutil.rmtree(work, ignore_errors=True)
            (work / "home").mkdir(parents=True)
            _turn(side, work, kind, options.real)
            kept = side.results / kind
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            shutil.move(work, kept)
        compare(parent.results / kind, new.results / kind, comparison)
        if kind == "synthetic":
            _continues(parent, new, work, comparison)
    print(f"{comparison.compared} comparisons, {len(comparison.differences)} differences")
    return 1 if comparison.differences else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parent", required=True, help="commit to compare with")
    parser.add_argument("--out", required=True, type=Path, help="folder for both sides' files")
    parser.add_argument("--real", type=Path, help="folder with train-jpg/ and train_v2.csv")
    parser.add_argument("--only", choices=("synthetic", "real"))
    return parser


def _check_out(revision: str, folder: Path) -> None:
    """Writes the files of a commit into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def _turn(side: Side, work: Path, kind: str, real: Path | None) -> None:
    """Everything that one side does with one kind of tiles, in the work folder."""
    (work / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    images, labels = _tiles(side, work, kind, real)
    side.run(work, "ingest", "--images", images, "--labels", labels, "--out", "dataset")
    _train(side, work, "one", "--num-workers", "1")
    _train(side, work, "two", "--num-workers", "2", *OPTIONS)
    for run in ("one", "two"):
        checkpoint = f"runs/{run}/checkpoints/last"
        table = f"{run}.parquet"
        side.run(
            work, "predict", "--checkpoint", checkpoint, "--dataset", "dataset", "--out", table
        )
        side.run(work, "evaluate", table, "--out", f"evaluation-{run}")
        side.run(work, "submission", table, "--out", f"{run}.csv")


def _tiles(side: Side, work: Path, kind: str, real: Path | None) -> tuple[str, str]:
    """Folder of pictures and label file."""
    if kind == "real":
        assert real is not None
        labels = next(real.glob("train_v2.csv"))
        return str((real / "train-jpg").absolute()), str(labels.absolute())
    side.python(work, PAINT, str(work / "tiles"), str(TILES))
    pictures = next(path for path in (work / "tiles").iterdir() if path.is_dir())
    labels = next((work / "tiles").glob("*.csv"))
    return str(pictures), str(labels)


def _train(side: Side, work: Path, name: str, *flags: str) -> None:
    fixed = ["--config", "recipe.yaml", "--dataset", "dataset", "--storage", "runs"]
    side.run(work, "train", *fixed, "--name", name, "--no-use-gpu", *flags)


def _continues(parent: Side, new: Side, work: Path, comparison: Comparison) -> None:
    """This checkout resumes, starts from and predicts with what the parent has made."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(parent.results / "synthetic", work)
    whole = work / "runs" / "one"
    print("  the parent's checkpoint predicts in this checkout", flush=True)
    new.run(
        work,
        *("predict", "--checkpoint", "runs/one/checkpoints/last"),
        *("--dataset", "dataset", "--out", "again.parquet"),
    )
    same = (work / "again.parquet").read_bytes() == (work / "one.parquet").read_bytes()
    comparison.check(same, "predictions of the parent's checkpoint")
    for side, name in ((parent, "child-parent"), (new, "child-new")):
        _train(side, work, name, "--init-from", "one:stage-2-32", "--stages", "3-4")
    compare_runs(work / "runs" / "child-parent", work / "runs" / "child-new", comparison)
    _stop_early(parent, work)
    new.run(work, "train", "--resume", "cut", "--storage", "runs")
    compare_runs(whole, work / "runs" / "cut", comparison)


def _stop_early(side: Side, work: Path) -> None:
    """Trains a run until its first step is done, then asks it to stop: its checkpoint lies within an epoch.

    Raises:
        SystemExit: it did not stop with a checkpoint.
    """
    print("  the parent begins a run that is stopped", flush=True)
    words = ["train", "--config", "recipe.yaml", "--dataset", "dataset", "--storage", "runs"]
    words += ["--name", "cut", "--no-use-gpu", "--num-workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", MAIN, *words],
        cwd=work,
        env=side.environment(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "first step of" in line:
            process.send_signal(signal.SIGTERM)
    if process.wait() != 75:
        sys.exit(f"the parent's run ended with exit code {process.returncode}, not 75")
    time.sleep(1)  # its lock file goes last


def compare(one: Path, other: Path, comparison: Comparison) -> None:
    """Compares all that two sides have left behind."""
    for pattern in ("tiles/**/*", "dataset/**/*.parquet", "dataset/dataset.json", "cache/*/*.u8"):
        _compare_files(one, other, pattern, comparison)
    for pattern in ("*.parquet", "*.csv"):
        _compare_files(one, other, pattern, comparison)
    for run in ("one", "two"):
        compare_runs(one / "runs" / run, other / "runs" / run, comparison)


def _compare_files(one: Path, other: Path, pattern: str, comparison: Comparison) -> None:
    """The same files, with the same bytes."""
    names = [_names(folder, pattern) for folder in (one, other)]
    comparison.check(names[0] == names[1], f"names of {pattern}")
    for name in names[0] & names[1]:
        same = (one / name).read_bytes() == (other / name).read_bytes()
        comparison.check(same, name)


def _names(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file()}


def compare_runs(one: Path, other: Path, comparison: Comparison) -> None:
    """Two run directories: records, predictions and every checkpoint."""
    label = f"{one.name} and {other.name}: " if one.name != other.name else f"{one.name}: "
    for name in ("metrics.jsonl", "thresholds.json"):
        same = (one / name).read_bytes() == (other / name).read_bytes()
        comparison.check(same, f"{label}{name}")
    if one.name == other.name:  # else its metadata names another run
        same = (one / "predictions.parquet").read_bytes()
        comparison.check(
            same == (other / "predictions.parquet").read_bytes(), f"{label}predictions.parquet"
        )
    comparison.check(_history(one) == _history(other), f"{label}history.csv")
    names = [{path.name for path in (run / "checkpoints").iterdir()} for run in (one, other)]
    comparison.check(names[0] == names[1], f"{label}names of the checkpoints")
    for name in sorted(names[0] & names[1]):
        _compare_checkpoints(one, other, name, label, comparison)


def _history(run: Path) -> list[dict[str, str]]:
    """The rows of history.csv without their times."""
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in TIMES:
            del row[key]
    return rows


def _compare_checkpoints(
    one: Path, other: Path, name: str, label: str, comparison: Comparison
) -> None:
    theirs, ours = one / "checkpoints" / name, other / "checkpoints" / name
    for file in sorted({path.name for path in [*theirs.iterdir(), *ours.iterdir()]}):
        what = f"{label}{name}/{file}"
        if file == "MANIFEST.json":
            continue
        if not (theirs / file).exists() or not (ours / file).exists():
            comparison.check(False, f"{what} exists")
        elif file == "train_state.pt":
            states = [torch.load(path / file, weights_only=True) for path in (theirs, ours)]
            comparison.check(equal_values(*states), what)
        elif file == "meta.json":
            metas = [json.loads((path / file).read_text()) for path in (theirs, ours)]
            comparison.check(_is_kept(*metas), what)
        else:
            same = (theirs / file).read_bytes() == (ours / file).read_bytes()
            comparison.check(same, what)


def _is_kept(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a meta.json holds all that the parent's holds, but for the name of its run.

    The recipe in it may have fields that the parent's did not have.
    """
    for key, value in before.items():
        if key == "parent":
            continue
        if isinstance(value, dict) and isinstance(after.get(key), dict):
            if not _is_kept(value, after[key]):
                return False
        elif key not in after or after[key] != value:
            print(f"    {key}: {value!r} {after.get(key)!r}"[:300])
            return False
    return True


def equal_values(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_values(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(equal_values(a, b) for a, b in pairs)
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
