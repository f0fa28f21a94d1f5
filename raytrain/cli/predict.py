"""The commands `raytrain predict` and `raytrain submission`.

Heavy modules are imported inside the commands, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from raytrain import registry, runs, storage
from raytrain.cli.flags import BandFlags, SourceFlags, Storage, Wait
from raytrain.cli.ingest import NO_BAND_FLAGS, NO_SOURCE_FLAGS
from raytrain.cli.job import check_written
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, typed


@dataclass(frozen=True)
class TileFlags:
    """Which tiles are predicted: those of a dataset, or images."""

    dataset: Annotated[str | None, Parameter(help="dataset directory or URI")] = None
    part: Annotated[
        Literal["train", "valid", "test", "all"],
        Parameter(help="part of the dataset's split to predict"),
    ] = "valid"
    images: Annotated[
        list[str] | None,
        Parameter(help="folder with tiles, or a list of them (.txt); may be repeated", negative=""),
    ] = None
    source: Annotated[SourceFlags, Parameter(name="*")] = NO_SOURCE_FLAGS


NO_TILE_FLAGS = TileFlags()


def predict(
    *,
    checkpoint: Annotated[
        str, Parameter(help="path, RUN (its last checkpoint) or RUN:stage-2-128")
    ],
    out: Annotated[str, Parameter(help="Parquet file to write")],
    tiles: Annotated[TileFlags, Parameter(name="*")] = NO_TILE_FLAGS,
    tta: Annotated[
        bool,
        Parameter(
            negative="",
            help="test-time augmentation: average over the 8 symmetries of each tile",
        ),
    ] = False,
    bands: Annotated[BandFlags, Parameter(name="*")] = NO_BAND_FLAGS,
    where: Storage = "runs",
    wait: Wait = 0,
) -> None:
    """Predict the tiles of a dataset or of folders, and write their logits."""
    _check_tiles(tiles, bands)
    check_written("--out", out)
    _check_suffix(out)
    check_session()
    rule = bands.rule()
    path = runs.find_checkpoint(checkpoint, where)
    # Every folder is listed before Ray starts, so that a wrong one is refused at once.
    sources = [tiles.source.find(folder) for folder in tiles.images or []]
    from raytrain.data.listing import left_out_lines
    from raytrain.distributed.predict import predict as run_predict
    from raytrain.distributed.waiting import with_machine

    with with_machine(wait):
        done = run_predict(
            path,
            out,
            dataset_path=tiles.dataset,
            part=tiles.part,
            sources=sources,
            tta=tta,
            bands=rule,
        )
    for line in left_out_lines(done.left_out):
        print(line)
    print(f"{done.tiles} predictions in {done.path}")
    if tiles.dataset and done.known < done.tiles:
        print(f"{done.tiles - done.known} of these tiles have no target to be judged by")
    if tiles.dataset and done.known:
        print(f"next: raytrain evaluate {typed(out)} --out evaluation")
        return
    fill = ""
    if done.left_out:
        # The competition scores a row for every tile, also for those that cannot be read.
        fill = " --missing 'clear primary'"
    print(
        f"next: raytrain submission {typed(out)} --out submission.csv writes names and labels; "
        f"for a competition, add --sample SAMPLE.csv{fill}"
    )


def _check_suffix(out: str) -> None:
    """Refuses the name of a table for a file of logits."""
    if not out.lower().endswith((".csv", ".tsv", ".txt")):
        return
    stem, _, _ = out.rpartition(".")
    parquet = typed(f"{stem}.parquet")
    raise ConfigError(
        f"--out {out} names a table, and predictions are a Parquet file of logits",
        "programs that read tables would fail on it",
        f"--out {parquet}; then raytrain submission {parquet} --out {typed(out)}",
    )


def _check_tiles(tiles: TileFlags, bands: BandFlags) -> None:
    if (tiles.dataset is None) == (not tiles.images):
        raise ConfigError(
            "give either --dataset or --images",
            "",
            "raytrain predict --checkpoint RUN --images DIR --out P.parquet",
        )
    if tiles.dataset is None:
        return
    if tiles.source != NO_SOURCE_FLAGS or bands != NO_BAND_FLAGS:
        raise ConfigError(
            "--subfolders, --suffix, --folders, --bands and --scale cannot be used with --dataset",
            "they say how images in folders are found and read; a dataset holds its own",
            "leave them out, or give --images",
        )


def submission(
    predictions: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    out: Annotated[
        str,
        Parameter(help="CSV file to write: image_name, and tags or label"),
    ],
    thresholds: Annotated[
        str | None,
        Parameter(
            help="thresholds.json of a run or an evaluation, whose recommended rule decides; "
            "default: 0.2 for all labels"
        ),
    ] = None,
    rule: Annotated[
        str | None,
        Parameter(
            help="decision rule of --thresholds to use instead: default, global, expected, shrunk "
            "or per-class, each also with +exactly-one"
        ),
    ] = None,
    sample: Annotated[
        str | None,
        Parameter(help="the competition's sample file, which gives the names and their order"),
    ] = None,
    missing: Annotated[
        str | None,
        Parameter(
            help="labels for tiles of the sample that have no prediction, such as 'clear primary'"
        ),
    ] = None,
) -> None:
    """Write the competition's CSV from one or several predictions files."""
    check_written("--out", out)
    labels = _missing_labels(missing, sample)
    from raytrain.evaluation.predictions import read
    from raytrain.evaluation.submission import build, write

    # Several files: the tiles of several predictions, such as test-jpg and test-jpg-additional.
    found = [read(storage.absolute(path)) for path in predictions]
    task = registry.evaluation(found[0].task)
    path = None
    if thresholds:
        path = storage.absolute(thresholds)
    chosen = task.decision(path, rule, found[0].classes)
    sample_path = None
    if sample:
        sample_path = storage.absolute(sample)
    done = build(found, chosen, sample_path, labels)
    write(storage.absolute(out), done.table)
    if chosen is not None:
        print(chosen.sentence)
    for line in done.notes():
        print(line)
    if sample is None:
        print("no --sample was given: whether tiles are missing was not checked")
    print(f"{len(done.table)} rows in {out}")


def _missing_labels(missing: str | None, sample: str | None) -> list[str]:
    """The labels that --missing gives, separated by blanks or commas; none without it.

    Raises:
        ConfigError: it names no label, or there is no sample that says which tiles are missing.
    """
    if missing is None:
        return []
    labels = missing.replace(",", " ").split()
    flaw = ""
    if not labels:
        flaw = "names no label"
    elif sample is None:
        flaw = "without --sample"
    if flaw:
        raise ConfigError(
            f"--missing {missing!r} {flaw}",
            "the sample file says which tiles are missing, and each gets these labels",
            "--sample sample_submission_v2.csv --missing 'clear primary'",
        )
    return labels
