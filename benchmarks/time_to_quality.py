"""Time to quality: how many minutes of training a setting needs for what it draws.

    python -m benchmarks.time_to_quality run --out DIR --input balloons.png --minutes 10 \\
        --settings prototype preview --seeds 0 1 2
    python -m benchmarks.time_to_quality show DIR --plot plot.png --out result.json

`run` trains every setting with every seed for so many minutes with ``oneshotgan train`` itself, its figures
measured every few hundred steps (SIFID and LPIPS of a few samples, in ``stats.jsonl``). Cases that are
done are skipped, one that was cut off goes on. `show` reads the run directories: figures against minutes,
and for each setting the minutes until it has reached both of the figures that the baseline has at its end, to
within the standard deviation of the baseline's seeds.

The baseline, `prototype`, is what a plain prototype once showed to work: base width 16, learning rates 5e-4,
batches of 5, moving average 0.999, all else as in the paper; 10 minutes on a photo, 15 on a clip. The preset
`preview` has its settings for clips.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import provenance, save

BASELINE = "prototype"
PROTOTYPE = {"diversity_weight": 0.15, "logit_scale": 1.0, "augment_probability": 0.7}
GENTLE = PROTOTYPE | {"augment_probability": 0.3}
SHARP = PROTOTYPE | {"logit_scale": 4.0}


def rates(g: float, d: float) -> dict[str, float]:
    return {"learning_rate_g": g, "learning_rate_d": d}


# Overrides of the preset `preview`.
SETTINGS: dict[str, dict[str, Any]] = {
    BASELINE: PROTOTYPE,
    "prototype-rates-fall": PROTOTYPE | {"constant_rate_steps": 3000},
    "gentle": GENTLE,
    "gentle-ema-0.99": GENTLE | {"ema_decay": 0.99},
    "gentle-rates-1e-3": GENTLE | rates(1e-3, 1e-3),
    "gentle-rate-d-1e-3": GENTLE | rates(5e-4, 1e-3),
    "gentle-rate-g-1e-3": GENTLE | rates(1e-3, 5e-4),
    "gentle-rates-2.5e-4": GENTLE | rates(2.5e-4, 2.5e-4),
    "gentle-rates-1e-3-fall": GENTLE | rates(1e-3, 1e-3) | {"constant_rate_steps": 500},
    "gentle-batch-3": GENTLE | {"batch_size": 3},
    "gentle-batch-8": GENTLE | {"batch_size": 8},
    "gentle-width-12": GENTLE | {"base_width": 12},
    "gentle-width-24": GENTLE | {"base_width": 24},
    "gentle-diversity-0.4": GENTLE | {"diversity_weight": 0.4},  # the preset, for a photo
    "gentle-diversity-released": GENTLE | {"diversity_norm": "released"},
    "gentle-beta1-0": GENTLE | {"adam_beta1": 0.0, "adam_beta2": 0.99},
    "gentle-beta2-0.99": GENTLE | {"adam_beta2": 0.99},
    "gentle-coarse-1000": GENTLE | {"coarse_steps": 1000},
    "gentle-coarse-2000": GENTLE | {"coarse_steps": 2000},
    "gentle-no-feature-augmentation": GENTLE | {"feature_augment_probability": 0.0},
    "gentle-low-level-3": GENTLE | {"low_level_blocks": 3},
    "gentle-logits-4": GENTLE | {"logit_scale": 4.0},
    "growing-augmentation": PROTOTYPE | {"augment_ramp_steps": 4000},
    "logits-4": SHARP,
    "logits-4-diversity-0.3": SHARP | {"diversity_weight": 0.3},
    "logits-4-diversity-0.6": SHARP | {"diversity_weight": 0.6},
    "logits-4-low-level-3": SHARP | {"low_level_blocks": 3},
    "logits-10": PROTOTYPE | {"logit_scale": 10.0},
}
PACE_LINES = 10  # log lines to either side whose median pace counts
SMOOTHED = 3  # measurements in a running median


@dataclass(frozen=True)
class Case:
    """One training."""

    source: Path
    setting: str
    seed: int
    minutes: float
    run: Path

    def command(self, threads: int, every: int) -> list[str]:
        words = [sys.executable, "-m", "oneshotgan", "train", str(self.source), "--out", str(self.run)]
        words += ["--preset", "preview", "--steps", "1000000", "--seed", str(self.seed)]
        words += ["--threads", str(threads), "--evaluate-every", str(every), "--log-every", str(every // 5)]
        words += ["--sample-every", str(every), "--checkpoint-every", "1000000"]
        for name, value in SETTINGS[self.setting].items():
            words += ["--" + name.replace("_", "-"), str(value)]
        return words

    def train(self, threads: int, every: int) -> None:
        """Train until the minutes are over; the run is left as one that was asked to stop."""
        if minutes_trained(self.run) >= self.minutes:
            return
        self.run.parent.mkdir(parents=True, exist_ok=True)
        with open(self.run.with_suffix(".log"), "a", encoding="utf-8") as log:
            process = subprocess.Popen(self.command(threads, every), stdout=log, stderr=log)
            while process.poll() is None and minutes_trained(self.run) < self.minutes:
                time.sleep(2)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
        print(f"{self.run}: {minutes_trained(self.run):.1f} min", flush=True)


def read_stats(run: Path) -> list[dict[str, Any]]:
    """The lines of ``stats.jsonl`` that are whole."""
    try:
        lines = (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def check_names(sources: list[Path]) -> None:
    """Each input's results lie under its name: two of one name would be mixed up."""
    if len({source.stem for source in sources}) < len(sources):
        raise SystemExit("error: inputs must differ in name: rename or link them")


def minutes(stats: list[dict[str, Any]], batch_size: int) -> list[float]:
    """Minutes of training up to each log line, without figures, sheets and checkpoints.

    Steps times the median pace around them: what else the machine did for a while does not count.
    """
    paces = [batch_size / line["images_per_second"] for line in stats]
    total, before, result = 0.0, 0, []
    for i, line in enumerate(stats):
        pace = statistics.median(paces[max(0, i - PACE_LINES) : i + PACE_LINES + 1])
        total, before = total + (line["step"] - before) * pace / 60, line["step"]
        result.append(total)
    return result


def timed_stats(run: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """The lines of a run, and `minutes` of each."""
    stats = read_stats(run)
    if not stats:
        return [], []
    batch_size = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["batch_size"]
    return stats, minutes(stats, batch_size)


def minutes_trained(run: Path) -> float:
    """Minutes of training so far."""
    return next(reversed(timed_stats(run)[1]), 0.0)


def train_all(given: argparse.Namespace) -> None:
    """`run`."""
    check_names(given.input)
    cases = [
        Case(source, setting, seed, given.minutes, given.out / source.stem / setting / f"seed-{seed}")
        for seed in given.seeds
        for source in given.input
        for setting in given.settings
    ]
    with ThreadPoolExecutor(given.workers) as pool:
        for _ in pool.map(lambda case: case.train(given.threads, given.every), cases):
            pass


# --- what came out ---

Series = list[tuple[float, float, float]]  # minutes, SIFID, LPIPS


def series(run: Path) -> Series:
    """The figures over the minutes, each the running median of a few measurements."""
    points = []
    for line, minute in zip(*timed_stats(run), strict=True):
        if "figures" in line:
            sifid = next(v for k, v in line["figures"].items() if k.startswith("sifid"))
            lpips = next(v for k, v in line["figures"].items() if k.startswith("lpips"))
            points.append((minute, sifid, lpips))
    smoothed = []
    for i in range(len(points)):
        window = points[max(0, i + 1 - SMOOTHED) : i + 1]
        sifid, lpips = (statistics.median(point[column] for point in window) for column in (1, 2))
        smoothed.append((points[i][0], sifid, lpips))
    return smoothed


def at(points: Series, minutes: float) -> tuple[float, float]:
    """SIFID and LPIPS at the last measurement up to `minutes`."""
    return next(((s, d) for m, s, d in reversed(points) if m <= minutes), (float("nan"), float("nan")))


def reached(points: Series, sifid: float, lpips: float) -> float | None:
    """The first minute with both figures as good; None if there is none."""
    return next((m for m, s, d in points if s <= sifid and d >= lpips), None)


def collect(folder: Path) -> dict[str, dict[str, list[Series]]]:
    """Input -> setting -> one series for each seed."""
    found: dict[str, dict[str, list[Series]]] = {}
    for run in sorted(folder.glob("*/*/seed-*")):
        if run.is_dir():
            of_input = found.setdefault(run.parts[-3], {})
            of_input.setdefault(run.parts[-2], []).append(series(run))
    return found


def goal_of(ends: list[tuple[float, float]]) -> tuple[float, float]:
    """SIFID at most, and LPIPS at least, to be as good as trainings that ended there: within their spread."""
    sifids, diversities = zip(*ends, strict=True)
    spreads = [statistics.stdev(column) if len(ends) > 1 else 0.0 for column in (sifids, diversities)]
    return statistics.mean(sifids) + spreads[0], statistics.mean(diversities) - spreads[1]


def summarise(found: dict[str, dict[str, list[Series]]], early: dict[str, float]) -> dict[str, Any]:
    """The table, as plain values."""
    result: dict[str, Any] = {}
    for name, settings in found.items():
        ends = [at(points, 1e9) for points in settings.get(BASELINE, []) if points]
        goal = goal_of(ends) if ends else None
        rows = {}
        for setting, runs in settings.items():
            runs = [points for points in runs if points]
            if not runs:
                continue
            row: dict[str, Any] = {"seeds": len(runs)}
            for label, minutes in (("early", early.get(name, 3.0)), ("end", 1e9)):
                values = [at(points, minutes) for points in runs]
                for figure, column in zip(("sifid", "lpips"), zip(*values, strict=True), strict=True):
                    spread = statistics.stdev(column) if len(column) > 1 else 0.0
                    row[f"{figure}_{label}"] = [round(statistics.mean(column), 3), round(spread, 3)]
            row["minutes"] = [round(min(points[-1][0] for points in runs), 1), early.get(name, 3.0)]
            if goal:
                row["reached_after"] = [
                    None if minute is None else round(minute, 1)
                    for minute in (reached(points, *goal) for points in runs)
                ]
            rows[setting] = row
        result[name] = {"goal": goal and [round(value, 3) for value in goal], "settings": rows}
    return result


def table(summary: dict[str, Any]) -> str:
    """As Markdown."""
    lines = []
    for name, content in summary.items():
        lines += [f"**{name}**; the goal, from the baseline's end: {content['goal']} (SIFID ↓, LPIPS ↑)", ""]
        lines += ["| setting | seeds | early SIFID | early LPIPS | minutes | SIFID | LPIPS | goal after |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for setting, row in content["settings"].items():
            cells = [setting, str(row["seeds"])]
            cells += ["{:.2f} ± {:.2f}".format(*row[key]) for key in ("sifid_early", "lpips_early")]
            cells += [f"{row['minutes'][0]}"]
            cells += ["{:.2f} ± {:.2f}".format(*row[key]) for key in ("sifid_end", "lpips_end")]
            cells += [", ".join("never" if m is None else f"{m}" for m in row.get("reached_after", []))]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, dict[str, list[Series]]], path: Path) -> None:
    """Figures against minutes: a line for each seed, a colour for each setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(found), 8), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, settings) in enumerate(found.items()):
        for number, (setting, runs) in enumerate(settings.items()):
            for points in runs:
                for row in (0, 1):
                    label = setting if points is runs[0] else None
                    xs, ys = [p[0] for p in points], [p[row + 1] for p in points]
                    axes[row][column].plot(xs, ys, color=f"C{number % 10}", lw=1, label=label)
        axes[0][column].set(title=name, yscale="log", ylabel="SIFID (lower is better)")
        axes[1][column].set(xlabel="minutes", ylabel="LPIPS diversity (higher is better)")
        axes[0][column].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def show(given: argparse.Namespace) -> None:
    """`show`."""
    found = collect(given.folder)
    early = {name: float(minutes) for name, minutes in (pair.split("=") for pair in given.early)}
    summary = summarise(found, early)
    print(table(summary))
    if given.out:
        save(given.out, provenance() | {"inputs": summary, "series": found})
    if given.plot:
        plot(found, given.plot)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--input", type=Path, action="append", required=True)
    run.add_argument("--minutes", type=float, required=True)
    run.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--threads", type=int, default=0)
    run.add_argument("--workers", type=int, default=1, help="trainings at once; give each --threads 1")
    run.add_argument("--every", type=int, default=200, help="steps between measurements")
    run.set_defaults(work=train_all)
    shown = commands.add_parser("show")
    shown.add_argument("folder", type=Path)
    shown.add_argument("--early", nargs="*", default=["balloons=3", "frames=5", "kite-surf=5"])
    shown.add_argument("--out", type=Path)
    shown.add_argument("--plot", type=Path)
    shown.set_defaults(work=show)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()
