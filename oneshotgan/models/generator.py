"""The generator: noise -> a pyramid of images, and the block features that eq. 1 compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oneshotgan.models.layers import Conv2d, GeneratorBlock, recomputed
from oneshotgan.models.plan import Plan


@dataclass(frozen=True)
class GeneratorOutput:
    """What one pass of the generator gives.

    Attributes:
        images: the finest first, (N, 3, H, W), (N, 3, H/2, W/2), …; float in [-1, 1].
        features: the output of each of the L blocks, the coarsest first, (N, C_l, H_l, W_l).
    """

    images: list[Tensor]
    features: list[Tensor]


class Generator(nn.Module):
    """z (N, noise_dim) from N(0, I) -> `GeneratorOutput`.

    A transposed convolution takes z to c0 × h0 × w0, then L residual blocks follow, each but the first
    doubling the size; a 3×3 convolution and tanh turn a block's features into an image. Only the scales
    that the discriminator reads have such a head: the coarser ones would never get a gradient.

    Args:
        plan: the sizes and widths.
        noise_dim: length of z.
        all_rgb_heads: build the unused coarser heads too, as the released program does (its parameter
            count is the only thing they change).
        spectral_norm: False for folded weights, as saved in a run's ``model/``.
    """

    def __init__(
        self, plan: Plan, noise_dim: int = 64, all_rgb_heads: bool = False, spectral_norm: bool = True
    ) -> None:
        super().__init__()
        self.plan, self.noise_dim = plan, noise_dim
        self.scales = plan.low_level_blocks
        self.recompute = False  # blocks in the backward pass, to save memory
        widths = plan.generator_widths
        self.from_noise = nn.ConvTranspose2d(noise_dim, widths[0], (plan.noise_height, plan.noise_width))
        self.blocks = nn.ModuleList(
            GeneratorBlock(widths[i], widths[i + 1], upsample=i > 0, spectral_norm=spectral_norm)
            for i in range(plan.blocks)
        )
        first_head = 0 if all_rgb_heads else plan.blocks - self.scales
        self.to_rgb = nn.ModuleDict(
            {
                str(i): Conv2d(widths[i + 1], 3, 3, spectral_norm=spectral_norm)
                for i in range(first_head, plan.blocks)
            }
        )

    def forward(self, z: Tensor, coarse: bool = False) -> GeneratorOutput:
        """z (N, noise_dim) -> images and features; `coarse` stops before the last block, at half the size."""
        # On a single pixel the transposed convolution is a matrix product.
        weight, bias = self.from_noise.weight, self.from_noise.bias
        assert bias is not None
        x = (z.to(weight.dtype) @ weight.flatten(1)).view(-1, *weight.shape[1:]) + bias[:, None, None]
        images, features = [], []
        for i, block in enumerate(self.blocks[: len(self.blocks) - coarse]):
            x = recomputed(block, x, self.recompute)
            features.append(x)
            if i >= len(self.blocks) - self.scales:
                images.append(torch.tanh(self.to_rgb[str(i)](x)))
        return GeneratorOutput(images=images[::-1], features=features)
