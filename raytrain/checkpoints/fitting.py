"""Whether a checkpoint fits a dataset and a network, and its classes in another order."""

from __future__ import annotations

from dataclasses import replace

from raytrain.checkpoints.reading import Checkpoint
from raytrain.errors import ConfigError


def remapped(checkpoint: Checkpoint, classes: list[str]) -> Checkpoint:
    """The same checkpoint for its classes in another order: the rows of the head's last layer change places.

    Other classes are left to `check_fits` to refuse.
    """
    theirs = checkpoint.meta["classes"]
    if theirs == classes or sorted(theirs) != sorted(classes):
        return checkpoint
    rows = tuple(theirs.index(name) for name in classes)
    return replace(checkpoint, meta=checkpoint.meta | {"classes": classes}, rows=rows)


def check_fits(
    checkpoint: Checkpoint, classes: list[str], arch: str, normalize: str | None = None
) -> None:
    """Compares what a checkpoint was made for with what is wanted, before any weight is loaded.

    Raises:
        ConfigError: other classes, another order of them, another architecture, or other pixels (unless `normalize` is
            None).
    """
    meta = checkpoint.meta
    if meta["classes"] != classes:
        same = sorted(meta["classes"]) == sorted(classes)
        raise ConfigError(
            f"the checkpoint {checkpoint.path} was trained for {_difference(meta['classes'], classes)}",
            "its outputs would be read as other labels",
            "--remap-labels with --init-from puts the rows of its head into the order of the dataset"
            if same
            else "use a checkpoint of the same classes, or start from --model.weights imagenet",
        )
    if meta["arch"] != arch:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} is a {meta['arch']}, the configuration says {arch}",
            "its weights do not fit",
            f"--model.arch {meta['arch']}",
        )
    if normalize is not None and meta["normalize"] != normalize:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} was trained on pixels normalised by {meta['normalize']}, "
            f"the configuration says {normalize}",
            "its weights expect other numbers",
            f"--data.normalize {meta['normalize']}",
        )


def _difference(theirs: list[str], ours: list[str]) -> str:
    if sorted(theirs) == sorted(ours):
        return "the same classes in another order"
    only, lacking = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    parts = [f"{len(theirs)} other classes than the {len(ours)} of this dataset"]
    parts += [f"it alone has {', '.join(only[:3])}"] if only else []
    parts += [f"it lacks {', '.join(lacking[:3])}"] if lacking else []
    return "; ".join(parts)
