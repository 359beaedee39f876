"""Convolutions with spectral normalisation, and the residual blocks of the two networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # convolutions start from N(0, 0.02)


class Conv2d(nn.Conv2d):
    """A square convolution, zero-padded to keep the size, its weight divided by its largest singular value.

    Spectral normalisation (Miyato et al., ICLR 2018) estimates the singular value as σ = uᵀWv. The
    vectors are moved by `power_iteration`, which the training loop calls once per step; between calls
    the weight is a fixed function of W, so every forward pass of a step sees the same network.

    Args:
        spectral_norm: False builds the plain convolution, for weights that are already folded.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, bias: bool = True, spectral_norm: bool = True
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        nn.init.normal_(self.weight, std=INIT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.spectral_norm = spectral_norm
        if spectral_norm:
            self.register_buffer("u", F.normalize(torch.randn(channels_out), dim=0))
            self.register_buffer("v", F.normalize(torch.randn(self.weight[0].numel()), dim=0))
            self.power_iteration(15)

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Move u and v towards the singular vectors of the largest singular value of W."""
        matrix = self.weight.flatten(1)
        for _ in range(iterations):
            torch.mv(matrix.t(), self.u, out=self.v)
            self.v.div_(self.v.norm().clamp_min(1e-12))
            torch.mv(matrix, self.v, out=self.u)
            self.u.div_(self.u.norm().clamp_min(1e-12))

    def normalised_weight(self) -> Tensor:
        """W / σ, differentiable in W (dσ/dW = uvᵀ)."""
        if not self.spectral_norm:
            return self.weight
        # A sum of products, not a matrix product: autocast leaves it in float32.
        outer = torch.outer(self.u, self.v).view_as(self.weight)
        return self.weight / (self.weight * outer).sum()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalised_weight(), self.bias, padding=self.padding)


def power_iteration(network: nn.Module) -> None:
    """One power iteration in every spectrally normalised convolution of `network`."""
    for module in network.modules():
        if isinstance(module, Conv2d) and module.spectral_norm:
            module.power_iteration()


def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of `network` with spectral normalisation folded into plain weights."""
    state = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for name, module in network.named_modules():
        if isinstance(module, Conv2d):
            state[f"{name}.weight"] = module.normalised_weight().detach().clone()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def activation(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.2."""
    return F.leaky_relu(x, 0.2)


class GeneratorBlock(nn.Module):
    """LeakyReLU, nearest ×2, 3×3, LeakyReLU, 3×3, beside a shortcut of ×2 and 1×1 without bias.

    (N, channels_in, h, w) -> (N, channels_out, 2h, 2w), or the same size without `upsample`.
    """

    def __init__(self, channels_in: int, channels_out: int, upsample: bool, spectral_norm: bool) -> None:
        super().__init__()
        middle = min(channels_in, channels_out)
        self.upsample = upsample
        self.conv1 = Conv2d(channels_in, middle, 3, spectral_norm=spectral_norm)
        self.conv2 = Conv2d(middle, channels_out, 3, spectral_norm=spectral_norm)
        self.shortcut = Conv2d(channels_in, channels_out, 1, bias=False, spectral_norm=spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        main: Tensor = self.conv1(self._up(activation(x)))
        main = self.conv2(activation(main))
        # A 1×1 convolution and nearest upsampling commute; this order costs a quarter.
        return main + self._up(self.shortcut(x))

    def _up(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.upsample else x


class DiscriminatorBlock(nn.Module):
    """[LeakyReLU,] k×k, LeakyReLU, k×k, average pooling, beside a pooled 1×1 shortcut without bias.

    The shortcut is the identity where the width does not change. A side of one pixel is not pooled.

    Args:
        kernel: 3 for the low-level part and the layout branch, 1 for the content branch.
        first: True leaves out the activation in front, for the block that follows from-RGB.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, pool: bool, first: bool = False
    ) -> None:
        super().__init__()
        middle = channels_in
        self.first, self.pool = first, pool
        self.conv1 = Conv2d(channels_in, middle, kernel)
        self.conv2 = Conv2d(middle, channels_out, kernel)
        self.shortcut = (
            Conv2d(channels_in, channels_out, 1, bias=False) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv1(x if self.first else activation(x))
        main = self.conv2(activation(main))
        shortcut = self._down(x)  # pooling and a 1×1 convolution commute; this order costs a quarter
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        return self._down(main) + shortcut

    def _down(self, x: Tensor) -> Tensor:
        if not self.pool:
            return x
        kernel = (min(2, x.shape[2]), min(2, x.shape[3]))
        return F.avg_pool2d(x, kernel)
