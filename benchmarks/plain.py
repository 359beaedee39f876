"""One-Shot GAN's training step written plainly, for the fast one of `OneShot` to be held against.

The same networks, weights, random numbers and losses, and none of the shortcuts: every convolution
divides its weight by σ anew at every pass and resamples apart, eq. 1 is a loop over pairs, the
discriminator judges real and generated images apart and collects gradients in the generator's update
too, Adam and the moving average go parameter by parameter, and the losses are read at every step.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan import losses
from oneshotgan.data import at_least_float32
from oneshotgan.methods.oneshot import Draws, OneShot
from oneshotgan.models.discriminator import Decisions
from oneshotgan.models.generator import GeneratorOutput
from oneshotgan.models.layers import Conv2d


class PlainConv2d(Conv2d):
    """The convolution as its definition says: upsample, convolve with W / σ, pool."""

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.conv2d(x.to(self.weight.dtype), self.normalised_weight(), self.bias, padding=self.padding)
        return F.avg_pool2d(x, self.strides) if max(self.strides) > 1 else x

    def sigma(self) -> Tensor:
        """σ by copies of u and v, which the next pass may move before this one's gradient is taken."""
        return torch.dot(self.u.clone(), self.weight.flatten(1) @ self.v.clone())


class PlainOneShot(OneShot):
    """`OneShot` with a plain update; its state can be loaded from one and compared with one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replayed = None  # it reads values back
        for network in (self.G, self.D):
            for module in network.modules():
                if isinstance(module, Conv2d):
                    module.__class__ = PlainConv2d
                    module.prepared = None
        self.optimiser_G = self._adam(self.G, foreach=False, fused=False)
        self.optimiser_D = self._adam(self.D, foreach=False, fused=False)

    def _set_rates(self, share: Tensor) -> None:
        self.optimiser_G.param_groups[0]["lr"] = float(share) * self.settings.learning_rate_g
        self.optimiser_D.param_groups[0]["lr"] = float(share) * self.settings.learning_rate_d

    def update(self, draws: Draws) -> dict[str, Tensor]:
        """One generator update, one discriminator update with fresh z, then the moving average."""
        self._set_rates(draws.rate)
        if self.settings.power_iteration == "step":
            self._power_iteration(self.G)
            self._power_iteration(self.D)
        real_transforms = fake_transforms = None
        if draws.transforms_D is not None:
            real_transforms, fake_transforms = draws.transforms_D.split(self.batch_size)

        # Generator
        self.optimiser_G.zero_grad()
        fake = self._generate(draws.z_G)
        diversity = None
        if self.settings.diversity_weight > 0:
            diversity = plain_diversity(fake.features, self.settings.diversity_features == "tanh")
        logits_fake = self._judge(fake.images, draws.transforms_G)
        loss_G = losses.generator_loss(
            logits_fake, diversity, self._diversity_strength, self.settings.logit_scale
        )
        torch.autograd.backward(loss_G)
        self.optimiser_G.step()

        # Discriminator
        self.optimiser_D.zero_grad()
        with torch.no_grad():
            fake = self._generate(draws.z_D)
        batch = self.batches.images(draws.frames)[int(self.coarse) :]
        real = [x.to(y.dtype) for x, y in zip(batch, fake.images, strict=True)]
        logits_real = self._judge(real, real_transforms, self._feature_transform(draws))
        logits_fake = self._judge(fake.images, fake_transforms)
        loss_D = losses.discriminator_loss(logits_real, logits_fake, self.settings.logit_scale)
        torch.autograd.backward(loss_D)
        self.optimiser_D.step()

        # Moving average of the generator
        with torch.no_grad():
            for average, trained in zip(self.ema.network.parameters(), self.G.parameters(), strict=True):
                average.copy_(draws.ema_decay * average + (1 - draws.ema_decay) * trained)
            for average, trained in zip(self.ema.network.buffers(), self.G.buffers(), strict=True):
                average.copy_(trained)

        terms = {"loss_G": loss_G, "loss_D": loss_D}
        if diversity is not None:
            terms["diversity"] = diversity
        return {name: torch.tensor(term.item(), dtype=term.dtype) for name, term in terms.items()}

    def _generate(self, z: Tensor) -> GeneratorOutput:
        if self.settings.power_iteration == "forward":
            self._power_iteration(self.G)
        return self.G(z, self.coarse)  # type: ignore[no-any-return]

    def _judge(self, images: list[Tensor], transforms: Tensor | None, features: Any = None) -> Decisions:
        if self.settings.power_iteration == "forward":
            self._power_iteration(self.D)
        return self.D(self._augmented(images, transforms), features, self.coarse)  # type: ignore[no-any-return]

    @staticmethod
    def _power_iteration(network: torch.nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, PlainConv2d):
                module.power_iteration()


def plain_diversity(features: list[Tensor], squash: bool) -> Tensor:
    """Eq. 1, pair by pair and block by block."""
    terms = []
    for block in features:
        x = at_least_float32(block)
        x = torch.tanh(x) if squash else x
        terms += [(x[i] - x[j]).abs().mean() for i, j in itertools.combinations(range(len(x)), 2)]
    return torch.stack(terms).mean()
