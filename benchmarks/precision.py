"""Does bf16 learn as float32 does? The same trainings in both, seed by seed.

    python -m benchmarks.precision run --out DIR --input balloons.png kite-surf --seeds 0 1 2 3 4
    python -m benchmarks.precision show DIR --pool EARLIER.json --out benchmarks/results/precision.json

    python -m benchmarks.precision run --out DIR --input balloons.png --base runs/balloons --seeds 1 2 3 4 5
    python -m benchmarks.precision show DIR --last 2000

Each training makes 2,000 steps of `preview` on one thread and measures its figures every 100 steps; the mean
over the last 500 steps is the training's value. For each input and figure: the mean difference bf16 − float32
over the seeds, with its 95 % interval (Student's t), in per cent of the float32 mean.

From the first step on, trainings that differ in a rounding soon differ in all, and at step 2,000 one may be
far ahead of another: many seeds are needed. With `--base` both trainings of a pair go on from one finished
run, whose scene stands, with random numbers of their own seed; then all 2,000 steps can count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scipy.stats import t

from benchmarks.record import provenance, save
from benchmarks.time_to_quality import check_names, read_stats

PRECISIONS = ("bf16", "fp32")
STEPS, EVERY, LAST = 2000, 100, 500


def begin_from(base: Path, run: Path, seed: int) -> None:
    """A copy of a finished run that goes on for `STEPS` with the random numbers of `seed`."""
    beginning = run.with_name(f".{run.name}")
    shutil.rmtree(beginning, ignore_errors=True)
    shutil.copytree(
        base, beginning, ignore=shutil.ignore_patterns("samples", "generated", ".lock", "stats.jsonl")
    )
    (beginning / "samples").mkdir()
    content = json.loads((beginning / "config.json").read_text(encoding="utf-8"))
    content["training"] |= {"seed": seed, "steps": content["training"]["steps"] + STEPS}
    (beginning / "config.json").write_text(json.dumps(content), encoding="utf-8")
    beginning.rename(run)


def train(source: Path, precision: str, seed: int, run: Path, base: Path | None) -> None:
    """One training; one that is finished is left alone."""
    run.parent.mkdir(parents=True, exist_ok=True)
    if base is not None and not run.exists():
        begin_from(base, run, seed)
    steps = STEPS if base is None else steps_of(run)
    words = [sys.executable, "-m", "oneshotgan", "train", source, "--out", run, "--preset", "preview"]
    words += ["--steps", steps, "--seed", seed, "--threads", 1, "--precision", precision]
    words += ["--evaluate-every", EVERY, "--sample-every", STEPS, "--snapshot-every", STEPS]
    with open(run.with_suffix(".log"), "a", encoding="utf-8") as log:
        subprocess.run([str(word) for word in words], stdout=log, stderr=log, check=True)
    print(run, flush=True)


def train_all(given: argparse.Namespace) -> None:
    """`run`."""
    check_names(given.input)
    cases = [
        (source, precision, seed, given.out / source.stem / precision / f"seed-{seed}", base)
        for seed in given.seeds
        for source, base in zip(given.input, given.base or [None] * len(given.input), strict=True)
        for precision in PRECISIONS
    ]
    with ThreadPoolExecutor(given.workers) as pool:
        for _ in pool.map(lambda case: train(*case), cases):
            pass


def steps_of(run: Path) -> int:
    """How many steps a run is to make in all."""
    return int(json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["steps"])


def finished(run: Path) -> bool:
    """Whether all steps are made."""
    stats = read_stats(run)
    return bool(stats) and stats[-1]["step"] == steps_of(run)


def figures(run: Path, last: int) -> dict[str, float]:
    """The mean of each figure over the measurements of the last so many steps."""
    first = steps_of(run) - last
    lines = [line["figures"] for line in read_stats(run) if "figures" in line and line["step"] > first]
    return {name: statistics.mean(line[name] for line in lines) for name in lines[-1]}


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval."""
    mean, freedom = statistics.mean(differences), len(differences) - 1
    reach = float(t.ppf(0.975, freedom)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - reach, mean + reach


def settings_of(folder: Path) -> dict[str, Any]:
    """What all trainings on one input have in common."""
    run = next(folder.glob("fp32/seed-*/config.json"))
    content = json.loads(run.read_text(encoding="utf-8"))
    content["training"].pop("seed", None)
    return {section: content.get(section) for section in ("data", "model", "training")}


Pairs = dict[str, dict[str, list[float]]]  # figure -> seed -> its value in bf16 and in float32


def collect(folder: Path, last: int = LAST) -> Pairs:
    """The finished pairs among the trainings on one input."""
    pairs: Pairs = {}
    for run in sorted(folder.glob("fp32/seed-*")):
        both = [folder / precision / run.name for precision in PRECISIONS]
        if all(path.is_dir() and finished(path) for path in both):
            half, full = (figures(path, last) for path in both)
            for name in full:
                pairs.setdefault(name, {})[run.name] = [round(half[name], 4), round(full[name], 4)]
    return pairs


def show(given: argparse.Namespace) -> None:
    """`show`."""
    earlier = json.loads(given.pool.read_text(encoding="utf-8")) if given.pool else {"inputs": {}}
    result: dict[str, Any] = earlier["inputs"]
    for folder in sorted(path for path in given.folder.iterdir() if path.is_dir()):
        found = collect(folder, given.last)
        if not found:
            continue
        of_input = result.setdefault(folder.name, {"settings": settings_of(folder), "figures": {}})
        if of_input["settings"] != settings_of(folder):
            raise SystemExit(f"error: {given.pool} was made with other settings on {folder.name}")
        for name, pairs in found.items():
            of_figure = of_input["figures"].setdefault(name, {"pairs": {}})
            if twice := of_figure["pairs"].keys() & pairs.keys():
                raise SystemExit(f"error: {given.pool} has {', '.join(sorted(twice))} of {folder.name} too")
            of_figure["pairs"] |= pairs
    for source, content in result.items():
        for name, row in content["figures"].items():
            halves, fulls = zip(*row["pairs"].values(), strict=True)
            whole = statistics.mean(fulls)
            row |= {"fp32": round(whole, 4), "seeds": len(fulls)}
            text = f"{source} {name}: fp32 {whole:.3f}, {len(fulls)} seeds"
            if len(fulls) > 1:
                differences = [half - full for half, full in zip(halves, fulls, strict=True)]
                mean, low, high = (100 * value / whole for value in interval(differences))
                row |= {
                    "difference_percent": round(mean, 2),
                    "interval_percent": [round(low, 2), round(high, 2)],
                }
                text += f", bf16 {mean:+.1f} % [{low:+.1f}, {high:+.1f}]"
            print(text)
    if given.out:
        commits = [*earlier["earlier_commits"], earlier["commit"]] if given.pool else []
        about = {"earlier_commits": commits, "last_steps": given.last}
        save(given.out, provenance() | about | {"inputs": result})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--input", type=Path, nargs="+", required=True)
    run.add_argument("--base", type=Path, nargs="+", help="a finished run for each input, to go on from")
    run.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    run.add_argument("--workers", type=int, default=2)
    run.set_defaults(work=train_all)
    shown = commands.add_parser("show")
    shown.add_argument("folder", type=Path)
    shown.add_argument("--last", type=int, default=LAST, help="steps whose measurements count")
    shown.add_argument("--pool", type=Path, help="a result of `show`, whose seeds are taken too")
    shown.add_argument("--out", type=Path)
    shown.set_defaults(work=show)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()
