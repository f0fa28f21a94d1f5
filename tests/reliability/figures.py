"""What a figure is made of: cases that each leave an outcome behind, and a judgement of them all."""

import dataclasses
import hashlib
import json
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a case found: `passed` of `of` checks, measured numbers by name, and a sentence for each check that failed."""

    passed: int
    of: int
    numbers: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One thing to try. `run` gets an empty folder; it raises nothing for what it was made to find out."""

    name: str
    run: Callable[[Path], Outcome]
    quick: bool = False


@dataclass(frozen=True)
class Figure:
    """A row of the table. Figures that read different numbers of the same cases name the same cases, which run once.

    `value` and `met` judge the outcomes of all cases; by default they count checks, and every one must pass.
    """

    id: str
    title: str
    target: str
    cases: Sequence[Case]
    value: Callable[[list[Outcome]], str] = lambda outcomes: counted(outcomes)
    met: Callable[[list[Outcome]], bool] = lambda outcomes: passed(outcomes)


class Checks:
    """Counts the checks of a case and keeps a sentence for each that failed."""

    def __init__(self) -> None:
        self.passed, self.of = 0, 0
        self.failures: list[str] = []

    def add(self, good: bool, what: str) -> bool:
        """Counts a check; `what` tells which one it was."""
        self.of += 1
        self.passed += bool(good)
        if not good:
            self.failures.append(what)
        return good

    def outcome(self, **numbers: Iterable[float]) -> Outcome:
        """The outcome, with measured numbers."""
        return Outcome(
            self.passed,
            self.of,
            {name: list(some) for name, some in numbers.items()},
            self.failures,
        )


class Ledger:
    """The outcomes so far, a JSON line each: a score that was interrupted goes on after the last whole case.

    Outcomes of other code than the present one are not counted.
    """

    def __init__(self, out: Path) -> None:
        self.file, self.scratch, self.code = out / "outcomes.jsonl", out / "scratch", code_hash()
        out.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        self.outcomes = {
            e["case"]: Outcome(**e["outcome"]) for e in entries if e["code"] == self.code
        }

    def outcome(self, case: Case) -> Outcome:
        """The outcome of a case, which runs unless it is known."""
        if case.name not in self.outcomes:
            found = self._run(case)
            self.outcomes[case.name] = found
            with self.file.open("a") as file:
                file.write(
                    json.dumps(
                        {"code": self.code, "case": case.name, "outcome": dataclasses.asdict(found)}
                    )
                    + "\n"
                )
        return self.outcomes[case.name]

    def _run(self, case: Case) -> Outcome:
        folder, began = (
            self.scratch / case.name.replace(" ", "-").replace("/", "-"),
            time.monotonic(),
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            found = case.run(folder)
        except Exception:
            found = Outcome(0, 1, failures=[traceback.format_exc()])
        shutil.rmtree(folder, ignore_errors=True)
        return dataclasses.replace(found, seconds=time.monotonic() - began)


def code_hash() -> str:
    """Of the program and of what measures it."""
    digest = hashlib.sha256()
    for file in sorted([*(PROJECT / "raytrain").rglob("*.py"), *(PROJECT / "tests").rglob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def passed(outcomes: list[Outcome]) -> bool:
    """Whether every check passed, and nothing else is said to have failed."""
    return all(outcome.passed == outcome.of and not outcome.failures for outcome in outcomes)


def counted(outcomes: list[Outcome]) -> str:
    """Checks that passed, of all."""
    return f"{sum(o.passed for o in outcomes)}/{sum(o.of for o in outcomes)}"


def numbers(outcomes: list[Outcome], name: str) -> list[float]:
    """All measured numbers of a name."""
    return [number for outcome in outcomes for number in outcome.numbers.get(name, [])]


def spread(found: list[float], digits: int = 1) -> str:
    """Median and range of some numbers."""
    if not found:
        return "-"
    return f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f})"
