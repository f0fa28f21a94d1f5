"""Reads checkpoints and verifies them against their hashes. Nothing else reads them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from raytrain import storage
from raytrain.checkpoints.layout import (
    BEGINNING,
    BEST,
    FILES,
    MANIFEST,
    Position,
    goes_on_within,
    is_named,
)
from raytrain.checkpoints.versions import VERSION, lifted_meta, lifted_train_state, version_of
from raytrain.data.tile_format import TileFormat
from raytrain.errors import ConfigError

# Every checkpoint has these files.
REQUIRED_FILES = {"model.safetensors", "meta.json"}
# Tensors by name.
Tensors = dict[str, torch.Tensor]
# Characters of a foreign text that an error message shows.
SHOWN = 80


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or whose bytes have changed. The message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified against their hashes.

    Attributes:
        path: the checkpoint.
        meta: content of its meta.json, as this version writes it.
        files: content of each file by name.
        version: format that it was written in.
        rows: for classes in another order than they were trained in, the row of each class in the
            last layer of the head; None for the same order.
    """

    path: str
    meta: dict[str, Any]
    files: dict[str, bytes] = field(repr=False)
    version: int = VERSION
    rows: tuple[int, ...] | None = None

    @property
    def position(self) -> Position:
        """Position of the run, counted over the whole list of stages."""
        return _position(self.meta)

    @property
    def tile_format(self) -> TileFormat:
        """Format of the tiles that the network takes."""
        return TileFormat.from_manifest(self.meta)

    def weights(self) -> Tensors:
        """Returns parameters and buffers by name, on the CPU.

        Raises:
            ConfigError: the file holds no tensors, or values that are not finite.
        """
        return self._ordered(self._tensors("model.safetensors"))

    def ema_weights(self) -> Tensors | None:
        """Returns averaged parameters and buffers by name, on the CPU.

        Returns None if the recipe does not average weights.

        Raises:
            ConfigError: as `weights`.
        """
        if "ema.safetensors" not in self.files:
            return None
        return self._ordered(self._tensors("ema.safetensors"))

    def judged_weights(self) -> Tensors:
        """Returns the weights that were validated: the averaged ones, if there are any.

        Raises:
            ConfigError: as `weights`.
        """
        return self.ema_weights() or self.weights()

    def train_state(self) -> dict[str, Any] | None:
        """Returns the state of training apart from the weights.

        Returns None for a checkpoint at the end of a stage, which has none.

        Raises:
            ConfigError: it holds more than plain values and tensors.
        """
        name = "train_state.pt"
        if name not in self.files:
            return None
        content = io.BytesIO(self.files[name])
        try:
            state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        # torch raises many types of errors, some without a message, for files that it did not
        # write.
        except Exception as error:
            text = f"cannot be loaded: {type(error).__name__} {_first_line(error)[:SHOWN]}"
            raise self._unusable(name, text.rstrip()) from None
        return lifted_train_state(state, self.version)

    def _tensors(self, name: str) -> Tensors:
        """Reads the tensors of a file and checks that all of them are finite."""
        # Imported here because the benchmark trains on machines that lack this package, and reads
        # no weights.
        import safetensors.torch

        try:
            state: Tensors = safetensors.torch.load(self.files[name])
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            text = f"holds no plain tensors: {str(error).splitlines()[0]}"
            raise self._unusable(name, text) from None
        for key, value in state.items():
            if not bool(value.isfinite().all()):
                raise self._unusable(name, f"holds values that are not finite in {key}")
        return state

    def _ordered(self, state: Tensors) -> Tensors:
        """Puts the rows of the last layer of the head into the order that is wanted."""
        if self.rows is None:
            return state
        layer = _last_layer(state)
        order = torch.tensor(self.rows)
        ordered = dict(state)
        # Shapes (K, 512) and (K,).
        for key in (f"{layer}.weight", f"{layer}.bias"):
            ordered[key] = state[key][order]
        return ordered

    def _unusable(self, name: str, what: str) -> ConfigError:
        return ConfigError(
            f"{storage.join(self.path, name)} {what}",
            "it has the hash in its manifest, so another program wrote it; "
            "only plain tensors are loaded, never code",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    if not lines:
        return ""
    return lines[0]


def _last_layer(names: Iterable[str]) -> str:
    """Returns the name of the last layer of the head, `head.N`, from the names of all tensors."""
    numbers = []
    for name in names:
        if name.startswith("head."):
            # The second part of a name such as head.7.weight.
            numbers.append(int(name.split(".")[1]))
    return f"head.{max(numbers)}"


def read(path: str) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing, or its bytes are not those that were written.
        ConfigError: a newer version wrote it.
    """
    try:
        manifest = storage.read_json(storage.join(path, MANIFEST))
        if not isinstance(manifest, dict):
            raise ValueError("its manifest is not a JSON object")
        _check_names(set(manifest))
        files = {}
        for name in manifest:
            files[name] = storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} is incomplete: {error}") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            file = storage.join(path, name)
            raise DamagedCheckpoint(
                f"{file} is not the file that was written ({len(content)} bytes)"
            )
    try:
        written = json.loads(files["meta.json"])
        version = version_of(written)
        meta = lifted_meta(written, path)
        # Checked here, so that every Checkpoint has a position and a format.
        _position(meta)
        TileFormat.from_manifest(meta)
    except (ValueError, TypeError, KeyError):
        file = storage.join(path, "meta.json")
        raise DamagedCheckpoint(f"{file} does not say what the checkpoint is") from None
    return Checkpoint(path, meta, files, version)


def _check_names(names: set[str]) -> None:
    """Checks which files a manifest names.

    Raises:
        ValueError: a required file is missing, or there is one that no checkpoint has.
    """
    missing = REQUIRED_FILES - names
    if missing:
        raise ValueError(f"its manifest does not name {min(missing)}")
    # An unknown name could lead out of the folder of the checkpoint.
    unknown = names - FILES
    if unknown:
        raise ValueError(f"its manifest names {str(min(unknown))[:SHOWN]!r}")


def load(path: str) -> Checkpoint:
    """Reads and verifies a checkpoint that a user named, and checks its weights too.

    Raises:
        ConfigError: it is missing, incomplete or damaged, or its weights are unusable.
    """
    try:
        found = read(path)
        for key in ("classes", "arch"):
            if key not in found.meta:
                raise DamagedCheckpoint(f"{storage.join(path, 'meta.json')} has no {key}")
        found.judged_weights()
        return found
    except DamagedCheckpoint as error:
        raise ConfigError(
            f"the checkpoint cannot be used: {error}",
            "with weights that differ from those written, results would be silently wrong",
            "raytrain runs show RUN lists the checkpoints of a run; give another one",
        ) from None


class _Candidate(NamedTuple):
    """A checkpoint that a run could resume from. Candidates are compared in this order of fields.

    At equal positions, a checkpoint with the state of the optimiser comes after one without.
    """

    position: Position
    has_train_state: bool
    path: str


def find_latest(directory: str) -> tuple[Checkpoint | None, list[str]]:
    """Finds the usable checkpoint with the furthest position in a run's `checkpoints` folder.

    `best` is ignored: it has no optimiser state, so a run could not resume exactly within a stage.

    Args:
        directory: the `checkpoints` folder.

    Returns:
        The checkpoint (None if there is none), and one sentence for each damaged one.
    """
    found, skipped = _candidates(directory)
    for candidate in sorted(found, reverse=True):
        try:
            return read(candidate.path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
    return None, skipped


def furthest(directory: str) -> Position:
    """Returns the furthest position in a run's `checkpoints` folder, without reading weights."""
    found, _ = _candidates(directory)
    return max((candidate.position for candidate in found), default=BEGINNING)


def _candidates(directory: str) -> tuple[list[_Candidate], list[str]]:
    """Returns the candidates in a folder, and one sentence for each unreadable one."""
    found = []
    skipped = []
    for name in storage.names(directory, directories=True):
        path = storage.join(directory, name)
        if name.endswith(".partial") or is_named(name, BEST):
            continue
        try:
            meta = storage.read_json(storage.join(path, "meta.json"))
            position = _position(meta)
            found.append(_Candidate(position, goes_on_within(name), path))
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            skipped.append(f"{path} has no readable meta.json")
    return found, skipped


def _position(meta: dict[str, Any]) -> Position:
    stage = int(meta["stage"])
    epochs = int(meta["epoch"])
    # Checkpoints without this key are from the end of an epoch.
    steps = int(meta.get("epoch_steps", 0))
    return Position(stage, epochs, steps)
