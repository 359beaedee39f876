"""Trainings as processes of their own: ``oneshotgan train``, as anyone would start it in a terminal.

They outlive the server. One that was started elsewhere, or by a server that is gone, is found by the lock
that every training holds (see `oneshotgan.neighbours`) and by the run it has open.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshotgan import config, neighbours
from oneshotgan.errors import UserError, one_line
from oneshotgan.files import storage_errors
from oneshotgan.layout import RunFiles
from oneshotgan.web.library import Library, NotFound

OWN_FOLDER = ".oneshotgan-web"  # below the root: uploads and logs
MOST = 1  # trainings at a time, if nothing else is said
_SHOWN_LOG = 2**14  # bytes
_PID = re.compile(r"training-(\d+)\.lock")


@dataclass(frozen=True)
class State:
    """How it stands with the training of a run.

    Attributes:
        word: starting, training, stopping, finished, stopped or failed.
        pid: of the training's process, None if none runs.
        log: the end of what it printed, where this page started it.
        said: its last word, where that was an error.
    """

    word: str
    pid: int | None = None
    log: str = ""
    said: str = ""

    @property
    def live(self) -> bool:
        """Whether a process is at work."""
        return self.pid is not None


class Trainings:
    """The trainings of runs below the library's root."""

    def __init__(self, library: Library, most: int = MOST) -> None:
        self.library, self.most = library, most
        self.folder = library.root / OWN_FOLDER
        self._own: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[int] = set()
        self._lock = threading.Lock()

    # --- looking ---

    def running(self) -> dict[str, int]:
        """The process of each run that is being trained, by the run's id."""
        found = {id: process.pid for id, process in list(self._own.items()) if process.poll() is None}
        for pid in _training_pids() - set(found.values()):
            run = _run_of(pid)
            if run is not None and run.is_relative_to(self.library.root):
                found.setdefault(run.relative_to(self.library.root).as_posix(), pid)
        return found

    def state(self, id: str, step: int, steps: int, running: dict[str, int] | None = None) -> State:
        """How it stands with run `id`, which is at `step` of `steps`.

        Args:
            running: what `running` gave a moment ago.
        """
        log, said = self._log(id)
        pid = (self.running() if running is None else running).get(id)
        if pid is not None:
            begun = RunFiles.exists(self.library.place(id))
            word = "stopping" if pid in self._stopping else "training" if begun else "starting"
            return State(word, pid, log)
        if steps and step >= steps:
            return State("finished", log=log)
        return State("failed" if said else "stopped", log=log, said=said)

    def begun_here(self) -> list[str]:
        """The ids of runs that this server was to begin, but for those stopped before there was a run."""
        return [id for id, process in list(self._own.items()) if process.poll() != -signal.SIGTERM]

    # --- acting ---

    def check(self, given: dict[str, Any]) -> config.Config:
        """The settings that `begin` would train with, told wrong before a process is started.

        Raises:
            UserError: enough trainings run, or a setting is wrong.
        """
        self._check_number()
        choices, overrides = config.parse({key: value for key, value in given.items() if value is not None})
        chosen = config.preset(choices.get("preset", "preview"), choices.get("method", "oneshot"))
        return config.with_overrides(chosen, overrides)

    def begin(self, source: Path, name: str, given: dict[str, Any]) -> str:
        """Train on `source`; gives the id of the new run.

        Args:
            given: method, preset, steps, seed, …, as the command's flags; None for what is not given.

        Raises:
            UserError: enough trainings run, or a setting is wrong.
        """
        chosen = self.check(given)
        with self._lock:
            self._check_number()
            stem = f"{_safe(name)}-{chosen.method}"
            names = (stem if k == 1 else f"{stem}-{k}" for k in range(1, 10_000))
            id = next(n for n in names if n not in self._own and not (self.library.root / n).exists())
            words = [(_flag(key), str(value)) for key, value in given.items() if value is not None]
            flags = [word for pair in words for word in pair]
            self._start(id, str(source), flags)
        return id

    def go_on(self, id: str, steps: int | None = None) -> None:
        """Train a run further, as the same command would.

        Args:
            steps: more than the run has, to extend it.

        Raises:
            UserError: it is being trained already, enough trainings run, or steps are wrong.
        """
        run = self.library.run(id)
        if steps is not None:
            config.check_field("steps", steps)
        with self._lock:
            if id in self.running():
                raise UserError(f"{id} is being trained already")
            self._check_number()
            # A source of the run's own name that is not there: the training goes on from RUN/input.
            source = run.path / "input" / f"{run.record['source']['name']}.gone"
            self._start(id, str(source), [] if steps is None else ["--steps", str(steps)])

    def stop(self, id: str) -> None:
        """Ask the training of run `id` to end, as Ctrl-C does: it writes a checkpoint first.

        Raises:
            UserError: it is not being trained.
        """
        self.library.place(id)
        pid = self.running().get(id)
        if pid is None:
            raise UserError(f"{id} is not being trained")
        if pid not in self._stopping:  # a second signal would interrupt it at once
            self._stopping.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    # --- the parts ---

    def _check_number(self) -> None:
        running = len(self.running())
        if running >= self.most:
            number = "one training runs" if running == 1 else f"{running} trainings run"
            raise UserError(f"{number} already, and no more are allowed (serve --trainings): stop one first")

    def _start(self, id: str, source: str, flags: list[str]) -> None:
        words = [sys.executable, "-m", "oneshotgan", "train", source, "--out", str(self.library.root / id)]
        path = self._log_path(id)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = open(path, "wb")  # noqa: SIM115  # closed below
        with log:
            self._own[id] = subprocess.Popen(
                [*words, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the server is none for it
            )
        self.library.forget()

    def _log_path(self, id: str) -> Path:
        return self.folder / "logs" / f"{id.replace('/', '%2F')}.log"

    def _log(self, id: str) -> tuple[str, str]:
        """The end of the log, and its last line if that is an error's."""
        try:
            with open(self.library.file(self._log_path(id)), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _SHOWN_LOG))
                lines = [one_line(line) for line in file.read().decode("utf-8", "replace").splitlines()]
        except (OSError, NotFound):
            return "", ""
        last = lines[-1] if lines else ""
        process = self._own.get(id)
        crashed = process is not None and process.poll() not in (None, 0, 143, -signal.SIGTERM)
        said = last.removeprefix("error: ") if last.startswith("error: ") or crashed else ""
        return "\n".join(lines), said


def _training_pids() -> set[int]:
    """The processes of this user that train."""
    names = (_PID.fullmatch(path.name) for path in neighbours.folder().glob("training-*.lock"))
    return {int(match[1]) for match in names if match is not None}


def _run_of(pid: int) -> Path | None:
    """The run that a training holds the lock of; known on Linux only, None elsewhere."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                held = Path(os.readlink(f"/proc/{pid}/fd/{name}"))
                if held.name == ".lock":
                    return held.parent
    except OSError:  # it is over, or no Linux
        pass
    return None


def _safe(name: str) -> str:
    """A name for a folder: letters, digits and a few signs."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-._")[:60] or "source"


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")
