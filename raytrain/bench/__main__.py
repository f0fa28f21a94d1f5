"""The part of `raytrain bench` that needs no Ray.

It runs on machines with torch, torchvision, NumPy, pandas, pyarrow, Pillow and pydantic:

    python -m raytrain.bench --tiles 2000 --arch resnet50 --stage 128:64 --stage 256:32
    python -m raytrain.bench --dataset planet --tiles-in stream --only train --json bench.json
    python -m raytrain.bench --tiles 40479 --arch resnet50 --schedule
    python -m raytrain.bench --check --json check.json      # needs a GPU; 8 minutes at most
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from pydantic import ValidationError

from raytrain.bench import figures
from raytrain.bench.decode import decode_rate
from raytrain.bench.figures import Figure
from raytrain.bench.generate import workplace
from raytrain.bench.growth import growth
from raytrain.bench.schedule import stages, whole_schedule
from raytrain.bench.training import PARTS, measure
from raytrain.config import Data, Model, Recipe, Stage, Train
from raytrain.data.dataset import Dataset
from raytrain.errors import RaytrainError
from raytrain.log import only, printed

# Side of the tiles in pixels, and batch size.
DEFAULT_STAGES = [(128, 64), (256, 64)]
KNOWN_PARTS = ("decode", *PARTS, "growth")
DEFAULT_PARTS = "decode,train,workers,stream"
# Peak rates of the lesson's unfrozen stages, from the first layer group to the last.
LEARNING_RATES = (1e-5, 0.002)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints a table and writes the JSON file.

    Args:
        argv: arguments of the command; by default those of this process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:]
    if argv is not None:
        arguments = argv
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return _check(options.json)
        return _bench(options, parser, arguments)
    except RaytrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _check(file: Path | None) -> int:
    """Runs the check of a GPU. Returns the exit code: 1 if something failed.

    The last line of its output is the JSON document.
    """
    # Imported here, because nothing else needs these modules.
    from raytrain.bench.check import check
    from raytrain.bench.verdicts import FAIL

    with printed():
        found = check()
    if file:
        _write_json(file, found)
    print(json.dumps(found))
    if FAIL in found["outcomes"]:
        return 1
    return 0


def _bench(
    options: argparse.Namespace, parser: argparse.ArgumentParser, arguments: list[str]
) -> int:
    """Measures the parts that were asked for. Returns the exit code."""
    try:
        recipe = _recipe(options)
    except ValidationError as error:
        # Values that argparse accepts but a recipe does not. Ends the program with exit code 2.
        parser.error(str(error.errors()[0]["msg"]))
    with (
        workplace(options.dataset, options.tiles) as dataset,
        printed(),
        # Otherwise each of the many short runs would print its own progress.
        only("raytrain.bench"),
    ):
        found = _measured(options, recipe, dataset)
    print(f"\n{figures.machine_line()}\n{figures.table(found)}")
    if options.json:
        command = shlex.join(["python", "-m", "raytrain.bench", *arguments])
        _write_json(options.json, figures.document(found, command))
    return 0


def _write_json(file: Path, document: dict[str, object]) -> None:
    file.write_text(json.dumps(document, indent=1) + "\n")


def _measured(options: argparse.Namespace, recipe: Recipe, dataset: Dataset) -> list[Figure]:
    if options.schedule:
        return whole_schedule(recipe, dataset)
    parts = list(options.only)
    if options.peer:
        parts.append("peer")
    found: list[Figure] = []
    if "decode" in parts:
        found += decode_rate(dataset, options.pairs)
    found += measure(recipe, dataset, pairs=options.pairs, block=options.steps, parts=parts)
    if "growth" in parts:
        found += growth(options.pairs)
    return found


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the flags describe.

    Raises:
        ValidationError: a value is out of its range.
    """
    sizes = options.stage or DEFAULT_STAGES
    if options.schedule:
        made = stages(sizes, options.epochs)
    else:
        made = _unfrozen_stages(sizes, options.epochs)
    # The first stage's; every stage has a batch size of its own as well.
    batch_size = sizes[0][1]
    return Recipe(
        model=Model(arch=options.arch, weights="none"),
        data=Data(split=options.split),
        train=Train(
            precision=options.precision, execution=options.execution, batch_size=batch_size
        ),
        stages=made,
        tiles=options.tiles_in,
    )


def _unfrozen_stages(sizes: list[tuple[int, int]], epochs: int) -> tuple[Stage, ...]:
    """A stage of the whole network for each (side in pixels, batch size)."""
    made = []
    for size, batch in sizes:
        stage = Stage(size=size, epochs=epochs, freeze=False, lr=LEARNING_RATES, batch_size=batch)
        made.append(stage)
    return tuple(made)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raytrain.bench",
        description=__doc__,
        # Keeps the line breaks of the examples.
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_flags_of_tiles(parser)
    _add_flags_of_training(parser)
    _add_flags_of_measuring(parser)
    return parser


def _add_flags_of_tiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        help="directory written by raytrain ingest; by default tiles are generated",
    )
    parser.add_argument(
        "--split",
        default="random",
        help="name of the dataset's split into training and validation (default: random)",
    )
    parser.add_argument(
        "--tiles",
        type=_count,
        default=2000,
        help="number of tiles to generate (default: 2000)",
    )
    parser.add_argument(
        "--tiles-in",
        choices=("auto", "device", "cache", "stream"),
        default="auto",
        help="where training reads tiles from: the GPU's memory (device), the cache of decoded "
        "tiles on disk, or the encoded shards (stream); auto chooses by size (default: auto)",
    )


def _add_flags_of_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        default="resnet50",
        help="torchvision's name of the network (default: resnet50)",
    )
    parser.add_argument(
        "--stage",
        type=_size_and_batch,
        action="append",
        metavar="SIZE:BATCH",
        help="side of the tiles in pixels and batch size; may be repeated "
        "(default: 128:64 and 256:64)",
    )
    parser.add_argument(
        "--epochs",
        type=_count,
        default=5,
        help="epochs of a stage: --schedule runs them all, and the automatic choice of an "
        "execution depends on them (default: 5)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="number format; auto chooses bf16 where the processor computes in it (default: auto)",
    )
    parser.add_argument(
        "--execution",
        choices=("auto", "eager", "graphs", "compiled"),
        default="auto",
        help="how the network runs; auto chooses by device and number of steps (default: auto)",
    )


def _add_flags_of_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs",
        type=_count,
        default=5,
        help="number of rounds in which the sides train in turn (default: 5)",
    )
    parser.add_argument(
        "--steps",
        type=_count,
        default=12,
        help="optimiser steps of a side before it is the next one's turn (default: 12)",
    )
    parser.add_argument(
        "--peer",
        action="store_true",
        help="measure the part peer as well: a plain PyTorch loop on JPEG files",
    )
    parser.add_argument(
        "--only",
        type=_parts,
        default=_parts(DEFAULT_PARTS),
        metavar="A,B",
        help=f"parts to measure, some of {', '.join(KNOWN_PARTS)} (default: {DEFAULT_PARTS})",
    )
    parser.add_argument(
        "--schedule",
        action="store_true",
        help="instead of parts, time a whole schedule: each stage first frozen, then unfrozen",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="instead of parts, check on a GPU what no CPU can show; prints verdicts, then JSON",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values to this file")


def _parts(text: str) -> list[str]:
    """Reads the value of --only."""
    parts = text.split(",")
    unknown = sorted(set(parts) - set(KNOWN_PARTS))
    if unknown:
        known = ", ".join(KNOWN_PARTS)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {known}")
    return parts


def _size_and_batch(text: str) -> tuple[int, int]:
    """Reads a value of --stage."""
    size, _, batch = text.partition(":")
    try:
        return int(size), int(batch)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not SIZE:BATCH, such as 128:64") from None


def _count(text: str) -> int:
    """Reads a whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
