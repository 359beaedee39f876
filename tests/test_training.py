"""The loop when something goes wrong in it: numbers, memory, disk; and that it is deterministic."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OFTEN, TRAINED_STEPS, Command, Tree
from torch import Tensor

from oneshotgan import config, launch, training
from oneshotgan.errors import UserError
from oneshotgan.files import replacing, write_bytes
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.run import Run
from oneshotgan.training import FiniteWatch

Show = Callable[[Path], Tree]
SELDOM = ("--log-every", 1000, "--checkpoint-every", 1000, "--snapshot-every", 1000, "--sample-every", 1000)


def at_step(
    monkeypatch: pytest.MonkeyPatch, at: int, doing: Callable[[OneShot, dict[str, Tensor]], None]
) -> None:
    """Do something after the real step `at`, with the method and its losses."""
    original = OneShot.step

    def step(self: OneShot, step: int) -> dict[str, Tensor]:
        losses = original(self, step)
        if step == at:
            doing(self, losses)
        return losses

    monkeypatch.setattr(OneShot, "step", step)


def raising(error: BaseException) -> Callable[..., None]:
    def doing(*_: object) -> None:
        raise error

    return doing


def written_steps(run: Path) -> set[int]:
    """Steps of every checkpoint, snapshot and sheet."""
    files = [path for name in ("checkpoints", "snapshots", "samples") for path in (run / name).iterdir()]
    assert not [path for path in files if path.name.startswith(".")]
    return {int(path.stem.removeprefix("step-")) for path in files}


# --- numbers ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in OneShot.loss_names for value in (float("nan"), float("inf"))),
        ("loss_G", -float("inf")),
    ],
)
@pytest.mark.parametrize(("often", "kept"), [(OFTEN, {0, 2, 4}), (SELDOM, {0})], ids=["often", "seldom"])
def test_a_loss_that_is_not_finite_is_named_with_its_first_step(
    photo: Path,
    train: Command,
    monkeypatch: pytest.MonkeyPatch,
    often: tuple[object, ...],
    kept: set[int],
    name: str,
    value: float,
) -> None:
    at_step(monkeypatch, 5, lambda method, losses: losses[name].fill_(value))
    message = train(photo, "--out", "run", "--steps", 8, *often).late_error
    assert f"{name} was not finite at step 5" in message
    assert "learning-rate" in message
    assert written_steps(Path("run")) == kept
    assert all(line["step"] < 5 for line in Run.open("run").stats())


def test_it_is_the_first_step_and_term_that_is_named(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 6, lambda method, losses: losses["loss_G"].fill_(float("nan")))
    at_step(monkeypatch, 3, lambda method, losses: losses["loss_D"].fill_(float("inf")))
    assert "loss_D was not finite at step 3" in train(photo, "--steps", 8, *SELDOM).late_error


@pytest.mark.parametrize("network", ["G", "D"])
@pytest.mark.parametrize(("often", "kept"), [(OFTEN, {0, 2, 4, 6}), (SELDOM, {0})], ids=["often", "seldom"])
def test_a_weight_that_is_not_finite_is_never_saved(
    photo: Path,
    train: Command,
    monkeypatch: pytest.MonkeyPatch,
    often: tuple[object, ...],
    kept: set[int],
    network: str,
) -> None:
    def spoil(method: OneShot, losses: dict[str, Tensor]) -> None:
        with torch.no_grad():
            next(getattr(method, network).parameters()).fill_(float("nan"))

    at_step(monkeypatch, 8, spoil)
    assert (
        "a weight was not finite at step 8" in train(photo, "--out", "run", "--steps", 8, *often).late_error
    )
    assert written_steps(Path("run")) == kept
    weights = Run(Path("run")).read_checkpoint(max(kept), torch.device("cpu"))["method"]["G"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_after_a_failure_the_run_goes_on(
    trained_once: Path, photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda method, losses: losses["loss_D"].fill_(float("nan")))
        assert train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN).code == 2
    outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert "going on from step 4" in outcome.err
    assert (Path("run") / "model" / "model.safetensors").read_bytes() == (
        trained_once / "model" / "model.safetensors"
    ).read_bytes()


def test_the_watch_reads_nothing_until_asked() -> None:
    class Weights:
        def parameters(self) -> list[Tensor]:
            return [torch.ones(2)]

    watch = FiniteWatch(Weights())  # type: ignore[arg-type]
    watch.check(0)
    watch.note(1, {"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    watch.check(1)
    watch.note(2, {"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))})
    watch.note(3, {"a": torch.tensor(float("inf")), "b": torch.tensor(1.0)})
    for check in (watch.check_losses, lambda: watch.check(3)):
        with pytest.raises(UserError, match="b was not finite at step 2"):
            check()


# --- memory ---


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("where", ["step", "generate", "__init__"])
def test_out_of_memory_names_what_to_lower(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    monkeypatch.setattr(OneShot, where, raising(error))
    message = train(photo, "--steps", 4).late_error
    assert message.startswith("out of memory: lower --max-size or --batch-size")


def test_out_of_memory_while_reading(
    photo: Path, train: Command, tree: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.media, "read_frames", raising(MemoryError()))
    assert train(photo, "--steps", 4).error.startswith("out of memory: lower --max-size or --batch-size")
    assert list(tree(Path())) == ["scene.png"]


@pytest.mark.parametrize(
    "error", [RuntimeError("a shape is wrong"), ZeroDivisionError("oh"), ValueError("no")]
)
def test_an_unexpected_failure_keeps_its_traceback(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    at_step(monkeypatch, 3, raising(error))
    with pytest.raises(type(error), match=str(error)):
        train(photo, "--out", "run", "--steps", 4, *OFTEN)
    assert Run(Path("run")).checkpoint_steps() == [0, 2]


# --- disk ---


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_torch(*_: object, **__: object) -> Any:
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


FULL: dict[str, tuple[object, str, Callable[..., Any], str]] = {
    "checkpoint": (torch, "save", full, "checkpoints/step-000006.pt"),
    "checkpoint, as torch says it": (torch, "save", full_torch, "checkpoints/step-000006.pt"),
    "stats": (os, "write", full, "stats.jsonl"),
    "half a line of stats": (os, "write", lambda *_: 3, "stats.jsonl"),
    "sheet, snapshot or model": (Path, "write_bytes", full, "snapshots/step-000006.safetensors"),
    "flush": (os, "fsync", full, "step-000006"),
    "move": (os, "replace", full, "step-000006"),
}


@pytest.mark.parametrize(("owner", "name", "failing", "path"), FULL.values(), ids=FULL)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    trained_once: Path,
    photo: Path,
    train: Command,
    tree: Show,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    failing: Callable[..., Any],
    path: str,
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda method, losses: patch.setattr(owner, name, failing))
        message = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN).late_error
    assert message.startswith("cannot write run/")
    assert path in message
    assert "full" in message
    assert not [left for left in tree(Path()) if ".tmp" in left]
    run = Run.open("run")
    assert run.checkpoint_steps() == [0, 2, 4]
    assert run.read_checkpoint(4, torch.device("cpu"))["step"] == 4

    outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert "going on from step 4" in outcome.err
    for file in ("model/model.safetensors", "samples/step-000008.png", "snapshots/step-000006.safetensors"):
        assert (Path("run") / file).read_bytes() == (trained_once / file).read_bytes()


def test_a_full_disk_at_the_start(
    photo: Path, train: Command, tree: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = train(photo, "--out", "run", "--steps", 1).error
    assert "full" in message
    assert not [left for left in tree(Path()) if ".tmp" in left]
    assert train(photo, "--out", "run", "--steps", 1).code == 0  # and nothing is in the way of the next start


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENOTDIR])
def test_every_failure_to_write_has_its_reason(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    at_step(monkeypatch, 2, lambda *_: monkeypatch.setattr(torch, "save", raising(OSError(number, "reason"))))
    message = train(photo, "--out", "run", "--steps", 4, *OFTEN).late_error
    assert message.startswith("cannot write run/checkpoints/step-000002.pt: ")
    assert len(message) > len("cannot write run/checkpoints/step-000002.pt: ")


@pytest.mark.parametrize("often", [OFTEN, SELDOM], ids=["often", "seldom"])
def test_a_folder_that_is_gone(
    photo: Path, train: Command, tree: Show, monkeypatch: pytest.MonkeyPatch, often: tuple[object, ...]
) -> None:
    at_step(monkeypatch, 3, lambda *_: shutil.rmtree("run"))
    message = train(photo, "--out", "run", "--steps", 4, *often).late_error
    assert message.startswith("cannot write run/")
    assert "gone" in message
    assert list(tree(Path())) == ["scene.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as temporary:
            raise error(temporary.write_bytes(b"half of the n"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(UserError, match=r"file\.bin: the disk is full"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


# --- determinism ---


def test_the_same_command_gives_the_same_weights_and_another_seed_others(
    trained_once: Path, photo: Path, train: Command, tree: Show
) -> None:
    assert train(photo, "--out", "same", "--steps", TRAINED_STEPS, *OFTEN).code == 0
    assert train(photo, "--out", "other", "--steps", TRAINED_STEPS, *OFTEN, "--seed", 1).code == 0
    first, same, other = (tree(path) for path in (trained_once, Path("same"), Path("other")))
    timed = {"stats.jsonl", *(name for name in first if name.startswith("checkpoints/"))}
    assert {name: d for name, d in first.items() if name not in timed} == {
        name: digest for name, digest in same.items() if name not in timed
    }
    for name in ("model/model.safetensors", "snapshots/step-000002.safetensors", "samples/step-000000.png"):
        assert first[name] != other[name]
    assert first["reals.png"] == other["reals.png"]


def test_what_ran_before_in_the_process_changes_nothing(
    trained_once: Path, photo: Path, train: Command
) -> None:
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.random.get_rng_state(), torch.get_num_threads()
    assert train(photo, "--out", "run", "--steps", TRAINED_STEPS).code == 0
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    model = Path("model") / "model.safetensors"
    assert (Path("run") / model).read_bytes() == (trained_once / model).read_bytes()


# --- settings of a run ---


def test_a_setting_given_again_is_no_change(trained: Path, photo: Path, train: Command) -> None:
    """The two size limits stand for one another; giving the run's own again must not lift anything."""
    assert "finished" in train(photo, "--out", trained, "--preset", "preview").err
    assert "finished" in train(photo, "--out", trained, "--batch-size", 5, "--seed", 0).err


@pytest.mark.parametrize("flag", ["--max-size", "--short-size"])
def test_one_size_limit_lifts_the_other(photo: Path, command: Command, flag: str) -> None:
    small = ("--base-width", 4, "--threads", 1, "--steps", 1)
    assert command("train", photo, "--out", "run", flag, 40, *small).code == 0
    name = flag[2:].replace("-", "_")
    data = Run.open("run").settings.data
    assert {"max_size": data.max_size, "short_size": data.short_size} == {
        "max_size": None,
        "short_size": None,
        name: 40,
    }
    assert "finished" in command("train", photo, "--out", "run", flag, 40, *small).err


def test_flags_win_over_the_file_and_the_file_over_the_preset(photo: Path, command: Command) -> None:
    Path("mine.toml").write_text(
        'preset = "preview"\nsteps = 3\n[model]\nbase_width = 4\nema_decay = 0.5\n[data]\nshort_size = 32\n'
    )
    outcome = command("train", photo, "--out", "run", "--config", "mine.toml", "--steps", 1)
    assert outcome.code == 0, outcome.err
    settings = Run.open("run").settings
    assert settings.training.steps == 1
    assert settings.model.ema_decay == 0.5
    assert settings.model.learning_rate_g == config.preset("preview").model.learning_rate_g
    # the same command again, the file included, finds the run finished
    assert "finished" in command("train", photo, "--out", "run", "--config", "mine.toml", "--steps", 1).err


def test_the_settings_of_a_run_train_the_same_again(
    trained_once: Path, photo: Path, command: Command
) -> None:
    Path("again.toml").write_text(config.to_toml(Run.open(trained_once).settings))
    assert command("train", photo, "--out", "run", "--config", "again.toml").code == 0
    shutil.copyfile(trained_once / "config.json", "again.json")
    assert command("train", photo, "--out", "more", "--config", "again.json").code == 0
    model = Path("model") / "model.safetensors"
    for run in (Path("run"), Path("more")):
        assert (run / model).read_bytes() == (trained_once / model).read_bytes()


def test_a_checkpoint_is_written_when_minutes_have_passed(photo: Path, train: Command) -> None:
    flags = ("--steps", 4, *SELDOM, "--checkpoint-minutes", 0.001)
    assert train(photo, "--out", "run", *flags).code == 0
    assert len(Run(Path("run")).checkpoint_steps()) >= 2


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    import signal
    import threading

    seen: list[object] = []

    def work() -> None:
        with training.stop_signals() as stop:
            seen.extend([stop == [], signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, before]
