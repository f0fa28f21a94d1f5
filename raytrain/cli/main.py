"""The command line: `raytrain --help`. jobs/*.py call the same `main`, so they take the same flags.

This module has the program itself: it registers the commands and turns errors into exit codes.
Heavy modules (torch, ray) are imported inside the commands, so that help, --print-config and a
wrong setting answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import NoReturn

import cyclopts
from cyclopts import App

from raytrain import log
from raytrain.cli.dataset import data_app
from raytrain.cli.doctor import doctor
from raytrain.cli.download import download
from raytrain.cli.evaluate import evaluate
from raytrain.cli.ingest import ingest
from raytrain.cli.predict import predict, submission
from raytrain.cli.quickstart import quickstart
from raytrain.cli.runs import runs_app
from raytrain.cli.train import lr_find, train
from raytrain.cli.tune import tune
from raytrain.cli.usage import usage_error
from raytrain.data.names import is_utf8, visible
from raytrain.distributed.environment import quiet_ray
from raytrain.distributed.stop_signals import end_with_supervisor
from raytrain.errors import ConfigError, Interrupted, RaytrainError
from raytrain.output import Output, ReaderLeft, open_closed_streams

# As a shell counts a process that SIGPIPE ends: 128 + 13.
READER_LEFT_CODE = 141

app = App(
    name="raytrain",
    help="Train tile classifiers on satellite imagery with Ray. Start with: raytrain quickstart",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(quickstart)
app.command(download)
app.command(ingest)
app.command(data_app)
app.command(train)
app.command(lr_find)
app.command(tune)
app.command(predict)
app.command(evaluate)
app.command(submission)
app.command(runs_app)
app.command(doctor)
# Imported when it is called: no other command needs the names of its parts.
app.command(
    "raytrain.cli.bench:bench",
    name="bench",
    help="Measure how fast this machine decodes, ingests, trains, predicts and starts.",
)


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs a command line and exits with one of the codes that docs/exit-codes.md lists.

    Args:
        argv: arguments without the program's name; None: those of this process.
    """
    end_with_supervisor()
    quiet_ray()
    # After a second signal, a thread that still calls Ray would start or join another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if argv is None:
        argv = sys.argv[1:]
    sys.exit(run_command(argv))


def run_command(argv: list[str]) -> int:
    """Runs a command line and returns the exit code.

    Mistakes that a user can correct are printed as sentences, without a traceback. Nothing that
    is printed contains the keys of a URI.

    Args:
        argv: arguments without the program's name.
    """
    open_closed_streams()
    # Line by line, because logs are read while they grow.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper
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
        # Here, and not when Python ends, so that a full disk is still an error of the command.
        sys.stdout.flush()
        if isinstance(result, int):
            return result
        return 0
    except cyclopts.CycloptsError as error:
        return _fail(usage_error(error, argv))
    except RaytrainError as error:
        return _fail(error)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except ReaderLeft:
        return READER_LEFT_CODE
    except Exception:
        traceback.print_exc()
        print(
            "This is a fault of raytrain, not of your input: please report the lines above.\n"
            "raytrain ends with exit code 1",
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
    print(f"error: {error}", file=sys.stderr)
    # A Ray job reports only 0 or 1, so its log must hold the code in its last line.
    print(f"raytrain ends with exit code {error.exit_code}", file=sys.stderr)
    return error.exit_code


def _interrupted(error: KeyboardInterrupt) -> int:
    if not isinstance(error, Interrupted):
        error = Interrupted(signal.SIGINT)
    print(error, file=sys.stderr)
    print(f"raytrain ends with exit code {error.exit_code}", file=sys.stderr)
    return error.exit_code
