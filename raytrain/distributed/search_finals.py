"""The finalists of a search: which trials run again, and what their reruns say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raytrain import registry, storage
from raytrain.data.dataset import Dataset
from raytrain.distributed.predict import predict
from raytrain.evaluation import objective as objectives
from raytrain.evaluation import predictions, rerun_scores
from raytrain.evaluation.score import Score
from raytrain.search import finals
from raytrain.search.advice import Advisor
from raytrain.search.finalists import BEST, Finalist, Rerun, rerun_of
from raytrain.search.reruns import Reading, still_to_train
from raytrain.search.table import Kind, State, Table, Trial
from raytrain.training import stages

FILE = "finals.json"
# Files with the predictions of a rerun, by the part of the split that they are of.
FILES = {"valid": "predictions.parquet", "test": "predictions-test.parquet"}
# What the winner was judged by, for best.yaml and the page.
JUDGED_BY = {
    "valid": "The tiles that chose the finalists also judged them.",
    "test": "The finalists were judged by the test tiles, which have chosen nothing.",
}
# Fewer test tiles with known labels decide nothing.
LEAST_TILES = 2


class Finals:
    """Names the finalists of a table, and reads their reruns."""

    def __init__(
        self, advisor: Advisor, root: str, score: Score, dataset: Dataset, seeds: Sequence[int]
    ) -> None:
        """Starts.

        Args:
            advisor: knows which finished trials are the best ones.
            root: storage path of the search.
            score: the objective.
            dataset: opened.
            seeds: of the reruns.
        """
        self._advisor = advisor
        self._root = storage.join(root, stages.FOLDER)
        self._dataset = dataset
        self._reading = Reading(score, tuple(seeds))
        self._part = "valid"
        # Scores of complete reruns by the keys of their last stages: they never change.
        self._known: dict[tuple[str, ...], dict[int, Rerun]] = {}

    @property
    def part(self) -> str:
        """Part of the split whose tiles judge the finalists."""
        return self._part

    def judge_by_test_tiles(self, table: Table) -> None:
        """Predicts the test tiles with all reruns, and reads those from here on.

        Raises:
            RaytrainError: as `predict`.
        """
        for rerun in table.of_kind(Kind.RERUN):
            if rerun.state is not State.COMPLETE:
                continue
            stage = storage.join(self._root, rerun.keys[-1])
            out = storage.join(stage, FILES["test"])
            if storage.exists(out):
                continue
            checkpoint = storage.join(stage, "checkpoints", rerun.names[-1])
            predict(checkpoint, out, dataset_path=self._dataset.path, part="test")
        self._part = "test"
        self._known.clear()

    def wanted(self, table: Table) -> Sequence[tuple[int, int]]:
        """Returns numbers and seeds of the trials to run again now."""
        found = self.finalists(table)
        if len(found) < 2 or not self._reading.seeds:
            return []
        begun = {(trial.rerun_of, trial.seed) for trial in table.of_kind(Kind.RERUN)}
        needed = still_to_train(found, self._reading)
        return [pair for pair in needed if pair not in begun]

    def decide(self, table: Table) -> finals.Verdict | None:
        """Names the winner; None where no trial is complete."""
        found = self.finalists(table)
        if not found:
            return None
        return finals.decide(found, self._reading)

    def finalists(self, table: Table) -> list[Finalist]:
        """Returns the best trials of a table and the given recipe, with their reruns."""
        chosen = self._best(table)
        for trial in table.of_kind(Kind.GIVEN):
            if trial.state is State.COMPLETE and trial not in chosen:
                chosen.append(trial)
        return [self._finalist(table, trial) for trial in chosen]

    def _best(self, table: Table) -> list[Trial]:
        by_key: dict[str, Trial] = {}
        for trial in table.trials:
            if trial.state is State.COMPLETE and trial.kind is not Kind.RERUN:
                by_key.setdefault(trial.keys[-1], trial)
        found = []
        for chain in self._advisor.finalists(BEST):
            if chain.keys[-1] in by_key:
                found.append(by_key[chain.keys[-1]])
        found += [trial for trial in by_key.values() if trial.is_own_outside]
        return found

    def _finalist(self, table: Table, trial: Trial) -> Finalist:
        complete: dict[int, Trial] = {}
        diverged = set()
        for rerun in table.of_kind(Kind.RERUN):
            if rerun.rerun_of != trial.number or rerun.seed is None or rerun.is_open:
                continue
            if rerun.state is State.COMPLETE:
                complete[rerun.seed] = rerun
            else:
                diverged.add(rerun.seed)
        name = f"trial {trial.number}"
        if trial.kind is Kind.GIVEN:
            name = "the given recipe"
        return Finalist(
            number=trial.number,
            name=name,
            cost=sum(trial.costs),
            given=trial.kind is Kind.GIVEN,
            first=trial.score,
            reruns=self._reruns(complete),
            diverged=frozenset(diverged),
        )

    def _reruns(self, complete: dict[int, Trial]) -> dict[int, Rerun]:
        """Scores of complete reruns by their seed."""
        if not complete:
            return {}
        key = tuple(rerun.keys[-1] for rerun in complete.values())
        if key not in self._known:
            self._known[key] = self._read(complete)
        return self._known[key]

    def _read(self, complete: dict[int, Trial]) -> dict[int, Rerun]:
        name = self._reading.score.key
        if not objectives.is_mean_over_tiles(self._reading.score, self._dataset.task):
            return {seed: self._of_outcome(rerun) for seed, rerun in complete.items()}
        saved = {}
        for seed, rerun in complete.items():
            path = storage.join(self._root, rerun.keys[-1], FILES[self._part])
            saved[seed] = predictions.read(path)
        if name in (objectives.OF_THRESHOLDS, registry.evaluation(self._dataset.task).SCORE.key):
            by_seed = rerun_scores.by_seed(saved)
            return {seed: rerun_of(values) for seed, values in by_seed.items()}
        found = {}
        for seed, predicted in saved.items():
            by_rule = registry.evaluation(self._dataset.task).tile_scores(predicted)
            found[seed] = rerun_of(by_rule[name])
        return found

    def _of_outcome(self, rerun: Trial) -> Rerun:
        """The score of a rerun that is no mean over tiles: that of the validation part."""
        assert rerun.score is not None  # it is complete
        return Rerun(rerun.score)


def has_known_test_tiles(dataset: Dataset, split: str) -> bool:
    """Returns whether the test part of a split has tiles whose labels are known."""
    rows = dataset.part_rows(split, "test")
    return int(dataset.known[rows].sum()) >= LEAST_TILES


def content(verdict: finals.Verdict, part: str) -> dict[str, Any]:
    """Returns what finals.json holds.

    Args:
        verdict: on the finalists.
        part: of the split, whose tiles judged them.
    """
    standings = [_finite(asdict(standing)) for standing in verdict.standings]
    return {
        "winner": verdict.winner,
        "reason": verdict.reason,
        "covers": verdict.covers,
        "score": verdict.score,
        "note": JUDGED_BY[part],
        "standings": standings,
    }


def _finite(standing: dict[str, Any]) -> dict[str, Any]:
    """A standing without an interval that has no ends: JSON has no number for those."""
    difference = standing["difference"]
    if difference is not None and abs(difference["high"]) == float("inf"):
        standing["difference"] = None
    return standing
