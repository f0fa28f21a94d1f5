"""Reads checkpoints, verified against their hashes. The only reader."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from raytrain import storage
from raytrain.checkpoints.layout import BEGINNING, BEST, FILES, MANIFEST, Position, goes_on_within
from raytrain.errors import ConfigError


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or whose bytes changed; the message says which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified against their hashes.

    `rows` holds, where the classes are wanted in another order than they were trained in, the row of each in the head.
    """

    path: str
    meta: dict[str, Any]
    files: dict[str, bytes] = field(repr=False)
    rows: tuple[int, ...] | None = None

    @property
    def position(self) -> Position:
        """Where training stood, counted over the whole list of stages."""
        return _position(self.meta)

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name, on the CPU."""
        return self._ordered(self._state("model.safetensors"))

    def ema_weights(self) -> dict[str, torch.Tensor] | None:
        """Averaged parameters and buffers by name, or None where the recipe averages none."""
        return (
            self._ordered(self._state("ema.safetensors"))
            if "ema.safetensors" in self.files
            else None
        )

    def _state(self, name: str) -> dict[str, torch.Tensor]:
        """Tensors of a file, all of them finite."""
        # Imported where weights are written or read: the bench trains without either, on machines that lack the package.
        import safetensors.torch

        try:
            state: dict[str, torch.Tensor] = safetensors.torch.load(self.files[name])
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise self._unusable(
                name, f"holds no plain tensors: {str(error).splitlines()[0]}"
            ) from None
        for key, value in state.items():
            if not bool(value.isfinite().all()):
                raise self._unusable(name, f"holds values that are not finite in {key}")
        return state

    def _unusable(self, name: str, what: str) -> ConfigError:
        return ConfigError(
            f"{storage.join(self.path, name)} {what}",
            "it has the hash in its manifest, so another program wrote it; only plain tensors are loaded, never code",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        )

    def _ordered(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same with the rows of the head's last layer in the order that is wanted."""
        if self.rows is None:
            return state
        last = max(
            (key for key in state if key.startswith("head.")),
            key=lambda key: int(key.split(".")[1]),
        )
        layer = last.rpartition(".")[0]
        order = torch.tensor(self.rows)
        return state | {key: state[key][order] for key in (f"{layer}.weight", f"{layer}.bias")}

    def judged_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the validation judged, for inference: the averaged ones where there are any."""
        return self.ema_weights() or self.weights()

    def train_state(self) -> dict[str, Any] | None:
        """What training goes on with beside the weights, or None at the end of a stage.

        Raises:
            ConfigError: it holds more than plain values and tensors.
        """
        name = "train_state.pt"
        if name not in self.files:
            return None
        try:
            state: dict[str, Any] = torch.load(
                io.BytesIO(self.files[name]), map_location="cpu", weights_only=True
            )
        except (
            Exception
        ) as error:  # torch raises many types for files that are not its own, some without text
            said = next(iter(str(error).splitlines()), "")
            raise self._unusable(
                name, f"cannot be loaded: {type(error).__name__} {said[:80]}".rstrip()
            ) from None
        return state


def read(path: str) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or its bytes are not those that were written.
    """
    try:
        manifest = storage.read_json(storage.join(path, MANIFEST))
        if lacking := {"model.safetensors", "meta.json"} - set(manifest):
            raise ValueError(f"its manifest does not name {min(lacking)}")
        if unknown := set(manifest) - FILES:
            raise ValueError(f"its manifest names {str(min(unknown))[:80]!r}")
        files = {name: storage.read_bytes(storage.join(path, name)) for name in manifest}
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} is incomplete: {error}") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            raise DamagedCheckpoint(
                f"{storage.join(path, name)} is not the file that was written ({len(content)} bytes)"
            )
    try:
        meta = json.loads(files["meta.json"])
        _position(meta)
    except (ValueError, TypeError, KeyError):
        raise DamagedCheckpoint(
            f"{storage.join(path, 'meta.json')} does not say what the checkpoint is"
        ) from None
    return Checkpoint(path, meta, files)


def load(path: str) -> Checkpoint:
    """`read` for a checkpoint that a person named; its weights are looked at too.

    Raises:
        ConfigError: it is missing, incomplete or damaged, or its weights are none.
    """
    try:
        found = read(path)
        if lacking := [key for key in ("classes", "arch") if key not in found.meta]:
            raise DamagedCheckpoint(f"{storage.join(path, 'meta.json')} has no {lacking[0]}")
        found.judged_weights()
        return found
    except DamagedCheckpoint as error:
        raise ConfigError(
            f"the checkpoint cannot be used: {error}",
            "weights that are not the ones written would train or predict silently wrong",
            "raytrain runs show RUN lists the checkpoints of a run; give another one",
        ) from None


def find_latest(directory: str) -> tuple[Checkpoint | None, list[str]]:
    """The furthest usable checkpoint of a run's `checkpoints` folder.

    `best` is passed over: within a stage nothing can go on exactly without the optimiser's state.

    Returns:
        The checkpoint (None if there is none), and one sentence for each that was skipped as damaged.
    """
    found, skipped = _candidates(directory)
    for _, _, path in sorted(found, reverse=True):
        try:
            return read(path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
    return None, skipped


def furthest(directory: str) -> Position:
    """How far the checkpoints of a run's `checkpoints` folder say that it is, without a look at their weights."""
    return max((position for position, _, _ in _candidates(directory)[0]), default=BEGINNING)


def _candidates(directory: str) -> tuple[list[tuple[Position, bool, str]], list[str]]:
    """(position, whether training can go on from it within a stage, place) of each, and sentences for unreadable ones."""
    found, skipped = [], []
    for name in storage.names(directory, directories=True):
        path = storage.join(directory, name)
        if name.endswith(".partial") or name.startswith(BEST):
            continue
        try:
            meta = storage.read_json(storage.join(path, "meta.json"))
            # At equal positions the one with optimiser state comes first.
            found.append((_position(meta), goes_on_within(name), path))
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            skipped.append(f"{path} has no readable meta.json")
    return found, skipped


def _position(meta: dict[str, Any]) -> Position:
    return Position(int(meta["stage"]), int(meta["epoch"]), int(meta.get("epoch_steps", 0)))
