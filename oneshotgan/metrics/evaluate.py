"""A run, or any folder of images, -> its figures; metrics.json, and the choice among a run's snapshots."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneshotgan import media
from oneshotgan.config import MachineConfig
from oneshotgan.errors import UserError
from oneshotgan.files import write_json
from oneshotgan.machine import choose, memory_errors
from oneshotgan.metrics.figures import SMALL_LAYERS, Measured, Networks, Reference, check_count, measure
from oneshotgan.perceptual.inception import LAYERS
from oneshotgan.run import Run
from oneshotgan.sampling import OneShotGAN
from oneshotgan.spread import spread

COUNT = 100  # samples, as in the paper
TOLERANCE = 1.25  # how far above the lowest SIFID the best snapshot may lie
MAX_REALS = 200  # frames of a video that samples are compared with
_REMEDY = "copy the run to where you may write"
_LESS_MEMORY = "lower --count, or evaluate on another machine"

Say = Callable[[str], None]


def evaluate_run(
    path: Path | str,
    count: int = COUNT,
    *,
    step: int | None = None,
    released: bool = False,
    inception: str = "torchvision",
    device: str = "auto",
    size: tuple[int, int] | None = None,
    real: Path | str | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The figures of a run's samples (seeds 0 … count − 1); written to its ``metrics.json`` and given back.

    Args:
        step: a snapshot instead of the newest model; the file is then ``metrics-step-000500.json``.
        released: also as the released program computes them.
        inception: weights for SIFID, "torchvision" (as the paper) or "fid".
        size: (height, width) that samples and real images are scaled to; None for the run's own.
        real: with `size`: the run's source, for real images that were not made small and large again.
        say: told, one line each, what is left out and why.

    Raises:
        UserError: no such run or snapshot, fewer than two samples, or the file cannot be written.
    """
    run = _writable(Run.open(path))
    seeds = range(_checked(count))
    gan = OneShotGAN.from_pretrained(path, step)
    with memory_errors(_LESS_MEMORY):
        started = time.monotonic()
        reals = _reals(run) if size is None else _reals_at(size, run, real)
        networks, reference, where = _prepare(reals, inception, device, say)
        fake = gan.to(where).sample(seeds)
        samples = torch.from_numpy(fake if size is None else media.resized(fake, size))
        measured = measure(samples, reference, networks, released)
        content = _content(measured, gan.step, [0, count - 1], started)
    name = "metrics.json" if step is None else f"metrics-step-{step:06d}.json"
    incomplete = networks.stem is None or networks.lpips is None
    if incomplete and (run.path / name).exists():
        say(f"{run.path / name} is kept as it was: without weights there would be less in it")
    else:
        if lost := _given_up(run.path / name, content):
            say(lost)
        write_json(run.path / name, content, _REMEDY)
    return content


def _given_up(path: Path, content: dict[str, Any]) -> str | None:
    """A line about the file at `path`, if it holds more figures or samples of the model than `content`."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        old, new = ({str(f["name"]): int(f["count"]) for f in each["figures"]} for each in (earlier, content))
        same = earlier["step"] == content["step"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        return None
    if not same or all(count <= new.get(name, 0) for name, count in old.items()):
        return None
    return f"{path.name} held {len(old)} figures of {max(old.values())} samples; these take their place"


def evaluate_images(
    fake: Path | str,
    real: Path | str,
    count: int = COUNT,
    *,
    released: bool = False,
    inception: str = "torchvision",
    device: str = "auto",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The figures of the images in a folder, anyone's, against a photo, a folder of frames or a video.

    The real images are scaled to the size of the first sample.

    Args:
        fake: a folder of images, or an animation or video; of more than `count`, that many, evenly.
        real: what the samples were learned from.
        released, inception, device, say: see `evaluate_run`.

    Raises:
        UserError: a source is missing or unreadable, or there are fewer than two samples.
    """
    _checked(count)
    with memory_errors(_LESS_MEMORY):
        samples = media.read_frames(fake, lambda size: size, count)
        check_count(len(samples.images))
        size = samples.images.shape[1:3]
        reals = media.read_frames(real, lambda _: (size[0], size[1]), MAX_REALS)
        for notice in (*samples.notices, *reals.notices):
            say(notice)
        change = (size[1] / size[0]) / (reals.source_size[1] / reals.source_size[0])
        if max(change, 1 / change) > 1.1:
            shapes = f"{reals.source_size[1]}x{reals.source_size[0]} to {size[1]}x{size[0]}"
            say(f"the real images are squeezed from {shapes}, the samples' shape")
        started = time.monotonic()
        networks, reference, _ = _prepare(reals.images, inception, device, say)
        measured = measure(torch.from_numpy(samples.images), reference, networks, released)
        return _content(measured, None, None, started)


def evaluate_snapshots(
    path: Path | str,
    count: int = COUNT,
    *,
    inception: str = "torchvision",
    device: str = "auto",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """SIFID and LPIPS of every snapshot of a run; written to its ``metrics-all.json`` and given back.

    ``steps`` holds an object for each, with ``unbeaten`` where no other has both lower SIFID and higher
    LPIPS; ``best`` is the step that `choose_best` takes.

    Raises:
        UserError: no such run, no snapshots, missing weights, or the file cannot be written.
    """
    run = _writable(Run.open(path))
    seeds = range(_checked(count))
    steps = run.snapshot_steps()
    if not steps:
        raise UserError(
            f"{path} has no snapshots yet: the first comes at step {run.settings.machine.snapshot_every}"
        )
    with memory_errors(_LESS_MEMORY):
        networks, reference, where = _prepare(_reals(run), inception, device, None, small=True)
        rows: list[dict[str, Any]] = []
        for step in steps:
            say(f"step {step}")
            fake = OneShotGAN.from_pretrained(path, step).to(where).sample(seeds)
            measured = measure(torch.from_numpy(fake), reference, networks, small=True)
            rows.append({"step": step, "figures": [f.entry([0, count - 1]) for f in measured.figures]})
    points = [(row["figures"][0]["value"], row["figures"][1]["value"]) for row in rows]
    front = unbeaten(points)
    for index, row in enumerate(rows):
        row["unbeaten"] = index in front
    content = {"best": steps[choose_best(points)], "count": count, "steps": rows}
    write_json(run.path / "metrics-all.json", content, _REMEDY)
    return content


def best_step(path: Path | str) -> int:
    """The snapshot that `evaluate_snapshots` found best.

    Raises:
        UserError: the run was not evaluated in this way, or went on since.
    """
    run = Run.open(path)
    file = run.path / "metrics-all.json"
    advice = f"oneshotgan evaluate {path} --all finds it"
    if not file.is_file():
        raise UserError(f"the best step of {path} is not known: {advice}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known, best = [int(row["step"]) for row in content["steps"]], int(content["best"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {advice} anew") from error
    if known != run.snapshot_steps():
        raise UserError(f"{path} has other snapshots than when they were compared: {advice} anew")
    return best


def unbeaten(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of (cost, gain) points that no other beats: none has a lower cost and a higher gain.

    Of equal points all are kept.
    """
    return [
        i
        for i, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]


def choose_best(points: Sequence[tuple[float, float]]) -> int:
    """Which of the unbeaten (SIFID, LPIPS) points is taken.

    Of those whose SIFID is at most `TOLERANCE` times the lowest, the one with the highest LPIPS; of equal
    ones the latest. Early snapshots are unbeaten too, for nothing is as diverse as noise.
    """
    lowest = min(cost for cost, _ in points)
    near = [i for i in unbeaten(points) if points[i][0] <= TOLERANCE * lowest]
    return max(near, key=lambda i: (points[i][1], i))


def table(content: dict[str, Any]) -> str:
    """The figures of `evaluate_run` or `evaluate_images` as aligned lines of text."""
    rows = [
        (
            f"{entry['name']} {entry['direction']}",
            f"{entry['value']:.4f}",
            _plus_minus(entry["standard_error"]),
        )
        for entry in content["figures"]
    ]
    return _aligned([("figure", "value", "± s.e."), *rows])


def snapshot_table(content: dict[str, Any]) -> str:
    """The figures of `evaluate_snapshots` as aligned lines of text."""
    names = [f"{e['name']} {e['direction']}" for e in content["steps"][0]["figures"]]
    rows = [("step", *names, "")]
    for row in content["steps"]:
        best = row["step"] == content["best"]
        mark = "best" if best else "unbeaten" if row["unbeaten"] else ""
        rows.append((str(row["step"]), *(f"{entry['value']:.4f}" for entry in row["figures"]), mark))
    return _aligned(rows)


def _writable(run: Run) -> Run:
    """The run, if a file can be written into it: that is told before the work, not after."""
    if not os.access(run.path, os.W_OK):
        raise UserError(f"cannot write into {run.path}: {_REMEDY}")
    return run


def _reals(run: Run) -> np.ndarray:
    """The training images that samples are compared with."""
    frames = run.frames()
    chosen: np.ndarray = frames[spread(len(frames), MAX_REALS)]
    return chosen


def _reals_at(size: tuple[int, int], run: Run, real: Path | str | None) -> np.ndarray:
    """The training images at another size, from their source if it is given."""
    if real is None:
        return media.resized(_reals(run), size)
    count = min(run.settings.data.max_frames, MAX_REALS)
    return media.read_frames(real, lambda _: size, count).images


def _prepare(
    real: np.ndarray, inception: str, device: str, say: Say | None, small: bool = False
) -> tuple[Networks, Reference, str]:
    where = choose(MachineConfig(device=device)).device  # type: ignore[arg-type]
    missing = None if say is None else (lambda error: say(f"left out: {error}"))
    if say is not None:
        images = "one training image" if len(real) == 1 else f"{len(real)} training images"
        say(f"measuring against {images}; this can take minutes")
    networks = Networks.load(inception, where, missing)
    layers = SMALL_LAYERS if small else LAYERS
    return networks, Reference.of(torch.from_numpy(real), networks, layers), where


def _content(measured: Measured, step: int | None, seeds: list[int] | None, started: float) -> dict[str, Any]:
    return {
        "step": step,
        "figures": [figure.entry(seeds) for figure in measured.figures],
        "seconds": round(time.monotonic() - started, 2),
    }


def _checked(count: int) -> int:
    if count < 2:
        raise UserError(
            f"diversity compares samples with one another: --count must be 2 or more, not {count}"
        )
    return count


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
