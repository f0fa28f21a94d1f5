"""The command `raytrain ingest`: a dataset from images and their labels.

Heavy modules are imported inside the command, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from raytrain import registry
from raytrain.cli.flags import BandFlags, SourceFlags, Wait
from raytrain.cli.job import check_written
from raytrain.cli.split_flags import SPLIT_HELP, SplitBy, SplitFlags
from raytrain.data.label_format import LabelFormat
from raytrain.data.names import SUFFIXES
from raytrain.data.sources import Images, Tiles
from raytrain.data.text import listed
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, did_you_mean, masked, typed

if TYPE_CHECKING:
    from raytrain.distributed.ingest import Ingested


@dataclass(frozen=True)
class PathFlags:
    """What `ingest` reads and writes."""

    images: Annotated[
        str,
        Parameter(help="folder with the tiles, or text file (.txt) with a path or URI per line"),
    ]
    labels: Annotated[
        str,
        Parameter(
            help="CSV or Parquet file with one row per tile, "
            "or `folders` if folder names are the labels"
        ),
    ]
    out: Annotated[str, Parameter(help="directory or URI of the new dataset")]
    test_folder: Annotated[
        list[str] | None,
        Parameter(
            help="folder of tiles without labels, below --images or elsewhere: "
            "predicted, never trained on; may be repeated",
            negative="",
        ),
    ] = None


@dataclass(frozen=True)
class LimitFlags:
    """How many bad files are accepted, and how long the command waits."""

    max_bad: Annotated[
        int | None,
        Parameter(
            help="maximum number of unusable tiles, above which no dataset is written; "
            "default: max(10, 0.1 %)"
        ),
    ] = None
    wait: Wait = 0


@dataclass(frozen=True)
class LabelFlags:
    """What labels mean, and how they are written in the label file."""

    task: Annotated[str, Parameter(help=f"what a tile has: {', '.join(registry.MODULES)}")] = (
        registry.DEFAULT
    )
    name_column: Annotated[str, Parameter(help="column with the tile name")] = "image_name"
    tags_column: Annotated[
        str | None, Parameter(help="column with the labels; default: tags, or label for one label")
    ] = None
    separator: Annotated[
        str, Parameter(help="column separator of a CSV, one character or `tab`")
    ] = ","
    tags_separator: Annotated[
        str | None, Parameter(help="separator between a tile's labels; default: white space")
    ] = None
    label_columns: Annotated[
        str | None,
        Parameter(
            help="columns of 0 and 1, one per label, instead of --tags-column; "
            "comma-separated or FILE.txt"
        ),
    ] = None
    join_rows: Annotated[
        bool, Parameter(negative="", help="accept one row per label of a tile, and join them")
    ] = False
    classes: Annotated[
        str | None,
        Parameter(
            help="labels in target order, comma-separated or FILE.txt with one per line; "
            "default: all, sorted"
        ),
    ] = None
    allow_empty: Annotated[bool, Parameter(negative="", help="keep tiles without any label")] = (
        False
    )
    force: Annotated[
        bool, Parameter(negative="", help="read a label file even if it is larger than 200 MB")
    ] = False

    def mark(self) -> str:
        """The character between columns.

        Raises:
            ConfigError: it is not one character.
        """
        separator = self.separator
        if separator == "tab":
            separator = "\t"
        # A quote or a line break already has a meaning in a CSV.
        if len(separator) != 1 or separator in '"\r\n' or self.tags_separator == "":
            raise ConfigError(
                f"--separator {self.separator!r} --tags-separator {self.tags_separator!r}",
                "columns are separated by one character, labels by one or more",
                "--separator ';', or --separator tab",
            )
        return separator

    def label(self, found: Images, labels: str) -> Tiles:
        """The images with their labels.

        Args:
            found: the images.
            labels: a label file, or the word `folders` if the folders' names are the labels.

        Raises:
            ConfigError: flags that contradict each other.
            DataError: labels that cannot be used.
        """
        classes = None
        if self.classes:
            classes = listed(self.classes, "--classes")
        if labels == "folders":
            self._check_folders()
            return found.label_from_folders(classes, task=self.task)
        return found.label_from_file(
            labels,
            self._format(registry.targets(self.task).FORMAT),
            classes,
            task=self.task,
            allow_empty=self.allow_empty,
            force=self.force,
        )

    def _check_folders(self) -> None:
        unused = ""
        if self.label_columns:
            unused = "--label-columns"
        elif self.join_rows:
            unused = "--join-rows"
        if unused:
            raise ConfigError(
                f"{unused} with --labels folders",
                "the folders' names are the labels, and have no columns and no rows",
                "leave it out",
            )

    def _format(self, usual: LabelFormat) -> LabelFormat:
        """How the file is read, where `usual` is the task's own format."""
        columns: tuple[str, ...] = ()
        if self.label_columns:
            columns = tuple(listed(self.label_columns, "--label-columns"))
        if columns and self.tags_column is not None:
            raise ConfigError(
                f"--tags-column {self.tags_column} with --label-columns",
                "all labels are in one column, or each has a column of its own",
                "leave one of them out",
            )
        return LabelFormat(
            self.name_column,
            self.tags_column or usual.tags_column,
            self.mark(),
            self.tags_separator,
            columns,
            self.join_rows,
        )


# Defaults of the commands: none of the group's flags given.
NO_SOURCE_FLAGS = SourceFlags()
NO_LIMIT_FLAGS = LimitFlags()
NO_LABEL_FLAGS = LabelFlags()
NO_SPLIT_FLAGS = SplitFlags()
NO_BAND_FLAGS = BandFlags()


def ingest(
    *,
    paths: Annotated[PathFlags, Parameter(name="*")],
    source: Annotated[SourceFlags, Parameter(name="*")] = NO_SOURCE_FLAGS,
    form: Annotated[LabelFlags, Parameter(name="*")] = NO_LABEL_FLAGS,
    split: Annotated[SplitBy, Parameter(help=SPLIT_HELP)] = "random",
    split_flags: Annotated[SplitFlags, Parameter(name="*")] = NO_SPLIT_FLAGS,
    limits: Annotated[LimitFlags, Parameter(name="*")] = NO_LIMIT_FLAGS,
    bands: Annotated[BandFlags, Parameter(name="*")] = NO_BAND_FLAGS,
) -> None:
    """Make a dataset of Parquet shards from tiles and labels; resumes an interrupted ingest."""
    check_task(form.task)
    check_written("--out", paths.out)
    check_session()
    rule = split_flags.rule(split)
    band_rule = bands.rule()
    # With --labels folders the tiles are in subfolders by definition.
    found = source.find(paths.images, below=paths.labels == "folders")
    for folder in paths.test_folder or ():
        found = found.add_test_folder(folder, source.suffix or SUFFIXES)
    tiles = form.label(found, paths.labels)
    groups = split_flags.groups(tiles.names, tiles.known, form.name_column, form.mark())
    divided = tiles.divide(rule, groups)
    # Only here, where nothing can be wrong with the flags any more: it imports Ray.
    from raytrain.distributed.ingest import ingest as run_ingest

    done = run_ingest(
        divided, paths.out, max_bad=limits.max_bad, bands=band_rule, wait_s=limits.wait
    )
    _print_dataset(done)
    chosen = ""
    if split != "random":
        chosen = f" --data.split {split}"
    if not done.dataset.tile_format.is_plain:
        # ImageNet's statistics are of 8-bit RGB.
        chosen += " --data.normalize dataset"
    recipe = registry.targets(form.task).RECIPE
    command = f"raytrain train --config {recipe} --dataset {typed(paths.out)}"
    print(f"next: {command}{chosen}")


def check_task(task: str) -> None:
    """Refuses a task that does not exist.

    Raises:
        ConfigError: with the tasks that do.
    """
    if task in registry.MODULES:
        return
    raise ConfigError(
        f"--task {task}.{did_you_mean(task, registry.MODULES)}",
        "the task decides what labels, loss and metrics mean",
        f"--task {' or '.join(registry.MODULES)}",
    )


def _print_dataset(done: Ingested) -> None:
    from raytrain.data.dataset import examples

    # An ingest that is repeated finds its dataset complete, and writes nothing.
    verb = f"written by {len(done.pids)} processes"
    if done.already_there:
        verb = "is there already"
    dataset = done.dataset
    print(
        f"dataset {masked(dataset.path)} {verb}: "
        f"{dataset.rows} tiles, {len(dataset.classes)} classes"
    )
    if not dataset.tile_format.is_plain:
        print(f"  tiles keep {dataset.tile_format}")
    for key, count in done.counts.items():
        print(f"  {key}: {count}")
    for example in examples(dataset):
        print(f"  {example}")
