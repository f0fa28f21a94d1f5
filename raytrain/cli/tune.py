"""The command `raytrain tune`: searches over fields of a recipe, or judges decision rules.

Heavy modules are imported inside the command, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from raytrain import runs, storage
from raytrain.cli.flags import RecipeFlags
from raytrain.cli.job import check_written
from raytrain.cli.train import NO_RECIPE_FLAGS
from raytrain.config import Recipe, parse_yaml
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, typed

if TYPE_CHECKING:
    import pandas as pd

# Trials of a search where the user names no number.
TRIALS = 8
# Rows of the table of trials that are printed; trials.csv has them all.
SHOWN_TRIALS = 5


@dataclass(frozen=True)
class SearchFlags:
    """What is searched: one of the two."""

    space: Annotated[
        str | None,
        Parameter(help="YAML file with the search space: path of a field to {sampler: arguments}"),
    ] = None
    thresholds: Annotated[
        str | None,
        Parameter(help="judge the decision rules over this predictions file instead"),
    ] = None


NO_SEARCH_FLAGS = SearchFlags()


def tune(
    *,
    what: Annotated[SearchFlags, Parameter(name="*")] = NO_SEARCH_FLAGS,
    recipe: Annotated[RecipeFlags, Parameter(name="*")] = NO_RECIPE_FLAGS,
    num_samples: Annotated[
        int | None,
        Parameter(help="number of trials (8), or of halvings of the tiles for --thresholds (10)"),
    ] = None,
    name: Annotated[str | None, Parameter(help="name of the search; default: a unique one")] = None,
) -> None:
    """Search learning rates, the resize schedule or any other field of a recipe; or thresholds."""
    if (what.space is None) == (what.thresholds is None):
        raise ConfigError(
            "give either --space SPACE.yaml or --thresholds P.parquet", "", "see README, Searches"
        )
    if num_samples is not None and num_samples < 1:
        raise ConfigError(
            f"--num-samples {num_samples} is less than 1",
            "a search has at least one trial",
            "--num-samples 8",
        )
    # A search over thresholds reads no recipe, except for where runs are stored.
    settings = recipe.load()
    check_written("--storage", settings.storage)
    check_session()
    if name is None:
        name = runs.new_name("tune")
    runs.refuse_taken(name, settings.storage)
    if what.thresholds is not None:
        out = storage.join(storage.absolute(settings.storage), name)
        _search_thresholds(what.thresholds, out, num_samples)
    if what.space is not None:
        _search_fields(settings, what.space, name, num_samples)


def _search_thresholds(predictions: str, out: str, num_samples: int | None) -> None:
    from raytrain.distributed.rule_trials import HALVINGS, search_rules
    from raytrain.evaluation import rule_search

    if num_samples is None:
        num_samples = HALVINGS
    found = search_rules(storage.absolute(predictions), out, number=num_samples)
    print(rule_search.table(found))
    cuts = typed(storage.join(out, "thresholds.json"))
    print(f"results: {out}")
    print(f"next: raytrain submission TEST.parquet --thresholds {cuts} --out submission.csv")


def _search_fields(recipe: Recipe, space: str, name: str, num_samples: int | None) -> None:
    if num_samples is None:
        num_samples = TRIALS
    content = parse_yaml(_file_text(space), space)
    from raytrain.distributed.preflight import check_recipe, check_workers
    from raytrain.distributed.tune import search

    # A trial is one process, but best.yaml will be trained with all workers of the recipe.
    check_workers(recipe.num_workers)
    recipe, _ = check_recipe(recipe)
    table = search(recipe, content, name=name, num_samples=num_samples)
    _print_best(table)
    out = storage.join(recipe.storage, name)
    best = typed(storage.join(out, "best.yaml"))
    print(f"results: {storage.join(out, 'trials.csv')}")
    print(f"next: raytrain train --config {best}")


def _print_best(table: pd.DataFrame) -> None:
    print(table.head(SHOWN_TRIALS).to_string(index=False, max_colwidth=40))


def _file_text(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"the file {path} does not exist",
            "it defines the search space",
            "see README, Searches",
        )
    return file.read_text()
