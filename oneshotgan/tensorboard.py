"""What TensorBoard reads, beside a run's own files: losses, figures and contact sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oneshotgan.errors import UserError
from oneshotgan.files import storage_errors

FOLDER = "tensorboard"


class TensorBoard:
    """The folder ``tensorboard/`` of a run, with event files; `Run` tells it what it writes.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs a package: pip install 'oneshotgan[tensorboard]'") from error
        self._open, self._folder = SummaryWriter, run / FOLDER
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Go on after `step`; what was written of later steps by a training that was killed becomes void."""
        with storage_errors(self._folder):
            self._writer = self._open(str(self._folder), purge_step=step + 1)

    def stats(self, line: dict[str, Any]) -> None:
        """A line of stats.jsonl: every number under its name, those of figures under ``figures/``."""
        values = {name: value for name, value in line.items() if name not in ("step", "figures")}
        values |= {f"figures/{name}": value for name, value in line.get("figures", {}).items()}
        with storage_errors(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()

    def samples(self, step: int, sheet: np.ndarray) -> None:
        """The contact sheet of `step`, uint8 (H, W, 3)."""
        with storage_errors(self._folder):
            self._writer.add_image("samples", sheet, step, dataformats="HWC")
            self._writer.flush()
