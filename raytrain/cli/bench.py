"""The command `raytrain bench`. As in `cli.py`, heavy modules are imported inside the command."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from raytrain.cli.job import check_written
from raytrain.cli.main import Flags
from raytrain.config import Recipe, load_recipe
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
# Only where they are asked for: they compare with what we do not do, or take long.
OPTIONAL = {"peer", "variants", "profile", "checkpoints"}
UNDER_RAY = {"growth", "start", "ingest", "predict"}
DEFAULT_CONFIG = "planet-resnet18"
TILES = 600
# Of what takes whole runs, as many rounds at most.
MOST_RUNS = 3


def bench(
    *,
    config: Annotated[
        str | None, Parameter(help=f"recipe name or YAML file; default {DEFAULT_CONFIG}")
    ] = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    generate: Annotated[
        int, Parameter(help="tiles to generate where no --dataset is given")
    ] = TILES,
    pairs: Annotated[int, Parameter(help="rounds of the sides that train in turn")] = 5,
    steps: Annotated[int, Parameter(help="optimiser steps of a side before the other's turn")] = 12,
    peer: Annotated[
        bool, Parameter(negative="", help="also a plain PyTorch loop on JPEG files")
    ] = False,
    only: Annotated[
        str | None, Parameter(help=f"parts to measure, a,b of {', '.join(PARTS)}")
    ] = None,
    output: Annotated[
        Path | None, Parameter(name="--json", help="file to write every value to")
    ] = None,
) -> None:
    """Measure how fast this machine decodes, ingests, trains, predicts and starts, against what it could reach."""
    parts = chosen_parts(only, peer)
    for flag, value in (("--pairs", pairs), ("--steps", steps), ("--generate", generate)):
        if value < 1:
            raise ConfigError(
                f"{flag} {value} is less than 1", "there would be nothing to measure", f"{flag} 5"
            )
    if output is not None:
        check_written("--json", str(output))
    if output is not None and not output.parent.is_dir():
        raise ConfigError(
            f"--json {output}: there is no folder {output.parent}",
            "the figures would be lost",
            "make it",
        )
    if UNDER_RAY & set(parts):
        from raytrain.distributed.environment import check_session

        check_session()
    overrides = flags.model_dump(exclude_unset=True) if flags else {}
    recipe = load_recipe(config or DEFAULT_CONFIG, overrides)
    # What is measured does not depend on weights, and needs no download.
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"weights": "none"}), "init_from": None}
    )
    from raytrain.bench import figures
    from raytrain.bench.generate import workplace

    outlive_reader()
    with workplace(recipe.dataset, generate) as dataset, only("raytrain.bench"):
        found = _measured(recipe, dataset, parts, pairs, steps)
    print(f"\n{figures.machine_line()}\n{figures.table(found)}")
    if output is not None:
        command = shlex.join(["raytrain", *sys.argv[1:]])
        output.write_text(json.dumps(figures.document(found, command), indent=1) + "\n")
        print(f"all values: {output}")


def chosen_parts(only: str | None, peer: bool) -> tuple[str, ...]:
    """The parts to measure, in the order of `PARTS`: those named, else all but `OPTIONAL`; `peer` where it is asked for.

    Raises:
        ConfigError: no such part.
    """
    named = set(PARTS) - OPTIONAL if only is None else {word.strip() for word in only.split(",")}
    unknown = sorted(named - set(PARTS))
    if unknown:
        raise ConfigError(
            f'--only: there is no part "{unknown[0]}".{did_you_mean(unknown[0], PARTS)}',
            f"the parts are {', '.join(PARTS)}",
            "--only train,start",
        )
    return tuple(part for part in PARTS if part in named or (part == "peer" and peer))


def _measured(
    recipe: Recipe, dataset: Dataset, parts: Sequence[str], pairs: int, steps: int
) -> list[Figure]:
    from raytrain.bench.decode import decode_rate
    from raytrain.bench.growth import growth
    from raytrain.bench.training import measure
    from raytrain.tiles.sampling import check_batches

    if "workers" in parts:
        from raytrain.distributed.network import check_interfaces

        check_interfaces(gpu=False)  # its processes meet through gloo
    rows = (len(dataset.part_rows(recipe.data.split, part)) for part in ("train", "valid"))
    check_batches(recipe, *rows)
    runs = min(pairs, MOST_RUNS)
    found = decode_rate(dataset, pairs) if "decode" in parts else []
    found += measure(recipe, dataset, pairs=pairs, block=steps, parts=parts)
    found += growth(pairs) if "growth" in parts else []
    # Ray last: while it runs, its processes take part of the cores.
    if UNDER_RAY & set(parts):
        from raytrain.distributed import bench as ray_parts

        found += ray_parts.driver_growth(print) if "growth" in parts else []
        found += ray_parts.start_times(recipe, dataset, runs, print) if "start" in parts else []
        found += ray_parts.ingest_rate(dataset, runs, print) if "ingest" in parts else []
        found += ray_parts.predict_rate(recipe, dataset, runs, print) if "predict" in parts else []
    return found
