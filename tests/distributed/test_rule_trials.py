"""Decision rules judged over a predictions file, one Tune trial per rule."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from worlds import calibrated, some

from raytrain.cli.main import run_command
from raytrain.distributed import rule_trials
from raytrain.distributed.rule_trials import Given, search_rules, trial
from raytrain.errors import ConfigError, DataError, RaytrainError
from raytrain.evaluation import halvings, judgement, predictions, rule_search, rules
from raytrain.worker import Worker


@pytest.fixture
def without_ray(monkeypatch):
    """Trials run one after the other in this process."""

    def run_trials(trials):
        for rule in trials.space["rule"]["grid_search"]:
            trials.function({"rule": rule}, Worker(), trials.given)

    monkeypatch.setattr(rule_trials, "run_trials", run_trials)


def written(p, folder):
    path = str(folder / "p.parquet")
    predictions.write(path, p)
    return path


def test_a_trial_judges_one_rule_and_writes_the_score_of_each_tile(tmp_path):
    p = some(rows=200)
    result = trial({"rule": "global"}, Worker(), Given(p, 3, str(tmp_path)))
    per_tile = np.load(tmp_path / "trials" / "global.npy")
    assert per_tile.tolist() == halvings.tile_scores(p, "global", 3).tolist()
    assert result == {"f2": per_tile.mean()}


@pytest.mark.usefixtures("without_ray")
def test_the_file_recommends_what_the_table_says(tmp_path):
    # All logits are shifted by 3, so that one other threshold suits all labels.
    path = written(calibrated(rows=600), tmp_path)
    found = search_rules(path, str(tmp_path), number=2)
    table = pd.read_csv(tmp_path / "trials.csv", index_col="rule")
    assert list(table.index) == list(rules.RULES)
    assert list(table.columns) == [
        *("f2", "low", "high", "gain", "gain_low", "gain_high", "verdict", "recommended")
    ]
    assert table.index[table["recommended"]].tolist() == ["global"]
    assert table["gain_low"]["global"] > 0 and table["verdict"]["global"] == "better"
    assert table["gain"]["global"] == pytest.approx(table["f2"]["global"] - table["f2"]["default"])
    assert table["low"]["global"] < table["f2"]["global"] < table["high"]["global"]
    assert pd.isna(table["gain"]["default"])
    assert json.loads((tmp_path / "thresholds.json").read_text())["recommended"] == "global"
    assert "recommended: one threshold (0.8" in rule_search.table(found)
    assert "in 2 random halvings" in rule_search.table(found)


@pytest.mark.usefixtures("without_ray")
def test_the_file_has_the_rules_of_evaluate(tmp_path):
    p = some(rows=200)
    search_rules(written(p, tmp_path), str(tmp_path / "cuts"), number=1)
    judgement.write(judgement.judge(p), str(tmp_path / "evaluation"))
    cuts, evaluation = (tmp_path / name / "thresholds.json" for name in ("cuts", "evaluation"))
    assert cuts.read_bytes() == evaluation.read_bytes()


@pytest.mark.usefixtures("without_ray")
def test_a_rule_that_fits_more_must_beat_the_simpler_one_beyond_the_noise(tmp_path):
    # Probabilities mean what they say, so 0.2 is near the best for F2.
    p = calibrated(rows=300, shift=0.0)
    found = search_rules(written(p, tmp_path), str(tmp_path), number=2)
    scores = found.compared.scores
    assert scores["expected"].value > scores["default"].value
    assert found.compared.recommended == "default"
    assert "no fitted rule is better by more than the noise" in rule_search.table(found)


@pytest.mark.usefixtures("without_ray")
def test_folds_are_judged_too_and_said(tmp_path):
    p = replace(some(rows=100), fold=np.arange(100, dtype=np.int32) % 5)
    found = search_rules(written(p, tmp_path), str(tmp_path), number=2)
    assert found.folds == 5 and "in 2 random halvings of the 5 folds" in rule_search.table(found)


@pytest.mark.usefixtures("without_ray")
def test_tiles_without_labels_are_left_out(tmp_path):
    p = some(rows=100)
    known = np.arange(100) % 4 > 0
    found = search_rules(written(replace(p, known=known), tmp_path), str(tmp_path), number=1)
    labelled = p.taken(np.flatnonzero(known))
    assert found.tiles == 75
    assert found.compared.scores == judgement.judge(labelled).scores


def test_predictions_that_cannot_be_judged_start_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(rule_trials, "run_trials", lambda trials: pytest.fail("a trial started"))
    unlabelled = written(replace(some(rows=100), target=None), tmp_path)
    with pytest.raises(DataError, match="no targets"):
        search_rules(unlabelled, str(tmp_path))
    single = replace(some(rows=100), meta={"task": "single-label"})
    with pytest.raises(ConfigError, match="has no thresholds"):
        search_rules(written(single, tmp_path), str(tmp_path))


def test_a_failed_trial_is_named_and_nothing_is_recommended(tmp_path, monkeypatch):
    def run_trials(trials):
        for rule in ("default", "global"):
            trials.function({"rule": rule}, Worker(), trials.given)

    monkeypatch.setattr(rule_trials, "run_trials", run_trials)
    with pytest.raises(RaytrainError, match="the trial of the rule expected failed"):
        search_rules(written(some(rows=100), tmp_path), str(tmp_path), number=1)
    assert not (tmp_path / "thresholds.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_printed_next_command_uses_what_was_found(tmp_path, capsys):
    p = calibrated(rows=400)
    path = written(p, tmp_path)
    where = ["--storage", str(tmp_path), "--name", "cuts", "--num-samples", "2"]
    assert run_command(["tune", "--thresholds", path, *where]) == 0
    said = capsys.readouterr()
    cuts = tmp_path / "cuts" / "thresholds.json"
    assert f"next: raytrain submission TEST.parquet --thresholds {cuts}" in said.out
    assert "recommended: one threshold" in said.out
    assert "(5 of 5)" in said.err + said.out
    table = pd.read_csv(tmp_path / "cuts" / "trials.csv", index_col="rule")
    # The same numbers as without Ray, to the last digit.
    assert table["f2"]["shrunk"] == halvings.tile_scores(p, "shrunk", 2).mean()
    answers = {}
    for name, thresholds in (("found", ["--thresholds", str(cuts)]), ("plain", [])):
        out = tmp_path / f"{name}.csv"
        assert run_command(["submission", path, *thresholds, "--out", str(out)]) == 0
        answers[name] = out.read_text()
    assert answers["found"] != answers["plain"]
    before = cuts.read_bytes()
    assert run_command(["tune", "--thresholds", path, *where]) == 2
    assert cuts.read_bytes() == before
    # Nothing was trained, so no command goes on with it.
    assert "next: another --name\n" in capsys.readouterr().err
