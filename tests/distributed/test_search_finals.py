"""The finalists of a search: which run again, and which tiles judge them."""

from types import SimpleNamespace

import numpy as np
import pytest
from handmade import encoded, scene, write_dataset

from raytrain import storage
from raytrain.distributed import search_finals
from raytrain.distributed.search_finals import FILES, Finals
from raytrain.evaluation import predictions
from raytrain.evaluation.objective import is_mean_over_tiles, objective
from raytrain.search.chains import Chain
from raytrain.search.table import Kind, Part, State, Table, Trial

TASK = "multi-label"
NAMES = tuple(f"tile-{number:02}" for number in range(40))
TARGET = (np.arange(80).reshape(40, 2) % 3 == 0).astype(np.uint8)
SEEDS = (43, 44)


def trial(number, kind, score, seed=None, rerun_of=None, cost=1.0):
    found = Trial(
        number=number,
        kind=kind,
        schedule="recipe",
        values={},
        coordinates=((), ((0.0,),)),
        keys=(f"key-{number}",),
        costs=(cost,),
        names=("stage-1-32",),
        seed=seed,
        rerun_of=rerun_of,
    )
    found.parts.append(Part(score, 1.0, True))
    found.close(State.COMPLETE)
    return found


class Best:
    """An advisor that names trials by their keys."""

    def __init__(self, *keys):
        self.keys = keys

    def finalists(self, count):
        return [Chain("recipe", (), ((),), (key,), (1.0,)) for key in self.keys[:count]]


def written(root, key, sharpness, part="valid"):
    """Predictions that are right, and the surer the sharper, of a stage. Seeds differ little."""
    rng = np.random.default_rng(0)
    sharpness += 0.01 * int(key.rpartition("-")[2])
    logits = sharpness * (2.0 * TARGET - 1) + rng.normal(size=TARGET.shape)
    found = predictions.Predictions(
        NAMES, logits.astype(np.float32), TARGET, ("a", "b"), {"task": TASK}
    )
    predictions.write(storage.join(str(root), "stages", key, FILES[part]), found)


@pytest.fixture
def dataset():
    return SimpleNamespace(task=TASK, path="nowhere")


def finals_of(root, dataset, *keys, score=None):
    found = score or objective(None, TASK)
    return Finals(Best(*keys), str(root), found, dataset, SEEDS)


def test_the_best_trials_and_the_given_recipe_run_again_with_the_same_seeds(tmp_path, dataset):
    table = Table(str(tmp_path), [trial(0, Kind.GIVEN, 0.7), trial(1, Kind.DRAWN, 0.8)])
    finals = finals_of(tmp_path, dataset, "key-1")
    assert {finalist.number for finalist in finals.finalists(table)} == {0, 1}
    wanted = finals.wanted(table)
    assert wanted[:2] == [(1, 43), (0, 43)] and (0, 44) in wanted
    # What runs already is not asked for again.
    table.trials.append(trial(2, Kind.RERUN, 0.75, seed=43, rerun_of=0))
    table.trials[2].state = State.OPEN
    assert (0, 43) not in finals.wanted(table)


def test_a_trial_of_ones_own_outside_the_space_runs_again_although_no_advisor_names_it(
    tmp_path, dataset
):
    table = Table(str(tmp_path), [trial(0, Kind.GIVEN, 0.7), trial(1, Kind.TRIED, 0.8)])
    table.trials[1].coordinates = None
    finals = finals_of(tmp_path, dataset, "key-0")
    assert {finalist.number for finalist in finals.finalists(table)} == {0, 1}
    assert set(finals.wanted(table)[:2]) == {(0, 43), (1, 43)}
    assert "no other trial" not in finals.decide(table).reason


def test_the_given_recipe_alone_needs_no_reruns(tmp_path, dataset):
    table = Table(str(tmp_path), [trial(0, Kind.GIVEN, 0.7)])
    finals = finals_of(tmp_path, dataset, "key-0")
    assert finals.wanted(table) == []
    assert finals.decide(table).winner == 0
    assert finals.decide(Table(str(tmp_path))) is None


def test_a_clearly_better_finalist_wins_by_its_reruns(tmp_path, dataset):
    rows = [trial(0, Kind.GIVEN, 0.7), trial(1, Kind.DRAWN, 0.8, cost=2.0)]
    for seed in SEEDS:
        for of, sharpness in ((0, 0.2), (1, 4.0)):
            number = len(rows)
            rows.append(trial(number, Kind.RERUN, 0.7, seed=seed, rerun_of=of))
            written(tmp_path, f"key-{number}", sharpness)
    table = Table(str(tmp_path), rows)
    verdict = finals_of(tmp_path, dataset, "key-1").decide(table)
    assert verdict.winner == 1 and "better than the given recipe" in verdict.reason
    content = search_finals.content(verdict, "valid")
    assert content["note"] == "The tiles that chose the finalists also judged them."


def test_test_tiles_judge_where_their_labels_are_known(tmp_path, dataset, monkeypatch):
    """On the validation tiles the dear trial is better, on the test tiles it is not."""
    rows = [trial(0, Kind.GIVEN, 0.7), trial(1, Kind.DRAWN, 0.8, cost=2.0)]
    for seed in SEEDS:
        for of, sharpness in ((0, 0.2), (1, 4.0)):
            number = len(rows)
            rows.append(trial(number, Kind.RERUN, 0.7, seed=seed, rerun_of=of))
            written(tmp_path, f"key-{number}", sharpness)

    def predict(checkpoint, out, *, dataset_path, part):
        assert part == "test" and checkpoint.endswith("checkpoints/stage-1-32")
        key = storage.name_of(storage.parent(out))
        written(tmp_path, key, 0.2, "test")

    monkeypatch.setattr(search_finals, "predict", predict)
    table = Table(str(tmp_path), rows)
    finals = finals_of(tmp_path, dataset, "key-1")
    assert finals.decide(table).winner == 1
    finals.judge_by_test_tiles(table)
    verdict = finals.decide(table)
    assert verdict.winner == 0 and finals.part == "test"
    assert "chosen nothing" in search_finals.content(verdict, finals.part)["note"]


def test_test_tiles_without_labels_judge_nothing(tmp_path):
    tiles = {f"t{n}": (encoded(scene(n)), "a" if n < 6 else None) for n in range(8)}
    parts = ["train"] * 3 + ["valid"] * 3 + ["test"] * 2
    found = write_dataset(tmp_path, tiles, ["a", "b"], {"random": parts})
    assert not search_finals.has_known_test_tiles(found, "random")


def test_objectives_by_name():
    assert objective(None, TASK).key == "global"
    assert objective("valid_loss", TASK).higher_is_better is False
    assert objective("mine", TASK, ["mine"]).key == "mine"
    assert is_mean_over_tiles(objective("f2", TASK), TASK)
    assert not is_mean_over_tiles(objective("valid_loss", TASK), TASK)
    assert objective(None, "single-label").key == "accuracy"
    with pytest.raises(Exception, match="Did you mean"):
        objective("globl", TASK)
