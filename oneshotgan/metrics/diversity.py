"""Diversity: how different the samples are from one another, over all their pairs."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from oneshotgan.data import as_images
from oneshotgan.metrics.jackknife import pairs_mean_error
from oneshotgan.metrics.ms_ssim import ms_ssim_pairs
from oneshotgan.perceptual import lpips
from oneshotgan.perceptual.lpips import LPIPS


def lpips_pairs(images: Tensor | np.ndarray, network: LPIPS) -> Tensor:
    """LPIPS of every two images, (N, N) float64; one pass of the network per image.

    Args:
        images: uint8 (N, H, W, 3), or float (N, 3, H, W) in [-1, 1].
    """
    features = network.embed(as_images(images))
    return lpips.distances(features, features)


def lpips_diversity(images: Tensor | np.ndarray, network: LPIPS) -> float:
    """The mean LPIPS over all pairs of N ≥ 2 images (see `lpips_pairs`); higher is more varied."""
    return pairs_mean_error(lpips_pairs(images, network))[0]


def ms_ssim_diversity(images: Tensor | np.ndarray) -> float:
    """The mean MS-SSIM over all pairs of N ≥ 2 images (see `lpips_pairs`); lower is more varied."""
    return pairs_mean_error(ms_ssim_pairs(images))[0]
