"""The first layers of Inception-v3 (Szegedy et al., CVPR 2016), whose features SIFID compares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshotgan.errors import UserError
from oneshotgan.perceptual import weights
from oneshotgan.perceptual.weights import Weights

SOURCES = {"torchvision": weights.INCEPTION_TORCHVISION, "fid": weights.INCEPTION_FID}
LAYERS = (64, 192)  # channels of the two maps
SMALLEST = 32  # pixels; a smaller image leaves too few locations for a covariance


class InceptionStem(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] -> the 64-channel map before the first pooling, and the 192-channel one.

    Args:
        source: the name of the weights: "torchvision" (as the paper's figures) or "fid" (as FID's).
        loaded: their values.
    """

    def __init__(self, source: str, loaded: Weights) -> None:
        super().__init__()
        self.source, self.weights = source, loaded
        self.blocks = nn.ModuleDict(
            {
                "Conv2d_1a_3x3": _Block(3, 32, 3, stride=2),
                "Conv2d_2a_3x3": _Block(32, 32, 3),
                "Conv2d_2b_3x3": _Block(32, 64, 3, padding=1),
                "Conv2d_3b_1x1": _Block(64, 80, 1),
                "Conv2d_4a_3x3": _Block(80, 192, 3),
            }
        )
        weights.fill(self.blocks, loaded)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: str = "torchvision") -> InceptionStem:
        """With pretrained weights (see `oneshotgan.perceptual.weights.load`).

        Raises:
            UserError: the weights are missing or damaged.
        """
        return cls(source, weights.load(SOURCES[source]))

    @property
    def name(self) -> str:
        """What a figure made with these weights says of them: ``torchvision``, ``fid_1a2b3c4d``, …"""
        return self.weights.marked(self.source)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """The maps by their number of channels: {64: (N, 64, h, w), 192: (N, 192, h', w')}.

        Raises:
            UserError: the images are smaller than 32 px.
        """
        if min(images.shape[2:]) < SMALLEST:
            raise UserError(f"SIFID needs images of {SMALLEST} pixels or more on the short side")
        x = self.blocks["Conv2d_1a_3x3"](images)
        x = self.blocks["Conv2d_2a_3x3"](x)
        first = self.blocks["Conv2d_2b_3x3"](x)
        x = F.max_pool2d(first, kernel_size=3, stride=2)
        x = self.blocks["Conv2d_3b_1x1"](x)
        return {64: first, 192: self.blocks["Conv2d_4a_3x3"](x)}


class _Block(nn.Module):
    """Convolution without bias, batch normalisation with its stored statistics, ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))
