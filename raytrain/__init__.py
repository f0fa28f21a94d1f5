"""Trains tile classifiers on satellite imagery with Ray.

    import raytrain

    dataset = raytrain.open_dataset("planet")
    run = raytrain.train(raytrain.load_recipe("planet-resnet18", {"dataset": "planet"}))

`raytrain.api` describes what stands here. It is imported at the first use of a name, so that
`import raytrain` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.api import (
        Dataset,
        Evaluation,
        Figure,
        Run,
        Search,
        evaluate,
        images_at,
        images_in,
        ingest,
        load_model,
        load_recipe,
        open_dataset,
        open_run,
        predict,
        resume,
        train,
        tune,
    )

__all__ = [
    "Dataset",
    "Evaluation",
    "Figure",
    "Run",
    "Search",
    "evaluate",
    "images_at",
    "images_in",
    "ingest",
    "load_model",
    "load_recipe",
    "open_dataset",
    "open_run",
    "predict",
    "resume",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Called for a name that is not loaded yet."""
    if name not in __all__:
        raise AttributeError(f"module 'raytrain' has no attribute '{name}'")
    from raytrain import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """For completion in a notebook."""
    return sorted({*globals(), *__all__})
