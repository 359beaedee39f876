"""SIFID: the Fréchet distance of Inception features within single images (Shaham et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oneshotgan.data import as_images, in_batches
from oneshotgan.metrics.frechet import Gaussians, fit_gaussians, frechet_distance, join
from oneshotgan.perceptual.inception import LAYERS, InceptionStem


@torch.inference_mode()
def statistics(images: Tensor, stem: InceptionStem, layers: Sequence[int] = LAYERS) -> dict[int, Gaussians]:
    """The Gaussian of each image's features over its locations, one pass per image.

    Args:
        images: uint8 (N, H, W, 3), or float (N, 3, H, W) in [-1, 1].
        layers: which of the maps.

    Returns:
        {64: …, 192: …}, see `InceptionStem`.
    """
    parts: dict[int, list[Gaussians]] = {layer: [] for layer in layers}
    for batch in in_batches(images, stem.device):
        maps = stem(batch)
        for layer in layers:
            parts[layer].append(fit_gaussians(maps[layer]))
    return {layer: join(found) for layer, found in parts.items()}


def sifid(
    fake: Tensor | np.ndarray, real: Tensor | np.ndarray, stem: InceptionStem, layer: int = 64
) -> Tensor:
    """SIFID of each image of `fake`: the mean distance to the images of `real`, (N,) float64.

    Args:
        fake, real: uint8 (N, H, W, 3) or float (N, 3, H, W) in [-1, 1]; the real ones at the size of the
            others.
        layer: 64, the map before the first pooling, or 192, the one before the second.
    """
    a, b = (statistics(images, stem, [layer])[layer] for images in map(as_images, (fake, real)))
    return frechet_distance(a, b).mean(dim=1)
