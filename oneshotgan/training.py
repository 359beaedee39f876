"""`fit`, the one loop for every method."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from oneshotgan.config import Config
from oneshotgan.data import to_uint8
from oneshotgan.errors import UserError
from oneshotgan.machine import fair_threads
from oneshotgan.parallel import ALONE, Group
from oneshotgan.progress import Reporter
from oneshotgan.run import Run

SHEET_SEEDS = range(16)  # the latents of the contact sheets during training
FIGURE_SEEDS = range(32)  # those of the figures during training

IMPATIENCE = 2.0  # seconds after which another Ctrl-C interrupts at once

Figures = Callable[[np.ndarray], dict[str, float]]


class Method(Protocol):
    """What `fit` asks of a method. `oneshotgan.methods.oneshot.OneShot` is the example."""

    loss_names: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[str, ...]]  # those it can be trained in
    steady: ClassVar[bool]  # whether all steps cost about the same, so that the time left can be told
    extensible: ClassVar[bool]  # whether more steps continue a run: no schedule depends on their number

    @staticmethod
    def training_size(size: tuple[int, int], settings: Config) -> tuple[int, int]:
        """The (height, width) to train at, for a source of `size`; that of its own result is the same."""

    @staticmethod
    def planned(settings: Config, source_size: tuple[int, int]) -> Config:
        """`settings` with what the method fills in by itself, for a source of this (height, width)."""

    @staticmethod
    def check(settings: Config, group: Group) -> None:
        """Raise a UserError for what `group` cannot train here; before a run begins or goes on."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Make iteration `step` (from 1); all randomness depends on (seed, step). Returns the losses."""

    def generate(self, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed."""

    def state(self) -> dict[str, Any]:
        """All that changes in training."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def sampling_weights(self) -> dict[str, Tensor]:
        """What ``model/`` and the snapshots hold."""

    def parameters(self) -> list[Tensor]:
        """Every trained tensor."""


def fit(
    method: Method,
    run: Run,
    settings: Config,
    reporter: Reporter,
    machine_record: dict[str, Any] | None = None,
    figures: Figures | None = None,
    yielding: bool = False,
    group: Group = ALONE,
) -> None:
    """Train `method` from the run's newest good checkpoint to ``settings.training.steps``.

    Whatever is written at a step is written before its checkpoint, so a run that was killed finds in the
    newest checkpoint a point from which it writes the same again.

    Args:
        figures: maps samples, uint8 (N, H, W, 3), to figures by name, for stats.jsonl, every
            ``machine.evaluate_every`` steps; None for none.
        yielding: leave other trainings on this machine their share of the cores.
        group: the processes that train together; `run` is a `Spectator` for all but the first.

    Raises:
        UserError: a loss or weight is not finite, memory or disk is full, or no checkpoint is good.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written.
        SystemExit: the process was asked to terminate; a checkpoint was written.
    """
    steps, machine = settings.training.steps, settings.machine
    every = machine.evaluate_every if figures is not None else 0
    step, seconds = _resume(method, run, reporter, group)
    run.sweep()
    run.update(settings, step, machine_record)  # not before it is known that the run can go on
    watch = FiniteWatch(method)
    clock = Clock(step, seconds)
    saved, saved_at = step, time.monotonic()

    def save(step: int) -> None:
        nonlocal saved, saved_at
        watch.check(step)
        run.write_model(step, method.sampling_weights())
        run.write_checkpoint(step, {"step": step, "seconds": clock.seconds(), "method": method.state()})
        saved, saved_at = step, time.monotonic()

    def read(losses: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(losses[name]) for name in method.loss_names if name in losses}

    first = step + 1
    if step == 0:
        run.write_samples(0, to_uint8(method.generate(SHEET_SEEDS)))
        save(0)

    with interruption_told(reporter, lambda: saved), stop_signals() as stop:
        while step < steps and not group.agreed(bool(stop)):
            step += 1
            losses = method.step(step)
            watch.note(step, losses)

            evaluate = bool(every) and (step % every == 0 or step == steps)
            if step % machine.log_every == 0 or step == steps or evaluate:
                values = read(losses)
                watch.check_losses()
                rate = clock.rate(step)
                stats: dict[str, Any] = {"step": step} | values
                stats |= {
                    "seconds": clock.seconds(),
                    "images_per_second": rate * settings.training.batch_size,
                }
                if evaluate and figures is not None:
                    watch.check(step)
                    stats["figures"] = figures(to_uint8(method.generate(FIGURE_SEEDS)))
                run.append_stats(stats)
                reporter.progress(step, steps, rate, values, method.steady)
                if yielding and (fair := fair_threads()) < torch.get_num_threads():
                    torch.set_num_threads(fair)
                    run.update(settings, step, (machine_record or {}) | {"threads": fair})
                    reporter.line(
                        f"another training runs here: from step {step} on with {fair} thread(s), no longer "
                        "bit-equal to a run alone (--threads keeps a number)"
                    )
            elif step == first:  # a sign of life: the first line of stats can take minutes
                reporter.progress(step, steps, clock.rate(step), read(losses), steady=False)
            if step % machine.sample_every == 0 or step == steps:
                watch.check(step)
                run.write_samples(step, to_uint8(method.generate(SHEET_SEEDS)))
            if step % machine.snapshot_every == 0 or step == steps:
                watch.check(step)
                run.write_snapshot(step, machine.snapshot_every, method.sampling_weights())
            overdue = time.monotonic() - saved_at > 60 * machine.checkpoint_minutes
            if step % machine.checkpoint_every == 0 or overdue:
                save(step)
        if saved < step:
            save(step)

    reporter.finish()
    if step < steps:
        reporter.line(f"stopped at step {step} of {steps}; the same command goes on from there")
        if stop and stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (stop[0] if stop else signal.SIGTERM))


# --- the loop's parts ---


def _resume(method: Method, run: Run, reporter: Reporter, group: Group) -> tuple[int, float]:
    """Load the newest good checkpoint into `method`; give its step and the seconds trained so far.

    The first process of a group chooses it, and the others load that one or fail.
    """
    step, seconds = 0, 0.0
    with group.together():
        if group.first:
            step, seconds = _newest(method, run, reporter)
    step = group.agreed(step)
    with group.together():
        if step > 0 and not group.first:
            method.load_state(run.read_checkpoint(step, torch.device("cpu"))["method"])
    return step, seconds


def _newest(method: Method, run: Run, reporter: Reporter) -> tuple[int, float]:
    """`_resume` for one process."""
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        try:
            state = run.read_checkpoint(step, torch.device("cpu"))
            method.load_state(state["method"])
            seconds = float(state["seconds"])
        except Exception as error:  # what a damaged state breaks can be anything
            reason = str(error) if isinstance(error, UserError) else f"checkpoint of step {step} does not fit"
            reporter.line(f"{reason}; trying the one before")
            continue
        run.trim_stats(step)
        if step > 0:
            reporter.line(f"going on from step {step}")
        return step, seconds
    if steps:
        raise UserError(
            f"no checkpoint in {run.path / 'checkpoints'} can be read: choose another --out to begin anew"
        )
    run.trim_stats(-1)
    return 0, 0.0


class FiniteWatch:
    """Remembers, on the device, the first step with a loss that is not finite; reads it when asked."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.first: Tensor | None = None  # [step, index of the term]; step 0 means none
        self.names: list[str] = []

    def note(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take note of the losses of `step`, without reading them."""
        self.names = list(losses)
        bad = ~torch.isfinite(torch.stack([loss.float() for loss in losses.values()]))
        found = torch.stack([bad.any() * step, bad.int().argmax()])
        self.first = found if self.first is None else torch.where(self.first[0] > 0, self.first, found)

    def check_losses(self) -> None:
        """Raise a UserError if a loss was not finite at any step noted."""
        if self.first is None:
            return
        step, term = (int(value) for value in self.first)
        if step > 0:
            raise _not_finite(self.names[term], step)

    def check(self, step: int) -> None:
        """Raise a UserError if a loss was not finite, or a weight is not finite now, at `step`."""
        self.check_losses()
        norms = torch.stack(torch._foreach_norm(self.method.parameters()))
        if not bool(torch.isfinite(norms).all()):
            raise _not_finite("a weight", step)


def _not_finite(what: str, step: int) -> UserError:
    return UserError(
        f"{what} was not finite at step {step}; nothing of it was saved: start anew with lower rates "
        "(--learning-rate-g, --learning-rate-d), or go on with --precision fp32"
    )


class Clock:
    """Seconds of training over all starts of the run, and the current rate."""

    def __init__(self, step: int, seconds: float) -> None:
        now = time.monotonic()
        self._begin = now - seconds
        self._last = (step, now)

    def seconds(self) -> float:
        """Seconds trained so far."""
        return round(time.monotonic() - self._begin, 3)

    def rate(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.monotonic()
        since, then = self._last
        self._last = (step, now)
        return round((step - since) / max(now - then, 1e-6), 3)


@contextmanager
def interruption_told(reporter: Reporter, saved: Callable[[], int]) -> Iterator[None]:
    """Say what is kept, the step `saved`, where a training does not end in its own time."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.finish()
        reporter.line(f"interrupted at once; the same command goes on from step {saved()}")
        raise


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and the request to terminate, so that the step in progress can end.

    Another one interrupts at once, where the first was two seconds ago: a key pressed twice is one wish.
    Outside the main thread signals are left alone.
    """
    received: list[int] = []
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def remember(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
        elif time.monotonic() - first > IMPATIENCE:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
