"""The command line: `raytrain --help`. jobs/*.py call the same `main`, so they take the same flags.

Heavy modules (torch, ray) are imported inside the commands: help, --print-config and a wrong setting answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import cyclopts
from cyclopts import App, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from pydantic import ValidationError

from raytrain import log, runs, storage
from raytrain.cli import data, look
from raytrain.cli.data import SourceFlags
from raytrain.cli.job import check_written
from raytrain.config import LESSON_STAGES, Recipe, Stage, as_config_error, load_recipe, parse_yaml
from raytrain.data.bands import parse as parse_bands
from raytrain.data.names import is_utf8, visible
from raytrain.distributed.environment import check_session
from raytrain.distributed.stop_signals import end_with_supervisor
from raytrain.errors import ConfigError, Interrupted, RaytrainError, typed
from raytrain.output import Output, ReaderLeft, open_closed_streams

# Set before ray is imported; whoever sets them differently keeps their value.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default: the end of a run, and reports in a row, wait for it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # logs a harmless error at every start
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of workers would appear twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray Data's actor pools log a harmless error; `info` brings all of it back
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; silences a warning at every start
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_enable_metrics_collection": "0",  # nobody reads them in a session that ends with its command
    "RAY_prestart_worker_first_driver": "0",  # one of them would stay idle; actors start their own as fast
    "RAY_worker_niceness": "0",  # 15 by default: a step waits for its slowest thread, and any other program comes first
}

app = App(
    name="raytrain",
    help="Train tile classifiers on satellite imagery with Ray. Start with: raytrain quickstart",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
runs_app = App(name="runs", help="List, show and report runs.")
app.command(data.download)
app.command(data.ingest)
data.data_app.command(look.show)
data.data_app.command(look.check)
app.command(data.data_app)
app.command(runs_app)
app.command(
    "raytrain.cli.bench:bench",
    name="bench",
    help="How fast this machine decodes, ingests, trains and starts.",
)


class Flags(Recipe):
    """The fields of a recipe as flags: the list of stages comes from a file, `--stages` selects from it."""

    stages: Annotated[tuple[Stage, ...], Parameter(parse=False)] = LESSON_STAGES
    select: Annotated[
        str | None, Parameter(name="--stages", help=Recipe.model_fields["select"].description)
    ] = None


Storage = Annotated[
    str,
    Parameter(
        name="--storage", env_var="RAYTRAIN_STORAGE", help="directory or URI that holds the runs"
    ),
]


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs a command line and exits with the codes that README lists."""
    end_with_supervisor()
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run_command(sys.argv[1:] if argv is None else argv))


def run_command(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code; prints sentences, not tracebacks, for what a person can mend.

    Nothing that is printed holds the keys of a URI.
    """
    open_closed_streams()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log that is read while it grows
    with (
        redirect_stdout(Output(sys.stdout)),
        redirect_stderr(Output(sys.stderr, outlives=True)),
        log.printed(),
    ):
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        _check_utf8(argv)
        result = app(argv, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            return _fail(as_config_error(cause))
        what = str(error).strip()
        return _fail(ConfigError(what, "", "raytrain --help, or raytrain COMMAND --help"))
    except RaytrainError as error:
        return _fail(error)
    except KeyboardInterrupt as error:
        told = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"{told}\nraytrain ends with exit code {told.exit_code}", file=sys.stderr)
        return told.exit_code
    except ReaderLeft:
        return 141
    except Exception:
        traceback.print_exc()
        print(
            "This is a fault of raytrain, not of your input: please report the lines above.\nraytrain ends with exit code 1",
            file=sys.stderr,
        )
        return 1


def _check_utf8(argv: list[str]) -> None:
    for word in argv:
        if not is_utf8(word):
            raise ConfigError(
                f"the argument {visible(word)} is not UTF-8",
                "results could not name such a file",
                "rename the file or folder, and give the new name",
            )


def _fail(error: RaytrainError) -> int:
    print(f"error: {error}\nraytrain ends with exit code {error.exit_code}", file=sys.stderr)
    return error.exit_code


@app.command
def quickstart(
    *,
    out: Annotated[str, Parameter(help="directory for tiles, dataset and run")] = "quickstart",
    num_workers: Annotated[
        PositiveInt | None,
        Parameter(help="Ray Train workers; by default 2, or 1 where memory is short"),
    ] = None,
) -> None:
    """No data, no GPU, no account: synthetic tiles to a report in minutes."""
    check_written("--out", out)
    check_session()
    from raytrain.cli.quickstart import quickstart as run_quickstart

    run_quickstart(out, num_workers)


@app.command
def train(
    *,
    config: Annotated[str | None, Parameter(help="recipe name or YAML file")] = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    name: Annotated[str | None, Parameter(help="name of the new run; unique by default")] = None,
    resume: Annotated[
        str | None,
        Parameter(help="go on with this run from its last checkpoint, also within an epoch"),
    ] = None,
    restarts: Annotated[
        NonNegativeInt,
        Parameter(help="start the run's process again, at most so often, when it or its Ray dies"),
    ] = 0,
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="check everything, take one step per stage, print the plan"),
    ] = False,
    print_config: Annotated[
        bool, Parameter(negative="", help="print the resolved recipe and stop")
    ] = False,
) -> int | None:
    """Train through the stages of a recipe; --resume goes on with a run.

    Ctrl-C, SIGTERM or a closed terminal: a checkpoint after the next step, then the end with exit code 75; a second signal
    ends it at once.
    """
    if name is not None:
        runs.check_name(name)
    overrides = flags.model_dump(exclude_unset=True) if flags else {}
    if resume is not None:
        others = {
            "--config": config,
            "--name": name,
            "--dry-run": dry_run,
            "--print-config": print_config,
        }
        return _resume(
            resume, overrides, [flag for flag, given in others.items() if given], restarts
        )
    recipe = load_recipe(config, overrides)
    if print_config:
        print(recipe.to_yaml(), end="")
        return None
    check_written("--storage", recipe.storage)
    if name is None:
        name = runs.new_name(storage.name_of(config or "train").removesuffix(".yaml"))
    if dry_run:
        check_session()
        from raytrain.distributed.dry_run import dry_run as run_dry

        runs.refuse_taken(name, recipe.storage)
        run_dry(recipe)
        return None
    if restarts:
        from raytrain.distributed.supervisor import supervise_run

        return supervise_run(recipe, name, restarts)
    check_session()
    from raytrain.distributed.train import train as run_train

    _after_training(run_train(recipe, name=name).run)
    return None


@app.command
def lr_find(
    *,
    config: Annotated[str | None, Parameter(help="recipe name or YAML file")] = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    name: Annotated[
        str | None, Parameter(help="name of the folder under --storage; unique by default")
    ] = None,
) -> None:
    """Find peak learning rates: the loss while the rate rises, as a picture; --stages and --init-from say where."""
    recipe = load_recipe(config, flags.model_dump(exclude_unset=True) if flags else {})
    recipe = recipe.model_copy(update={"select": recipe.select or "1"})
    check_written("--storage", recipe.storage)
    check_session()
    name = runs.new_name("lr-find") if name is None else name
    runs.refuse_taken(name, recipe.storage)
    from raytrain.distributed.train import find_rates
    from raytrain.report import rates

    find_rates(recipe, name)
    path = storage.join(storage.absolute(recipe.storage), name)
    for test, picture in zip(rates.read(path), rates.draw(path), strict=True):
        found = ", ".join(f"{rule} {lr:.1e}" for rule, lr in test.suggestions.items())
        print(f"{test.stage}: {found}\n  {picture}")
    print(
        "next: raytrain train --lr auto finds and uses them stage by stage; or write them into a recipe's stages"
    )


def _resume(name: str, overrides: dict[str, Any], others: list[str], restarts: int) -> int | None:
    if others:
        raise ConfigError(
            f"--resume {name} goes on with that run as it was configured; {', '.join(others)} does not go with it",
            "half of the run would have been trained in another way, or under another name",
            f"leave {others[0]} out, or start a new run with --init-from {name}",
        )
    path = overrides.get("storage") or load_recipe(None).storage
    check_written("--storage", path)
    run = runs.find(name, path)
    if restarts:
        from raytrain.distributed.supervisor import supervise_resume

        return supervise_resume(run, overrides, restarts)
    check_session()
    from raytrain.distributed.train import resume as run_resume

    _after_training(run_resume(run, overrides).run)
    return None


def _after_training(run: runs.Run) -> None:
    from raytrain.evaluation.thresholds import table
    from raytrain.report.conclude import conclude

    done = conclude(run.path)
    print(table(done.judgement))
    print(f"report: {done.report}")
    where = storage.join(run.path, "checkpoints", "last")
    print(f"next: raytrain predict --checkpoint {typed(where)} --images DIR --out test.parquet")


@app.command
def tune(
    *,
    space: Annotated[
        str | None, Parameter(help="YAML file: path of a field to {sampler: arguments}")
    ] = None,
    thresholds: Annotated[
        str | None, Parameter(help="search thresholds over this predictions file instead")
    ] = None,
    config: Annotated[str | None, Parameter(help="recipe name or YAML file")] = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    num_samples: Annotated[int, Parameter(help="trials")] = 8,
    name: Annotated[str | None, Parameter(help="name of the search; unique by default")] = None,
) -> None:
    """Search learning rates, the resize schedule or any field of a recipe; or thresholds."""
    if (space is None) == (thresholds is None):
        raise ConfigError(
            "give one of --space SPACE.yaml and --thresholds P.parquet", "", "see README, Searches"
        )
    if num_samples < 1:
        raise ConfigError(
            f"--num-samples {num_samples} is less than 1",
            "a search has at least one trial",
            "--num-samples 8",
        )
    recipe = load_recipe(config, flags.model_dump(exclude_unset=True) if flags else {})
    check_written("--storage", recipe.storage)
    check_session()
    name = runs.new_name("tune") if name is None else name
    runs.refuse_taken(name, recipe.storage)
    if thresholds is not None:
        from raytrain.distributed.tune import search_thresholds

        out = storage.join(storage.absolute(recipe.storage), name)
        table = search_thresholds(storage.absolute(thresholds), out, num_samples=num_samples)
        print(table.head(5).to_string(index=False, max_colwidth=40))
        cuts = typed(storage.join(out, "thresholds.json"))
        print(
            f"results: {out}\nnext: raytrain submission TEST.parquet --thresholds {cuts} --out submission.csv"
        )
        return
    assert space is not None
    content = parse_yaml(_file_text(space), space)
    from raytrain.distributed.preflight import check_recipe, check_workers
    from raytrain.distributed.tune import search

    check_workers(recipe.num_workers)
    recipe, _ = check_recipe(recipe)
    table = search(recipe, content, name=name, num_samples=num_samples)
    out = storage.join(recipe.storage, name)
    print(table.head(5).to_string(index=False, max_colwidth=40))
    best = typed(storage.join(out, "best.yaml"))
    print(f"results: {storage.join(out, 'trials.csv')}\nnext: raytrain train --config {best}")


def _file_text(path: str) -> str:
    if not Path(path).expanduser().is_file():
        raise ConfigError(
            f"the file {path} does not exist", "it says what is searched", "see README, Searches"
        )
    return Path(path).expanduser().read_text()


@app.command
def predict(
    *,
    checkpoint: Annotated[str, Parameter(help="path, RUN (its last) or RUN:stage-2-128")],
    out: Annotated[str, Parameter(help="Parquet file to write")],
    dataset: Annotated[str | None, Parameter(help="dataset directory or URI")] = None,
    part: Annotated[
        Literal["train", "valid", "test", "all"], Parameter(help="part of the dataset's split")
    ] = "valid",
    images: Annotated[
        list[str] | None,
        Parameter(
            help="folder with tiles, or a list of them (.txt); may be given several times",
            negative="",
        ),
    ] = None,
    source: Annotated[SourceFlags | None, Parameter(name="*")] = None,
    tta: Annotated[
        bool, Parameter(negative="", help="mean over the 8 symmetries of each tile")
    ] = False,
    bands: data.Bands = None,
    scale: data.Scale = "0,255",
    where: Storage = "runs",
) -> None:
    """Write logits for a part of a dataset or for folders of tiles."""
    if (dataset is None) == (not images):
        raise ConfigError(
            "give one of --dataset and --images",
            "",
            "raytrain predict --checkpoint RUN --images DIR --out P.parquet",
        )
    if dataset is not None and (source is not None or bands is not None):
        raise ConfigError(
            "--subfolders, --suffix, --folders and --bands do not go with --dataset",
            "they say how the pictures in folders are found and read; a dataset holds its own",
            "leave them out, or give --images",
        )
    check_written("--out", out)
    check_session()
    rule = parse_bands(bands, scale)
    path = runs.find_checkpoint(checkpoint, where)
    pictures = source or SourceFlags()
    sources = [pictures.find(folder) for folder in images or []]
    from raytrain.data.listing import said_of_left_out
    from raytrain.distributed.predict import predict as run_predict

    done = run_predict(
        path, out, dataset_path=dataset, part=part, sources=sources, tta=tta, bands=rule
    )
    for line in said_of_left_out(done.left_out):
        print(line)
    print(f"{done.tiles} predictions in {done.path}")
    if dataset:
        print(f"next: raytrain evaluate {typed(out)} --out evaluation")
        return
    fill = " --missing 'clear primary'" if done.left_out else ""
    print(f"next: raytrain submission {typed(out)} --sample SAMPLE.csv{fill} --out submission.csv")


@app.command
def evaluate(
    predictions: str,
    /,
    *,
    out: Annotated[str, Parameter(help="directory for thresholds, tables and the report")],
) -> None:
    """Judge predictions: F2 at 0.2, best thresholds, per-label table, report."""
    check_written("--out", out)
    from raytrain.evaluation.predictions import read
    from raytrain.evaluation.thresholds import judge, table, write
    from raytrain.report.page import write_evaluation

    path = storage.absolute(out)
    judgement = judge(read(storage.absolute(predictions)))
    write(judgement, path)
    report = write_evaluation(path, storage.absolute(predictions), judgement)
    print(table(judgement))
    print(f"report: {report}")


@app.command
def submission(
    predictions: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    out: Annotated[str, Parameter(help="CSV to write: image_name,tags")],
    thresholds: Annotated[
        str | None, Parameter(help="thresholds.json of a run or an evaluation; 0.2 without")
    ] = None,
    sample: Annotated[
        str | None, Parameter(help="the competition's sample file: names and order")
    ] = None,
    missing: Annotated[
        str | None,
        Parameter(
            help="labels of the sample's tiles that were not predicted, such as 'clear primary'"
        ),
    ] = None,
) -> None:
    """Write the competition's CSV from one or several predictions files."""
    check_written("--out", out)
    from raytrain.evaluation.predictions import read
    from raytrain.evaluation.submission import build, write
    from raytrain.evaluation.thresholds import read_thresholds

    labels = missing.replace(",", " ").split() if missing else []
    if missing is not None and (sample is None or not labels):
        raise ConfigError(
            f"--missing {missing!r} {'without --sample' if labels else 'names no label'}",
            "the sample file says which tiles are missing, and each gets these labels",
            "--sample sample_submission_v2.csv --missing 'clear primary'",
        )
    found = [read(storage.absolute(path)) for path in predictions]
    cut = read_thresholds(storage.absolute(thresholds), found[0].classes) if thresholds else None
    done = build(found, cut, storage.absolute(sample) if sample else None, labels)
    write(storage.absolute(out), done.table)
    for line in done.said():
        print(line)
    if sample is None:
        print("no --sample was given: whether tiles are missing was not checked")
    print(f"{len(done.table)} rows in {out}")


@runs_app.command(name="list")
def list_runs(*, where: Storage = "runs") -> None:
    """All runs under a storage path, with their best F2."""
    for run in runs.every(where):
        rows = _history(run)
        best = (
            f"best F2 {max(float(row['f2']) for row in rows):.4f} after {len(rows)} epochs"
            if rows
            else "no epoch yet"
        )
        print(f"{visible(run.name)}  {best}")


@runs_app.command
def show(run: str, /, *, where: Storage = "runs") -> None:
    """History and checkpoints of a run."""
    found = runs.find(run, where)
    print(f"{found.path}\ncheckpoints: {', '.join(found.checkpoints)}")
    for row in _history(found):
        print("  ".join(f"{key} {float(value):.4g}" for key, value in row.items()))


@runs_app.command
def report(run: str, /, *, where: Storage = "runs") -> None:
    """Write a run's report again."""
    check_written("--storage", where)
    from raytrain.report.conclude import conclude

    print(f"report: {conclude(runs.find(run, where).path).report}")


def _history(run: runs.Run) -> list[dict[str, str]]:
    import csv

    try:
        text = storage.read_bytes(storage.join(run.path, "history.csv")).decode()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text.splitlines()))
