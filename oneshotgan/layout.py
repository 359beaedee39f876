"""The run directory as files: where each lies, and what can be read of them without PyTorch.

Its layout is described in docs/run-directory.md. `run.Run` adds what needs PyTorch, and all writing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from oneshotgan import config
from oneshotgan.config import Config
from oneshotgan.errors import UserError

FOLDERS = ("input", "samples", "checkpoints", "snapshots", "model")
FILES = ("config.json", "reals.png", "stats.jsonl", "metrics.json", "metrics-all.json")
_TAIL = 2**16  # bytes at the end of stats.jsonl in which its last line lies
_LARGEST_HEADER = 2**24  # bytes of a safetensors file's


class RunFiles:
    """The files of a run, to be read; `open` checks that there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Take up the run at `path`.

        Raises:
            UserError: there is no run, or its config.json cannot be read.
        """
        run = cls(Path(path))
        if not run.exists(run.path):
            raise UserError(f"{path} is no run directory: it holds no config.json of a training")
        run.settings, run.record  # noqa: B018  # read once, so that a damaged file is found here
        return run

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether a run was begun at `path`."""
        return os.path.isfile(Path(path) / "config.json") and os.path.isdir(Path(path) / "input")

    @property
    def settings(self) -> Config:
        """The settings in config.json."""
        content = self._read_config()
        content.pop("run")
        try:
            return config.from_dict(content)
        except UserError as error:
            raise UserError(f"{self.path / 'config.json'} is damaged: {error}") from error

    @property
    def record(self) -> dict[str, Any]:
        """What config.json records beside the settings: version, source, frames, machines."""
        record: dict[str, Any] = self._read_config()["run"]
        return record

    # --- figures and losses ---

    def stats(self) -> list[dict[str, Any]]:
        """The whole lines of stats.jsonl; a torn last line is left out."""
        path = self.path / "stats.jsonl"
        if not path.is_file():
            return []
        return _whole_lines(path.read_text(encoding="utf-8", errors="replace"))

    def last_stats(self) -> dict[str, Any]:
        """The last whole line of stats.jsonl, {} if there is none; only the file's end is read."""
        try:
            with open(self.path / "stats.jsonl", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return {}
        return next(reversed(_whole_lines(text)), {})

    def figures(self) -> tuple[dict[str, dict[str, Any]], int | None]:
        """The figures in metrics.json by name, and the step they were measured at.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "metrics.json"
        if not path.is_file():
            return {}, None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figures = {str(entry["name"]): entry for entry in content["figures"]}
            for entry in figures.values():
                if not (isinstance(entry["direction"], str) and isinstance(entry["count"], int)):
                    raise TypeError("an entry of another type")
                for number in (entry["value"], entry["standard_error"] or 0.0):
                    float(number)
            return figures, int(content["step"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: oneshotgan evaluate {path.parent} writes it anew") from error

    # --- pictures and weights ---

    @property
    def model_path(self) -> Path:
        """Where the newest sampling weights lie."""
        return self.path / "model" / "model.safetensors"

    def sheet_steps(self) -> list[int]:
        """The steps of which there is a contact sheet, in order."""
        return _steps(self.path / "samples", ".png")

    def sheet_path(self, step: int) -> Path:
        """Where the contact sheet of `step` lies."""
        return self.path / "samples" / f"step-{step:06d}.png"

    def snapshot_steps(self) -> list[int]:
        """The steps of which a snapshot is kept, in order."""
        return _steps(self.path / "snapshots", ".safetensors")

    def snapshot_path(self, step: int) -> Path:
        """Where the snapshot of `step` lies."""
        return self.path / "snapshots" / f"step-{step:06d}.safetensors"

    def checkpoint_steps(self) -> list[int]:
        """The steps of which a checkpoint is kept, in order."""
        return _steps(self.path / "checkpoints", ".pt")

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def _read_config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record = content["run"]
            frames, source = record["frames"], record["source"]
            texts = (frames["checksum"], source["checksum"], source["name"])
            numbers = (frames["count"], *frames["size"])
            whole = len(numbers) == 3 and all(isinstance(m, dict) for m in record["machines"])
            if not (
                whole and all(isinstance(v, str) for v in texts) and all(isinstance(v, int) for v in numbers)
            ):
                raise TypeError("an entry of another type")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or was not written by a training") from error
        return dict(content)


def weights_step(path: Path) -> int:
    """The step that a safetensors file of sampling weights was written at, from its header alone.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError("no header")
            return int(json.loads(file.read(length))["__metadata__"]["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged") from error


def _whole_lines(text: str) -> list[dict[str, Any]]:
    """The objects with a step among lines of JSON; what is torn or of another kind is left out."""
    lines = []
    for one in text.splitlines():
        try:
            line = json.loads(one)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _steps(folder: Path, suffix: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:  # not there, or no folder
        return []
    numbers = [name.removeprefix("step-").removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
