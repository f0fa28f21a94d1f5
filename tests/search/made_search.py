"""Makes the directory of a search by hand: trials.json, search.yaml and the histories of the stages, without any training."""

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml

from raytrain.config import Recipe
from raytrain.search import space_file
from raytrain.search.space import GIVEN, Draw
from raytrain.search.table import Heard, Kind, Part, State, Table, Trial, Verdict

STAGES = [
    {"size": 32, "epochs": 2, "freeze": True, "lr": 0.01},
    {"size": 32, "epochs": 3, "lr": [1e-4, 2e-3]},
    {"size": 64, "epochs": 2, "lr": [1e-4, 1e-3]},
]
SPACE = {
    "train.wd": {"choice": [0.003, 0.01, 0.03]},
    "stages": {
        "choice": {
            "same": [
                {"size": 32, "epochs": 2, "freeze": True, "lr": {"loggrid": [0.002, 0.05, 5]}},
                {
                    "size": 32,
                    "epochs": 3,
                    "lr": {"loggrid": [5e-4, 8e-3, 5], "ratio": 0.05},
                },
                {"size": 64, "epochs": 2, "lr": {"loggrid": [2e-4, 4e-3, 5], "ratio": 0.1}},
            ],
            "once": [
                {"size": 32, "epochs": 3, "lr": {"loggrid": [5e-4, 8e-3, 5], "ratio": 0.05}},
                {"size": 64, "epochs": 4, "lr": {"loguniform": [2e-4, 4e-3]}},
            ],
        }
    },
}
COSTS = {GIVEN: (0.15, 0.25, 0.6), "same": (0.15, 0.25, 0.6), "once": (0.25, 1.2)}
OBJECTIVE = {"key": "f2", "name": "F2", "higher_is_better": True}


class Maker:
    """A search in `<storage>/<name>`, to which trials are added."""

    def __init__(self, storage: Path, name: str = "calm", space: dict | None = None, **search):
        self.storage, self.path = storage, storage / name
        self.path.mkdir(parents=True)
        self.given = Recipe.model_validate(
            {"stages": STAGES, "dataset": str(storage / "tiles"), "storage": str(storage)}
        )
        content = {
            "name": name,
            "objective": OBJECTIVE,
            "num_samples": 24,
            "space": SPACE if space is None else space,
            "recipe": self.given.model_dump(mode="json"),
        }
        content |= search
        (self.path / "search.yaml").write_text(yaml.safe_dump(content))
        self.space = space_file.read(content["space"], self.given)
        self.table = Table(str(self.path))
        self.trained, self.drawn = {}, set()
        self.rng = np.random.default_rng(7)

    def trial(self, kind=Kind.DRAWN, schedule=None, values=None, seed=None, rerun_of=None):
        """Adds an open trial; without values it is drawn."""
        if kind is Kind.DRAWN and values is None:
            draw = self.fresh_draw()
            schedule, values = draw.schedule, dict(draw.values)
        values = values or {}
        costs = COSTS.get(schedule or GIVEN, COSTS[GIVEN])
        found = Trial(
            number=len(self.table.trials),
            kind=kind,
            schedule=schedule,
            values=values,
            coordinates=None,
            keys=self.keys(schedule or GIVEN, values, len(costs), seed),
            costs=costs,
            names=tuple(f"stage-{n}" for n in range(1, len(costs) + 1)),
            seed=seed,
            rerun_of=rerun_of,
        )
        self.table.trials.append(found)
        return found

    def fresh_draw(self):
        """As a real search, it draws no chain twice."""
        while True:
            draw = self.space.draw(self.rng)
            if draw.text not in self.drawn:
                self.drawn.add(draw.text)
                return draw

    def keys(self, schedule, values, count, seed):
        """Chains that begin alike share keys."""
        shared = {path: value for path, value in values.items() if not path.startswith("stages.")}
        text, found = json.dumps([schedule, shared, seed]), []
        for stage in range(1, count + 1):
            own = {
                path: value for path, value in values.items() if path.startswith(f"stages.{stage}.")
            }
            text = hashlib.sha256((text + json.dumps(own, default=str)).encode()).hexdigest()[:20]
            found.append(text)
        return tuple(found)

    def stage(self, trial, score, seconds=30.0, heard=True):
        """Ends the next stage of a trial with a score, or with None where it diverged; one that was trained is shared."""
        key, number = trial.keys[len(trial.parts)], len(trial.parts) + 1
        fresh = key not in self.trained
        if fresh:
            self.trained[key] = (score, seconds)
            self.history(trial, key, number, score)
            if heard:
                self.table.heard.append(Heard(trial.number, number, score or 0.0))
        score, seconds = self.trained[key]
        trial.parts.append(Part(score, seconds, trained=fresh))
        if score is None:
            trial.state = State.DIVERGED
            trial.reason = "the loss is nan"
        elif len(trial.parts) == len(trial.keys):
            trial.state = State.COMPLETE

    def history(self, trial, key, number, score):
        stage = self.space.recipe(Draw(trial.schedule or GIVEN, trial.values)).stage(number)
        epochs = stage.epochs
        lines = [
            "stage,size,epoch,lr,train_loss,valid_loss,accuracy,f2,f2_best,images_per_s,seconds"
        ]
        for epoch in range(1, epochs + 1):
            value = (score or 0.1) - 0.03 * (epochs - epoch)
            lines.append(
                f"{number},{stage.size},{epoch},0.001,0.3,0.2,0.9,{value},{value},100.0,15.0"
            )
        folder = self.storage / "stages" / key
        folder.mkdir(parents=True)
        (folder / "history.csv").write_text("\n".join(lines) + "\n")

    def whole(self, trial, *scores, **how):
        """Ends a trial with these scores of its stages."""
        for score in scores:
            self.stage(trial, score, **how)
        return trial

    def stop(self, trial, mean=0.9):
        trial.state = State.STOPPED
        trial.verdicts.append(Verdict(len(trial.parts), mean, 0.004, 0.93, True, 9))

    def fail(self, trial, reason, state=State.FAILED):
        trial.state, trial.reason = state, reason

    def model(self, gain=0.0004, noise=0.0015):
        """Writes model.json with the levels of each drawn field."""
        fields = []
        drawn = [*self.space.shared, *self.space.schedules[0].fields]
        for number, field in enumerate(drawn):
            levels = []
            for level in range(5):
                mean = 0.93 - 0.002 * (number + 1) * abs(level - 2) / 2
                levels.append({"label": f"{0.001 * 2**level:g}", "mean": mean, "sd": 0.0015})
            fields.append({"path": field.path, "levels": levels})
        (self.path / "model.json").write_text(
            json.dumps({"fields": fields, "promise": {"gain": gain, "noise": noise}})
        )

    def finals(self, winner, rows, **more):
        """Writes finals.json: for each row (number, score, difference with its ends or None, verdict)."""
        standings = []
        for number, score, difference, verdict in rows:
            found = None
            if difference is not None:
                found = dict(zip(("value", "low", "high"), difference, strict=True))
            standings.append(
                {
                    "number": number,
                    "score": score,
                    "reruns": 2,
                    "difference": found,
                    "verdict": verdict,
                    "out": None,
                }
            )
        content = {"winner": winner, "standings": standings} | more
        (self.path / "finals.json").write_text(json.dumps(content))

    def save(self):
        self.table.seconds = 1234.0
        self.table.save()
        return str(self.path)


def ended(storage: Path, drawn: int = 10, name: str = "calm") -> Maker:
    """A search of the given recipe and `drawn` trials, some stopped, diverged and failed, with finalists."""
    made = Maker(storage, name, num_samples=drawn + 1)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.927)
    for number in range(drawn):
        random_trial(made, number)
    best = sorted(
        (trial for trial in made.table.trials if trial.score is not None),
        key=lambda trial: -trial.score,
    )[:3]
    given = made.table.trials[0]
    finalists = [given, *[trial for trial in best if trial is not given]]
    for seed in (43, 44):
        for trial in finalists:
            rerun = made.trial(Kind.RERUN, trial.schedule, trial.values, seed, trial.number)
            last = trial.score + made.rng.normal(-0.001, 0.001)
            made.whole(rerun, *[0.86, 0.9][: len(rerun.keys) - 1], last, heard=False)
    made.model()
    decide(made, finalists)
    return made


def decide(made: Maker, finalists: list[Trial], half: float = 0.0025) -> None:
    """Writes finals.json from the reruns; each interval reaches `half` to both sides."""
    means = {
        trial.number: np.mean([t.score for t in made.table.trials if t.rerun_of == trial.number])
        for trial in finalists
    }
    given, winner, reason = finalists[0].number, finalists[0].number, "no finalist is better"
    rows = [(given, means[given], None, None)]
    for trial in finalists[1:]:
        gain = means[trial.number] - means[given]
        verdict = "better" if gain > half else "equal"
        rows.append((trial.number, means[trial.number], (gain, gain - half, gain + half), verdict))
        if verdict == "better" and winner == given:
            winner = trial.number
            reason = f"trial {winner} is better than the given recipe beyond the noise"
    made.finals(
        winner,
        rows,
        reason=reason,
        covers="the intervals cover seeds and tiles",
        score=means[winner] - 0.0004,
    )


def random_trial(made: Maker, number: int) -> Trial:
    trial = made.trial()
    if number % 13 == 5:
        made.fail(trial, "the checkpoint of its first stage cannot be read: [Errno 5] I/O error")
        return trial
    level = 0.0
    for stage in range(len(trial.keys)):
        rate = trial.values.get(f"stages.{stage + 1}.lr", 0.001)
        rate = rate[-1] if isinstance(rate, list | tuple) else rate
        level -= 0.004 * abs(np.log(rate / 0.003)) ** 1.5
        last = 0.935 - 0.04 * (len(trial.keys) - stage - 1)
        if rate > 0.04 and trial.values.get("train.wd") == 0.03:
            made.stage(trial, None)
            return trial
        made.stage(trial, round(last + level + made.rng.normal(0, 0.002), 5))
        if trial.is_open and level < -0.02 and number % 3:
            made.stop(trial)
            return trial
    return trial
