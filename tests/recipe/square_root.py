"""Does a batch four times as large, with rates and weight decay times 2, train as well? The rule of planet-resnet50-8gpu:

    RAYTRAIN_REAL_DATA=DIR python tests/recipe/square_root.py --out square-root

ResNet-18, 64 then 128 px, batch 16 against 64 with one worker, three seeds on each data set; half an hour on two cores.
Interrupted, the same command goes on. The F2 of a tile at threshold 0.2 is its mean over the seeds. The difference of the
two batches is that of the same tiles, with its bootstrap interval. DIR as tests/test_real.py describes it.
"""

import argparse
import math
import os
from pathlib import Path

import numpy as np
import yaml
from score import prepared

from raytrain.cli.main import run_command
from raytrain.distributed.environment import QUIET
from raytrain.evaluation import intervals, metrics, predictions

BATCHES = (16, 64)
SEEDS = (1, 2, 3)
DATA = ("planet", "ucmerced")
# As planet-resnet18, at half its sizes.
STAGES = (
    {"size": 64, "epochs": 5, "freeze": True, "lr": 0.01},
    {"size": 64, "epochs": 5, "freeze": False, "lr": [2.0e-4, 0.002]},
    {"size": 128, "epochs": 3, "freeze": True, "lr": 0.002},
    {"size": 128, "epochs": 3, "freeze": False, "lr": [5.0e-5, 5.0e-4]},
)


def recipe(batch: int) -> dict:
    """The recipe of a batch: rates and weight decay grow with the root of its size."""
    factor = math.sqrt(batch / min(BATCHES))
    stages = []
    for stage in STAGES:
        rates = np.multiply(stage["lr"], factor).tolist()
        stages.append({**stage, "lr": rates})
    return {
        "model": {"arch": "resnet18", "dropout": 0.25},
        "train": {"batch_size": batch, "wd": 0.01 * factor},
        "stages": stages,
    }


def tile_scores(out: Path, data: str, batch: int, seed: int) -> dict[str, float]:
    """F2 of each validation tile by its name, after a run that is trained now, resumed, or found finished."""
    name = f"{data}-{batch}-{seed}"
    path = out / name
    if not (path / "report.html").exists():  # written last
        flags = ["--resume", name]
        if not (path / "config.yaml").exists():
            file = out / f"batch-{batch}.yaml"
            file.write_text(yaml.safe_dump(recipe(batch)))
            flags = ["--config", str(file), "--name", name, "--dataset", str(out / data)]
            flags += ["--train.seed", str(seed), "--model.weights", str(out / "resnet18.pth")]
        if run_command(["train", *flags, "--storage", str(out)]) != 0:
            raise SystemExit(f"{name} failed; the same command goes on with it")
    found = predictions.read(str(path / "predictions.parquet"))
    scores = metrics.f2_per_tile(found.probability > metrics.THRESHOLD, found.target)
    return dict(zip(found.names, scores.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    out = Path(parser.parse_args().out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(QUIET)
    lines = [
        f"| data | tiles | batch {BATCHES[0]} | batch {BATCHES[1]} | difference, 95 % interval | verdict |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for data in DATA:
        prepared(out, data)
        means = []
        for batch in BATCHES:
            by_seed = [tile_scores(out, data, batch, seed) for seed in SEEDS]
            names = sorted(by_seed[0])
            means.append(np.mean([[scores[name] for name in names] for scores in by_seed], axis=0))
        found = intervals.compare(means[0], means[1])
        difference = found.difference
        lines.append(
            f"| {data} | {len(means[0])} | {found.first:.4f} | {found.second:.4f} | {difference.value:+.4f} "
            f"({difference.low:+.4f} to {difference.high:+.4f}) | {found.verdict} |"
        )
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
