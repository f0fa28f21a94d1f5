"""`raytrain train --restarts K`: runs the training in a child process and restarts it when it dies.

It is for what Ray does not survive: the death of its controller, of the driver, or of the node's
own processes. The first attempt is the command that the user gave; later ones use --resume.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
# Exit codes after which a restart is useless: success, errors that the same command would only
# repeat, and signals from the user. Code 5 is not among them, since it depends on the error.
FINAL_CODES = {0, 2, 3, 4, 6, 7, 75, 129, 130, 143}
# Exit code 1 stands for any other exception. These are faults of the program, which come again.
FINAL_ERRORS = {
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "TypeError",
    "AttributeError",
    "NameError",
}
# Seconds; the pauses before restarts double up to this.
LONGEST_PAUSE_S = 60.0
# Seconds to wait for a missing head of the cluster, for this attempt and for each one that is left,
# in addition to the pauses between them.
HEAD_S = 120.0
# Seconds between two checks for the head.
ASK_HEAD_S = 2.0
# Seconds between two looks for a signal during a pause.
LOOK_EVERY_S = 0.1


class Child:
    """The process that trains. It gets every signal that the supervisor gets."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        # The last signal that came.
        self.signal: int | None = None

    def run(self, arguments: list[str]) -> int:
        """Runs a raytrain command and waits for its end.

        Returns:
            The exit code; if a signal ended the process, the negative number of the signal.
        """
        # In a session of its own: Ctrl-C and a closed terminal reach all processes of the session,
        # so the child would get the signal twice, once directly and once from `forward`.
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], start_new_session=True, env=_child_environment()
        )
        if self.signal is not None:  # it came while the process was started
            self.process.send_signal(self.signal)
        return self.process.wait()

    def pause(self, seconds: float) -> None:
        """Waits for a number of seconds, or until a signal comes."""
        end = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)

    def forward(self, number: int, frame: Any) -> None:
        """Passes a signal on to the process. This is a signal handler."""
        self.signal = number
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def supervise(first: list[str], again: list[str], path: str, restarts: int) -> int:
    """Runs a command, and runs another one each time its process dies.

    Args:
        first: arguments of the command that starts the run.
        again: arguments of the command that resumes it, used once the run has begun.
        path: the run's directory.
        restarts: the largest number of restarts.

    Returns:
        The exit code of the last attempt as a shell reports it; if a signal came between two
        attempts, that of the signal.
    """
    outlive_reader()
    child = Child()
    with handled(child.forward):
        for attempt in range(restarts + 1):
            command = first
            if storage.exists(storage.join(path, "config.yaml")):
                command = again
            # The attempts that a restart may follow: this one and later ones.
            left = range(attempt, restarts)
            code = _run_with_head(child, command, left)
            if code == ResourceError.exit_code and _missing_head():
                # The head stayed away for as long as all attempts that are left would have taken.
                break
            if child.signal is not None or _is_final(path, code, is_first=attempt == 0):
                return _as_shell(code)
            if not left:
                return _as_shell(code)
            pause = _pause(attempt)
            logger.info(
                f"the run's process ended with {code}; "
                f"restart {attempt + 1} of {restarts} in {pause:.0f} s"
            )
            child.pause(pause)
            if child.signal is not None:
                break
    if child.signal is not None:
        return 128 + child.signal
    return code


def _as_shell(code: int) -> int:
    """Returns an exit code of `subprocess` as a shell reports it: 128 + number for a signal."""
    if code < 0:
        return 128 - code
    return code


def _run_with_head(child: Child, command: list[str], left: range) -> int:
    """Runs a command, and runs it again each time it failed only because the head was missing."""
    code = child.run(command)
    while code == ResourceError.exit_code and _head_came(child, left):
        code = child.run(command)
    return code


def _pause(attempt: int) -> float:
    """Returns the seconds before the restart that follows an attempt, counted from 0."""
    return min(LONGEST_PAUSE_S, 2.0**attempt)


def _head_came(child: Child, left: range) -> bool:
    """Waits for the cluster's head if it is missing. This does not count as a restart.

    Args:
        child: the wait ends when a signal comes for it.
        left: the attempts that a restart may follow.

    Returns:
        Whether the head was missing and answers now.
    """
    missing = _missing_head()
    if not missing:
        return False
    # As long as the restarts that are left could have waited.
    patience_s = HEAD_S + sum(HEAD_S + _pause(attempt) for attempt in left)
    end = time.monotonic() + patience_s
    logger.info(
        f"{missing}; waiting for it, {patience_s:.0f} s at most, which does not count as a restart"
    )
    while missing and child.signal is None and time.monotonic() < end:
        child.pause(ASK_HEAD_S)
        missing = _missing_head()
    return not missing and child.signal is None


def _missing_head() -> str:
    """Returns the message that no head answers at RAY_ADDRESS; empty if one does or none is needed.

    A wrong setting is no missing head: waiting would not help.
    """
    try:
        if environment.connects():
            environment.check_head()
    except ResourceError as error:
        return error.what
    except ConfigError:
        return ""
    return ""


def supervise_run(recipe: Recipe, name: str, restarts: int, wait_s: float = 0.0) -> int:
    """Runs `supervise` for a new run.

    Args:
        recipe: of the run, as this process has resolved it.
        name: of the run.
        restarts: the largest number of restarts.
        wait_s: seconds that each attempt waits for room in the cluster; 0 for none.

    Returns:
        The exit code.
    """
    runs.refuse_taken(name, recipe.storage)
    path = storage.join(storage.absolute(recipe.storage), name)
    with _given(recipe) as flags:
        first = ["train", *flags, "--name", name, *_waiting(wait_s)]
        return supervise(first, _resume(path, _waiting(wait_s)), path, restarts)


def supervise_folds(
    recipe: Recipe, family: str, name: str, restarts: int, wait_s: float = 0.0
) -> int:
    """Runs `supervise` for a cross-validation; the command that began it also goes on with it.

    Args:
        recipe: of the runs, as this process has resolved it.
        family: name of the family of splits.
        name: of the cross-validation.
        restarts: the largest number of restarts.
        wait_s: as for `supervise_run`.

    Returns:
        The exit code.
    """
    path = storage.join(storage.absolute(recipe.storage), name)
    with _given(recipe) as flags:
        command = ["train", *flags, "--name", name, "--folds", family]
        command += _waiting(wait_s)
        return supervise(command, command, path, restarts)


@contextmanager
def _given(recipe: Recipe) -> Iterator[list[str]]:
    """The flags that give a recipe to the child, as long as the file lasts that they name."""
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        # The recipe goes to the child in a file, except for the keys in its URIs: no file gets
        # them, so they are passed as flags.
        file = Path(folder) / "recipe.yaml"
        file.write_text(masked(recipe.to_yaml()))
        yield ["--config", str(file), *_flags(_with_keys(recipe.model_dump(mode="json")))]


def supervise_resume(
    run: runs.Run, overrides: dict[str, Any], restarts: int, wait_s: float = 0.0
) -> int:
    """Runs `supervise` for an existing run, or for the directory of a cross-validation.

    Args:
        run: to resume.
        overrides: fields of the recipe that the user has changed.
        restarts: the largest number of restarts.
        wait_s: as for `supervise_run`.

    Returns:
        The exit code.

    Raises:
        ConfigError: one of these fields must not change.
    """
    again = _resume(run.path, [*_flags(runs.placement(run, overrides)), *_waiting(wait_s)])
    return supervise(again, again, run.path, restarts)


def _resume(path: str, flags: list[str]) -> list[str]:
    return ["train", "--resume", storage.name_of(path), "--storage", storage.parent(path), *flags]


def _waiting(seconds: float) -> list[str]:
    if seconds <= 0:
        return []
    return ["--wait", f"{seconds:g}"]


def _with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a recipe, nested as there, that hold a URI with keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found[key] = _with_keys(value)
        elif isinstance(value, str) and masked(value) != value:
            found[key] = value
    return found


def _flags(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns nested values as command line flags, such as `--train.stall-s 600`."""
    words = []
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += _flags(value, f"{name}.")
        elif value is True:
            words.append(f"--{name}")
        elif value is False:
            words.append(f"--no-{name}")
        elif value is None:
            # No flag has a spelling for "no value".
            words += ["--set", f"{prefix}{key}=null"]
        else:
            words += [f"--{name}", str(value)]
    return words


def _child_environment() -> dict[str, str]:
    """Returns the environment of the child, without the variables that set fields of a recipe.

    The child's command names the recipe in which these variables are resolved already.
    """
    kept = {SUPERVISOR: str(os.getpid())}
    for name, value in os.environ.items():
        if name in ENV_OTHER or not name.startswith(ENV_PREFIX):
            kept[name] = value
    return kept


def _is_final(path: str, code: int, is_first: bool) -> bool:
    """Returns whether another attempt would end as this one did.

    Args:
        path: the run's directory.
        code: exit code of the attempt.
        is_first: whether no other attempt came before it.
    """
    error = _error_name(path, code)
    if code == ResourceError.exit_code:
        # Lack of memory, the plain ResourceError, comes again.
        if error == ResourceError.__name__:
            return True
        # After the first attempt, a cluster is too small only while a machine of it is replaced.
        # In the first one it is too small for good, unless its resources are only in use.
        return is_first and error != NoRoomError.__name__
    return code in FINAL_CODES or (code == 1 and error in FINAL_ERRORS)


def _error_name(path: str, code: int) -> str | None:
    """Returns the class name of the error that the run has recorded in failure.json.

    None if nothing is recorded, or only an earlier end with another exit code.
    """
    try:
        failure = storage.read_json(storage.join(path, "failure.json"))
        if failure["exit_code"] != code:
            return None
        name: str = failure["error"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    return name
