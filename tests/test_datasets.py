"""Samples with a manifest, and near-copies of the training images left out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from oneshotgan import datasets
from oneshotgan.sampling import OneShotGAN

pytestmark = pytest.mark.usefixtures("with_weights")


def manifest(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "manifest.jsonl").read_text().splitlines()]


def test_a_folder_has_a_line_for_every_image(trained: Path, command: Command) -> None:
    outcome = command("sample", trained, "--count", 3, "--seed", 5, "--format", "folder", "--out", "set")
    assert outcome.code == 0, outcome.err
    lines = manifest("set")
    assert [line["file"] for line in lines] == [f"seed-{seed:06d}.png" for seed in (5, 6, 7)]
    images = OneShotGAN.from_pretrained(trained).sample([5, 6, 7])
    expected = datasets.Training(trained).distances(images)
    for line, image, distance in zip(lines, images, expected, strict=True):
        assert np.array_equal(np.array(Image.open(Path("set") / line["file"])), image)
        assert (line["step"], line["distance"]) == (8, distance)
        assert line["figure"].startswith("dist_to_train_alex")
    assert command("sample", trained, "--count", 2, "--format", "folder", "--out", "set").code == 0
    assert [line["seed"] for line in manifest("set")] == [0, 1, 5, 6, 7]  # added to those that are there


def test_plain_samples_have_no_manifest(trained: Path, command: Command) -> None:
    assert command("sample", trained, "--count", 1, "--out", "set").code == 0
    assert [path.name for path in Path("set").iterdir()] == ["seed-000000.png"]


def test_near_copies_are_left_out_until_enough_are_found(trained: Path, command: Command) -> None:
    gan = OneShotGAN.from_pretrained(trained)
    every = datasets.Training(trained).distances(gan.sample(range(40)))
    minimum = sorted(every)[25]
    wanted = [seed for seed in range(40) if every[seed] >= minimum][:6]
    words = ("sample", trained, "--count", 6, "--min-distance", minimum, "--max-seeds", 40, "--out", "set")
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert [line["seed"] for line in manifest("set")] == wanted
    assert len(list(Path("set").glob("*.png"))) == 6
    assert outcome.err == ""


def test_a_limit_that_is_reached_is_told(trained: Path, command: Command) -> None:
    outcome = command("sample", trained, "--count", 2, "--min-distance", 50, "--out", "set")
    assert outcome.code == 0
    assert "0 of 2 samples found in 20 seeds" in outcome.err
    assert manifest("set") == []


def test_a_webdataset_holds_image_and_line_by_name(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SHARD", 3)
    words = ("sample", trained, "--count", 7, "--format", "webdataset", "--out")
    assert command(*words, "set").code == 0
    assert command(*words, "again").code == 0
    found = []
    for path in sorted(Path("set").glob("*.tar")):
        assert path.read_bytes() == (Path("again") / path.name).read_bytes()
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in names[::2]:
                stem = name.removesuffix(".png")
                line = json.load(archive.extractfile(f"{stem}.json"))  # type: ignore[arg-type]
                image = archive.extractfile(name).read()  # type: ignore[union-attr]
                found.append((line["seed"], np.array(Image.open(io.BytesIO(image)))))
            assert len(names) <= 6
    images = OneShotGAN.from_pretrained(trained).sample(range(7))
    assert [seed for seed, _ in found] == list(range(7))
    assert all(np.array_equal(image, images[seed]) for seed, image in found)
    assert [line["shard"] for line in manifest("set")] == [f"shard-{n // 3:06d}.tar" for n in range(7)]
    assert "holds shards already" in command(*words, "set").error


def test_without_weights_distances_are_left_out_or_refused(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(tmp_path / "empty"))
    outcome = command("sample", trained, "--count", 1, "--format", "folder", "--out", "set")
    assert outcome.code == 0
    assert "distances left out" in outcome.err
    assert manifest("set")[0]["distance"] is None
    assert (
        "alexnet" in command("sample", trained, "--count", 1, "--min-distance", 0.1, "--out", "other").error
    )
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--min-distance", -1), "0 or more"),
        (("--max-seeds", 40), "belongs to --min-distance"),
        (("--min-distance", 0.1, "--max-seeds", 3), "16 (--count) or more"),
        (("--min-distance", 0.1, "--grid", "a.png"), "leave out --grid"),
        (("--format", "folder", "--interpolate", 1, 2), "leave out --grid and --interpolate"),
        (("--min-distance", 0.1, "--size", "64x64"), "leave out --size"),
    ],
)
def test_what_does_not_go_together(
    trained_once: Path, command: Command, words: tuple[object, ...], said: str
) -> None:
    assert said in command("sample", trained_once, *words).error


def test_a_model_folder_has_nothing_to_compare_with(trained: Path, command: Command) -> None:
    words = ("sample", trained / "model", "--count", 1, "--min-distance", 0.1, "--out", "set")
    assert "no training images" in command(*words).error


def test_a_damaged_manifest_is_not_written_over(trained: Path, command: Command) -> None:
    Path("set").mkdir()
    Path("set/manifest.jsonl").write_text("no JSON\n")
    words = ("sample", trained, "--count", 1, "--format", "folder", "--out", "set")
    assert "is damaged" in command(*words).error
    assert Path("set/manifest.jsonl").read_text() == "no JSON\n"
