"""`fit`, the one loop for every method, and `train`, which readies a run and calls it."""

from __future__ import annotations

import dataclasses
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from oneshotgan import config, media
from oneshotgan.config import Config
from oneshotgan.data import to_uint8
from oneshotgan.errors import UserError
from oneshotgan.machine import Machine, choose, memory_errors, running_on
from oneshotgan.methods import METHODS
from oneshotgan.models.plan import limit_size, make_plan
from oneshotgan.progress import Reporter
from oneshotgan.run import Run, Source

SHEET_SEEDS = range(16)  # the latents of the contact sheets during training


class Method(Protocol):
    """What `fit` asks of a method. `oneshotgan.methods.oneshot.OneShot` is the example."""

    loss_names: tuple[str, ...]

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
) -> None:
    """Train `method` from the run's newest good checkpoint to ``settings.training.steps``.

    Whatever is written at a step is written before its checkpoint, so a run that was killed finds in the
    newest checkpoint a point from which it writes the same again.

    Raises:
        UserError: a loss or weight is not finite, memory or disk is full, or no checkpoint is good.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written.
        SystemExit: the process was asked to terminate; a checkpoint was written.
    """
    steps, machine = settings.training.steps, settings.machine
    step, seconds = _resume(method, run, reporter)
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

    if step == 0:
        run.write_samples(0, to_uint8(method.generate(SHEET_SEEDS)))
        save(0)

    with stop_signals() as stop, memory_errors():
        while step < steps and not stop:
            step += 1
            losses = method.step(step)
            watch.note(step, losses)

            if step % machine.log_every == 0 or step == steps:
                values = {name: float(losses[name]) for name in method.loss_names if name in losses}
                watch.check_losses()
                rate = clock.rate(step)
                stats = {"seconds": clock.seconds(), "images_per_second": rate * settings.training.batch_size}
                run.append_stats({"step": step} | values | stats)
                reporter.progress(step, steps, rate, values)
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
    if stop and step < steps:
        reporter.line(f"stopped at step {step} of {steps}; the same command goes on from there")
        if stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + stop[0])


def train(
    source: Path | str,
    out: Path | str | None = None,
    *,
    method: str | None = None,
    preset: str | None = None,
    config_file: Path | str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Path:
    """Train on one photo, video or folder of frames; what ``oneshotgan train`` does.

    A run that exists at `out` is continued from its own ``input/``. Settings given here that make the
    model must equal the run's; more ``steps`` extend it.

    Args:
        source: a photo, a video, or a folder of frames.
        out: the run directory; ``runs/<source>-<method>`` if None.
        preset: ``preview`` or ``paper``; if None, ``paper`` on a machine with CUDA, else ``preview``.
        config_file: TOML settings, below `overrides` and above the preset.
        quiet: print nothing on stderr.
        overrides: any setting by its name, as in `oneshotgan.config`.

    Returns:
        The run directory.

    Raises:
        UserError: a mistake or circumstance that the user can put right, in one line.
    """
    choices, given = config.load_file(config_file) if config_file is not None else ({}, {})
    given |= overrides
    if method is not None:
        choices["method"] = method
    if preset is not None:
        choices["preset"] = preset
    config.parse(choices | given)  # a bad setting is told before a bad source
    path = Path(out) if out is not None else _default_out(source, choices.get("method", "oneshot"))
    with Reporter(quiet) as reporter, memory_errors():
        if Run.exists(path):
            _continue(Run.open(path), source, choices, given, reporter)
        else:
            _begin(path, source, choices, given, reporter)
    return path


# --- a new run, and one that goes on ---


def _begin(
    path: Path, source: Path | str, choices: Mapping[str, str], given: Mapping[str, Any], reporter: Reporter
) -> None:
    settings, reason = _resolve(choices, given)
    machine = choose(settings.machine)
    _check_free(path)
    frames = media.read_frames(source, lambda size: _training_size(size, settings), settings.data.max_frames)
    described = Source(media.source_name(source), media.source_checksum(source), frames.source_size)
    run = Run(path)
    with run.locked():
        _check_free(path)  # nobody can begin a run here any more
        run.create(settings, described, frames.images)
        reporter.line(f"preset {settings.preset} {reason}; {machine}")
        for notice in frames.notices:
            reporter.line(notice)
        count, height, width = frames.images.shape[:3]
        what = f"{count} frames" if count > 1 else "one image"
        reporter.line(f"{described.name}: {what} at {width}x{height} pixels -> {path}")
        _fit(run, settings, machine, frames.images, reporter)


def _continue(
    run: Run, source: Path | str, choices: Mapping[str, str], given: Mapping[str, Any], reporter: Reporter
) -> None:
    with run.locked():
        old = run.settings
        settings = _extended(old, choices, given)
        _check_source(run, source, reporter)
        newest = max(run.checkpoint_steps(), default=0)
        if newest >= settings.training.steps:
            reporter.line(f"{run.path} is finished: {newest} steps; more --steps would extend it")
            return
        machine = choose(settings.machine)
        record = dataclasses.asdict(machine)
        known = run.record["machines"]
        moved = bool(known) and {k: v for k, v in known[-1].items() if k != "from_step"} != record
        if moved:
            changed = ", ".join(
                f"{k} {known[-1].get(k)} -> {v}" for k, v in record.items() if known[-1].get(k) != v
            )
            reporter.line(f"from here on the run is not bit-equal to an unmoved one: {changed}")
        _fit(run, settings, machine, run.frames(), reporter)


def _fit(run: Run, settings: Config, machine: Machine, frames: np.ndarray, reporter: Reporter) -> None:
    with running_on(machine, settings.machine.deterministic) as device, memory_errors():
        method = METHODS[settings.method](settings, frames, device, machine.precision)
        fit(method, run, settings, reporter, dataclasses.asdict(machine))
    reporter.line(f"finished {settings.training.steps} steps: {run.path}")


def _resolve(choices: Mapping[str, str], given: Mapping[str, Any]) -> tuple[Config, str]:
    """The settings of a new run, and why this preset."""
    name = choices.get("preset")
    reason = "(as asked)"
    if name is None:
        cuda = torch.cuda.is_available()
        name = "paper" if cuda else "preview"
        reason = "(a CUDA device was found)" if cuda else "(no CUDA device; --preset paper is the full size)"
    settings = dataclasses.replace(config.preset(name), method=choices.get("method", "oneshot"))  # type: ignore[arg-type]
    return config.with_overrides(settings, given), reason


def _extended(old: Config, choices: Mapping[str, str], given: Mapping[str, Any]) -> Config:
    """The run's settings with the changes that a run allows.

    Raises:
        UserError: a setting that makes the model differs from the run's.
    """
    for key in ("method", "preset"):
        if choices.get(key, getattr(old, key)) != getattr(old, key):
            raise UserError(
                f"this run has {key} {getattr(old, key)}: leave out --{key}, or choose another --out"
            )
    new = config.with_overrides(old, _without_lifted_limits(old, given))
    for name in config.changed_fields(old, new):
        section = config.FIELDS[name][0]
        if section == "machine" or (name == "steps" and new.training.steps > old.training.steps):
            continue
        was, now = getattr(getattr(old, section), name), getattr(getattr(new, section), name)
        if name == "steps":
            raise UserError(f"this run has {was} steps: {now} would be fewer; leave out --steps")
        raise UserError(f"this run has {name} {was}, not {now}: leave it out, or choose another --out")
    return new


def _without_lifted_limits(old: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as given, the size limits both named so that giving one again does not lift the other."""
    changes = dict(given)
    if "max_size" in changes or "short_size" in changes:
        changes.setdefault("max_size", old.data.max_size)
        changes.setdefault("short_size", old.data.short_size)
    return changes


def _training_size(size: tuple[int, int], settings: Config) -> tuple[int, int]:
    plan = make_plan(limit_size(size, settings.data.max_size, settings.data.short_size))
    return plan.height, plan.width


def _check_source(run: Run, source: Path | str, reporter: Reporter) -> None:
    """Refuse another source than the run's; one that is gone is not needed any more."""
    known = run.record["source"]
    if not Path(source).exists():
        if media.source_name(source) != known["name"]:
            raise UserError(f"{source} does not exist, and {run.path} was trained on {known['name']}")
        reporter.line(f"{source} is gone; going on from the images in {run.path / 'input'}")
    elif media.source_checksum(source) != known["checksum"]:
        raise UserError(f"{run.path} was trained on another {known['name']}: choose another --out")


# What Run.create has written before config.json makes it a run.
_BEGINNING = re.compile(
    r"\.lock|input|samples|checkpoints|snapshots|model|reals\.png|input/frame-\d+\.png|model/config\.json"
    r"|(input/|model/)?\.[^/]*\.tmp\.(png|json)"
)


def _check_free(path: Path) -> None:
    """Refuse a folder that holds something other than a run that was cut off while it began."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
    names = (entry.relative_to(path).as_posix() for entry in path.rglob("*"))
    if not all(_BEGINNING.fullmatch(name) for name in names):
        raise UserError(f"{path} is not empty and no run directory: choose another --out")


def _default_out(source: Path | str, method: str) -> Path:
    return Path("runs") / f"{media.source_name(source)}-{method}"


# --- the loop's parts ---


def _resume(method: Method, run: Run, reporter: Reporter) -> tuple[int, float]:
    """Load the newest good checkpoint into `method`; give its step and the seconds trained so far."""
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        try:
            state = run.read_checkpoint(step, torch.device("cpu"))
            method.load_state(state["method"])
            seconds = float(state["seconds"])
        except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
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
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and the request to terminate, so that the step in progress can end.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def remember(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
