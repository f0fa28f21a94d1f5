"""Names the winner of a search by reruns of its finalists. No torch, no ray.

    decide(finalists, how)   the winner, why, and every finalist with its interval

The best of many equal trials looks better than it is. So the best trials and the given recipe are
trained again with fresh seeds, the same for all, and only these reruns decide. What is not better
beyond the noise is called equal, and of equal ones the cheaper wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation.intervals import Estimate
from raytrain.evaluation.score import Score
from raytrain.search import differences
from raytrain.search.differences import Noise
from raytrain.search.finalists import Finalist
from raytrain.search.reruns import Reading, cheapest, controls, is_clearly_worse

BETTER = "better"
EQUAL = "equal"
WORSE = "worse"


@dataclass(frozen=True)
class Standing:
    """A finalist after the reruns.

    Attributes:
        number: of its trial.
        score: mean over its reruns; None without a complete one.
        reruns: number of complete reruns.
        difference: its score less that of the given recipe; None for the given recipe itself, and
            where one of the two is out.
        verdict: "better", "equal" or "worse" than the given recipe; None without a difference.
        out: why it cannot win; None if it can.
    """

    number: int
    score: float | None
    reruns: int
    difference: Estimate | None
    verdict: str | None
    out: str | None


@dataclass(frozen=True)
class Verdict:
    """What the reruns say.

    Attributes:
        winner: number of the winning trial.
        reason: why it won, in a sentence.
        covers: what the intervals cover, in a sentence.
        standings: of all finalists, in the given order.
        score: what to expect of the choice: at each seed, the score of the finalist that is best at
            all other seeds, and the mean over seeds. None with fewer than two seeds.
    """

    winner: int
    reason: str
    covers: str
    standings: tuple[Standing, ...]
    score: float | None


def decide(finalists: Sequence[Finalist], how: Reading) -> Verdict:
    """Names the winner.

    The cheapest finalist is the first champion. A finalist takes its place only if it is better
    beyond the noise; of several such ones, the cheapest does. This goes on until none is better.

    Args:
        finalists: at least one, the most promising first. Per-tile scores have the same tiles in
            the same order.
        how: the seeds, the score, and what is resampled.

    Raises:
        DataError: fewer than two tiles or groups.
    """
    standing = []
    for finalist in finalists:
        if _why_out(finalist, finalists, how) is None:
            standing.append(finalist)
    if not standing:
        return _undecided(finalists, how)
    compared_with = controls(standing)
    noise = differences.noise_of(standing, len(compared_with), how.groups, how.resample_seed)
    champion, beaten = _champion(standing, noise, how.score)
    return Verdict(
        winner=standing[champion].number,
        reason=_reason(standing, noise, champion, beaten, how.score),
        covers=_covers(noise, how.score),
        standings=_standings(finalists, standing, noise, how),
        score=_score_of_choice(standing, how),
    )


def _why_out(finalist: Finalist, finalists: Sequence[Finalist], how: Reading) -> str | None:
    if finalist.diverged:
        return "a rerun diverged"
    if not finalist.reruns:
        return "it was not trained again"
    if is_clearly_worse(finalist, finalists, how):
        return "it was clearly worse after its first rerun"
    return None


def _undecided(finalists: Sequence[Finalist], how: Reading) -> Verdict:
    """The verdict where no finalist has complete reruns: the best score of the search stands."""
    winner = finalists[0]
    for finalist in finalists:
        if finalist.first is not None and how.score.is_better(finalist.first, winner.first):
            winner = finalist
    standings = []
    for finalist in finalists:
        out = _why_out(finalist, finalists, how)
        standings.append(Standing(finalist.number, None, len(finalist.reruns), None, None, out))
    reason = f"no rerun is complete; {winner.name} has the best score, which may be luck"
    if len(finalists) == 1:
        reason = "no other trial is complete"
    return Verdict(
        winner=winner.number,
        reason=reason,
        covers="there is no interval",
        standings=tuple(standings),
        score=None,
    )


def _champion(standing: Sequence[Finalist], noise: Noise, score: Score) -> tuple[int, int | None]:
    """Indices of the winner and of the last champion that it has beaten, or None."""
    champion = standing.index(cheapest(standing))
    if noise.seed_df == 0:
        # Nothing tells equal ones from others, so the cheaper one could be far worse.
        return _given_or(standing, champion), None
    beaten = None
    while True:
        better = []
        for number, finalist in enumerate(standing):
            gain = differences.difference(noise, champion, number)
            if _verdict(gain, score) == BETTER:
                better.append(finalist)
        if not better:
            return champion, beaten
        beaten = champion
        champion = standing.index(cheapest(better))


def _given_or(standing: Sequence[Finalist], champion: int) -> int:
    """Index of the given recipe, or the other one where it is out."""
    for number, finalist in enumerate(standing):
        if finalist.given:
            return number
    return champion


def _verdict(difference: Estimate, score: Score) -> str:
    """What an interval says of the finalist that the other one was subtracted from."""
    if difference.low <= 0 <= difference.high:
        return EQUAL
    if (difference.low > 0) == score.higher_is_better:
        return BETTER
    return WORSE


def _reason(
    standing: Sequence[Finalist], noise: Noise, champion: int, beaten: int | None, score: Score
) -> str:
    name = standing[champion].name
    if len(standing) == 1:
        return f"{name} is the only finalist whose reruns count"
    if beaten is None:
        return (
            f"no finalist is better than {name} beyond the noise, "
            f"and none is cheaper (cost {standing[champion].cost:.2f})"
        )
    gain = differences.difference(noise, beaten, champion)
    other = f"the cheaper {standing[beaten].name}"
    if standing[beaten].given:
        other = standing[beaten].name
    return (
        f"{name} is better than {other} beyond the noise: {score.name} {gain.value:+.4f} "
        f"({gain.low:+.4f} to {gain.high:+.4f})"
    )


def _covers(noise: Noise, score: Score) -> str:
    if noise.seed_df == 0:
        return "one rerun each does not show the noise of seeds, so none can be called better"
    if noise.covers_tiles:
        return "the intervals cover seeds and tiles"
    return f"the intervals cover seeds alone, since {score.name} is no mean over tiles"


def _standings(
    finalists: Sequence[Finalist], standing: Sequence[Finalist], noise: Noise, how: Reading
) -> tuple[Standing, ...]:
    given = None
    for number, finalist in enumerate(standing):
        if finalist.given:
            given = number
    found = []
    for finalist in finalists:
        mean = None
        if finalist.reruns:
            mean = float(finalist.scores.mean())
        difference = None
        verdict = None
        if given is not None and finalist in standing and not finalist.given:
            difference = differences.difference(noise, given, standing.index(finalist))
            verdict = _verdict(difference, how.score)
        found.append(
            Standing(
                number=finalist.number,
                score=mean,
                reruns=len(finalist.reruns),
                difference=difference,
                verdict=verdict,
                out=_why_out(finalist, finalists, how),
            )
        )
    return tuple(found)


def _score_of_choice(standing: Sequence[Finalist], how: Reading) -> float | None:
    """See `Verdict.score`; only seeds that all standing finalists have count."""
    seeds = []
    for seed in how.seeds:
        if all(seed in finalist.reruns for finalist in standing):
            seeds.append(seed)
    if len(seeds) < 2:
        return None
    rows = []
    for finalist in standing:
        rows.append([finalist.reruns[seed].score for seed in seeds])
    scores = np.array(rows)  # float64 (F, R)
    read = []
    for column in range(len(seeds)):
        at_other_seeds = np.delete(scores, column, axis=1).mean(axis=1)
        best = at_other_seeds.argmin()
        if how.score.higher_is_better:
            best = at_other_seeds.argmax()
        read.append(scores[best, column])
    return float(np.mean(read))
