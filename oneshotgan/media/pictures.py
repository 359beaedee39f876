"""One picture or animation, through Pillow: as it would be shown on a white page, 8-bit sRGB and upright."""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from oneshotgan.errors import UserError
from oneshotgan.media.shots import Shot, check_size, scaled, shown

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_SUFFIX = re.compile(r"\.(a?png|jpe?g?|jfif|mpo|webp|bmp|tiff?|gif|avif)", re.IGNORECASE)
_START = re.compile(rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|GIF8|II\*\0|MM\0\*|....ftypavi[fs]", re.DOTALL)
_HEIC_START = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)

_lock = threading.RLock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its words about damaged files go to stderr


@contextmanager
def own_settings() -> Iterator[None]:
    """Pillow without warnings or tolerance for cut files, the size limit ours; all put back afterwards."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def open_picture(path: Path) -> Image.Image | None:
    """The picture, with only its header read and checked, or None where the content is of another kind."""
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        image = Image.open(path, formats=_formats())
    except UnidentifiedImageError as error:
        if _HEIC_START.match(start):
            raise UserError(f"{shown(path)} is a HEIC picture: save it as JPEG or PNG") from error
        if _START.match(start):
            raise _damaged(path) from error
        return None
    except Exception as error:  # header parsers fail in many ways
        raise _damaged(path) from error
    try:
        check_size(path, (image.height, image.width))
    except UserError:
        image.close()
        raise
    return image


def is_picture(path: Path) -> bool:
    """By suffix, so that a damaged picture is noticed, or else by content."""
    if _SUFFIX.fullmatch(path.suffix):
        return True
    try:
        Image.open(path, formats=_formats()).close()
    except Exception:  # whatever a foreign file does to a parser, it is not a picture
        return False
    return True


def pages(path: Path, image: Image.Image) -> int:
    """Pictures in the file; the extra views that a camera puts into a JPEG (MPO) do not count."""
    try:
        return 1 if image.format in {"MPO", "JPEG"} else int(getattr(image, "n_frames", 1))
    except Exception as error:  # to count, Pillow goes through the file
        raise _damaged(path) from error


def is_animation(image: Image.Image) -> bool:
    """Whether several pictures of the file follow each other in time (those of a TIFF do not)."""
    return image.format in {"GIF", "WEBP", "PNG", "AVIF"}


def picture_shot(path: Path, image: Image.Image, time: float = 0.0) -> Shot:
    """The picture, decoded; a UserError where it is damaged."""
    try:
        rgb, flattened = _to_rgb(image)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder may fail in any way on damaged data
        raise _damaged(path) from error
    return Shot(time, (rgb.height, rgb.width), partial(scaled, rgb), lambda: rgb, flattened)


class Animation:
    """An animated GIF, WebP, PNG or AVIF; each shot is the whole canvas at that time."""

    def __init__(self, path: Path) -> None:
        self.name, self.damaged = path.name, False
        self._path = path

    def shots(self) -> Iterator[Shot]:
        with Image.open(self._path, formats=_formats()) as image:
            total = pages(self._path, image)
            time, index = 0.0, int(bool(image.info.get("default_image")))  # an APNG may hide a still picture
            while index < total:
                try:
                    image.seek(index)
                    shot = picture_shot(self._path, image, time)
                except Exception:  # cut off or damaged: what came before is good
                    self.damaged = True
                    return
                yield shot
                time += (image.info.get("duration") or 100) / 1000
                index += 1


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # not every Pillow reads AVIF


def _damaged(path: Path) -> UserError:
    return UserError(f"{shown(path)} is a damaged or cut-off picture: use another copy or save it anew")


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as shown on a white page, and whether some of it was transparent."""
    image.load()  # before the orientation is asked for: a TIFF applies and deletes it here
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
        values = np.asarray(image).astype(np.float64) / 257
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
    """From the colour space of an embedded profile to sRGB; plainly to RGB where that is not possible."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "RGB" or "srgb" not in ImageCms.getProfileDescription(source).lower():
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return converted or image.convert("RGB")
    except Exception:  # no colour management here, or a damaged or unfitting profile
        pass
    return image.convert("RGB")
