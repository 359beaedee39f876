"""The figures of the paper's Table 1, as arithmetic on images: tensors in, numbers out, no files.

Images are uint8 (N, H, W, 3), as `OneShotGAN.sample` gives them, or float (N, 3, H, W) in [-1, 1]; arrays or
tensors. Files come in with `evaluate`.

sifid.py, frechet.py   quality: SIFID
diversity.py           LPIPS and MS-SSIM between samples
ms_ssim.py             MS-SSIM of many pairs
distance.py            distance to training
alignment.py           distance to the best-aligned training image
jackknife.py           standard errors
figures.py             the figures of a set of samples, with their names and protocols
evaluate.py            a run or a folder of images -> figures, metrics.json
"""

from oneshotgan.metrics.alignment import aligned_distance
from oneshotgan.metrics.distance import distance_to_train, training_copies
from oneshotgan.metrics.diversity import lpips_diversity, lpips_pairs, ms_ssim_diversity
from oneshotgan.metrics.figures import DIRECTIONS, Figure
from oneshotgan.metrics.frechet import Gaussians, fit_gaussians, frechet_distance
from oneshotgan.metrics.jackknife import mean_error, pairs_mean_error
from oneshotgan.metrics.ms_ssim import ms_ssim_pairs
from oneshotgan.metrics.sifid import sifid
from oneshotgan.perceptual import LPIPS, InceptionStem

__all__ = [
    "DIRECTIONS",
    "LPIPS",
    "Figure",
    "Gaussians",
    "InceptionStem",
    "aligned_distance",
    "distance_to_train",
    "fit_gaussians",
    "frechet_distance",
    "lpips_diversity",
    "lpips_pairs",
    "mean_error",
    "ms_ssim_diversity",
    "ms_ssim_pairs",
    "pairs_mean_error",
    "sifid",
    "training_copies",
]
