"""Training images for other models: samples with a manifest, near-copies of the training images left out.

A line of ``manifest.jsonl`` says of one sample which file it is, from which seed and step, and how far it is
from the nearest training image: LPIPS to the fixed set of `oneshotgan.metrics.distance`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from oneshotgan import media
from oneshotgan.errors import UserError
from oneshotgan.files import replacing, write_text
from oneshotgan.machine import memory_errors
from oneshotgan.metrics.distance import COPIES, distance_to_train
from oneshotgan.perceptual import LPIPS
from oneshotgan.run import Run
from oneshotgan.sampling import OneShotGAN

MANIFEST = "manifest.jsonl"
AT_ONCE = 64  # samples that are compared with the training images in one pass over those
SHARD = 1000  # samples in one tar file
FORMATS = ("folder", "webdataset")

Format = Literal["folder", "webdataset"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One image, uint8 (H, W, 3), and how far it is from training, None where that is not known."""

    seed: int
    image: np.ndarray
    distance: float | None

    @property
    def name(self) -> str:
        return f"seed-{self.seed:06d}"


class Training:
    """The training images of a run, to measure distances to.

    Raises:
        UserError: no run directory, or no weights for LPIPS.
    """

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        if not Run.exists(path):
            raise UserError(
                f"{path} holds no training images to compare with: name the run directory, not its model "
                "folder"
            )
        self.frames = torch.from_numpy(Run.open(path).frames())
        self.network = LPIPS.load().to(device)
        self.farthest = 0.0  # of all samples measured so far

    @property
    def figure(self) -> str:
        """The name of the distance, as `evaluate` has it."""
        return f"dist_to_train_{self.network.name}_k{COPIES}"

    def distances(self, images: np.ndarray) -> list[float]:
        """Of uint8 (N, H, W, 3) images to the nearest of the training images and their copies."""
        with memory_errors("close other programs, or sample on another machine"):
            nearest = distance_to_train(torch.from_numpy(images), self.frames, self.network)
        self.farthest = max(self.farthest, float(nearest.distance.max()))
        return [round(float(distance), 4) for distance in nearest.distance]


def varied(
    gan: OneShotGAN,
    seeds: Sequence[int],
    count: int,
    training: Training | None,
    minimum: float = 0.0,
    truncation: float = 1.0,
) -> Iterator[Sample]:
    """Up to `count` samples of `seeds`, in order, none nearer to training than `minimum`.

    Args:
        training: what distances are measured to; None for none.
        minimum: LPIPS; 0 keeps all.
    """
    found = 0
    for start in range(0, len(seeds), AT_ONCE):
        part = seeds[start : start + AT_ONCE]
        images = gan.sample(part, truncation)
        distances = [None] * len(part) if training is None else training.distances(images)
        for seed, image, distance in zip(part, images, distances, strict=True):
            if found < count and (distance is None or distance >= minimum):
                found += 1
                yield Sample(seed, image, distance)
        if found == count:
            return


def write(samples: Iterator[Sample], folder: Path, format: Format, about: dict[str, Any]) -> int:
    """Write samples and their manifest into `folder`; give how many.

    Args:
        format: "folder", a PNG each; or "webdataset", tar files ``shard-000000.tar``, … of up to 1,000
            samples, a ``.png`` and a ``.json`` each.
        about: what every line of the manifest says beside file, seed and distance.

    Raises:
        UserError: there is something in the way, or the folder cannot be written.
    """
    writer = _write_folder if format == "folder" else _write_shards
    return writer(samples, folder, about)


def _write_folder(samples: Iterator[Sample], folder: Path, about: dict[str, Any]) -> int:
    lines = {str(line["file"]): line for line in _known(folder)}
    count = 0
    for sample in samples:
        name = f"{sample.name}.png"
        media.write_png(folder / name, sample.image)
        lines[name] = {"file": name} | _line(sample, about)
        count += 1
        if count % AT_ONCE == 0:
            _write_manifest(folder, list(lines.values()))
    _write_manifest(folder, list(lines.values()))
    return count


def _write_shards(samples: Iterator[Sample], folder: Path, about: dict[str, Any]) -> int:
    if any(folder.glob("shard-*.tar")):
        raise UserError(f"{folder} holds shards already: choose another --out")
    lines: list[dict[str, Any]] = []
    first = next(samples, None)
    while first is not None:
        name = f"shard-{len(lines) // SHARD:06d}.tar"
        with replacing(folder / name) as temporary, tarfile.open(temporary, "w") as archive:
            sample: Sample | None = first
            for place in range(SHARD):
                assert sample is not None
                line = _line(sample, about)
                _add(archive, f"{sample.name}.png", media.encode_png(sample.image))
                _add(archive, f"{sample.name}.json", json.dumps(line).encode())
                lines.append({"file": f"{sample.name}.png", "shard": name} | line)
                sample = next(samples, None)
                if sample is None or place == SHARD - 1:
                    break
            first = sample
        _write_manifest(folder, lines)
    _write_manifest(folder, lines)
    return len(lines)


def _line(sample: Sample, about: dict[str, Any]) -> dict[str, Any]:
    return {"seed": sample.seed, "distance": sample.distance} | about


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """The same content gives the same file: no times, no owner."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _known(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier manifest whose files are there, for samples that are added to it."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if (folder / str(line["file"])).is_file()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged: move it away, or choose another --out") from error


def _write_manifest(folder: Path, lines: list[dict[str, Any]]) -> None:
    ordered = sorted(lines, key=lambda line: str(line["file"]))
    write_text(folder / MANIFEST, "".join(json.dumps(line) + "\n" for line in ordered))
