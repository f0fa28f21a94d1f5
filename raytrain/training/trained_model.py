"""The network of a checkpoint, with all that turns pictures into logits. No ray.

`predict` uses it in its processes, and `raytrain.load_model` gives it to a user.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from raytrain import registry, storage
from raytrain.checkpoints import reading
from raytrain.config import Model, Normalization, normalization
from raytrain.data import pixels
from raytrain.data.images import BadImage
from raytrain.data.tile_format import TileFormat
from raytrain.errors import ConfigError, DataError
from raytrain.models import initial_weights, networks
from raytrain.models.precision import default_precision, keep_fp32
from raytrain.training import transforms
from raytrain.training.inference import Inference, logits_of

Array = np.ndarray[Any, Any]

# Tiles in a forward pass.
BATCH = 64
# The rotations and reflections of a square.
SYMMETRIES = 8
CPU = torch.device("cpu")


class TrainedModel(nn.Module):
    """A trained network that takes pictures.

    Example:
        ```python
        model = raytrain.load_model("first")
        model.probabilities(Image.open("tile.jpg"))
        ```

    Attributes:
        path: of the checkpoint.
        meta: content of its meta.json.
        network: float (B, C, size, size) of normalised pixels -> logits, float (B, K).
        tiles: channels of the tiles that it was trained on, and type of their values.
        decision: turns logits into labels: a threshold of 0.2, or what a run recommends. None
            where the most probable class is the label.
    """

    def __init__(
        self, checkpoint: reading.Checkpoint, device: torch.device = CPU, *, tta: bool = False
    ) -> None:
        """Builds the network of a checkpoint, in evaluation mode.

        From then on cuDNN computes fp32 convolutions of this process in fp32, as in training.

        Args:
            checkpoint: as `reading.load` gives it.
            device: where the network computes.
            tta: test-time augmentation: the mean of the logits over the 8 symmetries of the square.

        Raises:
            ConfigError: the weights do not fit, or this version resizes tiles in another way.
        """
        super().__init__()
        keep_fp32()
        check_resize(checkpoint)
        self.path = checkpoint.path
        self.meta = checkpoint.meta
        self.tiles: TileFormat = checkpoint.tile_format
        self.network = network_of(checkpoint)
        networks.to_device(self.network, device)
        self.eval()
        self.decision: Any = registry.evaluation(self.task).decision(None, None, self.classes)
        # As the network was trained, where this processor computes in bf16. One that only emulates
        # it would be slower than in fp32.
        precision = "fp32"
        if self.meta["precision"] == "bf16" and default_precision(device) == "bf16":
            precision = "bf16"
        self._how = Inference(
            self.size,
            self.normalize,
            precision,
            SYMMETRIES if tta else 1,
            registry.training(self.task).undone,
        )

    @property
    def task(self) -> str:
        """Name of the task, see `raytrain.registry`."""
        return str(self.meta["task"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The K labels, in the order of the logits."""
        return tuple(self.meta["classes"])

    @property
    def size(self) -> int:
        """Side of the network's input in pixels."""
        return int(self.meta["size"])

    @property
    def stored_size(self) -> int:
        """Side in pixels to which a picture is resized first, as the tiles of training were."""
        return int(self.meta["resize"]["stored_size"])

    @property
    def normalize(self) -> Normalization:
        """Mean and deviation of each channel, or the name of known ones."""
        return normalization(self.meta["normalize"])

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each label; empty where labels are decided in another way."""
        if self.decision is None:
            return {}
        found = self.decision.decision.to_json(self.classes)
        if set(found) != set(self.classes):
            return {}
        return dict(found)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the logits of normalised pixels.

        Args:
            values: float (B, C, size, size), on the network's device.
        """
        logits: torch.Tensor = self.network(values)
        return logits

    def logits(self, pictures: Any) -> Array:
        """Returns the logits of pictures, float32 (N, K), one row each.

        Args:
            pictures: one picture or several: PIL pictures, arrays (H, W, C) of the type of
                `tiles`, or paths of files. Files are read exactly as `raytrain predict` reads them.

        Raises:
            DataError: a file or an array holds no tile that the network can take.
        """
        found = [np.zeros((0, len(self.classes)), np.float32)]
        decoded = self._decoded(listed(pictures))
        while batch := list(itertools.islice(decoded, BATCH)):
            found.append(self.logits_of_tiles(np.stack(batch)))
        return np.concatenate(found)

    def probabilities(self, pictures: Any) -> Any:
        """Returns the probability of each label, as a table.

        Args:
            pictures: as for `logits`.

        Returns:
            A pandas DataFrame, float64 (N, K): a row for each picture, a column for each label.
            Rows of files bear the path, others count from 0.

        Raises:
            DataError: as `logits`.
        """
        # Here, since processes that only predict need no tables.
        import pandas as pd

        several = listed(pictures)
        values = registry.evaluation(self.task).probabilities(self.logits(several))
        rows = []
        for number, picture in enumerate(several):
            rows.append(picture if isinstance(picture, str) else number)
        return pd.DataFrame(values, index=rows, columns=list(self.classes))

    def labels(self, pictures: Any) -> list[tuple[str, ...]]:
        """Returns the labels of each picture, as the run recommends to decide them.

        Args:
            pictures: as for `logits`.

        Raises:
            DataError: as `logits`.
        """
        logits = self.logits(pictures)
        decided = registry.evaluation(self.task).decided(logits, self.decision)
        found = []
        for row in decided:
            found.append(tuple(itertools.compress(self.classes, row.tolist())))
        return found

    def logits_of_tiles(self, tiles: Array) -> Array:
        """Returns the logits of decoded tiles, float32 (N, K).

        Args:
            tiles: uint8 or uint16 (N, stored_size, stored_size, C).
        """
        # (N, S, S, C) -> (N, C, S, S)
        stacked = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(self.device)
        values: Array = logits_of(self.network, stacked, self._how).cpu().numpy()
        return values

    def _decoded(self, pictures: Sequence[Any]) -> Iterator[Array]:
        """Each picture as a tile, (stored_size, stored_size, C)."""
        for number, picture in enumerate(pictures):
            if isinstance(picture, str):
                yield _of_file(picture, self.tiles, self.stored_size)
            else:
                yield _of_picture(picture, number, self.tiles, self.stored_size)


def _of_file(path: str, tiles: TileFormat, size: int) -> Array:
    """Reads a picture as a tile, (size, size, C)."""
    if os.path.isdir(path):
        raise DataError(
            f"{path} is a folder, not a picture",
            "a model takes pictures, arrays or paths of files",
            "raytrain.predict(RUN, FOLDER) predicts all pictures of a folder",
        )
    try:
        content = storage.read_bytes(storage.absolute(path))
        return pixels.decode(content, tiles, size)
    except FileNotFoundError:
        raise DataError(f"there is no picture {path}", "it cannot be predicted") from None
    except BadImage as error:
        raise DataError(
            f"the picture {path} cannot be used ({error.kind}: {error.detail})",
            f"the network was trained on {tiles}",
            "open it, or give it without the others that are damaged",
        ) from None


def _of_picture(picture: Any, number: int, tiles: TileFormat, size: int) -> Array:
    """Makes a tile of a picture in memory, (size, size, C); `number` names it in an error."""
    try:
        return pixels.of_picture(picture, tiles, size)
    except BadImage as error:
        raise DataError(
            f"the picture number {number} cannot be used: {error.detail}",
            f"the network was trained on {tiles}",
            f"give an array {tiles.dtype} (H, W, {tiles.channels}), "
            "a PIL picture, or the path of a file",
        ) from None


def listed(pictures: Any) -> list[Any]:
    """Returns one picture or several as a list; paths become text."""
    several = [pictures]
    if isinstance(pictures, np.ndarray):
        # (N, H, W, C) are several.
        if pictures.ndim == 4:
            several = list(pictures)
    elif isinstance(pictures, Iterable) and not isinstance(pictures, str):
        several = list(pictures)
    found = []
    for picture in several:
        found.append(str(picture) if hasattr(picture, "__fspath__") else picture)
    return found


def load(path: str, device: torch.device = CPU, *, tta: bool = False) -> TrainedModel:
    """Returns the model of a checkpoint directory.

    Raises:
        ConfigError: it is missing or damaged, or as for `TrainedModel`.
    """
    return TrainedModel(reading.load(path), device, tta=tta)


def check_resize(checkpoint: reading.Checkpoint) -> None:
    """Refuses a checkpoint that was trained on tiles resized by a rule of another version.

    Raises:
        ConfigError: this version does not know the rule.
    """
    rule = checkpoint.meta["resize"]["rule"]
    if rule != transforms.RESIZE_RULE:
        raise ConfigError(
            f"{checkpoint.path} resizes tiles by another rule: {rule}",
            f"this version knows {transforms.RESIZE_RULE}; other pixels give other predictions",
            "predict with the version that trained it (meta.json, versions)",
        )


def network_of(checkpoint: reading.Checkpoint) -> nn.Sequential:
    """Returns the network of a checkpoint with the weights that its validation used.

    Raises:
        ConfigError: the weights do not fit.
    """
    meta = checkpoint.meta
    # Dropout does nothing in evaluation, so its probability does not matter here.
    settings = Model(arch=meta["arch"], dropout=0.0)
    model = registry.training(meta["task"]).network(
        settings, len(meta["classes"]), checkpoint.tile_format.channels
    )
    initial_weights.load_weights(model, checkpoint.judged_weights(), checkpoint.path)
    return model
