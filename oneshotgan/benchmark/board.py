"""One line of progress per running case: a live board in a terminal, now and then a line in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from oneshotgan.errors import UserError, one_line
from oneshotgan.layout import RunFiles

EVERY = 30.0  # seconds between the lines of a case in a log file


class Board:
    """Shows how far the running cases are, from their run directories alone. Use as a context manager."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.out, self.say = out, say
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, transient=True, auto_refresh=False)
        self._said: dict[str, tuple[float, str]] = {}  # when a case was last looked at, and its line

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def show(self, running: Sequence[str]) -> None:
        """Bring the board up to date; `running` are the names of the cases to show."""
        if self.console.is_terminal:
            lines = [Text(f"{name}: {progress(self.out / name)}", overflow="ellipsis") for name in running]
            self.live.update(Group(*lines), refresh=True)
            return
        now = time.monotonic()
        for name in running:
            then, said = self._said.setdefault(name, (now, ""))
            if now - then >= EVERY:
                text = progress(self.out / name)
                self._said[name] = (now, text)
                if text != said:
                    self.line(f"{name}: {text}")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.console.is_terminal:
            self.live.console.print(one_line(text), markup=False, emoji=False, soft_wrap=True)
        else:
            self.say(text)


def progress(path: Path) -> str:
    """How far the run at `path` is, in a few words."""
    try:
        run = RunFiles.open(path)
    except UserError:
        return "about to begin"
    steps, last = run.settings.training.steps, run.last_stats()
    step = last.get("step", 0)
    if step >= steps:
        return f"{steps} steps, figures are measured"
    seconds = f", {last['seconds']:.0f} s" if "seconds" in last else ""
    return f"step {step}/{steps}{seconds}"
