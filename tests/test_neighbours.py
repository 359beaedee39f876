"""Trainings side by side: each sees the others, and leaves them their cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Command

from oneshotgan import machine, neighbours
from oneshotgan.config import MachineConfig

WAITING = "from oneshotgan import neighbours\nwith neighbours.present(): print('here', flush=True); input()"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of other tests do not count."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@contextmanager
def another() -> Iterator[subprocess.Popen[str]]:
    """Another process that counts as a training."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


def test_alone_there_are_no_others() -> None:
    assert neighbours.others() == 0
    with neighbours.present():
        assert neighbours.others() == 0


def test_another_process_is_seen_while_it_lives() -> None:
    with neighbours.present(), another() as process:
        assert neighbours.others() == 1
        with another():
            assert neighbours.others() == 2
        assert neighbours.others() == 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert neighbours.others() == 0
        assert len(list(neighbours.folder().iterdir())) == 1  # only this one's own


def test_nothing_is_left_behind() -> None:
    with neighbours.present():
        pass
    assert list(neighbours.folder().iterdir()) == []


def test_without_a_folder_nobody_sees_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "folder", lambda: Path("/proc/none"))
    with neighbours.present():
        assert neighbours.others() == 0


def test_trainings_share_the_cores_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    assert machine.choose(MachineConfig()).threads == 4
    with another():
        assert machine.choose(MachineConfig()).threads == 2
        assert machine.choose(MachineConfig(threads=3)).threads == 3


@pytest.mark.parametrize(("flags", "threads"), [((), [2, 1]), (("--threads", 2), [2])])
def test_a_training_leaves_cores_when_another_begins(
    photo: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    threads: list[int],
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    seen = iter([0] + [1] * 99)
    monkeypatch.setattr(neighbours, "others", lambda: next(seen))
    before = torch.get_num_threads()
    small = ("--base-width", 4, "--short-size", 32, "--steps", 4, "--log-every", 2)
    outcome = command("train", photo, "--out", "run", *small, *flags)
    assert outcome.code == 0, outcome.err
    machines = json.loads(Path("run/config.json").read_text())["run"]["machines"]
    assert [entry["threads"] for entry in machines] == threads
    assert (
        outcome.err.count("another training runs here: from step 2 on with 1 thread(s)") == len(threads) - 1
    )
    assert torch.get_num_threads() == before
