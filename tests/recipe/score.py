"""F2 after each stage on real tiles over three seeds, and what starting small, --lr auto and one worker change:

    RAYTRAIN_REAL_DATA=DIR python tests/recipe/score.py --out score

An hour and a half on two cores. Interrupted, the same command goes on: finished runs are kept, a begun one is resumed. The
table is printed and written to score/results.md. DIR as tests/test_real.py describes it.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed.environment import QUIET

sys.path.append(str(Path(__file__).parents[1]))
from test_real import REAL as RELATIVE

REAL = RELATIVE.absolute()
RECIPE = "planet-resnet18"
# Flags of each variant: the recipe itself; with the rates of range tests; the recipe's epochs with every stage at the
# largest size; the first stage with one worker, whose BatchNorm sees the whole batch.
VARIANTS = {
    "recipe": ["--config", RECIPE, "--num-workers", "2"],
    "auto": ["--config", RECIPE, "--num-workers", "2", "--lr", "auto"],
    "large": ["--config", "large.yaml", "--num-workers", "2"],
    "alone": ["--config", RECIPE, "--num-workers", "1", "--stages", "1"],
}


def write_large_recipe(path: Path) -> None:
    """The recipe with every stage at its largest size."""
    recipe = load_recipe(RECIPE)
    size = max(stage.size for stage in recipe.stages)
    stages = tuple(stage.model_copy(update={"size": size}) for stage in recipe.stages)
    path.write_text(recipe.model_copy(update={"stages": stages}).to_yaml())


def run(out: Path, data: str, variant: str, seed: int) -> pd.DataFrame:
    """The history of a run: trained now, resumed, or found finished."""
    name = f"{data}-{variant}-{seed}"
    path = out / name
    if not (path / "report.html").exists():  # written last
        flags = (
            ["--resume", name]
            if (path / "config.yaml").exists()
            else [
                "--name",
                name,
                "--dataset",
                str(out / data),
                "--train.seed",
                str(seed),
                "--model.weights",
                str(out / "resnet18.pth"),
                *VARIANTS[variant],
            ]
        )
        if run_command(["train", *flags, "--storage", str(out)]) != 0:
            raise SystemExit(f"{name} failed; the same command goes on with it")
    return pd.read_csv(path / "history.csv")


def prepared(out: Path, data: str) -> None:
    """Ingests the data set and builds the weights, once."""
    if not (out / "resnet18.pth").exists():
        subprocess.run(
            [sys.executable, str(REAL / "weights" / "build.py"), str(out / "resnet18.pth")],
            check=True,
        )
    folder = REAL / data
    arguments = [
        "--images",
        str(folder / "train-jpg"),
        "--labels",
        str(folder / "train_v2.csv"),
        "--out",
        str(out / data),
    ]
    if run_command(["ingest", *arguments]) != 0:
        raise SystemExit(f"{folder} cannot be ingested")


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return (
        f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        if len(values) > 1
        else f"{values[0]:.4f}"
    )


def after_stages(histories: list[pd.DataFrame]) -> str:
    """A table row: F2 after each stage."""
    return " | ".join(
        spread([h[h["stage"] == stage]["f2"].iloc[-1] for h in histories]) for stage in (1, 2, 3, 4)
    )


def compared(left: list[pd.DataFrame], right: list[pd.DataFrame], column: str, stage: int) -> str:
    """Mean difference of a column at the end of a stage, seed by seed, ± its standard error."""
    ends = [
        [h[h["stage"] == stage][column].iloc[-1] for h in histories] for histories in (left, right)
    ]
    differences = [a - b for a, b in zip(*ends, strict=True)]
    error = (
        statistics.stdev(differences) / len(differences) ** 0.5
        if len(differences) > 1
        else float("nan")
    )
    return f"{statistics.mean(differences):+.4f} ± {error:.4f}"


def rows(data: str, found: dict[str, list[pd.DataFrame]]) -> list[str]:
    """The data set's rows of the table."""
    return [
        f"| {data}, 128 then 256 px | {after_stages(found['recipe'])} |",
        f"| {data}, 256 px throughout | {after_stages(found['large'])} |",
        f"| {data}, with --lr auto | {after_stages(found['auto'])} |",
    ]


def notes(data: str, found: dict[str, list[pd.DataFrame]]) -> list[str]:
    """What the variants say, in sentences; differences are seed by seed, ± their standard error."""
    recipe, auto, large, alone = (found[variant] for variant in VARIANTS)
    seconds = [
        statistics.mean(h["seconds"].sum() for h in histories) for histories in (recipe, large)
    ]
    return [
        f"{data}: starting small changes the final F2 by {compared(recipe, large, 'f2', 4)} and takes "
        f"{seconds[0] / seconds[1]:.2f} of the time.",
        f"{data}: stage 1 with --lr auto against 0.01: F2 {compared(auto, recipe, 'f2', 1)}, "
        f"validation loss {compared(auto, recipe, 'valid_loss', 1)}; after all four: F2 {compared(auto, recipe, 'f2', 4)}.",
        f"{data}: stage 1 with one worker against two, each of whose BatchNorm sees its half of the batch: "
        f"F2 {compared(alone, recipe, 'f2', 1)}, validation loss {compared(alone, recipe, 'valid_loss', 1)}.",
    ]


def main() -> None:
    """Works through data sets, seeds and variants, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("score"))
    parser.add_argument("--data", nargs="+", default=["planet", "ucmerced"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2])
    options = parser.parse_args()
    os.environ.update({"RAY_AUTH_MODE": "disabled"} | QUIET)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    write_large_recipe(out / "large.yaml")
    for data in options.data:
        prepared(out, data)
    found: dict[str, dict[str, list[pd.DataFrame]]] = {data: {} for data in options.data}
    for variant in VARIANTS:
        for data in options.data:
            found[data][variant] = [run(out, data, variant, seed) for seed in options.seeds]
    table = ["| F2 after stage | 1 | 2 | 3 | 4 |", "| --- | --- | --- | --- | --- |"]
    table += [row for data in options.data for row in rows(data, found[data])]
    sentences = [sentence for data in options.data for sentence in notes(data, found[data])]
    text = "\n".join([*table, "", *sentences, ""])
    (out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
