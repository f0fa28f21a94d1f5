"""F2 after each stage on real tiles, three seeds; whether small tiles first pay; whether --lr auto harms. One command:

    RAYTRAIN_REAL_DATA=DIR python tests/recipe/score.py --out score

About an hour on two cores. Interrupted, the same command goes on: finished runs are kept, a begun one is resumed. The
table is printed and written to score/results.md. DIR as tests/test_real.py describes it.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

from raytrain.cli import RAY_ENVIRONMENT, run_command

sys.path.append(str(Path(__file__).parents[1]))
from test_real import REAL

RECIPE, WORKERS = "planet-resnet18", 2
# The recipe; the same epochs with every stage at the large size; its first stage with the rate of a range test.
VARIANTS = ("recipe", "large", "auto")


def command(variant: str, stages: str) -> list[str]:
    """Flags of a variant beside those that all share."""
    if variant == "auto":
        return ["--config", RECIPE, "--lr", "auto", "--stages", "1"]
    return ["--config", stages if variant == "large" else RECIPE]


def large_recipe(out: Path) -> str:
    """The recipe with every stage at its largest size."""
    from raytrain.config import load_recipe

    recipe = load_recipe(RECIPE)
    size = max(stage.size for stage in recipe.stages)
    stages = tuple(stage.model_copy(update={"size": size}) for stage in recipe.stages)
    path = out / "large.yaml"
    path.write_text(recipe.model_copy(update={"stages": stages}).to_yaml())
    return str(path)


def run(out: Path, data: str, variant: str, seed: int) -> pd.DataFrame:
    """The history of a run: trained now, resumed, or found finished."""
    name = f"{data}-{variant}-{seed}"
    place = out / name
    wanted = 5 if variant == "auto" else 16
    if not (place / "history.csv").exists() or len(pd.read_csv(place / "history.csv")) < wanted:
        begun = (place / "config.yaml").exists()
        flags = ["--resume", name] if begun else [
            *command(variant, large_recipe(out)), "--name", name, "--dataset", str(out / data), "--num-workers", str(WORKERS),
            "--model.weights", str(out / "resnet18.pth"), "--train.seed", str(seed),
        ]  # fmt: skip
        if run_command(["train", *flags, "--storage", str(out)]) != 0:
            raise SystemExit(f"{name} failed; the same command goes on with it")
    return pd.read_csv(place / "history.csv")


def prepared(out: Path, data: str) -> None:
    """Ingests the data set and builds the weights, once."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "resnet18.pth").exists():
        subprocess.run([sys.executable, str(REAL / "weights" / "build.py"), str(out / "resnet18.pth")], check=True)
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
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def after_stages(histories: list[pd.DataFrame]) -> str:
    """A table row: F2 after each stage."""
    return " | ".join(spread([h[h["stage"] == stage]["f2"].iloc[-1] for h in histories]) for stage in (1, 2, 3, 4))


def compared(left: list[pd.DataFrame], right: list[pd.DataFrame], column: str, stage: int) -> str:
    """Mean difference of a column at the end of a stage, seed by seed, ± its standard error."""
    ends = [[h[h["stage"] == stage][column].iloc[-1] for h in histories] for histories in (left, right)]
    differences = [a - b for a, b in zip(*ends, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{statistics.mean(differences):+.4f} ± {error:.4f}"


def rows(data: str, found: dict[str, list[pd.DataFrame]]) -> list[str]:
    """The data set's rows of the table."""
    return [
        f"| {data}, 128 then 256 px | {after_stages(found['recipe'])} |",
        f"| {data}, 256 px throughout | {after_stages(found['large'])} |",
    ]


def notes(data: str, found: dict[str, list[pd.DataFrame]]) -> list[str]:
    """What the variants say, in sentences; differences are seed by seed, ± their standard error."""
    recipe, large, auto = (found[variant] for variant in VARIANTS)
    seconds = [statistics.mean(h["seconds"].sum() for h in histories) for histories in (recipe, large)]
    return [
        f"{data}: starting small changes the final F2 by {compared(recipe, large, 'f2', 4)} and takes "
        f"{seconds[0] / seconds[1]:.2f} of the time.",
        f"{data}: stage 1 with --lr auto against 0.01: F2 {compared(auto, recipe, 'f2', 1)}, "
        f"validation loss {compared(auto, recipe, 'valid_loss', 1)}.",
    ]


def main() -> None:
    """Works through data sets, seeds and variants, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("score"))
    parser.add_argument("--data", nargs="+", default=["planet", "ucmerced"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2])
    options = parser.parse_args()
    os.environ.update({"RAY_AUTH_MODE": "disabled"} | RAY_ENVIRONMENT)
    out = options.out.absolute()
    table = ["| F2 after stage | 1 | 2 | 3 | 4 |", "| --- | --- | --- | --- | --- |"]
    sentences = []
    for data in options.data:
        prepared(out, data)
        found = {variant: [run(out, data, variant, seed) for seed in options.seeds] for variant in VARIANTS}
        table += rows(data, found)
        sentences += notes(data, found)
    text = "\n".join([*table, "", *sentences, ""])
    (out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
