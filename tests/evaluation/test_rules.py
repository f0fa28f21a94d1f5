import json
from dataclasses import replace

import numpy as np
import pytest
from worlds import CLASSES, some

from raytrain.cli.main import run_command
from raytrain.data.splits import natural_order
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import judgement, rule_files, rules
from raytrain.evaluation.conditions import Conditions
from raytrain.evaluation.predictions import write
from raytrain.evaluation.rules import Exclusive
from raytrain.evaluation.tasks import multi_label


@pytest.mark.parametrize("rule", rules.RULES)
def test_the_recommended_rule_is_read_in_class_order(tmp_path, rule):
    p = some()
    found = replace(judgement.judge(p), recommended=rule)
    judgement.write(found, str(tmp_path))
    order = [3, 1, 0, 2, 5, 4]
    classes = tuple(CLASSES[k] for k in order)
    chosen = rule_files.read(str(tmp_path / "thresholds.json"), classes)
    expected = found.fitted[rule].labels(p.logits)
    assert (chosen.decision.labels(p.logits[:, order]) == expected[:, order]).all()
    assert chosen.name == rule and "recommends" in chosen.sentence


def test_a_named_rule_comes_before_the_recommended_one(tmp_path):
    p = some()
    found = replace(judgement.judge(p), recommended="global")
    judgement.write(found, str(tmp_path))
    path = str(tmp_path / "thresholds.json")
    chosen = multi_label.decision(path, "per-class", CLASSES)
    assert chosen.decision.cuts.tolist() == found.fitted["per_class"].cuts.tolist()
    assert chosen.sentence.endswith("as --rule asks")
    with pytest.raises(ConfigError, match="has no rule shrunk\\+exactly-one"):
        multi_label.decision(path, "shrunk+exactly-one", CLASSES)
    with pytest.raises(ConfigError, match=r"there is no such decision rule.*expected"):
        multi_label.decision(path, "expectd", CLASSES)


def test_a_group_goes_through_the_file(tmp_path):
    p = some()
    exclusive = Exclusive(("clear", "haze"), ("haze",))
    found = judgement.judge(p, Conditions(exclusive=exclusive))
    judgement.write(found, str(tmp_path))
    chosen = multi_label.decision(
        str(tmp_path / "thresholds.json"), "expected+exactly-one", CLASSES
    )
    expected = found.fitted["expected+exactly-one"].labels(p.logits)
    assert (chosen.decision.labels(p.logits) == expected).all()
    assert "exactly one" in chosen.sentence


def test_the_command_takes_a_rule_and_says_so(tmp_path, capsys):
    p = some(60)
    write(str(tmp_path / "p.parquet"), p)
    found = judgement.judge(p)
    judgement.write(found, str(tmp_path))
    words = ["submission", str(tmp_path / "p.parquet"), "--out", str(tmp_path / "s.csv")]
    given = [*words, "--thresholds", str(tmp_path / "thresholds.json"), "--rule", "per-class"]
    assert run_command(given) == 0
    assert "labels are decided by: one per label (" in capsys.readouterr().out
    rows = (tmp_path / "s.csv").read_text().splitlines()[1:]
    predicted = found.fitted["per_class"].labels(p.logits)
    for line, labels, logits in zip(
        rows, predicted[natural_order(p.names)], p.logits[natural_order(p.names)], strict=True
    ):
        chosen = np.array(CLASSES)[labels] if labels.any() else [CLASSES[logits.argmax()]]
        assert line.split(",")[1] == " ".join(chosen)
    assert run_command([*words, "--rule", "global"]) == 2
    assert "--rule global without --thresholds" in capsys.readouterr().err


def test_without_a_file_labels_are_cut_at_02():
    p = some()
    for rule, why in ((None, "as no --thresholds is given"), ("default", "as --rule asks")):
        chosen = multi_label.decision(None, rule, CLASSES)
        assert (chosen.decision.labels(p.logits) == (p.probability > 0.2)).all()
        assert chosen.sentence == f"labels are decided by: 0.2 for every label (0.20), {why}"
    with pytest.raises(ConfigError, match="--rule expected without --thresholds"):
        multi_label.decision(None, "expected", CLASSES)


def test_files_of_earlier_versions_still_work(tmp_path):
    path = tmp_path / "thresholds.json"
    own = dict(zip(CLASSES, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    old = {"default": 0.2, "global": 0.17, "per_class": own, "recommended": "global"}
    path.write_text(json.dumps(old))
    assert rule_files.read(str(path), CLASSES).decision.cuts.tolist() == [0.17] * 6
    assert rule_files.read(str(path), CLASSES, "per_class").decision.cuts.tolist() == list(
        own.values()
    )
    with pytest.raises(ConfigError, match="has no rule expected"):
        rule_files.read(str(path), CLASSES, "expected")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no thresholds file"),
        ("{", "not a thresholds file"),
        ("[0.2]", "not a thresholds file"),
        ('{"per_class": {"a": 0.1, "b": 0.1}}', "not a thresholds file"),
        ('{"recommended": "best", "per_class": {"a": 0.1, "b": 0.1}}', "not a thresholds file"),
        (
            '{"recommended": "per_class", "per_class": {"a": null, "b": 0.1}}',
            "not a thresholds file",
        ),
        (
            '{"recommended": "expected", "expected": {"temperature": 0}, "per_class": {"a": 0.1, "b": 0.1}}',
            "not a thresholds file",
        ),
        (
            '{"recommended": "default+exactly-one", "default": 0.2, "per_class": {"a": 0.1, "b": 0.1}}',
            "not a thresholds file",
        ),
        ('{"recommended": "per_class", "per_class": {"a": 0.1}}', '"b" is missing'),
        ('{"recommended": "default", "default": 0.2, "per_class": {"a": 0.1}}', '"b" is missing'),
        (
            '{"recommended": "per_class", "per_class": {"a": 0.1, "b": 0.1, "c": 0.1}}',
            '"c" is unknown',
        ),
        ('{"recommended": "per_class", "per_class": {"a": 0.1, "b": 7}}', "outside 0 to 1"),
        ('{"recommended": "per_class", "per_class": {"a": 0.1, "b": NaN}}', "outside 0 to 1"),
        (
            '{"recommended": "global", "global": 2, "per_class": {"a": 0.1, "b": 0.1}}',
            "outside 0 to 1",
        ),
    ],
)
def test_a_thresholds_file_that_cannot_be_used_is_a_data_error(tmp_path, content, sentence):
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        rule_files.read(str(path), ("a", "b"))


def test_the_most_probable_label_of_a_group_is_kept_and_a_lone_one_stands_alone():
    classes = ("clear", "cloudy", "road")
    exclusive = Exclusive(("clear", "cloudy"), ("cloudy",))
    logits = np.array([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [-9.0, -8.0, 1.0]])
    decided = np.ones((3, 3), bool)
    found = exclusive.apply(decided, logits, classes)
    assert found.tolist() == [[True, False, True], [False, True, False], [False, True, False]]
    assert decided.all()  # what was given stays


@pytest.mark.parametrize(
    ("exclusive", "sentence"),
    [
        (Exclusive(("clear",)), "names fewer than two labels"),
        (Exclusive(("clear", "sky")), '--exactly-one names "sky", which is no label'),
        (
            Exclusive(("clear", "haze"), ("water",)),
            '--alone names "water", which is not in --exactly-one',
        ),
    ],
)
def test_a_group_that_cannot_be_is_refused(exclusive, sentence):
    with pytest.raises(ConfigError, match=sentence):
        exclusive.check(CLASSES)
