"""The command from end to end, on made and on provided pictures; what goes to stdout and to stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Command, png_bytes, scene
from PIL import Image

from oneshotgan import config
from oneshotgan.run import Run

PHOTOS = ("balloons.png", "birds.png", "colusseum.png", "cows.png", "mountains.jpg")
BRIEF = ("--steps", "2", "--base-width", "4", "--threads", "1")


# --- stdout is the answer, stderr the progress ---


def test_train_then_sample(photo: Path, train: Command, command: Command) -> None:
    outcome = train(photo, "--steps", 3, "--log-every", 1)
    assert outcome.code == 0
    assert outcome.out == "runs/scene-oneshot\n"
    first, second, *steps, last = outcome.err.splitlines()
    assert first.startswith("preset preview")
    assert "cpu, fp32, 1 thread" in first
    assert second == "scene: one image at 40x32 pixels, 6% narrower than the source -> runs/scene-oneshot"
    assert [line.split()[:2] for line in steps] == [["step", f"{step}/3"] for step in (1, 2, 3)]
    assert all("loss_G" in line and "left" in line for line in steps)
    assert last == "finished 3 steps: runs/scene-oneshot"
    assert "\x1b" not in outcome.err  # a log file is no terminal

    outcome = command("sample", "runs/scene-oneshot", "--count", 2)
    assert (outcome.code, outcome.out, outcome.err) == (0, "runs/scene-oneshot/generated\n", "")


def test_through_a_process(photo: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "oneshotgan", *words]
        return subprocess.run(program, capture_output=True, text=True, timeout=120)

    trained = run("train", "scene.png", "--out", "run", "--steps", "1", *TINY)
    assert (trained.returncode, trained.stdout) == (0, "run\n"), trained.stderr
    drawn = run("sample", "run", "--grid", "grid.png")
    assert (drawn.returncode, drawn.stdout, drawn.stderr) == (0, "grid.png\n", "")
    with Image.open("grid.png") as image:
        assert image.size[0] > 4 * 40


def test_the_preset_is_chosen_by_the_machine(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = train(photo, "--steps", 1)
    assert "preset preview (no CUDA device" in outcome.err
    assert Run.open("runs/scene-oneshot").settings.preset == "preview"
    outcome = train(photo, "--steps", 1, "--preset", "paper", "--out", "full")
    assert "preset paper (as asked)" in outcome.err
    assert Run.open("full").settings.model.ema_decay == 0.9999


@pytest.mark.parametrize("preset", config.PRESETS)
def test_settings_prints_a_file_to_train_with(workdir: Path, command: Command, preset: str) -> None:
    outcome = command("settings", preset)
    assert (outcome.code, outcome.err) == (0, "")
    assert tomllib.loads(outcome.out)["preset"] == preset
    Path("mine.toml").write_text(outcome.out)
    choices, overrides = config.load_file("mine.toml")
    assert config.with_overrides(config.preset(choices["preset"]), overrides) == config.preset(preset)
    content = json.loads(command("settings", preset, "--json").out)
    assert config.from_dict(content) == config.preset(preset)


def help_of(name: str) -> str:
    """The help of a command, so wide that no flag is broken in two."""
    words = [sys.executable, "-m", "oneshotgan", name, "--help"]
    wide = os.environ | {"COLUMNS": "160"}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=wide).stdout


def test_every_setting_is_a_flag_with_its_help() -> None:
    helped = help_of("train")
    for name in config.FIELDS:
        flag = "--" + name.replace("_", "-")
        assert flag in helped, flag
    sampled = help_of("sample")
    for flag in ("--count", "--seed", "--out", "--grid", "--interpolate", "--truncation", "--step"):
        assert flag in sampled


def test_switches_have_a_no(photo: Path, train: Command) -> None:
    assert train(photo, "--out", "run", "--steps", 1, "--no-content-branch").code == 0
    assert Run.open("run").settings.model.content_branch is False


def test_a_reader_that_goes_away_is_no_failure(trained: Path) -> None:
    """As in ``oneshotgan settings | head -1``."""
    program = f"{sys.executable} -m oneshotgan settings --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_animation_and_a_video_are_clips(workdir: Path, command: Command) -> None:
    from oneshotgan import media

    frames = np.stack([scene(48, 64, seed) for seed in range(6)])
    for name in ("clip.mp4", "clip.gif", "clip.webp"):
        media.write_animation(Path(name), frames, 10)
        outcome = command("train", name, "--out", f"run-{name}", *BRIEF, "--short-size", 32)
        assert outcome.code == 0, outcome.err
        assert "clip: 6 frames at 40x32 pixels" in outcome.err
        assert Run.open(f"run-{name}").frames().shape == (6, 32, 40, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 512), (300, 33), (50, 120)])
def test_odd_shapes_train_and_sample(workdir: Path, command: Command, height: int, width: int) -> None:
    Path("odd.png").write_bytes(png_bytes(scene(height, width)))
    outcome = command("train", "odd.png", "--out", "run", *BRIEF, "--short-size", 32)
    assert outcome.code == 0, outcome.err
    assert command("sample", "run", "--count", 1, "--out", "drawn").code == 0
    with Image.open("drawn/seed-000000.png") as image:
        assert image.width / image.height == pytest.approx(width / height, rel=0.1)


# --- provided pictures ---


@pytest.mark.parametrize("name", PHOTOS)
def test_each_provided_photo(workdir: Path, command: Command, test_data: Path, name: str) -> None:
    outcome = command("train", test_data / "data" / "images" / name, *BRIEF, "--short-size", 48)
    assert outcome.code == 0, outcome.err
    run = Path(outcome.out.rstrip("\n"))
    assert run == Path("runs") / f"{Path(name).stem}-oneshot"
    outcome = command("sample", run, "--count", 4, "--grid", "grid.png")
    assert outcome.code == 0, outcome.err
    height, width = Run.open(run).frames().shape[1:3]
    source = Run.open(run).record["source"]["size"]
    assert width / height == pytest.approx(source[1] / source[0], rel=0.1)
    with Image.open("grid.png") as grid:
        assert grid.width >= width
        assert np.asarray(grid).std() > 1


def test_a_provided_clip(workdir: Path, command: Command, test_data: Path) -> None:
    frames = test_data / "data" / "davis" / "blackswan" / "frames"
    outcome = command("train", frames, "--out", "run", *BRIEF, "--short-size", 48, "--max-frames", 8)
    assert outcome.code == 0, outcome.err
    assert "8 of them used" in outcome.err
    run = Run.open("run")
    assert run.record["frames"]["count"] == 8
    assert run.record["source"]["size"] == [480, 854]
    again = command("train", frames, "--out", "run", "--steps", 3)
    assert again.code == 0, again.err
    assert "going on from step 2" in again.err
    assert command("sample", "run", "--count", 9, "--grid", "grid.png").code == 0
    with Image.open("grid.png") as grid, Image.open("run/reals.png") as reals:
        assert grid.size[0] > 0
        assert reals.size[0] > 0


def test_a_settings_file_and_a_flag_must_agree_on_the_preset(photo: Path, command: Command) -> None:
    Path("mine.toml").write_text(command("settings", "preview").out)
    refused = command("train", photo, "--config", "mine.toml", "--preset", "paper")
    assert "--preset" in refused.error
    assert not Path("runs").exists()


def test_a_clip_gets_the_settings_of_clips_and_flags_win(workdir: Path, train: Command) -> None:
    folder = Path("clip")
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.png").write_bytes(png_bytes(scene(32, 40, k)))
    assert train(folder, "--steps", 1, "--out", "clip-run").code == 0
    assert train(folder / "0.png", "--steps", 1, "--out", "photo-run").code == 0
    assert train(folder, "--steps", 1, "--out", "own", "--diversity-weight", 0.3).code == 0
    strengths = [Run.open(run).settings.model.diversity_weight for run in ("clip-run", "photo-run", "own")]
    assert strengths == [0.15, 0.4, 0.3]
    assert train(folder, "--steps", 2, "--out", "clip-run").code == 0
