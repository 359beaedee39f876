"""`oneshotgan evaluate`: figures of a run, of any images, of all snapshots; what lands in metrics.json."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Tree, scene
from hypothesis import given
from hypothesis import strategies as st

from oneshotgan import media, metrics
from oneshotgan.errors import UserError
from oneshotgan.metrics import evaluate, figures
from oneshotgan.metrics.evaluate import choose_best, unbeaten
from oneshotgan.metrics.figures import Networks, Reference, measure
from oneshotgan.run import Run
from oneshotgan.sampling import OneShotGAN

NAMES = {"sifid64", "sifid192", "lpips_alex", "ms_ssim_2scale", "dist_to_train_alex", "aligned_dist_alex"}


def entries(path: Path | str) -> dict[str, dict[str, object]]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in content["figures"]}


def plain(name: str) -> str:
    """A figure's name without what the random weights' checksums add."""
    for stem in ("sifid64", "sifid192", "lpips_alex", "dist_to_train_alex", "aligned_dist_alex"):
        if name.startswith(stem):
            return stem + ("_released" if name.endswith("released") else "")
    return name


# --- a run ---


def test_a_run(trained: Path, command: Command, with_weights: Path) -> None:
    outcome = command("evaluate", trained, "--count", "6")
    assert outcome.code == 0, outcome.err
    found = entries(trained / "metrics.json")
    assert {plain(name) for name in found} == NAMES
    for name, entry in found.items():
        assert f"{name} {entry['direction']}" in outcome.out
        assert f"{entry['value']:.4f}" in outcome.out
        assert entry["count"] == 6
        assert entry["size"] == [32, 40]
        assert entry["seeds"] == [0, 5]
        assert isinstance(entry["standard_error"], float)
        if name.startswith("ms_ssim"):
            assert entry["weights"] is None
        else:
            assert len(entry["weights"]["sha256"]) == 64  # type: ignore[index,arg-type]
            assert entry["weights"]["sha256"][:8] in name  # type: ignore[index]
    directions = {plain(name): entry["direction"] for name, entry in found.items()}
    assert [directions[n] for n in ("sifid64", "lpips_alex", "ms_ssim_2scale", "dist_to_train_alex")] == list(
        "↓↑↓↑"
    )


def test_the_values_are_those_of_the_functions(
    trained: Path, command: Command, alex: metrics.LPIPS, stem: metrics.InceptionStem, with_weights: Path
) -> None:
    command("evaluate", trained, "--count", "5")
    found = {plain(name): entry["value"] for name, entry in entries(trained / "metrics.json").items()}
    fake = torch.from_numpy(OneShotGAN.from_pretrained(trained).sample(range(5)))
    real = torch.from_numpy(Run.open(trained).frames())
    assert found == {
        "sifid64": pytest.approx(metrics.sifid(fake, real, stem).mean().item(), rel=1e-6),
        "sifid192": pytest.approx(metrics.sifid(fake, real, stem, 192).mean().item(), rel=1e-6),
        "lpips_alex": pytest.approx(metrics.lpips_diversity(fake, alex), rel=1e-6),
        "ms_ssim_2scale": pytest.approx(metrics.ms_ssim_diversity(fake), rel=1e-6),
        "dist_to_train_alex": pytest.approx(
            metrics.distance_to_train(fake, real, alex).distance.mean().item(), rel=1e-6
        ),
        "aligned_dist_alex": pytest.approx(
            torch.minimum(
                metrics.aligned_distance(fake, real, alex).distance,
                metrics.distance_to_train(fake, real, alex).distance,
            ).mean().item(),
            rel=1e-6,
        ),
    }  # fmt: skip


def test_json_is_what_the_file_holds(trained: Path, command: Command, with_weights: Path) -> None:
    outcome = command("evaluate", trained, "--count", "3", "--json")
    assert json.loads(outcome.out) == json.loads((trained / "metrics.json").read_text(encoding="utf-8"))


def test_the_released_protocol_adds_its_variants(trained: Path, command: Command, with_weights: Path) -> None:
    command("evaluate", trained, "--count", "4", "--protocol", "released")
    found = {plain(name) for name in entries(trained / "metrics.json")}
    assert found == NAMES | {"sifid64_released", "lpips_alex_released", "dist_to_train_alex_released"}


def test_a_terminal_without_arrows(trained: Path, start: Callable[..., Any], with_weights: Path) -> None:
    process = start("evaluate", trained, "--count", "2", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "(less is better)" in out


def test_a_snapshot_has_a_file_of_its_own(trained: Path, command: Command, with_weights: Path) -> None:
    assert command("evaluate", trained, "--count", "3", "--step", "4").code == 0
    assert not (trained / "metrics.json").exists()
    assert json.loads((trained / "metrics-step-000004.json").read_text(encoding="utf-8"))["step"] == 4


def test_without_weights_the_rest_is_given(
    trained: Path, command: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(workdir))
    outcome = command("evaluate", trained, "--count", "4")
    assert outcome.code == 0
    assert set(entries(trained / "metrics.json")) == {"ms_ssim_2scale"}
    lines = [line for line in outcome.err.splitlines() if not line.startswith("measuring")]
    assert len(lines) == 2
    for line, name in zip(
        lines, ("inception_v3_google-0cc3c7bd.pth", "alexnet-owt-7be5be79.pth"), strict=True
    ):
        for part in (
            "left out",
            f"https://download.pytorch.org/models/{name}",
            str(workdir),
            "ONESHOTGAN_WEIGHTS",
        ):
            assert part in line


def test_better_figures_are_kept_where_weights_are_missing(
    trained: Path, command: Command, with_weights: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("evaluate", trained, "--count", "3")
    before = (trained / "metrics.json").read_bytes()
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(workdir))
    outcome = command("evaluate", trained, "--count", "3")
    assert outcome.code == 0
    assert "metrics.json is kept" in outcome.err
    assert (trained / "metrics.json").read_bytes() == before


def test_figures_that_are_replaced_by_fewer_are_told(
    trained: Path, command: Command, with_weights: Path
) -> None:
    assert command("evaluate", trained, "--count", 3, "--protocol", "released").code == 0
    held = len(json.loads((trained / "metrics.json").read_text())["figures"])
    line = f"metrics.json held {held} figures of 3 samples; these take their place\n"
    assert line in command("evaluate", trained, "--count", 3).err
    assert "take their place" not in command("evaluate", trained, "--count", 3).err
    assert "take their place" not in command("evaluate", trained, "--count", 4).err
    assert "of 4 samples; these take their place" in command("evaluate", trained, "--count", 2).err


def test_arrays_are_taken_as_they_come_from_sampling(
    trained: Path, alex: metrics.LPIPS, stem: metrics.InceptionStem
) -> None:
    fake, real = OneShotGAN.from_pretrained(trained).sample(range(3)), Run.open(trained).frames()
    assert metrics.lpips_diversity(fake, alex) == metrics.lpips_diversity(torch.from_numpy(fake), alex)
    assert metrics.ms_ssim_diversity(fake) < 1
    assert metrics.sifid(fake, real, stem).shape == (3,)
    assert metrics.distance_to_train(fake, real, alex).distance.shape == (3,)
    assert metrics.aligned_distance(fake, real, alex).distance.shape == (3,)
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\)"):
        metrics.ms_ssim_diversity(fake[0])


# --- any images ---


@pytest.fixture
def folders(workdir: Path) -> Path:
    """``fake`` with seven images of 40×56 and a text, ``real.png`` of 80×112."""
    (workdir / "fake").mkdir()
    for seed in range(7):
        media.write_png(workdir / "fake" / f"{seed}.png", scene(40, 56, seed))
    (workdir / "fake" / "notes.txt").write_text("not an image")
    media.write_png("real.png", scene(80, 112))
    return workdir


def test_any_images(
    folders: Path, command: Command, with_weights: Path, tree: Callable[[Path], Tree]
) -> None:
    before = tree(folders)
    outcome = command("evaluate", "--fake", "fake", "--real", "real.png", "--json")
    assert outcome.code == 0, outcome.err
    assert "notes.txt" in outcome.err
    content = json.loads(outcome.out)
    assert {plain(entry["name"]) for entry in content["figures"]} == NAMES
    assert all(entry["count"] == 7 and entry["seeds"] is None for entry in content["figures"])
    assert tree(folders) == before


def test_a_run_and_its_samples_as_a_folder_agree(trained: Path, command: Command, with_weights: Path) -> None:
    command("sample", trained, "--count", "4", "--out", "drawn")
    one = json.loads(command("evaluate", trained, "--count", "4", "--json").out)
    other = json.loads(command("evaluate", "--fake", "drawn", "--real", trained / "input", "--json").out)
    for a, b in zip(one["figures"], other["figures"], strict=True):
        assert (a["name"], pytest.approx(a["value"], rel=1e-6)) == (b["name"], b["value"])


def test_a_clip_as_the_real_source(folders: Path, command: Command, with_weights: Path) -> None:
    frames = np.stack([scene(64, 64, seed) for seed in range(6)])
    media.write_animation("clip.mp4", frames)
    outcome = command("evaluate", "--fake", "fake", "--real", "clip.mp4", "--json")
    assert "squeezed from 64x64 to 56x40" in outcome.err
    sifid = json.loads(outcome.out)["figures"][0]
    assert sifid["reals"] == "mean over all 6 training frames"


def test_the_released_sifid_sees_the_first_frame_alone(
    stem: metrics.InceptionStem, alex: metrics.LPIPS
) -> None:
    fake, real = (
        torch.from_numpy(np.stack([scene(seed=s) for s in seeds])) for seeds in (range(3), range(5, 9))
    )
    networks = Networks(stem, alex)
    found = measure(fake, Reference.of(real, networks), networks, released=True)
    values = {plain(figure.name): figure.value for figure in found.figures}
    assert values["sifid64_released"] == pytest.approx(metrics.sifid(fake, real[:1], stem).mean().item())
    assert values["sifid64"] == pytest.approx(metrics.sifid(fake, real, stem).mean().item())


def test_the_released_lpips_is_lower(golden: object, test_data: Path) -> None:
    """It feeds the network half the contrast."""
    photos = [
        media.read_frames(p, lambda _: (64, 96)).images for p in sorted((test_data / "data/images").iterdir())
    ]
    fake = torch.from_numpy(np.concatenate(photos))
    networks = Networks(None, metrics.LPIPS.load())
    found = measure(fake, Reference.of(fake[:1], networks), networks, released=True)
    values = {figure.name: figure.value for figure in found.figures}
    assert 0.7 * values["lpips_alex"] < values["lpips_alex_released"] < 0.99 * values["lpips_alex"]
    assert {"ms_ssim_3scale", "dist_to_train_alex_k8", "dist_to_train_alex_released"} < set(values)


# --- all snapshots, and the best of them ---


def test_all_snapshots_and_the_best(
    trained: Path, command: Command, with_weights: Path, tree: Callable[[Path], Tree]
) -> None:
    assert "--all" in command("sample", trained, "--step", "best").error
    outcome = command("evaluate", trained, "--all", "--count", "4")
    assert outcome.code == 0, outcome.err
    content = json.loads((trained / "metrics-all.json").read_text(encoding="utf-8"))
    steps = Run(trained).snapshot_steps()
    assert [row["step"] for row in content["steps"]] == steps
    marked = [row["step"] for row in content["steps"] if row["unbeaten"]]
    assert content["best"] in marked
    lines = outcome.out.splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == steps
    assert [line.endswith("best") for line in lines].index(True) == steps.index(content["best"])

    command("sample", trained, "--count", "1", "--step", "best", "--out", "best")
    command("sample", trained, "--count", "1", "--step", str(content["best"]), "--out", "named")
    assert tree(Path("best")) == tree(Path("named"))

    shutil.copy(trained / "model/model.safetensors", trained / "snapshots/step-000010.safetensors")
    assert "other snapshots" in command("sample", trained, "--step", "best").error


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8)


@given(POINTS)
def test_what_is_unbeaten(points: list[tuple[float, float]]) -> None:
    front = unbeaten(points)
    assert front
    for i, (cost, gain) in enumerate(points):
        beaten = any((c < cost and g >= gain) or (c <= cost and g > gain) for c, g in points)
        assert (i in front) == (not beaten)
    assert choose_best(points) in front


def test_the_best_is_the_most_varied_of_the_good_ones() -> None:
    assert choose_best([(4.0, 0.9), (1.2, 0.3), (1.0, 0.2), (1.3, 0.4)]) == 1
    assert choose_best([(1.1, 0.1), (1.0, 0.2)]) == 1
    assert choose_best([(3.0, 0.5)]) == 0
    assert choose_best([(1.0, 0.5), (1.0, 0.5)]) == 1  # of equals the latest
    assert choose_best([(0.0, 0.1), (0.1, 0.9)]) == 0


# --- during training ---


def test_figures_during_training(photo: Path, train: Command, with_weights: Path) -> None:
    flags = ("--steps", "6", "--evaluate-every", "4", "--log-every", "3")
    assert train(photo, "--out", "run", *flags).code == 0
    lines = [json.loads(line) for line in Path("run/stats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], "figures" in line) for line in lines] == [(3, False), (4, True), (6, True)]
    for name in lines[1]["figures"]:
        assert name.startswith(("sifid64_", "lpips_alex_"))
        assert name.endswith("_small")

    plain = ("--steps", "6", "--log-every", "3")
    assert train(photo, "--out", "plain", *plain).code == 0
    for name in ("model/model.safetensors", "samples/step-000006.png"):  # measuring changes nothing
        assert Path("run", name).read_bytes() == Path("plain", name).read_bytes()


def test_figures_of_a_run_that_goes_on_are_those_of_one_that_never_stopped(
    photo: Path, train: Command, with_weights: Path
) -> None:
    flags = ("--evaluate-every", "2", "--log-every", "2", "--checkpoint-every", "2")
    train(photo, "--out", "whole", "--steps", "8", *flags)
    train(photo, "--out", "parts", "--steps", "4", *flags)
    newest = max(Path("parts/checkpoints").iterdir())
    newest.unlink()  # as if it had been killed before the last checkpoint was written
    assert train(photo, "--out", "parts", "--steps", "8", *flags).code == 0

    def told(run: str) -> list[tuple[int, dict[str, float]]]:
        lines = Path(run, "stats.jsonl").read_text(encoding="utf-8").splitlines()
        return [(line["step"], line["figures"]) for line in map(json.loads, lines)]

    assert told("parts") == told("whole")
    assert [step for step, _ in told("whole")] == [2, 4, 6, 8]
    for name in ("model/model.safetensors", "samples/step-000008.png"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_training_that_cannot_measure_does_not_begin(
    photo: Path, train: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(workdir))
    message = train(photo, "--out", "run", "--steps", "2", "--evaluate-every", "1").error
    assert "inception_v3_google" in message
    assert not Path("run").exists()


def test_small_figures_use_a_few_frames(
    stem: metrics.InceptionStem, alex: metrics.LPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "SMALL_REALS", 2)
    real = np.stack([scene(seed=s) for s in range(5)])
    found = figures.small_figures(real, Networks(stem, alex))(real[:3])
    expected = metrics.sifid(torch.from_numpy(real[:3]), torch.from_numpy(real[[0, 4]]), stem).mean().item()
    assert found[f"sifid64_{stem.name}_small"] == pytest.approx(expected)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a run directory, or --fake"),
        (("run", "--fake", "x"), "give a run directory, or --fake"),
        (("--fake", "run/input"), "belong together"),
        (("--real", "scene.png"), "belong together"),
        (("none",), "no run directory"),
        (("run", "--count", "1"), "2 or more"),
        (("run", "--count", "-5"), "2 or more"),
        (("run", "--step", "3"), "no snapshot of step 3"),
        (("run", "--step", "worst"), "worst"),
        (("run", "--protocol", "mine"), "mine"),
        (("run", "--inception", "vgg"), "vgg"),
        (("run", "--all", "--step", "4"), "leave out --step"),
        (("--fake", "none", "--real", "scene.png"), "no such file"),
        (("--fake", "run/samples", "--real", "none.png"), "no such file"),
        (("--fake", "run/input", "--real", "scene.png"), "2 images or more, not 1"),
        (("--fake", "run/samples", "--real", "scene.png", "--all"), "are for runs"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    trained: Path,
    command: Command,
    with_weights: Path,
    tree: Callable[[Path], Tree],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    before = tree(Path())
    assert said in command("evaluate", *arguments).error
    assert tree(Path()) == before


def test_a_folder_that_cannot_be_written(trained: Path, with_weights: Path) -> None:
    (trained / "metrics.json").mkdir()
    with pytest.raises(UserError, match=r"metrics\.json"):
        evaluate.evaluate_run(trained, 2)
