"""The generator: size, parameter count, and which heads get a gradient."""

import pytest
import torch

from oneshotgan.models.generator import Generator
from oneshotgan.models.plan import make_plan


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_count_of_the_released_program() -> None:
    plan = make_plan((185, 330))
    assert round(parameters(Generator(plan, all_rgb_heads=True)) / 1e6, 2) == 5.89
    assert parameters(Generator(plan)) < parameters(Generator(plan, all_rgb_heads=True))


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (64, 640), (100, 180), (185, 330)])
def test_images_and_features_have_the_planned_sizes(size) -> None:
    plan = make_plan(size, base_width=4)
    out = Generator(plan)(torch.randn(2, 64))
    assert [tuple(i.shape) for i in out.images] == [
        (2, 3, plan.height // 2**s, plan.width // 2**s) for s in range(plan.low_level_blocks)
    ]
    assert [f.shape[1] for f in out.features] == list(plan.generator_widths[1:])
    assert out.features[0].shape[2:] == (plan.noise_height, plan.noise_width)
    assert all(i.abs().max() <= 1 for i in out.images)


def test_a_gradient_reaches_every_parameter() -> None:
    generator = Generator(make_plan((64, 80), base_width=4))
    out = generator(torch.randn(2, 64))
    sum(image.square().sum() for image in out.images).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())


def test_initial_weights() -> None:
    generator = Generator(make_plan((64, 80)))
    weight = generator.blocks[0].conv1.weight
    assert abs(float(weight.detach().std()) - 0.02) < 0.001
    bound = 1 / (256 * 4 * 5) ** 0.5  # PyTorch's own for the transposed convolution: fan-in of the output
    assert float(generator.from_noise.weight.detach().abs().max()) <= bound * 1.0001
