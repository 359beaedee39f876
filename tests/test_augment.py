"""Image augmentation: one transform for all scales, the identity at probability 0, stated ranges."""

import math

import pytest
import torch
import torch.nn.functional as F

from oneshotgan import augment
from oneshotgan.data import pyramid

ASPECT = 1.25


def smooth_images(count: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """Images without detail finer than a coarse pixel, so that scales can be compared."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, height // 16, width // 16, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(-1, 1)


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, augment.DRAWS, generator=torch.Generator().manual_seed(seed))


def transforms(count: int, probability: float = 1.0, seed: int = 0, aspect: float = ASPECT) -> torch.Tensor:
    return augment.draw_transforms(uniform(count, seed), aspect, probability)


def test_probability_zero_is_the_identity() -> None:
    images = smooth_images(4)
    maps = transforms(4, probability=0.0)
    assert torch.equal(maps, torch.eye(2, 3).expand(4, 2, 3))
    (moved,) = augment.apply_transforms([images], maps)
    assert torch.allclose(moved, images, atol=1e-5)


def test_one_transform_moves_all_scales_alike() -> None:
    """Each scale, moved, against the full-size image moved and then scaled down."""
    images = smooth_images(16)
    scales = augment.apply_transforms(pyramid(images, 3), transforms(16))
    for scale, reference in zip(scales, pyramid(scales[0], 3), strict=True):
        assert float((scale - reference).abs().mean()) < 0.02
    other = augment.apply_transforms(pyramid(images, 3), transforms(16, seed=1))
    assert float((other[2] - pyramid(scales[0], 3)[2]).abs().mean()) > 0.1  # the measure can tell


def test_every_image_has_its_own_transform() -> None:
    images = smooth_images(1).expand(6, -1, -1, -1)
    (moved,) = augment.apply_transforms([images], transforms(6))
    assert all(not torch.allclose(moved[i], moved[j], atol=1e-3) for i in range(6) for j in range(i))


def test_transforms_are_drawn_with_their_probability() -> None:
    identity = torch.eye(2, 3)
    same = (transforms(4000, probability=0.4) == identity).all(dim=(1, 2)).float().mean()
    # flip mirrors in half of the cases it is drawn in: (1 − 0.2) (1 − 0.4)³
    assert float(same) == pytest.approx(0.8 * 0.6**3, abs=0.03)


def test_a_rotation_turns_square_pixels_by_its_angle() -> None:
    numbers = uniform(64)
    numbers[:, :4] = 1.0
    numbers[:, 1] = 0.0  # rotation alone
    maps = augment.draw_transforms(numbers, ASPECT, 0.5)
    to_pixels = torch.diag(torch.tensor([ASPECT, 1.0]))
    square = to_pixels @ maps[:, :, :2] @ to_pixels.inverse()
    angles = torch.atan2(square[:, 1, 0], square[:, 0, 0]).rad2deg()
    assert torch.allclose(square @ square.mT, torch.eye(2).expand(64, 2, 2), atol=1e-6)
    assert float(angles.abs().max()) <= augment.ROTATION + 1e-4
    assert float(angles.abs().max()) > 0.8 * augment.ROTATION


def test_translation_moves_by_five_to_thirty_percent_with_mirrored_borders() -> None:
    numbers = uniform(500)
    numbers[:, :4] = 1.0
    numbers[:, 3] = 0.0  # translation alone
    maps = augment.draw_transforms(numbers, ASPECT, 0.5)
    share = maps[:, :, 2].abs() / 2
    assert float(share.min()) >= 0.05 - 1e-6
    assert float(share.max()) <= 0.30 + 1e-6
    assert float((maps[:, :, 2] > 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    # A whole number of pixels: the border shows its mirror image.
    image = torch.arange(20.0).view(1, 1, 1, 20).expand(1, 3, 4, 20)
    shift = torch.tensor([[[1.0, 0.0, 2 * 3 / 20], [0.0, 1.0, 0.0]]])
    (moved,) = augment.apply_transforms([image], shift)
    assert torch.allclose(moved[0, 0, 0], torch.tensor([*range(3, 20), 19, 18, 17]).float(), atol=1e-4)


def test_zoom_keeps_three_quarters_or_more_and_stays_inside() -> None:
    numbers = uniform(500)
    numbers[:, :4] = 1.0
    numbers[:, 2] = 0.0  # zoom alone
    maps = augment.draw_transforms(numbers, ASPECT, 0.5)
    zoom = maps[:, 0, 0]
    assert torch.equal(zoom, maps[:, 1, 1])
    assert float(zoom.min()) >= augment.ZOOM
    assert float(zoom.max()) <= 1
    assert float((maps[:, :, 2].abs() + zoom[:, None]).max()) <= 1 + 1e-6


def test_a_flip_mirrors_left_and_right() -> None:
    numbers = uniform(2)
    numbers[:, :4] = 1.0
    numbers[:, 0] = 0.0
    numbers[:, 4] = torch.tensor([0.1, 0.9])
    images = smooth_images(2)
    (moved,) = augment.apply_transforms([images], augment.draw_transforms(numbers, ASPECT, 0.5))
    assert torch.allclose(moved[0], images[0].flip(2), atol=1e-5)
    assert torch.allclose(moved[1], images[1], atol=1e-5)


def test_images_in_bfloat16_are_moved_in_float32() -> None:
    images = [scale.bfloat16() for scale in pyramid(smooth_images(8), 2)]
    expected = augment.apply_transforms([scale.float() for scale in images], transforms(8))
    moved = augment.apply_transforms(images, transforms(8))
    assert all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))


def test_sampling_by_index_equals_grid_sample() -> None:
    images = torch.randn(8, 3, 24, 30, dtype=torch.float64).requires_grad_()
    grid = F.affine_grid(transforms(8).double() * 1.3, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    actual = augment.sample_by_index(images, grid)
    assert torch.allclose(actual, expected, atol=1e-10)
    weights = torch.randn_like(expected)
    (a,) = torch.autograd.grad((actual * weights).sum(), images)
    (b,) = torch.autograd.grad((expected * weights).sum(), images)
    assert torch.allclose(a, b, atol=1e-10)


def test_it_is_differentiable() -> None:
    images = smooth_images(2).requires_grad_()
    (moved,) = augment.apply_transforms([images], transforms(2))
    moved.sum().backward()
    assert images.grad is not None
    assert math.isfinite(float(images.grad.sum()))
    assert float(images.grad.abs().sum()) > 0
