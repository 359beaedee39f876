"""How many steps of a method fit into a number of seconds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from oneshotgan import config, media
from oneshotgan.config import Config
from oneshotgan.machine import choose, running_on
from oneshotgan.methods import METHODS

WARM_UP = 3  # steps that are not counted: memory is got, and on CUDA the step recorded
COUNTED = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a case trains.

    Attributes:
        steps: in all.
        seconds_per_step: what one took when it was measured.
    """

    steps: int
    seconds_per_step: float


def plan_steps(seconds: float, method: str, preset: str, given: dict[str, Any], source: Path | str) -> Plan:
    """The steps that `seconds` of training hold, at the pace measured here and now.

    Args:
        given: settings, as `launch.train` takes them; their ``steps`` do not count.

    Raises:
        UserError: a bad setting, source or device.
    """
    settings = config.with_overrides(config.preset(preset, method), given)
    kind = METHODS[method]
    frames = media.read_frames(
        source, lambda size: kind.training_size(size, settings), settings.data.max_frames
    )
    settings = kind.planned(settings, frames.source_size)
    pace = seconds_per_step(settings, frames.images)
    return Plan(max(1, stretches(settings), round(seconds / pace)), pace)


def seconds_per_step(settings: Config, frames: Any) -> float:
    """The seconds that a step takes: the mean over the stretches of a training, of the median in each.

    SinGAN's scales are such stretches, of equal numbers of steps and unequal cost; others have one.

    Args:
        settings: as planned for the source.
        frames: uint8 (N, H, W, 3), at the training size.
    """
    each = WARM_UP + COUNTED
    pilot = dataclasses.replace(settings.training, steps=each * stretches(settings))
    machine = choose(settings.machine, METHODS[settings.method].precisions)
    with running_on(machine) as device:
        method = METHODS[settings.method](
            dataclasses.replace(settings, training=pilot),
            frames,
            device,
            machine.precision,
            lambda line: None,
        )
        times = []
        for step in range(1, pilot.steps + 1):
            begun = time.perf_counter()
            method.step(step)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
    parts = [times[first + WARM_UP : first + each] for first in range(0, len(times), each)]
    return statistics.mean(statistics.median(part) for part in parts)


def stretches(settings: Config) -> int:
    """Into how many parts of equal numbers of steps a method divides its training."""
    return max(1, getattr(settings.model, "scales", 1))
