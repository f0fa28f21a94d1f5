"""Single label: losses and metrics against reference values, labels against hand-made tables."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import sklearn.utils
import torch
from torch.nn import functional as F

from raytrain.config import Train
from raytrain.data.label_format import LabelFormat
from raytrain.data.sources import images_at
from raytrain.data.targets.single_label import balanced_weights
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.comparison import compare
from raytrain.evaluation.conditions import Conditions
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import Exclusive
from raytrain.evaluation.tasks import single_label as judged
from raytrain.tasks.single_label import batch_loss

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(60, 7))
TRUE = GENERATOR.integers(0, 6, 60)  # the last class has no tile
TARGET = np.eye(7, dtype=np.uint8)[TRUE]
CLASSES = tuple("abcdefg")


def test_the_loss_is_torchs_cross_entropy():
    logits, target = torch.tensor(LOGITS), torch.tensor(TARGET, dtype=torch.float64)
    wanted = F.cross_entropy(logits, torch.tensor(TRUE), reduction="sum")
    torch.testing.assert_close(batch_loss(Train())(logits, target), wanted)
    wanted = F.cross_entropy(logits, torch.tensor(TRUE), reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(batch_loss(Train(label_smoothing=0.1))(logits, target), wanted)
    assert judged.cross_entropy(LOGITS, TARGET) == pytest.approx(
        float(F.cross_entropy(logits, torch.tensor(TRUE))), abs=1e-12
    )


def test_the_loss_of_mixed_tiles_is_the_mixed_loss():
    logits = torch.tensor(LOGITS[:4])
    one, other = torch.tensor(TARGET[:4]).double(), torch.tensor(TARGET[4:8]).double()
    loss = batch_loss(Train())
    mixed = loss(logits, 0.3 * one + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * loss(logits, one) + 0.7 * loss(logits, other))


def test_weights_are_those_of_torch_and_balanced_ones_those_of_sklearn():
    logits, target = torch.tensor(LOGITS), torch.tensor(TARGET, dtype=torch.float64)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7], dtype=torch.float64)
    wanted = F.cross_entropy(logits, torch.tensor(TRUE), weight=weights, reduction="sum")
    torch.testing.assert_close(batch_loss(Train(), weights)(logits, target), wanted)
    found = balanced_weights(TARGET)
    wanted = sklearn.utils.compute_class_weight("balanced", classes=np.arange(6), y=TRUE)
    # It knows 6 classes, and the dataset has 7.
    np.testing.assert_allclose(found[:6], wanted * 6 / 7)
    assert found[6] == 20


def test_metrics_equal_sklearns():
    predicted = LOGITS.argmax(1)
    found = judged.epoch_metrics(LOGITS, TARGET)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(TRUE, predicted)
    assert found["top5"] == sklearn.metrics.top_k_accuracy_score(TRUE, LOGITS, k=5, labels=range(7))
    with pytest.warns(UserWarning, match="not in y_true"):  # sklearn's, of the class without a tile
        wanted = sklearn.metrics.balanced_accuracy_score(TRUE, predicted)
    assert found["balanced_accuracy"] == pytest.approx(wanted, abs=1e-12)
    wanted = sklearn.metrics.confusion_matrix(TRUE, predicted, labels=range(7))
    assert (judged.confusion_matrix(LOGITS, TARGET) == wanted).all()
    table = judged.per_class(wanted, CLASSES)
    scores = sklearn.metrics.precision_recall_fscore_support(
        TRUE, predicted, labels=range(6), zero_division=np.nan
    )
    for column, values in zip(("precision", "recall", "f1", "count"), scores, strict=True):
        np.testing.assert_allclose(table[column][:6], values, atol=1e-12)
    assert np.isnan(table["recall"][6])


def test_constant_logits_are_right_by_chance_only():
    constant = np.zeros((6, 6))
    target = np.eye(6, dtype=np.uint8)
    assert judged.accuracy(constant, target) == 1 / 6
    assert judged.top_accuracy(constant, target) == 5 / 6


def test_the_interval_is_wilsons():
    # Agresti and Coull 1998, "Approximate is better than exact": 9 of 10 give 0.596 to 0.982.
    assert judged.wilson(0.9, 10) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert judged.wilson(1.0, 50)[1] == 1 and judged.wilson(1.0, 50)[0] > 0.92


def test_a_judgement_is_written_and_told(tmp_path):
    found = Predictions(tuple(map(str, range(60))), LOGITS, TARGET, CLASSES)
    judgement = judged.judge(found)
    judged.write(judgement, str(tmp_path))
    confusion = pd.read_csv(tmp_path / "confusion.csv", index_col="true")
    assert list(confusion.columns) == list(CLASSES) and confusion.to_numpy().sum() == 60
    assert f"accuracy of 60 tiles: {judgement.accuracy:.4f}" in judged.table(judgement)
    assert list(judged.answers(found, None)) == [CLASSES[k] for k in LOGITS.argmax(1)]
    with pytest.raises(DataError, match="does not have exactly one label"):
        judged.judge(Predictions(found.names, LOGITS, TARGET * 0, CLASSES))
    for path, rule, flag in (("t.json", None, "--thresholds"), (None, "global", "--rule")):
        with pytest.raises(ConfigError, match=flag):
            judged.decision(path, rule, CLASSES)
    assert judged.decision(None, None, CLASSES) is None


def test_there_are_no_thresholds_to_search(tmp_path):
    from raytrain.distributed.rule_trials import search_rules
    from raytrain.evaluation import predictions

    path = str(tmp_path / "p.parquet")
    names = tuple(map(str, range(60)))
    meta = {"task": "single-label"}
    predictions.write(path, Predictions(names, LOGITS.astype("float32"), TARGET, CLASSES, meta))
    with pytest.raises(ConfigError, match="has no thresholds") as error:
        search_rules(path, str(tmp_path), number=1)
    assert "raytrain evaluate" in error.value.fix


# Labels


def pictures(*names):
    return images_at([f"/nowhere/{name}.jpg" for name in names])


def test_a_cell_is_one_label_with_its_spaces():
    table = pd.DataFrame({"image_name": ["a", "b"], "label": ["tennis court", "sea ice"]})
    tiles = pictures("a", "b").label_from_table(table, task="single-label")
    assert tiles.classes == ["sea ice", "tennis court"]
    assert [list(target) for target in tiles.table["target"]] == [[0, 1], [1, 0]]
    assert tiles.task == tiles.source["task"] == "single-label"
    by_function = pictures("a", "b").label_with(lambda name: f"field {name}", task="single-label")
    assert by_function.classes == ["field a", "field b"]


def test_a_tile_of_several_or_no_labels_is_left_out_with_its_reason():
    table = pd.DataFrame({"image_name": list("abc"), "x": [1, 1, 0], "y": [0, 1, 0]})
    form = LabelFormat(label_columns=("x", "y"))
    tiles = pictures("a", "b", "c").label_from_table(table, form, task="single-label")
    assert list(tiles.table["problem"]) == ["", "several-labels", "no-labels"]
    assert tiles.table["detail"][1].startswith("x, y: ")


@pytest.mark.parametrize("form", [LabelFormat(join_rows=True), LabelFormat(tags_separator=";")])
def test_what_makes_several_labels_of_a_tile_is_refused(form):
    table = pd.DataFrame({"image_name": ["a"], "tags": ["x"]})
    with pytest.raises(ConfigError, match="--task single-label"):
        pictures("a").label_from_table(table, form, task="single-label")


def test_the_interval_over_groups_is_wider_where_the_tiles_of_a_group_are_alike():
    rows = np.repeat(np.arange(20), 10)
    copies = Predictions(
        tuple(f"t{i:03}" for i in range(200)), LOGITS[:20][rows], TARGET[:20][rows], CLASSES
    )
    group_of = {name: str(rows[i]) for i, name in enumerate(copies.names)}
    alone, grouped = judged.judge(copies), judged.judge(copies, Conditions(group_of))
    assert alone.accuracy == grouped.accuracy
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    with pytest.raises(ConfigError, match="--exactly-one a,b for the task single-label"):
        judged.judge(copies, Conditions(exclusive=Exclusive(("a", "b"))))


def test_two_models_are_compared_by_their_accuracy():
    meta = {"task": "single-label"}
    names = tuple(f"t{i:02}" for i in range(60))
    first = Predictions(names, LOGITS, TARGET, CLASSES, meta)
    second = Predictions(names, LOGITS + 9 * TARGET, TARGET, CLASSES, meta)
    found = compare(first, second).scores["accuracy"]
    assert (found.second, found.verdict) == (1.0, "better")
    assert found.first == judged.accuracy(LOGITS, TARGET)
