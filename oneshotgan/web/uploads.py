"""A photo or clip taken in from the browser: limited, looked at, and kept whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from oneshotgan.errors import UserError
from oneshotgan.files import replacing, storage_errors

MOST_BYTES = 200 * 2**20
MOST_PIXELS = 50_000_000  # of a picture or of one frame
PATIENCE = 60.0  # seconds to decode it
_SUFFIXES = ("png", "apng", "jpg", "jpeg", "jfif", "webp", "bmp", "tif", "tiff", "gif", "avif",
             "mp4", "m4v", "mov", "webm", "mkv", "avi")  # fmt: skip


async def take_in(chunks: AsyncIterator[bytes], name: str, folder: Path) -> Path:
    """Write an upload into a new folder below `folder`, and give its path.

    Args:
        chunks: the bytes as they come.
        name: of the file on the user's machine; only its letters and its suffix are used.

    Raises:
        UserError: it is too large, of a wrong kind, damaged, or cannot be written.
    """
    stem, suffix = _parts(name)
    place, received = folder / secrets.token_hex(8), 0
    with storage_errors(folder):
        place.mkdir(parents=True)
    try:
        with replacing(place / f"{stem}.{suffix}") as temporary:
            with open(temporary, "wb") as file:
                async for chunk in chunks:
                    received += len(chunk)
                    if received > MOST_BYTES:
                        raise UserError(f"the file is larger than {MOST_BYTES // 2**20} MB")
                    await asyncio.to_thread(file.write, chunk)
            if not received:
                raise UserError("the file is empty")
            await look_at(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise
    return place / f"{stem}.{suffix}"


async def look_at(path: Path) -> None:
    """Decode the file in another process.

    Raises:
        UserError: that process refuses it, dies of it, or takes too long.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oneshotgan.web.inspect", str(path), str(MOST_PIXELS),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    except TimeoutError:
        raise UserError("the file takes too long to decode: give a shorter or smaller one") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    try:
        said = json.loads(output)
    except ValueError:
        raise UserError("the file cannot be decoded: use another copy") from None
    if "error" in said:
        raise UserError(said["error"])


def _parts(name: str) -> tuple[str, str]:
    """A safe stem, and the suffix in small letters.

    Raises:
        UserError: a suffix that no photo or clip has.
    """
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, _, suffix = base.rpartition(".")
    if suffix.lower() not in _SUFFIXES:
        raise UserError(
            "give a PNG, JPEG, WebP, BMP, TIFF or AVIF picture, a GIF, or an MP4, MOV, WebM, AVI or MKV clip"
        )
    return re.sub(r"[^\w+-]+", "-", stem).strip("-_")[:60] or "source", suffix.lower()
