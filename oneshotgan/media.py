"""Photo, folder of pictures or video in, frames out; and pictures, sheets and animations back to files.

What a file holds is decided by its content, never by its suffix: Pillow is asked first, then PyAV.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from oneshotgan.errors import UserError
from oneshotgan.files import write_bytes

if TYPE_CHECKING:
    import av

Array = npt.NDArray[np.uint8]
Size = tuple[int, int]  # (height, width)

MAX_PIXELS = 200_000_000
_WANTED = "give a PNG, JPEG, WebP, BMP or TIFF picture, a GIF, or an MP4, MOV, WebM, AVI or MKV clip"
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_PICTURE_SUFFIX = re.compile(r"\.(a?png|jpe?g?|jfif|mpo|webp|bmp|tiff?|gif|avif)", re.IGNORECASE)
_CLIP_SUFFIX = re.compile(r"\.(mp4|m4v|mov|webm|avi|mkv|mpe?g|wmv|flv|3gp|m?ts)", re.IGNORECASE)
_HEIC_SUFFIX = re.compile(r"\.hei[cf]", re.IGNORECASE)
_DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg"  # none that reads text, lists or addresses
_PICTURE_STARTS = re.compile(
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|GIF8|II\*\0|MM\0\*|....ftypavi[fs]", re.DOTALL
)
_HEIC_START = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)


@dataclass(frozen=True)
class Frames:
    """The frames of a source, all of one size, ready for training."""

    images: Array
    """(N, H, W, 3) uint8, sRGB."""
    source_size: Size
    """(height, width) of the first frame as it is displayed: turned upright, with square pixels."""
    notices: tuple[str, ...]
    """One line each: what was passed over, thinned, cropped or flattened."""


def read_frames(source: Path | str, resize: Callable[[Size], Size], max_frames: int = 200) -> Frames:
    """Read a photo, a folder of pictures, or a video (an animated GIF, WebP or PNG counts as one).

    Frames are scaled one at a time while they are read, so a long or large video needs little memory.
    One that has more than `max_frames` frames is thinned evenly in time. The first frame's shape holds
    for all: a frame of another shape is scaled to cover it and cropped at the centre. Transparency is
    laid on white. Each of these is told in one line of `notices`.

    Args:
        source: a picture or video file, or a folder of pictures (taken in natural order).
        resize: maps the displayed (height, width) of the first frame to that of the result; called once,
            and what it raises comes out unchanged.
        max_frames: at least 1.

    Raises:
        UserError: the source is missing, unreadable, damaged, empty, too large or of no known kind.
    """
    if max_frames < 1:
        raise UserError(f"at least one frame is needed, not {max_frames}: choose max_frames of 1 or more")
    path = Path(source)
    with _own_pillow_settings():
        if _is_folder(path):
            return _read_folder(path, resize, max_frames)
        return _read_file(path, resize, max_frames)


def source_checksum(source: Path | str) -> str:
    """SHA-256 in hex: of a file's bytes; of a folder, over its pictures' names and bytes in natural order.

    Raises:
        UserError: the source is missing or unreadable, or a folder without pictures.
    """
    path = Path(source)
    if not _is_folder(path):
        return _file_digest(path).hex()
    with _own_pillow_settings():
        pictures, _ = _folder_content(path)
    total = hashlib.sha256()
    for picture in pictures:
        total.update(hashlib.sha256(os.fsencode(picture.name)).digest() + _file_digest(picture))
    return total.hexdigest()


def source_name(source: Path | str) -> str:
    """The short name of a source: "balloons" for balloons.png, the folder's own name for a folder."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() else path.stem) or "source"


# --- Files and folders ------------------------------------------------------------------------------


def _read_file(path: Path, resize: Callable[[Size], Size], max_frames: int) -> Frames:
    _check_readable(path)
    image = _open_picture(path)
    if image is None:
        return _read_clip(_Video(path), resize, max_frames)
    with image:
        if image.format in {"GIF", "WEBP", "PNG", "AVIF"} and getattr(image, "is_animated", False):
            return _read_clip(_Animation(path, image), resize, max_frames)
        pages = _pages(image)
        fitter = _Fitter(resize)
        images = fitter(_picture_shot(path, image))[None]
    notices = [f"{_shown(path.name)}: {pages} pages, the first is used"] if pages > 1 else []
    return fitter.frames(images, notices + fitter.notices(path.name))


def _read_folder(folder: Path, resize: Callable[[Size], Size], max_frames: int) -> Frames:
    pictures, others = _folder_content(folder)
    name = source_name(folder)
    notices = []
    if others:
        first = ", ".join(_shown(other) for other in others[:3]) + (", …" if len(others) > 3 else "")
        notices.append(f"{_shown(name)}: {_count(len(others), 'other entry')} passed over ({first})")
    if len(pictures) > max_frames:
        notices.append(_thinned(name, len(pictures), max_frames))

    chosen = _evenly(range(len(pictures)), max_frames)
    fitter, images, paged = _Fitter(resize), [], 0
    for picture in (pictures[i] for i in chosen):
        _check_readable(picture)
        image = _open_picture(picture)
        if image is None:
            raise UserError(f"{_shown(picture)} is not a picture that can be read: mend it or take it away")
        with image:
            paged += _pages(image) > 1
            images.append(fitter(_picture_shot(picture, image)))
    if paged:
        notices.append(f"{_shown(name)}: of {_count(paged, 'file')} with several pictures the first is used")
    return fitter.frames(np.stack(images), notices + fitter.notices(name))


def _is_folder(path: Path) -> bool:
    """True for a folder, False for a regular file; all else is refused without opening it."""
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise UserError(f"{_shown(path)}: no permission to read it: allow it with chmod") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{_shown(path)}: no such file or folder: check the path") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"{_shown(path)} is a device or pipe, not a file: {_WANTED}")
    return stat.S_ISDIR(mode)


def _check_readable(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except PermissionError as error:
        raise UserError(f"{_shown(path)}: no permission to read it: allow it with chmod") from error
    except OSError as error:
        raise UserError(f"{_shown(path)}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise UserError(f"{_shown(path)} is empty (0 bytes): {_WANTED}")


def _folder_content(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder in natural order, and the names of what else lies there openly."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(
                (e for e in listing if not e.name.startswith(".")), key=lambda e: _natural(e.name)
            )
    except PermissionError as error:
        raise UserError(f"{_shown(folder)}: no permission to read it: allow it with chmod") from error
    except OSError as error:
        raise UserError(f"{_shown(folder)}: cannot be read: {error.strerror or error}") from error
    pictures = [Path(e.path) for e in entries if e.is_file() and _is_picture(Path(e.path))]
    others = [e.name + "/" * e.is_dir() for e in entries if folder / e.name not in set(pictures)]
    if not pictures:
        suffixes = [Path(name).suffix for name in others]
        if any(map(_CLIP_SUFFIX.fullmatch, suffixes)):
            raise UserError(f"{_shown(folder)} holds no pictures, only a video: name the clip itself")
        if any(map(_HEIC_SUFFIX.fullmatch, suffixes)):
            raise UserError(
                f"{_shown(folder)} holds HEIC pictures, which cannot be read: save them as JPEG or PNG"
            )
        raise UserError(
            f"{_shown(folder)} holds no pictures (sub-folders are not entered): name another folder"
        )
    return pictures, others


def _is_picture(path: Path) -> bool:
    """By suffix, so that a damaged picture is noticed, or else by content."""
    if _PICTURE_SUFFIX.fullmatch(path.suffix):
        return True
    try:
        Image.open(path, formats=_formats()).close()
    except Exception:  # whatever a foreign file does to a parser, it is not a picture
        return False
    return True


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _file_digest(path: Path) -> bytes:
    _check_readable(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _shown(path: Path | str) -> str:
    """A path as one printable line, whatever characters its name has."""
    return "".join(char if char.isprintable() else "�" for char in str(path))


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


def _thinned(name: str, total: int, used: int) -> str:
    return f"{_shown(name)}: {total} frames, {used} of them used, evenly spread"


# --- Shots: frames as they come from a decoder, and how they are made alike ---------------------------


@dataclass(frozen=True)
class _Shot:
    time: float  # seconds
    size: Size  # as displayed
    scaled: Callable[[Size], Array]
    picture: Callable[[], Image.Image]  # RGB at full size
    flattened: bool = False  # it had transparent parts, now on white


class _Fitter:
    """Brings each shot to the size that `resize` asks for the first one, and counts what it had to do."""

    def __init__(self, resize: Callable[[Size], Size]) -> None:
        self._resize = resize
        self._source_size: Size | None = None
        self._size: Size = (0, 0)
        self.cropped = self.flattened = 0

    def __call__(self, shot: _Shot) -> Array:
        if self._source_size is None:
            _check_size(shot.size)
            self._size = self._resize(shot.size)
            self._source_size = shot.size
        self.flattened += shot.flattened
        if shot.size == self._source_size:
            return shot.scaled(self._size)
        self.cropped += 1
        return _scaled(shot.picture(), self._size, cover=self._source_size)

    def restart(self) -> None:
        self.cropped = self.flattened = 0

    def notices(self, name: str) -> list[str]:
        lines = []
        if self.cropped:
            height, width = self._source_size or (0, 0)
            lines.append(
                f"{_shown(name)}: {_count(self.cropped, 'frame')} of another shape scaled and cropped "
                f"at the centre to the first frame's {width}×{height}"
            )
        if self.flattened:
            lines.append(
                f"{_shown(name)}: transparent parts laid on white in {_count(self.flattened, 'frame')}"
            )
        return lines

    def frames(self, images: Array, notices: Sequence[str]) -> Frames:
        assert self._source_size is not None
        return Frames(images, self._source_size, tuple(notices))


class _Clip(Protocol):
    name: str
    damaged: bool

    def shots(self) -> Iterator[_Shot]:
        """All frames from the first on; may be called again. Sets `damaged` where some cannot be decoded."""


def _read_clip(clip: _Clip, resize: Callable[[Size], Size], max_frames: int) -> Frames:
    # First pass: the times of all frames; the frames themselves as long as there are not too many.
    fitter, times, images = _Fitter(resize), list[float](), list[Array]()
    for shot in clip.shots():
        times.append(shot.time)
        if len(times) <= max_frames:
            images.append(fitter(shot))
        else:
            images.clear()
    if not times:
        raise UserError(f"{_shown(clip.name)}: not one frame can be decoded, it is damaged: use another copy")

    # Second pass, for a long clip: only the frames that are wanted are scaled and kept.
    notices = []
    if clip.damaged:
        notices.append(
            f"{_shown(clip.name)}: damaged or cut off; {_count(len(times), 'frame')} can be decoded"
        )
    if len(times) > max_frames:
        notices.append(_thinned(clip.name, len(times), max_frames))
        wanted = set(_evenly(times, max_frames))
        fitter.restart()
        images = [fitter(shot) for i, shot in enumerate(clip.shots()) if i in wanted]
    return fitter.frames(np.stack(images), notices + fitter.notices(clip.name))


def _evenly(times: Sequence[float], count: int) -> list[int]:
    """Indices of `count` frames (or all, if fewer) spread evenly in time.

    Each frame lasts until the next; targets at equal distance D pick the frame that shows then. Where
    frames are farther apart than D, a frame lasts D, so none is picked twice and none of those is lost.
    """
    total = len(times)
    if total <= count:
        return list(range(total))
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    gaps = np.append(gaps, np.median(gaps))
    gaps = np.maximum(gaps, max(1e-6 * float(np.abs(gaps).mean()), 1e-12))

    # The D for which the frames last count × D together, by bisection (their length is concave in D).
    low, high = float(gaps.min()), float(gaps.sum()) / count
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(gaps, middle).sum() > count * middle else (low, middle)
    ends = np.cumsum(np.minimum(gaps, high))
    targets = (np.arange(count) + 0.5) * ends[-1] / count
    picked = np.searchsorted(ends, targets, side="right")

    # Rounding may let two targets meet in one frame: keep the indices strictly rising and in range.
    steps = np.arange(count)
    picked = np.maximum.accumulate(picked - steps) + steps
    return [int(i) for i in np.minimum(picked, total - count + steps)]


def _check_size(size: Size, what: str = "picture") -> None:
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"the {what} has no pixels ({width}×{height}): {_WANTED}")
    if height * width > MAX_PIXELS:
        raise UserError(
            f"the {what} is too large, {width}×{height} pixels: "
            f"scale it down below {MAX_PIXELS // 1_000_000} million pixels"
        )


def _scaled(image: Image.Image, size: Size, cover: Size | None = None) -> Array:
    """An RGB image at `size`, antialiased; with `cover`, of its largest centred part of that shape."""
    height, width = size
    box = (0.0, 0.0, float(image.width), float(image.height))
    if cover is not None:
        scale = min(image.height / cover[0], image.width / cover[1])
        y, x = (image.height - cover[0] * scale) / 2, (image.width - cover[1] * scale) / 2
        box = (
            max(x, 0.0),
            max(y, 0.0),
            min(image.width - x, image.width),
            min(image.height - y, image.height),
        )
    if image.size != (width, height) or cover is not None:
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(image, dtype=np.uint8)


# --- Pictures and animations, through Pillow ----------------------------------------------------------

_pillow_lock = threading.RLock()


@contextmanager
def _own_pillow_settings() -> Iterator[None]:
    """No warnings, no tolerance for cut files, and the size limit is ours; all put back afterwards."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _formats() -> list[str]:
    Image.init()
    return [name for name in _PICTURES if name in Image.OPEN]  # not every Pillow reads AVIF


def _open_picture(path: Path) -> Image.Image | None:
    """The picture, with only its header read and checked, or None where the content is of another kind."""
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        image = Image.open(path, formats=_formats())
    except UnidentifiedImageError as error:
        if _HEIC_START.match(start):
            raise UserError(f"{_shown(path)} is a HEIC picture: save it as JPEG or PNG") from error
        if _PICTURE_STARTS.match(start):
            raise _damaged(path) from error
        return None
    except Exception as error:  # header parsers fail in many ways
        raise _damaged(path) from error
    try:
        _check_size((image.height, image.width))
    except UserError as error:
        image.close()
        raise UserError(f"{_shown(path)}: {error}") from None
    return image


def _damaged(path: Path) -> UserError:
    return UserError(f"{_shown(path)} is a damaged or cut-off picture: use another copy or save it anew")


def _pages(image: Image.Image) -> int:
    """Pictures in the file; the extra views that a camera puts into a JPEG (MPO) do not count."""
    return 1 if image.format in {"MPO", "JPEG"} else int(getattr(image, "n_frames", 1))


def _picture_shot(path: Path, image: Image.Image, time: float = 0.0) -> _Shot:
    try:
        rgb, flattened = _to_rgb(image)
    except UserError as error:
        raise UserError(f"{_shown(path)}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder may fail in any way on damaged data
        raise _damaged(path) from error
    return _Shot(time, (rgb.height, rgb.width), partial(_scaled, rgb), lambda: rgb, flattened)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as shown on a white page: 8-bit sRGB, upright; and whether some of it was transparent."""
    image.load()  # before the orientation is asked for: TIFF applies and deletes it here
    orientation, profile = _orientation(image), image.info.get("icc_profile")
    image, alpha = _eight_bit(image), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode in {"P", "1"}:
        image = image.convert("RGB")
    rgb = _from_profile(image, profile) if profile else image.convert("RGB")
    flattened = alpha is not None and bool(np.asarray(alpha).min() < 255)
    if flattened:
        page = Image.new("RGB", rgb.size, "white")
        page.paste(rgb, mask=alpha)
        rgb = page
    return (rgb if orientation is None else rgb.transpose(orientation)), flattened


def _orientation(image: Image.Image) -> Image.Transpose | None:
    turn = Image.Transpose
    try:
        return {
            2: turn.FLIP_LEFT_RIGHT,
            3: turn.ROTATE_180,
            4: turn.FLIP_TOP_BOTTOM,
            5: turn.TRANSPOSE,
            6: turn.ROTATE_270,
            7: turn.TRANSVERSE,
            8: turn.ROTATE_90,
        }.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data: the pixels are still good
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey values scaled to 0..255; other modes as they are."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) / 257
    elif image.mode in {"I", "F"}:
        values = np.asarray(image).astype(np.float64)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 65535):
            raise UserError("its grey values have no known range: save it as an 8-bit or 16-bit picture")
        values *= 255 if image.mode == "F" and high <= 1 else 1 if high <= 255 else 1 / 257
    else:
        return image
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """From the colour space of an embedded profile to sRGB; without change where that is not possible."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" not in ImageCms.getProfileDescription(source).lower() or image.mode != "RGB":
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return converted or image.convert("RGB")
    except Exception:  # no colour management here, or a damaged or unfitting profile
        pass
    return image.convert("RGB")


class _Animation:
    """An animated GIF, WebP, PNG or AVIF."""

    def __init__(self, path: Path, image: Image.Image) -> None:
        self.name, self.damaged = path.name, False
        self._path, self._image = path, image

    def shots(self) -> Iterator[_Shot]:
        self._image.close()
        with Image.open(self._path, formats=_formats()) as image:
            time, index = 0.0, int(bool(image.info.get("default_image")))  # an APNG may hide a still picture
            while True:
                try:
                    image.seek(index)
                    shot = _picture_shot(self._path, image, time)
                    duration = float(image.info.get("duration") or 100) / 1000
                except EOFError:
                    self.damaged |= index < getattr(image, "n_frames", 1)
                    return
                except Exception:
                    self.damaged = True
                    return
                yield shot
                time, index = time + duration, index + 1


# --- Videos, through PyAV -------------------------------------------------------------------------------


class _Video:
    """A video file; its frames are turned upright and given square pixels."""

    def __init__(self, path: Path) -> None:
        self.name, self.damaged = path.name, False
        self._path = path

    def shots(self) -> Iterator[_Shot]:
        import av
        from av.video.reformatter import VideoReformatter

        av.logging.set_level(None)
        with open(self._path, "rb") as file, self._open(file) as container:
            stream = self._stream(container)
            aspect, rate = stream.sample_aspect_ratio, stream.average_rate
            reformatter, time, count = VideoReformatter(), 0.0, 0
            for frame in self._decoded(container, stream):
                time = float(frame.time) if frame.time is not None else time + float(1 / (rate or 25))
                count += 1
                yield _video_shot(frame, time, float(aspect or 1), reformatter)
            self.damaged |= count < 0.9 * stream.frames
            self.damaged |= bool(container.duration) and time < 0.9 * (container.duration or 0) / 1e6 - 1

    def _open(self, file: io.BufferedReader) -> av.container.InputContainer:
        import av

        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
        try:
            return av.open(file, "r", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise UserError(
                f"{_shown(self._path)} is no picture or video that can be read: {_WANTED}"
            ) from error

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        for stream in container.streams.video:
            if not int(getattr(stream, "disposition", 0)) & 0x400:  # an attached picture is no video
                _check_size((stream.codec_context.height or 1, stream.codec_context.width or 1), "video")
                stream.thread_type = "AUTO"
                return stream
        raise UserError(f"{_shown(self._path)} has sound but no moving pictures: {_WANTED}")

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """The frames that can be decoded, past damaged places."""
        import av

        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError):
                self.damaged = True
                return
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                self.damaged = True
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damaged = True
                else:
                    yield frame


def _video_shot(frame: av.VideoFrame, time: float, aspect: float, reformatter: Any) -> _Shot:
    _check_size((frame.height, frame.width), "video")
    swap, mirror, flip = _display_matrix(frame)
    square = (frame.height, max(1, round(frame.width * aspect)))
    size = square[::-1] if swap else square
    _check_size(size, "video")

    def upright(pixels: Array) -> Array:
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        return np.ascontiguousarray(pixels[:: -1 if flip else 1, :: -1 if mirror else 1])

    def scaled(wanted: Size) -> Array:
        height, width = wanted[::-1] if swap else wanted
        small = reformatter.reformat(frame, width, height, "rgb24", interpolation="LANCZOS")
        return upright(small.to_ndarray())

    return _Shot(time, size, scaled, lambda: Image.fromarray(scaled(size)))


def _display_matrix(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes upright: swap the axes, then mirror left-right, then flip top-bottom."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data)[:36], dtype=np.int32)[:5])
    swap = abs(b) > abs(a)
    return swap, (c if swap else a) < 0, (b if swap else d) < 0


# --- Writing --------------------------------------------------------------------------------------------


def contact_sheet(images: Array, columns: int | None = None, gap: int = 2) -> Array:
    """(N, H, W, 3) uint8 images in rows on a white (H', W', 3) sheet, `gap` pixels apart.

    Without `columns` the sheet is as near to a square as possible without being taller than wide.
    """
    count, height, width, channels = images.shape
    if columns is None:
        columns = next((c for c in range(1, count) if c * width >= -(-count // c) * height), count)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
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
        raise UserError(f"cannot write {_shown(path)}: an animation's name ends in .gif, .webp or .mp4")
    if images.ndim != 4 or not len(images) or not fps > 0:
        raise ValueError(f"images (N, H, W, 3) with N ≥ 1 and fps > 0 expected, not {images.shape}, {fps}")
    write_bytes(path, encoder(images, fps))


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each frame in multiples of `unit`, rounded so that the clip keeps its length."""
    ends = [round(k * 1000 / fps / unit) * unit for k in range(count + 1)]
    return [max(unit, end - start) for start, end in pairwise(ends)]


def _encode_gif(images: Array, fps: float) -> bytes:
    # One palette for each frame, of its own colours; the error is spread to hide the steps.
    frames = [Image.fromarray(image).quantize(256, Image.Quantize.MEDIANCUT) for image in images]
    return _encode_frames(
        frames, "GIF", duration=_durations(len(images), fps, 10), optimize=False, disposal=1
    )


def _encode_webp(images: Array, fps: float) -> bytes:
    frames = [Image.fromarray(image) for image in images]
    return _encode_frames(frames, "WEBP", duration=_durations(len(images), fps, 1), quality=90, method=4)


def _encode_frames(frames: list[Image.Image], format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], loop=0, **options)
    return buffer.getvalue()


def _encode_mp4(images: Array, fps: float) -> bytes:
    import av

    av.logging.set_level(None)
    _, height, width, _ = images.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        stream.options = {"crf": "16", "preset": "medium"}
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.pad(image, odd, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
