"""Settings: frozen dataclasses, presets, TOML and JSON in and out, checked overrides.

Every field has one name in Python, in files and as a flag (``learning_rate_g`` is
``--learning-rate-g``). Sections say what a change means: ``data``, ``model`` and ``training`` make the
model and are fixed once a run has begun (but for more ``steps``); ``machine`` may change at any time.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from oneshotgan.errors import UserError

METHODS = ("oneshot", "singan", "fastgan")
PRESETS = ("preview", "paper")


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with its help text and its closed range."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class DataConfig:
    """What of the source is trained on."""

    max_size: int | None = setting(None, "Long side of the training images at most, in pixels.", 32, 8192)
    short_size: int | None = setting(None, "Short side of the training images at most, in pixels.", 32, 2048)
    max_frames: int = setting(200, "Frames of a video at most; a longer one is thinned evenly.", 1, 100_000)


@dataclass(frozen=True)
class OneShotConfig:
    """One-Shot GAN: networks, losses, augmentation, optimisers. The defaults are the preset `paper`.

    A setting that comes later must do nothing at its default: runs that do not have it are read with that.
    """

    base_width: int = setting(32, "Number of channels that those of the layers are multiples of.", 4, 256)
    noise_dim: int = setting(64, "Length of the latent vector z.", 1, 4096)
    content_branch: bool = setting(True, "The discriminator's content branch.")
    layout_branch: bool = setting(True, "The discriminator's layout branch.")
    low_level_blocks: int = setting(
        0, "Discriminator blocks before the branching, and scales it reads; 0 for the plan's.", 0, 4
    )
    all_rgb_heads: bool = setting(False, "Build the generator's unused coarse RGB heads too.")
    diversity_weight: float = setting(0.15, "λ of eq. 3; 0 turns diversity regularisation off.", 0, 100)
    diversity_norm: Literal["paper", "released"] = setting(
        "paper", "Strength of eq. 1: as in the paper, or as the released program normalises it."
    )
    diversity_features: Literal["tanh", "raw"] = setting(
        "tanh", "What eq. 1 compares: tanh of features, or raw."
    )
    logit_scale: float = setting(
        1.0, "Factor on D's logits, whose spread spectral normalisation bounds; 1 is the paper's.", 0.01, 100
    )
    augment_probability: float = setting(
        0.7, "Of each image transform D sees; 0 turns augmentation off.", 0, 1
    )
    augment_ramp_steps: int = setting(
        0, "Steps over which that probability grows from 0, as ADA's does; 0 for none.", 0, 10**9
    )
    feature_augment_probability: float = setting(0.4, "Of mixing real features in D; 0 turns it off.", 0, 1)
    power_iteration: Literal["step", "forward"] = setting(
        "step", "Refine the spectral norms once a step, or before every forward pass."
    )
    joined_pass: bool = setting(True, "D judges real and generated images in one pass, not in two.")
    coarse_steps: int = setting(
        0, "The first steps train at half the size, on the networks without their finest blocks.", 0, 10**9
    )
    learning_rate_g: float = setting(2e-4, "Adam's learning rate for the generator.", 0, 1)
    learning_rate_d: float = setting(2e-4, "Adam's learning rate for the discriminator.", 0, 1)
    constant_rate_steps: int = setting(
        0, "After so many steps the learning rates fall with 1/√step; 0 for never.", 0, 10**9
    )
    adam_beta1: float = setting(0.5, "Adam's β1.", 0, 0.9999)
    adam_beta2: float = setting(0.999, "Adam's β2.", 0, 0.999999)
    ema_decay: float = setting(0.9999, "Decay of the generator's moving average at most.", 0, 1)


@dataclass(frozen=True)
class SinGANConfig:
    """SinGAN (Shaham, Dekel and Michaeli, ICCV 2019). The defaults are the preset `paper`."""

    base_width: int = setting(32, "Number of channels that those of the layers are multiples of.", 4, 256)
    scales: int = setting(0, "Scales of the pyramid; 0 for those that belong to the source's size.", 0, 32)
    min_size: int = setting(25, "Short side of the coarsest scale, in pixels.", 11, 256)
    scale_factor: float = setting(0.75, "Size of a scale over that of the next finer one, about.", 0.3, 0.95)
    updates_g: int = setting(3, "Generator updates per step.", 1, 100)
    updates_d: int = setting(3, "Discriminator updates per step.", 1, 100)
    gradient_penalty: float = setting(0.1, "Weight of the discriminator's gradient penalty.", 0, 1000)
    reconstruction_weight: float = setting(10.0, "Weight of the reconstruction loss.", 0, 1000)
    noise_weight: float = setting(
        0.1, "Noise of a scale over the root mean square error of the reconstruction it refines.", 0, 10
    )
    learning_rate_g: float = setting(5e-4, "Adam's learning rate for the generator.", 0, 1)
    learning_rate_d: float = setting(5e-4, "Adam's learning rate for the discriminator.", 0, 1)
    adam_beta1: float = setting(0.5, "Adam's β1.", 0, 0.9999)
    adam_beta2: float = setting(0.999, "Adam's β2.", 0, 0.999999)


@dataclass(frozen=True)
class FastGANConfig:
    """FastGAN (Liu et al., ICLR 2021). The defaults are the preset `paper`."""

    resolution: Literal[64, 128, 256, 512, 1024] = setting(256, "Side of the squares it trains on.")
    base_width: int = setting(64, "Number of channels that those of the layers are multiples of.", 4, 256)
    noise_dim: int = setting(256, "Length of the latent vector z.", 1, 4096)
    reconstruction: bool = setting(True, "The discriminator's decoders and their perceptual loss.")
    diff_augment: bool = setting(True, "DiffAugment's colour and translation of all that D sees.")
    learning_rate_g: float = setting(2e-4, "Adam's learning rate for the generator.", 0, 1)
    learning_rate_d: float = setting(2e-4, "Adam's learning rate for the discriminator.", 0, 1)
    adam_beta1: float = setting(0.5, "Adam's β1.", 0, 0.9999)
    adam_beta2: float = setting(0.999, "Adam's β2.", 0, 0.999999)
    ema_decay: float = setting(0.999, "Decay of the generator's moving average at most.", 0, 1)


@dataclass(frozen=True)
class TrainingConfig:
    """How long, on how much, from which seed."""

    steps: int = setting(
        100_000, "Steps in all, 0 for SinGAN's 2,000 a scale; a larger number extends a run.", 0, 10**9
    )
    batch_size: int = setting(5, "Images per batch.", 1, 1024)
    seed: int = setting(0, "Of weights, batches, noise and augmentation.", 0, 2**32 - 1)


@dataclass(frozen=True)
class MachineConfig:
    """What may change between starts of a run; a change ends bit-equality."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train.")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "Arithmetic of the networks.")
    threads: int = setting(
        0, "CPU threads; 0 means one per core, shared with other trainings that run.", 0, 1024
    )
    recompute: Literal["auto", "on", "off"] = setting(
        "auto", "Compute activations again in the backward pass: less memory, a third more time."
    )
    cuda_graphs: bool = setting(True, "On CUDA: record the step once and replay it, without launches.")
    deterministic: bool = setting(False, "On CUDA: only deterministic kernels, slower.")
    log_every: int = setting(50, "Steps between lines of stats.jsonl.", 1, 10**9)
    sample_every: int = setting(500, "Steps between contact sheets.", 1, 10**9)
    evaluate_every: int = setting(
        0, "Steps between figures (SIFID, LPIPS) in stats.jsonl; 0 means none.", 0, 10**9
    )
    tensorboard: bool = setting(False, "Write losses and contact sheets for TensorBoard too.")
    checkpoint_every: int = setting(500, "Steps between checkpoints.", 1, 10**9)
    checkpoint_minutes: float = setting(5.0, "Minutes between checkpoints at most.", 0.001, 1e6)
    snapshot_every: int = setting(500, "Steps between snapshots of the weights; thinned later.", 1, 10**9)


Model = OneShotConfig | SinGANConfig | FastGANConfig


@dataclass(frozen=True)
class Config:
    """Everything a training needs to know but its source."""

    method: Literal["oneshot", "singan", "fastgan"] = "oneshot"
    preset: Literal["preview", "paper"] = "paper"
    data: DataConfig = DataConfig()
    model: Model = OneShotConfig()
    training: TrainingConfig = TrainingConfig()
    machine: MachineConfig = MachineConfig()


MODELS: dict[str, type[Model]] = {
    "oneshot": OneShotConfig,
    "singan": SinGANConfig,
    "fastgan": FastGANConfig,
}
SECTIONS = ("data", "model", "training", "machine")

Fields = dict[str, tuple[str, dataclasses.Field[Any]]]


def fields(method: str) -> Fields:
    """Every setting of a method by its name: the section it stands in, and its field."""
    classes = {
        "data": DataConfig,
        "model": MODELS[method],
        "training": TrainingConfig,
        "machine": MachineConfig,
    }
    return {f.name: (section, f) for section, cls in classes.items() for f in dataclasses.fields(cls)}


def owners(name: str) -> list[str]:
    """The methods that have this setting."""
    return [method for method in METHODS if name in fields(method)]


# Of all methods. Where several have a setting, it has one meaning, type and range; only defaults differ.
FIELDS: Fields = fields("oneshot")
for _method in METHODS:
    FIELDS |= {name: entry for name, entry in fields(_method).items() if name not in FIELDS}
TYPES: dict[str, Any] = {
    name: hint
    for cls in (DataConfig, *MODELS.values(), TrainingConfig, MachineConfig)
    for name, hint in typing.get_type_hints(cls).items()
}

# A preset is what differs from the defaults above, which are the papers'.
_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "oneshot": {
        "paper": {"max_size": 330},
        "preview": {
            "short_size": 64,
            "base_width": 16,
            "learning_rate_g": 5e-4,
            "learning_rate_d": 5e-4,
            "ema_decay": 0.999,
            "diversity_weight": 0.4,
            "augment_probability": 0.3,
            "steps": 10_000,
        },
    },
    "singan": {
        "paper": {"max_size": 250, "batch_size": 1, "steps": 0},
        "preview": {"short_size": 64, "batch_size": 1, "steps": 3000},
    },
    "fastgan": {
        "paper": {"max_size": 330, "batch_size": 8, "steps": 50_000},
        "preview": {"short_size": 64, "batch_size": 8, "resolution": 64, "base_width": 16, "steps": 4000},
    },
}
# And what differs again where the source is a clip, whose frames vary by themselves.
_CLIP_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("oneshot", "preview"): {"diversity_weight": 0.15, "augment_probability": 0.7, "steps": 9500},
}


def preset(name: str, method: str = "oneshot", clip: bool = False) -> Config:
    """The settings of a method's preset, ``preview`` (made for a CPU) or ``paper``.

    Args:
        clip: for several frames, not for one photo.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose {' or '.join(PRESETS)}")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose {', '.join(METHODS)}")
    of_clips = _CLIP_PRESETS.get((method, name), {}) if clip else {}
    return _apply(_defaults(method, name), _PRESETS[method][name] | of_clips)


def _defaults(method: str, preset: str) -> Config:
    return Config(typing.cast(Any, method), typing.cast(Any, preset), model=MODELS[method]())


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with some fields set anew, by their plain names.

    The two size limits stand for one another: setting only one of them lifts the other.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range.
    """
    changes = dict(overrides)
    for one, other in (("max_size", "short_size"), ("short_size", "max_size")):
        if changes.get(one) is not None and other not in changes:
            changes[other] = None
    for name, value in changes.items():
        check_field(name, value, config.method)
    config = _apply(config, changes)
    if config.training.steps == 0 and config.method != "singan":
        raise UserError("steps must be 1 or more, not 0: only SinGAN has a number of its own")
    if not isinstance(config.model, OneShotConfig):
        return config
    if config.model.coarse_steps and config.model.low_level_blocks == 1:
        raise UserError("at half the size one block fewer is read: set low_level_blocks to 2 or more, or "
                        "coarse_steps to 0")  # fmt: skip
    if config.training.batch_size == 1 and config.model.diversity_weight > 0:
        raise UserError("eq. 1 compares pairs: set batch_size to 2 or more, or diversity_weight to 0")
    return config


def check_field(name: str, value: Any, method: str | None = None) -> None:
    """Raise a UserError unless `value` has the type and lies in the range of the field `name`.

    And, where `method` is given, unless the field is one of that method's.
    """
    if name not in FIELDS:
        raise UserError(f"unknown setting {name!r}{_nearest(name)}")
    if method is not None and name not in fields(method):
        raise UserError(f"setting {name} belongs to the method {' and '.join(owners(name))}, not to {method}")
    if not _fits(value, TYPES[name]):
        raise UserError(f"setting {name} must be {_describe(TYPES[name])}, not {value!r}")
    low, high = FIELDS[name][1].metadata["low"], FIELDS[name][1].metadata["high"]
    if value is not None and low is not None and not low <= value <= high:
        raise UserError(f"setting {name} must lie between {low:,} and {high:,}, not {value!r}")


def load_file(path: Path | str) -> tuple[dict[str, str], dict[str, Any]]:
    """Read a TOML file of settings, or a run's ``config.json``.

    Returns:
        The top-level choices (``method``, ``preset``) and the flat overrides.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text file"
        raise UserError(f"cannot read the settings in {path}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read the settings in {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read the settings in {path}: they must be a table")
    of_a_run = content.pop("run", None) is not None
    choices, overrides = parse(content, where=f" in {path}")
    method = choices.get("method", "oneshot")
    return choices, _neutral(method) | overrides if of_a_run else overrides


def _neutral(method: str) -> dict[str, Any]:
    """Every setting at the value at which a younger one does nothing."""
    return {name: field.default for name, (_, field) in fields(method).items()}


def parse(content: Mapping[str, Any], where: str = "") -> tuple[dict[str, str], dict[str, Any]]:
    """Split nested settings into top-level choices and checked flat overrides."""
    choices: dict[str, str] = {}
    overrides: dict[str, Any] = {}
    for key, value in content.items():
        if key in ("method", "preset"):
            allowed = METHODS if key == "method" else PRESETS
            if value not in allowed:
                raise UserError(f"setting {key}{where} must be {' or '.join(allowed)}, not {value!r}")
            choices[key] = value
        elif key in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"[{key}]{where} must be a table of settings, not {value!r}")
            for name, entry in value.items():
                if name in FIELDS and FIELDS[name][0] != key:
                    raise UserError(f"setting {name}{where} belongs under [{FIELDS[name][0]}], not [{key}]")
                _located(name, entry, where)
                overrides[name] = entry
        elif key in FIELDS:
            _located(key, value, where)
            overrides[key] = value
        else:
            raise UserError(f"unknown setting {key!r}{where}{_nearest(key)}")
    return choices, overrides


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested plain values, as in ``config.json``."""
    return dataclasses.asdict(config)


def from_dict(content: Mapping[str, Any]) -> Config:
    """The settings back from `to_dict`; unknown or ill-typed entries raise a UserError.

    A setting that is not there is younger than the file; it has its neutral value, whatever a preset says.
    """
    choices, overrides = parse(content)
    defaults = _defaults(choices.get("method", "oneshot"), choices.get("preset", "paper"))
    for name in overrides:
        check_field(name, overrides[name], defaults.method)
    return _apply(defaults, overrides)


def to_toml(config: Config) -> str:
    """The settings as TOML, which `load_file` reads; a limit that is not set is left out."""
    content = to_dict(config)
    for section in SECTIONS:
        content[section] = {name: value for name, value in content[section].items() if value is not None}
    return tomli_w.dumps(content)


def listed(config: Config) -> list[tuple[str, str]]:
    """Name and value of every setting that is set, as text."""
    content = to_dict(config)
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    for section in SECTIONS:
        flat |= content[section]
    return [(name, str(value)) for name, value in flat.items() if value is not None]


def changed_fields(old: Config, new: Config) -> list[str]:
    """The names of the fields in which two settings differ, and ``method`` where that does."""
    if old.method != new.method:
        return ["method"]
    settings = fields(old.method).items()
    return [name for name, (section, _) in settings if _get(old, section, name) != _get(new, section, name)]


def _apply(config: Config, overrides: Mapping[str, Any]) -> Config:
    sections = {section: dict[str, Any]() for section in SECTIONS}
    for name, value in overrides.items():
        section = FIELDS[name][0]
        if TYPES[name] is float:
            value = float(value)
        sections[section][name] = value
    replaced = {
        section: dataclasses.replace(getattr(config, section), **changes)
        for section, changes in sections.items()
    }
    return dataclasses.replace(config, **replaced)


def _get(config: Config, section: str, name: str) -> Any:
    return getattr(getattr(config, section), name)


def _located(name: str, value: Any, where: str) -> None:
    try:
        check_field(name, value)
    except UserError as error:
        raise UserError(f"{error}{where}") from None


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(option) and value == option for option in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        types.NoneType: "null",
    }[hint]


def _nearest(name: str) -> str:
    names = [*FIELDS, *SECTIONS, "method", "preset"]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
