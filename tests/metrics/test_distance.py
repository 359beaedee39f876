"""Distance to training, to a fixed set of copies and to the best-aligned one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import Golden, images
from torch import Tensor

from oneshotgan import augment
from oneshotgan.data import to_float
from oneshotgan.metrics import aligned_distance, distance_to_train, training_copies
from oneshotgan.perceptual import LPIPS


def moved(image: Tensor, count: int, seed: int = 1, probability: float = 0.9) -> Tensor:
    """Copies of one image (1, 3, H, W) under the training augmentation."""
    uniform = torch.rand(count, augment.DRAWS, generator=torch.Generator().manual_seed(seed))
    transforms = augment.draw_transforms(uniform, image.shape[3] / image.shape[2], probability)
    return augment.apply_transforms([image.expand(count, -1, -1, -1)], transforms)[0]


def photo(golden: Golden, name: str, height: int = 64, width: int = 96) -> Tensor:
    """A provided photo, float (1, 3, H, W)."""
    image = to_float(golden.image(name))
    return torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)


# --- the fixed set ---


def test_the_set_holds_the_image_its_mirror_and_copies_and_grows_by_adding() -> None:
    real = images(3)
    large = training_copies(real, 8).view(3, 8, 3, 48, 64)
    assert torch.equal(large[:, 0], real)
    assert torch.equal(large[:, 1], real.flip(-1))
    for copies in (1, 2, 5):
        assert torch.equal(training_copies(real, copies).view(3, copies, 3, 48, 64), large[:, :copies])
    assert torch.equal(training_copies(real[1:], 8, first=1).view(2, 8, 3, 48, 64), large[1:])
    assert not torch.equal(large[0, 2], large[0, 3])


def test_laws(alex: LPIPS) -> None:
    real = images(4)
    copies = training_copies(real, 8)
    assert distance_to_train(real, real, alex).distance.max() < 1e-6
    assert distance_to_train(real, real, alex, copies=1).distance.max() < 1e-6
    assert distance_to_train(real.flip(-1), real, alex).distance.max() < 1e-6
    assert distance_to_train(real.flip(-1), real, alex, copies=1).distance.min() > 1e-3
    members = distance_to_train(copies, real, alex)
    assert members.distance.max() < 1e-6
    assert members.index.tolist() == list(range(32))  # image k of the set is its own nearest


def test_it_falls_as_the_set_grows(alex: LPIPS) -> None:
    samples, real = images(5, seed=1), images(3, seed=2)
    values = [distance_to_train(samples, real, alex, copies).distance for copies in (1, 2, 4, 8, 16)]
    for fewer, more in pairwise(values):
        assert (more <= fewer + 1e-6).all()
    assert values[-1].mean() < values[0].mean()


def test_each_image_of_the_set_passes_the_network_once(alex: LPIPS, passes: list[int]) -> None:
    distance_to_train(images(6), images(5, seed=1), alex)
    assert sum(passes) == 6 + 5 * 8


@pytest.mark.parametrize("name", ["data/images/balloons.png", "data/images/birds.png"])
def test_a_shifted_photo_is_nearer_than_another_scene(golden: Golden, name: str) -> None:
    network = LPIPS.load()
    real, other = photo(golden, name), photo(golden, "data/images/cows.png")
    shifted = distance_to_train(moved(real, 6), real, network).distance
    assert shifted.max() < 0.8 * distance_to_train(other, real, network).distance.item()


# --- the best-aligned copy ---


def test_own_copies_have_no_distance_once_aligned(alex: LPIPS) -> None:
    real = images(2)
    copies = torch.cat([moved(real[:1], 8, seed=1), moved(real[1:], 8, seed=2)])
    found = aligned_distance(copies, real, alex)
    fixed = distance_to_train(copies, real, alex).distance
    strangers = aligned_distance(images(4, seed=9), real, alex).distance
    assert found.distance.median() < 0.1 * strangers.min()
    assert found.distance.mean() < 0.2 * fixed.mean()
    assert found.index.tolist() == [0] * 8 + [1] * 8


@pytest.mark.parametrize("name", ["data/images/balloons.png", "data/davis/goat/frames/00000.jpg"])
def test_copies_of_a_photo_are_unmasked(golden: Golden, name: str) -> None:
    """Augmentation that passes for novelty: far from the fixed set, at no distance once aligned."""
    network = LPIPS.load()
    real, other = photo(golden, name), photo(golden, "data/images/cows.png")
    copies = moved(real, 8)
    assert distance_to_train(copies, real, network).distance.mean() > 0.05
    assert aligned_distance(copies, real, network).distance.max() < 0.02
    assert aligned_distance(real.flip(-1), real, network).distance.max() < 0.01
    assert aligned_distance(other, real, network).distance.item() > 0.3


def test_large_images_are_aligned_as_well(golden: Golden) -> None:
    network = LPIPS.load()
    real = photo(golden, "data/images/birds.png", 192, 288)
    assert aligned_distance(moved(real, 4), real, network).distance.max() < 0.02


def test_bytes_and_floats_are_one_image(alex: LPIPS) -> None:
    as_bytes = (images(4).permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8)
    as_floats = to_float(as_bytes)
    for figure in (distance_to_train, aligned_distance):
        one, other = figure(as_bytes[:2], as_bytes[2:], alex), figure(as_floats[:2], as_floats[2:], alex)
        assert torch.allclose(one.distance, other.distance, atol=1e-6)
