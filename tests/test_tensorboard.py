"""TensorBoard is told what the run directory holds, also by a training that was killed and goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import OFTEN, TINY, Command

from oneshotgan.run import Run

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return read


def test_it_holds_what_the_run_holds(photo: Path, command: Command) -> None:
    words = ("train", photo, "--out", "run", "--tensorboard", *TINY, *OFTEN)
    assert command(*words, "--steps", 4).code == 0
    run = Run.open("run")
    run.checkpoint_path(4).unlink()  # as if it had been killed after step 4 was logged
    assert command(*words, "--steps", 6).code == 0
    read = events(Path("run"))
    stats = run.stats()
    assert [line["step"] for line in stats] == [1, 2, 3, 4, 5, 6]
    for name in ("loss_G", "loss_D", "diversity", "images_per_second"):
        scalars = read.Scalars(name)
        assert [s.step for s in scalars] == [line["step"] for line in stats]
        assert [s.value for s in scalars] == pytest.approx([line[name] for line in stats], rel=1e-6)
    assert [image.step for image in read.Images("samples")] == [0, 4, 6]


def test_it_is_not_written_unasked(trained_once: Path) -> None:
    assert not (trained_once / "tensorboard").exists()


def test_a_missing_package_is_told_before_a_run_begins(
    photo: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "oneshotgan[tensorboard]" in command("train", photo, "--out", "run", "--tensorboard").error
    assert not Path("run").exists()
