"""Time of a training step, plain and fast, interleaved in one process; by parts; and against the roofline.

    python benchmarks/step.py --preset paper --out benchmarks/results/step-paper.json
    python benchmarks/step.py --preset preview --out benchmarks/results/step-preview.json

The frames are noise: the time does not depend on what they show. Every round makes a few steps of every
variant in turn, so that a slow minute of the machine meets them all; reported are medians and quartiles.

The *plain* step is that of `benchmarks/plain.py`, with a power iteration before every pass and the
discriminator's passes apart, in float32. "Without" is the fast step in the machine's own precision less one
ingredient, in rounds with the whole fast step and nothing else in memory. The *roofline* is the time that
the step's multiplications would take at the best rate of a large matrix product, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.plain import PlainOneShot, plain_diversity
from benchmarks.record import provenance, save
from oneshotgan import augment, config, losses
from oneshotgan.config import MachineConfig
from oneshotgan.machine import choose, freed_memory_kept, running_on
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.models.layers import Conv2d, WorkingWeights, convolutions, power_iteration

SIZES = {"paper": (192, 320), "preview": (64, 80)}
MATRIX = 2048  # side of the matrices of the roofline


class UnmergedConv2d(Conv2d):
    """Resampling apart from the convolution."""

    def merged(self, weight: Tensor) -> Tensor:
        return weight

    def unmerged(self, kernel: Tensor) -> Tensor:
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.prepared is None:
            return super().forward(x)
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        kernel = self.prepared.kernel
        x = F.conv2d(x.to(kernel.dtype), kernel, self.prepared.bias, padding=self.padding)
        return F.avg_pool2d(x, self.strides) if max(self.strides) > 1 else x


class Unmerged(OneShot):
    """The fast step with resampling apart from the convolutions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for weights in (self.weights_G, self.weights_D):
            precisions: dict[torch.nn.Module, torch.dtype] = {}
            for conv in weights.convolutions:
                assert conv.prepared is not None
                precisions[conv] = conv.prepared.kernel.dtype
                if conv.merger is not None:
                    conv.__class__ = UnmergedConv2d
            weights.__init__(precisions)  # type: ignore[misc]


class Unprepared(OneShot):
    """The fast step with σ, merger and their gradients by autograd, anew at every pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for network in (self.G, self.D):
            for conv in convolutions(network):
                conv.prepared = None
        for weights in (self.weights_G, self.weights_D):
            weights.refresh = self._iterating(weights)  # type: ignore[method-assign]
            weights.pull_back = lambda: None  # type: ignore[method-assign]

    @staticmethod
    def _iterating(weights: WorkingWeights) -> Callable[..., None]:
        """What is left of `refresh`: the power iteration."""

        @torch.no_grad()
        def refresh(iterate: bool = True) -> None:
            if iterate:
                power_iteration(weights.matrices, weights.us, weights.vs)

        return refresh


class Unfused(OneShot):
    """Adam tensor by tensor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for name in ("optimiser_G", "optimiser_D"):
            group = getattr(self, name).param_groups[0]
            how = {"foreach": False, "fused": False, "capturable": group["capturable"]}
            setattr(self, name, torch.optim.Adam(group["params"], group["lr"], group["betas"], **how))


@dataclass
class Variant:
    """One kind of step to time."""

    name: str
    kind: type[OneShot]
    precision: str
    overrides: dict[str, Any] = field(default_factory=dict)
    within: Callable[[], AbstractContextManager[None]] = freed_memory_kept
    seconds: list[float] = field(default_factory=list)
    method: OneShot | None = None
    made: int = 0

    def steps(self, count: int) -> float:
        """Seconds per step over `count` steps, after one that is not counted, to have its own memory."""
        assert self.method is not None
        with self.within():
            for number in range(count + 1):
                if number == 1:
                    synchronise(self.method.device)
                    started = time.perf_counter()
                self.made += 1
                self.method.step(self.made)
            synchronise(self.method.device)
            return (time.perf_counter() - started) / count


@contextmanager
def looped_diversity() -> Iterator[None]:
    """Eq. 1 pair by pair."""
    original = losses.diversity
    losses.diversity = lambda features, squash=True: plain_diversity(features, squash)
    try:
        with freed_memory_kept():
            yield
    finally:
        losses.diversity = original


PLAIN = {"power_iteration": "forward", "joined_pass": False}


def main_variants(precision: str) -> list[Variant]:
    """The plain step and the fast one; `precision` is the machine's own."""
    made = [Variant("plain fp32", PlainOneShot, "fp32", PLAIN, nullcontext)]
    return made + [Variant(f"fast {name}", OneShot, name) for name in dict.fromkeys(("fp32", precision))]


def ablations(precision: str) -> list[Variant]:
    """The fast step less one ingredient."""
    return [
        Variant("merged resampling", Unmerged, precision),
        Variant("one power iteration a step", OneShot, precision, {"power_iteration": "forward"}),
        Variant("the joined pass of D", OneShot, precision, {"joined_pass": False}),
        Variant("eq. 1 by pdist", OneShot, precision, within=looped_diversity),
        Variant("fused Adam", Unfused, precision),
        Variant("keeping freed memory", OneShot, precision, within=nullcontext),
        Variant("kernels made once an update (fp32)", Unprepared, "fp32"),
    ]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def launched(method: OneShot) -> Iterator[None]:
    """Within this context the step is not replayed: a replay calls none of the functions it consists of."""
    replayed, method.replayed = method.replayed, None
    try:
        yield
    finally:
        method.replayed = replayed


class Parts:
    """Times the parts of a step, launched piece by piece, by wrapping the functions it calls."""

    def __init__(self, method: OneShot) -> None:
        self.method, self.seconds, self.phase = method, dict[str, float](), "G"

    def measure(self, steps: range) -> dict[str, float]:
        """Milliseconds of each part, the median over `steps`."""
        undo = []
        for owner, name, label in self._targets():
            had = name in vars(owner)
            original = getattr(owner, name)
            setattr(owner, name, self._timed(original, label))
            undo.append((owner, name, original, had))
        rows = []
        try:
            for step in steps:
                self.seconds, self.phase = {}, "G"
                started = time.perf_counter()
                self.method.step(step)
                synchronise(self.method.device)
                total = time.perf_counter() - started
                rows.append(self.seconds | {"other": total - sum(self.seconds.values())})
        finally:
            for owner, name, original, had in undo:
                if had:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)
        return {key: round(1e3 * statistics.median(row.get(key, 0.0) for row in rows), 2) for key in rows[0]}

    def _targets(self) -> list[tuple[Any, str, str]]:
        method = self.method
        return [
            (method, "draw", "draws"),
            (method.batches, "images", "batch"),
            (method.G, "forward", "G forward"),
            (method.D, "forward", "D forward"),
            (losses, "diversity", "eq. 1"),
            (plain, "plain_diversity", "eq. 1"),
            (losses, "generator_loss", "losses"),
            (losses, "discriminator_loss", "losses"),
            (augment, "apply_transforms", "augmentation"),
            (torch.autograd, "backward", "backward"),
            (method.weights_G, "refresh", "kernels"),
            (method.weights_D, "refresh", "kernels"),
            (method.weights_G, "pull_back", "kernels"),
            (method.weights_D, "pull_back", "kernels"),
            (method.optimiser_G, "step", "optimisers"),
            (method.optimiser_D, "step", "optimisers"),
            (method.ema, "update", "EMA"),
        ]

    def _timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise(self.method.device)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise(self.method.device)
            name = (
                f"{label}, {self.phase} update" if label in ("backward", "G forward", "D forward") else label
            )
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            if label == "optimisers":
                self.phase = "D"
            return result

        return timed


def matrix_rate(precision: str, device: torch.device) -> float:
    """Multiplications and additions a second of a large matrix product, at its best of a few."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best


def flops(method: OneShot, step: int) -> int:
    """Of the convolutions and matrix products of one step."""
    with launched(method), FlopCounterMode(display=False) as counter:
        method.step(step)
    return counter.get_total_flops()


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {"median_ms": round(1e3 * middle, 2), "quartiles_ms": [round(1e3 * low, 2), round(1e3 * high, 2)]}


def ratio(ones: list[float], others: list[float]) -> float:
    """The median over the rounds of one / other."""
    return round(statistics.median(a / b for a, b in zip(ones, others, strict=True)), 2)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """All of it, on the machine that is set up."""
    machine = choose(MachineConfig(device=given.device, threads=given.threads))
    height, width = (int(side) for side in given.size.split("x")) if given.size else SIZES[given.preset]
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)
    with running_on(machine) as device:

        def interleave(timed: list[Variant]) -> None:
            for variant in timed:
                settings = config.with_overrides(config.preset(given.preset), variant.overrides)
                variant.method = variant.kind(settings, frames, device, variant.precision)
                variant.steps(2)
            for _ in range(given.rounds):
                for variant in timed:
                    variant.seconds.append(variant.steps(given.steps))
                for precision in rates:
                    rates[precision].append(matrix_rate(precision, device))

        rates: dict[str, list[float]] = {"fp32": [], machine.precision: []}
        compared = main_variants(machine.precision)
        names = given.only or [variant.name for variant in compared]
        compared = [variant for variant in compared if variant.name in names]
        if len(compared) < len(names):
            raise SystemExit("error: --only takes the names of compared steps")
        interleave(compared)
        results: dict[str, Any] = {}
        for variant in compared:
            assert variant.method is not None
            row = results[variant.name] = summary(variant.seconds)
            row["times_first"] = ratio(compared[0].seconds, variant.seconds)
            row["gflop"] = round(flops(variant.method, variant.made + 1) / 1e9, 2)
            rate = statistics.median(rates[variant.precision])
            row["roofline_ms"] = round(1e12 * row["gflop"] / rate, 2)
            row["share_of_roofline"] = round(row["roofline_ms"] / row["median_ms"], 2)
            start = variant.made + 2
            with variant.within(), launched(variant.method):
                row["parts_ms"] = Parts(variant.method).measure(range(start, start + max(3, given.steps)))
        for variant in compared:
            variant.method = None

        without: dict[str, Any] = {}
        for variant in [] if given.no_ablations else ablations(machine.precision):
            fast = Variant("fast", OneShot, variant.precision)
            interleave([fast, variant])
            without[variant.name] = {
                "fast_ms": summary(fast.seconds)["median_ms"],
                "without_ms": summary(variant.seconds)["median_ms"],
                "buys": ratio(variant.seconds, fast.seconds),
            }
            variant.method = fast.method = None
    return {
        "what": f"{given.preset} at {height}x{width}",
        **provenance(machine.device),
        "threads": machine.threads,
        "rounds": given.rounds,
        "steps_a_round": given.steps,
        "matrix_gflops": {name: round(statistics.median(values) / 1e9, 1) for name, values in rates.items()},
        "results": results,
        "without": without,
    }


def table(content: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        f"| step | median ms | quartiles | times {next(iter(content['results']))} |",
        "|---|---|---|---|",
    ]
    for name, row in content["results"].items():
        low, high = row["quartiles_ms"]
        lines.append(f"| {name} | {row['median_ms']:.1f} | {low:.1f}–{high:.1f} | {row['times_first']:.2f} |")
    timed = content["results"]
    lines += ["", "| part, ms | " + " | ".join(timed) + " |", "|---" * (len(timed) + 1) + "|"]
    parts = dict.fromkeys(part for row in timed.values() for part in row["parts_ms"])
    for part in parts:
        cells = (f"{row['parts_ms'].get(part, 0):.1f}" for row in timed.values())
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines += ["", "| | GFLOP a step | roofline ms | share |", "|---|---|---|---|"]
    for name, row in timed.items():
        share = f"{row['share_of_roofline']:.0%}"
        lines.append(f"| {name} | {row['gflop']:.1f} | {row['roofline_ms']:.1f} | {share} |")
    lines += ["", "| without | ms | with it | buys |", "|---|---|---|---|"]
    for name, row in content["without"].items():
        lines.append(f"| {name} | {row['without_ms']:.1f} | {row['fast_ms']:.1f} | {row['buys']:.2f}× |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=SIZES, default="preview")
    parser.add_argument("--size", help="HEIGHTxWIDTH instead of the preset's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant in a round")
    parser.add_argument("--only", nargs="+", help="of the compared steps these, by name; the first is 1.00")
    parser.add_argument("--no-ablations", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    content = run(given)
    print(table(content))
    if given.out:
        save(given.out, content)


if __name__ == "__main__":
    main()
