"""One-Shot GAN (Sushko, Gall and Khoreva, CVPR Workshops 2021): one step of its training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oneshotgan import augment, losses
from oneshotgan.config import Config, OneShotConfig
from oneshotgan.data import PIXELS_AT_ONCE, Batches, random_stream, seeded_initialisation
from oneshotgan.ema import EMA, ema_decay_at
from oneshotgan.errors import UserError
from oneshotgan.machine import available_memory
from oneshotgan.models import feature_augment, layers
from oneshotgan.models.discriminator import Discriminator, FeatureTransform
from oneshotgan.models.generator import Generator, GeneratorOutput
from oneshotgan.models.layers import WorkingWeights
from oneshotgan.models.plan import Plan, limit_size, make_plan
from oneshotgan.parallel import ALONE, Group
from oneshotgan.replay import CudaGraphs, Replayed, pinned

# Memory of a step for each pixel of the batch and channel of the base width, measured; and how much of what
# is free it may take before activations are recomputed.
ACTIVATION_BYTES = {torch.bfloat16: 80, torch.float32: 140, torch.float64: 280}
MEMORY_SHARE = 0.7
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Draws:
    """All that one step takes from outside: its random numbers and the place in the schedule.

    Attributes:
        frames: (N,) which frames are the real images.
        z_G, z_D: (N, noise_dim) from N(0, I), for the generator's and the discriminator's update.
        transforms_G, transforms_D: (N, 2, 3) and (2N, 2, 3), image augmentation (reals first); None if off.
        features: feature augmentation; None if off.
        ema_decay: scalar.
        rate: scalar, the learning rates' share of those set.
    """

    frames: Tensor
    z_G: Tensor
    z_D: Tensor
    transforms_G: Tensor | None
    transforms_D: Tensor | None
    features: feature_augment.FeatureAugmentDraw | None
    ema_decay: Tensor
    rate: Tensor

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        values = [getattr(self, field.name) for field in fields(self) if field.name != "features"]
        if self.features is not None:
            values += [getattr(self.features, field.name) for field in fields(self.features)]
        return [value for value in values if value is not None]

    def to(self, device: torch.device) -> Draws:
        """The same on `device`."""

        def moved(part: Any) -> Any:
            if isinstance(part, Tensor):
                return pinned(part, device).to(device, non_blocking=True)
            if part is None:
                return None
            return replace(part, **{field.name: moved(getattr(part, field.name)) for field in fields(part)})

        return self if device.type == "cpu" else moved(self)


class OneShot:
    """The method behind `oneshotgan.training.fit`: two networks, their optimisers, and one step.

    Args:
        config: all settings; `config.model` is an OneShotConfig.
        frames: uint8 (N, H, W, 3), at the planned size.
        device: where to train.
        precision: of the convolutions of the generator and of the discriminator's low-level part, "fp32" or
            "bf16"; all else is float32. "fp64" is for tests: everything in float64.
        notify: is given a line where something is done in another way than expected.
        group: the processes that share a batch. Eq. 1 and feature augmentation see the pairs within each
            process's rows; all else is as on one process.
    """

    loss_names = ("loss_G", "loss_D", "diversity")
    precisions = ("bf16", "fp32")
    steady = True
    extensible = True

    @staticmethod
    def training_size(size: tuple[int, int], settings: Config) -> tuple[int, int]:
        """The planned size nearest to that of the source, within the limits set."""
        limited = limit_size(size, settings.data.max_size, settings.data.short_size)
        plan = make_plan(limited, aspect=size[1] / size[0])
        return plan.height, plan.width

    @staticmethod
    def planned(settings: Config, source_size: tuple[int, int]) -> Config:
        """As they are."""
        return settings

    @staticmethod
    def check(settings: Config, group: Group) -> None:
        """Every process needs images, and pairs of them for eq. 1."""
        assert isinstance(settings.model, OneShotConfig)
        batch_size = settings.training.batch_size
        group.rows(batch_size)
        if batch_size < 2 * group.size and group.size > 1 and settings.model.diversity_weight > 0:
            raise UserError(
                f"eq. 1 compares pairs, and {group.size} processes leave one image to some: start fewer, or "
                "raise --batch-size"
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
        assert isinstance(config.model, OneShotConfig)
        self.settings = config.model
        self.seed, self.group, self.device = config.training.seed, group, device
        self.rows = group.rows(config.training.batch_size)
        self.batch_size = self.rows.stop - self.rows.start  # of this process
        self.share = self.batch_size / config.training.batch_size
        self.plan = make_plan(
            (frames.shape[1], frames.shape[2]),
            self.settings.base_width,
            low_level_blocks=self.settings.low_level_blocks,
        )
        self.batches = Batches(
            frames, config.training.batch_size, self.plan.low_level_blocks, self.seed, device
        )
        with seeded_initialisation(self.seed):
            self.G = Generator(self.plan, self.settings.noise_dim, self.settings.all_rgb_heads)
            self.D = Discriminator(
                self.plan,
                self.settings.content_branch,
                self.settings.layout_branch,
                coarse_entry=self.settings.coarse_steps > 0,
            )
        low, full = PRECISIONS[precision], torch.float64 if precision == "fp64" else torch.float32
        for network in (self.G, self.D):
            network.to(device=device, dtype=full)
        self.ema = EMA(self.G)
        self.weights_G = WorkingWeights({self.G: low})
        precisions: dict[torch.nn.Module, torch.dtype] = {self.D.low_level: low}
        precisions |= {branch: full for branch in (self.D.content, self.D.layout) if branch is not None}
        self.weights_D = WorkingWeights(precisions)
        self.optimiser_G = self._adam(self.G, fused=True, capturable=device.type == "cuda")
        self.optimiser_D = self._adam(self.D, fused=True, capturable=device.type == "cuda")
        if self._recomputes(config.machine.recompute, low):
            self.G.recompute = self.D.low_level.recompute = True
            if config.machine.recompute == "auto":
                notify("activations are computed again in the backward pass, to fit into memory")
        self.coarse = self.settings.coarse_steps > 0  # whether the last step made was at half the size
        self.replayed: Replayed[Draws] | None = None
        if device.type == "cuda" and config.machine.cuda_graphs and group.size == 1:
            self.replayed = Replayed(self.update, device, CudaGraphs(), notify)

    def step(self, step: int) -> dict[str, Tensor]:
        """Iteration `step` (from 1). Returns the losses by name, detached scalars on the device."""
        coarse = step <= self.settings.coarse_steps
        if coarse != self.coarse and self.replayed is not None:
            self.replayed.forget()
        self.coarse = coarse
        draws = self.draw(step)
        return self.update(draws.to(self.device)) if self.replayed is None else self.replayed(draws)

    def draw(self, step: int) -> Draws:
        """The random numbers of `step`; they depend on (seed, step) alone. On the CPU."""
        settings, rows = self.settings, self.rows
        features = None
        if settings.feature_augment_probability > 0:
            stream = random_stream(self.seed, f"features {rows.start}" if rows.start else "features", step)
            features = feature_augment.draw(self.batch_size, self.plan.branch_widths[0], stream)
        return Draws(
            frames=self.batches.indices(step)[rows],
            z_G=self._noise("z_G", step),
            z_D=self._noise("z_D", step),
            transforms_G=self._transforms("augment_G", step, 1),
            transforms_D=self._transforms("augment_D", step, 2),
            features=features,
            ema_decay=torch.tensor(ema_decay_at(self._steps_of_stage(step), settings.ema_decay)),
            rate=torch.tensor(rate_at(step, settings.constant_rate_steps), dtype=torch.float64),
        )

    def update(self, draws: Draws) -> dict[str, Tensor]:
        """One generator update, one discriminator update with fresh z, then the moving average.

        A function of the state (with `coarse`) and `draws` alone, with shapes that never change; nothing is
        read back from the device.
        """
        iterate = self.settings.power_iteration == "forward"

        self._set_rates(draws.rate)

        # Generator: min L_adv − λ L_DR (eq. 3), the discriminator fixed
        self.weights_G.refresh()
        self.weights_D.refresh()
        self._train(self.G)
        fake = self.G(draws.z_G, self.coarse)
        diversity = self._diversity(fake.features)
        logits_fake = self.D(self._augmented(fake.images, draws.transforms_G), coarse=self.coarse)
        loss_G = losses.generator_loss(
            logits_fake, diversity, self._diversity_strength, self.settings.logit_scale
        )
        self.optimiser_G.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_G)
        self.weights_G.pull_back()
        self.group.mean_gradients(self.G, self.share)
        self.optimiser_G.step()

        # Discriminator: max L_adv (eq. 2), real and generated images through one door
        self.weights_G.refresh(iterate)
        self._train(self.D)
        with torch.no_grad():
            fake = self.G(draws.z_D, self.coarse)
        real = self.batches.images(draws.frames)[int(self.coarse) :]
        loss_D = self._update_D(real, fake.images, draws)

        # Moving average of the generator
        self.ema.update(self.G, draws.ema_decay)

        terms = {"loss_G": loss_G, "loss_D": loss_D}
        if diversity is not None:
            terms["diversity"] = diversity
        return self.group.mean({name: term.detach() for name, term in terms.items()}, self.share)

    def generate(self, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed, by the moving average of the generator."""
        sampler = OneShotSampler(self.ema.network, self.coarse)
        return sampler.images(sampler.latents(seeds))

    def state(self) -> dict[str, Any]:
        """All that changes in training, for a checkpoint: tensors and plain values only."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"coarse": self.coarse}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for optimiser in (self.optimiser_G, self.optimiser_D):
            for group in optimiser.param_groups:  # a checkpoint of another device has that one's
                group["capturable"] = self.device.type == "cuda"
                group["lr"] = torch.as_tensor(group["lr"], dtype=self._rate_dtype, device=self.device)
            for parameter, moments in optimiser.state.items():  # fused Adam needs the parameter's own layout
                for name, value in moments.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        moments[name] = torch.empty_like(parameter).copy_(value)
        self.coarse = state.get("coarse", self.coarse)
        if self.replayed is not None:
            self.replayed.forget()

    def sampling_weights(self) -> dict[str, Tensor]:
        """The moving average's weights with spectral normalisation folded in, on the CPU.

        During the coarse steps the last block is not trained, and left out.
        """
        untrained = _finest(self.plan) if self.coarse else ()
        folded = layers.folded_state(self.ema.network)
        return {name: tensor.cpu() for name, tensor in folded.items() if not name.startswith(untrained)}

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

    def _recomputes(self, wanted: str, precision: torch.dtype) -> bool:
        """Whether to keep no activations inside the blocks: if all would not fit into memory."""
        if wanted != "auto":
            return wanted == "on"
        available = available_memory(self.device)
        pixels = self.batch_size * self.plan.height * self.plan.width
        needed = ACTIVATION_BYTES[precision] * pixels * self.settings.base_width
        return available is not None and needed > MEMORY_SHARE * available

    # --- the parts of an update ---

    def _adam(self, network: torch.nn.Module, **how: Any) -> torch.optim.Adam:
        """Adam; its rate is a tensor, so that a recorded step can take it from outside (see `_set_rates`)."""
        betas = (self.settings.adam_beta1, self.settings.adam_beta2)
        rate = torch.zeros((), dtype=self._rate_dtype, device=self.device)
        return torch.optim.Adam(network.parameters(), rate, betas, **how)

    @property
    def _rate_dtype(self) -> torch.dtype:
        """Of the learning rates: exact, but for the fused Adam of CUDA, which takes float32 only."""
        return torch.float64 if self.device.type == "cpu" else torch.float32

    def _set_rates(self, share: Tensor) -> None:
        rates = (self.settings.learning_rate_g, self.settings.learning_rate_d)
        for optimiser, rate in zip((self.optimiser_G, self.optimiser_D), rates, strict=True):
            optimiser.param_groups[0]["lr"].copy_(share * rate)

    def _update_D(self, real: list[Tensor], fake: list[Tensor], draws: Draws) -> Tensor:
        """One update of the discriminator; gives loss_D."""
        per_forward = self.settings.power_iteration == "forward"
        joined = [torch.cat(pair) for pair in zip(real, fake, strict=True)]
        both = self._augmented(joined, draws.transforms_D)
        self.optimiser_D.zero_grad(set_to_none=True)
        if self.settings.joined_pass:
            if per_forward:
                self.weights_D.refresh()
            logits = self.D(both, self._feature_transform(draws), self.coarse)
            logits_real, logits_fake = logits.split(self.batch_size)
            loss_D = losses.discriminator_loss(logits_real, logits_fake, self.settings.logit_scale)
            torch.autograd.backward(loss_D)
            self.weights_D.pull_back()
        else:
            loss_D = torch.zeros((), device=self.device)
            for is_real in (True, False):
                if per_forward:
                    self.weights_D.refresh()
                part = slice(self.batch_size) if is_real else slice(self.batch_size, None)
                transform = self._feature_transform(draws) if is_real else None
                logits = self.D([x[part] for x in both], transform, self.coarse)
                loss = losses.adversarial(losses.part_losses(logits, is_real, self.settings.logit_scale))
                torch.autograd.backward(loss)
                self.weights_D.pull_back()
                loss_D = loss_D + loss.detach()
        self.group.mean_gradients(self.D, self.share)
        self.optimiser_D.step()
        return loss_D

    def _train(self, network: Generator | Discriminator) -> None:
        """Gradients for this one of the two networks, and none for the other."""
        for each, weights in ((self.G, self.weights_G), (self.D, self.weights_D)):
            each.requires_grad_(each is network)
            weights.requires_grad_(each is network)

    def _diversity(self, features: list[Tensor]) -> Tensor | None:
        if self.settings.diversity_weight == 0:
            return None
        return losses.diversity(features, squash=self.settings.diversity_features == "tanh")

    @property
    def _diversity_strength(self) -> float:
        blocks = self.plan.blocks - self.coarse
        scale = losses.diversity_scale(self.settings.diversity_norm, self.batches.batch_size, blocks)
        return self.settings.diversity_weight * scale

    def _augmented(self, images: list[Tensor], transforms: Tensor | None) -> list[Tensor]:
        return images if transforms is None else augment.apply_transforms(images, transforms)

    def _feature_transform(self, draws: Draws) -> FeatureTransform | None:
        """Feature augmentation of the reals, which come first in a batch; None where it is off."""
        draw, probability = draws.features, self.settings.feature_augment_probability
        if draw is None:
            return None
        real, fake = slice(self.batch_size), slice(self.batch_size, None)

        def transform(vector: Tensor | None, plane: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if vector is not None:
                mixed = feature_augment.augment_content(vector[real], draw, probability)
                vector = torch.cat([mixed, vector[fake]])
            if plane is not None:
                mixed = feature_augment.augment_layout(plane[real], draw, probability)
                plane = torch.cat([mixed, plane[fake]])
            return vector, plane

        return transform

    # --- the draws ---

    def _steps_of_stage(self, step: int) -> int:
        """Steps since training began, or began at the full size: there the average starts anew."""
        coarse = self.settings.coarse_steps
        return step if step <= coarse else step - coarse

    def _noise(self, name: str, step: int) -> Tensor:
        generator = random_stream(self.seed, name, step)
        whole = torch.randn(self.batches.batch_size, self.settings.noise_dim, generator=generator)
        return whole[self.rows]

    def _transforms(self, name: str, step: int, batches: int) -> Tensor | None:
        """Transforms of the images of one batch, or of those of two, the reals first."""
        probability = self.settings.augment_probability
        if probability == 0:
            return None
        if self.settings.augment_ramp_steps:
            probability *= min(1.0, step / self.settings.augment_ramp_steps)
        generator = random_stream(self.seed, name, step)
        whole = torch.rand(batches, self.batches.batch_size, augment.DRAWS, generator=generator)
        uniform = whole[:, self.rows].flatten(0, 1)
        return augment.draw_transforms(uniform, self.plan.width / self.plan.height, probability)


def rate_at(step: int, constant_steps: int) -> float:
    """The share of the learning rates at `step`: 1, after `constant_steps` √(constant_steps / step).

    The schedule of Karras et al., *Analyzing and Improving the Training Dynamics of Diffusion Models*
    (CVPR 2024): it knows no last step, so that a run can be extended. 0 means that the rates stay.
    """
    return min(1.0, (constant_steps / step) ** 0.5) if constant_steps else 1.0


class OneShotSampler:
    """Draws images from a trained generator; one seed is one image.

    Args:
        coarse: the last block is not trained yet; images are drawn without it and doubled in size.
    """

    def __init__(self, generator: Generator, coarse: bool = False) -> None:
        self.generator, self.coarse = generator, coarse

    @classmethod
    def load(
        cls, settings: OneShotConfig, size: tuple[int, int], weights: dict[str, Tensor]
    ) -> OneShotSampler:
        """From the folded weights of a run and the (height, width) it was trained at."""
        plan = make_plan(size, settings.base_width, low_level_blocks=settings.low_level_blocks)
        generator = Generator(plan, settings.noise_dim, settings.all_rgb_heads, spectral_norm=False)
        expected = generator.state_dict()
        coarse = weights.keys() == {name for name in expected if not name.startswith(_finest(plan))}
        generator.load_state_dict(weights, strict=not coarse)
        return cls(generator.requires_grad_(False), coarse)

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
            return torch.cat([self.draw(part.to(device)) for part in torch.split(z, at_once)])

    def draw(self, z: Tensor) -> Tensor:
        """`images` of as many as fit into memory at once, on the generator's device."""
        output: GeneratorOutput = self.generator(z, self.coarse)
        image = output.images[0].float()
        return F.interpolate(image, scale_factor=2, mode="bilinear") if self.coarse else image


def _finest(plan: Plan) -> tuple[str, str]:
    """How the names of the generator's weights begin that only the full size uses."""
    return f"blocks.{plan.blocks - 1}.", f"to_rgb.{plan.blocks - 1}."
