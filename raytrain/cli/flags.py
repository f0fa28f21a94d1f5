"""Groups of flags that several commands share. Each is a frozen dataclass.

cyclopts shows the fields of a dataclass as flags of the command, in their order, because of
`Parameter(name="*")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import field_validator

from raytrain.config import (
    IMAGENET,
    LESSON_STAGES,
    Data,
    Recipe,
    Stage,
    load_recipe,
    normalization,
    parse_assignments,
)
from raytrain.data.bands import BandRule, KeptBands
from raytrain.data.bands import parse as parse_bands
from raytrain.data.listing import is_list, listed_pictures
from raytrain.data.names import SUFFIXES
from raytrain.data.sources import Images, images_at, images_in
from raytrain.errors import ConfigError

# At most a year, so that `inf` is refused, too.
WAIT_LIMITS = Number(gte=0, lte=366 * 86_400)
Wait = Annotated[
    float,
    Parameter(
        validator=WAIT_LIMITS,
        help="seconds to wait for room in the cluster, which its autoscaler may make; "
        "default: 0, a cluster without room is refused",
    ),
]
Storage = Annotated[
    str,
    Parameter(
        name="--storage",
        env_var="RAYTRAIN_STORAGE",
        help=Recipe.model_fields["storage"].description,
    ),
]


def _as_text(_: type, tokens: Sequence[Any]) -> str:
    """Leaves the value of a flag to the recipe, which reads it as it reads one of a file."""
    return str(tokens[0].value)


class DataFields(Data):
    """The fields of `data` as flags."""

    # As one flag, whose text is read as a recipe's: cyclopts would make flags of mean and std.
    normalize: Annotated[str, Parameter(help=Data.model_fields["normalize"].description)] = IMAGENET

    @field_validator("normalize", mode="before")
    @classmethod
    def _known_normalization(cls, value: Any) -> Any:
        normalization(value)
        return value


class Fields(Recipe):
    """The fields of a recipe as flags, each with the help text of its field."""

    data: DataFields = DataFields()

    # As text, since the recipe also takes a range.
    num_workers: Annotated[
        int,
        Parameter(help=Recipe.model_fields["num_workers"].description, converter=_as_text),
    ] = 1

    # A list of stages is too much for a flag: it comes from a file, and --stages selects from it.
    stages: Annotated[tuple[Stage, ...], Parameter(parse=False)] = LESSON_STAGES
    select: Annotated[
        str | None, Parameter(name="--stages", help=Recipe.model_fields["select"].description)
    ] = None


@dataclass(frozen=True)
class RecipeFlags:
    """The recipe of a command: a named one or a file, and the fields that flags set."""

    config: Annotated[str | None, Parameter(help="recipe name or YAML file")] = None
    # None if no field is given; a Fields object knows which of its fields were given.
    fields: Annotated[Fields | None, Parameter(name="*")] = None
    assignments: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="PATH=VALUE: set any field, such as stages.2.lr=1e-5,0.002; may be repeated",
        ),
    ] = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Nested values of the fields that have a flag of their own and were given."""
        if self.fields is None:
            return {}
        return self.fields.model_dump(exclude_unset=True)

    @property
    def by_path(self) -> dict[str, Any]:
        """What --set was given: values by path.

        Raises:
            ConfigError: not of the form PATH=VALUE, or a path given twice.
        """
        return parse_assignments(self.assignments or [])

    def load(self) -> Recipe:
        """The recipe that the flags, the environment and the file result in.

        Raises:
            ConfigError: as `config.load_recipe`.
        """
        return load_recipe(self.config, self.overrides, self.by_path)


# Small enough for any machine, with the lesson's four stages.
BENCH_CONFIG = "planet-resnet18"


# Not in bench.py: cyclopts looks the types of inherited fields up in the module of the class.
@dataclass(frozen=True)
class BenchRecipeFlags(RecipeFlags):
    """The recipe that `raytrain bench` measures: unlike other commands, it has one by default."""

    config: Annotated[str | None, Parameter(help="recipe name or YAML file")] = BENCH_CONFIG


@dataclass(frozen=True)
class SourceFlags:
    """Which images in a folder are tiles."""

    subfolders: Annotated[
        bool, Parameter(negative="", help="include tiles in subfolders of --images")
    ] = False
    suffix: Annotated[
        list[str] | None, Parameter(help="file name extensions of tiles, such as .jpg", negative="")
    ] = None
    folders: Annotated[
        list[str] | None, Parameter(help="use only these subfolders of --images", negative="")
    ] = None

    def find(self, source: str, *, below: bool = False) -> Images:
        """The images in a folder, or those that a list names.

        Args:
            source: folder, or text file with a path or URI on each line.
            below: include subfolders even without --subfolders.

        Raises:
            ConfigError: neither a folder nor a list, or flags that have no meaning for a list.
            DataError: no images, or the list cannot be read.
        """
        if not is_list(source):
            return images_in(
                source,
                subfolders=self.subfolders or below,
                suffixes=self.suffix or SUFFIXES,
                folders=self.folders or (),
            )
        if self.suffix or self.folders:
            raise ConfigError(
                f"--suffix and --folders cannot be used with the list {source}",
                "the list names each tile",
                "leave them out",
            )
        return images_at(listed_pictures(source))


@dataclass(frozen=True)
class BandFlags:
    """How TIFF tiles with other bands than 8-bit red, green and blue are read."""

    bands: Annotated[
        str | None,
        Parameter(
            help="TIFF bands to keep as they are, of 8 or 16 bits, counted from 1: 1,2,3,4; "
            "with --scale: red,green,blue"
        ),
    ] = None
    scale: Annotated[
        str | None,
        Parameter(help="make 8-bit RGB: the TIFF values that become 0 and 255, such as 0,10000"),
    ] = None

    def rule(self) -> BandRule | KeptBands | None:
        """What becomes of the bands, or None without --bands.

        Raises:
            ConfigError: as `bands.parse`.
        """
        return parse_bands(self.bands, self.scale)


def check_seed(seed: int) -> None:
    """Refuses a seed that random generators do not accept.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(
            f"--seed {seed} is less than 0",
            "seeds of random generators are not negative",
            "--seed 42",
        )
