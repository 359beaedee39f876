"""Distance to training: how far a sample is from the nearest of what the network was shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oneshotgan import augment
from oneshotgan.data import as_images, in_batches, random_stream
from oneshotgan.perceptual import lpips
from oneshotgan.perceptual.lpips import LPIPS, Features

COPIES = 8  # K: of each training image
SEED = 0  # of the augmented copies
PROBABILITY = 0.7  # of each transform, as in the preset `paper`


@dataclass(frozen=True)
class Nearest:
    """For each of N samples the distance to the nearest image, (N,) float64, and which it is, (N,).

    Image k of the set is copy ``k % copies`` of training image ``k // copies``.
    """

    distance: Tensor
    index: Tensor


def training_copies(real: Tensor, copies: int = COPIES, first: int = 0) -> Tensor:
    """The fixed set that stands for training: itself, mirror, augmented copies of each image.

    Copy c of image i depends on (i, c) alone, so a larger set holds the smaller ones, and every method and
    folder is held against the same set.

    Args:
        real: (M, 3, H, W) in [-1, 1].
        copies: K: the image, its mirror, and K − 2 under the training augmentation of One-Shot GAN.
        first: the index of the first of them within all training images.

    Returns:
        (M · copies, 3, H, W), the copies of an image one after the other.
    """
    height, width = real.shape[2:]
    made = []
    for index, image in enumerate(real, start=first):
        made += [image, image.flip(-1)][:copies]
        if copies > 2:
            stream = random_stream(SEED, "training copies", index)
            uniform = torch.rand(copies - 2, augment.DRAWS, generator=stream)
            moved = augment.draw_transforms(uniform, width / height, PROBABILITY).to(real.device)
            made += augment.apply_transforms([image.expand(copies - 2, -1, -1, -1)], moved)[0]
    return torch.stack(made)


def distance_to_train(
    fake: Tensor | np.ndarray, real: Tensor | np.ndarray, network: LPIPS, copies: int = COPIES
) -> Nearest:
    """LPIPS of each sample to the nearest image of the fixed set; see `training_copies`.

    Each image of the set passes the network once and is not kept, so any number fits into memory.

    Args:
        fake, real: uint8 (N, H, W, 3) or float (N, 3, H, W) in [-1, 1], of one size.
        copies: 1 compares with the training images alone, as the released program does.
    """
    return nearest_copies(network.embed(as_images(fake)), as_images(real), network, copies)


def nearest_copies(
    samples: Features, real: Tensor, network: LPIPS, copies: int = COPIES, first: int = 0
) -> Nearest:
    """`distance_to_train` of samples whose features are known.

    Args:
        first: where only a part of the training images is given, the index of its first one; the indices
            found count from there.
    """
    batches = _copies(real, copies, network.device, first)
    parts = [lpips.distances(samples, network.embed(batch)) for batch in batches]
    distance, index = torch.cat(parts, dim=1).min(dim=1)
    return Nearest(distance, index)


def _copies(real: Tensor, copies: int, device: torch.device, first: int = 0) -> Iterator[Tensor]:
    """The images of `training_copies`, a few training images at a time."""
    for batch in in_batches(real, device):
        for frames in torch.split(batch, max(1, len(batch) // copies)):
            yield training_copies(frames, copies, first)
            first += len(frames)
