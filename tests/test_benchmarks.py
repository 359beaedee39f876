"""The measuring programs: that they run, and their arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import TRAINED_STEPS, Command

from benchmarks import precision, step, time_to_quality
from oneshotgan import config
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.run import Run


def test_step_times_every_variant_and_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "MATRIX", 64)
    out = tmp_path / "step.json"
    words = ["step", "--size", "32x32", "--threads", "1", "--rounds", "2", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    step.main()
    content = json.loads(out.read_text())
    assert content["results"]["plain fp32"]["times_first"] == 1
    assert len(content["without"]) == 7
    fast = content["results"]["fast fp32"]
    assert fast["gflop"] < content["results"]["plain fp32"]["gflop"]
    parts = {"G forward, G update", "D forward, D update", "augmentation", "optimisers", "EMA", "kernels"}
    assert parts < set(fast["parts_ms"])
    assert all(row["median_ms"] > 0 for row in content["results"].values())
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in (*content["results"], *content["without"]))


def test_a_replayed_step_is_launched_to_time_its_parts_and_count_its_work() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4})
    one = OneShot(settings, frames, torch.device("cpu"), "fp32")
    whole = step.flops(one, 1)

    def refuse(*args: object) -> None:
        raise AssertionError("replayed")

    one.replayed = refuse  # type: ignore[assignment]
    assert step.flops(one, 2) == whole > 0
    assert one.replayed is refuse


def write_run(folder: Path, rows: list[tuple[int, float, float, float]]) -> None:
    """Measurements as (step, seconds, SIFID, LPIPS), made at one pace."""
    folder.mkdir(parents=True)
    training = {"batch_size": 5, "steps": precision.STEPS}
    (folder / "config.json").write_text(json.dumps({"training": training}))
    pace = {"images_per_second": 5 * rows[0][0] / rows[0][1]}
    lines = [
        {"step": step, "figures": {"sifid64_x_small": sifid, "lpips_x_small": lpips}} | pace
        for step, _, sifid, lpips in rows
    ]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_time_to_quality_finds_when_both_figures_are_reached(tmp_path: Path) -> None:
    slow = [(k, 60.0 * k, 10.0 / k, 0.02 * k) for k in range(1, 11)]
    write_run(tmp_path / "photo" / time_to_quality.BASELINE / "seed-0", slow)
    write_run(tmp_path / "photo" / "quick" / "seed-0", [(k, 30.0 * k, s, d) for k, _, s, d in slow])
    write_run(tmp_path / "photo" / "dull" / "seed-0", [(k, 30.0 * k, s, 0.1) for k, _, s, _ in slow])
    summary = time_to_quality.summarise(time_to_quality.collect(tmp_path), {"photo": 3.0})["photo"]
    assert summary["goal"] == [round(10 / 9, 3), 0.18]  # the median of the last three
    assert summary["settings"]["quick"]["reached_after"] == [5.0]
    assert summary["settings"]["dull"]["reached_after"] == [None]
    assert "| dull | 1 |" in time_to_quality.table({"photo": summary})


def test_the_goal_lies_within_the_spread_of_the_baselines_seeds() -> None:
    assert time_to_quality.goal_of([(0.5, 0.2)]) == (0.5, 0.2)
    sifid, lpips = time_to_quality.goal_of([(0.4, 0.1), (0.6, 0.3)])
    assert (sifid, lpips) == pytest.approx((0.5 + 0.1 * 2**0.5, 0.2 - 0.1 * 2**0.5))


def test_minutes_are_steps_at_the_usual_pace(tmp_path: Path) -> None:
    assert time_to_quality.minutes_trained(tmp_path / "none") == 0
    write_run(tmp_path / "run", [(600, 60.0, 1.0, 0.1), (1200, 120.0, 0.9, 0.1), (1800, 180.0, 0.8, 0.1)])
    lines = (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    slow = json.loads(lines[1]) | {"images_per_second": 1.0}  # the machine did something else meanwhile
    (tmp_path / "run" / "stats.jsonl").write_text("\n".join([lines[0], json.dumps(slow), lines[2], ""]))
    assert time_to_quality.minutes_trained(tmp_path / "run") == pytest.approx(3)


def test_minutes_follow_a_pace_that_changes(tmp_path: Path) -> None:
    """Half-size steps are quicker: 2,000 of 30 ms, then 5,000 of 70 ms."""
    pace = {step: 0.03 if step <= 2000 else 0.07 for step in range(50, 7001, 50)}
    stats = [{"step": step, "images_per_second": 5 / seconds} for step, seconds in pace.items()]
    minutes = time_to_quality.minutes(stats, batch_size=5)
    assert minutes[-1] == pytest.approx((2000 * 0.03 + 5000 * 0.07) / 60, rel=0.01)
    assert minutes[39] == pytest.approx(2000 * 0.03 / 60, rel=0.05)


@pytest.mark.parametrize("program", [time_to_quality, precision])
def test_two_inputs_of_one_name_are_refused(program: ModuleType) -> None:
    given = program.argparse.Namespace(input=[Path("a/frames"), Path("b/frames")])
    with pytest.raises(SystemExit, match="differ in name"):
        program.train_all(given)


def test_time_to_quality_commands_are_settings_that_exist() -> None:
    for name, overrides in time_to_quality.SETTINGS.items():
        config.with_overrides(config.preset("preview"), overrides)
        case = time_to_quality.Case(Path("a.png"), name, 0, 1.0, Path("run"))
        assert "--evaluate-every" in case.command(1, 100)


def test_precision_interval_against_students_t() -> None:
    mean, low, high = precision.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert high - mean == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_precision_compares_finished_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (half, full) in enumerate([(1.1, 1.0), (1.0, 1.0), (0.9, 1.0)]):
        for name, value in (("bf16", half), ("fp32", full)):
            steps = range(precision.EVERY, precision.STEPS + 1, precision.EVERY)
            rows = [(k, 1.0 * k, value if k > precision.STEPS - precision.LAST else 9.0, 0.2) for k in steps]
            write_run(tmp_path / "in" / "photo" / name / f"seed-{seed}", rows)
    write_run(tmp_path / "in" / "photo" / "fp32" / "seed-3", [(100, 1.0, 1.0, 1.0)])  # not finished
    (tmp_path / "in" / "begun" / "fp32").mkdir(parents=True)

    def show(**given: Path | None) -> str:
        arguments = {"folder": tmp_path / "in", "pool": None, "out": None, "last": precision.LAST} | given
        precision.show(precision.argparse.Namespace(**arguments))
        return capsys.readouterr().out

    out = tmp_path / "result.json"
    assert "photo sifid64_x_small: fp32 1.000, 3 seeds, bf16 +0.0 % [-24.8, +24.8]" in show(out=out)
    (tmp_path / "in" / "photo").rename(tmp_path / "elsewhere")
    again = tmp_path / "again.json"
    assert "3 seeds" in show(pool=out, out=again)
    assert "3 seeds" in show(pool=again, out=again)
    assert len(json.loads(again.read_text())["earlier_commits"]) == 2
    (tmp_path / "elsewhere").rename(tmp_path / "in" / "photo")
    with pytest.raises(SystemExit, match="seed-0, seed-1, seed-2 of photo too"):
        show(pool=out)
    for path in (tmp_path / "in").glob("photo/*/*/config.json"):
        path.write_text(json.dumps({"training": {"batch_size": 4, "steps": precision.STEPS}}))
    with pytest.raises(SystemExit, match="other settings"):
        show(pool=out)


def test_precision_goes_on_from_a_finished_run_with_another_seed(trained: Path, command: Command) -> None:
    for seed in (1, 2):
        run = Path(f"seed-{seed}")
        precision.begin_from(trained, run, seed)
        assert precision.steps_of(run) == TRAINED_STEPS + precision.STEPS
        assert Run.open(run).settings.training.seed == seed
        assert Run.open(run).checkpoint_steps()[-1] == TRAINED_STEPS
        assert not Run.open(run).stats()
