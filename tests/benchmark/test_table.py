"""The table: means over clips, the best of them, and the paper's figures where they may stand beside ours."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINED_STEPS, Command

from oneshotgan.benchmark.case import note
from oneshotgan.benchmark.published import TABLE_1
from oneshotgan.benchmark.suite import Case
from oneshotgan.benchmark.table import Cell, Result, Table, tabulate

TITLES = {
    "sifid64_torchvision": ("SIFID", "↓"),
    "lpips_alex": ("LPIPS", "↑"),
    "ms_ssim_5scale": ("MS-SSIM", "↓"),
    "dist_to_train_alex_k8": ("Distance to training", "↑"),
}
LIKE_THE_PAPER = Case("table1", "a", "image", "oneshot", "paper", {}, 0, None, None, 100, (192, 320), "paper")


def figure(name: str, value: float, **changes: Any) -> dict[str, Any]:
    """An entry of metrics.json."""
    title, direction = next(t for n, t in TITLES.items() if name.startswith(n.split("_")[0]))
    weights = None if name.startswith("ms_ssim") else {"file": "w.pth", "sha256": "0123456789"}
    entry = {"name": name, "value": value, "title": title, "direction": direction, "count": 100}
    return entry | {"size": [192, 320], "weights": weights} | changes


def case(**changes: Any) -> Case:
    return dataclasses.replace(LIKE_THE_PAPER, **changes)


def done(values: dict[str, float], **changes: Any) -> Result:
    own = case(**changes)
    entries = [figure(name, value, count=own.samples) for name, value in values.items()]
    return Result(own, "finished", entries, 1000, 60.0)


def cell(table: Table, method: str, name: str, setting: int = 0) -> Cell:
    (found,) = [c for (row, column), c in table.cells.items()
                if (row.name, column.name, column.setting) == (method, name, setting)]  # fmt: skip
    return found


# --- means ---


def test_mean_and_standard_error_are_over_clips_and_seeds_come_first() -> None:
    values = {("a", 0): 0.1, ("a", 1): 0.3, ("b", 0): 0.4, ("b", 1): 0.4, ("c", 0): 0.9, ("c", 1): 0.9}
    table = tabulate([done({"lpips_alex": v}, source=s, seed=k) for (s, k), v in values.items()])
    found = cell(table, "One-Shot GAN", "lpips_alex")
    assert found.value == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    assert found.error == pytest.approx((0.13 / 3) ** 0.5)  # variance 0.13 (by hand), three clips
    assert (found.clips, found.wanted) == (3, 3)


def test_one_clip_has_no_standard_error() -> None:
    assert cell(tabulate([done({"lpips_alex": 0.3})]), "One-Shot GAN", "lpips_alex").error is None


def test_the_best_is_bold_by_the_figures_direction() -> None:
    table = tabulate([
        done({"sifid64_torchvision": 0.2, "lpips_alex": 0.2}, method="singan"),
        done({"sifid64_torchvision": 0.1, "lpips_alex": 0.1}, method="fastgan"),
    ])  # fmt: skip
    keys = [(m, f) for m in ("SinGAN", "FastGAN") for f in ("sifid64_torchvision", "lpips_alex")]
    best = {key: cell(table, *key).best for key in keys}
    assert best == {
        ("SinGAN", "sifid64_torchvision"): False,
        ("SinGAN", "lpips_alex"): True,
        ("FastGAN", "sifid64_torchvision"): True,
        ("FastGAN", "lpips_alex"): False,
    }


def test_a_mean_that_lacks_a_clip_says_so_and_is_never_the_best() -> None:
    table = tabulate([
        done({"lpips_alex": 0.9}, method="singan", source="a"),
        Result(case(method="singan", source="b"), "not begun"),
        *(done({"lpips_alex": 0.1}, method="fastgan", source=s) for s in "ab"),
        *(done({"lpips_alex": 0.2}, method="oneshot", source=s) for s in "ab"),
    ])  # fmt: skip
    found = cell(table, "SinGAN", "lpips_alex")
    assert (found.clips, found.wanted, found.best) == (1, 2, False)
    assert cell(table, "One-Shot GAN", "lpips_alex").best
    assert [r.case.source for r in table.absent()] == ["b"]


@pytest.mark.parametrize(
    "other",
    [
        {"name": "lpips_alex_released"},
        {"name": "lpips_alex_deadbeef"},
        {"count": 50},
        {"weights": {"file": "w.pth", "sha256": "fedcba98"}},
    ],
)
def test_figures_of_several_protocols_are_never_in_one_mean(other: dict[str, Any]) -> None:
    one = Result(case(source="a"), "finished", [figure("lpips_alex", 0.2)])
    two = Result(case(source="b"), "finished", [figure("lpips_alex", 0.4) | other])
    table = tabulate([one, two])
    assert [(c.value, c.clips, c.wanted) for c in table.cells.values()] == [(0.2, 1, 2), (0.4, 1, 2)]


def test_image_and_video_are_columns_of_their_own() -> None:
    table = tabulate([done({"lpips_alex": 0.2}), done({"lpips_alex": 0.4}, setting="video")])
    values = [cell(table, "One-Shot GAN", "lpips_alex", setting).value for setting in (0, 1)]
    assert values == [0.2, 0.4]


def test_two_budgets_of_one_method_are_rows_of_their_own() -> None:
    table = tabulate([done({"lpips_alex": 0.2}), done({"lpips_alex": 0.4}, source="b", steps=9)])
    assert [row.variant for row in table.rows] == ["preset paper", "preset paper, steps 9"]


# --- the paper's figures ---


def like_the_paper(count: int = 15, **changes: Any) -> Cell:
    method, name = changes.get("method", "oneshot"), "lpips_alex"
    table = tabulate([done({name: 0.3}, source=f"clip{k}", **changes) for k in range(count)])
    return cell(table, {"oneshot": "One-Shot GAN", "singan": "SinGAN"}[method], name)


def test_the_papers_figure_stands_beside_one_of_its_protocol() -> None:
    assert (like_the_paper().paper, like_the_paper().note) == (0.33, None)
    assert like_the_paper(method="singan").paper == 0.26


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"suite": "table1-davis"}, "suite table1, not of table1-davis"),
        ({"suite": "table1.toml"}, "not of table1.toml"),
        ({"preset": "preview"}, "without another budget or setting"),
        ({"steps": 100}, "without another budget or setting"),
        ({"seconds": 100.0}, "without another budget or setting"),
        ({"overrides": {"base_width": 16}}, "without another budget or setting"),
        ({"count": 14}, "over 15 clips, not 14"),
        ({"samples": 50}, "measures 100 samples, not 50"),
    ],
)
def test_else_it_is_not_comparable_and_the_reason_is_told(changes: dict[str, Any], reason: str) -> None:
    found = like_the_paper(**changes)
    assert found.paper is None
    assert reason in str(found.note)


def test_other_sizes_and_weights_are_not_comparable() -> None:
    def found(**changes: Any) -> str:
        entry = figure("lpips_alex", 0.3) | changes
        table = tabulate([Result(case(source=f"c{k}"), "finished", [entry]) for k in range(15)])
        (only,) = table.cells.values()
        assert only.paper is None
        return str(only.note)

    assert "images are 320x192, not 112x64" in found(size=[64, 112])
    assert "lpips_alex_deadbeef rests on another protocol" in found(name="lpips_alex_deadbeef")


def test_table_1_is_the_papers() -> None:
    """Its rows as they are printed there: image, then video; SIFID, LPIPS, MS-SSIM, distance to training."""
    rows = {
        "singan": (0.13, 0.26, 0.69, 0.30, 2.47, 0.32, 0.65, 0.51),
        "fastgan": (0.13, 0.18, 0.77, 0.11, 0.79, 0.43, 0.55, 0.13),
        "oneshot": (0.08, 0.33, 0.63, 0.37, 0.55, 0.43, 0.54, 0.34),
    }
    titles = [title for title, _ in TITLES.values()]
    for method, row in rows.items():
        assert row == tuple(TABLE_1[method][s][title] for s in ("image", "video") for title in titles)


# --- from run directories to text ---


@pytest.fixture
def folder(tmp_path: Path, trained_once: Path) -> Path:
    """A benchmark of two clips by two methods: one case failed, one was not begun, one is under way."""
    values = {
        "sifid64_torchvision": 0.5,
        "lpips_alex": 0.25,
        "ms_ssim_3scale": 0.75,
        "dist_to_train_alex_k8": 0.125,
    }
    (tmp_path / "cases").mkdir()
    changes = {"suite": "mine.toml", "steps": TRAINED_STEPS, "samples": 3, "size": None, "preset": "preview"}
    for method in ("fastgan", "oneshot"):
        for source in "ab":
            own = case(method=method, source=source, **changes)
            note(tmp_path, own)
            if method == "oneshot":
                shutil.copytree(trained_once, tmp_path / own.name)
                figures = [figure(name, v, count=3, size=[32, 40]) for name, v in values.items()]
                content = json.dumps({"step": TRAINED_STEPS, "figures": figures})
                (tmp_path / own.name / "metrics.json").write_text(content)
    note(tmp_path, case(method="fastgan", source="a", **changes), failure="no luck")
    under_way = case(method="singan", source="a", **changes)
    note(tmp_path, under_way)
    shutil.copytree(trained_once, tmp_path / under_way.name)
    return tmp_path


def test_markdown(folder: Path, command: Command) -> None:
    lines = command("table", folder).out.splitlines()
    cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0][:3] == ["method", "image SIFID ↓", "image LPIPS ↑"]
    assert cells[0][-1] == "image seconds (steps)"
    assert [row[0] for row in cells[2:]] == ["SinGAN", "FastGAN", "One-Shot GAN"]
    assert cells[2][1:] == cells[3][1:] == ["–"] * 5
    assert cells[4][1:4] == ["0.500 ± 0.000", "0.250 ± 0.000", "0.750 ± 0.000"]
    assert cells[4][5].endswith(f" ({TRAINED_STEPS})")
    assert "- a-image-fastgan-seed0: failed: no luck" in lines
    assert "- b-image-fastgan-seed0: not begun" in lines
    assert f"- a-image-singan-seed0: not finished: step {TRAINED_STEPS}" in lines
    assert "lpips_alex, 3 samples at the runs' own size" in "\n".join(lines)
    assert (
        "- not comparable with the paper's figures: the paper's clips and protocol are those of the suite "
        "table1, not of mine.toml"
    ) in lines
    assert any(line.startswith("- One-Shot GAN: preset preview, steps") for line in lines)


def test_csv_and_json_hold_the_same(folder: Path, command: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(command("table", folder, "--format", "csv").out)))
    content = json.loads(command("table", folder, "--format", "json").out)
    assert [(row["name"], float(row["value"])) for row in rows] == [
        (entry["name"], entry["value"]) for entry in content["cells"]
    ]
    assert [row["name"] for row in rows][:2] == ["sifid64_torchvision", "lpips_alex"]
    stats = (folder / "a-image-oneshot-seed0" / "stats.jsonl").read_text().splitlines()
    assert content["cells"][0]["seconds"] == pytest.approx(json.loads(stats[-1])["seconds"])
    assert {entry["name"]: entry["state"] for entry in content["cases"]} == {
        "a-image-fastgan-seed0": "failed: no luck",
        "b-image-fastgan-seed0": "not begun",
        "a-image-oneshot-seed0": "finished",
        "b-image-oneshot-seed0": "finished",
        "a-image-singan-seed0": f"not finished: step {TRAINED_STEPS}",
    }


def test_latex(folder: Path, command: Command) -> None:
    text = command("table", folder, "--format", "latex").out
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrrrr}"
    assert body[-1] == r"\end{tabular}"
    assert all(line.count(" & ") == 5 for line in body if line.endswith(r"\\"))
    assert not set("↓↑±–_") & set("".join(body))


def test_a_folder_without_a_benchmark_is_refused(tmp_path: Path, command: Command) -> None:
    assert command("table", tmp_path).error.startswith(f"{tmp_path} holds no benchmark")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "x.json").write_text('{"facts": {"suite": "s"}}')
    assert command("table", tmp_path).error == f"{tmp_path}/cases/x.json is damaged: delete it"
