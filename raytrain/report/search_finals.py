"""Reads `finals.json` of a search: what the reruns of its finalists say.

Parts that the file lacks stay empty, so that the page of a search shows what there is. Imports
neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.intervals import Estimate

FILE = "finals.json"
BETTER = "better"
EQUAL = "equal"


@dataclass(frozen=True)
class Standing:
    """A finalist after its reruns.

    Attributes:
        number: of its trial.
        score: mean over its reruns; None without a complete one.
        difference: its score less that of the given recipe, with its interval; None for the given
            recipe itself, and where there is none.
        verdict: "better", "equal" or "worse" than the given recipe; empty without a difference.
        out: why it cannot win; empty if it can.
    """

    number: int
    score: float | None = None
    difference: Estimate | None = None
    verdict: str = ""
    out: str = ""


@dataclass(frozen=True)
class Finals:
    """What the reruns say.

    Attributes:
        winner: number of the winning trial; None while there is none.
        reason: why it won, in a sentence.
        covers: what the intervals cover, in a sentence.
        score: what to expect of the winner, read at seeds that did not choose it.
        note: a sentence about the tiles that judged them.
        standings: of the finalists, the most promising one first.
    """

    winner: int | None = None
    reason: str = ""
    covers: str = ""
    score: float | None = None
    note: str = ""
    standings: tuple[Standing, ...] = ()

    def standing(self, number: int) -> Standing | None:
        """Returns the finalist of a trial, or None."""
        for standing in self.standings:
            if standing.number == number:
                return standing
        return None


def read(directory: str) -> Finals:
    """Reads the file of a search; empty where there is none yet.

    Raises:
        DataError: the file is damaged.
    """
    path = storage.join(directory, FILE)
    try:
        content = storage.read_json(path)
        return _finals(content)
    except FileNotFoundError:
        return Finals()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged: {error!r}",
            "it would be unknown which trial won",
            "remove it; the search writes it again when it is resumed",
        ) from None


def _finals(content: Mapping[str, Any]) -> Finals:
    standings = tuple(_standing(row) for row in content.get("standings") or ())
    return Finals(
        winner=content.get("winner"),
        reason=content.get("reason") or "",
        covers=content.get("covers") or "",
        score=content.get("score"),
        note=content.get("note") or "",
        standings=standings,
    )


def _standing(row: Mapping[str, Any]) -> Standing:
    difference = None
    if row.get("difference") is not None:
        found = row["difference"]
        difference = Estimate(found["value"], found["low"], found["high"])
    return Standing(
        number=int(row["number"]),
        score=row.get("score"),
        difference=difference,
        verdict=row.get("verdict") or "",
        out=row.get("out") or "",
    )
