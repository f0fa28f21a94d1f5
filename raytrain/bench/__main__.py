"""The part of `raytrain bench` that needs no Ray, for machines with torch, torchvision, numpy, pandas, pyarrow, pillow,
pydantic and little else:

    python -m raytrain.bench --tiles 2000 --arch resnet50 --stage 128:64 --stage 256:32 --json bench.json
    python -m raytrain.bench --tiles 40479 --arch resnet50 --schedule
    python -m raytrain.bench --check --json check.json          # on a GPU: does all of it work there? 8 minutes at most
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

DEFAULT_STAGES = [(128, 64), (256, 64)]
DEFAULT_PARTS = "decode,train,workers,stream"
LR = (1e-5, 0.002)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON. Returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    options = parser.parse_args(words)
    if options.check:
        return _check(options.json)
    try:
        recipe = _recipe(options)
    except ValidationError as error:
        parser.error(str(error.errors()[0]["msg"]))
    try:
        with (
            workplace(options.dataset, options.tiles) as dataset,
            printed(),
            only("raytrain.bench"),
        ):
            found = _measured(options, recipe, dataset)
    except RaytrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\n{figures.machine_line()}\n{figures.table(found)}")
    if options.json:
        document = figures.document(found, shlex.join(["python", "-m", "raytrain.bench", *words]))
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _check(file: Path | None) -> int:
    """Tries what exists on a GPU alone; the last line is JSON. Returns the exit code, 1 where something failed."""
    from raytrain.bench.check import check
    from raytrain.bench.verdicts import FAIL

    try:
        with printed():
            found = check()
    except RaytrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 1 if FAIL in found["outcomes"] else 0


def _measured(options: argparse.Namespace, recipe: Recipe, dataset: Dataset) -> list[Figure]:
    if options.schedule:
        return whole_schedule(recipe, dataset)
    parts = [*options.only, *["peer"] * options.peer]
    found = decode_rate(dataset, options.pairs) if "decode" in parts else []
    found += measure(recipe, dataset, pairs=options.pairs, block=options.steps, parts=parts)
    return found + (growth(options.pairs) if "growth" in parts else [])


def _recipe(options: argparse.Namespace) -> Recipe:
    sizes = options.stage or DEFAULT_STAGES
    each = tuple(
        Stage(size=size, epochs=options.epochs, freeze=False, lr=LR, batch_size=batch)
        for size, batch in sizes
    )
    return Recipe(
        model=Model(arch=options.arch, weights="none"),
        data=Data(split=options.split),
        train=Train(
            precision=options.precision, execution=options.execution, batch_size=sizes[0][1]
        ),
        stages=stages(sizes, options.epochs) if options.schedule else each,
        tiles=options.place,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raytrain.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", help="directory written by raytrain ingest; without it tiles are generated")
    add("--split", default="random", help="of the dataset")
    add("--tiles", type=_count, default=2000, help="how many are generated")
    add("--arch", default="resnet50", help="torchvision's name of the network")
    add(
        "--stage",
        type=_size_and_batch,
        action="append",
        metavar="SIZE:BATCH",
        help="may be repeated; 128:64 256:64",
    )
    add(
        "--epochs",
        type=_count,
        default=5,
        help="of a stage: what graphs and compiling must pay for, and --schedule runs",
    )
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--execution", choices=("auto", "eager", "graphs", "compiled"), default="auto")
    add(
        "--place",
        choices=("auto", "device", "cache", "stream"),
        default="auto",
        help="where decoded tiles lie",
    )
    add("--pairs", type=_count, default=5, help="rounds of the sides that train in turn")
    add("--steps", type=_count, default=12, help="steps of a side before the other's turn")
    add("--peer", action="store_true", help="also against a plain PyTorch loop on JPEG files")
    add(
        "--only",
        type=_parts,
        default=_parts(DEFAULT_PARTS),
        metavar="A,B",
        help=f"of {', '.join(_known())}",
    )
    add(
        "--schedule",
        action="store_true",
        help="instead, run a whole schedule: each stage frozen, then unfrozen",
    )
    add(
        "--check",
        action="store_true",
        help="instead, try on a GPU what exists there alone; a verdict a line, then JSON",
    )
    add("--json", type=Path, metavar="FILE", help="write every value here too")
    return parser


def _known() -> tuple[str, ...]:
    return ("decode", *PARTS, "growth")


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(_known()):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: not of {', '.join(_known())}"
        )
    return parts


def _size_and_batch(text: str) -> tuple[int, int]:
    size, _, batch = text.partition(":")
    try:
        return int(size), int(batch)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not SIZE:BATCH, such as 128:64") from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
