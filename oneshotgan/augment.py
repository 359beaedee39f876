"""Differentiable image augmentation: one door for real and generated images.

Each image gets its own flip, rotation, zoom and translation, each drawn or not with a probability of its
own, joined into one affine map and applied at all scales of the image alike. Borders are mirrored. The
idea, augmenting all that the discriminator sees so that the generator does not learn it, is that of
adaptive discriminator augmentation (Karras et al., NeurIPS 2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan.data import at_least_float32

ROTATION = 8.0  # degrees, to either side
ZOOM = 0.75  # the smallest part of each side that is kept
TRANSLATION = (0.05, 0.30)  # of the side, in either direction, vertically and horizontally
DRAWS = 11  # uniform numbers per image


def draw_transforms(uniform: Tensor, aspect: float, probability: float) -> Tensor:
    """Turn uniform random numbers into affine maps, one per image.

    Args:
        uniform: (N, DRAWS) in [0, 1).
        aspect: width / height of the images.
        probability: of each of flip, rotation, zoom and translation, independently. A flip that is drawn
            mirrors in half of the cases.

    Returns:
        (N, 2, 3), maps from output to input in the coordinates of `torch.nn.functional.affine_grid`.
    """
    applied = uniform[:, :4] < probability
    values = uniform[:, 4:]
    flip = torch.where(applied[:, 0] & (values[:, 0] < 0.5), -1.0, 1.0)
    angle = torch.where(applied[:, 1], math.radians(ROTATION) * (2 * values[:, 1] - 1), 0.0)
    zoom = torch.where(applied[:, 2], ZOOM + (1 - ZOOM) * values[:, 2], 1.0)
    # Where the kept part lies: anywhere that it stays inside the image, then the translation.
    room = 1 - zoom
    shift_x = torch.where(applied[:, 3], _signed_range(values[:, 3]), 0.0)
    shift_y = torch.where(applied[:, 3], _signed_range(values[:, 4]), 0.0)
    centre_x = room * (2 * values[:, 5] - 1) + 2 * shift_x
    centre_y = room * (2 * values[:, 6] - 1) + 2 * shift_y
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rotation in square pixels: x is measured in half widths, y in half heights.
    row_x = torch.stack([flip * zoom * cos, -zoom * sin / aspect, centre_x], dim=1)
    row_y = torch.stack([flip * zoom * sin * aspect, zoom * cos, centre_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _signed_range(uniform: Tensor) -> Tensor:
    """Uniform in [0, 1) -> uniform in ±TRANSLATION."""
    low, high = TRANSLATION
    signed = 2 * uniform - 1
    return signed.sign() * low + signed * (high - low)


def apply_transforms(images: list[Tensor], transforms: Tensor) -> list[Tensor]:
    """Move every scale of each image by the image's own map, bilinearly, with mirrored borders.

    Never in less than float32: a grid in bfloat16 is off by a pixel at 320.

    Args:
        images: the scales of a batch, each (N, 3, h, w), float in [-1, 1].
        transforms: (N, 2, 3), see `draw_transforms`.
    """
    return [_apply(at_least_float32(scale), transforms) for scale in images]


def _apply(images: Tensor, transforms: Tensor) -> Tensor:
    grid = F.affine_grid(transforms.to(images.dtype), list(images.shape), align_corners=False)
    if images.is_cuda and torch.are_deterministic_algorithms_enabled():
        return sample_by_index(images, grid)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def sample_by_index(images: Tensor, grid: Tensor) -> Tensor:
    """What `grid_sample` gives, by indexing: slower, but its gradient on CUDA is deterministic.

    Args:
        images: (N, C, h, w).
        grid: (N, h, w, 2), x and y in [-1, 1] across the image, mirrored beyond.
    """
    height, width = images.shape[2:]
    x = _mirrored(((grid[..., 0] + 1) * width - 1) / 2, width)
    y = _mirrored(((grid[..., 1] + 1) * height - 1) / 2, height)
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    columns = [left.long(), (left.long() + 1).clamp_max(width - 1)]
    rows = [top.long(), (top.long() + 1).clamp_max(height - 1)]
    total = torch.zeros_like(images).permute(0, 2, 3, 1)
    for row, row_share in zip(rows, (1 - bottom_share, bottom_share), strict=True):
        for column, column_share in zip(columns, (1 - right_share, right_share), strict=True):
            total = total + images[batch, :, row, column] * (row_share * column_share)[..., None]
    return total.permute(0, 3, 1, 2)


def _mirrored(position: Tensor, size: int) -> Tensor:
    """Pixel positions mirrored at the image's borders, −½ and size − ½, then kept on the pixels."""
    from_edge = (position + 0.5).abs() % (2 * size)
    folded = torch.minimum(from_edge, 2 * size - from_edge)
    return (folded - 0.5).clamp(0, size - 1)
