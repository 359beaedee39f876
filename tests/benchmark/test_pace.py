"""How many steps fit into a number of seconds, with a method whose steps take a known time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oneshotgan.benchmark import pace
from oneshotgan.methods import METHODS


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of a step of each part of a training, on a clock that only steps move; the method is SinGAN."""
    costs: list[float] = []
    now = [0.0]

    class Slow:
        precisions = ("fp32",)
        training_size, planned = METHODS["singan"].training_size, METHODS["singan"].planned

        def __init__(self, config: Any, frames: np.ndarray, *rest: object) -> None:
            self.steps, self.made = config.training.steps, 0
            assert frames.shape == (1, 32, 43, 3)

        def step(self, step: int) -> dict[str, torch.Tensor]:
            self.made += 1
            assert step == self.made
            now[0] += costs[(step - 1) * len(costs) // self.steps] * (100 if step == 1 else 1)
            return {}

    monkeypatch.setitem(METHODS, "singan", Slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return costs


def plan(photo: Path, seconds: float, scales: int) -> pace.Plan:
    given = {"scales": scales, "short_size": 32, "threads": 1}
    return pace.plan_steps(seconds, "singan", "preview", given, photo)


def test_the_pace_is_the_mean_over_the_scales(costs: list[float], photo: Path) -> None:
    costs += [1.0, 2.0, 6.0]
    assert plan(photo, 300.0, 3) == pace.Plan(steps=100, seconds_per_step=3.0)


def test_every_scale_gets_a_step(costs: list[float], photo: Path) -> None:
    costs += [1.0, 2.0, 6.0]
    assert plan(photo, 1.0, 3).steps == 3


def test_a_real_method_is_measured_too(photo: Path) -> None:
    given = {"base_width": 4, "short_size": 32, "threads": 1, "precision": "fp32"}
    made = pace.plan_steps(10.0, "oneshot", "preview", given, photo)
    assert made.seconds_per_step > 0
    assert made.steps == max(1, round(10.0 / made.seconds_per_step))
