"""Spectral normalisation against the singular values, and the blocks' shortcuts."""

import pytest
import torch
import torch.nn.functional as F

from oneshotgan.models import layers


def largest_singular_value(weight: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1).double(), 2))


def test_the_normalised_weight_has_largest_singular_value_one() -> None:
    conv = layers.Conv2d(8, 16, 3)
    conv.power_iteration(2000)
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
    block = layers.DiscriminatorBlock(6, 4, kernel=3, pool=(True, True)).double()
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    main = F.leaky_relu(block.conv1(F.leaky_relu(x, 0.2)), 0.2)
    main = F.conv2d(main, block.conv2.normalised_weight(), block.conv2.bias, padding=1)
    expected = F.avg_pool2d(main + block.shortcut(x), 2)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_pooling_along_one_axis() -> None:
    block = layers.DiscriminatorBlock(1, 1, kernel=3, pool=(False, True))
    assert block(torch.randn(1, 1, 1, 9)).shape == (1, 1, 1, 4)
    assert layers.DiscriminatorBlock(1, 1, kernel=3, pool=(False, False))(torch.ones(1, 1, 1, 1)).numel() == 1


RESAMPLING = [
    {"upsample": True},
    *({"pool": axes} for axes in [(True, True), (True, False), (False, True), (False, False)]),
]


@pytest.mark.parametrize("how", RESAMPLING, ids=str)
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2), (2, 1), (1, 1)])
def test_a_merged_convolution_is_the_same_function(how: dict, size: tuple[int, int]) -> None:
    conv = layers.Conv2d(3, 4, 3, **how).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    plain = F.interpolate(x, scale_factor=2, mode="nearest") if how.get("upsample") else x
    plain = F.conv2d(plain, conv.normalised_weight(), conv.bias, padding=1)
    strides = tuple(2 if pooled else 1 for pooled in how.get("pool", (False, False)))
    if any(side < stride for side, stride in zip(size, strides, strict=True)):
        return  # nothing is left
    plain = F.avg_pool2d(plain, strides)
    weights = torch.randn_like(plain)
    assert torch.allclose(conv(x), plain, atol=1e-12)
    inputs = (x, conv.weight, conv.bias)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    actual = torch.autograd.grad((conv(x) * weights).sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("how", RESAMPLING, ids=str)
def test_unmerging_is_the_transpose_of_merging(how: dict) -> None:
    conv = layers.Conv2d(3, 4, 3, **how).double()
    weight = torch.randn_like(conv.weight)
    kernel = torch.randn_like(conv.merged(weight))
    inner = (conv.merged(weight) * kernel).sum(), (weight * conv.unmerged(kernel)).sum()
    assert torch.allclose(*inner, atol=1e-12)


def small_network() -> torch.nn.Module:
    network = torch.nn.Sequential(
        layers.GeneratorBlock(3, 5, upsample=True, spectral_norm=True),
        layers.DiscriminatorBlock(5, 4, kernel=3, pool=(True, False)),
        torch.nn.AdaptiveAvgPool2d(1),
        layers.Conv2d(4, 2, 1),
    )
    for conv in layers.convolutions(network):
        torch.nn.init.normal_(conv.weight)  # larger than at the start, so that σ is not tiny
    return network.double()


def test_working_weights_carry_gradients_back_as_autograd_does() -> None:
    network = small_network()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected_output = network(x)
    expected = torch.autograd.grad(expected_output.square().sum(), list(network.parameters()))
    weights = layers.WorkingWeights({network: torch.float64})
    weights.refresh(iterate=False)
    weights.requires_grad_(True)
    for times in (1, 2):  # a second backward pass adds to the first
        output = network(x)
        assert torch.allclose(output, expected_output, atol=1e-12)
        output.square().sum().backward()
        weights.pull_back()
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, times * gradient, rtol=1e-10, atol=1e-10)


def test_working_weights_follow_the_parameters_only_when_refreshed() -> None:
    network, x = small_network(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    weights = layers.WorkingWeights({network: torch.float64})
    weights.refresh()
    before = network(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(network(x), before)
    weights.refresh()
    assert not torch.allclose(network(x), before)


def test_a_refresh_makes_one_power_iteration_or_none() -> None:
    network, other = small_network(), small_network()
    other.load_state_dict(network.state_dict())
    weights = layers.WorkingWeights({network: torch.float64})
    weights.refresh(iterate=False)
    assert all(
        torch.equal(a.u, b.u) for a, b in zip(*map(layers.convolutions, (network, other)), strict=True)
    )
    weights.refresh()
    for conv, alone in zip(*map(layers.convolutions, (network, other)), strict=True):
        alone.power_iteration()
        assert torch.allclose(conv.u, alone.u, atol=1e-12)
        assert torch.allclose(conv.prepared.kernel, alone.merged(alone.normalised_weight()), atol=1e-12)


def test_working_weights_compute_in_their_precision() -> None:
    block = layers.GeneratorBlock(8, 8, upsample=True, spectral_norm=True)
    x = torch.randn(4, 8, 6, 6)
    exact = block(x).detach()
    layers.WorkingWeights({block: torch.bfloat16}).refresh(iterate=False)
    output = block(x)
    assert output.dtype == torch.bfloat16
    assert bool((output.float() - exact).norm() < 0.02 * exact.norm())
