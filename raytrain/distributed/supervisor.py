"""`raytrain train --restarts K`: the same run as a child process, started again with --resume when the process dies.

For what Ray does not survive: the death of its controller, of the driver, of the node's own processes.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain import runs, storage
from raytrain.config import ENV_OTHER, ENV_PREFIX, Recipe
from raytrain.distributed import environment
from raytrain.distributed.stop_signals import SUPERVISOR, handled
from raytrain.errors import ConfigError, NoRoomError, ResourceError, masked
from raytrain.output import outlive_reader

logger = logging.getLogger(__name__)


PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
# Ends that the same command would only repeat, or that somebody wanted; exit code 5 depends.
FINAL_CODES = {0, 2, 3, 4, 6, 7, 75, 129, 130, 143}
# Behind exit code 1 stands any exception; of these it is known that they come again.
FINAL_ERRORS = {
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "TypeError",
    "AttributeError",
    "NameError",
}
LONGEST_PAUSE_S = 60.0
# A head that is missing is waited for so long for this attempt and each that is left, beside the pauses; asked so often.
HEAD_S, ASK_HEAD_S = 120.0, 2.0


class Child:
    """The process that trains; it gets the signals that the supervisor gets."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signal: int | None = None

    def run(self, arguments: list[str]) -> int:
        """Runs a command of raytrain. Returns its exit code, negative where a signal ended it."""
        # A session of its own: Ctrl-C and the end of a terminal reach every process of its group, the child would hear
        # them twice.
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], start_new_session=True, env=_without_settings()
        )
        if self.signal is not None:  # it came while the process was started
            self.process.send_signal(self.signal)
        return self.process.wait()

    def pause(self, seconds: float) -> None:
        """Waits, for a signal at the longest."""
        end = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < end:
            time.sleep(0.1)

    def forward(self, number: int, frame: Any) -> None:
        """A handler of signals."""
        self.signal = number
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def supervise(first: list[str], again: list[str], path: str, restarts: int) -> int:
    """Runs the first command, and after each death of its process the other one.

    Args:
        first: arguments of the command that begins the run.
        again: arguments of the command that goes on with it, once its directory is there.
        path: the run's directory.
        restarts: at most so many.

    Returns:
        The exit code of the last attempt, as a shell counts it; of the signal that came between two of them.
    """
    outlive_reader()
    child = Child()
    with handled(child.forward):
        for attempt in range(restarts + 1):
            begun = storage.exists(storage.join(path, "config.yaml"))
            code = child.run(again if begun else first)
            while code == ResourceError.exit_code and _head_came(child, range(attempt, restarts)):
                code = child.run(again if begun else first)
            if code == ResourceError.exit_code and _missing_head():
                return 128 + child.signal if child.signal is not None else code
            if child.signal is not None or _comes_again(path, code, attempt == 0):
                break
            if attempt < restarts:
                pause = _pause(attempt)
                logger.info(
                    f"the run's process ended with {code}; restart {attempt + 1} of {restarts} in {pause:.0f} s"
                )
                child.pause(pause)
                if child.signal is not None:
                    return 128 + child.signal
        return code if code >= 0 else 128 - code


def _pause(attempt: int) -> float:
    """Seconds before the restart that follows an attempt, counted from 0."""
    return min(LONGEST_PAUSE_S, 2.0**attempt)


def _head_came(child: Child, left: range) -> bool:
    """Whether the head of the cluster was missing and has come, which is waited for; that counts as no restart.

    Args:
        child: hears of signals.
        left: attempts that may be followed by a restart.
    """
    patience = HEAD_S + sum(HEAD_S + _pause(attempt) for attempt in left)
    end, missing = time.monotonic() + patience, _missing_head()
    if missing:
        logger.info(
            f"{missing}; it is waited for, {patience:.0f} s at most, which counts as no restart"
        )
    was_missing = bool(missing)
    while missing and child.signal is None and time.monotonic() < end:
        child.pause(ASK_HEAD_S)
        missing = _missing_head()
    return was_missing and not missing and child.signal is None


def _missing_head() -> str:
    """That no head answers at RAY_ADDRESS; nothing where one does, or where none is needed."""
    try:
        if environment.connects():
            environment.check_head()
    except ResourceError as error:
        return error.what
    except ConfigError:
        return ""
    return ""


def supervise_run(recipe: Recipe, name: str, restarts: int) -> int:
    """`supervise` for a new run of a recipe. Returns the exit code."""
    runs.refuse_taken(name, recipe.storage)
    path = storage.join(storage.absolute(recipe.storage), name)
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(masked(recipe.to_yaml()))
        first = [
            "train",
            "--config",
            str(file),
            "--name",
            name,
            *_flags(_with_keys(recipe.model_dump(mode="json"))),
        ]
        return supervise(first, _resume(path, []), path, restarts)


def supervise_resume(run: runs.Run, overrides: dict[str, Any], restarts: int) -> int:
    """`supervise` for a run that is there, with the fields that may change. Returns the exit code.

    Raises:
        ConfigError: another field would change.
    """
    again = _resume(run.path, _flags(runs.placement(run, overrides)))
    return supervise(again, again, run.path, restarts)


def _resume(path: str, flags: list[str]) -> list[str]:
    return ["train", "--resume", storage.name_of(path), "--storage", storage.parent(path), *flags]


def _with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The places in a recipe that hold the keys of a URI, which no file gets."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found[key] = _with_keys(value)
        elif isinstance(value, str) and masked(value) != value:
            found[key] = value
    return found


def _flags(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested values as flags, such as `--train.stall-s 600`."""
    words = []
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += _flags(value, f"{name}.")
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def _without_settings() -> dict[str, str]:
    """The environment without what sets fields of a recipe: the command names the recipe as this process has resolved it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ENV_OTHER or not name.startswith(ENV_PREFIX)
    }
    return kept | {SUPERVISOR: str(os.getpid())}


def _comes_again(path: str, code: int, first: bool) -> bool:
    """Whether another attempt would end as this one did; `first` if none has trained before."""
    said = _said(path, code)
    if code == ResourceError.exit_code:
        # A cluster whose head or machine is being replaced has too little only for a while. Memory stays too small.
        return said == ResourceError.__name__ or (first and said != NoRoomError.__name__)
    return code in FINAL_CODES or (code == 1 and said in FINAL_ERRORS)


def _said(path: str, code: int) -> str | None:
    """The kind of error that the run says it ended with; None where it speaks of another end, or of none."""
    try:
        failure = storage.read_json(storage.join(path, "failure.json"))
        return failure["error"] if failure["exit_code"] == code else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
