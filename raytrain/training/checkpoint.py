"""Checkpoints: written atomically, verified before use, found again after any crash. The only reader and writer.

model.safetensors   parameters and buffers of the network
ema.safetensors     their averages, where the recipe asks for them
train_state.pt      optimiser state, only where training can go on in the middle of a stage
meta.json           what it is: recipe, position, classes, normalisation, dataset and split hash, versions
MANIFEST.json       sha256 of each file, written last; without it there is no checkpoint
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raytrain import storage
from raytrain.errors import ConfigError

MANIFEST = "MANIFEST.json"


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or whose bytes changed; the message says which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified against their hashes."""

    place: str
    meta: dict[str, Any]
    files: dict[str, bytes]

    @property
    def position(self) -> tuple[int, int]:
        """(stage, epochs done in it), both counted from 1 over the whole list of stages."""
        return int(self.meta["stage"]), int(self.meta["epoch"])

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name, on the CPU."""
        return _state(self.files["model.safetensors"])

    def ema_weights(self) -> dict[str, torch.Tensor] | None:
        """Averaged parameters and buffers by name, or None where the recipe averages none."""
        content = self.files.get("ema.safetensors")
        return _state(content) if content is not None else None

    def judged_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the validation judged, for inference: the averaged ones where there are any."""
        return self.ema_weights() or self.weights()

    def train_state(self) -> dict[str, Any] | None:
        """Optimiser state, or None at the end of a stage."""
        if "train_state.pt" not in self.files:
            return None
        state: dict[str, Any] = torch.load(
            io.BytesIO(self.files["train_state.pt"]), map_location="cpu", weights_only=True
        )
        return state


def save(
    place: str,
    model: nn.Module,
    meta: dict[str, Any],
    train_state: dict[str, Any] | None = None,
    averaged: nn.Module | None = None,
) -> None:
    """Writes a checkpoint so that at every moment the old one or the new one is complete.

    Locally: temporary directory, rename, with the old one kept as `<place>.old` until the new one stands. In an object
    store the old manifest goes first and the new one is written last.

    Raises:
        StorageError: it cannot be written; an older checkpoint stays usable.
    """
    files = {"model.safetensors": _tensors(model), "meta.json": json.dumps(meta, indent=1).encode()}
    if averaged is not None:
        files["ema.safetensors"] = _tensors(averaged)
    if train_state is not None:
        buffer = io.BytesIO()
        torch.save(train_state, buffer)
        files["train_state.pt"] = buffer.getvalue()
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    if storage.is_uri(place):
        storage.remove(storage.join(place, MANIFEST))
        _write_files(place, files)
    else:
        _replace_directory(place, files)


# Imported where weights are written or read: the bench trains without either, on machines that lack the package.


def _state(content: bytes) -> dict[str, torch.Tensor]:
    import safetensors.torch

    state: dict[str, torch.Tensor] = safetensors.torch.load(content)
    return state


def _tensors(model: nn.Module) -> bytes:
    import safetensors.torch

    content: bytes = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    return content


def _replace_directory(place: str, files: dict[str, bytes]) -> None:
    partial, old = f"{place}.partial", f"{place}.old"
    storage.remove(partial)
    try:
        _write_files(partial, files)
    except BaseException:
        storage.remove(partial)
        raise
    if storage.exists(place):
        storage.remove(old)
        storage.move_directory(place, old)
    storage.move_directory(partial, place)
    storage.remove(old)


def _write_files(place: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(place, name), content)


def read(place: str) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or its bytes are not those that were written.
    """
    try:
        manifest = storage.read_json(storage.join(place, MANIFEST))
        files = {name: storage.read_bytes(storage.join(place, name)) for name in manifest}
    except (FileNotFoundError, ValueError) as error:
        raise DamagedCheckpoint(f"{place} is incomplete: {error}") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            raise DamagedCheckpoint(
                f"{storage.join(place, name)} is not the file that was written ({len(content)} bytes)"
            )
    return Checkpoint(place, json.loads(files["meta.json"]), files)


def load(place: str) -> Checkpoint:
    """`read` for a checkpoint that a person named.

    Raises:
        ConfigError: it is missing, incomplete or damaged.
    """
    try:
        return read(place)
    except DamagedCheckpoint as error:
        raise ConfigError(
            f"the checkpoint cannot be used: {error}",
            "weights that are not the ones written would train or predict silently wrong",
            "raytrain runs show RUN lists the checkpoints of a run; give another one",
        ) from None


def find_latest(directory: str) -> tuple[Checkpoint | None, list[str]]:
    """The furthest usable checkpoint of a run's `checkpoints` folder.

    Returns:
        The checkpoint (None if there is none), and one sentence for each that was skipped as damaged.
    """
    found, skipped = [], []
    for name in storage.names(directory, directories=True):
        place = storage.join(directory, name)
        if name.endswith(".partial") or not storage.exists(storage.join(place, "meta.json")):
            continue
        try:
            meta = storage.read_json(storage.join(place, "meta.json"))
            # At equal positions the one with optimiser state comes first.
            found.append(((meta["stage"], meta["epoch"]), name.startswith("last"), place))
        except (ValueError, KeyError, FileNotFoundError):
            skipped.append(f"{place} has no readable meta.json")
    for _, _, place in sorted(found, reverse=True):
        try:
            return read(place), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
    return None, skipped


def check_fits(checkpoint: Checkpoint, classes: list[str], arch: str) -> None:
    """Compares what a checkpoint was made for with what is wanted, before any weight is loaded.

    Raises:
        ConfigError: other classes, another order of them, or another architecture.
    """
    meta = checkpoint.meta
    if meta["classes"] != classes:
        raise ConfigError(
            f"the checkpoint {checkpoint.place} was trained for {_difference(meta['classes'], classes)}",
            "its outputs would be read as other labels",
            "use a checkpoint of the same classes, or start from --model.weights imagenet",
        )
    if meta["arch"] != arch:
        raise ConfigError(
            f"the checkpoint {checkpoint.place} is a {meta['arch']}, the configuration says {arch}",
            "its weights do not fit",
            f"--model.arch {meta['arch']}",
        )


def _difference(theirs: list[str], ours: list[str]) -> str:
    if sorted(theirs) == sorted(ours):
        return "the same classes in another order"
    only, lacking = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    parts = [f"{len(theirs)} other classes than the {len(ours)} of this dataset"]
    parts += [f"it alone has {', '.join(only[:3])}"] if only else []
    parts += [f"it lacks {', '.join(lacking[:3])}"] if lacking else []
    return "; ".join(parts)
