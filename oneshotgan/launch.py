"""`train`: from a source and settings to a run, begun or continued, and `fit`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneshotgan import config, media, neighbours
from oneshotgan.config import Config
from oneshotgan.errors import UserError
from oneshotgan.machine import Machine, choose, memory_errors, running_on
from oneshotgan.methods import METHODS
from oneshotgan.metrics.figures import Networks, small_figures
from oneshotgan.parallel import Group, joined
from oneshotgan.progress import Reporter
from oneshotgan.run import Run, Source, Spectator
from oneshotgan.tensorboard import TensorBoard
from oneshotgan.training import fit

_LESS_MEMORY = "lower --max-size or --batch-size, and choose another --out if this run has begun"


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
    if preset is not None and choices.setdefault("preset", preset) != preset:
        raise UserError(f"{config_file} holds the preset {choices['preset']}: leave out --preset {preset}")
    config.parse(choices | given)  # a bad setting is told before a bad source
    path = Path(out) if out is not None else _default_out(source, choices.get("method", "oneshot"))
    device = given.get("device", "auto")
    with joined(device) as group, memory_errors(_LESS_MEMORY), neighbours.present(), ExitStack() as held:
        reporter = held.enter_context(Reporter(quiet or not group.first))
        ready = None
        with group.together():
            if group.first:
                prepare = _continue if Run.exists(path) else _begin
                ready = prepare(path, source, choices, given, reporter, group, held)
        if group.agreed(int(ready is not None)):
            with group.together():
                ready = ready or _join(path, choices, given, group)
            _fit(ready, reporter, group)
    return path


@dataclass(frozen=True)
class _Ready:
    """A run, locked, with all that `fit` needs."""

    run: Run
    settings: Config
    machine: Machine
    networks: Networks | None
    frames: np.ndarray


# --- a new run, and one that goes on ---


def _begin(
    path: Path,
    source: Path | str,
    choices: Mapping[str, str],
    given: Mapping[str, Any],
    reporter: Reporter,
    group: Group,
    held: ExitStack,
) -> _Ready:
    settings, reason = _resolve(choices, given)
    method = METHODS[settings.method]
    machine = choose(settings.machine, method.precisions, group.size)
    _check_free(path)
    frames = media.read_frames(
        source, lambda size: method.training_size(size, settings), settings.data.max_frames
    )
    if len(frames.images) > 1:
        clip = config.preset(settings.preset, settings.method, clip=True)
        settings = config.with_overrides(clip, given)
    settings = method.planned(settings, frames.source_size)
    method.check(settings, group)
    networks = _networks(settings, machine)
    board = _board(path, settings)
    described = Source(media.source_name(source), media.source_checksum(source), frames.source_size)
    run = Run(path)
    run.board = board
    held.enter_context(run.locked())
    _check_free(path)  # nobody can begin a run here any more
    run.create(settings, described, frames.images)
    reporter.line(f"preset {settings.preset} {reason}; {machine}")
    for notice in frames.notices:
        reporter.line(notice)
    count, height, width = frames.images.shape[:3]
    what = f"{count} frames" if count > 1 else "one image"
    change = (width / height) / (frames.source_size[1] / frames.source_size[0])
    squeezed = f", {abs(change - 1):.0%} {'wider' if change > 1 else 'narrower'} than the source"
    shape = squeezed if abs(change - 1) >= 0.005 else ""
    reporter.line(f"{described.name}: {what} at {width}x{height} pixels{shape} -> {path}")
    return _Ready(run, settings, machine, networks, frames.images)


def _continue(
    path: Path,
    source: Path | str,
    choices: Mapping[str, str],
    given: Mapping[str, Any],
    reporter: Reporter,
    group: Group,
    held: ExitStack,
) -> _Ready | None:
    """None if the run is finished."""
    run = Run.open(path)
    held.enter_context(run.locked())
    settings = _extended(run, choices, given)
    _check_source(run, source, reporter)
    newest = max(run.checkpoint_steps(), default=0)
    if newest >= settings.training.steps:
        extend = "; more --steps would extend it" if METHODS[settings.method].extensible else ""
        reporter.line(f"{run.path} is finished: {newest} steps{extend}")
        return None
    METHODS[settings.method].check(settings, group)
    machine = choose(settings.machine, METHODS[settings.method].precisions, group.size)
    networks = _networks(settings, machine)
    run.board = _board(path, settings)
    frames = run.frames()
    reporter.line(f"{run.path}: preset {settings.preset}; {machine}")
    record = dataclasses.asdict(machine)
    known = [{"processes": 1} | machine for machine in run.record["machines"]]
    moved = bool(known) and {k: v for k, v in known[-1].items() if k != "from_step"} != record
    if moved:
        changed = ", ".join(
            f"{k} {known[-1].get(k)} -> {v}" for k, v in record.items() if known[-1].get(k) != v
        )
        reporter.line(
            f"from here on the run is not bit-equal to one that never changed its machine: {changed}"
        )
    return _Ready(run, settings, machine, networks, frames)


def _join(path: Path, choices: Mapping[str, str], given: Mapping[str, Any], group: Group) -> _Ready:
    """The same for another process than the first of a group, which has prepared the run."""
    run = Spectator(path)
    settings = _extended(run, choices, given)
    machine = choose(settings.machine, METHODS[settings.method].precisions, group.size)
    return _Ready(run, settings, machine, None, run.frames())


def _fit(ready: _Ready, reporter: Reporter, group: Group) -> None:
    settings, machine = ready.settings, ready.machine
    with running_on(machine) as device:
        method = METHODS[settings.method](
            settings, ready.frames, device, machine.precision, reporter.line, group
        )
        figures = None if ready.networks is None else small_figures(ready.frames, ready.networks)
        yielding = settings.machine.threads == 0 and machine.device == "cpu"
        fit(method, ready.run, settings, reporter, dataclasses.asdict(machine), figures, yielding, group)
    reporter.line(f"finished {settings.training.steps} steps: {ready.run.path}")


def _networks(settings: Config, machine: Machine) -> Networks | None:
    """The pretrained networks, if figures are wanted; missing weights are told before anything is written."""
    if settings.machine.evaluate_every == 0:
        return None
    try:
        return Networks.load("torchvision", machine.device)
    except UserError as error:
        raise UserError(f"--evaluate-every needs pretrained weights (0 turns it off): {error}") from error


def _board(path: Path, settings: Config) -> TensorBoard | None:
    return TensorBoard(path) if settings.machine.tensorboard else None


def _resolve(choices: Mapping[str, str], given: Mapping[str, Any]) -> tuple[Config, str]:
    """The settings of a new run, and why this preset."""
    name = choices.get("preset")
    reason = "(as asked)"
    if name is None:
        cuda = torch.cuda.is_available()
        name = "paper" if cuda else "preview"
        reason = "(a CUDA device was found)" if cuda else "(no CUDA device; --preset paper is the full size)"
    settings = config.preset(name, choices.get("method", "oneshot"))
    return config.with_overrides(settings, given), reason


def _extended(run: Run, choices: Mapping[str, str], given: Mapping[str, Any]) -> Config:
    """The run's settings with the changes that a run allows.

    Raises:
        UserError: a setting that makes the model differs from the run's.
    """
    old = run.settings
    for key in ("method", "preset"):
        if choices.get(key, getattr(old, key)) != getattr(old, key):
            raise UserError(
                f"this run has {key} {getattr(old, key)}: leave out --{key}, or choose another --out"
            )
    wanted = config.with_overrides(old, _without_lifted_limits(old, given))
    height, width = run.record["source"]["size"]
    new: Config = METHODS[old.method].planned(wanted, (height, width))
    for name in config.changed_fields(old, new):
        section = config.FIELDS[name][0]
        was, now = getattr(getattr(old, section), name), getattr(getattr(new, section), name)
        if section == "machine" or (name == "steps" and now > was and METHODS[old.method].extensible):
            continue
        if name == "steps" and now > was:
            raise UserError(
                f"{old.method} divides its steps among its scales, here {was}: a run of {now} is another "
                "one, choose another --out"
            )
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


def _check_source(run: Run, source: Path | str, reporter: Reporter) -> None:
    """Refuse another source than the run's; one that is gone is not needed any more."""
    known = run.record["source"]
    if not os.path.exists(source):
        if media.source_name(source) != known["name"]:
            raise UserError(f"{source} does not exist, and {run.path} was trained on {known['name']}")
        reporter.line(f"{source} is gone; going on from the images in {run.path / 'input'}")
    elif media.source_checksum(source) != known["checksum"]:
        raise UserError(
            f"{run.path} was trained on another source of the name {known['name']}: choose another --out"
        )


# What Run.create has written before config.json makes it a run.
_BEGINNING = re.compile(
    r"\.lock|input|samples|checkpoints|snapshots|model|reals\.png|input/frame-\d+\.png|model/config\.json"
    r"|(input/|model/)?\.[^/]*\.tmp\.(png|json)"
)


def _check_free(path: Path) -> None:
    """Refuse a folder that holds something other than a run that was cut off while it began."""
    if not os.path.exists(path):
        return
    if not os.path.isdir(path):
        raise UserError(f"{path} is a file: choose another --out")
    names = (entry.relative_to(path).as_posix() for entry in path.rglob("*"))
    if not all(_BEGINNING.fullmatch(name) for name in names):
        raise UserError(f"{path} is not empty and no run directory: choose another --out")


def _default_out(source: Path | str, method: str) -> Path:
    return Path("runs") / f"{media.source_name(source)}-{method}"
