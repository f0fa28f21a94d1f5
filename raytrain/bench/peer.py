"""The plain PyTorch loop as people write it: JPEG files, PIL, torchvision transforms, a DataLoader, `loss.item()`.

Written to be fast within its means: the picture is made small first, and the loader's workers live on over the epochs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Sequence
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

LR = 1e-3
DROPOUT = 0.5
Batch = tuple[torch.Tensor, torch.Tensor]


class Tiles(Dataset[Batch]):
    """JPEG files with their targets."""

    def __init__(self, files: Sequence[Path], targets: np.ndarray[Any, Any], size: int) -> None:
        self.files, self.targets = list(files), torch.from_numpy(np.asarray(targets, np.float32))
        self.transform = transforms.Compose(augmentation(size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        picture = Image.open(self.files[index], formats=images.FORMATS).convert("RGB")
        return self.transform(picture), self.targets[index]


def augmentation(size: int) -> list[Any]:
    """What the recipe does to tiles, in torchvision's words: zoom to 1.05, flips, rotation, lighting."""
    return [
        # A side of 1 / 1.05, an area of 0.907.
        transforms.RandomResizedCrop(size, scale=(0.907, 1.0), ratio=(1.0, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(10),
        transforms.ColorJitter(0.1, 0.1),
        transforms.ToTensor(),
        transforms.Normalize(*NORMALIZE["imagenet"]),
    ]


class PlainLoop:
    """A side of `alternate`: trains a network of random weights on files.

    Args:
        files, targets: tiles and their uint8 (n, K) targets.
        arch: torchvision's name of a network.
        size: of the tiles as the network sees them, pixels.
        batch: tiles.
        loaders: processes of the DataLoader.
        precision: fp32, or bf16 by autocast.
        channels_last: memory format of network and pixels.
        our_network: the network of this program, with its fused optimiser and memory settings, so that only the way of
            the tiles into the network differs; otherwise torchvision's network with another last layer, and torch's
            defaults.
    """

    def __init__(
        self,
        files: Sequence[Path],
        targets: np.ndarray[Any, Any],
        arch: str,
        size: int,
        batch: int,
        loaders: int,
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        our_network: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = precision
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.loader = DataLoader(
            Tiles(files, targets, size),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=loaders,
            persistent_workers=loaders > 0,
            pin_memory=self.device.type == "cuda",
        )
        if not len(self.loader):
            raise ValueError(f"{len(files)} tiles make no batch of {batch}")
        if our_network:
            keep_freed_memory()
        network = (
            _ours(arch, targets.shape[1]) if our_network else _torchvisions(arch, targets.shape[1])
        )
        self.network = network.to(self.device).to(memory_format=self.format)
        self.criterion = nn.BCEWithLogitsLoss()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=LR, fused=our_network or None
        )
        self.steps = self._steps()

    def block(self, steps: int) -> float:
        """See `Side`."""
        began = time.perf_counter()
        done = sum(next(self.steps) for _ in range(steps))
        return done / (time.perf_counter() - began)

    def close(self) -> None:
        """Ends the loader's processes."""
        self.steps.close()
        # They end with the iterator, which a loader of persistent workers keeps.
        self.loader._iterator = None

    def _steps(self) -> Generator[int]:
        """Trains a step each, for ever; gives the tiles in it."""
        self.network.train()
        for _ in itertools.count():
            running_loss = 0.0
            for pixels, target in self.loader:
                pixels = pixels.to(self.device, non_blocking=True, memory_format=self.format)
                target = target.to(self.device, non_blocking=True)
                self.optimizer.zero_grad()
                with autocast(self.precision, self.device):
                    loss = self.criterion(self.network(pixels).float(), target)
                loss.backward()
                self.optimizer.step()
                running_loss += loss.item()
                yield len(pixels)


def _torchvisions(arch: str, outputs: int) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=outputs)
    return network


def _ours(arch: str, outputs: int) -> nn.Module:
    return networks.build(arch, outputs, DROPOUT)
