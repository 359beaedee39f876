"""The Fréchet distance and SIFID: golden values, a closed form, and the laws of a distance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from conftest import Golden, images
from torch import Tensor

from oneshotgan.errors import UserError
from oneshotgan.metrics import Gaussians, fit_gaussians, frechet_distance, sifid
from oneshotgan.metrics.sifid import statistics
from oneshotgan.perceptual import InceptionStem


def features(count: int, channels: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count, channels, channels, generator=generator)
    noise = torch.randn(count, channels, 60, generator=generator)
    return (mixing @ noise + torch.randn(count, channels, 1, generator=generator)).view(
        count, channels, 6, 10
    )


# --- the Fréchet distance ---


def test_it_is_the_textbook_formula() -> None:
    x, y = features(3, seed=1), features(4, seed=2)
    found = frechet_distance(fit_gaussians(x), fit_gaussians(y))
    for i in range(3):
        for j in range(4):
            a, b = x[i].flatten(1).double().numpy(), y[j].flatten(1).double().numpy()
            root = scipy.linalg.sqrtm(np.cov(a) @ np.cov(b)).real
            means = ((a.mean(1) - b.mean(1)) ** 2).sum()
            expected = means + np.trace(np.cov(a) + np.cov(b) - 2 * root)
            assert found[i, j].item() == pytest.approx(expected, rel=1e-6)


def test_the_closed_form_of_commuting_covariances() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[4.0, 0.0, 1.0]]).double()
    one = Gaussians(torch.zeros(1, 3).double(), torch.diag_embed(a))
    other = Gaussians(torch.ones(1, 3).double(), torch.diag_embed(b))
    assert frechet_distance(one, other).item() == pytest.approx(3 + float(((a - b) ** 2).sum()))


def test_laws_of_a_distance() -> None:
    g, h = fit_gaussians(features(5, seed=1)), fit_gaussians(features(6, seed=2))
    d = frechet_distance(g, h)
    assert torch.allclose(d, frechet_distance(h, g).T, rtol=1e-9)
    assert (d > 0).all()
    assert frechet_distance(g, g).diagonal().max() < 1e-9


@pytest.mark.parametrize("flat", ["one", "both"])
def test_it_stays_finite_and_not_negative_for_flat_images(flat: str) -> None:
    x, y = torch.full((1, 8, 6, 10), 0.3), features(1)
    d = frechet_distance(fit_gaussians(x), fit_gaussians(x if flat == "both" else y))
    assert d.dtype == torch.float64
    assert torch.isfinite(d).all()
    assert (d >= 0).all()
    assert (d.item() == 0) == (flat == "both")


def test_fewer_locations_than_channels() -> None:
    g = fit_gaussians(features(2, channels=70))
    d = frechet_distance(g, g)
    assert torch.isfinite(d).all()
    assert d.diagonal().max() < 1e-8
    assert d[0, 1] > 1


def test_threads_change_nothing() -> None:
    g = fit_gaussians(features(7))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = frechet_distance(g, g)
        torch.set_num_threads(3)
        assert torch.allclose(frechet_distance(g, g), one, rtol=1e-12, atol=1e-12)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# --- SIFID ---


@pytest.mark.parametrize("source", ["torchvision", "fid"])
def test_golden_values(golden: Golden, source: str) -> None:
    stem = InceptionStem.load(source)
    assert stem.name == {"torchvision": "torchvision_approx", "fid": "fid"}[source]
    for pair, a, b in golden.pairs():
        one, other = statistics(a, stem), statistics(b, stem)
        for layer in (64, 192):
            value = frechet_distance(one[layer], other[layer]).item()
            expected = pair[f"sifid{layer}_{stem.name}"]
            if abs(expected) < 1e-6:  # an image with itself
                assert 0 <= value < 1e-6
            else:
                assert value == pytest.approx(expected, rel=1e-4)


def test_laws(stem: InceptionStem) -> None:
    x, y = images(4, seed=1), images(3, seed=2)
    for layer in (64, 192):
        assert sifid(x[:1], x[:1], stem, layer).item() < 1e-6
        one, other = sifid(x[:1], y[:1], stem, layer), sifid(y[:1], x[:1], stem, layer)
        assert one.item() == pytest.approx(other.item(), rel=1e-9)
        each = sifid(x, y, stem, layer)
        order = torch.tensor([2, 0, 3, 1])
        assert torch.allclose(sifid(x[order], y[[1, 2, 0]], stem, layer), each[order], rtol=1e-6)
        pairs = torch.stack([sifid(x, y[k : k + 1], stem, layer) for k in range(3)])
        assert torch.allclose(each, pairs.mean(0), rtol=1e-6)  # a clip: the mean over its frames


def test_the_batch_changes_nothing(stem: InceptionStem, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshotgan import data

    x, y = images(5, seed=1), images(2, seed=2)
    whole = sifid(x, y, stem)
    monkeypatch.setattr(data, "LARGEST_BATCH", 2)
    assert torch.allclose(sifid(x, y, stem), whole, rtol=1e-6)


def test_growing_noise_and_blur_grow_it(stem: InceptionStem) -> None:
    noise = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    x = images(1) + 0.1 * noise
    for layer in (64, 192):
        more = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(4))
        noisy = [sifid(x + amount * more, x, stem, layer).item() for amount in (0, 0.1, 0.2, 0.4)]
        assert noisy == sorted(noisy)
        blurred = [sifid(F.avg_pool2d(x, k, 1, k // 2), x, stem, layer).item() for k in (1, 3, 5, 9)]
        assert blurred == sorted(blurred)
        assert noisy[0] < 1e-6 < noisy[1]


def test_flat_images(stem: InceptionStem) -> None:
    value = sifid(torch.zeros(1, 3, 48, 64), torch.ones(1, 3, 48, 64), stem)
    assert torch.isfinite(value).all()
    assert value.item() > 0


def test_images_too_small_are_refused(stem: InceptionStem) -> None:
    with pytest.raises(UserError, match="32 pixels"):
        sifid(images(1, 31, 64), images(1, 31, 64), stem)
    assert torch.isfinite(sifid(images(1, 32, 32), images(1, 32, 32, seed=1), stem, 192)).all()
