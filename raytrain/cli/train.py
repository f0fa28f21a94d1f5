"""The commands `raytrain train` and `raytrain lr-find`.

Heavy modules are imported inside the commands, so that help, --print-config and mistakes in flags
answer at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from raytrain import runlock, runs, storage, tracking
from raytrain.cli.flags import RecipeFlags, Wait
from raytrain.cli.job import check_written
from raytrain.config import Recipe, environment, field_paths, load_recipe, merge, nested
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, typed

if TYPE_CHECKING:
    from raytrain.distributed.folds import Folds
    from raytrain.report.rates import RangeTest

# Value of --resume: whatever the command has to do.
AUTO = "auto"
NO_RECIPE_FLAGS = RecipeFlags()


@dataclass(frozen=True)
class RunFlags:
    """How a run is named, resumed and restarted, and what is done instead of training."""

    name: Annotated[str | None, Parameter(help="name of the new run; default: a unique one")] = None
    resume: Annotated[
        str | None,
        Parameter(
            help="resume this run from its last checkpoint, even within an epoch; auto: begin the "
            "run --name, or go on with it, for commands that are given again"
        ),
    ] = None
    folds: Annotated[
        str | None,
        Parameter(
            help="cross-validation: train one run per fold of this family of splits, such as cv "
            "of data split --folds 5 --name cv"
        ),
    ] = None
    restarts: Annotated[
        NonNegativeInt,
        Parameter(help="maximum number of automatic restarts if the run or its Ray dies"),
    ] = 0
    wait: Wait = 0
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="check everything, run one step per stage, and print the plan"),
    ] = False
    print_config: Annotated[
        bool, Parameter(negative="", help="print the complete recipe and exit")
    ] = False
    print_submit: Annotated[
        bool,
        Parameter(negative="", help="print the line that submits this as a Ray job, and exit"),
    ] = False


NO_RUN_FLAGS = RunFlags()


def train(
    *,
    recipe: Annotated[RecipeFlags, Parameter(name="*")] = NO_RECIPE_FLAGS,
    run: Annotated[RunFlags, Parameter(name="*")] = NO_RUN_FLAGS,
) -> int | None:
    """Train the stages of a recipe, or resume a run with --resume.

    Ctrl-C, SIGTERM or a closed terminal saves a checkpoint after the next step and exits with
    code 75. A second signal exits at once.
    """
    if run.name is not None:
        runs.check_name(run.name)
    if run.print_submit:
        _print_submission(recipe, run)
        return None
    if run.resume == AUTO:
        return _begin_or_resume(recipe, run)
    if run.resume is not None:
        return _resume(run.resume, recipe, run)
    return _train_new(recipe, run)


def _print_submission(flags: RecipeFlags, run: RunFlags) -> None:
    """Prints the line that submits the command as a job."""
    from raytrain.cli.submit import check_paths, refuse_variables, submission

    if run.resume not in (None, AUTO):
        raise ConfigError(
            f"--print-submit and --resume {run.resume} cannot be used together",
            "a submission begins a run, or goes on with it, with the flags of its beginning",
            f"the flags of the beginning and --name {typed(run.resume)} --print-submit",
        )
    for flag, is_given in (("--dry-run", run.dry_run), ("--print-config", run.print_config)):
        if is_given:
            raise ConfigError(
                f"--print-submit and {flag} cannot be used together",
                "the job that is submitted would train nothing",
                f"leave {flag} out, or give it without --print-submit",
            )
    recipe = flags.load()
    check_paths(recipe, flags.config, Path.cwd())
    refuse_variables(environment())
    words = sys.argv[1:]
    # jobs/train.py gets them without the name of the command.
    if words[:1] == ["train"]:
        words = words[1:]
    print(submission(words, _name(flags, run), folder=Path.cwd()))


def unnamed() -> ConfigError:
    """The error of `--resume auto` without a name."""
    return ConfigError(
        "--resume auto is given without --name",
        "the same command would not find again what it has begun",
        "--resume auto --name first",
    )


def _begin_or_resume(flags: RecipeFlags, run: RunFlags) -> int | None:
    """Begins a run, goes on with it, or says that it is complete. Returns as `_train_new`."""
    if run.name is None:
        raise unnamed()
    new = replace(run, resume=None)
    if run.dry_run or run.print_config:
        return _train_new(flags, new)
    recipe = flags.load()
    check_written("--storage", recipe.storage)
    # Its machine may just have died, also before it wrote a recipe.
    path = storage.join(storage.absolute(recipe.storage), run.name)
    runlock.outwait(path)
    # The folds of a name go on by themselves.
    if run.folds is not None:
        _outwait_folds(path)
        return _train_new(flags, new)
    _refuse_search(run.name, recipe.storage)
    begun = runs.begun(run.name, recipe.storage)
    if begun is None:
        return _train_new(flags, new)
    check_session()
    from raytrain.distributed.repeat import changes_of, is_complete

    changes = changes_of(begun, recipe)
    if is_complete(begun):
        print(f"the run {begun.name} is complete")
        _conclude(begun)
        return None
    return _go_on(begun, changes, run)


def _outwait_folds(path: str) -> None:
    """Waits for the locks of the runs of a cross-validation, as `runlock.outwait`.

    Args:
        path: of its directory.
    """
    from raytrain.distributed.folds import find

    begun = find(path)
    if begun is None:
        return
    for split in begun.splits:
        runlock.outwait(begun.run(split).path)


def _train_new(flags: RecipeFlags, run: RunFlags) -> int | None:
    """Trains a new run. Returns the exit code of its supervisor, or None without one."""
    recipe = flags.load()
    if run.print_config:
        print(recipe.to_yaml(), end="")
        return None
    check_written("--storage", recipe.storage)
    name = _name(flags, run)
    if run.folds is not None:
        _refuse_split(flags, run.folds)
        return _train_folds(recipe, run, name)
    if run.dry_run:
        # It refuses whatever the run itself would refuse, also in the environment of Ray.
        check_session()
        from raytrain.distributed.dry_run import dry_run

        runs.refuse_taken(name, recipe.storage)
        dry_run(recipe)
        return None
    if run.restarts:
        # This process only supervises: the one that trains may die with its Ray.
        from raytrain.distributed.supervisor import supervise_run

        return supervise_run(recipe, name, run.restarts, run.wait)
    check_session()
    # Only here: a fold, or a run that goes on, does not end because MLflow is away.
    tracking.check(recipe.mlflow)
    from raytrain.distributed.train import train as run_train

    _conclude(run_train(recipe, name=name, wait_s=run.wait).run)
    return None


def _name(flags: RecipeFlags, run: RunFlags) -> str:
    """The name of a new run: the given one, or one that no other run has."""
    if run.name is not None:
        return run.name
    return runs.new_name(storage.name_of(flags.config or "train").removesuffix(".yaml"))


def _refuse_split(flags: RecipeFlags, family: str) -> None:
    """Refuses a split beside a family of splits."""
    given = field_paths(flags.overrides) | set(flags.by_path)
    if "data.split" not in given:
        return
    raise ConfigError(
        f"--folds {family} and --data.split cannot be used together",
        "each run takes the split of its fold",
        "leave --data.split out",
    )


def _train_folds(recipe: Recipe, run: RunFlags, name: str) -> int | None:
    """Trains or continues a cross-validation. Returns the exit code of its supervisor, or None."""
    assert run.folds is not None
    if run.restarts and not run.dry_run:
        from raytrain.distributed.supervisor import supervise_folds

        return supervise_folds(recipe, run.folds, name, run.restarts, run.wait)
    check_session()
    from raytrain.distributed import folds

    if run.dry_run:
        from raytrain.distributed.dry_run import dry_run

        found = folds.planned(recipe, run.folds, name)
        dry_run(found.recipe_of(found.splits[0]))
        print(folds.plan_in_words(found))
        return None
    _conclude_folds(folds.train_folds(recipe, run.folds, name, wait_s=run.wait))
    return None


def _resume(name: str, flags: RecipeFlags, run: RunFlags) -> int | None:
    """Resumes a run or a cross-validation. Returns the exit code of its supervisor, or None."""
    _refuse_flags_of_new_runs(name, flags, run)
    fields = flags.by_path
    path = _storage_path(flags)
    check_written("--storage", path)
    _refuse_search(name, path)
    folds = runs.find_folds(name, path)
    found = folds or runs.find(name, path)
    changes = flags.overrides
    for field, value in fields.items():
        changes = merge(changes, nested(field.split("."), value))
    # A field that cannot change is refused as such, whatever its value.
    changes = runs.placement(found, changes)
    if fields:
        # What may change lies outside the stages, so the values can be checked in any recipe.
        load_recipe(None, flags.overrides, fields)
    if folds is None or run.restarts:
        return _go_on(found, changes, run)
    check_session()
    from raytrain.distributed.folds import opened, resume_folds

    _conclude_folds(resume_folds(opened(folds.path), changes, wait_s=run.wait))
    return None


def _go_on(found: runs.Run, changes: dict[str, Any], run: RunFlags) -> int | None:
    """Resumes a run. Returns the exit code of its supervisor, or None without one."""
    if run.restarts:
        from raytrain.distributed.supervisor import supervise_resume

        return supervise_resume(found, changes, run.restarts, run.wait)
    check_session()
    from raytrain.distributed.train import resume as run_resume

    _conclude(run_resume(found, changes, wait_s=run.wait).run)
    return None


def _refuse_search(name: str, path: str) -> None:
    """Refuses to train on in the directory of a search, which looks like the run of its winner."""
    found = runs.find_search(name, path)
    if found is None:
        return
    best = storage.join(found.path, "best.yaml")
    raise ConfigError(
        f"{name} is a search, not a run",
        "train --resume would train its winner on in the directory of the search",
        f"{runs.resume_search_command(found.name, path)} goes on with the search; "
        f"raytrain train --config {typed(best)} trains its winner anew",
    )


def _storage_path(flags: RecipeFlags) -> str:
    """Where the run to resume is looked up."""
    given = flags.overrides.get("storage")
    if given is not None:
        return str(given)
    fields = {path: value for path, value in flags.by_path.items() if path == "storage"}
    return load_recipe(None, {}, fields).storage


def _refuse_flags_of_new_runs(name: str, flags: RecipeFlags, run: RunFlags) -> None:
    others = {
        "--config": flags.config,
        "--name": run.name,
        "--folds": run.folds,
        "--dry-run": run.dry_run,
        "--print-config": run.print_config,
    }
    given = [flag for flag, value in others.items() if value]
    if not given:
        return
    raise ConfigError(
        f"--resume {name} continues that run with its own configuration, "
        f"so {', '.join(given)} cannot be used with it",
        "half of the run would have been trained in another way, or under another name",
        f"leave {given[0]} out, or start a new run with --init-from {name}",
    )


def _conclude(run: runs.Run) -> None:
    """Writes a run's thresholds and report, and prints its scores and the next command."""
    from raytrain.report.conclude import conclude

    done = conclude(run.path)
    print(done.table)
    print(f"report: {done.report}")
    checkpoint = typed(storage.join(run.path, "checkpoints", "last"))
    print(f"next: raytrain predict --checkpoint {checkpoint} --images DIR --out test.parquet")


def _conclude_folds(folds: Folds) -> None:
    """Judges the out-of-fold predictions, writes their report, and prints scores and the next
    command."""
    from raytrain.evaluation.predictions import read
    from raytrain.report.conclude import conclude_predictions

    done = conclude_predictions(folds.path, read(folds.predictions))
    print(done.table)
    print(f"report: {done.report}")
    print(f"out-of-fold predictions: {folds.predictions}")


def lr_find(
    *,
    recipe: Annotated[RecipeFlags, Parameter(name="*")] = NO_RECIPE_FLAGS,
    name: Annotated[
        str | None, Parameter(help="name of the folder under --storage; default: a unique one")
    ] = None,
    wait: Wait = 0,
) -> None:
    """Find peak learning rates: plot the loss while the rate rises.

    --stages chooses the stages (default: the first), --init-from the weights to start from.
    """
    settings = recipe.load()
    # The initial weights are those before the first stage; another one needs --init-from.
    settings = settings.model_copy(update={"select": settings.select or "1"})
    check_written("--storage", settings.storage)
    check_session()
    if name is None:
        name = runs.new_name("lr-find")
    runs.refuse_taken(name, settings.storage)
    from raytrain.distributed.train import find_rates
    from raytrain.report import rates

    find_rates(settings, name, wait_s=wait)
    path = storage.join(storage.absolute(settings.storage), name)
    tests = rates.read(path, settings.stage_names)
    pictures = rates.draw(path, settings.stage_names)
    for test, picture in zip(tests, pictures, strict=True):
        found = ", ".join(f"{rule} {lr:.1e}" for rule, lr in test.suggestions.items())
        print(f"{test.stage}: {found}\n  {picture}")
        _print_pair(settings, test)
    print(
        "next: raytrain train --set stages.1.lr=RATE uses a rate for the first stage; "
        "raytrain train --lr auto, or --lr lesson, finds and uses one for every stage"
    )


def _print_pair(recipe: Recipe, test: RangeTest) -> None:
    """Prints the pair of rates that the lesson takes after unfreezing, where the test shows one."""
    from raytrain.training.lr_find import HIGH_RULE, LOW_RULE

    low = test.suggestions.get(LOW_RULE)
    high = test.suggestions.get(HIGH_RULE)
    if low is None or high is None or low >= high:
        return
    number = recipe.stage_names.index(test.stage) + 1
    print(f"  the lesson's pair after unfreezing: --set stages.{number}.lr={low:.1e},{high:.1e}")
