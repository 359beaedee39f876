"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

_RAMP = 10

Network = TypeVar("Network", bound=nn.Module)


def ema_decay_at(step: int, decay: float) -> float:
    """The decay of update `step` (the first is 1): min(decay, step / (step + 9)).

    The ramp lets the average forget the start of a short run: until it reaches `decay`, it looks back
    over about a ninth of the steps made.
    """
    return min(decay, step / (step + _RAMP - 1))


class EMA(Generic[Network]):
    """Keeps `network`, a copy whose parameters follow those of the trained network; buffers are copied."""

    def __init__(self, trained: Network) -> None:
        self.network: Network = copy.deepcopy(trained).requires_grad_(False)

    @torch.no_grad()
    def update(self, trained: Network, decay: Tensor) -> None:
        """average ← decay · average + (1 − decay) · trained.

        Args:
            decay: see `ema_decay_at`; a scalar on the device, so that nothing is read back from it.
        """
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, torch._foreach_mul(list(trained.parameters()), 1 - decay))
        for average, source in zip(self.network.buffers(), trained.buffers(), strict=True):
            average.copy_(source)
