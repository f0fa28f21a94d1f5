"""The command `raytrain tune`: searches over fields of a recipe, or judges decision rules.

Heavy modules are imported inside the command, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from raytrain import runlock, runs, storage
from raytrain.cli.flags import WAIT_LIMITS, RecipeFlags
from raytrain.cli.job import check_written
from raytrain.cli.train import AUTO, NO_RECIPE_FLAGS, unnamed
from raytrain.config import Recipe, field_paths, parse_yaml
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, did_you_mean, typed

if TYPE_CHECKING:
    from raytrain.distributed.search import Found
    from raytrain.distributed.search_setup import Options

# Trials of a search where the user names no number.
TRIALS = 30
# How often the finalists are trained again where the user names no number.
RERUNS = 2


@dataclass(frozen=True)
class SearchFlags:
    """What is searched, and how."""

    space: Annotated[
        str | None,
        Parameter(help="YAML file with the search space; default: made from the recipe"),
    ] = None
    thresholds: Annotated[
        str | None,
        Parameter(help="judge the decision rules over this predictions file instead"),
    ] = None
    resume: Annotated[
        str | None,
        Parameter(
            help="go on with the search of this name; only --num-samples, --budget-s, --trial-cpus "
            "and --trial-gpus may change; auto: begin the search --name, or go on with it"
        ),
    ] = None
    num_samples: Annotated[
        int | None,
        Parameter(
            help="number of trials, the given recipe among them (30); "
            "or of halvings of the tiles for --thresholds (10)"
        ),
    ] = None
    budget_s: Annotated[
        float | None,
        Parameter(
            help="seconds that the search may take, over all attempts; time for the reruns is set "
            "aside, and trials under way are finished"
        ),
    ] = None
    tries: Annotated[
        list[str] | None,
        Parameter(
            name="--try",
            negative="",
            help="a trial of your own to begin with, such as 'train.wd=0.02 stages.4.lr=0.003'; "
            "may be repeated",
        ),
    ] = None
    reruns: Annotated[
        int | None,
        Parameter(
            help="how often each finalist is trained again with a fresh seed (2); "
            "with 1, none can be called better"
        ),
    ] = None
    objective: Annotated[
        str | None,
        Parameter(
            help="score to search by, such as valid_loss; default: the score of the task, "
            "with several labels held out under one threshold for all"
        ),
    ] = None
    method: Annotated[
        str | None,
        Parameter(name="--search", help="who chooses trials: model (default), or random"),
    ] = None
    trial_cpus: Annotated[
        float | None,
        Parameter(help="CPUs of each worker of a trial; default: 1, or its GPU's share of them"),
    ] = None
    trial_gpus: Annotated[
        float | None,
        Parameter(help="GPUs of each worker of a trial, such as 0.5; default: 1 if there are any"),
    ] = None
    wait: Annotated[
        float | None,
        Parameter(
            validator=WAIT_LIMITS, help="seconds to wait for room for a trial in the cluster (0)"
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Parameter(
            negative="",
            help="check recipe and space, show the first trials with their cost, and start nothing",
        ),
    ] = False


NO_SEARCH_FLAGS = SearchFlags()
# Flags that are not called as their field.
FLAGS = {"tries": "try", "method": "search", "select": "stages"}
# What a search that goes on may change.
CHANGEABLE = ("num_samples", "budget_s", "trial_cpus", "trial_gpus")


def tune(
    *,
    what: Annotated[SearchFlags, Parameter(name="*")] = NO_SEARCH_FLAGS,
    recipe: Annotated[RecipeFlags, Parameter(name="*")] = NO_RECIPE_FLAGS,
    name: Annotated[str | None, Parameter(help="name of the search; default: a unique one")] = None,
) -> None:
    """Search learning rates, the resize schedule or any other field of a recipe; or thresholds."""
    if what.dry_run and (what.thresholds is not None or what.resume is not None):
        raise ConfigError(
            "--dry-run shows the first trials of a new search",
            "with --thresholds and --resume there is nothing to show",
            "leave --dry-run out; raytrain runs show NAME shows a search",
        )
    if what.thresholds is not None:
        _tune_thresholds(what, recipe, name)
        return
    if what.resume not in (None, AUTO):
        _resume(what, recipe, name)
        return
    settings = recipe.load()
    check_written("--storage", settings.storage)
    if what.resume == AUTO:
        if name is None:
            raise unnamed()
        directory = storage.join(storage.absolute(settings.storage), name)
        # Its machine may just have died, also before it wrote search.yaml.
        runlock.outwait(directory)
        if storage.exists(storage.join(directory, runs.SEARCH)):
            _go_on(what, settings, directory)
            return
    _search(what, settings, runs.new_name("tune") if name is None else name)


def _search(what: SearchFlags, settings: Recipe, name: str) -> None:
    """Runs a new search, or shows how it would begin."""
    runs.refuse_taken(name, settings.storage)
    if what.dry_run:
        from raytrain.distributed.search_preview import preview

        for line in preview(settings, _content(what), _options(what)):
            print(line)
        return
    check_session()
    content = _content(what)
    from raytrain.distributed.search import search

    shown = partial(_show, storage.join(storage.absolute(settings.storage), name))
    _print_found(
        search(settings, content, _options(what), name=name, changed=shown, wait_s=what.wait or 0)
    )


def _go_on(what: SearchFlags, settings: Recipe, directory: str) -> None:
    """Goes on with a search that the same command has begun."""
    check_session()
    from raytrain.distributed.repeat import found_by, options_of
    from raytrain.distributed.search import resume

    options = options_of(directory, settings, _content(what), _options(what))
    found = found_by(directory, options)
    if found is not None:
        print(f"the search {storage.name_of(directory)} is complete")
        _print_found(found)
        return
    _print_found(
        resume(directory, options, changed=partial(_show, directory), wait_s=what.wait or 0)
    )


def _content(what: SearchFlags) -> dict[str, Any] | None:
    """What the space file holds; None for the default space."""
    if what.space is None:
        return None
    return parse_yaml(_file_text(what.space), what.space)


def _options(what: SearchFlags) -> Options:
    from raytrain.distributed.search_setup import Options

    return Options(
        num_samples=TRIALS if what.num_samples is None else what.num_samples,
        budget_s=what.budget_s,
        tries=tuple(what.tries or ()),
        reruns=RERUNS if what.reruns is None else what.reruns,
        objective=what.objective,
        method=what.method or "model",
        trial_cpus=what.trial_cpus,
        trial_gpus=what.trial_gpus,
    )


def _resume(what: SearchFlags, recipe: RecipeFlags, name: str | None) -> None:
    """Goes on with a search."""
    where = recipe.overrides.get("storage") or recipe.load().storage
    others = sorted(field_paths(recipe.overrides) - {"storage"})
    others += [f"set {path}" for path in sorted(recipe.by_path)]
    if recipe.config is not None:
        others.append("config")
    if name is not None:
        others.append("name")
    given = asdict(what)
    for field in given:
        if field not in (*CHANGEABLE, "resume", "dry_run", "wait") and given[field] is not None:
            others.append(field)
    if others:
        raise ConfigError(
            f"--resume goes on with the search {what.resume}; {_flags(others)} cannot change",
            "its trials could not be compared any more",
            f"leave that out; {_flags(CHANGEABLE)} may change",
        )
    assert what.resume is not None
    found = runs.find_search(what.resume, where)
    if found is None:
        known = [search.name for search in runs.every_search(where)]
        raise ConfigError(
            f'there is no search "{what.resume}" in {where}.{did_you_mean(what.resume, known)}',
            "a search is looked up under --storage (default RAYTRAIN_STORAGE, else ./runs)",
            f"raytrain runs list --storage {typed(where)}",
        )
    check_session()
    from raytrain.distributed import search_setup
    from raytrain.distributed.search import resume

    options = search_setup.read(found.path).options
    changes = {field: given[field] for field in CHANGEABLE if given[field] is not None}
    shown = partial(_show, found.path)
    _print_found(
        resume(found.path, replace(options, **changes), changed=shown, wait_s=what.wait or 0)
    )


def _flags(fields: Iterable[str]) -> str:
    """Flags for a message."""
    return ", ".join(_flag(field) for field in fields)


def _flag(field: str) -> str:
    """The flag of a field, as it is typed."""
    name = FLAGS.get(field, field)
    return "--" + name.replace("_", "-")


def _show(directory: str) -> None:
    """Writes what people look at: the table of trials, and the page."""
    from raytrain.report.search_files import write

    write(directory)


def _print_found(found: Found) -> None:
    from raytrain.report.conclude import conclude
    from raytrain.report.search_text import printed

    print(printed(found.directory))
    conclude(found.directory)
    print(f"winner: trial {found.winner}; {found.reason}")
    print(f"results: {storage.join(found.directory, 'search.html')}")
    print(f"next: raytrain train --config {typed(found.best)}")


def _tune_thresholds(what: SearchFlags, recipe: RecipeFlags, name: str | None) -> None:
    # A search over thresholds reads no recipe, except for where runs are stored.
    settings = recipe.load()
    for field, value in asdict(what).items():
        if field not in ("thresholds", "num_samples", "dry_run") and value is not None:
            raise ConfigError(
                f"--thresholds and {_flag(field)} cannot be used together",
                "--thresholds judges decision rules over saved predictions; nothing is trained",
                "leave one of them out",
            )
    if what.num_samples is not None and what.num_samples < 1:
        raise ConfigError(
            f"--num-samples {what.num_samples} is less than 1",
            "each rule is judged on at least one halving of the tiles",
            "--num-samples 10",
        )
    check_written("--storage", settings.storage)
    check_session()
    name = runs.new_name("tune") if name is None else name
    runs.refuse_taken(name, settings.storage)
    assert what.thresholds is not None
    out = storage.join(storage.absolute(settings.storage), name)
    _search_thresholds(what.thresholds, out, what.num_samples)


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


def _file_text(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"the file {path} does not exist",
            "it defines the search space",
            "see docs/searches.md, The space file",
        )
    return file.read_text()
