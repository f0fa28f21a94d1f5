"""Metrics of the user's own: functions on (probabilities, targets) as NumPy arrays.

A recipe names them as `module:function`; from Python they may be any callables. They change nothing
in training: they get copies, and one that fails gives NaN and a warning. Imports neither torch nor
ray.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping

from raytrain import registry, storage
from raytrain.errors import ConfigError
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions

logger = logging.getLogger(__name__)

# Probabilities float64 (N, K) and targets uint8 (N, K) to a number.
Metric = Callable[[Array, Array], float]
# Columns of history.csv that every task has.
TAKEN = (
    *("stage", "size", "epoch", "lr", "train_loss", "valid_loss", "images_per_s", "seconds"),
    *("checkpoint", "stopped"),
)


def combined(names: Iterable[str], functions: Iterable[Metric], task: str) -> dict[str, Metric]:
    """Imports the functions that a recipe names, and adds those that were given in Python.

    Modules are also looked for in the working directory.

    Args:
        names: of the form module:function.
        functions: given in Python.
        task: of the dataset; the names of its own scores are taken.

    Returns:
        The functions by their own name, which is their column in history.csv.

    Raises:
        ConfigError: there is no such function, or a name cannot be a column or is taken.
    """
    module = registry.evaluation(task)
    taken = {*TAKEN, *module.METRICS, module.SCORE.best_key}
    found: dict[str, Metric] = {}
    for function in [*map(_imported, names), *functions]:
        name = _name_of(function)
        if name in taken:
            raise ConfigError(
                f"a metric is called {name}, and so is another column of history.csv",
                "its values stand in a column of that file, named after its function",
                "rename the function",
            )
        taken.add(name)
        found[name] = function
    return found


def _name_of(function: Metric) -> str:
    name = str(getattr(function, "__name__", ""))
    if name.isidentifier():
        return name
    raise ConfigError(
        f"the metric {function!r} has no name that can be a column of history.csv",
        "its values stand in a column that is named after its function",
        "define it with def, and give that function",
    )


def values(metrics: Mapping[str, Metric], probabilities: Array, target: Array) -> dict[str, float]:
    """Computes the metrics. One that fails, or gives no number, is NaN, with a warning.

    Args:
        metrics: functions by name.
        probabilities: float64 (N, K).
        target: uint8 (N, K).
    """
    found = {}
    for name, function in metrics.items():
        try:
            # Copies: a function that changes its arguments must not reach the predictions.
            found[name] = float(function(probabilities.copy(), target.copy()))
        except Exception as error:  # whatever the user's code raises
            logger.warning(
                f"the metric {name} failed and is nan in this epoch: "
                f"{type(error).__name__}: {error}"
            )
            found[name] = math.nan
    return found


def _imported(name: str) -> Metric:
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name.isidentifier():
        raise ConfigError(
            f'metrics has "{name}", which is not module:function',
            "a metric is a function of a module that can be imported",
            "metrics: [my_metrics:recall]",
        )
    # The console script has its own folder first on the path, not the user's.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"metrics has {name}, and {module_name} cannot be imported: "
            f"{type(error).__name__}: {error}",
            "its values would be missing in every epoch",
            f"python -c 'import {module_name}' shows why; modules are also looked for in {here}",
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"metrics has {name}, and {module_name} has no function {function_name}",
            "its values would be missing in every epoch",
            f"correct the name; {module.__file__} was imported",
        )
    metric: Metric = function
    return metric


def add(metrics: Mapping[str, Metric], predictions: Predictions, out: str) -> dict[str, float]:
    """Computes metrics of judged predictions, and adds them to metrics.json as `own`.

    Args:
        metrics: functions by name.
        predictions: with targets.
        out: directory of metrics.json.

    Returns:
        The values by name.
    """
    if not metrics:
        return {}
    judged = predictions.judged()
    assert judged.target is not None  # the caller has judged them
    found = values(metrics, judged.probability, judged.target)
    path = storage.join(out, "metrics.json")
    # JSON has no NaN.
    own = {name: None if math.isnan(value) else value for name, value in found.items()}
    storage.write_json(path, storage.read_json(path) | {"own": own})
    return found
