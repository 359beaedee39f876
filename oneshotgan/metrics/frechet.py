"""The Fréchet distance between Gaussians, exact for equal ones and never negative or complex."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians in C dimensions: mean (N, C), and a factor F (N, C, C) of each covariance Σ = F Fᵀ."""

    mean: Tensor
    factor: Tensor

    def __len__(self) -> int:
        return len(self.mean)


def fit_gaussians(features: Tensor) -> Gaussians:
    """The Gaussian of each image's feature vectors over its locations.

    Args:
        features: (N, C, h, w), with 2 locations or more.

    Returns:
        In float64; the covariance is the unbiased one.
    """
    vectors = features.flatten(2).double()
    mean = vectors.mean(dim=2)
    centred = vectors - mean[:, :, None]
    covariance = centred @ centred.transpose(1, 2) / (vectors.shape[2] - 1)
    values, directions = torch.linalg.eigh(covariance)
    return Gaussians(mean, directions * values.clamp_min(0).sqrt()[:, None, :])


def join(parts: list[Gaussians]) -> Gaussians:
    """Several batches as one."""
    return Gaussians(torch.cat([p.mean for p in parts]), torch.cat([p.factor for p in parts]))


def frechet_distance(a: Gaussians, b: Gaussians) -> Tensor:
    """|μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ for every pair, (Na, Nb).

    Dowson and Landau, 1982; in float64.
    With Σ = F Fᵀ the trace of the root is the sum of the singular values of F_aᵀ F_b: no root of a matrix
    that is only nearly symmetric, no imaginary part, and for equal Gaussians exactly the two other traces.
    """
    means = torch.cdist(a.mean, b.mean, compute_mode="donot_use_mm_for_euclid_dist").square()
    traces = a.factor.square().sum((1, 2))[:, None] + b.factor.square().sum((1, 2))[None, :]
    roots = torch.stack([_sum_of_singular_values(factor.T @ b.factor) for factor in a.factor])
    return (means + traces - 2 * roots).clamp_min(0)


def _sum_of_singular_values(matrices: Tensor) -> Tensor:
    """(M, C, C) -> (M,). On a CPU each thread takes its own matrices: one alone is too small to be shared."""
    threads = torch.get_num_threads()
    if matrices.is_cuda or threads == 1:
        return torch.linalg.svdvals(matrices).sum(-1)  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(torch.linalg.svdvals, matrices.chunk(threads))
            return torch.cat([part.sum(-1) for part in parts])
    finally:
        torch.set_num_threads(threads)
