"""What a person reads when something is wrong: from a command, or from an error."""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from raytrain.cli.main import run_command
from raytrain.errors import RaytrainError

LINES, LONGEST = 3, 600
ADDRESS = re.compile(r"0x[0-9a-f]{6,}|<[\w.]+ object")


@dataclass(frozen=True)
class Said:
    """The exit code of a command, and what it printed to standard error."""

    code: int
    text: str

    @property
    def error(self) -> str:
        """The error alone: from `error:` to the line of the exit code."""
        return self.text.rpartition("error: ")[2].rpartition("\nraytrain ends with")[0]


def said(arguments: list[str]) -> Said:
    """Runs a command in this process."""
    with captured() as streams:
        code = run_command(arguments)
    return Said(code, streams[1].getvalue())


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Standard output and standard error of this process, as text."""
    out, err = _Stream(), _Stream()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


class _Stream(io.StringIO):
    def reconfigure(self, **options: object) -> None:
        """As that of a stream of a process, which a command asks for."""


def flaw(text: str) -> str:
    """What is wrong with the sentence of an error, nothing if it says what, and why or what next, in three lines."""
    lines = text.strip().splitlines()
    if not lines or "Traceback" in text:
        return f"no sentence: {text[-300:]}"
    if ADDRESS.search(text):
        return f"an address in it: {text}"
    if not any(line.startswith(("  why:  ", "  next: ")) for line in lines[1:]):
        return f"neither why nor what next: {text}"
    return (
        ""
        if len(lines) <= LINES and max(map(len, lines)) <= LONGEST
        else f"more than {LINES} lines: {text}"
    )


def flaw_of(error: BaseException) -> str:
    """As `flaw`, of an error that was raised; only ours have sentences."""
    return (
        flaw(str(error)) if isinstance(error, RaytrainError) else f"{type(error).__name__}: {error}"
    )
