"""Run directories -> one static HTML page that needs no network and no server.

The page reads runs and nothing else; training and figures know nothing of it. Pictures are embedded, curves
are SVG, there is no script, and the page's own policy forbids the browser any request.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined

from oneshotgan import __version__, config, media
from oneshotgan.curves import curves
from oneshotgan.data import in_batches, to_uint8
from oneshotgan.errors import UserError
from oneshotgan.files import write_text
from oneshotgan.machine import memory_errors
from oneshotgan.metrics.distance import COPIES, distance_to_train, training_copies
from oneshotgan.perceptual import LPIPS
from oneshotgan.run import Run
from oneshotgan.sampling import OneShotGAN
from oneshotgan.spread import spread

SHOWN = 16  # samples of each run, the seeds 0 … 15
SHOWN_REALS = 16  # training images of each run
COMPARED = 200  # training images among which the nearest is looked for


@dataclass(frozen=True)
class Sample:
    """A sample as a picture, beside the nearest training image where it is known."""

    seed: int
    image: str
    nearest: str | None = None
    which: str = ""
    distance: float = math.nan


def write_report(
    runs: Sequence[Path | str], out: Path | str, say: Callable[[str], None] = lambda line: None
) -> None:
    """Write the page about `runs`, side by side, to the file `out`.

    Args:
        say: told, one line each, what is left out and why.

    Raises:
        UserError: no run, a folder that is none, or the file cannot be written.
    """
    if not runs:
        raise UserError("name one run directory or more")
    try:
        network: LPIPS | None = LPIPS.load()
    except UserError as error:
        network = None
        say(f"nearest training images left out: {error}")
    with memory_errors("name fewer runs, or close other programs"):
        described = [_describe(Run.open(path), network) for path in runs]
    rows = dict.fromkeys(chain.from_iterable(run["figures"] for run in described))
    template = files("oneshotgan").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        runs=described,
        figure_names=list(rows),
        version=__version__,
        compared=network is not None,
        copies=COPIES,
    )
    write_text(out, page)


def _describe(run: Run, network: LPIPS | None) -> dict[str, Any]:
    """All that the page says of one run."""
    settings, record, frames = run.settings, run.record, run.frames()
    gan = OneShotGAN.from_pretrained(run.path)
    stats = run.stats()
    figures, measured_at = run.figures()
    shown = spread(len(frames), SHOWN_REALS)
    machines = [f"{m['processor']}, {m['device']}, {m['precision']}" for m in record["machines"]]
    height, width = frames.shape[1:3]
    return {
        "name": run.path.resolve().name,
        "path": str(run.path),
        "source": record["source"]["name"],
        "frames": len(frames),
        "size": f"{width}×{height}",
        "step": gan.step,
        "steps": settings.training.steps,
        "seconds": next((line["seconds"] for line in reversed(stats) if "seconds" in line), None),
        "machines": list(dict.fromkeys(machines)),
        "version": record["version"],
        "reals": [_picture(frames[i]) for i in shown],
        "samples": _samples(gan, frames, network),
        "figures": figures,
        "measured_at": measured_at,
        "curves": curves(stats),
        "settings": config.listed(settings),
    }


def _samples(gan: OneShotGAN, frames: np.ndarray, network: LPIPS | None) -> list[Sample]:
    """The first samples, each with the nearest of the training images and their copies."""
    images = gan.sample(range(SHOWN))
    if network is None:
        return [Sample(seed, _picture(image)) for seed, image in enumerate(images)]
    chosen = spread(len(frames), COMPARED)
    real = torch.from_numpy(frames[chosen])
    nearest = distance_to_train(torch.from_numpy(images), real, network)
    found = []
    for seed, image in enumerate(images):
        frame, copy = divmod(int(nearest.index[seed]), COPIES)
        batch = next(in_batches(real[frame : frame + 1]))
        shown = to_uint8(training_copies(batch, COPIES, frame)[copy : copy + 1])[0]
        kind = ("as it is", "mirrored")[copy] if copy < 2 else "augmented"
        which = kind if len(frames) == 1 else f"frame {chosen[frame]}, {kind}"
        found.append(Sample(seed, _picture(image), _picture(shown), which, float(nearest.distance[seed])))
    return found


def _picture(image: np.ndarray) -> str:
    """A (H, W, 3) uint8 image as the address of an embedded PNG."""
    return "data:image/png;base64," + base64.b64encode(media.encode_png(image)).decode()
