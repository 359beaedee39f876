"""Spectral normalisation against the singular values, and the blocks' shortcuts."""

import torch
import torch.nn.functional as F

from oneshotgan.models import layers


def largest_singular_value(weight: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1).double(), 2))


def test_the_normalised_weight_has_largest_singular_value_one() -> None:
    conv = layers.Conv2d(8, 16, 3)
    conv.power_iteration(100)
    assert abs(largest_singular_value(conv.normalised_weight()) - 1) < 1e-4


def test_a_power_iteration_follows_a_changed_weight() -> None:
    conv = layers.Conv2d(4, 8, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn_like(conv.weight))
    errors = []
    for _ in range(30):
        conv.power_iteration()
        errors.append(abs(largest_singular_value(conv.normalised_weight()) - 1))
    assert errors[-1] < errors[0]
    assert errors[-1] < 0.05


def test_forward_leaves_the_estimate_alone() -> None:
    conv = layers.Conv2d(3, 4, 3)
    before = conv.u.clone()
    conv(torch.randn(2, 3, 5, 5))
    assert torch.equal(conv.u, before)


def test_the_gradient_runs_through_the_singular_value() -> None:
    conv = layers.Conv2d(2, 3, 1).double()
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    outer = torch.outer(conv.u, conv.v).view_as(conv.weight)

    def output(weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight / (weight * outer).sum(), conv.bias)

    (expected,) = torch.autograd.grad(output(conv.weight).pow(2).sum(), conv.weight)
    (actual,) = torch.autograd.grad(conv(x).pow(2).sum(), conv.weight)
    assert torch.allclose(actual, expected, atol=1e-12)
    # W / σ does not change when W grows, so the gradient along W is zero.
    assert abs(float((actual * conv.weight.detach()).sum())) < 1e-10


def test_folded_weights_give_the_same_network() -> None:
    block = layers.GeneratorBlock(6, 4, upsample=True, spectral_norm=True)
    plain = layers.GeneratorBlock(6, 4, upsample=True, spectral_norm=False)
    plain.load_state_dict(layers.folded_state(block))
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(plain(x), block(x))


def test_generator_block_against_its_definition() -> None:
    """LeakyReLU, ×2, 3×3, LeakyReLU, 3×3; the shortcut upsampled first, then 1×1."""
    block = layers.GeneratorBlock(6, 4, upsample=True, spectral_norm=False).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    up = lambda y: y.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    main = F.conv2d(up(F.leaky_relu(x, 0.2)), block.conv1.weight, block.conv1.bias, padding=1)
    main = F.conv2d(F.leaky_relu(main, 0.2), block.conv2.weight, block.conv2.bias, padding=1)
    expected = main + F.conv2d(up(x), block.shortcut.weight)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_discriminator_block_against_its_definition() -> None:
    block = layers.DiscriminatorBlock(6, 4, kernel=3, pool=True).double()
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    main = block.conv2(F.leaky_relu(block.conv1(F.leaky_relu(x, 0.2)), 0.2))
    expected = F.avg_pool2d(main + block.shortcut(x), 2)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_pooling_stops_at_one_pixel() -> None:
    block = layers.DiscriminatorBlock(1, 1, kernel=3, pool=True)
    assert block(torch.randn(1, 1, 1, 9)).shape == (1, 1, 1, 4)
    assert block(torch.randn(1, 1, 1, 1)).shape == (1, 1, 1, 1)


def test_equal_widths_have_an_identity_shortcut() -> None:
    block = layers.DiscriminatorBlock(4, 4, kernel=1, pool=False).double()
    assert block.shortcut is None
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    main = block.conv2(F.leaky_relu(block.conv1(F.leaky_relu(x, 0.2)), 0.2))
    assert torch.allclose(block(x) - main, x, atol=1e-12)
