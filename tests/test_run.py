"""The run directory: its layout, whole at all times, thinned as it says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OFTEN, Command, Tree, png_bytes, scene
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import oneshotgan
from oneshotgan import config
from oneshotgan.errors import UserError
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.run import KEPT_SNAPSHOTS, Run, Source, read_weights

TINY_WEIGHTS = {"w": torch.zeros(1)}
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was begun with two frames, and nothing more."""
    run = Run(tmp_path / "run")
    frames = np.stack([scene(32, 40, seed) for seed in range(2)])
    run.create(config.preset("preview"), Source("scene", "0" * 64, (48, 64)), frames)
    return run


# --- the layout, as the command leaves it ---


def test_everything_is_where_the_map_says(trained_once: Path, tree: Callable[[Path], Tree]) -> None:
    assert sorted(tree(trained_once)) == sorted(
        [
            *("config.json", "reals.png", "stats.jsonl"),
            *("input", "input/frame-000000.png"),
            *("samples", *(f"samples/step-{step:06d}.png" for step in (0, 4, 8))),
            *("checkpoints", *(f"checkpoints/step-{step:06d}.pt" for step in (4, 6, 8))),
            *("snapshots", *(f"snapshots/step-{step:06d}.safetensors" for step in (2, 4, 6, 8))),
            *("model", "model/config.json", "model/model.safetensors"),
        ]
    )


def test_the_configuration_is_resolved_and_tells_the_source(trained_once: Path, photo_bytes: bytes) -> None:
    content = json.loads((trained_once / "config.json").read_text())
    record = content.pop("run")
    assert content["method"] == "oneshot"
    assert content["preset"] == "preview"
    assert {section: sorted(values) for section, values in content.items() if section in config.SECTIONS} == {
        section: sorted(name for name, (where, _) in config.fields("oneshot").items() if where == section)
        for section in config.SECTIONS
    }
    assert content["training"]["steps"] == 8
    assert content["model"]["base_width"] == 4
    assert content["model"]["learning_rate_g"] == 5e-4  # the preset's
    assert config.from_dict(content) == Run.open(trained_once).settings

    assert record["version"] == oneshotgan.__version__
    digest = hashlib.sha256(photo_bytes).hexdigest()
    assert record["source"] == {"name": "scene", "checksum": digest, "size": [48, 64]}
    frames = Run.open(trained_once).frames()
    assert record["frames"] == {
        "count": 1,
        "size": list(frames.shape[1:3]),
        "checksum": hashlib.sha256(frames.tobytes()).hexdigest(),
    }
    machine = record["machines"][0]
    assert machine.items() >= {"from_step": 0, "device": "cpu", "precision": "fp32", "threads": 1}.items()
    assert machine["torch"] == torch.__version__
    assert machine["processor"]


def test_the_input_is_as_trained_and_shown(trained_once: Path) -> None:
    frames = Run.open(trained_once).frames()
    assert frames.dtype == np.uint8
    assert frames.shape == (1, 32, 40, 3)
    with Image.open(trained_once / "input" / "frame-000000.png") as image:
        assert np.array_equal(np.asarray(image), frames[0])
    with Image.open(trained_once / "reals.png") as image:
        assert np.array_equal(np.asarray(image), frames[0])
    whole = Image.fromarray(scene()).resize((40, 32), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(whole).astype(int) - frames[0]).mean() < 2


def test_every_line_of_stats_has_its_fields(trained_once: Path) -> None:
    lines = [json.loads(line) for line in (trained_once / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(set(line) == {"step", *OneShot.loss_names, "seconds", "images_per_second"} for line in lines)
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines == Run.open(trained_once).stats()
    first = list(lines[0])
    assert first == ["step", *OneShot.loss_names, "seconds", "images_per_second"]


def test_sheets_and_snapshots_show_the_training_move(trained_once: Path) -> None:
    sheets = [path.read_bytes() for path in sorted((trained_once / "samples").iterdir())]
    assert len(set(sheets)) == 3
    snapshots = [read_weights(Run(trained_once).snapshot_path(step)) for step in (2, 4, 6, 8)]
    assert [step for step, _ in snapshots] == [2, 4, 6, 8]
    model = trained_once / "model" / "model.safetensors"
    assert model.read_bytes() == Run(trained_once).snapshot_path(8).read_bytes()


def test_the_model_holds_plain_weights_only(trained_once: Path) -> None:
    """Spectral normalisation is folded in; nothing of the discriminator or the optimisers is there."""
    with safe_open(trained_once / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "8"
        names = list(file.keys())
    assert not [name for name in names if "parametrizations" in name or name.endswith(("_u", "_v", "_orig"))]
    content = json.loads((trained_once / "model" / "config.json").read_text())
    assert content.keys() >= {"method", "model", "size"}
    assert content["size"] == [32, 40]


def test_checkpoints_hold_tensors_and_plain_values_only(trained_once: Path) -> None:
    run = Run.open(trained_once)
    assert run.checkpoint_steps() == [4, 6, 8]
    for step in run.checkpoint_steps():
        state = run.read_checkpoint(step, CPU)
        assert state["step"] == step
        assert state["seconds"] > 0
        assert state["method"].keys() >= {"G", "D", "ema", "optimiser_G", "optimiser_D"}


def test_everything_is_there_before_the_first_step(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], Tree]
) -> None:
    seen: list[str] = []

    def step(self: OneShot, step: int) -> dict[str, Tensor]:
        seen.extend(tree(Path("run")))
        raise UserError("far enough")

    monkeypatch.setattr(OneShot, "step", step)
    assert train(photo, "--out", "run", "--steps", 4).late_error == "far enough"
    wanted = {"config.json", "reals.png", "input/frame-000000.png", "samples/step-000000.png"}
    wanted |= {"checkpoints/step-000000.pt", "model/model.safetensors", "model/config.json"}
    assert wanted <= set(seen)


def test_the_model_is_whole_at_all_times(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = OneShot.step, list[int]()

    def step(self: OneShot, step: int) -> dict[str, Tensor]:
        gan = oneshotgan.OneShotGAN.from_pretrained("run")
        assert gan.sample(range(1)).shape == (1, 32, 40, 3)
        seen.append(gan.step)
        return original(self, step)

    monkeypatch.setattr(OneShot, "step", step)
    assert train(photo, "--out", "run", "--steps", 5, *OFTEN).code == 0
    assert seen == [0, 0, 2, 2, 4]


def test_a_folder_of_frames(workdir: Path, train: Command) -> None:
    Path("clip").mkdir()
    for index in range(12):
        (Path("clip") / f"{index}.png").write_bytes(png_bytes(scene(seed=index)))
    outcome = train("clip", "--steps", 1, "--max-frames", 5)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "runs/clip-oneshot\n"
    assert "clip: 12 frames, 5 of them used" in outcome.err
    run = Run.open("runs/clip-oneshot")
    assert run.frames().shape == (5, 32, 40, 3)
    assert run.record["source"]["name"] == "clip"
    assert run.record["frames"]["count"] == 5
    assert len(list((run.path / "input").iterdir())) == 5
    assert train("clip", "--steps", 2, "--max-frames", 5).code == 0


# --- the class alone ---


def test_a_new_run_gives_back_what_it_was_given(run: Run) -> None:
    opened = Run.open(run.path)
    assert opened.settings == config.preset("preview")
    assert np.array_equal(opened.frames(), np.stack([scene(32, 40, seed) for seed in range(2)]))
    assert opened.record["source"] == {"name": "scene", "checksum": "0" * 64, "size": [48, 64]}
    assert opened.stats() == []
    assert opened.checkpoint_steps() == opened.snapshot_steps() == []


def test_files_can_be_read_by_others(run: Run) -> None:
    """Files are written beside their place first, which must not leave them readable by their owner alone."""
    mask = os.umask(0o022)
    try:
        run.write_snapshot(1, 1, TINY_WEIGHTS)
        run.write_checkpoint(1, {"step": 1})
    finally:
        os.umask(mask)
    for path in (run.snapshot_path(1), run.path / "checkpoints" / "step-000001.pt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("spacing", [1, 3, 500])
def test_snapshots_are_thinned_to_multiples_of_a_doubling_spacing(run: Run, spacing: int) -> None:
    for index in range(1, 200):
        run.write_snapshot(index * spacing, spacing, TINY_WEIGHTS)
        kept = run.snapshot_steps()
        assert len(kept) <= KEPT_SNAPSHOTS == 32
        assert kept[-1] == index * spacing  # the newest is always there
        assert all(step % spacing == 0 for step in kept)
        # evenly over the whole training: no gap is wider than the coarsest spacing needed by now
        widest = spacing * 2 ** next(k for k in range(20) if index <= KEPT_SNAPSHOTS * 2**k)
        assert max(np.diff([0, *kept])) <= widest
    assert set(range(8 * spacing, 200 * spacing, 8 * spacing)) <= set(kept)
    assert not list((run.path / "snapshots").glob(".*"))


def test_a_last_snapshot_off_the_spacing_is_kept_until_the_next(run: Run) -> None:
    for step in [*range(10, 330, 10), 325]:
        run.write_snapshot(step, 10, TINY_WEIGHTS)
    assert run.snapshot_steps() == [*range(20, 330, 20), 325]


def test_the_newest_three_checkpoints_are_kept(run: Run) -> None:
    written = [0, 500, 999_500, 1_000_000, 10_000_000]  # in order of their numbers, not of their names
    for count, step in enumerate(written, 1):
        run.write_checkpoint(step, {"step": step})
        assert run.checkpoint_steps() == written[:count][-3:]
    assert len(list((run.path / "checkpoints").iterdir())) == 3
    assert run.read_checkpoint(1_000_000, CPU)["step"] == 1_000_000


def test_stats_append_and_trim(run: Run) -> None:
    for step in range(1, 6):
        run.append_stats({"step": step, "loss": step / 3})
    path = run.path / "stats.jsonl"
    whole = path.read_bytes()
    run.trim_stats(9)
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"step": 6, "lo')
    assert [line["step"] for line in run.stats()] == [1, 2, 3, 4, 5]
    run.trim_stats(5)
    assert path.read_bytes() == whole
    run.trim_stats(3)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    run.append_stats({"step": 4, "loss": 4 / 3})
    assert whole.startswith(path.read_bytes())


def test_stats_without_a_file(run: Run) -> None:
    run.trim_stats(0)
    assert not (run.path / "stats.jsonl").exists()


def test_a_change_of_settings_is_written_and_a_machine_noted_once(run: Run) -> None:
    machine = {"device": "cpu", "threads": 1}
    settings = config.with_overrides(run.settings, {"steps": 77})
    run.update(settings, 0, machine)
    assert run.settings == settings
    before = (run.path / "config.json").read_bytes()
    run.update(settings, 5, machine)
    assert (run.path / "config.json").read_bytes() == before
    run.update(settings, 9, machine | {"threads": 2})
    assert [each["from_step"] for each in run.record["machines"]] == [0, 9]
    run.update(settings, 12, machine | {"threads": 2, "processes": 1})  # which older runs do not name
    assert [each["from_step"] for each in run.record["machines"]] == [0, 9]


def test_temporary_files_of_a_killed_training_are_swept_and_nothing_else(
    run: Run, tree: Callable[[Path], Tree]
) -> None:
    (run.path / ".mine.tmp.txt").write_text("not of a training")
    (run.path / "samples" / ".hidden").write_text("mine")
    before = tree(run.path)
    left = [".config-ab12.tmp.json", ".stats-ab12.tmp.jsonl", "checkpoints/.step-000004-ab12.tmp.pt"]
    left += ["model/.model-ab12.tmp.safetensors", "samples/.step-000004-ab12.tmp.png"]
    for name in left:
        (run.path / name).write_bytes(b"half")
    run.sweep()
    assert tree(run.path) == before


def test_a_lock_is_free_again_after_an_error(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.locked():
        _ = 1 / 0
    with run.locked(), pytest.raises(UserError, match="another training"), Run(run.path).locked():
        pass


def test_a_run_whose_place_was_taken_writes_nothing_more(run: Run, tree: Callable[[Path], Tree]) -> None:
    with run.locked():
        run.append_stats({"step": 1})
        shutil.move(run.path, run.path.with_name("away"))
        shutil.copytree(run.path.with_name("away"), run.path, ignore=shutil.ignore_patterns(".lock"))
        with Run(run.path).locked():  # a second training begins in its place
            before = tree(run.path)
            for write in (
                lambda: run.append_stats({"step": 2}),
                lambda: run.write_samples(2, np.zeros((1, 8, 8, 3), np.uint8)),
                lambda: run.write_model(2, {}),
                lambda: run.write_snapshot(2, 1, {}),
                lambda: run.write_checkpoint(2, {}),
            ):
                with pytest.raises(UserError, match="another run begun there"):
                    write()
            assert tree(run.path) == before


@pytest.mark.parametrize("name", ["nowhere", "empty", "model"])
def test_what_is_no_run(run: Run, name: str) -> None:
    (run.path.parent / "empty").mkdir()
    path = run.path / name if name == "model" else run.path.parent / name
    assert not Run.exists(path)
    with pytest.raises(UserError, match="no run directory"):
        Run.open(path)
