"""A source as a whole: a photo, a folder of pictures, or a video."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oneshotgan.errors import UserError
from oneshotgan.media.pictures import (
    Animation,
    is_animation,
    is_picture,
    open_picture,
    own_settings,
    pages,
    picture_shot,
)
from oneshotgan.media.shots import WANTED, Fitter, Frames, Resize, count, evenly, read_clip, shown, thinned
from oneshotgan.media.video import Video

_CLIP_SUFFIX = re.compile(r"\.(mp4|m4v|mov|webm|avi|mkv|mpe?g|wmv|ogv|3gp|m?ts)", re.IGNORECASE)
_HEIC_SUFFIX = re.compile(r"\.hei[cf]", re.IGNORECASE)


def read_frames(source: Path | str, resize: Resize, max_frames: int = 200) -> Frames:
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
    with own_settings():
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
        return _digest(path).hex()
    with own_settings():
        pictures, _ = _folder_content(path)
    total = hashlib.sha256()
    for picture in pictures:
        total.update(hashlib.sha256(os.fsencode(picture.name)).digest() + _digest(picture))
    return total.hexdigest()


def source_name(source: Path | str) -> str:
    """The short name of a source: "balloons" for balloons.png, the folder's own name for a folder."""
    path = Path(os.path.abspath(source))
    return shown(path.name if os.path.isdir(path) else path.stem) or "source"


def _read_file(path: Path, resize: Resize, max_frames: int) -> Frames:
    _check_content(path)
    image = open_picture(path)
    if image is None:
        return read_clip(Video(path), resize, max_frames)
    with image:
        number = pages(path, image)
        if number > 1 and is_animation(image):
            return read_clip(Animation(path), resize, max_frames)
        fitter = Fitter(resize)
        fitted = fitter(picture_shot(path, image))
    notices = [f"{shown(path.name)}: {number} pages, the first is used"] if number > 1 else []
    return fitter.frames(path.name, [fitted], notices)


def _read_folder(folder: Path, resize: Resize, max_frames: int) -> Frames:
    # What lies there, and which of it is used.
    pictures, others = _folder_content(folder)
    name, notices = source_name(folder), []
    if others:
        first = ", ".join(shown(other) for other in others[:3]) + (", …" if len(others) > 3 else "")
        notices.append(f"{name}: {count(len(others), 'other entry')} passed over ({first})")
    if len(pictures) > max_frames:
        notices.append(thinned(name, len(pictures), max_frames))
    chosen = [pictures[i] for i in evenly(range(len(pictures)), max_frames)]

    # The frames, one at a time.
    fitter, images, many = Fitter(resize), [], 0
    for path in chosen:
        _check_content(path)
        image = open_picture(path)
        if image is None:
            raise UserError(
                f"{shown(path)} is not a picture, whatever its name says: mend it or take it away"
            )
        with image:
            many += pages(path, image) > 1
            images.append(fitter(picture_shot(path, image)))
    if many:
        notices.append(f"{name}: of {count(many, 'file')} with several pictures the first one is used")
    return fitter.frames(name, images, notices)


def _is_folder(path: Path) -> bool:
    """True for a folder, False for a regular file; all else is refused without opening it."""
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise _no_permission(path) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(path)}: no such file or folder: check the path") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"{shown(path)} is a device or pipe, not a file: {WANTED}")
    return stat.S_ISDIR(mode)


def _folder_content(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder in natural order, and the names of what else lies there openly."""
    with _reading(folder):
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=_natural)
    pictures, others = [], []
    for path in (folder / name for name in names):
        if os.path.isfile(path) and is_picture(path):
            pictures.append(path)
        else:
            others.append(path.name + "/" * os.path.isdir(path))
    if not pictures:
        suffixes = [Path(name).suffix for name in others]
        if any(map(_CLIP_SUFFIX.fullmatch, suffixes)):
            raise UserError(f"{shown(folder)} holds no pictures, only a video: name the clip itself")
        if any(map(_HEIC_SUFFIX.fullmatch, suffixes)):
            raise UserError(
                f"{shown(folder)} holds HEIC pictures, not readable here: save them as JPEG or PNG"
            )
        raise UserError(
            f"{shown(folder)} holds no pictures (sub-folders are not entered): name another folder"
        )
    return pictures, others


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _check_content(path: Path) -> None:
    with _reading(path), open(path, "rb") as file:
        empty = not file.read(1)
    if empty:
        raise UserError(f"{shown(path)} is empty (0 bytes): {WANTED}")


def _digest(path: Path) -> bytes:
    with _reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an operating system error while reading `path` into a UserError of one line."""
    try:
        yield
    except PermissionError as error:
        raise _no_permission(path) from error
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


def _no_permission(path: Path) -> UserError:
    return UserError(f"{shown(path)}: no permission to read it: allow it with chmod, or use a copy")
