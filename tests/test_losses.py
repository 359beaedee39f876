"""Equations 1 to 3: closed forms, plain double loops, and their laws."""

import itertools
import math

import pytest
import torch

from oneshotgan import losses
from oneshotgan.models.discriminator import Decisions


def features(samples: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(samples, c, h, w, dtype=dtype) for c, h, w in [(8, 3, 5), (4, 6, 10), (2, 12, 20)]]


def double_loop(blocks: list[torch.Tensor], squash: bool) -> float:
    """Eq. 1 as it is written: over all pairs, over all blocks, the mean absolute difference."""
    total, count = 0.0, 0
    for one, other in itertools.combinations(range(len(blocks[0])), 2):
        for block in blocks:
            x = torch.tanh(block) if squash else block
            total += float((x[one] - x[other]).abs().sum()) / x[one].numel()
            count += 1
    return total / count


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("squash", [True, False])
def test_diversity_against_a_double_loop(samples: int, squash: bool) -> None:
    blocks = features(samples)
    assert float(losses.diversity(blocks, squash)) == pytest.approx(double_loop(blocks, squash), rel=1e-6)


def test_diversity_in_closed_form() -> None:
    """Samples at the values 0, 1, 3: differences 1, 3, 2, mean 2."""
    block = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None].expand(3, 2, 4, 4)
    assert float(losses.diversity([block], squash=False)) == pytest.approx(2.0)
    assert float(losses.diversity([block, 3 * block], squash=False)) == pytest.approx(4.0)


def test_diversity_of_equal_samples_is_zero() -> None:
    block = torch.randn(1, 4, 6, 6).expand(5, 4, 6, 6)
    assert float(losses.diversity([block])) == 0


def test_diversity_does_not_depend_on_the_order_in_the_batch() -> None:
    blocks = features(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = [block[order] for block in blocks]
    assert float(losses.diversity(shuffled)) == pytest.approx(float(losses.diversity(blocks)), rel=1e-6)


def test_tanh_bounds_the_term_and_raw_features_do_not() -> None:
    blocks = [1e4 * block for block in features(5)]
    assert 0 < float(losses.diversity(blocks, squash=True)) <= 2
    assert float(losses.diversity(blocks, squash=False)) > 1000


def test_diversity_has_a_gradient() -> None:
    blocks = [block.requires_grad_() for block in features(3)]
    assert torch.autograd.gradcheck(
        lambda *x: losses.diversity(list(x)).double(), blocks, eps=1e-4, atol=1e-3
    )


def test_released_strength_is_thirteen_times_the_papers() -> None:
    assert losses.diversity_scale("paper", 5, 7) == 1
    assert losses.diversity_scale("released", 5, 7) == pytest.approx(4 * 10 * 7 / 21)  # 13.3


def decisions(value: float) -> Decisions:
    def logits(*sizes: int) -> list[torch.Tensor]:
        return [torch.full((2, 1, size, size), value, dtype=torch.float64) for size in sizes]

    return Decisions(low_level=logits(8, 4), content=logits(1, 1, 1), layout=logits(4, 2, 1))


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
def test_part_losses_are_binary_cross_entropy(value: float) -> None:
    probability = 1 / (1 + math.exp(-value))
    for real, expected in [(True, -math.log(probability)), (False, -math.log(1 - probability))]:
        parts = losses.part_losses(decisions(value), real)
        assert set(parts) == {"low_level", "content", "layout"}
        assert all(float(loss) == pytest.approx(expected, rel=1e-6) for loss in parts.values())


def test_a_part_is_the_mean_over_its_decisions_not_over_pixels() -> None:
    logits = Decisions(low_level=[torch.full((1, 1, 8, 8), -20.0), torch.full((1, 1, 1, 1), 0.0)])
    loss = losses.part_losses(logits, real=True)["low_level"]
    assert float(loss) == pytest.approx((20 + math.log(2)) / 2, rel=1e-4)


def test_equation_two_doubles_the_low_level_part() -> None:
    parts = {"low_level": torch.tensor(1.0), "content": torch.tensor(10.0), "layout": torch.tensor(100.0)}
    assert float(losses.adversarial(parts)) == 112
    del parts["content"]
    assert float(losses.adversarial(parts)) == 102


def test_equation_three() -> None:
    at_zero = 4 * math.log(2)  # weights 1 + 1 + 2
    assert float(losses.discriminator_loss(decisions(0.0), decisions(0.0))) == pytest.approx(2 * at_zero)
    term = torch.tensor(0.5)
    assert float(losses.generator_loss(decisions(0.0), term, 0.15)) == pytest.approx(at_zero - 0.075)
    assert float(losses.generator_loss(decisions(0.0), None, 0.15)) == pytest.approx(at_zero)
    # The generator gains from logits that say "real", the discriminator from the opposite.
    assert losses.generator_loss(decisions(1.0), None, 0) < losses.generator_loss(decisions(-1.0), None, 0)
    assert losses.discriminator_loss(decisions(1.0), decisions(-1.0)) < 2 * at_zero


def test_the_factor_on_the_logits_is_one_on_every_decision() -> None:
    real, fake = decisions(0.5), decisions(-0.2)
    loss_D = losses.discriminator_loss(decisions(2.0), decisions(-0.8))
    assert float(losses.discriminator_loss(real, fake, 4.0)) == pytest.approx(float(loss_D))
    loss_G = losses.generator_loss(decisions(-0.8), None, 0)
    assert float(losses.generator_loss(fake, None, 0, 4.0)) == pytest.approx(float(loss_G))
