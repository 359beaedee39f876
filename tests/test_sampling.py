"""One seed is one image, whatever is drawn beside it; and what ``oneshotgan sample`` writes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import OFTEN, TRAINED_STEPS, Command, Tree
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import oneshotgan
from oneshotgan import media, sampling
from oneshotgan.errors import UserError
from oneshotgan.sampling import OneShotGAN, spherical_path


@pytest.fixture(scope="module")
def gan(trained_once: Path) -> OneShotGAN:
    return OneShotGAN.from_pretrained(trained_once)


def test_a_model_says_what_it_is(gan: OneShotGAN) -> None:
    assert repr(gan).startswith(f"<OneShotGAN 40x32, {TRAINED_STEPS} steps, from ")
    assert {"OneShotGAN", "UserError", "train"} <= set(dir(oneshotgan))


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of a pixel."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# --- one seed, one image ---


def test_images_are_uint8_nhwc(gan: OneShotGAN) -> None:
    images = gan.sample(range(3))
    assert images.dtype == np.uint8
    assert images.shape == (3, 32, 40, 3)
    assert gan.size == (32, 40)
    assert gan.step == TRAINED_STEPS
    assert gan.sample([]).shape == (0, 32, 40, 3)


def test_one_number_is_no_list_of_seeds(gan: OneShotGAN) -> None:
    with pytest.raises(UserError, match=r"range\(3\)"):
        gan.sample(seeds=3)  # type: ignore[arg-type]


def test_an_image_depends_on_its_seed_alone(gan: OneShotGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {seed: gan.sample([seed])[0] for seed in (0, 1, 5, 17, 40, 2**32)}
    assert len({image.tobytes() for image in alone.values()}) == len(alone)
    for seeds in (list(alone), list(alone)[::-1], [5, 5, 0], range(41), [17, *range(16)]):
        for seed, image in zip(seeds, gan.sample(seeds), strict=True):
            if seed in alone:
                assert apart(image, alone[seed]) <= 1, seed
    monkeypatch.setattr(sampling, "BATCH", 3)
    for seed, image in zip(alone, gan.sample(list(alone)), strict=True):
        assert apart(image, alone[seed]) <= 1


def test_latents_depend_on_their_seed_alone(gan: OneShotGAN) -> None:
    latents = gan.sampler.latents
    together = latents([3, 1, 4, 1])
    assert torch.equal(together[1], together[3])
    assert torch.equal(together, torch.cat([latents([seed]) for seed in (3, 1, 4, 1)]))
    many = latents(range(500))
    assert abs(float(many.mean())) < 0.03  # N(0, 1): 32,000 numbers
    assert abs(float(many.std()) - 1) < 0.03


def test_sampling_leaves_the_global_random_state_alone(gan: OneShotGAN) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    gan.sample(range(2))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_run_its_model_folder_and_a_moved_copy_give_the_same(
    trained_once: Path, gan: OneShotGAN, tmp_path: Path
) -> None:
    shutil.copytree(trained_once / "model", tmp_path / "elsewhere")
    wanted = gan.sample(range(4))
    for path in (trained_once / "model", tmp_path / "elsewhere", str(trained_once)):
        other = OneShotGAN.from_pretrained(path)
        assert np.array_equal(other.sample(range(4)), wanted)
        assert other.size == gan.size


def test_a_snapshot_is_the_model_of_its_step(trained_once: Path, gan: OneShotGAN) -> None:
    early = OneShotGAN.from_pretrained(trained_once, step=2)
    assert early.step == 2
    assert not np.array_equal(early.sample(range(2)), gan.sample(range(2)))
    last = OneShotGAN.from_pretrained(trained_once, step=TRAINED_STEPS)
    assert np.array_equal(last.sample(range(2)), gan.sample(range(2)))
    with pytest.raises(UserError, match="2, 4, 6, 8"):
        OneShotGAN.from_pretrained(trained_once, step=3)


def test_the_sheet_of_the_training_shows_the_same_images(trained_once: Path, gan: OneShotGAN) -> None:
    sheet = read(trained_once / "samples" / f"step-{TRAINED_STEPS:06d}.png")
    assert apart(sheet, media.contact_sheet(gan.sample(range(16)))) <= 1


# --- truncation ---


def test_without_truncation_is_truncation_one(gan: OneShotGAN) -> None:
    assert np.array_equal(gan.sample(range(3)), gan.sample(range(3), truncation=1))


def test_truncation_zero_is_one_image_for_all_seeds(gan: OneShotGAN) -> None:
    images = gan.sample([0, 9, 1234], truncation=0)
    assert all(apart(image, images[0]) <= 1 for image in images)
    assert apart(images[0], gan.sample([0])[0]) > 1


def test_less_truncation_is_more_varied(gan: OneShotGAN) -> None:
    spread = [gan.sample(range(8), truncation).astype(float).std(axis=0).mean() for truncation in (0, 0.5, 1)]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("truncation", [-0.01, 1.01, math.nan, math.inf])
def test_truncation_has_a_range(gan: OneShotGAN, truncation: float) -> None:
    with pytest.raises(UserError, match="truncation"):
        gan.sample(range(1), truncation)
    with pytest.raises(UserError, match="truncation"):
        gan.interpolate(0, 1, 3, truncation)


def test_seeds_are_not_negative(gan: OneShotGAN) -> None:
    for draw in (lambda: gan.sample([0, -1]), lambda: gan.iterate([-1]), lambda: gan.interpolate(0, -1, 3)):
        with pytest.raises(UserError, match="seeds"):
            draw()


# --- the way from one seed to another ---


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 64), st.integers(0, 2**32 - 1), st.integers(2, 20))
def test_the_spherical_path(dim: int, seed: int, count: int) -> None:
    first, last = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed))
    cosine = float(torch.dot(first, last) / (first.norm() * last.norm()))
    assume(abs(cosine) < 0.999)  # opposite points have no one great circle
    path = spherical_path(first, last, count)
    assert path.shape == (count, dim)
    torch.testing.assert_close(path[0], first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(path[-1], last, rtol=1e-4, atol=1e-4)
    back = spherical_path(last, first, count).flip(0)
    torch.testing.assert_close(back, path, rtol=1e-4, atol=1e-4)


def test_the_length_stays_between_those_of_the_ends() -> None:
    """Ends of a Gaussian are all but orthogonal; a straight line would cut through at 0.7 of their length."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ends = torch.randn(2, 64, generator=generator)
        lengths = spherical_path(ends[0], ends[1], 33).norm(dim=1)
        assert lengths.min() > 0.97 * ends.norm(dim=1).min()
        assert lengths.max() < 1.03 * ends.norm(dim=1).max()
    ends = torch.nn.functional.normalize(ends, dim=1)
    path = spherical_path(ends[0], ends[1], 33)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(33))
    steps = (path[1:] * path[:-1]).sum(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(32))  # equal angles


def test_the_path_from_a_point_to_itself() -> None:
    z = torch.randn(64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(spherical_path(z, z, 5), z.expand(5, 64), atol=1e-6)
    assert torch.allclose(spherical_path(z, 2 * z, 3)[1], 1.5 * z, atol=1e-5)


def test_opposite_points_have_a_path_too() -> None:
    z = torch.randn(64, generator=torch.Generator().manual_seed(1))
    path = spherical_path(z, -z, 9)
    assert bool(torch.isfinite(path).all())
    assert float(path.norm(dim=1).max()) < 1.5 * float(z.norm())


def test_an_interpolation_begins_and_ends_with_the_seeds_own_images(gan: OneShotGAN) -> None:
    images = gan.interpolate(3, 8, 20)
    assert images.shape == (20, 32, 40, 3)
    assert apart(images[0], gan.sample([3])[0]) <= 1
    assert apart(images[-1], gan.sample([8])[0]) <= 1
    assert apart(images[0], images[10]) > 1
    assert apart(gan.interpolate(8, 3, 20)[::-1], images) <= 1
    with pytest.raises(UserError, match="2 frames"):
        gan.interpolate(0, 1, 1)


# --- the command ---


def test_the_command_names_every_image_by_its_seed(
    trained: Path, command: Command, gan: OneShotGAN, tree: Callable[[Path], Tree]
) -> None:
    before = tree(trained)
    outcome = command("sample", trained, "--count", 20, "--seed", 7, "--out", "new/images")
    assert outcome.code == 0
    assert outcome.out == "new/images\n"
    assert outcome.err == ""
    paths = sorted(Path("new/images").iterdir())
    assert [path.name for path in paths] == [f"seed-{seed:06d}.png" for seed in range(7, 27)]
    for path, image in zip(paths, gan.sample(range(7, 27)), strict=True):
        assert apart(read(path), image) <= 1
    assert tree(trained) == before

    assert command("sample", trained, "--count", 2).out == "run/generated\n"
    assert sorted(path.name for path in (trained / "generated").iterdir()) == [
        "seed-000000.png",
        "seed-000001.png",
    ]
    outcome = command("sample", trained / "model", "--count", 1, "--seed", 12, "--out", "one")
    assert outcome.code == 0
    assert apart(read("one/seed-000012.png"), read("new/images/seed-000012.png")) <= 1


def test_the_command_draws_sixteen_unless_told(trained: Path, command: Command) -> None:
    assert command("sample", trained).code == 0
    assert len(list((trained / "generated").iterdir())) == 16


def test_the_grid_shows_the_same_images(trained: Path, command: Command, gan: OneShotGAN) -> None:
    outcome = command("sample", trained, "--count", 5, "--seed", 3, "--grid", "sheets/grid.png")
    assert outcome.out == "sheets/grid.png\n"
    assert apart(read("sheets/grid.png"), media.contact_sheet(gan.sample(range(3, 8)))) <= 1
    assert not (trained / "generated").exists()


def test_the_command_takes_truncation_and_step(trained: Path, command: Command) -> None:
    gan = OneShotGAN.from_pretrained(trained, 4)
    assert (
        command("sample", trained, "--count", 3, "--truncation", 0, "--step", 4, "--out", "still").code == 0
    )
    images = [read(path) for path in sorted(Path("still").iterdir())]
    assert all(apart(image, gan.sample([0], 0)[0]) <= 1 for image in images)
    assert command("sample", trained, "--count", 1, "--step", 4, "--out", "early").code == 0
    assert apart(read("early/seed-000000.png"), gan.sample([0])[0]) <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_the_command_writes_animations(trained: Path, command: Command, gan: OneShotGAN, suffix: str) -> None:
    out = f"new/walk{suffix}"
    outcome = command("sample", trained, "--interpolate", 2, 5, "--frames", 9, "--fps", 10, "--out", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{out}\n"
    if suffix == ".mp4":
        with av.open(out) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 10
    else:
        with Image.open(out) as animation:
            images, shown = [], 0
            for index in range(animation.n_frames):
                animation.seek(index)
                animation.load()
                times = animation.info["duration"] // 100  # the encoder joins equal frames
                shown += animation.info["duration"]
                images += [np.asarray(animation.convert("RGB"))] * times
            assert shown == 900
    assert len(images) == 9
    wanted = gan.interpolate(2, 5, 9)
    for image, want in zip(images, wanted, strict=True):
        assert np.abs(image.astype(int) - want).mean() < 12  # what the formats lose


def test_an_animation_without_a_name(trained: Path, command: Command) -> None:
    outcome = command("sample", trained, "--interpolate", 2, 5, "--frames", 3)
    assert outcome.out == "run/generated/seeds-2-5.gif\n"
    with Image.open("run/generated/seeds-2-5.gif") as animation:
        assert animation.n_frames == 3


def test_an_animation_of_a_seed_to_itself(gan: OneShotGAN) -> None:
    images = gan.interpolate(4, 4, 3)
    assert apart(images[0], images[2]) <= 1


# --- from Python ---


def test_training_from_python_is_the_commands_run(photo: Path, trained_once: Path) -> None:
    often = {
        flag.removeprefix("--").replace("-", "_"): int(n)
        for flag, n in zip(OFTEN[::2], OFTEN[1::2], strict=True)
    }
    tiny = {"base_width": 4, "short_size": 32, "threads": 1, "precision": "fp32"}
    gan = oneshotgan.train(photo, "run", steps=TRAINED_STEPS, quiet=True, **often, **tiny)
    assert isinstance(gan, oneshotgan.OneShotGAN)
    assert gan.step == TRAINED_STEPS
    images = gan.sample(seeds=range(8))
    assert images.dtype == np.uint8
    assert images.shape == (8, 32, 40, 3)
    one, other = (path / "model" / "model.safetensors" for path in (Path("run"), trained_once))
    assert one.read_bytes() == other.read_bytes()


def test_training_from_python_raises_one_clear_line(photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for wrong, says in [
        ({"stpes": 5}, "did you mean steps"),
        ({"steps": "5"}, "whole number"),
        ({"steps": -5}, "steps"),
        ({"method": "stylegan"}, "oneshot"),
        ({"preset": "huge"}, "preview"),
    ]:
        with pytest.raises(oneshotgan.UserError, match=says):
            oneshotgan.train(photo, **wrong)
    with pytest.raises(oneshotgan.UserError, match=r"nowhere\.png"):
        oneshotgan.train("nowhere.png", quiet=True)
    assert capfd.readouterr() == ("", "")
    assert not Path("runs").exists()


def test_quiet_says_nothing(photo: Path, train: Command) -> None:
    outcome = train(photo, "--out", "run", "--steps", 1, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "run\n", "")


def test_a_word_that_is_no_step(trained_once: Path, command: Command) -> None:
    assert (
        '"abc" is no step: write a number, or best' in command("sample", trained_once, "--step", "abc").error
    )
    assert "kept are the steps 2, 4, 6, 8" in command("sample", trained_once, "--step", 77).error
