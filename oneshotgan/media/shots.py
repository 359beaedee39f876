"""Shots: frames as they come from a decoder; how they are made alike, and thinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from oneshotgan.errors import UserError, one_line

Array = npt.NDArray[np.uint8]
Size = tuple[int, int]  # (height, width)
Resize = Callable[[Size], Size]

MAX_PIXELS = 200_000_000
WANTED = "give a PNG, JPEG, WebP, BMP or TIFF picture, a GIF, or an MP4, MOV, WebM, AVI or MKV clip"


@dataclass(frozen=True)
class Frames:
    """The frames of a source, all of one size, ready for training."""

    images: Array  # (N, H, W, 3) uint8, sRGB
    source_size: Size  # (height, width) of the first frame as displayed: upright, with square pixels
    notices: tuple[str, ...]  # one line each: what was passed over, thinned, cropped or flattened


@dataclass(frozen=True)
class Shot:
    """One frame, not yet scaled."""

    time: float  # seconds
    size: Size  # as displayed
    scaled: Callable[[Size], Array]  # the whole of it at another size
    picture: Callable[[], Image.Image]  # RGB at full size
    flattened: bool = False  # it had transparent parts, now on white


class Clip(Protocol):
    """A source of many shots, read from the first one on each time."""

    name: str
    damaged: bool  # set while the shots are read, where some cannot be decoded

    def shots(self) -> Iterator[Shot]: ...


class Fitter:
    """Brings each shot to the size that `resize` asks for the first one, and counts what it had to do."""

    def __init__(self, resize: Resize) -> None:
        self._resize = resize
        self._source_size: Size | None = None
        self._size: Size = (0, 0)
        self.restart()

    def restart(self) -> None:
        """Count anew."""
        self._cropped = self._flattened = 0

    def __call__(self, shot: Shot) -> Array:
        if self._source_size is None:
            self._size = self._resize(shot.size)
            self._source_size = shot.size
        self._flattened += shot.flattened
        if shot.size == self._source_size:
            return shot.scaled(self._size)
        self._cropped += 1
        return scaled(shot.picture(), self._size, cover=self._source_size)

    def frames(self, name: str, images: Sequence[Array], notices: Sequence[str]) -> Frames:
        """All that was fitted; notices of what was done are put after those given."""
        assert self._source_size is not None
        lines = list(notices)
        if self._cropped:
            height, width = self._source_size
            lines.append(
                f"{shown(name)}: {count(self._cropped, 'frame')} of another shape scaled and cropped "
                f"at the centre to the first frame's {width}×{height}"
            )
        if self._flattened:
            lines.append(
                f"{shown(name)}: transparent parts laid on white in {count(self._flattened, 'frame')}"
            )
        return Frames(np.stack(images), self._source_size, tuple(lines))


def read_clip(clip: Clip, resize: Resize, max_frames: int) -> Frames:
    """All frames of a clip, or `max_frames` of them spread evenly in time."""
    # First pass: the times of all frames, and the frames themselves as long as there are not too many.
    fitter, times, images = Fitter(resize), list[float](), list[Array]()
    for shot in clip.shots():
        times.append(shot.time)
        if len(times) <= max_frames:
            images.append(fitter(shot))
        else:
            images.clear()
    if not times:
        raise UserError(f"{shown(clip.name)}: not one frame can be decoded, it is damaged: use another copy")

    # Second pass, for a long clip: only the frames that are wanted are scaled and kept.
    notices = []
    if clip.damaged:
        notices.append(
            f"{shown(clip.name)}: damaged or cut off; only {count(len(times), 'frame')} can be decoded"
        )
    if len(times) > max_frames:
        notices.append(thinned(clip.name, len(times), max_frames))
        wanted = set(evenly(times, max_frames))
        fitter.restart()
        images = [fitter(shot) for i, shot in enumerate(clip.shots()) if i in wanted]
    return fitter.frames(clip.name, images, notices)


def evenly(times: Sequence[float], number: int) -> list[int]:
    """Indices of `number` frames (or all, if fewer) spread evenly in time.

    Each frame lasts until the next; targets at equal distance D pick the frame that shows then. Where
    frames are farther apart than D, a frame lasts D, so none is picked twice and none of those is lost.
    """
    total = len(times)
    if total <= number:
        return list(range(total))
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    gaps = np.append(gaps, gaps[-1])
    gaps = np.maximum(gaps, max(1e-6 * float(np.abs(gaps).mean()), 1e-12))

    # The D for which the frames last number × D together, by bisection (their length is concave in D).
    low, high = float(gaps.min()), float(gaps.sum()) / number
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(gaps, middle).sum() > number * middle else (low, middle)
    ends = np.cumsum(np.minimum(gaps, high))
    targets = (np.arange(number) + 0.5 + 1e-9) * ends[-1] / number  # one between two frames goes to the later
    picked = np.searchsorted(ends, targets, side="right")

    # Rounding may let two targets meet in one frame: keep the indices strictly rising and in range.
    steps = np.arange(number)
    picked = np.maximum.accumulate(picked - steps) + steps
    return [int(i) for i in np.minimum(picked, total - number + steps)]


def check_size(name: Path | str, size: Size) -> None:
    """Refuse what has no pixels, or so many that decoding it could fill the memory."""
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"{shown(name)} has no pixels ({width}×{height}): {WANTED}")
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise UserError(
            f"{shown(name)} is too large, {width}×{height}: scale it below {limit} million pixels"
        )


def scaled(image: Image.Image, size: Size, cover: Size | None = None) -> Array:
    """An RGB image at `size`, antialiased; with `cover`, only its largest centred part of that shape."""
    height, width = size
    box = (0.0, 0.0, float(image.width), float(image.height))
    if cover is not None:
        scale = min(image.height / cover[0], image.width / cover[1])
        y = max(0.0, (image.height - cover[0] * scale) / 2)
        x = max(0.0, (image.width - cover[1] * scale) / 2)
        box = (x, y, image.width - x, image.height - y)
    if image.size != (width, height) or cover is not None:
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(image, dtype=np.uint8)


def resized(images: Array, size: Size) -> Array:
    """(N, H, W, 3) uint8 images at another size, antialiased."""
    return np.stack([scaled(Image.fromarray(image), size) for image in images])


def shown(path: Path | str) -> str:
    """A path as one printable line, whatever characters its name has."""
    return one_line(path)


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 frame, 2 frames, 2 entries."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


def thinned(name: str, total: int, used: int) -> str:
    """The notice that only some of the frames are used."""
    return f"{shown(name)}: {total} frames, {used} of them used, evenly spread"
