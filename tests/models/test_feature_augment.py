"""Feature augmentation: what is swapped is neither lost nor doubled, and how much it is."""

import dataclasses

import torch

from oneshotgan.data import random_stream
from oneshotgan.models import feature_augment


def drawn(seed: int, samples: int = 5, channels: int = 40) -> feature_augment.FeatureAugmentDraw:
    return feature_augment.draw(samples, channels, random_stream(seed, "test"))


def without_zeros(draw: feature_augment.FeatureAugmentDraw) -> feature_augment.FeatureAugmentDraw:
    return dataclasses.replace(draw, zero_apply=torch.ones_like(draw.zero_apply))


def test_channels_are_exchanged_and_no_sample_is_left_out() -> None:
    vector = torch.arange(5.0)[:, None, None, None].expand(5, 40, 1, 1).contiguous()
    for seed in range(20):
        draw = dataclasses.replace(without_zeros(drawn(seed)), apply=torch.zeros(2))
        mixed = feature_augment.augment_content(vector, draw, probability=1.0)
        changed = mixed != vector
        assert 0.1 <= float(changed[0].float().mean()) <= 0.3001
        assert torch.equal(changed, changed[:1].expand_as(changed))  # the same channels, in all five samples
        assert torch.equal(mixed.sort(dim=0).values, vector)  # every value once


def test_channels_are_zeroed_by_a_tenth_to_three_tenths() -> None:
    draw = dataclasses.replace(drawn(1), apply=torch.ones(2), zero_apply=torch.zeros(5, 1))
    zeroed = feature_augment.augment_content(torch.ones(5, 40, 1, 1), draw, probability=0.5) == 0
    shares = zeroed.float().mean(dim=(1, 2, 3))
    assert float(shares.min()) >= 0.1
    assert float(shares.max()) <= 0.3001
    assert not torch.equal(zeroed[0], zeroed[1])  # each sample its own


def test_a_rectangle_is_exchanged() -> None:
    plane = torch.arange(5.0)[:, None, None, None].expand(5, 1, 20, 30).contiguous()
    for seed in range(20):
        draw = dataclasses.replace(drawn(seed), apply=torch.zeros(2))
        mixed = feature_augment.augment_layout(plane, draw, probability=1.0)
        changed = (mixed != plane)[0, 0]
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        assert torch.equal(changed, rows[:, None] & columns[None, :])
        assert 2 <= int(rows.sum()) <= 10
        assert 3 <= int(columns.sum()) <= 15
        assert torch.equal(mixed.sort(dim=0).values, plane)


def test_probability_is_kept_over_many_draws() -> None:
    vector, plane = torch.randn(5, 40, 1, 1), torch.randn(5, 1, 16, 20)
    content = layout = 0
    for seed in range(400):
        draw = without_zeros(drawn(seed))
        content += int(not torch.equal(feature_augment.augment_content(vector, draw, 0.4), vector))
        layout += int(not torch.equal(feature_augment.augment_layout(plane, draw, 0.4), plane))
    assert 0.3 < content / 400 < 0.5
    assert 0.3 < layout / 400 < 0.5


def test_probability_zero_is_the_identity() -> None:
    vector, plane = torch.randn(5, 40, 1, 1), torch.randn(5, 1, 16, 20)
    assert torch.equal(feature_augment.augment_content(vector, drawn(0), 0.0), vector)
    assert torch.equal(feature_augment.augment_layout(plane, drawn(0), 0.0), plane)
