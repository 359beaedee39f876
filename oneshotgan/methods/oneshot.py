"""One-Shot GAN (Sushko, Gall and Khoreva, CVPR Workshops 2021): one step of its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneshotgan import augment, losses
from oneshotgan.config import Config, OneShotConfig
from oneshotgan.data import PIXELS_AT_ONCE, Batches, random_stream
from oneshotgan.ema import EMA
from oneshotgan.models import feature_augment, layers
from oneshotgan.models.discriminator import Discriminator, FeatureTransform
from oneshotgan.models.generator import Generator, GeneratorOutput
from oneshotgan.models.plan import make_plan


class OneShot:
    """The method behind `oneshotgan.training.fit`: two networks, their optimisers, and one step.

    Args:
        config: all settings; `config.model` is an OneShotConfig.
        frames: uint8 (N, H, W, 3), at the planned size.
        device: where to train.
        precision: "fp32", or "bf16" for autocast of the networks' convolutions.
    """

    loss_names: tuple[str, ...] = ("loss_G", "loss_D", "diversity")

    def __init__(self, config: Config, frames: np.ndarray, device: torch.device, precision: str) -> None:
        self.settings: OneShotConfig = config.model
        self.seed, self.batch_size = config.training.seed, config.training.batch_size
        self.device, self.precision = device, precision
        self.plan = make_plan((frames.shape[1], frames.shape[2]), self.settings.base_width)
        self.batches = Batches(frames, self.batch_size, self.plan.low_level_blocks, self.seed, device)
        with seeded_initialisation(self.seed):
            self.G = Generator(self.plan, self.settings.noise_dim, self.settings.all_rgb_heads)
            self.D = Discriminator(self.plan, self.settings.content_branch, self.settings.layout_branch)
        for network in (self.G, self.D):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.G, self.settings.ema_decay)
        betas = (self.settings.adam_beta1, self.settings.adam_beta2)
        self.optimiser_G = torch.optim.Adam(
            self.G.parameters(), self.settings.learning_rate_g, betas, fused=True
        )
        self.optimiser_D = torch.optim.Adam(
            self.D.parameters(), self.settings.learning_rate_d, betas, fused=True
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Iteration `step` (from 1): one generator update, one discriminator update with fresh z, then EMA.

        All randomness depends on (seed, step). Nothing is read back from the device.

        Returns:
            The losses by name, detached scalars on the device.
        """
        # Generator: min L_adv − λ L_DR (eq. 3), the discriminator fixed
        layers.power_iteration(self.G)
        layers.power_iteration(self.D)
        self.D.requires_grad_(False)
        with self._autocast():
            fake = self.G(self._noise("z_G", step))
            diversity = self._diversity(fake.features)
            logits_fake = self.D(self._augmented(fake.images, "augment_G", step))
        loss_G = losses.generator_loss(logits_fake, diversity, self._diversity_strength)
        self.optimiser_G.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_G)
        self.optimiser_G.step()

        # Discriminator: max L_adv (eq. 2), real and generated images in one pass through one door
        self.D.requires_grad_(True)
        with self._autocast():
            with torch.no_grad():
                fake = self.G(self._noise("z_D", step))
            both = [torch.cat(pair) for pair in zip(self.batches.at(step), fake.images, strict=True)]
            logits = self.D(self._augmented(both, "augment_D", step), self._feature_transform(step))
        logits_real, logits_fake = logits.split(self.batch_size)
        loss_D = losses.discriminator_loss(logits_real, logits_fake)
        self.optimiser_D.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_D)
        self.optimiser_D.step()

        # Moving average of the generator
        self.ema.update(self.G, step)

        terms = {"loss_G": loss_G, "loss_D": loss_D}
        if diversity is not None:
            terms["diversity"] = diversity
        return {name: term.detach() for name, term in terms.items()}

    def generate(self, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed, by the moving average of the generator."""
        sampler = OneShotSampler(self.ema.network)
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
        folded = layers.folded_state(self.ema.network)
        return {name: tensor.cpu() for name, tensor in folded.items()}

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

    def _noise(self, name: str, step: int) -> Tensor:
        generator = random_stream(self.seed, name, step)
        return torch.randn(self.batch_size, self.settings.noise_dim, generator=generator).to(self.device)

    def _diversity(self, features: list[Tensor]) -> Tensor | None:
        if self.settings.diversity_weight == 0:
            return None
        return losses.diversity(features, squash=self.settings.diversity_features == "tanh")

    @property
    def _diversity_strength(self) -> float:
        scale = losses.diversity_scale(self.settings.diversity_norm, self.batch_size, self.plan.blocks)
        return self.settings.diversity_weight * scale

    def _augmented(self, images: list[Tensor], name: str, step: int) -> list[Tensor]:
        probability = self.settings.augment_probability
        if probability == 0:
            return images
        uniform = torch.rand(len(images[0]), augment.DRAWS, generator=random_stream(self.seed, name, step))
        transforms = augment.draw_transforms(uniform, self.plan.width / self.plan.height, probability)
        return augment.apply_transforms(images, transforms.to(self.device))

    def _feature_transform(self, step: int) -> FeatureTransform | None:
        """Feature augmentation of the reals, the first half of the joined batch; None where it is off."""
        probability = self.settings.feature_augment_probability
        if probability == 0:
            return None
        draw = feature_augment.draw(
            self.batch_size,
            self.plan.branch_widths[0],
            random_stream(self.seed, "features", step),
            self.device,
        )

        def transform(vector: Tensor | None, plane: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            real, fake = slice(self.batch_size), slice(self.batch_size, None)
            if vector is not None:
                mixed = feature_augment.augment_content(vector[real], draw, probability)
                vector = torch.cat([mixed, vector[fake]])
            if plane is not None:
                mixed = feature_augment.augment_layout(plane[real], draw, probability)
                plane = torch.cat([mixed, plane[fake]])
            return vector, plane

        return transform

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


class OneShotSampler:
    """Draws images from a trained generator; one seed is one image."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    @classmethod
    def load(
        cls, settings: OneShotConfig, size: tuple[int, int], weights: dict[str, Tensor]
    ) -> OneShotSampler:
        """From the folded weights of a run and the (height, width) it was trained at."""
        plan = make_plan(size, settings.base_width)
        generator = Generator(plan, settings.noise_dim, settings.all_rgb_heads, spectral_norm=False)
        generator.load_state_dict(weights)
        return cls(generator.requires_grad_(False))

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """One z per seed, (N, noise_dim) from N(0, I); it depends on the seed alone."""
        size = self.generator.noise_dim
        return torch.stack([torch.randn(size, generator=random_stream(seed, "sample")) for seed in seeds])

    def images(self, z: Tensor) -> Tensor:
        """z (N, noise_dim) -> images (N, 3, H, W), float32 in [-1, 1]."""
        device = next(self.generator.parameters()).device
        plan = self.generator.plan
        at_once = max(1, PIXELS_AT_ONCE // (plan.height * plan.width))
        with torch.inference_mode():
            return torch.cat([self._draw(part.to(device)) for part in torch.split(z, at_once)])

    def _draw(self, z: Tensor) -> Tensor:
        output: GeneratorOutput = self.generator(z)
        return output.images[0].float()


@contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Within this context new modules draw their weights from `seed`; the global state is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_stream(seed, "weights").initial_seed())
        yield
