"""A plain PyTorch training loop as people write it, to compare with. No Ray.

It reads JPEG files with PIL, augments with torchvision, uses a DataLoader and calls `loss.item()`
in every step. Within these means it is written to be fast: tiles are made small before anything
else is done with them, and the loader's workers survive the ends of epochs.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raytrain.data import images
from raytrain.models import networks
from raytrain.models.precision import autocast
from raytrain.training.memory import keep_freed_memory
from raytrain.training.transforms import NORMALIZE
from raytrain.worker import compute_device

LEARNING_RATE = 1e-3
DROPOUT = 0.5
# Pixels float32 (B, 3, S, S) and targets float32 (B, K).
Batch = tuple[torch.Tensor, torch.Tensor]


class Tiles(Dataset[Batch]):
    """JPEG files with their targets."""

    def __init__(self, files: Sequence[Path], targets: np.ndarray[Any, Any], size: int) -> None:
        """Takes files and their targets, uint8 (n, K); `size` is the side of a tile in pixels."""
        self.files = list(files)
        self.targets = torch.from_numpy(np.asarray(targets, np.float32))
        self.transform = transforms.Compose(augmentation(size))

    def __len__(self) -> int:
        """The number of tiles."""
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        """An augmented tile (3, S, S) and its target (K,)."""
        picture = Image.open(self.files[index], formats=images.FORMATS).convert("RGB")
        return self.transform(picture), self.targets[index]


def augmentation(size: int) -> list[Any]:
    """The augmentation of the recipes by torchvision: zoom to 1.05, flips, rotation, lighting."""
    return [
        # A zoom to 1.05 keeps 1 / 1.05 of the side, which is 0.907 of the area.
        transforms.RandomResizedCrop(size, scale=(0.907, 1.0), ratio=(1.0, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(10),
        transforms.ColorJitter(0.1, 0.1),
        transforms.ToTensor(),
        transforms.Normalize(*NORMALIZE["imagenet"]),
    ]


@dataclass(frozen=True)
class PlainSettings:
    """How a plain loop trains.

    Attributes:
        arch: torchvision's name of a network.
        size: side of the tiles as the network sees them, pixels.
        batch: tiles of a batch.
        loaders: worker processes of the DataLoader.
        precision: fp32, or bf16 by autocast.
        channels_last: memory format of weights and pixels.
        our_network: use this program's network, fused optimiser and memory settings, so that only
            the input path differs; otherwise torchvision's network and torch's defaults.
        device: None for the GPU where there is one.
    """

    arch: str
    size: int
    batch: int
    loaders: int
    precision: str = "fp32"
    channels_last: bool = False
    our_network: bool = False
    device: torch.device | None = None


class PlainLoop:
    """A side of `alternate` that trains a network with random weights on image files."""

    def __init__(
        self, files: Sequence[Path], targets: np.ndarray[Any, Any], settings: PlainSettings
    ) -> None:
        """Builds network, optimiser and loader.

        Args:
            files: the tiles.
            targets: their labels, uint8 (n, K).
            settings: see there.

        Raises:
            ValueError: there are too few files for one batch.
        """
        self.precision = settings.precision
        self.device = settings.device or compute_device(torch.cuda.is_available())
        self.format = torch.contiguous_format
        if settings.channels_last:
            self.format = torch.channels_last
        self.loader = DataLoader(
            Tiles(files, targets, settings.size),
            batch_size=settings.batch,
            shuffle=True,
            drop_last=True,
            num_workers=settings.loaders,
            persistent_workers=settings.loaders > 0,
            # Only pinned memory can be copied to a GPU while the GPU computes.
            pin_memory=self.device.type == "cuda",
        )
        if len(self.loader) == 0:
            # Without this the endless loop of `_steps` would never give a value.
            raise ValueError(f"{len(files)} tiles make no batch of {settings.batch}")
        network = _network(settings, targets.shape[1])
        self.network = network.to(self.device).to(memory_format=self.format)
        self.criterion = nn.BCEWithLogitsLoss()
        # None is torch's default: it fuses nothing on a CPU.
        fused = True if settings.our_network else None
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE, fused=fused)
        self.steps = self._steps()

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        began = time.perf_counter()
        tiles = 0
        for _ in range(steps):
            # Each step reads its loss, so the GPU has finished whenever a step has.
            tiles += next(self.steps)
        return tiles / (time.perf_counter() - began)

    def close(self) -> None:
        """See `Side.close`."""
        self.steps.close()
        # Worker processes end with their iterator, which a loader of persistent workers keeps.
        # torch has no public way to drop it.
        self.loader._iterator = None

    def _steps(self) -> Generator[int]:
        """Trains endlessly, one step for each value: the number of its tiles."""
        self.network.train()
        while True:
            running_loss = 0.0
            for pixels, target in self.loader:
                running_loss += self._loss_of_step(pixels, target)
                yield len(pixels)

    def _loss_of_step(self, pixels: torch.Tensor, target: torch.Tensor) -> float:
        pixels = pixels.to(self.device, non_blocking=True, memory_format=self.format)
        target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            loss = self.criterion(self.network(pixels).float(), target)
        loss.backward()
        self.optimizer.step()
        # Waits for the GPU, as loops that print a running loss do.
        return float(loss.item())


def _network(settings: PlainSettings, outputs: int) -> nn.Module:
    """A network with random weights and one logit for each class."""
    if settings.our_network:
        keep_freed_memory()
        return networks.build(settings.arch, outputs, DROPOUT)
    network: nn.Module = torchvision.models.get_model(
        settings.arch, weights=None, num_classes=outputs
    )
    return network
