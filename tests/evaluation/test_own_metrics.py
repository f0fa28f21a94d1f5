"""Metrics of the user's own: how they are named and loaded, and that they change nothing."""

import numpy as np
import pytest

from raytrain.errors import ConfigError
from raytrain.evaluation import own_metrics
from raytrain.log import collected


def sure(probabilities, target):
    return (probabilities > 0.9).mean()


def test_functions_are_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_metrics.py").write_text("def half(probabilities, target): return 0.5\n")
    monkeypatch.chdir(tmp_path)
    found = own_metrics.combined(["my_own_metrics:half"], [sure], "multi-label")
    probabilities, target = np.array([[0.95, 0.1]]), np.array([[1, 0]], np.uint8)
    assert own_metrics.values(found, probabilities, target) == {"half": 0.5, "sure": 0.5}


@pytest.mark.parametrize(
    ("names", "functions", "words"),
    [
        (["half"], [], "is not module:function"),
        (["no_such_module_here:half"], [], "cannot be imported: ModuleNotFoundError"),
        (["math:no_such"], [], "has no function no_such"),
        ([], [sure, sure], "is called sure, and so is another column"),
        ([], [lambda p, t: 0.0], "has no name that can be a column"),
    ],
)
def test_what_cannot_be_a_column_is_refused(names, functions, words):
    with pytest.raises(ConfigError, match=words) as error:
        own_metrics.combined(names, functions, "multi-label")
    assert error.value.fix


@pytest.mark.parametrize(("task", "taken"), [("multi-label", "f2"), ("single-label", "top5_best")])
def test_the_names_of_the_tasks_own_scores_are_taken(task, taken):
    def metric(probabilities, target):
        return 1.0

    metric.__name__ = taken
    if task == "single-label":
        metric.__name__ = "accuracy_best"
    with pytest.raises(ConfigError, match="so is another column"):
        own_metrics.combined([], [metric], task)


def test_a_metric_that_fails_or_changes_its_arguments_harms_nothing():
    def broken(probabilities, target):
        raise ZeroDivisionError("no tile")

    def greedy(probabilities, target):
        probabilities[:] = 0
        target[:] = 0
        return 1

    probabilities, target = np.full((3, 2), 0.5), np.ones((3, 2), np.uint8)
    with collected() as messages:
        found = own_metrics.values({"broken": broken, "greedy": greedy}, probabilities, target)
    assert np.isnan(found["broken"]) and found["greedy"] == 1
    assert (probabilities == 0.5).all() and (target == 1).all()
    assert "the metric broken failed and is nan in this epoch: ZeroDivisionError" in messages[0]
