"""The runs below one folder. Whatever a request names, nothing outside that folder is read.

A run's id is its path below the folder, with slashes. Links are not followed, neither to runs nor in them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from oneshotgan import layout
from oneshotgan.curves import Curve, curves
from oneshotgan.errors import UserError, one_line
from oneshotgan.layout import RunFiles

DEEPEST = 6  # folders below the root
MOST_FOLDERS = 20_000  # looked into for runs
FRESH = 2.0  # seconds for which the list of runs holds
_REMEMBERED = 4096  # answers, each for one state of a file
_SIGNS = ("checkpoints", "samples")  # a folder that holds these was a run, or is to become one

T = TypeVar("T")


class NotFound(Exception):
    """There is no such run or file, or it is none of ours to show."""


@dataclass(frozen=True)
class Card:
    """What the list of runs says of one.

    Attributes:
        id: its path below the folder.
        problem: why it cannot be read, in one line; "" for a good run.
        step: the newest that was logged or saved.
        sheet: the step of the newest contact sheet, None if there is none.
        figures: value and direction by name, of metrics.json.
        changed: seconds since the epoch.
    """

    id: str
    name: str
    problem: str = ""
    method: str = ""
    preset: str = ""
    source: str = ""
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    step: int = 0
    steps: int = 0
    seconds: float | None = None
    rate: float | None = None
    sheet: int | None = None
    changed: float = 0.0
    figures: dict[str, tuple[float, str]] = field(default_factory=dict)


class Library:
    """The runs below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._listed: tuple[float, list[str]] = (-FRESH, [])
        self._memory: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    # --- which runs there are ---

    def ids(self) -> list[str]:
        """The ids of all runs, broken ones too, in the order of their names."""
        listed_at, found = self._listed
        if time.monotonic() - listed_at > FRESH:
            found = sorted(self._search())
            self._listed = (time.monotonic(), found)
        return found

    def forget(self) -> None:
        """Look for runs anew at the next `ids`."""
        self._listed = (-FRESH, [])

    def _search(self) -> list[str]:
        found, waiting, looked = [], [("", 0)], 0
        while waiting and looked < MOST_FOLDERS:
            place, depth = waiting.pop()
            looked += 1
            try:
                with os.scandir(self.root / place) as entries:
                    names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
            except OSError:  # gone, or not ours to read
                continue
            begun = "config.json" in names and names.get("input", False)
            if place and (begun or all(names.get(sign) for sign in _SIGNS)):
                found.append(place)
            elif depth < DEEPEST:
                inner = [name for name, folder in names.items() if folder and _plain(name)]
                waiting += [(f"{place}/{name}" if place else name, depth + 1) for name in inner]
        return found

    # --- one run ---

    def place(self, id: str) -> Path:
        """The folder of the run `id`; it need not be one.

        Raises:
            NotFound: the id leads out of the root, through a link, or to a hidden folder.
        """
        parts = id.split("/")
        if len(parts) > DEEPEST or not all(_plain(part) for part in parts):
            raise NotFound(id)
        path = self.root.joinpath(*parts)
        if not _itself(path) or not path.is_relative_to(self.root):
            raise NotFound(id)
        return path

    def run(self, id: str) -> RunFiles:
        """The run `id`.

        Raises:
            NotFound: there is no folder of this name.
            UserError: it is broken.
        """
        path = self.place(id)
        if not os.path.isdir(path):
            raise NotFound(id)
        linked = [name for name in (*layout.FILES, *layout.FOLDERS) if (path / name).is_symlink()]
        if linked:
            raise UserError(f"{linked[0]} of {id} is a link: a page shows only what lies in the run itself")
        return RunFiles.open(path)

    def file(self, path: Path) -> Path:
        """`path`, a file of a run, if it is there and no link leads out of the run.

        Raises:
            NotFound: it is not.
        """
        if not _itself(path) or not path.is_relative_to(self.root) or not os.path.isfile(path):
            raise NotFound(path.name)
        return path

    def weights(self, run: RunFiles, step: int | None) -> Path:
        """The file of a snapshot's weights, or of the newest.

        Raises:
            NotFound: there is none.
        """
        return self.file(run.model_path if step is None else run.snapshot_path(step))

    # --- what is known of it ---

    def card(self, id: str) -> Card:
        """What the list says of the run `id`; a broken one has a `problem`."""
        path = self.place(id)
        watched = [path / name for name in (*layout.FILES, *layout.FOLDERS)]
        return self._remembered(("card", id, *map(_state, watched)), lambda: self._card(id))

    def _card(self, id: str) -> Card:
        name = id.rsplit("/", 1)[-1]
        try:
            run = self.run(id)
            settings, record, last = run.settings, run.record, run.last_stats()
            figures, _ = run.figures()
            sheets = run.sheet_steps()
            step = max([0, *run.checkpoint_steps()[-1:], last.get("step", 0)])
            height, width = record["frames"]["size"]
            return Card(
                id=id,
                name=name,
                method=settings.method,
                preset=settings.preset,
                source=one_line(record["source"]["name"]),
                frames=record["frames"]["count"],
                size=(height, width),
                step=step,
                steps=settings.training.steps,
                seconds=_number(last.get("seconds")),
                rate=_number(last.get("images_per_second")),
                sheet=sheets[-1] if sheets else None,
                changed=max(_changed(run.path / name) for name in (*layout.FILES, *layout.FOLDERS)),
                figures={name: (float(e["value"]), e["direction"]) for name, e in figures.items()},
            )
        except UserError as error:
            return Card(id=id, name=name, problem=self._without_root(str(error)))
        except NotFound:
            return Card(id=id, name=name, problem="it is gone")
        except Exception as error:  # whatever is in these files, the page stands
            return Card(id=id, name=name, problem=f"it cannot be read ({type(error).__name__})")

    def curves(self, run: RunFiles) -> list[Curve]:
        """The losses and figures in stats.jsonl, ready to draw."""
        path = run.path / "stats.jsonl"

        def draw() -> list[Curve]:
            try:
                return curves(run.stats())
            except (OSError, ArithmeticError, ValueError, TypeError):  # whatever stands in that file
                return []

        return self._remembered(("curves", str(path), _state(path)), draw)

    def checksum(self, path: Path) -> str:
        """A file's SHA-256.

        Raises:
            NotFound: it cannot be read any more.
        """

        return self._remembered(("checksum", str(path), _state(path)), lambda: file_checksum(path))

    def _remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._memory:
                value: T = self._memory.pop(key)
                self._memory[key] = value  # the newest used stands last
                return value
        value = make()
        with self._lock:
            self._memory[key] = value
            while len(self._memory) > _REMEMBERED:
                del self._memory[next(iter(self._memory))]
        return value

    def _without_root(self, text: str) -> str:
        return one_line(text.replace(f"{self.root}{os.sep}", ""))


def file_checksum(path: Path) -> str:
    """A file's SHA-256.

    Raises:
        NotFound: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NotFound(path.name) from error


def _plain(name: str) -> bool:
    """Whether a folder of this name may be shown: not hidden, no way up, and text through and through."""
    if name.startswith(".") or any(sign in name for sign in ("\0", "/", "\\")):
        return False
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # bytes that are no text: no address can name it
        return False


def _itself(path: Path) -> bool:
    """Whether no part of the path is a link."""
    return os.path.realpath(path) == str(path)


def _state(path: Path) -> tuple[int, ...]:
    """Another value whenever the file or folder was changed or replaced."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _changed(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
