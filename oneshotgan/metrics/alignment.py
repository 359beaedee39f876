"""Distance to the best-aligned copy of a training image: catches augmentation that passes for novelty.

A generator may draw nothing but the training image mirrored, moved and zoomed. Against a fixed set of copies
such a sample keeps some distance, for its very transform is hardly in the set. So the transform is searched:
first over flips, zooms and all shifts at a small size, by correlation; then the few best are refined by
gradient descent on flip, rotation, zoom and shift; LPIPS is taken to what the best of them gives.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan import augment
from oneshotgan.data import PIXELS_AT_ONCE, as_images, image_size, in_batches
from oneshotgan.metrics.distance import Nearest
from oneshotgan.perceptual import lpips
from oneshotgan.perceptual.lpips import LPIPS, Features

ZOOMS = (1.0, 0.9, 0.8, 0.7, 1.15)  # part of each side in view; above 1, mirrored borders come in
COARSE = 24  # pixels on the short side in the search
FINE = 64  # pixels on the short side at most in the refinement
LARGEST_SHIFT = 0.45  # of each side
KEPT = 3  # candidates refined for each sample
REFINEMENTS = 50  # steps of gradient descent
_AT_ONCE = 16  # samples refined together


def aligned_distance(
    fake: Tensor | np.ndarray, real: Tensor | np.ndarray, network: LPIPS, features: Features | None = None
) -> Nearest:
    """LPIPS of each sample to the training image that, best mirrored, moved or zoomed, is nearest.

    Borders are mirrored, as in the training augmentation.

    Args:
        fake, real: uint8 (N, H, W, 3) or float (N, 3, H, W) in [-1, 1], of one size.
        features: those of `fake`, where they are known; else each sample passes the network once more.

    Returns:
        Distances, and indices of the training images.
    """
    fake, real = as_images(fake), as_images(real)
    if features is None:
        features = network.embed(fake)
    frames, maps = _search(_shrunk(fake, COARSE, network), _shrunk(real, COARSE, network))
    fine_fake, fine_real = _shrunk(fake, FINE, network), _shrunk(real, FINE, network)
    height, width = image_size(fake)
    at_once = max(1, PIXELS_AT_ONCE // (height * width))
    found = []
    for frame, start in zip(frames, maps, strict=True):  # the best candidates, the second best, …
        parts = []
        for chunk in torch.split(torch.arange(len(fake)), _AT_ONCE):
            refined = _refined(fine_fake[chunk], fine_real[frame[chunk]], start[chunk])
            for few, maps_of_few in zip(
                torch.split(chunk, at_once), torch.split(refined, at_once), strict=True
            ):
                shown = _whole(real[frame[few].to(real.device)], network)
                moved = augment.apply_transforms([shown], _matrices(maps_of_few, shown))[0]
                parts.append(lpips.paired_distances(features[few], network.embed(moved)))
        found.append(torch.cat(parts))
    distance, which = torch.stack(found).min(dim=0)
    return Nearest(distance, frames.gather(0, which[None])[0])


# A map is (flip ±1, log zoom, rotation in radians, shift x, shift y), the shifts in half sides.


@torch.inference_mode()
def _search(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample the best training images, (KEPT, N), and maps, (KEPT, N, 5), by squared difference."""
    scores, frames, maps = [], [], []
    for flip in (1.0, -1.0):
        for zoom in ZOOMS:
            errors, shifts = _shift_errors(fake, real.flip(-1) if flip < 0 else real, zoom)
            scores.append(errors)
            frames.append(torch.arange(len(real), device=real.device).expand_as(errors))
            fixed = torch.tensor([flip, torch.tensor(zoom).log(), 0.0], device=real.device)
            maps.append(torch.cat([fixed.expand(*errors.shape, 3), shifts], dim=-1))
    order = torch.cat(scores, dim=1).topk(min(KEPT, len(scores) * len(real)), dim=1, largest=False).indices
    chosen_frames = torch.cat(frames, dim=1).gather(1, order)
    chosen_maps = torch.cat(maps, dim=1).gather(1, order[..., None].expand(-1, -1, 5))
    return chosen_frames.T.clone(), chosen_maps.transpose(0, 1).clone()


def _shift_errors(fake: Tensor, real: Tensor, zoom: float) -> tuple[Tensor, Tensor]:
    """The least squared difference over all shifts, (N, M), and the shift of it, (N, M, 2), in half sides.

    The zoomed training image and its mirror images tile the plane with a period of two sides, so all shifts
    with mirrored borders come out of one circular correlation.
    """
    height, width = fake.shape[2:]
    tall, wide = round(height / zoom), round(width / zoom)
    zoomed = F.interpolate(real, (tall, wide), mode="bilinear", antialias=True, align_corners=False)
    tile = torch.cat([zoomed, zoomed.flip(-1)], dim=-1)
    tile = torch.cat([tile, tile.flip(-2)], dim=-2)
    size = tile.shape[2:]

    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, s=size)  # type: ignore[no-any-return]

    window = spectrum(torch.ones(1, height, width, device=fake.device)).conj()
    energy = torch.fft.irfft2(spectrum(tile.square().sum(1)) * window, s=size)  # (M, 2·tall, 2·wide)
    tiles, own = spectrum(tile), fake.square().sum((1, 2, 3))

    # Where the window may lie: its top left corner is that of the shift, in pixels of the zoomed image.
    top, left = (tall - height) / 2, (wide - width) / 2
    rows = _allowed(size[0], top, LARGEST_SHIFT * tall, tile.device)
    columns = _allowed(size[1], left, LARGEST_SHIFT * wide, tile.device)

    errors, shifts = [], []
    for sample, norm in zip(fake, own, strict=True):
        correlation = torch.fft.irfft2((tiles * spectrum(sample).conj()).sum(1), s=size)
        error = (norm + energy - 2 * correlation)[:, rows[:, 0]][:, :, columns[:, 0]]
        least, place = error.flatten(1).min(dim=1)
        y, x = rows[place // len(columns), 1], columns[place % len(columns), 1]
        errors.append(least)
        shifts.append(torch.stack([2 * (x - left) / wide, 2 * (y - top) / tall], dim=-1))
    return torch.stack(errors), torch.stack(shifts)


def _allowed(period: int, centre: float, reach: float, device: torch.device) -> Tensor:
    """(n, 2) positions within `reach` of `centre`: modulo the period, as an index, and as they are."""
    low, high = -int(reach - centre), int(reach + centre)
    positions = torch.arange(low, high + 1, device=device)
    return torch.stack([positions % period, positions], dim=1)


def _refined(fake: Tensor, real: Tensor, start: Tensor) -> Tensor:
    """The maps (n, 5) from `start` by Adam on the mean absolute difference, each pair by itself."""
    fixed, free = start[:, :1], start[:, 1:].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, REFINEMENTS, eta_min=0.0005)
    with torch.enable_grad():
        for _ in range(REFINEMENTS):
            moved = augment.apply_transforms([real], _matrices(torch.cat([fixed, free], dim=1), real))[0]
            loss = (moved - fake).abs().mean(dim=(1, 2, 3)).sum()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return torch.cat([fixed, free.detach()], dim=1)


def _matrices(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (n, 5) as the (n, 2, 3) matrices of `affine_grid`, for images of this shape."""
    flip, log_zoom, angle, x, y = maps.unbind(1)
    aspect = images.shape[3] / images.shape[2]
    zoom, cos, sin = log_zoom.exp(), angle.cos(), angle.sin()
    # Flipped first: a shift of the mirrored image is the opposite one of the image.
    row_x = torch.stack([flip * zoom * cos, -flip * zoom * sin / aspect, flip * x], dim=1)
    row_y = torch.stack([zoom * sin * aspect, zoom * cos, y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _whole(images: Tensor, network: LPIPS) -> Tensor:
    """A few images as float on the network's device."""
    return torch.cat(list(in_batches(images, network.device)))


def _shrunk(images: Tensor, short: int, network: LPIPS) -> Tensor:
    """All images as float, scaled down to `short` pixels on the short side; smaller ones stay."""
    height, width = image_size(images)
    scale = min(1.0, short / min(height, width))
    size = (round(height * scale), round(width * scale))
    batches = in_batches(images, network.device)
    return torch.cat(
        [F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False) for x in batches]
    )
