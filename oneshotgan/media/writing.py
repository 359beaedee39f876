"""Images back to files: contact sheets, PNG, animated GIF and WebP, MP4."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneshotgan.errors import UserError
from oneshotgan.files import write_bytes
from oneshotgan.media.shots import Array, shown


def contact_sheet(images: Array, columns: int | None = None, gap: int = 2) -> Array:
    """(N, H, W, 3) uint8 images in rows on a white (H', W', 3) sheet, `gap` pixels apart.

    Without `columns` the sheet is as near to a square as possible without being taller than wide.
    """
    number, height, width, channels = images.shape
    if columns is None:
        columns = next((c for c in range(1, number) if c * width >= -(-number // c) * height), number)
    columns = max(1, min(columns, number))
    rows = -(-number // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet


def encode_png(image: Array) -> bytes:
    """A (H, W, 3) uint8 image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path | str, image: Array) -> None:
    """Write a (H, W, 3) uint8 image as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_bytes(path, encode_png(image))


def write_animation(path: Path | str, images: Array, fps: float = 12) -> None:
    """Write (N, H, W, 3) uint8 images as an animation, by suffix: .gif, .webp (both loop) or .mp4.

    MP4 needs even sides: an odd side grows by one pixel that repeats the edge.

    Raises:
        UserError: the suffix is another, or the file cannot be written.
    """
    encoders = {".gif": _encode_gif, ".webp": _encode_webp, ".mp4": _encode_mp4}
    encoder = encoders.get(Path(path).suffix.lower())
    if encoder is None:
        raise UserError(f"cannot write {shown(path)}: an animation's name ends in .gif, .webp or .mp4")
    if images.ndim != 4 or not len(images) or not fps > 0:
        raise ValueError(f"images (N, H, W, 3) with N ≥ 1 and fps > 0 expected, not {images.shape}, {fps}")
    write_bytes(path, encoder(images, fps))


def _encode_gif(images: Array, fps: float) -> bytes:
    # One palette for each frame, of its own colours; quantize spreads the error to hide the steps.
    frames = [Image.fromarray(image).quantize(256, Image.Quantize.MEDIANCUT) for image in images]
    return _encode_frames(frames, "GIF", duration=_durations(len(images), fps, 10), optimize=False)


def _encode_webp(images: Array, fps: float) -> bytes:
    frames = [Image.fromarray(image) for image in images]
    return _encode_frames(frames, "WEBP", duration=_durations(len(images), fps, 1), quality=90, method=4)


def _encode_frames(frames: list[Image.Image], format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], loop=0, **options)
    return buffer.getvalue()


def _durations(number: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each frame in multiples of `unit`, rounded so that the clip keeps its length."""
    ends = [round(k * 1000 / fps / unit) * unit for k in range(number + 1)]
    return [max(unit, end - start) for start, end in pairwise(ends)]


def _encode_mp4(images: Array, fps: float) -> bytes:
    import av

    av.logging.set_level(None)
    _, height, width, _ = images.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        stream.options = {"crf": "16", "preset": "medium"}
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.pad(image, odd, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
