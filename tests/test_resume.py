"""A run that is stopped, killed or damaged goes on by the same command to the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OFTEN, TINY, TRAINED_STEPS, Command, Tree, png_bytes, scene
from torch import Tensor

from oneshotgan import training
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.run import Run

Start = Callable[..., subprocess.Popen[str]]
Show = Callable[[Path], Tree]
TIMING = ("seconds", "images_per_second")


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def stats(run: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl, every one of which must be whole, but for the times."""
    path = run / "stats.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*.pt"))[-1]


def flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested state by its path."""
    if isinstance(state, dict | list | tuple):
        entries = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in entries:
            yield from flat(value, f"{name}/{key}")
    else:
        yield name, state


def assert_same_run(one: Path, other: Path, checkpoint: bool = True) -> None:
    """Weights, training state, stats, sheets and snapshots are equal; times are not compared."""
    assert weights(one) == weights(other)
    assert stats(one) == stats(other)
    for folder in ("samples", "snapshots"):
        left, right = sorted((one / folder).iterdir()), sorted((other / folder).iterdir())
        assert [path.name for path in left] == [path.name for path in right]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(left, right, strict=True))
    if not checkpoint:
        return
    assert newest(one).name == newest(other).name
    states = [dict(flat(torch.load(newest(run), weights_only=True))) for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, states[1][name]), name
        elif name != "/seconds":
            assert value == states[1][name], name


def no_temporary_files(run: Path) -> bool:
    return not [path for path in run.rglob("*") if ".tmp" in path.name]


# --- n steps are k and n − k ---


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_eight_steps_are_some_and_the_rest(
    trained_once: Path, photo: Path, train: Command, command: Command, first: int
) -> None:
    assert train(photo, "--out", "run", "--steps", first, *OFTEN).code == 0
    outcome = command("train", photo, "--out", "run", "--steps", TRAINED_STEPS)
    assert outcome.code == 0
    assert outcome.out == "run\n"
    assert f"going on from step {first}" in outcome.err
    # the shorter run wrote a sheet and a snapshot at its end, too
    for extra in (f"samples/step-{first:06d}.png", f"snapshots/step-{first:06d}.safetensors"):
        if not (trained_once / extra).exists():
            (Path("run") / extra).unlink()
    assert_same_run(Path("run"), trained_once)


def test_a_stop_between_checkpoints_repeats_the_steps_since(
    trained_once: Path, trained: Path, photo: Path, command: Command
) -> None:
    """As after a kill at step 7: stats and pictures are ahead of the newest checkpoint."""
    (trained / "checkpoints" / "step-000008.pt").unlink()
    outcome = command("train", photo, "--out", trained)
    assert outcome.code == 0
    assert "going on from step 6" in outcome.err
    assert_same_run(trained, trained_once)


def test_a_torn_last_line_of_stats_is_trimmed(
    trained_once: Path, trained: Path, photo: Path, command: Command
) -> None:
    path = trained / "stats.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    (trained / "checkpoints" / "step-000008.pt").unlink()
    assert command("train", photo, "--out", trained).code == 0
    assert_same_run(trained, trained_once)


def test_seconds_go_on_counting(trained: Path, photo: Path, command: Command) -> None:
    assert command("train", photo, "--out", trained, "--steps", 12).code == 0
    seconds = [line["seconds"] for line in Run.open(trained).stats()]
    assert seconds == sorted(seconds)
    assert len(seconds) == 12


# --- killed ---


def moment(run: Path, process: subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """Wait until `reached` and kill; False where the process ended before."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        if reached():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.0005)
    return False


def test_killed_at_any_moment_it_ends_with_the_same_weights(
    photo: Path, train: Command, start: Start
) -> None:
    flags = (
        "--steps",
        30,
        "--checkpoint-every",
        1,
        "--log-every",
        1,
        "--snapshot-every",
        5,
        "--sample-every",
        10,
    )
    assert train(photo, "--out", "whole", *flags).code == 0
    run = Path("killed")

    def lines() -> int:
        return (run / "stats.jsonl").read_bytes().count(b"\n") if (run / "stats.jsonl").exists() else 0

    def writing_a_checkpoint() -> bool:
        return any(name.startswith(".step-") for name in os.listdir(run / "checkpoints"))

    begun = 0.0
    moments: dict[str, Callable[[], bool]] = {
        "the input is being written": lambda: (run / "input").exists(),
        "the run has just begun": lambda: (run / "config.json").exists(),
        "some steps are done": lambda: lines() >= 4,
        "a checkpoint is being written": lambda: lines() >= 8 and writing_a_checkpoint(),
        "shortly after the start": lambda: time.monotonic() - begun > 1.5,
        "near the end": lambda: lines() >= 28,
    }
    killed = []
    for name, reached in moments.items():
        begun = time.monotonic()
        killed.append(moment(run, start("train", photo, "--out", run, *flags, *TINY), reached))
        steps = [line["step"] for line in stats(run)]  # every line is whole
        assert steps == list(range(1, len(steps) + 1)), name
    assert sum(killed) >= 5, killed

    outcome = train(photo, "--out", run, *flags)
    assert outcome.code == 0, outcome.err
    assert "going on from step" in outcome.err
    assert_same_run(run, Path("whole"))
    assert no_temporary_files(run)


@pytest.mark.parametrize(
    "left",
    ["config", ".config-abc123.tmp.json", "input/.frame-000000-abc123.tmp.png", "input/frame-000005.png"],
)
def test_killed_while_it_began(
    trained_once: Path, trained: Path, photo: Path, train: Command, left: str
) -> None:
    """What a start leaves that was cut off before config.json was there is begun anew."""
    for name in ("checkpoints", "snapshots", "samples"):
        shutil.rmtree(trained / name)
        (trained / name).mkdir()
    for name in ("config.json", "stats.jsonl", "model/model.safetensors"):
        (trained / name).unlink()
    if left != "config":
        (trained / left).write_bytes(png_bytes(scene(32, 40, seed=9)))
    assert train(photo, "--out", trained, "--steps", 4, *OFTEN).code == 0
    outcome = train(photo, "--out", trained, "--steps", TRAINED_STEPS)
    assert outcome.code == 0, outcome.err
    assert_same_run(trained, trained_once)
    assert no_temporary_files(trained)


# --- damaged checkpoints ---


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def other_network(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["method"]["G"] = {name: tensor[:1] for name, tensor in state["method"]["G"].items()}
    torch.save(state, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "a list": lambda path: torch.save([1, 2], path),
    "half of it": lambda path: torch.save({"step": 8, "seconds": 1.0, "method": {"G": {}}}, path),
    "another network": other_network,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trained: Path, photo: Path, train: Command, command: Command, tree: Show, damage: Callable[[Path], object]
) -> None:
    assert train(photo, "--out", "whole", "--steps", 9, *OFTEN).code == 0
    damage(newest(trained))
    outcome = command("train", photo, "--out", trained, "--steps", 9)
    assert outcome.code == 0, outcome.err
    used, first, second, *_ = outcome.err.splitlines()
    assert used == f"{trained}: preset preview; cpu, fp32, 1 thread"
    assert "8" in first
    assert "checkpoint" in first
    assert "the one before" in first
    assert second == "going on from step 6"
    assert weights(trained) == weights(Path("whole"))
    assert stats(trained) == stats(Path("whole"))

    # and with none left: an error, and nothing is touched
    shutil.rmtree(trained)
    shutil.copytree("whole", trained)
    for path in (trained / "checkpoints").iterdir():
        damage(path)
    before = tree(Path())
    assert "checkpoint" in command("train", photo, "--out", trained, "--steps", 12).late_error
    assert tree(Path()) == before
    assert "9 steps" in command("train", photo, "--out", trained, "--steps", 9).err


# --- finished runs ---


def test_a_finished_run_says_so_and_is_left_as_it_is(
    trained: Path, photo: Path, train: Command, command: Command, tree: Show
) -> None:
    before = tree(Path())
    for outcome in (
        command("train", photo, "--out", trained),
        train(photo, "--out", trained, "--steps", TRAINED_STEPS, *OFTEN),
    ):
        assert outcome.code == 0
        assert outcome.out == "run\n"
        assert "finished" in outcome.err
        assert "--steps" in outcome.err
        assert outcome.err.count("\n") == 1
        assert tree(Path()) == before


def test_more_steps_extend_to_the_longer_run(
    trained: Path, photo: Path, train: Command, command: Command
) -> None:
    assert train(photo, "--out", "whole", "--steps", 12, *OFTEN).code == 0
    assert command("train", photo, "--out", trained, "--steps", 12).code == 0
    assert_same_run(trained, Path("whole"))
    assert Run.open(trained).settings == Run.open(Path("whole")).settings
    # and the same command as for the longer run finds it finished
    assert "finished" in train(photo, "--out", trained, "--steps", 12, *OFTEN).err


# --- two at once ---


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_second_of_two_trainings_is_refused(photo: Path, train: Command, start: Start) -> None:
    flags = ("--steps", 25, "--log-every", 1)
    assert train(photo, "--out", "whole", *flags).code == 0
    first = start("train", photo, "--out", "run", *flags, *TINY)
    wait_for(lambda: bool(stats(Path("run"))), first)
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end meanwhile
    try:
        message = train(photo, "--out", "run", *flags).error
        more = train(photo, "--out", "run", "--steps", 50).error
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert "another training" in message
    assert "run" in message
    assert "another training" in more
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert out == "run\n"
    assert_same_run(Path("run"), Path("whole"))


def test_a_new_run_is_held_too(photo: Path, train: Command, tree: Show) -> None:
    """Before config.json is there: the second must not begin in the same folder."""
    with Run(Path("run")).locked():
        before = tree(Path())
        assert "another training" in train(photo, "--out", "run", "--steps", 1).error
        assert tree(Path()) == before
    assert train(photo, "--out", "run", "--steps", 1).code == 0


# --- asked to stop ---


def test_ctrl_c_saves_and_the_same_command_goes_on(photo: Path, train: Command, start: Start) -> None:
    flags = ("--steps", 25, "--log-every", 1)
    assert train(photo, "--out", "whole", *flags).code == 0
    process = start("train", photo, "--out", "run", *flags, *TINY)
    wait_for(lambda: len(stats(Path("run"))) >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    step = max(Run(Path("run")).checkpoint_steps())
    assert 2 <= step < 25
    assert err.splitlines()[-1] == f"stopped at step {step} of 25; the same command goes on from there"

    outcome = train(photo, "--out", "run", *flags)
    assert outcome.code == 0
    assert f"going on from step {step}" in outcome.err
    assert_same_run(Path("run"), Path("whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_step_lets_it_end(
    trained_once: Path,
    photo: Path,
    train: Command,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with signal_at_step(monkeypatch, 5, number):
        outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err.splitlines()[-1] == "stopped at step 5 of 8; the same command goes on from there"
    assert Run(Path("run")).checkpoint_steps() == [2, 4, 5]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert command("train", photo, "--out", "run").code == 0
    assert_same_run(Path("run"), trained_once)


def test_ctrl_c_pressed_twice_is_pressed_once(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signal_at_step(monkeypatch, 5, signal.SIGINT, signal.SIGINT):
        outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert outcome.code == 130
    assert Run(Path("run")).checkpoint_steps() == [2, 4, 5]


def test_an_impatient_ctrl_c_interrupts_at_once_and_says_what_is_kept(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "IMPATIENCE", -1.0)
    with signal_at_step(monkeypatch, 5, signal.SIGINT, signal.SIGINT):
        outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert outcome.code == 130
    assert Run(Path("run")).checkpoint_steps() == [0, 2, 4]
    assert outcome.err.splitlines()[-1] == "interrupted at once; the same command goes on from step 4"


def test_a_signal_during_the_last_step_finishes_the_run(
    trained_once: Path, photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signal_at_step(monkeypatch, TRAINED_STEPS, signal.SIGINT):
        outcome = train(photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert outcome.code == 0
    assert outcome.out == "run\n"
    assert_same_run(Path("run"), trained_once)


@contextmanager
def signal_at_step(monkeypatch: pytest.MonkeyPatch, at: int, *numbers: signal.Signals) -> Iterator[None]:
    original = OneShot.step

    def step(self: OneShot, step: int) -> dict[str, Tensor]:
        if step == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(OneShot, "step", step)
        yield


# --- the source and the input ---


def test_a_source_that_is_gone_is_not_needed(
    trained: Path, photo: Path, train: Command, command: Command
) -> None:
    assert train(photo, "--out", "whole", "--steps", 10, *OFTEN).code == 0
    photo.unlink()
    outcome = command("train", photo, "--out", trained, "--steps", 10)
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[0] == "scene.png is gone; going on from the images in run/input"
    assert weights(trained) == weights(Path("whole"))


INPUTS: dict[str, Callable[[Path], object]] = {
    "another picture": lambda path: path.write_bytes(png_bytes(scene(32, 40, seed=5))),
    "another size": lambda path: path.write_bytes(png_bytes(scene(64, 80))),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", INPUTS.values(), ids=INPUTS)
def test_a_changed_input_is_refused(
    trained: Path, photo: Path, command: Command, tree: Show, change: Callable[[Path], object]
) -> None:
    change(trained / "input" / "frame-000000.png")
    before = tree(Path())
    assert "input" in command("train", photo, "--out", trained, "--steps", 20).error
    assert tree(Path()) == before


# --- another machine ---


@pytest.mark.parametrize(
    ("flags", "says"),
    [(("--threads", "2"), "threads 1 -> 2"), (("--precision", "bf16"), "precision fp32 -> bf16")],
)
def test_another_machine_is_allowed_and_told(
    trained: Path, photo: Path, command: Command, flags: tuple[str, ...], says: str
) -> None:
    outcome = command("train", photo, "--out", trained, "--steps", 9, *flags)
    assert outcome.code == 0, outcome.err
    told = [line for line in outcome.err.splitlines() if says in line]
    assert len(told) == 1
    assert "bit-equal" in told[0]
    machines = Run.open(trained).record["machines"]
    assert [machine["from_step"] for machine in machines] == [0, 8]
    # told once
    again = command("train", photo, "--out", trained, "--steps", 10)
    assert again.code == 0
    assert says not in again.err
    assert len(Run.open(trained).record["machines"]) == 2


def test_how_often_something_is_written_changes_nothing_else(
    trained_once: Path, photo: Path, train: Command, command: Command
) -> None:
    seldom = (
        "--log-every",
        "7",
        "--checkpoint-every",
        "100",
        "--snapshot-every",
        "100",
        "--sample-every",
        "100",
    )
    assert train(photo, "--out", "run", "--steps", 3, *seldom).code == 0
    outcome = command("train", photo, "--out", "run", "--steps", TRAINED_STEPS, *OFTEN)
    assert outcome.code == 0
    assert "bit-equal" not in outcome.err
    assert weights(Path("run")) == weights(trained_once)
    assert len(Run.open(Path("run")).record["machines"]) == 1


# --- a full disk ---


def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(
    trained: Path, trained_once: Path, photo: Path, train: Command, start: Start, tree: Show
) -> None:
    """The size of files is limited below that of a checkpoint, as a full disk would do it."""
    assert train(photo, "--out", "whole", "--steps", 12, *OFTEN).code == 0
    size = newest(trained).stat().st_size // 2
    process = start(
        "train",
        photo,
        *("--out", trained, "--steps", 12),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: cannot write")
    assert "step-000010.pt" in last
    assert no_temporary_files(trained)
    for name in ("step-000004.pt", "step-000006.pt", "step-000008.pt"):
        path = Path("checkpoints") / name
        assert (trained / path).read_bytes() == (trained_once / path).read_bytes()
    outcome = train(photo, "--out", trained, "--steps", 12)
    assert outcome.code == 0, outcome.err
    assert "going on from step 8" in outcome.err
    assert_same_run(trained, Path("whole"))
