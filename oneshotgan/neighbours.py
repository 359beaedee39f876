"""The other trainings on this machine, so that several do not fight for its cores.

Two trainings of two threads each on two cores are many times slower than two of one thread: each thread
waits for a sibling that is not running. Trainings whose threads were not chosen by the user therefore share
the cores (`machine.fair_threads`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def folder() -> Path:
    """Where each running training of this user holds a lock, named by its process."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"oneshotgan-{user}"


@contextmanager
def present() -> Iterator[None]:
    """Within this context this process counts as a running training."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder() / f"training-{os.getpid()}.lock")
        lock.acquire(timeout=5)
    except OSError:  # no such folder can be made here: nobody sees anybody
        yield
        return
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # another one may be looking at it
            Path(lock.lock_file).unlink(missing_ok=True)


def others() -> int:
    """How many other processes train now."""
    count = 0
    for path in folder().glob("training-*.lock"):
        if path.stem == f"training-{os.getpid()}":
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            count += 1
        except OSError:  # gone, or another user's
            continue
        else:  # left by one that was killed
            with suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()
    return count
