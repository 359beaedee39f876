"""Standard errors by leaving out one sample at a time.

The pairs of a set of samples are not independent, each sample is in many of them, so the spread of the pairs
says little about the error of their mean. Leaving out a whole sample does (Efron and Tibshirani, 1993).
"""

from __future__ import annotations

import math

from torch import Tensor


def mean_error(values: Tensor) -> tuple[float, float]:
    """Mean of (N,) values, and its standard error (NaN for one value)."""
    count = len(values)
    without = (values.sum() - values) / (count - 1) if count > 1 else values * math.nan
    return float(values.mean()), _spread(without)


def pairs_mean_error(matrix: Tensor) -> tuple[float, float]:
    """Mean over the pairs i < j of a symmetric (N, N) matrix, and its standard error (NaN below 3 samples).

    Raises:
        ValueError: fewer than two samples.
    """
    count = len(matrix)
    if count < 2:
        raise ValueError("a pair needs two samples")
    rows = matrix.sum(dim=1) - matrix.diagonal()
    total = rows.sum() / 2
    pairs = count * (count - 1) / 2
    without = (total - rows) / (pairs - (count - 1)) if count > 2 else rows * math.nan
    return float(total / pairs), _spread(without)


def _spread(without: Tensor) -> float:
    """√((N−1)/N · Σ (θ_i − θ̄)²) of the values found without each sample."""
    count = len(without)
    return float(((without - without.mean()).square().sum() * (count - 1) / count).sqrt())
