"""The command `raytrain bench`.

Heavy modules are imported inside the functions, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from raytrain import log
from raytrain.cli.flags import BenchRecipeFlags
from raytrain.cli.job import check_written
from raytrain.config import Recipe
from raytrain.errors import ConfigError, did_you_mean
from raytrain.output import outlive_reader

if TYPE_CHECKING:
    from raytrain.bench.figures import Figure
    from raytrain.data.dataset import Dataset

PARTS = (
    "decode",
    "train",
    "workers",
    "stream",
    "peer",
    "variants",
    "profile",
    "checkpoints",
    "growth",
    "ingest",
    "predict",
    "start",
)
# Only on request: they compare with what we do not do, or take long.
OPTIONAL = {"peer", "variants", "profile", "checkpoints"}
UNDER_RAY = {"growth", "start", "ingest", "predict"}
# Number of tiles that are generated.
TILES = 600
# Maximum number of rounds for parts in which every round is a whole run.
MOST_RUNS = 3


@dataclass(frozen=True)
class MeasureFlags:
    """What is measured, and how often."""

    generate: Annotated[
        int, Parameter(help="number of tiles to generate if no --dataset is given")
    ] = TILES
    pairs: Annotated[int, Parameter(help="number of rounds in which both sides train in turn")] = 5
    steps: Annotated[
        int, Parameter(help="optimiser steps of one side before it is the other's turn")
    ] = 12
    peer: Annotated[
        bool, Parameter(negative="", help="also compare with a plain PyTorch loop on JPEG files")
    ] = False
    only: Annotated[
        str | None, Parameter(help=f"parts to measure, comma-separated: {', '.join(PARTS)}")
    ] = None
    output: Annotated[Path | None, Parameter(name="--json", help="file to write all values to")] = (
        None
    )

    def check(self) -> None:
        """Refuses values out of range, and a file that cannot be written.

        Raises:
            ConfigError: with the flag.
        """
        counts = {"--pairs": self.pairs, "--steps": self.steps, "--generate": self.generate}
        for flag, value in counts.items():
            if value < 1:
                raise ConfigError(
                    f"{flag} {value} is less than 1",
                    "there would be nothing to measure",
                    f"{flag} 5",
                )
        if self.output is None:
            return
        check_written("--json", str(self.output))
        if not self.output.parent.is_dir():
            raise ConfigError(
                f"--json {self.output}: there is no folder {self.output.parent}",
                "the figures would be lost",
                f"mkdir -p {shlex.quote(str(self.output.parent))}",
            )


NO_RECIPE_FLAGS = BenchRecipeFlags()
NO_MEASURE_FLAGS = MeasureFlags()


def bench(
    *,
    recipe: Annotated[BenchRecipeFlags, Parameter(name="*")] = NO_RECIPE_FLAGS,
    flags: Annotated[MeasureFlags, Parameter(name="*")] = NO_MEASURE_FLAGS,
) -> None:
    """Measure how fast this machine decodes, ingests, trains, predicts and starts.

    The figures are compared with what the machine could reach.
    """
    parts = chosen_parts(flags.only, flags.peer)
    flags.check()
    if UNDER_RAY & set(parts):
        from raytrain.distributed.environment import check_session

        check_session()
    settings = _without_weights(recipe.load())
    from raytrain.bench import figures
    from raytrain.bench.generate import workplace

    # The measurement takes minutes: it must not be lost because its reader has left.
    outlive_reader()
    with workplace(settings.dataset, flags.generate) as dataset:
        found = _measured(settings, dataset, parts, flags)
    print(f"\n{figures.machine_line()}\n{figures.table(found)}")
    if flags.output is not None:
        command = shlex.join(["raytrain", *sys.argv[1:]])
        flags.output.write_text(json.dumps(figures.document(found, command), indent=1) + "\n")
        print(f"all values: {flags.output}")


def _without_weights(recipe: Recipe) -> Recipe:
    """The recipe from random weights: speed does not depend on them, and nothing is downloaded."""
    model = recipe.model.model_copy(update={"weights": "none"})
    return recipe.model_copy(update={"model": model, "init_from": None})


def chosen_parts(only: str | None, peer: bool) -> tuple[str, ...]:
    """The parts to measure, in the order of `PARTS`.

    Args:
        only: the parts, comma-separated; None for all except `OPTIONAL`.
        peer: measure the part `peer` as well.

    Raises:
        ConfigError: no such part.
    """
    named = set(PARTS) - OPTIONAL
    if only is not None:
        named = {word.strip() for word in only.split(",")}
    unknown = sorted(named - set(PARTS))
    if unknown:
        raise ConfigError(
            f'--only: there is no part "{unknown[0]}".{did_you_mean(unknown[0], PARTS)}',
            f"the parts are {', '.join(PARTS)}",
            "--only train,start",
        )
    if peer:
        named.add("peer")
    return tuple(part for part in PARTS if part in named)


def _measured(
    recipe: Recipe, dataset: Dataset, parts: Sequence[str], flags: MeasureFlags
) -> list[Figure]:
    """All figures of the parts, first those without Ray."""
    # Runs log every epoch, which nobody wants to read here.
    with log.only("raytrain.bench"):
        found = _measured_without_ray(recipe, dataset, parts, flags)
        # Ray last: while it runs, its processes use some of the CPU time.
        if UNDER_RAY & set(parts):
            found += _measured_under_ray(recipe, dataset, parts, flags.pairs)
    return found


def _measured_without_ray(
    recipe: Recipe, dataset: Dataset, parts: Sequence[str], flags: MeasureFlags
) -> list[Figure]:
    from raytrain.bench.decode import decode_rate
    from raytrain.bench.growth import growth
    from raytrain.bench.training import measure
    from raytrain.tiles.sampling import check_batches, training_rows

    if "workers" in parts:
        from raytrain.distributed.network import check_interfaces

        check_interfaces(gpu=False)  # the processes of this part meet through gloo
    training = len(training_rows(recipe, dataset))
    validation = len(dataset.part_rows(recipe.data.split, "valid"))
    check_batches(recipe, training, validation)
    found: list[Figure] = []
    if "decode" in parts:
        found += decode_rate(dataset, flags.pairs)
    found += measure(recipe, dataset, pairs=flags.pairs, block=flags.steps, parts=parts)
    if "growth" in parts:
        found += growth(flags.pairs)
    return found


def _measured_under_ray(
    recipe: Recipe, dataset: Dataset, parts: Sequence[str], pairs: int
) -> list[Figure]:
    from raytrain.distributed import bench as ray_parts

    rounds = min(pairs, MOST_RUNS)
    found: list[Figure] = []
    if "growth" in parts:
        found += ray_parts.driver_growth()
    if "start" in parts:
        found += ray_parts.start_times(recipe, dataset, rounds)
    if "ingest" in parts:
        found += ray_parts.ingest_rate(dataset, rounds)
    if "predict" in parts:
        found += ray_parts.predict_rate(recipe, dataset, rounds)
    return found
