"""Writes checkpoints, so that the old or the new one is complete at every moment.

Nothing else writes checkpoints.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raytrain import storage
from raytrain.checkpoints.layout import KEPT_STEPS, MANIFEST, STEP, step_name
from raytrain.errors import DivergedError, masked

META = "meta.json"
TRAIN_STATE = "train_state.pt"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state of training in host memory. Training that continues does not change it.

    Attributes:
        meta: content of meta.json.
        weights: parameters and buffers by name.
        averaged: averaged parameters and buffers by name; None if the recipe averages none.
        train_state: what training needs to resume within a stage; None at the end of a stage.
    """

    meta: dict[str, Any]
    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None = None
    train_state: dict[str, Any] | None = None

    @property
    def finished(self) -> Snapshot:
        """The same snapshot without the state that only resuming within a stage needs."""
        return replace(self, train_state=None)


def snapshot(
    model: nn.Module,
    meta: dict[str, Any],
    train_state: dict[str, Any] | None = None,
    averaged: nn.Module | None = None,
) -> Snapshot:
    """Copies the state of training into host memory. Training waits for this part of a save only.

    Args:
        model: the network.
        meta: content of meta.json.
        train_state: what training needs to resume within a stage.
        averaged: the network with averaged weights.
    """
    weights = _weights(model)
    averaged_weights = None
    if averaged is not None:
        averaged_weights = _weights(averaged)
    return Snapshot(meta, weights, averaged_weights, _copied(train_state))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies parameters and buffers."""
    weights = {}
    for name, value in model.state_dict().items():
        # In the order of memory that the file has: convolutions train in channels-last order, and
        # the saver's thread must not reorder them (see `write`).
        value = value.detach()
        weights[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return weights


def _copied(value: Any) -> Any:
    """Copies nested dictionaries, lists and tuples, and the tensors in them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def save(
    path: str,
    model: nn.Module,
    meta: dict[str, Any],
    train_state: dict[str, Any] | None = None,
    averaged: nn.Module | None = None,
) -> None:
    """Copies the state of training and writes it as a checkpoint; see `snapshot` and `write`."""
    write(path, snapshot(model, meta, train_state, averaged))


def write(path: str, state: Snapshot, twin: str | None = None) -> None:
    """Writes a checkpoint without a second copy of the state in memory.

    At every moment, the old checkpoint or the new one is complete. Locally, the new one is written
    into a temporary directory, which is then renamed. The old one is kept as `<path>.old` until the
    new one is in place. In an object store, the old manifest is removed first and the new one is
    written last, so the old checkpoint is lost meanwhile.

    No torch operation that uses several threads may run here. Each thread that starts such an
    operation keeps a thread pool of its own. When there are more OpenMP threads than CPUs, waiting
    threads sleep instead of spinning, in every later training step: training was 17 % slower from
    the first save on.

    Args:
        path: the checkpoint.
        state: what it holds.
        twin: a checkpoint with the same weights that was just written next to it. Files of equal
            content become hard links.

    Raises:
        DivergedError: a weight is not finite; nothing is written.
        StorageError: it cannot be written; an older checkpoint stays usable.
    """
    _check_finite(path, state)
    if storage.is_uri(path):
        _upload(path, state)
    else:
        _replace_directory(path, state, twin)


def copy(source: str, target: str, facts: dict[str, Any]) -> None:
    """Writes a checkpoint with the weights of another one and other facts about them.

    At every moment, the old checkpoint at `target` or the new one is complete, as in `write`. On
    one local file system, the weights become hard links. The state to resume within a stage is left
    out.

    Args:
        source: a checkpoint.
        target: path of the new one.
        facts: content of its meta.json.

    Raises:
        StorageError: it cannot be written.
    """
    manifest = storage.read_json(storage.join(source, MANIFEST))
    kept = [name for name in manifest if name not in (TRAIN_STATE, META)]
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        if storage.is_uri(target):
            partial_path = folder
        else:
            partial_path = f"{target}.partial"
            # Left by a copy that was killed.
            storage.remove(partial_path)
            storage.make_dir(partial_path)
        directory = Path(storage.absolute(partial_path))
        copied = {}
        for name in kept:
            _link_or_copy(source, directory, name)
            copied[name] = manifest[name]
        text = masked(json.dumps(facts, indent=1))
        copied[META] = storage.written(directory / META, partial(_write_text, text))
        manifest_text = json.dumps(copied, indent=1)
        storage.written(directory / MANIFEST, partial(_write_text, manifest_text))
        if storage.is_uri(target):
            _upload_files(directory, target, list(copied))
        else:
            storage.sync_directory(directory)
            _move_into_place(target)


def _link_or_copy(source: str, directory: Path, name: str) -> None:
    """Puts a file of a checkpoint into a local directory."""
    path = storage.join(source, name)
    if not storage.is_uri(source):
        original = Path(storage.absolute(path))
        if storage.linked(original, directory / name):
            return
    content = storage.read_bytes(path)
    storage.written(directory / name, lambda target: target.write_bytes(content))


def _upload(path: str, state: Snapshot) -> None:
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        names = _write_files(Path(folder), state, None)
        _upload_files(Path(folder), path, names)


def _upload_files(folder: Path, path: str, names: Sequence[str]) -> None:
    # Without a manifest there is no checkpoint, so no reader sees a mixture of old and new.
    storage.remove(storage.join(path, MANIFEST))
    for name in [*names, MANIFEST]:
        storage.upload_file(folder / name, storage.join(path, name))


def _replace_directory(path: str, state: Snapshot, twin: str | None) -> None:
    partial_path = f"{path}.partial"
    twin_folder = None
    if twin is not None:
        twin_folder = Path(storage.absolute(twin))
    # Left by a save that was killed.
    storage.remove(partial_path)
    folder = Path(storage.absolute(partial_path))
    try:
        storage.make_dir(partial_path)
        _write_files(folder, state, twin_folder)
    except BaseException:
        storage.remove(partial_path)
        raise
    _move_into_place(path)


def _move_into_place(path: str) -> None:
    """Renames `<path>.partial` to a checkpoint's path."""
    old_path = f"{path}.old"
    if storage.exists(path):
        storage.remove(old_path)
        storage.move_directory(path, old_path)
    storage.move_directory(f"{path}.partial", path)
    storage.remove(old_path)


def _write_files(folder: Path, state: Snapshot, twin: Path | None) -> list[str]:
    """Writes the files of a checkpoint and its manifest into a local directory.

    Returns:
        The names of the files, without the manifest.
    """
    known: dict[str, str] = {}
    if twin is not None:
        known = storage.read_json(str(twin / MANIFEST))
    manifest = {}
    for name, write_file in _writers(state).items():
        # The state of training is different in each checkpoint.
        shared = name != TRAIN_STATE and name in known
        if twin is not None and shared and storage.linked(twin / name, folder / name):
            manifest[name] = known[name]
        else:
            manifest[name] = storage.written(folder / name, write_file)
    text = json.dumps(manifest, indent=1)
    storage.written(folder / MANIFEST, partial(_write_text, text))
    storage.sync_directory(folder)
    return list(manifest)


def _writers(state: Snapshot) -> dict[str, Callable[[Path], Any]]:
    """Returns, by the name of each file of a checkpoint, the function that writes it to a path."""
    # URIs in the recipe may hold keys, which are never written.
    meta = masked(json.dumps(state.meta, indent=1))
    writers: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": partial(_write_tensors, state.weights),
        META: partial(_write_text, meta),
    }
    if state.averaged is not None:
        writers["ema.safetensors"] = partial(_write_tensors, state.averaged)
    if state.train_state is not None:
        writers[TRAIN_STATE] = partial(_write_train_state, state.train_state)
    return writers


def _write_text(text: str, path: Path) -> None:
    path.write_bytes(text.encode())


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # Imported here because the benchmark trains on machines that lack this package, and writes no
    # weights.
    import safetensors.torch

    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:
        # The package reports a full disk in this way.
        raise OSError(str(error)) from None


def _write_train_state(train_state: dict[str, Any], path: Path) -> None:
    # Into an open file: otherwise torch puts the name of the path into the archive, and equal
    # states would give different bytes.
    with path.open("wb") as file:
        torch.save(train_state, file)


def thin(directory: str, step: int, keep: int = KEPT_STEPS) -> None:
    """Removes checkpoints within epochs, except the newest ones up to a step.

    Checkpoints of later steps are removed too. The run has come to this step from an earlier
    checkpoint, so the later ones were damaged.

    Args:
        directory: the `checkpoints` folder of the run.
        step: number of the step that the run has come to.
        keep: how many checkpoints to keep.
    """
    names = []
    for name in storage.names(directory, directories=True):
        if name.startswith(STEP):
            names.append(name)
    earlier = [name for name in names if name <= step_name(step)]
    # The slice [-0:] would keep all of them.
    kept = earlier[-keep:] if keep else []
    for name in set(names) - set(kept):
        storage.remove(storage.join(directory, name))


def _check_finite(path: str, state: Snapshot) -> None:
    averaged = state.averaged or {}
    for tensors in (state.weights, averaged):
        for name, value in tensors.items():
            # NumPy, because torch would use several threads (see `write`).
            finite = np.isfinite(value.numpy())
            if not finite.all():
                raise DivergedError(
                    f"{name} is not finite, so {path} was not written",
                    "its weights are useless",
                    "lower the peak lr, then start a new run with --init-from the last checkpoint",
                )
