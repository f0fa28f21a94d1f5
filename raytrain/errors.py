"""Sentences for failure: every error says what is wrong, why it matters and what to type next.

The command line prints them without a traceback and exits with `exit_code`; README lists the codes.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterable
from difflib import get_close_matches

MASK = "***"


class RaytrainError(Exception):
    """A failure that a person can act on.

    Args:
        what: the wrong thing with its value, one sentence without a final full stop.
        why: what it would do or why it is refused; may be empty.
        fix: the next command to type or the thing to change; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        what, why, fix = masked(what), masked(why), masked(fix)
        # All three go to Exception.args, so that the error survives pickling between Ray processes.
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  why:  {self.why}"] if self.why else []
        lines += [f"  next: {self.fix}"] if self.fix else []
        return "\n".join(lines)


class ConfigError(RaytrainError):
    """Wrong usage or configuration, a missing checkpoint included."""

    exit_code = 2


class DataError(RaytrainError):
    """Labels, images, datasets or predictions that cannot be used."""

    exit_code = 3


class RemoteError(RaytrainError):
    """A remote service refused us: a download of weights, Kaggle."""

    exit_code = 4


class ResourceError(RaytrainError):
    """CPUs, GPUs or memory that cannot be had."""

    exit_code = 5


class NoRoomError(ResourceError):
    """The cluster declares enough, and others hold it, or a machine of it does not come."""


class DivergedError(RaytrainError):
    """The loss is no longer finite."""

    exit_code = 6


class StorageError(RaytrainError):
    """The storage path cannot be written or read."""

    exit_code = 7


class UnfinishedError(RaytrainError):
    """Stopped before the end with everything kept: the same command goes on from there."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """Ended at once by a signal, as by Ctrl-C.

    Args:
        number: of the signal.
        note: what else there is to say; begins with a comma or a new line.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(number, note)
        self.number, self.note, self.exit_code = number, note, 128 + number

    def __str__(self) -> str:
        how = (
            "from the keyboard"
            if self.number == signal.SIGINT
            else f"by {signal.Signals(self.number).name}"
        )
        return f"stopped {how}{self.note}"


def exit_code_of(error: BaseException) -> int:
    """The exit code that a command ends with because of an error."""
    if isinstance(error, RaytrainError | Interrupted):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def masked(text: str) -> str:
    """The text without the keys that URIs such as s3://KEY:SECRET@bucket may hold."""
    return re.sub(r"""://[^/@\s"']+:[^/@\s"']+@""", f"://{MASK}@", text)


def typed(path: str) -> str:
    """A path or URI as a shell takes it as one word, without keys: `?` and `&` of a URI mean something to a shell."""
    return shlex.quote(masked(path))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean "x"?` for the nearest known word, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
