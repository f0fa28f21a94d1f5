"""The command `raytrain evaluate`: judges one predictions file, or compares two.

Heavy modules are imported inside the command, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from raytrain import storage
from raytrain.cli.job import check_written
from raytrain.data.names import visible
from raytrain.data.text import listed
from raytrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from raytrain.evaluation.conditions import Conditions
    from raytrain.evaluation.predictions import Predictions
    from raytrain.evaluation.rules import Exclusive


COLUMN_FIX = "give --column one of its columns; names of tiles are in its column image_name"


@dataclass(frozen=True)
class ConditionFlags:
    """What is known of the tiles beside their predictions."""

    by: Annotated[
        Literal["tile", "group"],
        Parameter(help="what intervals resample: tiles, or groups of them such as scenes"),
    ] = "tile"
    table: Annotated[
        str | None, Parameter(help="CSV or Parquet file with tile names and --column, for group")
    ] = None
    column: Annotated[
        str | None, Parameter(help="column of --table with the group of each tile")
    ] = None
    exactly_one: Annotated[
        str | None,
        Parameter(
            help="labels of which a tile has exactly one, such as clear,cloudy,haze; "
            "every rule is also judged with them"
        ),
    ] = None
    alone: Annotated[
        str | None,
        Parameter(help="labels of --exactly-one that allow no other label, such as cloudy"),
    ] = None

    def conditions(self, predictions: Predictions) -> Conditions:
        """What these flags state about the tiles of some predictions.

        Raises:
            ConfigError: flags that do not go together.
            DataError: the table cannot be read, or has no group for a tile.
        """
        from raytrain.evaluation.conditions import Conditions

        return Conditions(self._groups(predictions), self._exclusive())

    def _groups(self, predictions: Predictions) -> dict[str, str] | None:
        is_given = self.table is not None and self.column is not None
        if (self.by == "group") != is_given or (self.table is None) != (self.column is None):
            raise ConfigError(
                "--by group, --table and --column are given together, or none of them",
                "the table says which group each tile belongs to",
                "--by group --table scenes.csv --column scene",
            )
        if self.table is None or self.column is None:
            return None
        from raytrain.data.tile_values import column_of

        names = predictions.judged().names
        groups = column_of(names, storage.absolute(self.table), self.column, fix=COLUMN_FIX)
        empty = [name for name, group in zip(names, groups, strict=True) if not group]
        if empty:
            raise DataError(
                f"{len(empty)} tiles have no {self.column} in {self.table}, "
                f"such as {visible(empty[0])}",
                "they would count as one large group",
                "fill these cells",
            )
        return dict(zip(names, groups, strict=True))

    def _exclusive(self) -> Exclusive | None:
        if self.exactly_one is None and self.alone is None:
            return None
        from raytrain.evaluation.rules import Exclusive

        if self.exactly_one is None:
            raise ConfigError(
                f"--alone {self.alone} without --exactly-one",
                "a label stands alone in a group of labels of which a tile has exactly one",
                f"--exactly-one clear,cloudy,haze,partly_cloudy --alone {self.alone}",
            )
        alone: list[str] = []
        if self.alone is not None:
            alone = listed(self.alone, "--alone")
        return Exclusive(tuple(listed(self.exactly_one, "--exactly-one")), tuple(alone))


NO_CONDITION_FLAGS = ConditionFlags()


def evaluate(
    predictions: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    out: Annotated[str, Parameter(help="directory for thresholds, tables and the report")],
    metrics: Annotated[
        list[str] | None,
        Parameter(help="further metrics, module:function each; may be repeated", negative=""),
    ] = None,
    about: Annotated[ConditionFlags, Parameter(name="*")] = NO_CONDITION_FLAGS,
) -> None:
    """Evaluate predictions: scores, decision rules, per-label table, report; or compare two files.

    Two files are compared tile by tile: the difference of the second from the first, its interval,
    and how many tiles would settle it.
    """
    check_written("--out", out)
    from raytrain.evaluation.predictions import read

    paths = [storage.absolute(path) for path in predictions]
    if len(paths) == 1:
        _evaluate_one(read(paths[0]), storage.absolute(out), metrics or [], about)
        return
    if len(paths) > 2 or metrics:
        raise ConfigError(
            f"{len(paths)} predictions files and {len(metrics or [])} --metrics",
            "one file is evaluated, with any metrics; two are compared, by the task's own scores",
            "raytrain evaluate FIRST.parquet SECOND.parquet --out comparison",
        )
    _compare(read(paths[0]), read(paths[1]), storage.absolute(out), about)


def _evaluate_one(found: Predictions, out: str, metrics: list[str], about: ConditionFlags) -> None:
    from raytrain.evaluation import own_metrics
    from raytrain.report.conclude import conclude_predictions

    own = own_metrics.combined(metrics, (), found.task)
    done = conclude_predictions(out, found, about.conditions(found))
    print(done.table)
    # After the judgement, which refuses predictions without targets.
    for name, value in own_metrics.add(own, found, out).items():
        print(f"{name} {value:.4f}")
    print(f"report: {done.report}")


def _compare(first: Predictions, second: Predictions, out: str, about: ConditionFlags) -> None:
    from raytrain.evaluation import comparison

    pair = comparison.compare(first, second, about.conditions(first))
    comparison.write(pair, out)
    print(comparison.table(pair))
    print(f"comparison: {storage.join(out, comparison.NAME)}")
