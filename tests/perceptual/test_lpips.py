"""LPIPS against its definition, golden values, and the laws of a distance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Golden, images
from torch import Tensor

from oneshotgan.errors import UserError
from oneshotgan.perceptual import LPIPS, lpips


def matrix(network: LPIPS, x: Tensor, y: Tensor | None = None) -> Tensor:
    a = network.embed(x)
    return lpips.distances(a, a if y is None else network.embed(y))


def by_the_definition(network: LPIPS, x: Tensor, y: Tensor) -> Tensor:
    """Unit length over channels, squared differences, weighted, mean over places, sum over layers."""
    from importlib.resources import files

    from safetensors.torch import load

    heads = load(
        files("oneshotgan.perceptual")
        .joinpath(f"heads/lpips_v0.1_{network.network}.safetensors")
        .read_bytes()
    )
    mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    convolutions = list(network.features.values())
    total = torch.zeros(len(x))
    both = [(i - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1) for i in (x, y)]
    for index, convolution in enumerate(convolutions):
        if index in (1, 2):
            both = [F.max_pool2d(i, 3, 2) for i in both]
        both = [F.relu(convolution(i)) for i in both]
        unit = [i / (i.norm(dim=1, keepdim=True) + 1e-10) for i in both]
        weight = heads[f"lin{index}"].view(1, -1, 1, 1)
        total += ((unit[0] - unit[1]) ** 2 * weight).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("kind", ["golden pairs", "golden pairs in [0, 1]"])
def test_golden_values(golden: Golden, kind: str) -> None:
    network = LPIPS.load("alex")
    assert network.name == "alex"
    for pair, a, b in golden.pairs():
        if kind == "golden pairs":
            assert matrix(network, a, b).item() == pytest.approx(pair["lpips_alex"], abs=1e-5)
            x, y = (t.permute(0, 3, 1, 2).float() / 127.5 - 1 for t in (a, b))
            assert network(x, y).item() == pytest.approx(pair["lpips_alex"], abs=1e-5)
        else:
            x, y = (t.permute(0, 3, 1, 2).float() / 255 for t in (a, b))
            assert matrix(network, x, y).item() == pytest.approx(pair["lpips_alex_inputs_in_0_1"], abs=1e-5)


def test_golden_values_of_vgg(golden: Golden) -> None:
    network = LPIPS.load("vgg")
    assert network.name == "vgg_fp16"
    for pair, a, b in golden.pairs()[:1]:  # VGG takes its time
        assert matrix(network, a, b).item() == pytest.approx(pair["lpips_vgg_fp16_weights"], abs=1e-5)


def test_it_is_what_the_definition_says(alex: LPIPS) -> None:
    x, y = images(3, seed=1), images(3, seed=2)
    expected = by_the_definition(alex, x, y)
    assert torch.allclose(alex(x, y), expected, rtol=1e-5, atol=1e-7)
    assert torch.allclose(matrix(alex, x, y).diagonal(), expected.double(), rtol=1e-4, atol=3e-6)


def test_laws_of_a_distance(alex: LPIPS) -> None:
    x = images(7)
    d = matrix(alex, x)
    assert d.diagonal().abs().max() < 1e-6
    assert torch.equal(d, d.T)
    assert (d + torch.eye(7) > 1e-3).all()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(matrix(alex, x[order]), d[order][:, order], atol=1e-6)


def test_the_batch_changes_nothing(alex: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshotgan import data

    x = images(9)
    whole = matrix(alex, x)
    monkeypatch.setattr(data, "LARGEST_BATCH", 2)
    assert (matrix(alex, x) - whole).abs().max() < 1e-6


def test_bytes_and_floats_are_one_image(alex: LPIPS) -> None:
    as_bytes = (images(3).permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8)
    as_floats = as_bytes.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(matrix(alex, as_bytes), matrix(alex, as_floats))


def test_growing_noise_and_blur_grow_it(alex: LPIPS) -> None:
    x = images(2)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    noisy = [alex(x, x + amount * noise).mean().item() for amount in (0, 0.05, 0.1, 0.2, 0.4)]
    assert noisy == sorted(noisy)
    assert noisy[0] == 0 < noisy[1]
    detail = images(2) + 0.2 * noise
    blurred = [alex(detail, F.avg_pool2d(detail, k, 1, k // 2)).mean().item() for k in (1, 3, 5, 9)]
    assert blurred == sorted(blurred)


def test_one_pass_of_the_network_per_image(alex: LPIPS, passes: list[int]) -> None:
    matrix(alex, images(11))
    assert sum(passes) == 11


def test_gradients_reach_both_images(alex: LPIPS) -> None:
    x, y = images(1, seed=1).requires_grad_(), images(1, seed=2).requires_grad_()
    alex(x, y).sum().backward()
    for image in (x, y):
        assert image.grad is not None
        assert image.grad.abs().max() > 0


def test_images_too_small_are_refused(alex: LPIPS) -> None:
    with pytest.raises(UserError, match="32 pixels"):
        alex.embed(images(1, 31, 64))
