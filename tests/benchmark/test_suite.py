"""Suites: what is read out of a file, and what is said about mistakes in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command, scene, write_suite

from oneshotgan import media
from oneshotgan.benchmark.suite import Case, load_suite, shipped
from oneshotgan.errors import UserError, UserErrors

SEEDS = "seeds: must be a list of whole numbers from 0 to 4294967295, each once, not {}"


def mistakes(path: Path, data: Path | None = None) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        load_suite(path, data)
    return caught.value.lines


def write_clip(folder: Path, frames: int = 2) -> None:
    folder.mkdir(parents=True)
    for index in range(frames):
        media.write_png(folder / f"{index:05d}.png", scene(seed=index))


# --- the suites of the package ---


def test_the_suites_of_the_package_are_known() -> None:
    assert shipped() == ["smoke", "table1", "table1-davis", "table1-preview"]


def test_smoke_needs_nothing_but_the_package() -> None:
    cases = load_suite("smoke")
    assert {(case.setting, case.method) for case in cases} == {
        (setting, method) for setting in ("image", "video") for method in ("oneshot", "singan", "fastgan")
    }
    assert {case.suite for case in cases} == {"smoke"}


def test_table1_takes_fifteen_clips_of_the_users(tmp_path: Path) -> None:
    for index in range(15):
        write_clip(tmp_path / f"clip{index:02d}")
    cases = load_suite("table1", tmp_path)
    assert len(cases) == 15 * 2 * 3
    assert {(case.preset, case.samples, case.size, case.protocol) for case in cases} == {
        ("paper", 100, (192, 320), "paper")
    }
    write_clip(tmp_path / "one-too-many")
    assert mistakes(Path("table1"), tmp_path) == ["table1: count: 15 sources are wanted, 16 are there"]
    with pytest.raises(UserErrors, match="table1: sources: say where the clips lie: --data DIR"):
        load_suite("table1")


def test_table1_davis_reads_the_layout_of_davis(tmp_path: Path) -> None:
    complaints = mistakes(Path("table1-davis"), tmp_path)
    assert len(complaints) == 15
    assert all(line.startswith("table1-davis: davis: ") for line in complaints)
    for line in complaints:
        write_clip(tmp_path / "JPEGImages" / "480p" / line.split(": ")[2])
    cases = load_suite("table1-davis", tmp_path)
    assert len({case.source for case in cases}) == 15
    assert len(cases) == 15 * 2 * 3


# --- what a suite says ---


def test_a_case_is_everything_its_suite_says(tmp_path: Path) -> None:
    methods = {"oneshot": {"preset": "paper"}, "singan": {}}
    path = write_suite(tmp_path / "s.toml", methods, seeds=[0, 7], size="64x48", protocol="released")
    cases = load_suite(path)
    assert [case.name for case in cases] == [
        "clip-image-oneshot-seed0",
        "clip-image-oneshot-seed7",
        "clip-image-singan-seed0",
        "clip-image-singan-seed7",
    ]
    case = cases[1]
    assert (case.preset, case.seed, case.steps, case.seconds) == ("paper", 7, 4, None)
    assert (case.samples, case.size, case.protocol) == (3, (48, 64), "released")
    assert cases[2].preset == "preview"
    assert case.settings() | {"seed": 7, "threads": 1, "steps": 4, "base_width": 4} == case.settings()
    assert case.facts() == Case.from_facts(case.facts()).facts()


def test_the_setting_image_is_the_middle_frame_alone(tmp_path: Path) -> None:
    path = write_suite(tmp_path / "s.toml", settings=["image", "video"])
    frames = [media.read_frames(case.path, lambda size: size, case.settings().get("max_frames", 200)).images
              for case in load_suite(path)]  # fmt: skip
    assert [len(f) for f in frames] == [1, 5]
    assert np.array_equal(frames[0][0], scene(seed=2))


def test_sources_can_be_named_in_a_table(tmp_path: Path) -> None:
    write_clip(tmp_path / "a" / "frames")
    write_clip(tmp_path / "b" / "frames")
    path = write_suite(tmp_path / "s.toml", sources=["a/frames", "b/frames"])
    (line,) = mistakes(path)
    assert line == "s.toml: sources: b/frames: a second source of the name frames: name both in a table"
    path = write_suite(tmp_path / "s.toml", sources={"a": "a/frames", "b": "b/frames"})
    assert [case.name for case in load_suite(path)] == ["a-image-oneshot-seed0", "b-image-oneshot-seed0"]


def test_data_takes_the_place_of_root(tmp_path: Path) -> None:
    write_clip(tmp_path / "elsewhere" / "other")
    path = write_suite(tmp_path / "s.toml", sources="all", root="nowhere")
    (line,) = mistakes(path)
    assert line.startswith("s.toml: root: ")
    assert [case.source for case in load_suite(path, tmp_path / "elsewhere")] == ["other"]


# --- mistakes ---


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"step": 3}, "step: unknown entry (did you mean steps?)"),
        ({"seconds": 9}, "seconds: leave it or steps out: a budget is one of them"),
        ({"steps": True}, "steps: must be a whole number from 1, not True"),
        ({"samples": 1}, "samples: must be a whole number from 2, not 1"),
        ({"seeds": []}, SEEDS.format("[]")),
        ({"seeds": [1, 1]}, SEEDS.format("[1, 1]")),
        ({"seeds": [2**40]}, SEEDS.format("[1099511627776]")),
        ({"settings": ["photo"]}, "settings: must be a list of image and video, each once, not ['photo']"),
        ({"size": 64}, 'size: must be a text like "320x192", width first, sides from 32 to 8192, not 64'),
        ({"protocol": "old"}, "protocol: must be paper or released, not 'old'"),
        ({"preset": "large"}, "preset: must be preview or paper, not 'large'"),
        ({"methods": {}}, "methods: must be tables [methods.NAME], not {}"),
        ({"methods": {"gan": {}}}, "methods.gan: unknown method: choose oneshot, singan, fastgan"),
        ({"methods": {"singan": {"steps": 3}}}, "methods.singan.steps: is said for all methods: the budget"),
        ({"methods": {"oneshot": {"seed": 3}}}, "methods.oneshot.seed: is said for all methods: seeds"),
        (
            {"methods": {"singan": {"ema_decay": 0.9}}},
            "methods.singan: setting ema_decay belongs to the method oneshot and fastgan, not to singan",
        ),
        (
            {"methods": {"oneshot": {"coarse_steps": 9}}, "steps": None, "seconds": 9},
            "methods.oneshot.coarse_steps: its steps are not alike: give a budget in steps",
        ),
        ({"sources": ["gone"]}, "sources: gone: DIR/gone: no such file or folder: check the path"),
        ({"sources": []}, "sources: must be a list of paths, a table of names and paths, or \"all\", not []"),
        ({"sources": None}, "sources: name at least one"),
        ({"davis": ["goat"]}, "davis: say where the clips lie: --data DIR"),
        (
            {"sources": ["one.png"], "settings": ["video"]},
            'sources: one.png: is one picture, no clip: leave "video" out of settings',
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_entry(
    tmp_path: Path, entries: dict[str, object], line: str
) -> None:
    media.write_png(tmp_path / "one.png", scene())
    path = write_suite(tmp_path / "s.toml")
    path = write_suite(tmp_path / "s.toml", **entries)  # type: ignore[arg-type]
    assert line.replace("DIR/", f"{tmp_path}/") in [m.removeprefix("s.toml: ") for m in mistakes(path)]
    assert len(mistakes(path)) == 1


def test_all_mistakes_are_told_at_once(workdir: Path, command: Command, with_weights: Path) -> None:
    write_suite(Path("s.toml"), samples=0, seeds="many", sources=["gone", "clip"])
    outcome = command("benchmark", "s.toml", "--out", "out")
    assert outcome.code == 2
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["error", "s.toml", entry] for entry in ("seeds", "samples", "sources")
    ]


def test_no_such_suite_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no suite gone: name a TOML file, or one of smoke, table1, .*preview"
    ):
        load_suite("gone")
    (tmp_path / "s.toml").write_text("sources = [")
    with pytest.raises(UserError, match="cannot read the suite"):
        load_suite(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text("")
    assert mistakes(tmp_path / "s.toml") == [
        "s.toml: methods: missing: name at least one, as [methods.oneshot]",
        "s.toml: sources: name at least one",
    ]
