"""The moving average against its closed form."""

import pytest
import torch
from torch import nn

from oneshotgan.ema import EMA, ema_decay_at


def test_against_the_closed_form() -> None:
    """A constant decay and weights w_1 … w_n: Σ (1 − β) β^(n−k) w_k + β^n w_0."""
    network = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        network.weight.fill_(7.0)
    ema = EMA(network)
    values = [3.0, -1.0, 4.0, 1.0]
    for value in values:
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network, torch.tensor(0.5))
    count = len(values)
    expected = sum(0.5 * 0.5 ** (count - 1 - k) * v for k, v in enumerate(values)) + 0.5**count * 7.0
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-12)


def test_constant_weights_stay() -> None:
    network = nn.Linear(3, 3)
    ema = EMA(network)
    for step in range(1, 50):
        ema.update(network, torch.tensor(ema_decay_at(step, 0.999)))
    assert torch.allclose(ema.network.weight, network.weight, atol=1e-6)


def test_the_ramp_rises_to_the_decay_and_the_start_is_forgotten() -> None:
    decays = [ema_decay_at(step, 0.999) for step in range(1, 20_000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.999
    assert decays[0] == 0.1
    remaining = torch.tensor(decays[:100]).prod()
    assert float(remaining) < 1e-6


def test_buffers_are_copied_and_nothing_is_trained() -> None:
    network = nn.BatchNorm1d(2)
    ema = EMA(network)
    network.running_mean += 5
    ema.update(network, torch.tensor(0.1))
    assert torch.equal(ema.network.running_mean, network.running_mean)
    assert not any(p.requires_grad for p in ema.network.parameters())
