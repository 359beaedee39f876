"""How long the figures take, beside a direct evaluation pair by pair; and how much memory.

    python benchmarks/figures.py --out benchmarks/results/figures.json

Images are synthetic: the time does not depend on what they show. Each part runs in a process of its own, so
that the peak memory is its own. The direct evaluations compute the same pairs, two passes of a network each.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from oneshotgan.machine import processor
from oneshotgan.metrics import lpips_pairs, ms_ssim_pairs
from oneshotgan.metrics.figures import Networks, Reference, measure
from oneshotgan.perceptual import LPIPS


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth random images, uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(0)
    made = torch.empty(count, height, width, 3, dtype=torch.uint8)
    for i in range(count):
        coarse = torch.rand(1, 3, 12, 20, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        made[i] = (fine[0].permute(1, 2, 0) * 255).to(torch.uint8)
    return made


def lpips_fast(count: int) -> float:
    x, network = images(count, 192, 320), LPIPS.load()
    return timed(lambda: lpips_pairs(x, network))


@torch.inference_mode()
def lpips_direct(count: int) -> float:
    x, network = images(count, 192, 320).permute(0, 3, 1, 2).float() / 127.5 - 1, LPIPS.load()

    def direct() -> None:
        for i in range(count):
            for j in range(i):
                network(x[i : i + 1], x[j : j + 1])

    return timed(direct)


def ms_ssim_fast(count: int) -> float:
    x = images(count, 192, 320)
    return timed(lambda: ms_ssim_pairs(x))


def ms_ssim_direct(count: int) -> float:
    from pytorch_msssim import ms_ssim

    x = images(count, 192, 320).permute(0, 3, 1, 2).float() / 255

    def direct() -> None:
        for i in range(count):
            for j in range(i):
                ms_ssim(x[i : i + 1], x[j : j + 1], data_range=1)

    return timed(direct)


def all_figures(count: int, frames: int, height: int, width: int) -> float:
    fake, real = images(count, height, width), images(frames, height, width)
    networks = Networks.load("torchvision", "cpu")
    return timed(lambda: measure(fake, Reference.of(real, networks), networks))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


PARTS: dict[str, Callable[[], float]] = {
    "LPIPS, 100 images 192x320, all pairs": lambda: lpips_fast(100),
    "LPIPS, the same pairs one by one": lambda: lpips_direct(100),
    "MS-SSIM, 100 images 192x320, all pairs": lambda: ms_ssim_fast(100),
    "MS-SSIM, a tenth of the pairs one by one (pytorch-msssim)": lambda: ms_ssim_direct(32),
    "all figures, 100 images 192x320 against 80 frames": lambda: all_figures(100, 80, 192, 320),
    "all figures, 100 images 480x854 against one": lambda: all_figures(100, 1, 480, 854),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=PARTS, help="run one part and print its result")
    given = parser.parse_args()
    if given.part:
        seconds = PARTS[given.part]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": round(seconds, 2), "peak_MB": round(peak)}))
        return
    results = {}
    for part in PARTS:
        words = [sys.executable, __file__, "--part", part]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        results[part] = json.loads(done.stdout)
        print(f"{part}: {results[part]}", flush=True)
    content = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "results": results,
    }
    if given.out:
        given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
