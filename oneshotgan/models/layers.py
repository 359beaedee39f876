"""Spectrally normalised convolutions, merged with up- and downsampling, and the networks' residual blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

INIT_STD = 0.02  # convolutions start from N(0, 0.02)

Axes = tuple[bool, bool]  # vertically, horizontally

# A row of a 3-tap kernel after a merger, as a matrix (3, taps). Nearest ×2 followed by a convolution
# is one transposed convolution of stride 2, and a convolution followed by the mean of two pixels is
# one convolution of stride 2: both with the kernel smeared over two pixels. (Karras et al., ICLR 2018,
# merge their resampling in the same way.)
_SMEARED = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])


class Conv2d(nn.Conv2d):
    """A square convolution, zero-padded to keep the size, its weight divided by its largest singular value.

    Spectral normalisation (Miyato et al., ICLR 2018) estimates the singular value as σ = uᵀWv. The
    vectors are moved by `power_iteration`; between calls the weight is a fixed function of W, so every
    forward pass sees the same network.

    A 3×3 convolution can be merged with the ×2 nearest upsampling before it or the 2×2 mean after it: the
    same function, with 16 products a pixel instead of 36.

    It computes in the precision of its kernel: that of W, or the one `WorkingWeights` chose.

    Args:
        spectral_norm: False builds the plain convolution, for weights that are already folded.
        upsample: double the size first, (N, C, h, w) -> (N, C', 2h, 2w).
        pool: along which axes to take the mean of neighbouring pairs afterwards.
    """

    u: Tensor
    v: Tensor
    merger: Tensor | None
    prepared: PreparedKernel | None = None

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        bias: bool = True,
        spectral_norm: bool = True,
        upsample: bool = False,
        pool: Axes = (False, False),
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        nn.init.normal_(self.weight, std=INIT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.spectral_norm, self.upsample = spectral_norm, upsample
        self.strides = (2 if pool[0] else 1, 2 if pool[1] else 1)
        self.register_buffer("merger", _merger(kernel, upsample, pool), persistent=False)
        if spectral_norm:
            self.register_buffer("u", F.normalize(torch.randn(channels_out), dim=0))
            self.register_buffer("v", F.normalize(torch.randn(self.weight[0].numel()), dim=0))
            self.power_iteration(15)

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Move u and v towards the singular vectors of the largest singular value of W."""
        for _ in range(iterations):
            power_iteration([self.weight.detach().flatten(1)], [self.u], [self.v])

    @torch.no_grad()
    def prepare(self, dtype: torch.dtype) -> PreparedKernel:
        """Compute from now on with a kernel of its own, which `WorkingWeights` keeps up to date."""
        kernel = self.merged(self.weight).to(dtype, memory_format=torch.channels_last, copy=True)
        bias = None if self.bias is None else self.bias.to(dtype, copy=True)
        self.prepared = PreparedKernel(kernel, bias)
        return self.prepared

    def sigma(self) -> Tensor:
        """σ = uᵀWv, differentiable in W: dσ/dW = uvᵀ."""
        return torch.dot(self.u, self.weight.flatten(1) @ self.v)

    def normalised_weight(self) -> Tensor:
        """W / σ, differentiable in W."""
        return self.weight / self.sigma() if self.spectral_norm else self.weight

    def merged(self, weight: Tensor) -> Tensor:
        """The kernel that does the up- or downsampling too; linear in `weight` (C', C, k, k).

        Returns:
            (C', C, 4, 4), for upsampling (C, C', 4, 4); 4 is 3 along an axis that is not resampled.
        """
        if self.merger is None:
            return weight
        kernel = (weight.flatten(2) @ self.merger).view(*weight.shape[:2], *self._taps)
        return kernel.transpose(0, 1) if self.upsample else kernel

    def unmerged(self, kernel: Tensor) -> Tensor:
        """The transpose of `merged`: from the gradient by the kernel to that by the weight."""
        if self.merger is None:
            return kernel
        kernel = kernel.transpose(0, 1) if self.upsample else kernel
        return (kernel.flatten(2) @ self.merger.t()).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.prepared is not None:
            kernel, bias = self.prepared.kernel, self.prepared.bias
        else:
            kernel, bias = self.merged(self.normalised_weight()), self.bias
        x = x.to(kernel.dtype)
        if self.upsample:
            return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
        if x.shape[2:] == kernel.shape[2:] == (1, 1):  # a vector: a matrix product is quicker
            return F.linear(x.flatten(1), kernel.flatten(1), bias)[:, :, None, None]
        return F.conv2d(x, kernel, bias, stride=self.strides, padding=self.padding)

    @property
    def _taps(self) -> tuple[int, int]:
        return (4, 4) if self.upsample else (2 + self.strides[0], 2 + self.strides[1])


def _merger(kernel: int, upsample: bool, pool: Axes) -> Tensor | None:
    """The matrix (9, taps) of `Conv2d.merged`, None where there is nothing to merge."""
    if not upsample and not any(pool):
        return None
    if kernel != 3:
        raise ValueError("only a 3×3 convolution is merged with resampling")
    if upsample:
        row = _SMEARED.flip(1)  # a transposed convolution runs through its kernel backwards
        return torch.kron(row, row)
    rows = [_SMEARED / 2 if axis else torch.eye(3) for axis in pool]
    return torch.kron(*rows)


@dataclass
class PreparedKernel:
    """What a `Conv2d` computes with during a step: leaves of the graph."""

    kernel: Tensor
    bias: Tensor | None


class WorkingWeights:
    """The kernels that networks compute with: normalised, merged and in one precision, made once per update.

    `refresh` turns the parameters into kernels; a backward pass leaves gradients at the kernels;
    `pull_back` carries those to the parameters, by the chain rule through W / σ, merger and cast.
    Autograd would do the same in several times as many operations, again at every pass.

    Args:
        precisions: networks, on their device, and the precision of their convolutions, all of which are
            spectrally normalised.
    """

    def __init__(self, precisions: Mapping[nn.Module, torch.dtype]) -> None:
        self.convolutions: list[Conv2d] = []
        self.prepared: list[PreparedKernel] = []
        for network, dtype in precisions.items():
            for conv in convolutions(network):
                self.convolutions.append(conv)
                self.prepared.append(conv.prepare(dtype))
        self.matrices = [conv.weight.detach().flatten(1) for conv in self.convolutions]
        self.us = [conv.u for conv in self.convolutions]
        self.vs = [conv.v for conv in self.convolutions]
        self.sigmas: list[Tensor] = []

    @torch.no_grad()
    def refresh(self, iterate: bool = True) -> None:
        """Make the kernels from the parameters; `iterate` makes a power iteration first."""
        if iterate:
            self.sigmas = power_iteration(self.matrices, self.us, self.vs)
        else:
            self.sigmas = [torch.dot(u, m @ v) for u, m, v in self._spectra()]
        weights = torch._foreach_div([conv.weight for conv in self.convolutions], self.sigmas)
        merged = [conv.merged(weight) for conv, weight in zip(self.convolutions, weights, strict=True)]
        torch._foreach_copy_([prepared.kernel for prepared in self.prepared], merged)
        biases = [prepared.bias for prepared in self.prepared if prepared.bias is not None]
        sources = [conv.bias for conv in self.convolutions if conv.bias is not None]
        torch._foreach_copy_(biases, sources)

    def requires_grad_(self, wanted: bool) -> None:
        """Whether backward passes leave gradients at the kernels; clears what a failed update left there."""
        for prepared in self.prepared:
            prepared.kernel.grad = None
            prepared.kernel.requires_grad_(wanted)
            if prepared.bias is not None:
                prepared.bias.grad = None
                prepared.bias.requires_grad_(wanted)

    @torch.no_grad()
    def pull_back(self) -> None:
        """Add the gradients at the kernels to the parameters' gradients, and clear them.

        A parameter that no loss depends on is left without one, so that Adam passes it over.
        """
        parts = zip(self.convolutions, self.prepared, self.matrices, self.sigmas, strict=True)
        used = [part for part in parts if part[1].kernel.grad is not None]
        gradients = [self._at_weight(conv, prepared) for conv, prepared, _, _ in used]
        # d(W/σ) = dW/σ − W/σ² ⟨uvᵀ, dW⟩
        sigmas = [sigma for _, _, _, sigma in used]
        torch._foreach_div_(gradients, sigmas)
        along = [torch.dot(g.flatten(), part[2].flatten()) for g, part in zip(gradients, used, strict=True)]
        shares = torch._foreach_neg(torch._foreach_div(along, sigmas))
        moved = torch._foreach_mul([conv.u for conv, _, _, _ in used], shares)
        for (conv, prepared, _, _), gradient, u in zip(used, gradients, moved, strict=True):
            _add_gradient(conv.weight, gradient.addr_(u, conv.v).view_as(conv.weight))
            prepared.kernel.grad = None
            if prepared.bias is not None and prepared.bias.grad is not None:
                _add_gradient(conv.bias, prepared.bias.grad.to(conv.weight.dtype))
                prepared.bias.grad = None

    @staticmethod
    def _at_weight(conv: Conv2d, prepared: PreparedKernel) -> Tensor:
        """The gradient at the kernel as that at W / σ, a matrix."""
        assert prepared.kernel.grad is not None
        gradient = prepared.kernel.grad.to(conv.weight.dtype, memory_format=torch.contiguous_format)
        return conv.unmerged(gradient).flatten(1)

    def _spectra(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return zip(self.us, self.matrices, self.vs, strict=True)


def power_iteration(matrices: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    """Move each u and v towards the singular vectors of the largest singular value of W; gives σ = uᵀWv."""
    for matrix, u, v in zip(matrices, us, vs, strict=True):
        torch.mv(matrix.t(), u, out=v)
    torch._foreach_div_(vs, _norms(vs))
    for matrix, u, v in zip(matrices, us, vs, strict=True):
        torch.mv(matrix, v, out=u)
    sigmas = _norms(us)
    torch._foreach_div_(us, sigmas)
    return sigmas


def _norms(vectors: list[Tensor]) -> list[Tensor]:
    norms = list(torch._foreach_norm(vectors))
    torch._foreach_clamp_min_(norms, 1e-12)
    return norms


def _add_gradient(parameter: Tensor | None, gradient: Tensor) -> None:
    assert parameter is not None
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def convolutions(network: nn.Module) -> Iterator[Conv2d]:
    """Every `Conv2d` of `network`."""
    return (module for module in network.modules() if isinstance(module, Conv2d))


def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of `network` with spectral normalisation folded into plain weights."""
    state = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for name, module in network.named_modules():
        if isinstance(module, Conv2d):
            state[f"{name}.weight"] = module.normalised_weight().detach().clone()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def recomputed(block: nn.Module, x: Tensor, wanted: bool) -> Tensor:
    """`block(x)`; if `wanted`, what lies inside is not kept but computed again in the backward pass."""
    if not (wanted and torch.is_grad_enabled()):
        return block(x)  # type: ignore[no-any-return]
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def activation(x: Tensor, inplace: bool = False) -> Tensor:
    """LeakyReLU with slope 0.2; `inplace` where nothing else needs `x`."""
    return F.leaky_relu(x, 0.2, inplace)


class GeneratorBlock(nn.Module):
    """LeakyReLU, nearest ×2, 3×3, LeakyReLU, 3×3, beside a shortcut of ×2 and 1×1 without bias.

    (N, channels_in, h, w) -> (N, channels_out, 2h, 2w), or the same size without `upsample`.
    """

    def __init__(self, channels_in: int, channels_out: int, upsample: bool, spectral_norm: bool) -> None:
        super().__init__()
        middle = min(channels_in, channels_out)
        self.upsample = upsample
        self.conv1 = Conv2d(channels_in, middle, 3, spectral_norm=spectral_norm, upsample=upsample)
        self.conv2 = Conv2d(middle, channels_out, 3, spectral_norm=spectral_norm)
        self.shortcut = Conv2d(channels_in, channels_out, 1, bias=False, spectral_norm=spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(activation(self.conv1(activation(x)), inplace=True))
        # A 1×1 convolution and nearest upsampling commute; this order costs a quarter.
        shortcut = self.shortcut(x)
        if self.upsample:
            shortcut = F.interpolate(shortcut, scale_factor=2, mode="nearest")
        return main + shortcut  # type: ignore[no-any-return]


class DiscriminatorBlock(nn.Module):
    """[LeakyReLU,] k×k, LeakyReLU, k×k, average pooling, beside a pooled 1×1 shortcut without bias.

    The shortcut is the identity where the width does not change.

    Args:
        kernel: 3 for the low-level part and the layout branch, 1 for the content branch.
        pool: along which axes to pool.
        first: True leaves out the activation in front, for the block that follows from-RGB.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, pool: Axes, first: bool = False
    ) -> None:
        super().__init__()
        middle = channels_in
        self.first, self.pool = first, pool
        self.conv1 = Conv2d(channels_in, middle, kernel)
        self.conv2 = Conv2d(middle, channels_out, kernel, pool=pool)
        self.shortcut = (
            Conv2d(channels_in, channels_out, 1, bias=False) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv1(x if self.first else activation(x))
        main = self.conv2(activation(main, inplace=True))
        shortcut = x
        if any(self.pool):  # pooling and a 1×1 convolution commute; this order costs a quarter
            shortcut = F.avg_pool2d(x, (2 if self.pool[0] else 1, 2 if self.pool[1] else 1))
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        return main + shortcut  # type: ignore[no-any-return]
