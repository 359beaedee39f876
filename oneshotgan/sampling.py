"""Run -> images: one seed is one image, whatever is drawn beside it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor

from oneshotgan import config, hub, media
from oneshotgan.data import to_uint8
from oneshotgan.errors import UserError
from oneshotgan.files import storage_errors, write_bytes, write_json
from oneshotgan.machine import choose, memory_errors
from oneshotgan.methods import SAMPLERS
from oneshotgan.models.plan import MIN_SIDE
from oneshotgan.run import Run, read_weights

BATCH = 16  # images per forward pass
LARGEST_SIDE = 8192  # pixels of an image of another size than the trained one


class OneShotGAN(ModelHubMixin, library_name="oneshotgan"):
    """A trained model to draw from.

    Use `from_pretrained`; or `oneshotgan.train`, which gives one. `save_pretrained` and `push_to_hub`, by
    huggingface_hub's mixin, give it to others.

    Attributes:
        method: "oneshot", "singan" or "fastgan".
        size: (height, width) of the images.
        step: how many steps it was trained.
        path: the file of its weights.
        sampler: that of the method: latents from seeds, images from latents.
    """

    def __init__(self, settings: config.Config, size: tuple[int, int], path: Path) -> None:
        self.method, self.size, self.path = settings.method, size, path
        content = config.to_dict(settings)
        self._described = {"method": content["method"], "model": content["model"], "size": list(size)}
        self.step, weights = read_weights(path)
        try:
            self.sampler: Any = SAMPLERS[self.method].load(settings.model, size, weights)
        except (RuntimeError, UserError) as error:  # load_state_dict: names or shapes differ
            raise UserError(f"{path} does not fit the settings of its run") from error

    def __repr__(self) -> str:
        height, width = self.size
        return f"<OneShotGAN {width}x{height}, {self.step} steps, from {self.path}>"

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's own would read our config.json its way
        cls, path: Path | str, step: int | None = None, **options: Any
    ) -> OneShotGAN:
        """Load a run directory, its ``model/`` folder, a folder of `save_pretrained`, or a model of the hub.

        Args:
            path: a path; or, as text, the id of a model on the Hugging Face Hub, ``"name/model"``, where
                there is no such folder here.
            step: a snapshot of a run instead of the newest model.
            options: for the hub: revision, token, cache_dir, force_download, local_files_only.

        Raises:
            UserError: no such run, model or snapshot, a damaged file, or no network.
        """
        if hub.is_id(path) and not os.path.exists(path):
            path = hub.fetched(str(path), **options)
        path = Path(path)
        folder = path / "model" if Run.exists(path) else path
        settings, size = _read_model_config(path, folder / "config.json")
        weights = folder / "model.safetensors"
        if step is not None:
            if not Run.exists(path):
                raise UserError(f"{path} has no snapshots: name the run directory to choose a step")
            kept = Run(path).snapshot_steps()
            if step not in kept:
                known = ", ".join(map(str, kept)) or "none yet"
                raise UserError(f"no snapshot of step {step} in {path}: kept are the steps {known}")
            weights = Run(path).snapshot_path(step)
        return cls(settings, size, weights)

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:
        """Write the model to a folder that `from_pretrained` reads, with a card and its pictures.

        The folder holds ``model.safetensors``, ``config.json``, ``README.md``, ``samples.png`` and, where the
        model still lies in its run, ``reals.png``.

        Args:
            options: see `huggingface_hub.ModelHubMixin.save_pretrained`.

        Raises:
            UserError: the folder is a run directory, or cannot be written.
        """
        folder = Path(save_directory)
        if Run.exists(folder) or Run.exists(folder.parent):
            raise UserError(f"{folder} belongs to a run: choose another folder")
        with storage_errors(folder):
            result: str | None = super().save_pretrained(folder, **options)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        """For the mixin's `save_pretrained`: weights, settings, the pictures of the card, the card."""
        with storage_errors(save_directory):
            weights = self.path.read_bytes()
        write_bytes(save_directory / "model.safetensors", weights)
        write_json(save_directory / "config.json", self._described)
        media.write_png(save_directory / "samples.png", media.contact_sheet(self.sample(range(16))))
        run = hub.run_of(self.path.parent)
        if run is not None:
            with storage_errors(save_directory):
                write_bytes(save_directory / "reals.png", (run.path / "reals.png").read_bytes())
        (save_directory / "README.md").unlink(missing_ok=True)  # of an older model; the mixin would keep it

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of the model: what it was trained on, what it draws, figures, settings, rights."""
        return ModelCard(hub.card(self._described, self.step, self.path.parent))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub, as ``name/model``; see `huggingface_hub.ModelHubMixin`.

        Raises:
            UserError: there is no network.
        """
        hub.check_reachable()
        return str(super().push_to_hub(repo_id, **options))

    def to(self, device: str) -> OneShotGAN:
        """Draw on ``cpu`` (where a model is loaded), on ``cuda``, or on ``auto``, whichever is there.

        Raises:
            UserError: CUDA was asked for and is not there.
        """
        self.sampler.generator.to(
            choose(config.with_overrides(config.Config(), {"device": device}).machine).device
        )
        return self

    def resized(self, size: tuple[int, int]) -> OneShotGAN:
        """The same model, drawing images of another (height, width), with more or less scene in them.

        Raises:
            UserError: the method cannot (only SinGAN can), or the size is out of bounds.
        """
        sampler = self.sampler
        if not hasattr(sampler, "resized"):
            raise UserError(f"a model of the method {self.method} draws one size: leave out --size")
        height, width = size
        if not all(MIN_SIDE <= side <= LARGEST_SIDE for side in size):
            raise UserError(
                f"the sides of --size must lie between {MIN_SIDE} and {LARGEST_SIDE:,} pixels, "
                f"not {width}x{height}"
            )
        other = copy.copy(self)
        other.size, other.sampler = size, sampler.resized(size)
        return other

    def sample(self, seeds: Sequence[int], truncation: float = 1.0) -> np.ndarray:
        """Draw one image per seed, uint8 (N, H, W, 3).

        Args:
            seeds: whole numbers from 0; image k depends on ``seeds[k]`` alone.
            truncation: 0 … 1, multiplies z: below 1 scenes are safer and less varied, 0 is one scene.
        """
        batches = list(self.iterate(seeds, truncation))
        return np.concatenate(batches) if batches else np.zeros((0, *self.size, 3), np.uint8)

    def iterate(self, seeds: Sequence[int], truncation: float = 1.0) -> Iterator[np.ndarray]:
        """The images of `sample`, in batches, so that any number fits into memory."""
        _check_truncation(truncation)
        if isinstance(seeds, int):
            raise UserError(f"seeds are several numbers: [{seeds}] is one image, range({seeds}) as many")
        ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
        if min(ends, default=0) < 0:
            raise UserError("seeds are whole numbers from 0")
        starts = range(0, len(seeds), BATCH)
        return (self._draw(truncation * self.sampler.latents(seeds[k : k + BATCH])) for k in starts)

    def interpolate(self, first: int, last: int, frames: int, truncation: float = 1.0) -> np.ndarray:
        """Images on the way from seed `first` to seed `last`, both included, uint8 (frames, H, W, 3).

        z moves on the great circle between the two, so that its length stays that of a Gaussian.
        """
        _check_truncation(truncation)
        if frames < 2:
            raise UserError(f"an interpolation has 2 frames or more, not {frames}")
        if min(first, last) < 0:
            raise UserError("seeds are whole numbers from 0")
        ends = self.sampler.latents([first, last])
        path = truncation * spherical_path(ends[0], ends[1], frames)
        return np.concatenate([self._draw(z) for z in torch.split(path, BATCH)])

    def between(self, first: int, last: int, position: float, truncation: float = 1.0) -> np.ndarray:
        """One image on that way, uint8 (H, W, 3); position 0 is seed `first`, 1 is seed `last`."""
        _check_truncation(truncation)
        if not 0 <= position <= 1:
            raise UserError(f"the position must lie in 0 … 1, not {position:g}")
        if min(first, last) < 0:
            raise UserError("seeds are whole numbers from 0")
        ends = self.sampler.latents([first, last])
        image: np.ndarray = self._draw(
            truncation * on_great_circle(ends[0], ends[1], torch.tensor([position]))
        )[0]
        return image

    def _draw(self, z: Tensor) -> np.ndarray:
        with memory_errors("close other programs, or sample on another machine"):
            return to_uint8(self.sampler.images(z))


def spherical_path(first: Tensor, last: Tensor, count: int) -> Tensor:
    """`count` points (count, dim) from `first` to `last` (dim,) on the great circle between them."""
    return on_great_circle(first, last, torch.linspace(0, 1, count))


def on_great_circle(first: Tensor, last: Tensor, t: Tensor) -> Tensor:
    """Points (N, dim) from `first` (dim,), where t is 0, to `last`, where it is 1, on the great circle."""
    cosine = torch.dot(first, last) / (first.norm() * last.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    t = t[:, None]
    if angle < 1e-4:  # the same direction: a straight line
        return (1 - t) * first + t * last
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last) / torch.sin(angle)


def _check_truncation(truncation: float) -> None:
    if not 0 <= truncation <= 1:
        raise UserError(f"truncation must lie in 0 … 1, not {truncation:g}")


def _read_model_config(path: Path, file: Path) -> tuple[config.Config, tuple[int, int]]:
    if not os.path.isfile(file):
        raise UserError(
            f"{path} is no run directory and no model folder: it holds no config.json of a training"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        height, width = content["size"]
        settings = config.from_dict({"method": content["method"], "model": content["model"]})
        return settings, (int(height), int(width))
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{file} is damaged or was not written by a training") from error
