"""The command `raytrain data show`: tiles with their labels on one sheet.

Heavy modules are imported inside the functions, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from raytrain import storage
from raytrain.cli.flags import check_seed
from raytrain.cli.job import check_written
from raytrain.config import load_recipe
from raytrain.errors import ConfigError, masked

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset

# Below 32 pixels nothing can be seen on a tile; above 1024 the sheet becomes huge.
SMALLEST, LARGEST = 32, 1024


@dataclass(frozen=True)
class ShowFlags:
    """Which tiles are shown, and how."""

    out: Annotated[
        str | None, Parameter(help="image to write; default: NAME-tiles.png in this folder")
    ] = None
    part: Annotated[
        Literal["train", "valid", "test", "all"], Parameter(help="part of the split to show")
    ] = "all"
    split: Annotated[
        str | None, Parameter(help="split that --part refers to; default: the dataset's first")
    ] = None
    label: Annotated[str | None, Parameter(help="show only tiles with this label")] = None
    per_label: Annotated[
        bool, Parameter(negative="", help="draw one row of tiles for each label")
    ] = False
    augmented: Annotated[
        bool,
        Parameter(
            negative="",
            help="draw one row for each tile: before the recipe's augmentation, "
            "and after it five times",
        ),
    ] = False
    config: Annotated[
        str | None, Parameter(help="recipe that --augmented uses; default: the lesson's")
    ] = None
    tiles: Annotated[
        int | None,
        Parameter(
            help="number of tiles; default: 24, with --per-label 6 per row, with --augmented 8"
        ),
    ] = None
    size: Annotated[int, Parameter(help="side length of a tile on the sheet, pixels")] = 160
    seed: Annotated[
        int, Parameter(help="random seed for the choice of tiles and the augmentation")
    ] = 42

    def check(self) -> None:
        """Refuses values out of range and flags that contradict each other.

        Raises:
            ConfigError: with the flags.
        """
        check_seed(self.seed)
        given = f"--size {self.size}"
        if self.tiles is not None:
            given = f"--tiles {self.tiles} {given}"
        if (self.tiles is not None and self.tiles < 1) or not SMALLEST <= self.size <= LARGEST:
            raise ConfigError(
                given,
                f"a sheet has at least one tile, "
                f"and each has a side of {SMALLEST} to {LARGEST} pixels",
                "--tiles 24 --size 160",
            )
        if self.per_label and self.augmented:
            raise ConfigError(
                "--per-label and --augmented",
                "each gives the rows another meaning",
                "leave one of them out",
            )
        if self.config and not self.augmented:
            raise ConfigError(
                f"--config {self.config} without --augmented",
                "only augmentation needs a recipe",
                "--augmented",
            )


NO_FLAGS = ShowFlags()


def show(dataset: str, /, *, flags: Annotated[ShowFlags, Parameter(name="*")] = NO_FLAGS) -> None:
    """Draw randomly chosen tiles with their labels on one sheet (PNG)."""
    check_written("--out", flags.out or "TILES.png")
    flags.check()
    augment = None
    if flags.augmented:
        augment = load_recipe(flags.config).data.augment
    from raytrain import tile_sheets
    from raytrain.data.dataset import open_dataset, unknown_tiles

    found = open_dataset(dataset)
    how = tile_sheets.SheetOptions(
        part=flags.part,
        split=flags.split,
        label=flags.label,
        per_label=flags.per_label,
        augment=augment,
        recipe=flags.config or "the lesson",
        tiles=flags.tiles,
        size=flags.size,
        seed=flags.seed,
    )
    chosen = tile_sheets.chosen(found, how)
    every = tile_sheets.distinct(chosen)
    path = storage.absolute(flags.out or f"{storage.name_of(found.path)}-tiles.png")
    storage.write_bytes(path, tile_sheets.drawn(found, chosen, how))
    _print_tiles(found, every)
    unknown = unknown_tiles(found)
    if unknown:
        known = found.rows - unknown
        print(f"the dataset has {known:,} tiles with a target, {unknown:,} without one")
    print(f"sheet of {len(every)} tiles: {masked(path)}")


def _print_tiles(dataset: Dataset, rows: list[int]) -> None:
    """Prints a line per tile: its name, its stored size and its labels."""
    from raytrain.data.dataset import names_of, shown_labels, sides

    names = names_of(dataset, rows)
    width = max(map(len, names))
    for name, (w, h), row in zip(names, sides(dataset)[rows], rows, strict=True):
        size = f"{w}x{h}"
        print(f"{name:{width}}  {size:>9}  {' '.join(shown_labels(dataset, row))}")
