"""Checkpoints: written atomically, verified before use, found again after any crash. The only reader and writer.

model.safetensors   parameters and buffers of the network
ema.safetensors     their averages, where the recipe asks for them
train_state.pt      optimiser state and, within an epoch, what each rank holds; where training can go on in a stage
meta.json           what it is: recipe, position, classes, normalisation, dataset and split hash, versions
MANIFEST.json       sha256 of each file, written last; without it there is no checkpoint

In a run's `checkpoints` folder `last` is the end of a whole epoch, the last one unless it ended within the saver's interval;
`best` is the one with the highest F2, stages have the lesson's names, and `step-00001234` is a place within an epoch, named by
the steps of the run. Local checkpoints of the same state share their files as hard links.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from raytrain import storage
from raytrain.errors import ConfigError, DivergedError, masked

MANIFEST = "MANIFEST.json"
FILES = {"model.safetensors", "ema.safetensors", "train_state.pt", "meta.json"}
LAST, BEST, STEP = "last", "best", "step-"
# Of those within an epoch: the newest, and one to fall back on.
KEPT_STEPS = 2


class Position(NamedTuple):
    """How far a run is: its stage (from 1), the whole epochs done in it, the steps done in the epoch after them."""

    stage: int = 0
    epochs: int = 0
    steps: int = 0


BEGINNING = Position()


def goes_on_within(name: str) -> bool:
    """Whether a checkpoint of this name holds what training goes on with within a stage."""
    return name.startswith((LAST, STEP))


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or whose bytes changed; the message says which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified against their hashes.

    `rows` holds, where the classes are wanted in another order than they were trained in, the row of each in the head.
    """

    place: str
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
        return self._ordered(self._state("ema.safetensors")) if "ema.safetensors" in self.files else None

    def _state(self, name: str) -> dict[str, torch.Tensor]:
        """Tensors of a file, all of them finite."""
        # Imported where weights are written or read: the bench trains without either, on machines that lack the package.
        import safetensors.torch

        try:
            state: dict[str, torch.Tensor] = safetensors.torch.load(self.files[name])
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise self._unusable(name, f"holds no plain tensors: {str(error).splitlines()[0]}") from None
        for key, value in state.items():
            if not bool(value.isfinite().all()):
                raise self._unusable(name, f"holds values that are not finite in {key}")
        return state

    def _unusable(self, name: str, what: str) -> ConfigError:
        return ConfigError(
            f"{storage.join(self.place, name)} {what}",
            "it has the hash in its manifest, so another program wrote it; only plain tensors are loaded, never code",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        )

    def _ordered(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same with the rows of the head's last layer in the order that is wanted."""
        if self.rows is None:
            return state
        last = max((key for key in state if key.startswith("head.")), key=lambda key: int(key.split(".")[1]))
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
            state: dict[str, Any] = torch.load(io.BytesIO(self.files[name]), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for files that are not its own, some without text
            said = next(iter(str(error).splitlines()), "")
            raise self._unusable(name, f"cannot be loaded: {type(error).__name__} {said[:80]}".rstrip()) from None
        return state


@dataclass(frozen=True)
class Snapshot:
    """A state of training in host memory, which goes on existing while training goes on."""

    meta: dict[str, Any]
    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None = None
    train_state: dict[str, Any] | None = None

    @property
    def finished(self) -> Snapshot:
        """The same without what only going on within a stage needs."""
        return replace(self, train_state=None)


def snapshot(
    model: nn.Module, meta: dict[str, Any], train_state: dict[str, Any] | None = None, averaged: nn.Module | None = None
) -> Snapshot:
    """Copies a state of training into host memory; the only part of a save that training waits for."""
    return Snapshot(meta, _weights(model), _weights(averaged) if averaged else None, _copied(train_state))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies in the order of memory that their file has."""
    state = model.state_dict()
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def save(
    place: str,
    model: nn.Module,
    meta: dict[str, Any],
    train_state: dict[str, Any] | None = None,
    averaged: nn.Module | None = None,
) -> None:
    """Copies and writes a checkpoint in one go; see `write`."""
    write(place, snapshot(model, meta, train_state, averaged))


def write(place: str, state: Snapshot, twin: str | None = None) -> None:
    """Writes a checkpoint so that at every moment the old one or the new one is complete. Holds no second copy of the state.

    No operation of torch runs here that takes several threads. Each thread that starts one keeps a pool of its own, and with
    more of them than CPUs, OpenMP lets every later step sleep where it would spin: training was 17 % slower from the first
    save on.

    Locally: temporary directory, rename, with the old one kept as `<place>.old` until the new one stands. In an object
    store the old manifest goes first and the new one is written last, so the old one is gone meanwhile.

    Args:
        place: of the checkpoint.
        state: what it holds.
        twin: a checkpoint of the same weights that has just been written beside it: files of equal content are linked.

    Raises:
        DivergedError: a weight is not finite; nothing is written.
        StorageError: it cannot be written; an older checkpoint stays usable.
    """
    _check_finite(place, state)
    if storage.is_uri(place):
        _upload(place, state)
    else:
        _replace_directory(place, state, twin)


def _upload(place: str, state: Snapshot) -> None:
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        names = _write_files(Path(folder), state, None)
        storage.remove(storage.join(place, MANIFEST))
        for name in [*names, MANIFEST]:
            storage.upload_file(Path(folder, name), storage.join(place, name))


def _replace_directory(place: str, state: Snapshot, twin: str | None) -> None:
    partial, old = f"{place}.partial", f"{place}.old"
    storage.remove(partial)
    try:
        storage.make_dir(partial)
        _write_files(Path(storage.absolute(partial)), state, Path(storage.absolute(twin)) if twin else None)
    except BaseException:
        storage.remove(partial)
        raise
    if storage.exists(place):
        storage.remove(old)
        storage.move_directory(place, old)
    storage.move_directory(partial, place)
    storage.remove(old)


def _write_files(folder: Path, state: Snapshot, twin: Path | None) -> list[str]:
    """Writes the files of a checkpoint and its manifest into a local directory. Returns their names but the manifest's."""
    meta = masked(json.dumps(state.meta, indent=1)).encode()
    writers: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": lambda path: _save_tensors(state.weights, path),
        "meta.json": lambda path: path.write_bytes(meta),
    }
    averaged = state.averaged
    if averaged is not None:
        writers["ema.safetensors"] = lambda path: _save_tensors(averaged, path)
    # The state of training belongs to one checkpoint alone.
    shared = set(writers)
    if state.train_state is not None:
        writers["train_state.pt"] = lambda path: _save_state(state.train_state, path)
    known = storage.read_json(str(twin / MANIFEST)) if twin else {}
    manifest = {}
    for name, write in writers.items():
        if twin and name in shared & set(known) and storage.linked(twin / name, folder / name):
            manifest[name] = known[name]
        else:
            manifest[name] = storage.written(folder / name, write)
    storage.written(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    storage.sync_directory(folder)
    return list(writers)


def _save_tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    # Imported here for the same reason as above.
    import safetensors.torch

    try:
        safetensors.torch.save_file(state, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None  # its own way to say that the disk is full


def _save_state(state: Any, path: Path) -> None:
    # Into an opened file: torch names the archive inside after a path that it opens itself.
    with path.open("wb") as file:
        torch.save(state, file)


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps of the run: names in order are steps in order."""
    return f"{STEP}{step:08}"


def thin(directory: str, step: int, keep: int = KEPT_STEPS) -> None:
    """Removes the checkpoints within epochs but the newest `keep` up to a step.

    Later ones go too: the run that has come to this step went on from before them, so they were damaged.
    """
    names = [name for name in storage.names(directory, directories=True) if name.startswith(STEP)]
    kept = [name for name in names if name <= step_name(step)][-keep:] if keep else []
    for name in set(names) - set(kept):
        storage.remove(storage.join(directory, name))


def _check_finite(place: str, state: Snapshot) -> None:
    for tensors in (state.weights, state.averaged or {}):
        for name, value in tensors.items():
            if not np.isfinite(value.numpy()).all():
                raise DivergedError(
                    f"{name} is not finite, so {place} was not written",
                    "its weights are useless",
                    "lower the peak lr, then start a new run with --init-from the last checkpoint",
                )


def read(place: str) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or its bytes are not those that were written.
    """
    try:
        manifest = storage.read_json(storage.join(place, MANIFEST))
        if lacking := {"model.safetensors", "meta.json"} - set(manifest):
            raise ValueError(f"its manifest does not name {min(lacking)}")
        if unknown := set(manifest) - FILES:
            raise ValueError(f"its manifest names {str(min(unknown))[:80]!r}")
        files = {name: storage.read_bytes(storage.join(place, name)) for name in manifest}
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"{place} is incomplete: {error}") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            raise DamagedCheckpoint(
                f"{storage.join(place, name)} is not the file that was written ({len(content)} bytes)"
            )
    try:
        meta = json.loads(files["meta.json"])
        _position(meta)
    except (ValueError, TypeError, KeyError):
        raise DamagedCheckpoint(f"{storage.join(place, 'meta.json')} does not say what the checkpoint is") from None
    return Checkpoint(place, meta, files)


def load(place: str) -> Checkpoint:
    """`read` for a checkpoint that a person named; its weights are looked at too.

    Raises:
        ConfigError: it is missing, incomplete or damaged, or its weights are none.
    """
    try:
        found = read(place)
        if lacking := [key for key in ("classes", "arch") if key not in found.meta]:
            raise DamagedCheckpoint(f"{storage.join(place, 'meta.json')} has no {lacking[0]}")
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
    for _, _, place in sorted(found, reverse=True):
        try:
            return read(place), skipped
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
        place = storage.join(directory, name)
        if name.endswith(".partial") or name.startswith(BEST):
            continue
        try:
            meta = storage.read_json(storage.join(place, "meta.json"))
            # At equal positions the one with optimiser state comes first.
            found.append((_position(meta), goes_on_within(name), place))
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            skipped.append(f"{place} has no readable meta.json")
    return found, skipped


def _position(meta: dict[str, Any]) -> Position:
    return Position(int(meta["stage"]), int(meta["epoch"]), int(meta.get("epoch_steps", 0)))


def remapped(checkpoint: Checkpoint, classes: list[str]) -> Checkpoint:
    """The same checkpoint for its classes in another order: the rows of the head's last layer change places.

    Other classes are left to `check_fits` to refuse.
    """
    theirs = checkpoint.meta["classes"]
    if theirs == classes or sorted(theirs) != sorted(classes):
        return checkpoint
    rows = tuple(theirs.index(name) for name in classes)
    return replace(checkpoint, meta=checkpoint.meta | {"classes": classes}, rows=rows)


def check_fits(checkpoint: Checkpoint, classes: list[str], arch: str, normalize: str | None = None) -> None:
    """Compares what a checkpoint was made for with what is wanted, before any weight is loaded.

    Raises:
        ConfigError: other classes, another order of them, another architecture, or other pixels (unless `normalize` is
            None).
    """
    meta = checkpoint.meta
    if meta["classes"] != classes:
        same = sorted(meta["classes"]) == sorted(classes)
        raise ConfigError(
            f"the checkpoint {checkpoint.place} was trained for {_difference(meta['classes'], classes)}",
            "its outputs would be read as other labels",
            "--remap-labels with --init-from puts the rows of its head into the order of the dataset" if same else
            "use a checkpoint of the same classes, or start from --model.weights imagenet",
        )  # fmt: skip
    if meta["arch"] != arch:
        raise ConfigError(
            f"the checkpoint {checkpoint.place} is a {meta['arch']}, the configuration says {arch}",
            "its weights do not fit",
            f"--model.arch {meta['arch']}",
        )
    if normalize is not None and meta["normalize"] != normalize:
        raise ConfigError(
            f"the checkpoint {checkpoint.place} was trained on pixels normalised by {meta['normalize']}, "
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
