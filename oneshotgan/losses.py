"""Equations 1 to 3 of the paper, one function each."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan.data import at_least_float32
from oneshotgan.models.discriminator import Decisions

# Eq. 2: L_adv = L_content + L_layout + 2 L_low-level.
PART_WEIGHTS = {"low_level": 2.0, "content": 1.0, "layout": 1.0}


def diversity(features: list[Tensor], squash: bool = True) -> Tensor:
    """Eq. 1: the mean absolute difference of block features, over all pairs of the batch and all L blocks.

    Args:
        features: the output of each generator block, (N, C_l, H_l, W_l), N ≥ 2.
        squash: compare tanh of the features, which bounds the term by 2; raw features can be inflated
            without end.

    Returns:
        A scalar; 0 for equal samples.
    """
    compared = [at_least_float32(x) for x in features]
    return torch.stack([_mean_pairwise_l1(x.tanh() if squash else x) for x in compared]).mean()


def _mean_pairwise_l1(x: Tensor) -> Tensor:
    """Mean of |x_i − x_j| over the elements and over all pairs i < j of the first dimension."""
    rows = x.permute(0, 2, 3, 1).flatten(1)  # the order of elements does not matter; this one is no copy
    return torch.pdist(rows, p=1).mean() / rows.shape[1]


def diversity_scale(norm: str, samples: int, blocks: int) -> float:
    """The factor on eq. 1 for a named strength.

    ``paper``: 1. ``released``: that of the released program, which sums over pairs and blocks, divides by
    L(L−1)/2, and sets the sum against adversarial weights that add up to 1, not to the 4 of eq. 2.
    """
    if norm == "paper":
        return 1.0
    pairs = samples * (samples - 1) / 2
    return 4.0 * pairs * blocks / (blocks * (blocks - 1) / 2)


def part_losses(logits: Decisions, real: bool, logit_scale: float = 1.0) -> dict[str, Tensor]:
    """Binary cross-entropy of each part of the discriminator, the mean over its decisions.

    Args:
        real: the label the logits are held against.
        logit_scale: a factor on the logits; spectral normalisation bounds how far apart a discriminator can
            hold real and generated images.

    Returns:
        One scalar per part that exists: ``low_level``, ``content``, ``layout``.
    """
    sign = -logit_scale if real else logit_scale  # −log D = softplus(−logit), −log(1 − D) = softplus(logit)
    losses = {}
    for name, decisions in logits.parts().items():
        x = at_least_float32(torch.cat([decision.flatten() for decision in decisions]))
        sizes = tuple(decision.numel() for decision in decisions)
        losses[name] = torch.dot(F.softplus(sign * x), _mean_of_means(sizes, x.dtype, x.device))
    return losses


@functools.cache  # a CUDA graph may read them for as long as it lives
def _mean_of_means(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights that turn concatenated values into the mean over the groups of each group's mean."""
    parts = [torch.full((size,), 1 / (size * len(sizes)), dtype=dtype, device=device) for size in sizes]
    return torch.cat(parts)


def adversarial(parts: dict[str, Tensor]) -> Tensor:
    """Eq. 2: L_adv = L_content + L_layout + 2 L_low-level, over the parts that exist."""
    return torch.stack([PART_WEIGHTS[name] * loss for name, loss in parts.items()]).sum()


def discriminator_loss(logits_real: Decisions, logits_fake: Decisions, logit_scale: float = 1.0) -> Tensor:
    """Eq. 3 as the discriminator sees it: the cross-entropy of eq. 2 on real and generated images."""
    on_real = adversarial(part_losses(logits_real, real=True, logit_scale=logit_scale))
    return on_real + adversarial(part_losses(logits_fake, real=False, logit_scale=logit_scale))


def generator_loss(
    logits_fake: Decisions, diversity_term: Tensor | None, weight: float, logit_scale: float = 1.0
) -> Tensor:
    """Eq. 3 as the generator sees it: L_adv − λ L_DR, L_adv in its non-saturating form.

    Args:
        diversity_term: eq. 1, or None where it is off.
        weight: λ, times the factor of `diversity_scale`.
    """
    loss = adversarial(part_losses(logits_fake, real=True, logit_scale=logit_scale))
    return loss if diversity_term is None else loss - weight * diversity_term
