"""FastGAN (Liu, Zhu, Song and Elgammal, ICLR 2021): skip-layer excitation; a discriminator that describes.

Works on squares: frames are squeezed to one, and samples stretched back to the frames' shape. The authors'
networks go from 256 to 1024 pixels; those of 128 and 64 are ours, of the same blocks, fewer of them. Where
paper, released program and we differ is listed in docs/baselines.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from oneshotgan.config import Config, FastGANConfig
from oneshotgan.data import PIXELS_AT_ONCE, random_stream, seeded_initialisation, to_float
from oneshotgan.ema import EMA, ema_decay_at
from oneshotgan.errors import UserError
from oneshotgan.models.plan import Size, check_size, limit_size
from oneshotgan.parallel import ALONE, Group
from oneshotgan.perceptual import LPIPS, weights

# Side of a feature map -> its channels, in multiples of the base width.
GENERATOR_WIDTHS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5, 512: 0.25, 1024: 0.125}
DISCRIMINATOR_WIDTHS = {8: 8, 16: 4, 32: 2, 64: 1, 128: 0.5, 256: 0.25, 512: 0.125}
DECODER_WIDTHS = {16: 2, 32: 1, 64: 1, 128: 0.5}
TWICE = (8, 32, 128, 512)  # the generator's blocks with two convolutions and noise
EXCITED = {64: 4, 128: 8, 256: 16, 512: 32}  # map -> the small map that weighs its channels
LARGEST_MAP = 256  # the side from which the discriminator's down blocks start, at most
SMALL = 128  # the side of the second, smaller image, at most
INIT_STD = 0.02
TRANSLATION = 1 / 8  # of DiffAugment, in sides
DRAWS = 5  # random numbers that DiffAugment and the flip take per image, beside the flip's own


def small_side(resolution: int) -> int:
    """The side of the second image: 128, or half the resolution where that is smaller."""
    return min(SMALL, resolution // 2)


def sides(low: int, high: int) -> list[int]:
    """Powers of two from `low` to `high`, both included."""
    return [2**k for k in range(low.bit_length() - 1, high.bit_length())]


# --- blocks ---


def convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """Without bias, spectrally normalised; kernel 3 keeps the size."""
    padding = kernel // 2 if padding is None else padding
    return normalised(nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False))


Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def normalised(layer: Layer) -> Layer:
    """`layer`, starting from N(0, 0.02), with spectral normalisation."""
    nn.init.normal_(layer.weight, std=INIT_STD)
    spectral_norm(layer)
    return layer


def normalisation(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation whose weight starts from N(1, 0.02)."""
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight, 1.0, INIT_STD)
    return layer


class NoiseInjection(nn.Module):
    """x + weight · noise, the weight learned, from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class UpBlock(nn.Module):
    """Nearest ×2, then once or twice: 3×3 [, noise], batch norm, GLU. (N, C, h, w) -> (N, C', 2h, 2w)."""

    def __init__(self, channels_in: int, channels_out: int, twice: bool) -> None:
        super().__init__()
        inputs = (channels_in, channels_out) if twice else (channels_in,)
        self.convolutions = nn.ModuleList(convolution(width, 2 * channels_out, 3) for width in inputs)
        self.norms = nn.ModuleList(normalisation(2 * channels_out) for _ in inputs)
        self.noises = nn.ModuleList(NoiseInjection() for _ in inputs) if twice else None

    def forward(self, x: Tensor, noise: Sequence[Tensor] = ()) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        for index, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = conv(x)
            if self.noises is not None:
                x = self.noises[index](x, noise[index])
            x = F.glu(norm(x), dim=1)
        return x


def simple_down(channels_in: int, channels_out: int) -> nn.Sequential:
    """One convolution of stride 2. (N, C, h, w) -> (N, C', h/2, w/2)."""
    return nn.Sequential(
        convolution(channels_in, channels_out, 4, 2, 1), normalisation(channels_out), nn.LeakyReLU(0.2)
    )


class DownBlock(nn.Module):
    """The mean of two convolutions and of a pooled 1×1 one. (N, C, h, w) -> (N, C', h/2, w/2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *simple_down(channels_in, channels_out),
            convolution(channels_out, channels_out, 3),
            normalisation(channels_out),
            nn.LeakyReLU(0.2),
        )
        self.direct = nn.Sequential(
            nn.AvgPool2d(2),
            convolution(channels_in, channels_out, 1),
            normalisation(channels_out),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.direct(x)) / 2  # type: ignore[no-any-return]


def pooled(x: Tensor, side: int) -> Tensor:
    """(N, C, h, h) averaged to (N, C, side, side), h a multiple of `side`.

    The same as adaptive pooling, whose gradient is not deterministic on a GPU.
    """
    return F.avg_pool2d(x, x.shape[-1] // side)


class SkipLayerExcitation(nn.Module):
    """Weighs the channels of a large map by what a small one holds.

    small (N, C, h, w), large (N, C', H, W) -> (N, C', H, W).
    """

    def __init__(self, channels_small: int, channels_large: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            convolution(channels_small, channels_large, 4, padding=0),
            nn.SiLU(),
            convolution(channels_large, channels_large, 1),
            nn.Sigmoid(),
        )

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        return large * self.gate(pooled(small, 4))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A small decoder: 8×8 features -> an image (N, 3, side, side) in [-1, 1]."""

    def __init__(self, channels_in: int, base_width: int, side: int) -> None:
        super().__init__()
        widths = [channels_in, *(_width(DECODER_WIDTHS[s], base_width) for s in sides(16, side))]
        blocks = [UpBlock(i, o, twice=False) for i, o in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks, convolution(widths[-1], 3, 3), nn.Tanh())

    def forward(self, features: Tensor) -> Tensor:
        return self.blocks(pooled(features, 8))  # type: ignore[no-any-return]


# --- the networks ---


class Generator(nn.Module):
    """z (N, noise_dim) and noise maps -> the image (N, 3, R, R) and its small one, both in [-1, 1]."""

    def __init__(self, resolution: int, base_width: int, noise_dim: int) -> None:
        super().__init__()
        self.resolution, self.noise_dim = resolution, noise_dim
        width = {side: _width(multiple, base_width) for side, multiple in GENERATOR_WIDTHS.items()}
        first = nn.ConvTranspose2d(noise_dim, 2 * width[4], 4, bias=False)
        self.first = nn.Sequential(normalised(first), normalisation(2 * width[4]), nn.GLU(dim=1))
        self.up = nn.ModuleDict(
            {str(s): UpBlock(width[s // 2], width[s], s in TWICE) for s in sides(8, resolution)}
        )
        self.excitations = nn.ModuleDict(
            {
                str(s): SkipLayerExcitation(width[small], width[s])
                for s, small in EXCITED.items()
                if s <= resolution
            }
        )
        small = small_side(resolution)
        self.to_small = convolution(width[small], 3, 1)
        self.to_rgb = convolution(width[resolution], 3, 3)

    def noise_sides(self) -> list[int]:
        """The sides of the noise maps that a pass takes, in order."""
        return [side for side in TWICE if side <= self.resolution for _ in range(2)]

    def forward(self, z: Tensor, noise: Sequence[Tensor]) -> list[Tensor]:
        maps = {4: self.first(z[:, :, None, None])}
        rest = list(noise)
        for side in sides(8, self.resolution):
            given = [rest.pop(0), rest.pop(0)] if side in TWICE else []
            x = self.up[str(side)](maps[side // 2], given)
            if side in EXCITED:
                x = self.excitations[str(side)](maps[EXCITED[side]], x)
            maps[side] = x
        small = torch.tanh(self.to_small(maps[small_side(self.resolution)]))
        return [torch.tanh(self.to_rgb(maps[self.resolution])), small]


class Discriminator(nn.Module):
    """Judges an image and its small one; of real ones it also reconstructs what it saw."""

    def __init__(self, resolution: int, base_width: int, reconstruction: bool) -> None:
        super().__init__()
        width = {side: _width(multiple, base_width) for side, multiple in DISCRIMINATOR_WIDTHS.items()}
        largest, small = min(resolution, LARGEST_MAP), small_side(resolution)
        self.entry = _entry(resolution, width)
        steps = list(reversed(sides(8, largest)))  # the sides of the maps, largest first
        self.down = nn.ModuleList(DownBlock(width[before], width[after]) for before, after in pairwise(steps))
        # The map three halvings down is weighed by the one it came from, as far as there are maps.
        self.excitations = nn.ModuleList(
            SkipLayerExcitation(width[steps[k]], width[steps[k + 3]]) for k in range(len(steps) - 3)
        )
        self.decide = nn.Sequential(
            convolution(width[8], 2 * width[8], 1),
            normalisation(2 * width[8]),
            nn.LeakyReLU(0.2),
            convolution(2 * width[8], 1, 4, padding=0),
        )
        # The small image's branch is as wide as the maps of twice its sides.
        steps = list(reversed(sides(8, small // 2)))
        first = convolution(3, width[2 * steps[0]], 4, 2, 1)
        blocks = [simple_down(width[2 * a], width[2 * b]) for a, b in pairwise(steps)]
        self.small = nn.Sequential(first, nn.LeakyReLU(0.2), *blocks)
        self.decide_small = convolution(width[16], 1, 4, padding=0)
        self.decoders: nn.ModuleList | None = None
        if reconstruction:
            inputs = (width[8], width[16], width[16])  # whole, small image, quadrant
            self.decoders = nn.ModuleList(Decoder(width_in, base_width, small) for width_in in inputs)

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[(N, 3, R, R), (N, 3, s, s)] -> logits (N, 50), and the maps that the decoders read.

        Those are the 8×8 one, the small image's, and the 16×16 one.
        """
        maps = [self.entry(images[0])]
        for index, block in enumerate(self.down):
            x = block(maps[-1])
            if index >= 2:
                x = self.excitations[index - 2](maps[index - 2], x)
            maps.append(x)
        small = self.small(images[1])
        logits = [self.decide(maps[-1]).flatten(1), self.decide_small(small).flatten(1)]
        return torch.cat(logits, dim=1), [maps[-1], small, maps[-2]]

    def reconstruct(self, maps: Sequence[Tensor], quadrant: int) -> list[Tensor]:
        """Whole image, small image and one quadrant (0 … 3, row by row), each (N, 3, s, s) in [-1, 1]."""
        assert self.decoders is not None
        whole, small, parts = maps
        return [
            self.decoders[0](whole),
            self.decoders[1](small),
            self.decoders[2](quadrant_of(parts, quadrant)),
        ]


def _entry(resolution: int, width: dict[int, int]) -> nn.Sequential:
    """From RGB to the first map: a 3×3 convolution up to 256 pixels, above it one or two that halve."""
    if resolution <= LARGEST_MAP:
        return nn.Sequential(convolution(3, width[resolution], 3), nn.LeakyReLU(0.2))
    if resolution == 2 * LARGEST_MAP:
        return nn.Sequential(convolution(3, width[LARGEST_MAP], 4, 2, 1), nn.LeakyReLU(0.2))
    return nn.Sequential(
        convolution(3, width[2 * LARGEST_MAP], 4, 2, 1),
        nn.LeakyReLU(0.2),
        convolution(width[2 * LARGEST_MAP], width[LARGEST_MAP], 4, 2, 1),
        normalisation(width[LARGEST_MAP]),
        nn.LeakyReLU(0.2),
    )


def quadrant_of(x: Tensor, quadrant: int) -> Tensor:
    """A quarter of (N, C, h, w), row by row from the upper left: (N, C, h/2, w/2)."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    top, left = quadrant // 2 * height, quadrant % 2 * width
    return x[:, :, top : top + height, left : left + width]


def _width(multiple: float, base_width: int) -> int:
    return max(1, round(multiple * base_width))


# --- losses and augmentation ---


def hinge(logits: Tensor, real: bool, uniform: Tensor) -> Tensor:
    """E[max(0, m ∓ D)], the margin m = 0.8 + 0.2 u drawn anew for each logit (u uniform in 0 … 1)."""
    margin = 0.8 + 0.2 * uniform
    return F.relu(margin - logits if real else margin + logits).mean()


def diff_augment(images: Sequence[Tensor], uniform: Tensor) -> list[Tensor]:
    """DiffAugment's colour and translation (Zhao et al., NeurIPS 2020), the same for all sizes of an image.

    Brightness ±0.5, saturation ×0 … 2, contrast ×0.5 … 1.5; moved by up to an eighth of the side, with zeros.

    Args:
        images: (N, 3, s, s) in [-1, 1], of several sizes s.
        uniform: (N, 5) in 0 … 1.
    """
    brightness, saturation, contrast, right, down = (u.view(-1, 1, 1, 1) for u in uniform.T)
    changed = []
    for x in images:
        x = x + (brightness - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * (2 * saturation) + grey
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * (contrast + 0.5) + mean
        changed.append(_moved(x, right, down))
    return changed


def _moved(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Moved by whole pixels, up to an eighth of the side either way, zeros coming in."""
    side = x.shape[-1]
    reach = round(side * TRANSLATION)
    shifts = [(u * (2 * reach + 1)).floor().clamp(max=2 * reach).long().view(-1, 1) for u in (down, right)]
    place = torch.arange(side, device=x.device)
    rows, columns = (place + shift for shift in shifts)
    padded = F.pad(x, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    image = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# --- the method ---


class FastGAN:
    """The method behind `oneshotgan.training.fit`.

    A step is one update of the discriminator, one of the generator, and the moving average.

    Args:
        config: all settings; `config.model` is a FastGANConfig.
        frames: uint8 (N, H, W, 3), of any shape; they are squeezed to squares.
        device: where to train.
        precision: "fp32"; "fp64" is for tests.
        notify: is given a line where something is done in another way than expected.
        group: the processes that share a batch; batch normalisation sees each process's rows.

    Raises:
        UserError: the weights of VGG16, which the reconstructions are judged by, are missing.
    """

    loss_names = ("loss_G", "loss_D", "reconstruction")
    precisions = ("fp32",)
    steady = True
    extensible = True

    @staticmethod
    def training_size(size: Size, settings: Config) -> Size:
        """That of the source within the limits set: samples are stretched to it."""
        check_size(size)
        return limit_size(size, settings.data.max_size, settings.data.short_size)

    @staticmethod
    def planned(settings: Config, source_size: Size) -> Config:
        """As they are."""
        return settings

    @staticmethod
    def check(settings: Config, group: Group) -> None:
        """Every process needs images, and the reconstructions VGG16's weights."""
        group.rows(settings.training.batch_size)
        if _model(settings).reconstruction:
            try:
                weights.find(weights.VGG16)
            except UserError as error:
                raise UserError(
                    f"FastGAN's reconstruction loss needs weights (--no-reconstruction turns it off): {error}"
                ) from error

    def __init__(
        self,
        config: Config,
        frames: np.ndarray,
        device: torch.device,
        precision: str,
        notify: Callable[[str], None] = warnings.warn,
        group: Group = ALONE,
    ) -> None:
        self.settings = settings = _model(config)
        self.seed, self.batch_size, self.device = config.training.seed, config.training.batch_size, device
        self.group, self.rows = group, group.rows(self.batch_size)
        self.share = (self.rows.stop - self.rows.start) / self.batch_size
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.size: Size = (frames.shape[1], frames.shape[2])
        self.frames = squeezed(torch.from_numpy(frames), settings.resolution)
        with seeded_initialisation(self.seed):
            self.G = Generator(settings.resolution, settings.base_width, settings.noise_dim)
            self.D = Discriminator(settings.resolution, settings.base_width, settings.reconstruction)
        for network in (self.G, self.D):
            network.to(device, self.dtype)
        self.perceptual: LPIPS | None = None
        if settings.reconstruction:
            self.perceptual = LPIPS.load("vgg").to(device, self.dtype)
        self.ema = EMA(self.G)
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.optimiser_G = torch.optim.Adam(self.G.parameters(), settings.learning_rate_g, betas)
        self.optimiser_D = torch.optim.Adam(self.D.parameters(), settings.learning_rate_d, betas)

    def step(self, step: int) -> dict[str, Tensor]:
        """Iteration `step` (from 1). Returns the losses by name, detached scalars on the device."""
        self.G.train()
        self.D.train()
        z, noise = self._draw(step)
        fake = self.G(z, noise)
        real = self._reals(step)
        terms = {}

        # Discriminator: hinge with a random margin, and on real images the reconstructions
        self.D.requires_grad_(True)
        seen_real, seen_fake = (
            self._augmented(x, step, name) for x, name in ((real, "real"), (fake, "fake"))
        )
        logits_real, maps = self.D(seen_real)
        logits_fake, _ = self.D([x.detach() for x in seen_fake])
        loss_D = hinge(logits_real, True, self._uniform("margin real", step, logits_real.shape[1]))
        loss_D = loss_D + hinge(logits_fake, False, self._uniform("margin fake", step, logits_fake.shape[1]))
        if self.perceptual is not None:
            terms["reconstruction"] = self._reconstruction(maps, seen_real, step)
            loss_D = loss_D + terms["reconstruction"]
        self.optimiser_D.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_D)
        self.group.mean_gradients(self.D, self.share)
        self.optimiser_D.step()

        # Generator: min −E[D(fake)], on the same images, the discriminator fixed
        self.D.requires_grad_(False)
        loss_G = -self.D(seen_fake)[0].mean()
        self.optimiser_G.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_G)
        self.group.mean_gradients(self.G, self.share)
        self.optimiser_G.step()

        # Moving average of the generator
        self.ema.update(self.G, torch.tensor(ema_decay_at(step, self.settings.ema_decay), device=self.device))
        terms = {"loss_G": loss_G, "loss_D": loss_D} | terms
        return self.group.mean({name: term.detach() for name, term in terms.items()}, self.share)

    def generate(self, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed, by the moving average of the generator."""
        sampler = FastGANSampler(self.ema.network.eval(), self.size)
        return sampler.images(sampler.latents(seeds))

    def state(self) -> dict[str, Any]:
        """All that changes in training, for a checkpoint: tensors and plain values only."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def sampling_weights(self) -> dict[str, Tensor]:
        """The moving average's weights with spectral normalisation folded in, on the CPU."""
        return {name: tensor.cpu() for name, tensor in folded_state(self.ema.network.eval()).items()}

    def parameters(self) -> list[Tensor]:
        """Every trained tensor, for the check that they are finite."""
        return [p.detach() for network in (self.G, self.D) for p in network.parameters()]

    def _parts(self) -> dict[str, Any]:
        return {
            "G": self.G,
            "D": self.D,
            "ema": self.ema.network,
            "optimiser_G": self.optimiser_G,
            "optimiser_D": self.optimiser_D,
        }

    # --- the parts of a step ---

    def _draw(self, step: int) -> tuple[Tensor, list[Tensor]]:
        stream = random_stream(self.seed, "z", step)
        z = torch.randn(self.batch_size, self.settings.noise_dim, generator=stream)
        maps = [
            torch.randn(self.batch_size, 1, side, side, generator=stream) for side in self.G.noise_sides()
        ]
        z, *maps = (x[self.rows].to(self.device, self.dtype) for x in (z, *maps))
        return z, maps

    def _uniform(self, name: str, step: int, count: int) -> Tensor:
        uniform = torch.rand(self.batch_size, count, generator=random_stream(self.seed, name, step))
        return uniform[self.rows].to(self.device, self.dtype)

    def _reals(self, step: int) -> list[Tensor]:
        """The batch of `step`, half of it flipped at random, with its small copy."""
        stream = random_stream(self.seed, "batch", step)
        indices = torch.randint(len(self.frames), (self.batch_size,), generator=stream)
        flipped = torch.rand(self.batch_size, generator=stream) < 0.5
        images = to_float(self.frames[indices[self.rows]]).to(self.dtype)
        images = torch.where(flipped[self.rows].view(-1, 1, 1, 1), images.flip(3), images).to(self.device)
        return [images, resized(images, small_side(self.settings.resolution))]

    def _augmented(self, images: list[Tensor], step: int, name: str) -> list[Tensor]:
        if not self.settings.diff_augment:
            return images
        return diff_augment(images, self._uniform(f"augment {name}", step, DRAWS))

    def _reconstruction(self, maps: list[Tensor], seen: list[Tensor], step: int) -> Tensor:
        """The perceptual distances of the three reconstructions to what the discriminator saw.

        Summed over the three and over the images of the batch.
        """
        assert self.perceptual is not None
        stream = random_stream(self.seed, "quadrant", step)
        quadrant = int(torch.randint(4, (1,), generator=stream))
        side = small_side(self.settings.resolution)
        targets = [resized(seen[0], side), seen[1], resized(quadrant_of(seen[0], quadrant), side)]
        made = self.D.reconstruct(maps, quadrant)
        distances = [self.perceptual(a, b).mean() for a, b in zip(made, targets, strict=True)]
        return self.batch_size * torch.stack(distances).sum()  # of the whole batch, whoever holds a share


def squeezed(frames: Tensor, resolution: int) -> Tensor:
    """uint8 (N, H, W, 3) -> uint8 (N, resolution, resolution, 3)."""
    return _reshaped(frames, (resolution, resolution))


def _reshaped(frames: Tensor, size: Size) -> Tensor:
    parts = [
        F.interpolate(
            part.permute(0, 3, 1, 2).float(), size, mode="bicubic", align_corners=False, antialias=True
        )
        for part in torch.split(frames, 16)
    ]
    return torch.cat([p.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1) for p in parts])


def resized(images: Tensor, side: int) -> Tensor:
    """Squares (N, 3, S, S) as squares of another side."""
    if images.shape[-1] == side:
        return images
    if images.shape[-1] > side:
        return F.interpolate(images, (side, side), mode="area")
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of `network`, in eval mode, with spectral normalisation folded into plain weights."""
    state = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        if is_parametrized(module, "weight"):
            state[f"{prefix}weight"] = module.weight.detach().clone()
        elif ".parametrizations" not in path:
            state |= {prefix + name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
            state |= {prefix + name: b.detach().clone() for name, b in module.named_buffers(recurse=False)}
    return {name: tensor.contiguous() for name, tensor in state.items()}


class FastGANSampler:
    """Draws images from a trained generator; one seed is one image.

    Args:
        generator: in eval mode.
        size: (height, width) that the squares are stretched to.
    """

    def __init__(self, generator: Generator, size: Size) -> None:
        self.generator, self.size = generator, size

    @classmethod
    def load(cls, settings: FastGANConfig, size: Size, weights: dict[str, Tensor]) -> FastGANSampler:
        """From the folded weights of a run and the (height, width) it was trained at."""
        generator = Generator(settings.resolution, settings.base_width, settings.noise_dim)
        for module in list(generator.modules()):
            if is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        generator.load_state_dict(weights)
        return cls(generator.eval().requires_grad_(False), size)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """z and the noise maps in a row, one vector per seed, (N, dim) from N(0, I)."""
        dim = sum(self._lengths())
        return torch.stack([torch.randn(dim, generator=random_stream(seed, "sample")) for seed in seeds])

    def images(self, z: Tensor) -> Tensor:
        """z (N, dim) -> images (N, 3, H, W), float32 in [-1, 1]."""
        at_once = max(1, PIXELS_AT_ONCE // self.generator.resolution**2)
        with torch.inference_mode():
            return torch.cat([self.draw(part) for part in torch.split(z, at_once)])

    def draw(self, vector: Tensor) -> Tensor:
        """`images` of as many as fit into memory at once, on the generator's device."""
        weight = next(self.generator.parameters())
        z, *maps = torch.split(vector.to(weight), self._lengths(), dim=1)
        noise = [x.view(-1, 1, math.isqrt(x.shape[1]), math.isqrt(x.shape[1])) for x in maps]
        image: Tensor = self.generator(z, noise)[0].float()
        if image.shape[2:] == self.size:
            return image
        shrinks = any(side < self.generator.resolution for side in self.size)
        return F.interpolate(image, self.size, mode="bicubic", align_corners=False, antialias=shrinks).clamp(
            -1, 1
        )

    def _lengths(self) -> list[int]:
        return [self.generator.noise_dim, *(side * side for side in self.generator.noise_sides())]


def _model(settings: Config) -> FastGANConfig:
    assert isinstance(settings.model, FastGANConfig)
    return settings.model
