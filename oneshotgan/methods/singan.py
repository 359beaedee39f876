"""SinGAN (Shaham, Dekel and Michaeli, ICCV 2019): a pyramid of small convolutional GANs, coarsest first.

The generator of scale n refines the image of the scale below it, enlarged: x_n = x + G_n(amp_n · z_n + x),
and its receptive field is 11 pixels, so a coarse scale decides where things are and a fine one how they look.
One scale is trained at a time, with those below it frozen. Where paper, released program and we differ is
listed in docs/baselines.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshotgan.config import Config, SinGANConfig
from oneshotgan.data import PIXELS_AT_ONCE, random_stream, seeded_initialisation, to_float
from oneshotgan.errors import UserError
from oneshotgan.models.plan import Size, check_size
from oneshotgan.parallel import ALONE, Group

FIELD = 11  # pixels: the receptive field of five 3×3 convolutions
PAD = 5  # pixels of zeros around what G_n reads: its five convolutions take away one each
STEPS_PER_SCALE = 2000
DECAY_AT, DECAY = 0.8, 0.1  # after this share of a scale's steps the learning rates fall to a tenth
WIDEST = 4  # the widest scale over the narrowest
INIT_STD = 0.02

Noise = list[Tensor]  # of one image or several: a map for each scale, coarsest first


# --- the pyramid ---


def shrinkage(size: Size, settings: Config) -> float:
    """What the sides of a source of `size` are multiplied with to keep within the limits set, 1 at most."""
    short, long = min(size), max(size)
    limits = settings.data
    return min(1.0, (limits.max_size or long) / long, (limits.short_size or short) / short)


def scale_count(size: Size, settings: Config) -> int:
    """How many scales the pyramid of a source of `size` has, by the released program's rule.

    num = ⌈log_f(min_size / short)⌉ + 1, less ⌈log_f(shrinkage)⌉ for what is never reached, plus one.
    """
    model = _model(settings)
    number = math.ceil(_logarithm(model.min_size / min(size), model.scale_factor)) + 1
    stop = number - math.ceil(_logarithm(shrinkage(size, settings), model.scale_factor))
    return max(stop, 0) + 1


def pyramid_sizes(size: Size, scales: int, min_size: int) -> list[Size]:
    """The sizes of `scales` images, from the one with the short side `min_size` up to `size`.

    Neighbours differ by one factor r = (min_size / short)^(1 / (scales − 1)); sides are rounded up.
    """
    short = min(size)
    ratio = min(1.0, min_size / short) ** (1 / (scales - 1)) if scales > 1 else 1.0
    factors = [ratio ** (scales - 1 - scale) for scale in range(scales)]
    return [(_ceil(size[0] * factor), _ceil(size[1] * factor)) for factor in factors]


def _logarithm(x: float, base: float) -> float:
    return round(math.log(x) / math.log(base), 9)


def _ceil(x: float) -> int:
    """Rounded up, but for what arithmetic added to a whole number."""
    return math.ceil(x - 1e-6)


# --- the networks of one scale ---


def five_convolutions(width: int, channels_out: int) -> nn.Sequential:
    """Head, three in the body, tail: 3×3 without padding, (N, 3, h, w) -> (N, channels_out, h-10, w-10).

    All but the tail are followed by batch normalisation and LeakyReLU 0.2.
    """
    layers: list[nn.Module] = []
    for channels_in in (3, width, width, width):
        layers += [nn.Conv2d(channels_in, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    layers.append(nn.Conv2d(width, channels_out, 3))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=INIT_STD)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, INIT_STD)
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """G_n: refines the enlarged image of the scale below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = five_convolutions(width, 3)

    def forward(self, noise: Tensor, previous: Tensor) -> Tensor:
        """Noise (already times amp) and previous image, both (N, 3, h, w) -> (N, 3, h, w)."""
        detail = self.layers(F.pad(noise + previous, (PAD, PAD, PAD, PAD)))
        return torch.tanh(detail) + previous


class Discriminator(nn.Module):
    """D_n: how real each 11×11 patch looks, (N, 3, h, w) -> (N, 1, h-10, w-10), unbounded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = five_convolutions(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


def width_at(scale: int, base_width: int) -> int:
    """Channels of the networks of `scale` (0 the coarsest): doubled every four scales, fourfold at most."""
    return min(base_width << scale // 4, base_width * WIDEST)


def enlarged(image: Tensor, size: Size) -> Tensor:
    """(N, 3, h, w) bilinearly resized to `size`."""
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def shrunk(images: Tensor, size: Size) -> Tensor:
    """(N, 3, H, W) in [-1, 1] bicubically resized to `size`, without aliasing."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def compose(
    generators: Iterable[nn.Module], amps: Sequence[Tensor], noise: Noise, sizes: Sequence[Size]
) -> Tensor:
    """The image (N, 3, h, w) that the scales in turn make of their noise; as many scales as `generators`."""
    image = torch.zeros(noise[0].shape[0], 3, *sizes[0], device=noise[0].device)
    for scale, generator in enumerate(generators):
        previous = enlarged(image, sizes[scale]) if scale else image
        image = generator(amps[scale] * noise[scale].expand_as(previous), previous)
    return image


def noise_shape(scale: int, size: Size) -> tuple[int, int, int]:
    """Of the noise of one image at `scale`: one channel for all three at the coarsest."""
    return (3 if scale else 1, *size)


# --- the method ---


class SinGAN:
    """The method behind `oneshotgan.training.fit`: the scales trained one after another.

    A step is one iteration: `updates_d` updates of the discriminator, then `updates_g` of the generator. The
    steps are divided evenly among the scales. Of a video every step takes a random frame; the fixed noise z*
    and the amplitudes belong to the middle one.

    Args:
        config: all settings; `config.model` is a SinGANConfig.
        frames: uint8 (N, H, W, 3), at the size of the finest scale.
        device: where to train.
        precision: "fp32"; "fp64" is for tests.
        notify: is given a line where something is done in another way than expected.
        group: one process alone.
    """

    loss_names = ("loss_G", "loss_D", "reconstruction")
    precisions = ("fp32",)
    steady = False  # a coarse scale costs a fraction of the finest
    extensible = False  # more steps would move the borders between the scales

    @staticmethod
    def training_size(size: Size, settings: Config) -> Size:
        """The size of the finest scale: the source within the limits set, sides rounded up."""
        check_size(size)
        factor = shrinkage(size, settings)
        height, width = _ceil(size[0] * factor), _ceil(size[1] * factor)
        if min(height, width) < FIELD:
            raise UserError(
                f"{width}x{height} pixels are less than the {FIELD} that SinGAN's discriminator sees at "
                "once: raise --max-size or --short-size"
            )
        return height, width

    @staticmethod
    def planned(settings: Config, source_size: Size) -> Config:
        """With the number of scales, and 2,000 steps for each where none are set."""
        model = _model(settings)
        scales = model.scales or scale_count(source_size, settings)
        steps = settings.training.steps or STEPS_PER_SCALE * scales
        return replace(
            settings,
            model=replace(model, scales=scales),
            training=replace(settings.training, steps=max(steps, scales)),
        )

    @staticmethod
    def check(settings: Config, group: Group) -> None:
        """One image at a time has nothing to share."""
        if group.size > 1:
            raise UserError(
                "SinGAN learns from one image at a time: it is trained by one process, not several"
            )

    def __init__(
        self,
        config: Config,
        frames: np.ndarray,
        device: torch.device,
        precision: str,
        notify: Callable[[str], None] = warnings.warn,
        group: Group = ALONE,
    ) -> None:
        self.settings = _model(config)
        self.seed, self.batch_size = config.training.seed, config.training.batch_size
        self.steps, self.device = config.training.steps, device
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        size: Size = (frames.shape[1], frames.shape[2])
        self.sizes = pyramid_sizes(size, self.settings.scales, self.settings.min_size)
        self.frames = torch.from_numpy(frames)
        self.middle = len(frames) // 2
        self.generators = nn.ModuleList()
        self.amps: list[Tensor] = []
        z_rec = torch.randn(1, *noise_shape(0, self.sizes[0]), generator=random_stream(self.seed, "z_rec"))
        self.z_rec = z_rec.to(device, self.dtype)
        self._enter(0)

    @property
    def scale(self) -> int:
        """The scale in training, from 0, the coarsest."""
        return len(self.generators) - 1

    def place(self, step: int) -> tuple[int, float]:
        """The scale that iteration `step` (from 1) trains, and how far into that scale it is, 0 … 1."""
        scales = len(self.sizes)
        scale = (step - 1) * scales // self.steps
        first, last = (
            -(-self.steps * s // scales) for s in (scale, scale + 1)
        )  # it has first < step <= last
        return scale, (step - 1 - first) / (last - first)

    def step(self, step: int) -> dict[str, Tensor]:
        """Iteration `step` (from 1). Returns the losses by name, detached scalars on the device."""
        scale, share = self.place(step)
        while self.scale < scale:
            self._enter(self.scale + 1)
        self._set_rates(DECAY if share >= DECAY_AT else 1.0)
        real = self._reals(step)
        fake = real
        for update in range(self.settings.updates_d):
            fake = self._fake(step, update)
            loss_D = self._update_D(real, fake.detach(), step, update)
        loss_G, reconstruction = self._update_G(fake)
        return {"loss_G": loss_G, "loss_D": loss_D, "reconstruction": reconstruction}

    def generate(self, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed; scales not begun are left out, the image enlarged."""
        self.generators.eval()
        sampler = SinGANSampler(self.generators, torch.stack(self.amps), self.sizes)
        return sampler.images(sampler.latents(seeds))

    def state(self) -> dict[str, Any]:
        """All that changes in training, for a checkpoint: tensors and plain values only."""
        return {
            "amps": torch.stack(self.amps),
            "generators": self.generators.state_dict(),
            "D": self.D.state_dict(),
            "optimiser_G": self.optimiser_G.state_dict(),
            "optimiser_D": self.optimiser_D.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        amps = state["amps"].to(self.device, self.dtype)
        self.generators, self.amps = nn.ModuleList(), []
        for scale in range(len(amps)):
            self.generators.append(self._made(Generator, scale))
        self.amps = list(amps)
        self.generators.load_state_dict(state["generators"])
        self._begin_scale(self._made(Discriminator, self.scale))
        self.D.load_state_dict(state["D"])
        self.optimiser_G.load_state_dict(state["optimiser_G"])
        self.optimiser_D.load_state_dict(state["optimiser_D"])

    def sampling_weights(self) -> dict[str, Tensor]:
        """The generators of the scales begun so far, with their amplitudes, on the CPU."""
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in self.generators.state_dict().items()
        }
        return weights | {"amps": torch.stack(self.amps).cpu()}

    def parameters(self) -> list[Tensor]:
        """Every tensor in training, for the check that they are finite."""
        return [p.detach() for network in (self.generators[-1], self.D) for p in network.parameters()]

    # --- from one scale to the next ---

    def _enter(self, scale: int) -> None:
        """Freeze the scale below and begin this one; of equal width, it starts from the one below."""
        generator, D = self._made(Generator, scale), self._made(Discriminator, scale)
        if scale and width_at(scale, self.settings.base_width) == width_at(
            scale - 1, self.settings.base_width
        ):
            generator.load_state_dict(self.generators[-1].state_dict())
            D.load_state_dict(self.D.state_dict())
        self.generators.append(generator)
        self.amps.append(self._amplitude(scale))
        self._begin_scale(D)

    def _made(self, kind: type[Generator] | type[Discriminator], scale: int) -> Any:
        with seeded_initialisation(self.seed, f"{kind.__name__} {scale}"):
            return kind(width_at(scale, self.settings.base_width)).to(self.device, self.dtype)

    def _begin_scale(self, D: Discriminator) -> None:
        """Everything of the newest scale that is made anew: its reals, its fixed inputs, its optimisers."""
        self.generators.requires_grad_(False)
        self.D = D
        self.real_frames = shrunk(self._all_frames(), self.sizes[self.scale])
        self.rec_noise, self.rec_previous = self._reconstruction_inputs(self.scale)
        betas = (self.settings.adam_beta1, self.settings.adam_beta2)
        self.optimiser_G = torch.optim.Adam(self.generators[-1].parameters(), 0.0, betas)
        self.optimiser_D = torch.optim.Adam(self.D.parameters(), 0.0, betas)

    def _all_frames(self) -> Tensor:
        return to_float(self.frames).to(self.device, self.dtype)

    def _amplitude(self, scale: int) -> Tensor:
        """amp: 1 at the coarsest scale, else noise_weight times the RMSE of the reconstruction to refine."""
        if scale == 0:
            return torch.ones((), device=self.device, dtype=self.dtype)
        middle = to_float(self.frames[self.middle : self.middle + 1]).to(self.device, self.dtype)
        real = shrunk(middle, self.sizes[scale])
        _, previous = self._reconstruction_inputs(scale)
        return self.settings.noise_weight * F.mse_loss(previous, real).sqrt()

    @torch.no_grad()
    def _reconstruction_inputs(self, scale: int) -> tuple[Tensor, Tensor]:
        """Noise (z* at the coarsest, then zeros) and image that `scale` is to make the real one of."""
        zeros = torch.zeros(1, 3, *self.sizes[scale], device=self.device, dtype=self.dtype)
        if scale == 0:
            return self.z_rec.expand_as(zeros), zeros
        self.generators.eval()
        below = self.generators[:scale]
        noise: Noise = [self.z_rec]
        noise += [
            torch.zeros(1, 3, *size, device=self.device, dtype=self.dtype) for size in self.sizes[1:scale]
        ]
        return zeros, enlarged(compose(below, self.amps, noise, self.sizes), self.sizes[scale])

    # --- the parts of a step ---

    def _set_rates(self, share: float) -> None:
        self.optimiser_G.param_groups[0]["lr"] = share * self.settings.learning_rate_g
        self.optimiser_D.param_groups[0]["lr"] = share * self.settings.learning_rate_d
        self.generators.eval()  # the statistics of finished scales are frozen
        self.generators[-1].train().requires_grad_(True)
        self.D.train()

    def _reals(self, step: int) -> Tensor:
        """The frames of `step`, (batch_size, 3, h, w)."""
        stream = random_stream(self.seed, "batch", step)
        indices = torch.randint(len(self.real_frames), (self.batch_size,), generator=stream)
        return self.real_frames[indices.to(self.device)]

    def _fake(self, step: int, update: int) -> Tensor:
        """What the scale makes of fresh noise, its own and that of the scales below."""
        stream = random_stream(self.seed, f"z {update}", step)
        noise = [
            torch.randn(self.batch_size, *noise_shape(scale, size), generator=stream).to(
                self.device, self.dtype
            )
            for scale, size in enumerate(self.sizes[: self.scale + 1])
        ]
        last, size = self.scale, self.sizes[self.scale]
        previous = torch.zeros(self.batch_size, 3, *size, device=self.device, dtype=self.dtype)
        if last:
            with torch.no_grad():
                previous = enlarged(compose(self.generators[:last], self.amps, noise, self.sizes), size)
        return self.generators[-1](self.amps[-1] * noise[-1].expand_as(previous), previous)  # type: ignore[no-any-return]

    def _update_D(self, real: Tensor, fake: Tensor, step: int, update: int) -> Tensor:
        """WGAN-GP: min E[D(fake)] − E[D(real)] + λ E[(‖∇D‖ − 1)²]."""
        stream = random_stream(self.seed, f"mix {update}", step)
        mix = torch.rand(len(real), 1, 1, 1, generator=stream).to(self.device, self.dtype)
        loss: Tensor = self.D(fake).mean() - self.D(real).mean()
        if self.settings.gradient_penalty:
            penalty = gradient_penalty(self.D, mix * real + (1 - mix) * fake)
            loss = loss + self.settings.gradient_penalty * penalty
        self.optimiser_D.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser_D.step()
        return loss.detach()

    def _update_G(self, fake: Tensor) -> tuple[Tensor, Tensor]:
        """min −E[D(fake)] + α ‖G(z*) − real‖².

        The released program steps one stale graph several times; nearest to it is the adversarial gradient
        taken once and the reconstruction's anew for each update.
        """
        G = self.generators[-1]
        parameters = list(G.parameters())
        self.D.requires_grad_(False)
        adversarial = -self.D(fake).mean()
        gradients = torch.autograd.grad(adversarial, parameters)
        self.D.requires_grad_(True)
        target = self.real_frames[self.middle : self.middle + 1]
        for _ in range(self.settings.updates_g):
            reconstruction = F.mse_loss(G(self.amps[-1] * self.rec_noise, self.rec_previous), target)
            weighted = self.settings.reconstruction_weight * reconstruction
            for parameter, gradient, more in zip(
                parameters, gradients, torch.autograd.grad(weighted, parameters), strict=True
            ):
                parameter.grad = gradient + more
            self.optimiser_G.step()
        return (adversarial + weighted).detach(), reconstruction.detach()


def gradient_penalty(D: nn.Module, images: Tensor) -> Tensor:
    """E[(‖∇D(x)‖₂ − 1)²], the norm over the channels of each pixel, as in the released program."""
    images = images.detach().requires_grad_(True)
    gradient: Tensor
    (gradient,) = torch.autograd.grad(D(images).sum(), images, create_graph=True)
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=1)
    return (norm - 1).square().mean()


class SinGANSampler:
    """Draws images from trained scales; one seed is one image.

    Args:
        generators: of the scales, coarsest first; in eval mode.
        amps: (scales,) what the noise of each is multiplied with.
        sizes: of all scales, also of those not trained yet: the image is enlarged to the last.
    """

    def __init__(self, generators: nn.ModuleList, amps: Tensor, sizes: Sequence[Size]) -> None:
        self.generator, self.amps, self.sizes = generators, amps, list(sizes)

    @classmethod
    def load(cls, settings: SinGANConfig, size: Size, weights: dict[str, Tensor]) -> SinGANSampler:
        """From the weights of a run and the (height, width) it was trained at."""
        amps = weights["amps"]
        state = {name: tensor for name, tensor in weights.items() if name != "amps"}
        generators = nn.ModuleList(Generator(width_at(k, settings.base_width)) for k in range(len(amps)))
        generators.load_state_dict(state)
        sizes = pyramid_sizes(size, settings.scales, settings.min_size)
        return cls(generators.eval().requires_grad_(False), amps, sizes)

    def resized(self, size: Size) -> SinGANSampler:
        """A sampler of images of another (height, width): every scale's map grows or shrinks as they do."""
        height, width = self.sizes[-1]
        factors = (size[0] / height, size[1] / width)
        sizes = [(max(1, round(h * factors[0])), max(1, round(w * factors[1]))) for h, w in self.sizes]
        return SinGANSampler(self.generator, self.amps, [*sizes[:-1], size])

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The noise of all scales in a row, one vector per seed, (N, dim) from N(0, I)."""
        dim = sum(math.prod(shape) for shape in self._shapes())
        return torch.stack([torch.randn(dim, generator=random_stream(seed, "sample")) for seed in seeds])

    def images(self, z: Tensor) -> Tensor:
        """z (N, dim) -> images (N, 3, H, W), float32 in [-1, 1]."""
        height, width = self.sizes[-1]
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        with torch.inference_mode():
            return torch.cat([self.draw(part) for part in torch.split(z, at_once)])

    def draw(self, z: Tensor) -> Tensor:
        """`images` of as many as fit into memory at once, on the generator's device."""
        weight = next(self.generator.parameters())
        parts = torch.split(z.to(weight), [math.prod(shape) for shape in self._shapes()], dim=1)
        noise = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes(), strict=True)]
        image = compose(self.generator, list(self.amps.to(weight)), noise, self.sizes)
        return enlarged(image, self.sizes[-1]).float().clamp(-1, 1)

    def _shapes(self) -> list[tuple[int, int, int]]:
        return [noise_shape(scale, size) for scale, size in enumerate(self.sizes)]


def _model(settings: Config) -> SinGANConfig:
    assert isinstance(settings.model, SinGANConfig)
    return settings.model
