"""Frames to batches and back, and the random streams."""

import numpy as np
import torch

from oneshotgan.data import Batches, pyramid, random_stream, to_float, to_uint8

CPU = torch.device("cpu")


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def test_there_and_back() -> None:
    images = frames(3)
    tensor = to_float(torch.from_numpy(images))
    assert tensor.shape == (3, 3, 32, 48)
    assert tensor.dtype == torch.float32
    assert -1 <= float(tensor.min()) < float(tensor.max()) <= 1
    assert np.array_equal(to_uint8(tensor), images)
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255  # clipped, not wrapped


def test_a_pyramid_level_is_the_mean_of_four_pixels() -> None:
    image = torch.randn(2, 3, 8, 12)
    full, half, quarter = pyramid(image, 3)
    assert full is image
    assert torch.allclose(half[0, 0, 0, 0], image[0, 0, :2, :2].mean())
    assert torch.allclose(quarter[1, 2, 1, 2], image[1, 2, 4:8, 8:12].mean(), atol=1e-6)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    batches, again = (Batches(frames(20), 5, 2, 3, CPU) for _ in range(2))
    late_first = again.at(9)[0]
    assert torch.equal(batches.at(9)[0], late_first)
    assert not torch.equal(batches.at(10)[0], late_first)
    assert not torch.equal(Batches(frames(20), 5, 2, 4, CPU).at(9)[0], late_first)


def test_a_batch_holds_distinct_frames_where_there_are_enough() -> None:
    images = frames(6)
    seen = set()
    batches = Batches(images, 5, 1, 0, CPU)
    for step in range(1, 30):
        batch = to_uint8(batches.at(step)[0])
        ids = [next(k for k in range(6) if np.array_equal(images[k], image)) for image in batch]
        assert len(set(ids)) == 5
        seen |= set(ids)
    assert seen == set(range(6))


def test_one_photo_fills_the_batch() -> None:
    batch = Batches(frames(1), 5, 3, 0, CPU).at(1)
    assert [tuple(level.shape) for level in batch] == [(5, 3, 32, 48), (5, 3, 16, 24), (5, 3, 8, 12)]
    assert torch.equal(batch[0][0], batch[0][4])


def test_streams_are_independent_of_one_another() -> None:
    def numbers(*key: object) -> torch.Tensor:
        return torch.rand(4, generator=random_stream(*key))  # type: ignore[arg-type]

    assert torch.equal(numbers(0, "a", 1), numbers(0, "a", 1))
    others = [numbers(1, "a", 1), numbers(0, "b", 1), numbers(0, "a", 2)]
    assert not any(torch.equal(numbers(0, "a", 1), other) for other in others)
