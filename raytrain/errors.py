"""The errors of this package: each says what is wrong, why it matters and what to do next.

The command line prints them without a traceback and exits with their `exit_code`.
docs/exit-codes.md lists the codes.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterable
from difflib import get_close_matches

# Replaces the access keys of a URI in everything that is printed or written.
MASK = "***"
# The `KEY:SECRET@` part of a URI such as s3://KEY:SECRET@bucket.
KEYS_IN_URI = re.compile(r"""://[^/@\s"']+:[^/@\s"']+@""")


class RaytrainError(Exception):
    """A failure that the user can fix.

    Args:
        what: what is wrong, with the wrong value; one sentence without a final full stop.
        why: the consequence, or the reason for the refusal; may be empty.
        fix: the next command to type or the setting to change; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what = masked(what)
        self.why = masked(why)
        self.fix = masked(fix)
        # Unpickling calls the class with Exception.args. With all three texts in it, the error
        # survives the way from one Ray process to another.
        super().__init__(self.what, self.why, self.fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.fix:
            lines.append(f"  next: {self.fix}")
        return "\n".join(lines)


class ConfigError(RaytrainError):
    """Wrong usage or configuration. A missing checkpoint is one, too."""

    exit_code = 2


class TakenError(ConfigError):
    """Another process trains the run, and so nobody else may."""


class DataError(RaytrainError):
    """Labels, images, datasets or predictions that cannot be used."""

    exit_code = 3


class RemoteError(RaytrainError):
    """A remote service failed or refused the request: Kaggle, or a server with weights."""

    exit_code = 4


class ResourceError(RaytrainError):
    """Too few CPUs or GPUs, or too little memory."""

    exit_code = 5


class MemoryExceededError(ResourceError):
    """Training needs more memory than its device has; another recipe may need less."""


class NoRoomError(ResourceError):
    """The cluster is large enough, but its resources are in use, or one of its machines is missing.

    Unlike other resource errors, this one may go away by itself.
    """


class DivergedError(RaytrainError):
    """The loss is no longer finite."""

    exit_code = 6


class StorageError(RaytrainError):
    """A storage path cannot be read or written."""

    exit_code = 7


class UnfinishedError(RaytrainError):
    """Stopped before the end with all work saved: the same command resumes it."""

    # EX_TEMPFAIL of sysexits.h: "temp failure; user is invited to retry".
    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """A signal ended the command at once, as Ctrl-C does.

    Args:
        number: of the signal.
        note: text that follows the message; it begins with its own separator, such as a comma.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(number, note)
        self.number = number
        self.note = note
        # The value that a shell reports for a process that a signal has ended.
        self.exit_code = 128 + number

    def __str__(self) -> str:
        cause = f"by {signal.Signals(self.number).name}"
        if self.number == signal.SIGINT:
            cause = "from the keyboard"
        return f"stopped {cause}{self.note}"


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code of a command that ends with this error."""
    if isinstance(error, RaytrainError | Interrupted):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 1


def masked(text: str) -> str:
    """Returns the text with `***` in place of the keys in URIs such as s3://KEY:SECRET@bucket."""
    return KEYS_IN_URI.sub(f"://{MASK}@", text)


def typed(path: str) -> str:
    """Returns a path or URI as it is typed in a shell: quoted where needed, and without keys.

    `?` and `&`, which occur in URIs, have a meaning of their own in a shell.
    """
    return shlex.quote(masked(path))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean "x"?` with the most similar known word, or an empty string."""
    similar = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if not similar:
        return ""
    return f' Did you mean "{similar[0]}"?'
