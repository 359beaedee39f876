"""LPIPS v0.1, the learned perceptual distance (Zhang et al., CVPR 2018).

The features of five layers are scaled to unit length at each location; the squared differences are
weighted per channel by the learned heads, averaged over the locations and summed over the layers. With
the root of the weights folded into the features this is a squared Euclidean distance, so that features are
computed once per image and any number of images is compared by matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from oneshotgan.data import in_batches
from oneshotgan.errors import UserError
from oneshotgan.perceptual import weights
from oneshotgan.perceptual.weights import Weights

# Convolution (index, channels in, out, kernel, stride, padding), with a pooling in front where marked; the
# features are taken after the ReLU of the layers listed.
_ALEXNET = (
    [
        (0, 3, 64, 11, 4, 2, False),
        (3, 64, 192, 5, 1, 2, True),
        (6, 192, 384, 3, 1, 1, True),
        (8, 384, 256, 3, 1, 1, False),
        (10, 256, 256, 3, 1, 1, False),
    ],
    (0, 3, 6, 8, 10),
    3,
)
_VGG16 = (
    [
        (0, 3, 64, 3, 1, 1, False),
        (2, 64, 64, 3, 1, 1, False),
        (5, 64, 128, 3, 1, 1, True),
        (7, 128, 128, 3, 1, 1, False),
        (10, 128, 256, 3, 1, 1, True),
        (12, 256, 256, 3, 1, 1, False),
        (14, 256, 256, 3, 1, 1, False),
        (17, 256, 512, 3, 1, 1, True),
        (19, 512, 512, 3, 1, 1, False),
        (21, 512, 512, 3, 1, 1, False),
        (24, 512, 512, 3, 1, 1, True),
        (26, 512, 512, 3, 1, 1, False),
        (28, 512, 512, 3, 1, 1, False),
    ],
    (2, 7, 14, 21, 28),
    2,
)
_NETWORKS = {"alex": (_ALEXNET, weights.ALEXNET), "vgg": (_VGG16, weights.VGG16)}
SMALLEST = 32  # pixels: AlexNet's fifth layer has one location there
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)
_CHUNK = 2**15  # feature values per image in one matrix product


Batches = Callable[[Tensor, torch.device], Iterable[Tensor]]


@dataclass(frozen=True)
class Features:
    """What LPIPS compares, of N images: per layer (N, C·h·w) in float16, and the number of locations.

    Float16 halves the memory; the distances move by less than 1e-6, as roundings average out over the
    hundreds of thousands of values of an image.
    """

    layers: tuple[Tensor, ...]
    locations: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.layers[0])

    def __getitem__(self, chosen: Tensor) -> Features:
        return Features(tuple(layer[chosen] for layer in self.layers), self.locations)


class LPIPS(nn.Module):
    """The distance with the features of "alex" (AlexNet) or "vgg" (VGG16).

    Args:
        network: "alex" or "vgg".
        loaded: its pretrained weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: str, loaded: Weights) -> None:
        super().__init__()
        self.network, self.weights = network, loaded
        (layers, self.taken, self.pool), _ = _NETWORKS[network]
        self.pooled_before = {index for index, *_, pooled in layers if pooled}
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(i, o, kernel, stride, padding)
                for index, i, o, kernel, stride, padding, _ in layers
            }
        )
        weights.fill(self, loaded)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)
        heads = load_safetensors(
            files("oneshotgan.perceptual").joinpath(f"heads/lpips_v0.1_{network}.safetensors").read_bytes()
        )
        for i in range(len(self.taken)):
            self.register_buffer(f"root{i}", heads[f"lin{i}"].sqrt().view(1, -1, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, network: str = "alex") -> LPIPS:
        """With pretrained weights (see `oneshotgan.perceptual.weights.load`).

        Raises:
            UserError: the weights are missing or damaged.
        """
        return cls(network, weights.load(_NETWORKS[network][1]))

    @property
    def name(self) -> str:
        """What a figure made with these weights says of them: ``alex``, ``vgg_1a2b3c4d``, …"""
        return self.weights.marked(self.network)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair, (N,), differentiable; a and b are (N, 3, H, W) in [-1, 1]."""
        total = a.new_zeros(len(a))
        for x, y in zip(self.maps(a), self.maps(b), strict=True):
            total = total + (x - y).square().sum(dim=1).mean(dim=(1, 2))
        return total

    def maps(self, images: Tensor) -> list[Tensor]:
        """The five weighted feature maps (N, C, h, w) of images (N, 3, H, W) in [-1, 1].

        Raises:
            UserError: the images are smaller than 32 px.
        """
        if min(images.shape[2:]) < SMALLEST:
            raise UserError(f"LPIPS needs images of {SMALLEST} pixels or more on the short side")
        x = (images - self.mean) / self.deviation
        found: list[Tensor] = []
        for name, convolution in self.features.items():
            if int(name) in self.pooled_before:
                x = F.max_pool2d(x, kernel_size=self.pool, stride=2)
            x = torch.relu(convolution(x))
            if int(name) in self.taken:
                unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                found.append(unit * getattr(self, f"root{len(found)}"))
        return found

    @torch.inference_mode()
    def embed(self, images: Tensor, batches: Batches = in_batches) -> Features:
        """The features of images, for `distances`: one pass per image.

        Args:
            images: uint8 (N, H, W, 3), or float (N, 3, H, W) in [-1, 1].
            batches: makes of them what the network sees, a few at a time.
        """
        layers: list[Tensor] = []
        locations: list[int] = []
        start = 0
        for batch in batches(images, self.device):
            maps = self.maps(batch)
            if not layers:
                locations = [x.shape[2] * x.shape[3] for x in maps]
                layers = [x.new_empty(len(images), x[0].numel(), dtype=torch.float16) for x in maps]
            for layer, x in zip(layers, maps, strict=True):
                layer[start : start + len(x)] = x.flatten(1)
            start += len(batch)
        return Features(tuple(layers), tuple(locations))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


@torch.inference_mode()
def distances(a: Features, b: Features) -> Tensor:
    """LPIPS of every image of `a` with every image of `b`, (Na, Nb) float64.

    |x − y|² = |x|² + |y|² − 2 x·y in float64, so that nothing is lost where the two are nearly equal.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.layers[0].device)
    for x, y, locations in zip(a.layers, b.layers, a.locations, strict=True):
        part = torch.zeros_like(total)
        for start in range(0, x.shape[1], _CHUNK):
            left = x[:, start : start + _CHUNK].double()
            right = left if y is x else y[:, start : start + _CHUNK].double()
            part += left.square().sum(1)[:, None] + right.square().sum(1)[None, :] - 2 * left @ right.T
        total += part / locations
    return total.clamp_min(0)


@torch.inference_mode()
def paired_distances(a: Features, b: Features) -> Tensor:
    """LPIPS of image i of `a` with image i of `b`, (N,) float64."""
    total = torch.zeros(len(a), dtype=torch.float64, device=a.layers[0].device)
    for x, y, locations in zip(a.layers, b.layers, a.locations, strict=True):
        for i in range(len(x)):
            total[i] += (x[i].float() - y[i].float()).square().sum(dtype=torch.float64) / locations
    return total
