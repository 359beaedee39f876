"""Frames -> endless seeded batches on the device, in [-1, 1], with their pyramid; and the seeds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Of images that a network sees in one pass outside training, so that memory is bounded.
PIXELS_AT_ONCE = 2**20
LARGEST_BATCH = 64  # images


def random_stream(seed: int, name: str, step: int = 0) -> torch.Generator:
    """A CPU random generator that depends on (seed, name, step) alone.

    Every purpose has a stream of its own, so that resuming needs no saved random state and turning one
    thing off leaves the others' numbers as they are.
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode()), step])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


@contextmanager
def seeded_initialisation(seed: int, name: str = "weights") -> Iterator[None]:
    """Within this context new modules draw their weights from (seed, name); the global state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_stream(seed, name).initial_seed())
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Float (N, 3, H, W) in [-1, 1] -> uint8 (N, H, W, 3)."""
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def in_batches(images: Tensor, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Images as float32 (n, 3, H, W) in [-1, 1], as many at once as `PIXELS_AT_ONCE` allows.

    Args:
        images: uint8 (N, H, W, 3), which takes the least memory, or float (N, 3, H, W) in [-1, 1].
    """
    height, width = image_size(images)
    at_once = min(LARGEST_BATCH, max(1, PIXELS_AT_ONCE // (height * width)))
    for part in torch.split(images, at_once):
        yield (to_float(part) if images.dtype == torch.uint8 else part.float()).to(device)


def as_images(images: Tensor | np.ndarray) -> Tensor:
    """Images in either form of `in_batches`, as a tensor.

    Raises:
        ValueError: they have neither form.
    """
    tensor = torch.as_tensor(images)
    image_size(tensor)
    return tensor


def image_size(images: Tensor) -> tuple[int, int]:
    """(height, width) of images in either form of `in_batches`.

    Raises:
        ValueError: they have neither form.
    """
    axis = -1 if images.dtype == torch.uint8 else 1
    if images.ndim != 4 or images.shape[axis] != 3:
        raise ValueError(
            f"images are uint8 (N, H, W, 3) or float (N, 3, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    height, width = images.shape[1:3] if axis == -1 else images.shape[2:]
    return height, width


def pyramid(images: Tensor, scales: int) -> list[Tensor]:
    """(N, 3, H, W) -> [itself, its half, its quarter, …], `scales` in all, each the mean of 2×2 pixels."""
    levels = [images]
    for _ in range(scales - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


class Batches:
    """The endless batches of a training: batch `step` depends on (seed, step) alone.

    A batch holds distinct frames where there are enough of them, else it repeats.
    """

    def __init__(
        self, frames: np.ndarray, batch_size: int, scales: int, seed: int, device: torch.device
    ) -> None:
        self.frames = torch.from_numpy(frames).to(device)
        self.batch_size, self.scales, self.seed = batch_size, scales, seed

    def at(self, step: int) -> list[Tensor]:
        """The real images of `step`: a pyramid, the finest first, each (batch_size, 3, h, w) in [-1, 1]."""
        return self.images(self.indices(step).to(self.frames.device))

    def indices(self, step: int) -> Tensor:
        """Which frames make the batch of `step`, (batch_size,)."""
        stream, count = random_stream(self.seed, "batch", step), len(self.frames)
        if count >= self.batch_size:
            return torch.randperm(count, generator=stream)[: self.batch_size]
        return torch.randint(count, (self.batch_size,), generator=stream)

    def images(self, indices: Tensor) -> list[Tensor]:
        """These frames, by indices on the device, as a pyramid."""
        return pyramid(to_float(self.frames[indices]), self.scales)
