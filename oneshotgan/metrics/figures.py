"""The figures of a set of samples: each with a name that carries its protocol, and all that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneshotgan.data import image_size, in_batches
from oneshotgan.errors import UserError
from oneshotgan.metrics import jackknife, sifid
from oneshotgan.metrics.alignment import aligned_distance
from oneshotgan.metrics.distance import COPIES, Nearest, nearest_copies
from oneshotgan.metrics.frechet import frechet_distance
from oneshotgan.metrics.ms_ssim import ms_ssim_pairs, scales_for
from oneshotgan.perceptual import LPIPS, InceptionStem, lpips
from oneshotgan.perceptual.inception import LAYERS
from oneshotgan.perceptual.weights import Weights
from oneshotgan.spread import spread

SMALL_LAYERS = (64,)
SMALL_REALS = 16  # training images that SIFID compares with during training

# What a figure's name begins with -> its title, and whether more is better.
DIRECTIONS = {
    "sifid": ("SIFID", "↓"),
    "lpips": ("LPIPS", "↑"),
    "ms_ssim": ("MS-SSIM", "↓"),
    "dist_to_train": ("Distance to training", "↑"),
    "aligned_dist": ("Distance to the best-aligned copy", "↑"),
}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: with the protocol, as ``lpips_alex``.
        value: the figure.
        standard_error: by the jackknife over samples; NaN where there are too few.
        count: of samples.
        size: (height, width) they were compared at.
        reals: which real images they were compared with; "" for a figure among samples.
        weights: the file and checksum of the pretrained network; None where there is none.
    """

    name: str
    value: float
    standard_error: float
    count: int
    size: tuple[int, int]
    reals: str = ""
    weights: Weights | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return self._kind[0]

    @property
    def direction(self) -> str:
        """↑ where more is better, ↓ where less is."""
        return self._kind[1]

    @property
    def _kind(self) -> tuple[str, str]:
        return next(kind for prefix, kind in DIRECTIONS.items() if self.name.startswith(prefix))

    def entry(self, seeds: list[int] | None) -> dict[str, Any]:
        """Its object in metrics.json.

        Args:
            seeds: first and last of the samples; None for images from elsewhere.
        """
        weights = self.weights and {"file": self.weights.file, "sha256": self.weights.sha256}
        return {
            "name": self.name,
            "value": self.value,
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "title": self.title,
            "direction": self.direction,
            "count": self.count,
            "size": list(self.size),
            "seeds": seeds,
            "reals": self.reals or None,
            "weights": weights,
        }


@dataclass(frozen=True)
class Networks:
    """The pretrained networks; one whose weights are missing is None, and its figures are left out."""

    stem: InceptionStem | None
    lpips: LPIPS | None

    @classmethod
    def load(
        cls, inception: str, device: torch.device | str, missing: Callable[[UserError], None] | None = None
    ) -> Networks:
        """Find, or download, and load them.

        Args:
            inception: the weights of the stem, "torchvision" or "fid".
            missing: told why one cannot be loaded; if None, that is raised.

        Raises:
            UserError: weights are missing or damaged, and `missing` is None.
        """

        def loaded(load: Callable[[], Any]) -> Any:
            try:
                return load().to(device)
            except UserError as error:
                if missing is None:
                    raise
                missing(error)
                return None

        return cls(stem=loaded(lambda: InceptionStem.load(inception)), lpips=loaded(LPIPS.load))


@dataclass(frozen=True)
class Reference:
    """What of the real images can be computed before the samples are there.

    Attributes:
        images: uint8 (M, H, W, 3), at the samples' size.
    """

    images: Tensor
    statistics: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Tensor, networks: Networks, layers: Sequence[int] = LAYERS) -> Reference:
        """Pass the real images through the stem."""
        known = {} if networks.stem is None else sifid.statistics(images, networks.stem, layers)
        return cls(images, known)


@dataclass(frozen=True)
class Measured:
    """The figures of a set of samples, and for each sample the nearest of the training copies."""

    figures: list[Figure]
    nearest: Nearest | None = None

    def __getitem__(self, prefix: str) -> Figure:
        """The first figure whose name begins with `prefix`; KeyError if there is none."""
        for figure in self.figures:
            if figure.name.startswith(prefix):
                return figure
        raise KeyError(prefix)


def measure(
    fake: Tensor, reference: Reference, networks: Networks, released: bool = False, small: bool = False
) -> Measured:
    """All figures of a set of samples.

    Args:
        fake: uint8 (N, H, W, 3), N ≥ 2.
        released: also as the released program computes them.
        small: only SIFID at 64 channels and LPIPS, for use during training.

    Raises:
        UserError: fewer than two samples, or images too small for a figure.
    """
    check_count(len(fake))
    size, real = image_size(fake), reference.images
    every = "the training image" if len(real) == 1 else f"mean over all {len(real)} training frames"
    figures: list[Figure] = []

    def add(name: str, error: tuple[float, float], reals: str = "", weights: Weights | None = None) -> None:
        figures.append(Figure(name, *error, len(fake), size, reals, weights))

    # Quality: SIFID, each sample against every training image
    if (stem := networks.stem) is not None:
        layers = SMALL_LAYERS if small else LAYERS
        own = sifid.statistics(fake, stem, layers)
        for layer in layers:
            distances = frechet_distance(own[layer], reference.statistics[layer])
            name = f"sifid{layer}_{stem.name}"
            add(name, jackknife.mean_error(distances.mean(dim=1)), every, stem.weights)
            if released and layer == 64:
                first = jackknife.mean_error(distances[:, 0])
                add(f"{name}_released", first, "the first training frame", stem.weights)

    # Diversity: all pairs of samples; MS-SSIM first, while no features take memory
    similarities = None if small else ms_ssim_pairs(fake)
    features = None
    if (network := networks.lpips) is not None:
        features = network.embed(fake)
        pairs = lpips.distances(features, features)
        add(f"lpips_{network.name}", jackknife.pairs_mean_error(pairs), weights=network.weights)
    if similarities is None:
        return Measured(figures)
    add(f"ms_ssim_{scales_for(*size)}scale", jackknife.pairs_mean_error(similarities))

    # Memorisation: the nearest of the training images and of their copies
    if network is None or features is None:
        return Measured(figures)
    nearest = nearest_copies(features, real, network)
    of = f"the nearest of {len(real)} training images in {COPIES} copies each (itself, mirror, augmented)"
    add(
        f"dist_to_train_{network.name}_k{COPIES}", jackknife.mean_error(nearest.distance), of, network.weights
    )
    aligned = torch.minimum(aligned_distance(fake, real, network, features).distance, nearest.distance)
    of = f"the nearest of {len(real)} training images best mirrored, moved, turned, zoomed, and of copies"
    add(f"aligned_dist_{network.name}_k{COPIES}", jackknife.mean_error(aligned), of, network.weights)
    if released:
        del features  # two of these are too much for a small memory
        features = network.embed(fake, _in_released_range)
        pairs = lpips.distances(features, features)
        add(f"lpips_{network.name}_released", jackknife.pairs_mean_error(pairs), weights=network.weights)
        batches = _in_released_range(real, network.device)
        plain = torch.cat([lpips.distances(features, network.embed(batch)) for batch in batches], dim=1)
        of = f"the nearest of {len(real)} training images"
        error = jackknife.mean_error(plain.min(dim=1).values)
        add(f"dist_to_train_{network.name}_released", error, of, network.weights)
    return Measured(figures, nearest)


def check_count(samples: int) -> None:
    """Raise a UserError unless there are two samples to compare."""
    if samples < 2:
        raise UserError(f"diversity compares samples with one another: give 2 images or more, not {samples}")


def small_figures(real: np.ndarray, networks: Networks) -> Callable[[np.ndarray], dict[str, float]]:
    """For `fit`: SIFID and LPIPS of a few samples, against `SMALL_REALS` training images at most.

    Their names end in ``_small``: with fewer samples and frames they are no figures to publish.

    Args:
        real: uint8 (M, H, W, 3), the training images.
    """
    chosen = real[spread(len(real), SMALL_REALS)]
    reference = Reference.of(torch.from_numpy(chosen), networks, SMALL_LAYERS)

    def figures(fake: np.ndarray) -> dict[str, float]:
        measured = measure(torch.from_numpy(fake), reference, networks, small=True)
        return {f"{figure.name}_small": figure.value for figure in measured.figures}

    return figures


def _in_released_range(images: Tensor, device: torch.device) -> Iterator[Tensor]:
    """As the released program feeds LPIPS: images in [0, 1], where the network expects [-1, 1]."""
    return ((batch + 1) / 2 for batch in in_batches(images, device))
