"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshotgan.errors import UserError

ANOTHER_PLACE = "choose another place with --out"
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, then start the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then start the same command again",
    errno.EROFS: "the folder is read-only: {remedy}",
    errno.EACCES: "no permission to write there: {remedy}",
    errno.EPERM: "no permission to write there: {remedy}",
    errno.ENOENT: "the folder is gone: it was moved or deleted",
    errno.ENOTDIR: "a part of the path is a file, not a folder: {remedy}",
}


@contextmanager
def storage_errors(path: Path, remedy: str = ANOTHER_PLACE) -> Iterator[None]:
    """Turn an operating system error while writing `path` into a UserError of one line.

    Args:
        remedy: what the user can do where writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise UserError(f"cannot write {path}: {advice.replace('{remedy}', remedy)}") from error


@contextmanager
def replacing(path: Path | str, remedy: str = ANOTHER_PLACE) -> Iterator[Path]:
    """Give a temporary path to write; on success it takes the place of `path` in one move.

    The temporary file lies in the same folder, is flushed to the disk before the move, and is removed
    on any failure, so `path` always holds either its old content or the whole new one.

    Args:
        remedy: see `storage_errors`.

    Raises:
        UserError: the disk is full, the folder is read-only or gone.
    """
    path = Path(path)
    with storage_errors(path, remedy):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp" + path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path | str, content: bytes, remedy: str = ANOTHER_PLACE) -> None:
    """Write `content` to `path`, whole or not at all (see `replacing`)."""
    with replacing(path, remedy) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str, remedy: str = ANOTHER_PLACE) -> None:
    """Write `content` as UTF-8 to `path`, whole or not at all (see `replacing`)."""
    write_bytes(path, content.encode(), remedy)


def write_json(path: Path | str, content: dict[str, Any], remedy: str = ANOTHER_PLACE) -> None:
    """Write `content` as JSON to `path`, whole or not at all (see `replacing`)."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", remedy)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
