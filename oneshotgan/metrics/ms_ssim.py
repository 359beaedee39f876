"""MS-SSIM, the multi-scale structural similarity (Wang, Simoncelli and Bovik, 2003), of many pairs.

What belongs to one image, its blurred mean and variance at every scale, is computed once; a pair then needs
one blurred product a scale. The blur adds up shifted copies, which a processor does faster than a convolution
by channel. The values are those of pytorch-msssim; a pair takes a fraction of its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan.data import as_images, image_size, in_batches
from oneshotgan.errors import UserError

WINDOW = 11  # pixels
SIGMA = 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1
_AT_ONCE = 2**22  # pixel values in one batch of pairs
_KEPT = 2**24  # pixel values of the images whose means and variances are kept at one time


def scales_for(height: int, width: int) -> int:
    """How many scales images of this size have: 5 from 161 px on, fewer below.

    Raises:
        UserError: not even one window fits.
    """
    short = min(height, width)
    fitting = [s for s in range(1, 6) if short > (WINDOW - 1) * 2 ** (s - 1)]
    if not fitting:
        raise UserError(f"MS-SSIM needs images of {WINDOW} pixels or more on the short side")
    return fitting[-1]


def ms_ssim_pairs(a: Tensor | np.ndarray, b: Tensor | np.ndarray | None = None) -> Tensor:
    """MS-SSIM of every image of `a` with every image of `b`, (Na, Nb) float64; with itself if b is None.

    Args:
        a, b: uint8 (N, H, W, 3), or float (N, 3, H, W) in [-1, 1]; taken to [0, 1], the data range. With
            fewer than 5 scales (see `scales_for`) the weights of those used are divided by their sum.
    """
    a = as_images(a)
    height, width = image_size(a)
    scales = scales_for(height, width)
    block = max(1, _KEPT // (3 * height * width))
    others = a if b is None else as_images(b)
    result = torch.zeros(len(a), len(others), dtype=torch.float64)
    for top in range(0, len(a), block):
        left = _levels(a[top : top + block], scales)
        for start in range(top if b is None else 0, len(others), block):
            same = b is None and start == top
            right = left if same else _levels(others[start : start + block], scales)
            values = _block(left, right, symmetric=same)
            result[top : top + block, start : start + block] = values
            if b is None:
                result[start : start + block, top : top + block] = values.T
    return result


@dataclass(frozen=True)
class _Level:
    """One scale of N images: pixels (N, 3, h, w), and mean and variance in each window."""

    image: Tensor
    mean: Tensor
    variance: Tensor


@torch.inference_mode()
def _levels(images: Tensor, scales: int) -> list[_Level]:
    x = (torch.cat(list(in_batches(images, images.device))) + 1) / 2
    found = []
    for scale in range(scales):
        if scale > 0:
            x = F.avg_pool2d(x, kernel_size=2, padding=[side % 2 for side in x.shape[2:]])
        mean = _blurred(x)
        found.append(_Level(x, mean, _blurred(x * x) - mean * mean))
    return found


def _block(left: list[_Level], right: list[_Level], symmetric: bool) -> Tensor:
    """MS-SSIM of all pairs of two blocks; of one block with itself, half of them is computed."""
    result = torch.zeros(len(left[0].image), len(right[0].image), dtype=torch.float64)
    at_once = max(1, _AT_ONCE // left[0].image[0].numel())
    for i in range(len(result)):
        for start in range(i if symmetric else 0, result.shape[1], at_once):
            chunk = slice(start, start + at_once)
            result[i, chunk] = _compare(left, i, right, chunk).double().cpu()
    return torch.triu(result) + torch.triu(result, 1).T if symmetric else result


@torch.inference_mode()
def _compare(left: list[_Level], i: int, right: list[_Level], chunk: slice) -> Tensor:
    """MS-SSIM of image i of the left with some of the right, (n,)."""
    weights = torch.tensor(SCALE_WEIGHTS[: len(left)])
    weights = weights / weights.sum() if len(left) < len(SCALE_WEIGHTS) else weights
    product = torch.ones(())
    for scale, (x, y) in enumerate(zip(left, right, strict=True)):
        image, mean, variance = x.image[i], x.mean[i], x.variance[i]
        covariance = _blurred(image * y.image[chunk]) - mean * y.mean[chunk]
        similarity = (2 * covariance + _C2) / (variance + y.variance[chunk] + _C2)
        if scale == len(left) - 1:  # luminance counts at the coarsest scale alone
            luminance = (2 * mean * y.mean[chunk] + _C1) / (mean.square() + y.mean[chunk].square() + _C1)
            similarity = luminance * similarity
        product = product * torch.relu(similarity.mean(dim=(2, 3))) ** float(weights[scale])
    return product.mean(dim=1)


def _blurred(x: Tensor) -> Tensor:
    """The weighted mean of each window inside the image, along one side and then along the other."""
    for dim in (2, 3):
        inside = x.shape[dim] - WINDOW + 1
        total = _WEIGHTS[0] * x.narrow(dim, 0, inside)
        for i, weight in enumerate(_WEIGHTS[1:], start=1):
            total.add_(x.narrow(dim, i, inside), alpha=weight)
        x = total
    return x


def _gaussian() -> list[float]:
    offsets = torch.arange(WINDOW) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return [float(weight) for weight in window / window.sum()]


_WEIGHTS = _gaussian()
