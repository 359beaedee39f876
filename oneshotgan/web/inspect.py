"""Looks at an upload, in a process of its own: what a hostile file does to a decoder, it does to this one.

``python -m oneshotgan.web.inspect FILE MAX_PIXELS`` prints what the file holds as JSON, or why it is refused.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from oneshotgan import media
from oneshotgan.errors import UserError
from oneshotgan.media.pictures import open_picture, own_settings

_SMALL = (32, 32)  # to which the frames are scaled here: they are only counted
_MEMORY = 3 * 2**30  # bytes


def inspect(path: Path, most_pixels: int) -> dict[str, object]:
    """Decode all of a photo or clip: its ``size`` and number of ``frames``.

    Raises:
        UserError: it is damaged, of no known kind, or larger than `most_pixels`.
    """

    def check(size: tuple[int, int]) -> tuple[int, int]:
        if size[0] * size[1] > most_pixels:
            limit = most_pixels / 1e6
            raise UserError(f"it has {size[1]}×{size[0]} pixels: scale it below {limit:g} million")
        return _SMALL

    with own_settings():
        picture = open_picture(path)
    if picture is not None:  # before it is decoded
        with picture:
            check((picture.height, picture.width))
    frames = media.read_frames(path, check)
    return {"size": frames.source_size, "frames": len(frames.images)}


def main() -> None:
    """See the module."""
    with suppress(OSError, AttributeError):
        os.nice(5)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    path = Path(sys.argv[1])
    try:
        said = inspect(path, int(sys.argv[2]))
    except UserError as error:
        said = {"error": str(error).replace(str(path), "the file").replace(path.name, "the file")}
    except MemoryError:
        said = {"error": "it needs too much memory to be read"}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
