"""The run directory: the only interface between training, sampling, figures and report.

Its layout is described in docs/run-directory.md. Every file is written whole or not at all, and the
checkpoint is written last, so whatever moment a process is killed at, the newest checkpoint finds all
that belongs to it beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from oneshotgan import __version__, config, media
from oneshotgan.config import Config
from oneshotgan.errors import UserError
from oneshotgan.files import replacing, storage_errors, write_bytes, write_json, write_text
from oneshotgan.layout import FOLDERS, RunFiles
from oneshotgan.spread import spread

KEPT_CHECKPOINTS = 3
KEPT_SNAPSHOTS = 32


@dataclass(frozen=True)
class Source:
    """Where the training images came from."""

    name: str
    checksum: str  # SHA-256 of the source, see media.source_checksum
    size: tuple[int, int]  # (height, width) as displayed


class Board(Protocol):
    """Another place for what a training writes to look at; `oneshotgan.tensorboard.TensorBoard` is one."""

    def begin(self, step: int) -> None:
        """The training goes on after `step`."""

    def stats(self, line: dict[str, Any]) -> None:
        """A line of stats.jsonl."""

    def samples(self, step: int, sheet: np.ndarray) -> None:
        """The contact sheet of `step`, uint8 (H, W, 3)."""


class Run(RunFiles):
    """A run directory. `create` begins one, `Run.open` takes one up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.board: Board | None = None  # is told what is written, too
        self._lock_file: os.stat_result | None = None  # while this process holds the lock

    # --- beginning and taking up ---

    def create(self, settings: Config, source: Source, frames: np.ndarray) -> None:
        """Begin the run in a new or empty folder; config.json is written last and makes it a run.

        Args:
            frames: uint8 (N, H, W, 3), as they will be trained on.
        """
        with storage_errors(self.path):
            for folder in FOLDERS:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            for left in (self.path / "input").iterdir():  # by a start that was cut off
                left.unlink()
        for index, frame in enumerate(frames):
            media.write_png(self.path / "input" / f"frame-{index:06d}.png", frame)
        shown = frames[spread(len(frames), 16)]
        media.write_png(self.path / "reals.png", media.contact_sheet(shown))
        record = {
            "version": __version__,
            "source": {"name": source.name, "checksum": source.checksum, "size": list(source.size)},
            "frames": {"count": len(frames), "size": list(frames.shape[1:3]), "checksum": _digest(frames)},
            "machines": [],
        }
        model = config.to_dict(settings)
        content = {"method": model["method"], "model": model["model"], "size": list(frames.shape[1:3])}
        write_json(self.path / "model" / "config.json", content)
        self._write_config(settings, record)

    def frames(self) -> np.ndarray:
        """The training images, uint8 (N, H, W, 3), as written in ``input/`` when the run began.

        Raises:
            UserError: an image is missing or was changed.
        """
        described = self.record["frames"]
        height, width = described["size"]
        try:
            frames = media.read_frames(self.path / "input", lambda size: size, described["count"]).images
        except UserError as error:
            raise UserError(f"the run's own input is damaged: {error}") from error
        if (
            frames.shape[:3] != (described["count"], height, width)
            or _digest(frames) != described["checksum"]
        ):
            raise UserError(f"the images in {self.path / 'input'} are not those the run began with")
        return frames

    def update(self, settings: Config, step: int, machine: dict[str, Any] | None = None) -> None:
        """Write changed settings, and note a new machine that it goes on with from `step`."""
        record = self.record
        last = {"processes": 1} | (record["machines"] or [{}])[-1]  # runs before 0.2 do not name them
        last.pop("from_step", None)
        changed = settings != self.settings
        if machine is not None and {"processes": 1} | machine != last:
            record["machines"].append({"from_step": step} | machine)
            changed = True
        if changed:
            self._write_config(settings, record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second training; the operating system frees it when the process ends."""
        lock = FileLock(self.path / ".lock")
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:  # an OSError, too
                raise UserError(
                    f"another training is writing {self.path}: wait for it, or choose --out"
                ) from None
            self._lock_file = os.stat(self.path / ".lock")
        try:
            yield
        finally:
            self._lock_file = None
            lock.release()

    def check_place(self) -> None:
        """Raise a UserError if, since the lock was taken, another training has taken this run's place.

        That happens where the folder is deleted while a training writes it, and another one is begun there.
        """
        if self._lock_file is None:
            return
        try:
            now = os.stat(self.path / ".lock")
        except OSError:  # all is gone; whoever writes next says so
            return
        if not os.path.samestat(now, self._lock_file):
            raise UserError(f"{self.path} was deleted and another run begun there: this training ends")

    def sweep(self) -> None:
        """Remove the temporary files of a training that was killed while it wrote; call it while locked."""
        own = (".config-*", ".stats-*", ".reals-*", ".metrics*")
        for pattern in (*own, *(f"{folder}/.*" for folder in FOLDERS)):
            for left in self.path.glob(f"{pattern}.tmp.*"):
                left.unlink(missing_ok=True)

    # --- what training writes ---

    def write_samples(self, step: int, images: np.ndarray) -> None:
        """The contact sheet of uint8 (N, H, W, 3) images at `step`."""
        self.check_place()
        sheet = media.contact_sheet(images)
        media.write_png(self.sheet_path(step), sheet)
        if self.board is not None:
            self.board.samples(step, sheet)

    def append_stats(self, line: dict[str, Any]) -> None:
        """Add one object to stats.jsonl, in a single write, so that a kill cannot tear it."""
        self.check_place()
        path = self.path / "stats.jsonl"
        with storage_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                content = (json.dumps(line) + "\n").encode()
                if os.write(descriptor, content) != len(content):
                    raise OSError(28, "disk full")
            finally:
                os.close(descriptor)
        if self.board is not None:
            self.board.stats(line)

    def trim_stats(self, step: int) -> None:
        """Drop the lines after `step`, which the training will write again."""
        kept = [line for line in self.stats() if line["step"] <= step]
        if (self.path / "stats.jsonl").exists():
            write_text(self.path / "stats.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        if self.board is not None:
            self.board.begin(step)

    def write_model(self, step: int, weights: dict[str, Tensor]) -> None:
        """The sampling weights in ``model/``."""
        self.check_place()
        _write_weights(self.model_path, step, weights)

    def write_snapshot(self, step: int, spacing: int, weights: dict[str, Tensor]) -> None:
        """Keep the sampling weights of `step`, then thin: at most 32 stay, at multiples of spacing · 2^k.

        That of `step` itself stays in any case.
        """
        self.check_place()
        _write_weights(self.snapshot_path(step), step, weights)
        steps = self.snapshot_steps()
        while len(steps) > KEPT_SNAPSHOTS:
            spacing *= 2
            for dropped in [s for s in steps if s % spacing and s != step]:
                self.snapshot_path(dropped).unlink(missing_ok=True)
            steps = self.snapshot_steps()

    # --- checkpoints ---

    def write_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """The full training state; the newest three are kept."""
        self.check_place()
        with replacing(self.checkpoint_path(step)) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch's own writer reports a full disk like this
                if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                    raise
                raise OSError(28, "disk full") from error
        for old in self.checkpoint_steps()[:-KEPT_CHECKPOINTS]:
            self.checkpoint_path(old).unlink(missing_ok=True)

    def read_checkpoint(self, step: int, device: torch.device) -> dict[str, Any]:
        """The state written at `step`.

        Raises:
            UserError: the file is damaged, or holds anything but tensors and plain values.
        """
        path = self.checkpoint_path(step)
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not compare the check sums
            if damaged is not None:
                raise UserError(f"checkpoint {path.name} is damaged")
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except UserError:
            raise
        except Exception as error:  # a damaged or hostile file can fail in any way
            raise UserError(f"checkpoint {path.name} is damaged or was not written by a training") from error
        return state

    # --- config.json ---

    def _write_config(self, settings: Config, record: dict[str, Any]) -> None:
        write_json(self.path / "config.json", config.to_dict(settings) | {"run": record})


class Spectator(Run):
    """The run as all processes but the first of a group see it: what they would write is written already."""

    def update(self, settings: Config, step: int, machine: dict[str, Any] | None = None) -> None: ...

    def sweep(self) -> None: ...

    def write_samples(self, step: int, images: np.ndarray) -> None: ...

    def append_stats(self, line: dict[str, Any]) -> None: ...

    def trim_stats(self, step: int) -> None: ...

    def write_model(self, step: int, weights: dict[str, Tensor]) -> None: ...

    def write_snapshot(self, step: int, spacing: int, weights: dict[str, Tensor]) -> None: ...

    def write_checkpoint(self, step: int, state: dict[str, Any]) -> None: ...


def read_weights(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and the sampling weights in a safetensors file of a run."""
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
            return step, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged") from error


def _write_weights(path: Path, step: int, weights: dict[str, Tensor]) -> None:
    write_bytes(path, safetensors_bytes(weights, metadata={"step": str(step)}))


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
