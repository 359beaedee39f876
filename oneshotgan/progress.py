"""What a training says while it works, on stderr: a live bar in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from oneshotgan.errors import one_line


class Reporter:
    """Prints lines and progress; `quiet` prints nothing.

    Use as a context manager, so that the terminal is left as it was.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def line(self, text: str) -> None:
        """Print one line, as it stands: what a file's name holds is no markup, emoji or control character."""
        with self._heard():
            self.console.print(one_line(text), markup=False, emoji=False)

    def progress(
        self, step: int, steps: int, rate: float, losses: dict[str, float], steady: bool = True
    ) -> None:
        """Report `step` of `steps`, at `rate` steps per second.

        Args:
            steady: whether that rate will stay, so that it tells the time left.
        """
        left = f"{_clock((steps - step) / rate)} left" if steady and rate > 0 else ""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        if not self.console.is_terminal:
            parts = (f"step {step}/{steps}", f"{rate:.2f} steps/s", left, shown)
            self.line("  ".join(part for part in parts if part))
            return
        with self._heard():
            self._show(step, steps, f"{rate:.2f} steps/s", left, shown)

    def _show(self, step: int, steps: int, rate: str, left: str, shown: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[shown]}", markup=False),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task("train", total=steps, completed=step, rate=rate, left=left, shown=shown)
        self._bar.update(self._bar.task_ids[0], completed=step, rate=rate, left=left, shown=shown)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Go quiet when stderr is closed or its disk is full: no training ends for want of a listener."""
        try:
            yield
        except (OSError, SystemExit):  # rich answers a broken pipe with SystemExit
            self.console.quiet = True

    def finish(self) -> None:
        """End the live bar, if there is one."""
        if self._bar is not None:
            with self._heard():
                self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
