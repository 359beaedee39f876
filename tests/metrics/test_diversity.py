"""Diversity over pairs, MS-SSIM against an established implementation, standard errors by the jackknife."""

from __future__ import annotations

import math

import pytest
import pytorch_msssim
import torch
from conftest import Golden, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneshotgan.errors import UserError
from oneshotgan.metrics import (
    lpips_diversity,
    mean_error,
    ms_ssim_diversity,
    ms_ssim_pairs,
    pairs_mean_error,
)
from oneshotgan.metrics.ms_ssim import SCALE_WEIGHTS, scales_for
from oneshotgan.perceptual import LPIPS


def reference(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of each pair, by pytorch-msssim, with as many scales as fit."""
    scales = scales_for(*a.shape[2:])
    weights = torch.tensor(SCALE_WEIGHTS[:scales])
    weights = weights / weights.sum() if scales < 5 else weights
    x, y = (a + 1) / 2, (b + 1) / 2
    if scales == 5:
        return pytorch_msssim.ms_ssim(x, y, data_range=1, size_average=False)
    values = []
    for scale in range(scales):  # the library refuses fewer than five scales: composed from its parts
        ssim, contrast = _ssim_and_contrast(x, y)
        values.append(torch.relu(ssim if scale == scales - 1 else contrast) ** weights[scale])
        padding = [side % 2 for side in x.shape[2:]]
        x, y = (torch.nn.functional.avg_pool2d(t, 2, padding=padding) for t in (x, y))
    return torch.stack(values).prod(0).mean(-1)


def _ssim_and_contrast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim

    window = _fspecial_gauss_1d(11, 1.5).repeat(3, 1, 1, 1)
    return _ssim(x, y, data_range=1, win=window, size_average=False)


# --- MS-SSIM ---


def test_golden_values(golden: Golden) -> None:
    for pair, a, b in golden.pairs():
        assert ms_ssim_pairs(a, b).item() == pytest.approx(pair["ms_ssim"], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(33, 240), st.integers(33, 240), st.integers(0, 100))
def test_it_equals_the_established_implementation(height: int, width: int, seed: int) -> None:
    x = images(3, height, width, seed)
    y = (x.flip(0) + 0.3 * images(3, height, width, seed + 1)).clamp(-1, 1)
    found = ms_ssim_pairs(x, y)
    assert found.shape == (3, 3)
    assert torch.allclose(found.diagonal(), reference(x, y).double(), atol=1e-5)


def test_all_pairs_of_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshotgan.metrics import ms_ssim

    x = images(5)
    whole = ms_ssim_pairs(x)
    assert torch.equal(whole, whole.T)
    assert torch.allclose(whole, ms_ssim_pairs(x, x), atol=1e-6)
    assert torch.allclose(whole.diagonal(), torch.ones(5).double(), atol=1e-6)
    monkeypatch.setattr(ms_ssim, "_KEPT", 2 * x[0].numel())  # blocks of two
    monkeypatch.setattr(ms_ssim, "_AT_ONCE", x[0].numel())
    assert torch.allclose(ms_ssim_pairs(x), whole, atol=1e-6)


def test_the_number_of_scales_falls_below_161_pixels() -> None:
    assert [scales_for(side, 500) for side in (161, 160, 81, 80, 41, 40, 21, 20, 11)] == [
        5, 4, 4, 3, 3, 2, 2, 1, 1,
    ]  # fmt: skip
    with pytest.raises(UserError, match="11 pixels"):
        scales_for(10, 500)


def test_growing_noise_lowers_it() -> None:
    x, noise = images(1), torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    values = [ms_ssim_pairs(x, (x + amount * noise).clamp(-1, 1)).item() for amount in (0, 0.1, 0.2, 0.5)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1, abs=1e-6)


# --- diversity ---


def test_copies_have_no_diversity(alex: LPIPS) -> None:
    copies = images(1).repeat(6, 1, 1, 1)
    assert lpips_diversity(copies, alex) < 1e-6
    assert ms_ssim_diversity(copies) == pytest.approx(1, abs=1e-6)


def test_diversity_is_the_mean_over_pairs_in_any_order(alex: LPIPS) -> None:
    x = images(5)
    pairs = [alex(x[i : i + 1], x[j : j + 1]).item() for i in range(5) for j in range(i)]
    assert lpips_diversity(x, alex) == pytest.approx(sum(pairs) / len(pairs), abs=3e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert lpips_diversity(x[order], alex) == pytest.approx(lpips_diversity(x, alex), abs=1e-6)
    assert ms_ssim_diversity(x[order]) == pytest.approx(ms_ssim_diversity(x), abs=1e-6)


# --- standard errors ---


def test_the_error_of_a_mean_is_the_textbook_one() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).double()
    mean, error = mean_error(values)
    assert mean == pytest.approx(values.mean().item())
    assert error == pytest.approx(values.std().item() / math.sqrt(30))


def test_the_error_of_a_mean_over_pairs_leaves_out_one_sample_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(7, 7, generator=generator).double()
    matrix = matrix + matrix.T
    mean, error = pairs_mean_error(matrix)

    def over_pairs(kept: list[int]) -> float:
        pairs = [matrix[i, j].item() for i in kept for j in kept if i < j]
        return sum(pairs) / len(pairs)

    without = torch.tensor([over_pairs([k for k in range(7) if k != i]) for i in range(7)])
    assert mean == pytest.approx(over_pairs(list(range(7))))
    assert error == pytest.approx(math.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum().item()), rel=1e-4)


def test_the_error_over_pairs_is_honest() -> None:
    """For |x − y| of normal x, y: the error found is the spread of the figure over repeated draws."""
    generator = torch.Generator().manual_seed(0)
    means, errors, naive = [], [], []
    for _ in range(200):
        x = torch.randn(20, generator=generator).double()
        matrix = (x[:, None] - x[None, :]).abs()
        mean, error = pairs_mean_error(matrix)
        pairs = matrix[torch.triu(torch.ones(20, 20), 1).bool()]
        means.append(mean)
        errors.append(error)
        naive.append(pairs.std().item() / math.sqrt(len(pairs)))
    spread = torch.tensor(means).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.2)
    assert torch.tensor(naive).mean().item() < 0.7 * spread


def test_too_few_samples_for_an_error() -> None:
    assert math.isnan(mean_error(torch.ones(1))[1])
    assert math.isnan(pairs_mean_error(torch.ones(2, 2))[1])
    with pytest.raises(ValueError, match="two samples"):
        pairs_mean_error(torch.ones(1, 1))
