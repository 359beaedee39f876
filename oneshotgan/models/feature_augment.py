"""Augmentation inside the discriminator: real features mixed between samples of a batch.

From the authors' longer paper (arXiv:2103.13389, "content and layout feature augmentation"): the content
vector swaps and loses channels, the layout map swaps a rectangle. Only real features are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureAugmentDraw:
    """The random numbers of one batch of n samples, uniform in [0, 1).

    Attributes:
        apply: (2,) whether to swap channels, and whether to swap a rectangle.
        order: (n,) the samples' places in the random cycle along which they swap.
        swap_fraction, swap_rank: (1,) and (C,) the share of channels swapped, and which.
        zero_apply, zero_fraction, zero_rank: (n, 1), (n, 1) and (n, C) the same for zeroed channels.
        rectangle: (4,) relative height, width, top and left of the swapped rectangle.
    """

    apply: Tensor
    order: Tensor
    swap_fraction: Tensor
    swap_rank: Tensor
    zero_apply: Tensor
    zero_fraction: Tensor
    zero_rank: Tensor
    rectangle: Tensor


def draw(samples: int, channels: int, generator: torch.Generator) -> FeatureAugmentDraw:
    """Draw for a batch of `samples` content vectors of `channels` channels."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    return FeatureAugmentDraw(
        apply=uniform(2),
        order=uniform(samples),
        swap_fraction=uniform(1),
        swap_rank=uniform(channels),
        zero_apply=uniform(samples, 1),
        zero_fraction=uniform(samples, 1),
        zero_rank=uniform(samples, channels),
        rectangle=uniform(4),
    )


def augment_content(vector: Tensor, draw: FeatureAugmentDraw, probability: float) -> Tensor:
    """Swap 10–30 % of the channels between samples, then zero 10–30 %, each with `probability`.

    The samples swap along a random cycle, so that none is left out and no value is lost or doubled.

    Args:
        vector: (N, C, 1, 1), the content vectors of the real images.
    """
    swapped = (_rank(draw.swap_rank) < _between(draw.swap_fraction, 0.1, 0.3)) & (draw.apply[0] < probability)
    vector = torch.where(swapped[None, :, None, None], vector[_next_in_cycle(draw.order)], vector)
    zeroed = (_rank(draw.zero_rank) < _between(draw.zero_fraction, 0.1, 0.3)) & (
        draw.zero_apply < probability
    )
    return vector.masked_fill(zeroed[:, :, None, None], 0)


def augment_layout(plane: Tensor, draw: FeatureAugmentDraw, probability: float) -> Tensor:
    """Swap a rectangle of 10–50 % of each side between samples, with `probability`.

    Args:
        plane: (N, 1, h, w), the layout maps of the real images.
    """
    height, width = plane.shape[2:]
    sides = _between(draw.rectangle[:2], 0.1, 0.5)
    starts = draw.rectangle[2:] * (1 - sides)
    rows = _inside(height, starts[0], sides[0], plane.device)
    columns = _inside(width, starts[1], sides[1], plane.device)
    swapped = rows[:, None] & columns[None, :] & (draw.apply[1] < probability)
    return torch.where(swapped, plane[_next_in_cycle(draw.order)], plane)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _rank(uniform: Tensor) -> Tensor:
    """The relative rank in [0, 1) of each entry along the last dimension."""
    return uniform.argsort(dim=-1).argsort(dim=-1) / uniform.shape[-1]


def _next_in_cycle(order: Tensor) -> Tensor:
    """For each sample the one that follows it in the random cycle given by `order`."""
    cycle = order.argsort()
    following = torch.empty_like(cycle)
    following[cycle] = cycle.roll(-1)
    return following


def _inside(count: int, start: Tensor, length: Tensor, device: torch.device) -> Tensor:
    """Which of `count` cells have their centre in [start, start + length), in units of the side."""
    centres = (torch.arange(count, device=device) + 0.5) / count
    return (centres >= start) & (centres < start + length)
