"""What every method can do through the command: train, stop and go on, sample, measure, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image

import oneshotgan
from oneshotgan import config
from oneshotgan.methods import METHODS
from oneshotgan.run import Run

TINY = {
    "singan": ("--base-width", "4", "--short-size", "32", "--min-size", "12", "--scales", "3"),
    "fastgan": ("--base-width", "4", "--short-size", "32", "--no-reconstruction", "--batch-size", "2"),
}
COMMON = ("--threads", "1", "--checkpoint-every", "2", "--sample-every", "3", "--snapshot-every", "3")
STEPS = 12

compared = pytest.mark.parametrize("method", sorted(TINY))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, photo_bytes: bytes, command: Command) -> dict[str, Path]:
    """A finished run of each method, for reading only."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "scene.png").write_bytes(photo_bytes)
    for method, tiny in TINY.items():
        out = folder / method
        words = ("train", folder / "scene.png", "--method", method, "--out", out, "--steps", STEPS)
        outcome = command(*words, *tiny, *COMMON)
        assert outcome.code == 0, outcome.err
    return {method: folder / method for method in TINY}


def weights(run: Path) -> dict[str, torch.Tensor]:
    steps = Run.open(run).checkpoint_steps()
    state = Run.open(run).read_checkpoint(steps[-1], torch.device("cpu"))["method"]
    return {name: torch.as_tensor(value) for name, value in flat(state)}


def flat(value: object, name: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [item for key, entry in value.items() for item in flat(entry, f"{name}/{key}")]
    if isinstance(value, list | tuple):
        return [item for key, entry in enumerate(value) for item in flat(entry, f"{name}/{key}")]
    return [] if value is None else [(name, value)]


@pytest.mark.parametrize("method", ["oneshot", *sorted(TINY)])
def test_a_file_of_settings_goes_on_with_its_run(method: str, photo: Path, command: Command) -> None:
    """What a method fills in by itself does not count as a change."""
    Path("full.toml").write_text(command("settings", "preview", "--method", method).out)
    tiny = [word for word in TINY.get(method, ("--base-width", "4")) if word not in ("--scales", "3")]
    words = ("train", photo, "--config", "full.toml", "--steps", 2, "--out", "run", *tiny)
    for said in ("finished", "is finished"):
        outcome = command(*words)
        assert outcome.code == 0, outcome.err
        assert said in outcome.err


def test_singan_refuses_what_its_discriminator_cannot_see(workdir: Path, command: Command) -> None:
    Image.fromarray(np.zeros((40, 640, 3), np.uint8)).save("wide.png")
    outcome = command("train", "wide.png", "--method", "singan", "--max-size", 100, "--out", "run")
    assert "100x7 pixels" in outcome.error
    assert not Path("run").exists()


@compared
def test_a_run_names_its_method_and_holds_whole_settings(runs: dict[str, Path], method: str) -> None:
    run = Run.open(runs[method])
    assert run.settings.method == method
    assert isinstance(run.settings.model, config.MODELS[method])
    assert [line["step"] for line in run.stats()][-1] == STEPS
    assert set(METHODS[method].loss_names) >= {"loss_G", "loss_D"}


@compared
@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_a_run_that_was_stopped_gives_the_same_weights(
    runs: dict[str, Path],
    method: str,
    stop: int,
    photo: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = METHODS[method].step

    def stopping(self: object, step: int) -> dict[str, torch.Tensor]:
        if step == stop + 1:
            raise KeyboardInterrupt
        result: dict[str, torch.Tensor] = made(self, step)
        return result

    words = ("train", photo, "--method", method, "--out", "run", "--steps", STEPS, *TINY[method], *COMMON)
    with monkeypatch.context() as patch:
        patch.setattr(METHODS[method], "step", stopping)
        assert command(*words).code == 130
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    ours, whole = weights(Path("run")), weights(runs[method])
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_more_steps_extend_fastgan_and_are_refused_by_singan(
    runs: dict[str, Path], photo: Path, command: Command
) -> None:
    for method in TINY:
        words = ("train", photo, "--method", method, "--out", method, *TINY[method], *COMMON)
        assert command(*words, "--steps", 4).code == 0
        outcome = command(*words, "--steps", STEPS)
        if method == "singan":
            assert "divides its steps among its scales" in outcome.error
        else:
            assert outcome.code == 0
            ours, whole = weights(Path(method)), weights(runs[method])
            assert all(torch.equal(ours[name], whole[name]) for name in whole)


@compared
def test_one_seed_is_one_image(runs: dict[str, Path], method: str) -> None:
    gan = oneshotgan.OneShotGAN.from_pretrained(runs[method])
    together = gan.sample(range(5)).astype(int)
    alone = gan.sample([3]).astype(int)
    assert np.abs(together[3] - alone[0]).max() <= 1
    assert not np.array_equal(together[0], together[1])
    assert np.array_equal(gan.sample([2], truncation=0), gan.sample([4], truncation=0))
    assert gan.interpolate(0, 1, 3).shape == (3, *gan.size, 3)


@compared
def test_sample_evaluate_and_report(
    runs: dict[str, Path], method: str, workdir: Path, command: Command, with_weights: Path
) -> None:
    import shutil

    shutil.copytree(runs[method], "run")
    assert command("sample", "run", "--count", 2, "--step", 6, "--out", "new").code == 0
    assert len(list(Path("new").glob("*.png"))) == 2
    outcome = command("evaluate", "run", "--count", 4, "--json")
    assert outcome.code == 0, outcome.err
    assert {figure["direction"] for figure in json.loads(outcome.out)["figures"]} == {"↑", "↓"}
    assert command("evaluate", "run", "--all", "--count", 2).code == 0
    assert command("report", "run").code == 0
    assert method in Path("report.html").read_text(encoding="utf-8")


def test_singan_draws_other_sizes_and_the_others_say_that_they_do_not(
    runs: dict[str, Path], workdir: Path, command: Command
) -> None:
    outcome = command("sample", runs["singan"], "--size", "96x33", "--count", 1, "--out", "wide")
    assert outcome.code == 0, outcome.err
    with Image.open("wide/seed-000000.png") as image:
        assert image.size == (96, 33)
    assert "fastgan draws one size" in command("sample", runs["fastgan"], "--size", "96x33").error
    assert "write it as 400x120" in command("sample", runs["singan"], "--size", "96").error
    assert "pixels" in command("sample", runs["singan"], "--size", "96x3").error


@compared
def test_settings_of_another_method_are_refused(method: str, photo: Path, command: Command) -> None:
    outcome = command("train", photo, "--method", method, "--diversity-weight", 1)
    assert outcome.error == f"setting diversity_weight belongs to the method oneshot, not to {method}"
    assert not Path("runs").exists()
    assert "fp32" in command("train", photo, "--method", method, "--precision", "bf16", *TINY[method]).error


@compared
@pytest.mark.parametrize("preset", config.PRESETS)
def test_settings_prints_a_file_to_train_with(
    workdir: Path, command: Command, method: str, preset: str
) -> None:
    Path("mine.toml").write_text(command("settings", preset, "--method", method).out)
    choices, overrides = config.load_file("mine.toml")
    assert config.with_overrides(
        config.preset(choices["preset"], choices["method"]), overrides
    ) == config.preset(preset, method)


@compared
def test_a_damaged_model_is_refused(
    runs: dict[str, Path], method: str, workdir: Path, command: Command, tree: object
) -> None:
    import shutil

    shutil.copytree(runs[method], "run")
    file = Path("run/model/config.json")
    content = json.loads(file.read_text())
    content["model"]["base_width"] = 8
    file.write_text(json.dumps(content))
    assert "does not fit" in command("sample", "run").error


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (64, 640), (185, 330)])
@compared
def test_any_size_trains(method: str, size: tuple[int, int], workdir: Path, command: Command) -> None:
    from conftest import png_bytes, scene

    Path("photo.png").write_bytes(png_bytes(scene(*size)))
    tiny = TINY[method]
    outcome = command("train", "photo.png", "--method", method, "--steps", 3, *tiny, "--threads", 1)
    assert outcome.code == 0, outcome.err
    height, width = Run.open(f"runs/photo-{method}").record["frames"]["size"]
    assert abs((width / height) / (size[1] / size[0]) - 1) < 0.1
