"""The paper's Table 1, and when a figure of ours may stand beside one of it."""

from __future__ import annotations

from oneshotgan.benchmark.suite import Case

# method -> setting -> figure's title -> value. Table 1 of Sushko, Gall and Khoreva (CVPR Workshops 2021).
TABLE_1 = {
    "singan": {
        "image": {"SIFID": 0.13, "LPIPS": 0.26, "MS-SSIM": 0.69, "Distance to training": 0.30},
        "video": {"SIFID": 2.47, "LPIPS": 0.32, "MS-SSIM": 0.65, "Distance to training": 0.51},
    },
    "fastgan": {
        "image": {"SIFID": 0.13, "LPIPS": 0.18, "MS-SSIM": 0.77, "Distance to training": 0.11},
        "video": {"SIFID": 0.79, "LPIPS": 0.43, "MS-SSIM": 0.55, "Distance to training": 0.13},
    },
    "oneshot": {
        "image": {"SIFID": 0.08, "LPIPS": 0.33, "MS-SSIM": 0.63, "Distance to training": 0.37},
        "video": {"SIFID": 0.55, "LPIPS": 0.43, "MS-SSIM": 0.54, "Distance to training": 0.34},
    },
}
SUITE, CLIPS, SAMPLES, SIZE = "table1", 15, 100, (192, 320)
# The figures that follow the paper's words, or its released program, on the canonical weights.
FIGURES = {
    "sifid64_torchvision",
    "sifid64_torchvision_released",
    "lpips_alex",
    "lpips_alex_released",
    "ms_ssim_5scale",
    "dist_to_train_alex_k8",
    "dist_to_train_alex_released",
}


def difference(case: Case, figure: str, sizes: set[tuple[int, int]], clips: int) -> str | None:
    """Why a mean of ours is no figure to hold against the paper's; None where no reason is known.

    Args:
        case: any one of those in the mean.
        figure: its name.
        sizes: every (height, width) that it was measured at.
        clips: how many it is the mean of.
    """
    if case.suite != SUITE:
        return f"the paper's clips and protocol are those of the suite {SUITE}, not of {case.suite}"
    if case.preset != "paper" or case.overrides or case.steps or case.seconds:
        return "the paper trains as the preset paper does, without another budget or setting"
    if clips != CLIPS:
        return f"the paper's mean is over {CLIPS} clips, not {clips}"
    if case.samples != SAMPLES:
        return f"the paper measures {SAMPLES} samples, not {case.samples}"
    if sizes != {SIZE}:
        others = ", ".join(f"{width}x{height}" for height, width in sorted(sizes - {SIZE}))
        return f"the paper's images are {SIZE[1]}x{SIZE[0]}, not {others}"
    if figure not in FIGURES:
        return f"{figure} rests on another protocol or on other weights than the paper's figure"
    return None
