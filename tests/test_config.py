"""Settings: presets, overrides, files in and out, clear refusals."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from oneshotgan import config
from oneshotgan.errors import UserError


def test_the_paper_preset_holds_the_papers_constants() -> None:
    paper = config.preset("paper")
    assert paper.model.diversity_weight == 0.15  # λ, section 2
    assert (paper.model.adam_beta1, paper.model.adam_beta2) == (0.5, 0.999)
    assert paper.model.learning_rate_g == paper.model.learning_rate_d == 2e-4
    assert paper.training.batch_size == 5
    assert paper.data.max_size == 330
    assert paper.model.ema_decay == 0.9999
    assert 100_000 <= paper.training.steps <= 150_000


@pytest.mark.parametrize("method", config.METHODS)
@pytest.mark.parametrize("name", config.PRESETS)
def test_settings_survive_the_way_through_toml_and_json(name: str, method: str, tmp_path) -> None:
    settings = config.preset(name, method)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(settings)))) == settings
    file = tmp_path / "settings.toml"
    file.write_text(config.to_toml(settings))
    choices, overrides = config.load_file(file)
    assert choices == {"method": method, "preset": name}
    assert config.with_overrides(config.preset(name, method), overrides) == settings


@pytest.mark.parametrize("method", config.METHODS)
def test_every_field_has_a_help_text_and_a_valid_default(method: str) -> None:
    for name, (section, described) in config.fields(method).items():
        assert described.metadata["help"].endswith("."), name
        assert section in config.SECTIONS
        config.check_field(name, described.default, method)


@pytest.mark.parametrize("method", config.METHODS)
def test_a_setting_of_several_methods_means_the_same_in_each(method: str) -> None:
    hints = typing.get_type_hints(config.MODELS[method])
    for name, (section, described) in config.fields(method).items():
        known_section, known = config.FIELDS[name]
        assert (section, described.metadata) == (known_section, known.metadata), name
        if section == "model":
            assert hints[name] == config.TYPES[name], name
    assert set(config.fields(method)) <= set(config.FIELDS)


def test_one_size_limit_lifts_the_other() -> None:
    preview = config.preset("preview")
    assert preview.data.short_size is not None
    assert config.with_overrides(preview, {"max_size": 200}).data == config.DataConfig(max_size=200)
    both = config.with_overrides(preview, {"max_size": 200, "short_size": 64}).data
    assert (both.max_size, both.short_size) == (200, 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stpes": 5}, "did you mean steps"),
        ({"steps": "5"}, "whole number"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"steps": -5}, "steps"),
        ({"steps": 0}, "only SinGAN"),
        ({"noise_weight": 0.1}, "belongs to the method singan, not to oneshot"),
        ({"max_size": 8}, "max_size"),
        ({"learning_rate_g": float("nan")}, "number"),
        ({"diversity_norm": "other"}, "paper or released"),
        ({"content_branch": 1}, "true or false"),
        ({"batch_size": 1}, "diversity_weight"),
        ({"low_level_blocks": 1, "coarse_steps": 5}, "low_level_blocks"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(overrides, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.with_overrides(config.preset("preview"), overrides)
    assert "\n" not in str(caught.value)


def test_one_image_per_batch_is_allowed_without_diversity() -> None:
    settings = config.with_overrides(config.preset("preview"), {"batch_size": 1, "diversity_weight": 0})
    assert settings.training.batch_size == 1


@pytest.mark.parametrize(
    "text",
    [
        "stpes = 5",
        "[training]\nstpes = 5",
        "[data]\nsteps = 5",
        "[training]\nsteps = 'many'",
        "training = 5",
        "preset = 'huge'",
        "not toml at all",
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_the_file(text, tmp_path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"settings\.toml") as caught:
        config.load_file(file)
    assert "\n" not in str(caught.value)


def test_flat_files_and_runs_config_files_are_read(tmp_path) -> None:
    flat = tmp_path / "flat.toml"
    flat.write_text("preset = 'preview'\nsteps = 7\nlearning_rate_g = 1\n")
    assert config.load_file(flat) == ({"preset": "preview"}, {"steps": 7, "learning_rate_g": 1})
    run = tmp_path / "config.json"
    run.write_text(json.dumps(config.to_dict(config.preset("paper")) | {"run": {"version": "0"}}))
    assert config.load_file(run)[0]["preset"] == "paper"


def test_changed_fields_are_named() -> None:
    old = config.preset("preview")
    new = config.with_overrides(old, {"steps": 1, "base_width": 8})
    assert config.changed_fields(old, new) == ["base_width", "steps"]
    assert config.changed_fields(old, old) == []
    assert dataclasses.is_dataclass(old)


def test_a_setting_younger_than_a_runs_file_is_neutral_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = config.to_dict(config.preset("preview"))
    del content["model"]["low_level_blocks"]
    monkeypatch.setitem(config._PRESETS["oneshot"]["preview"], "low_level_blocks", 3)
    assert config.preset("preview").model.low_level_blocks == 3
    assert config.from_dict(content).model.low_level_blocks == 0
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content | {"run": {"version": "0"}}))
    choices, overrides = config.load_file(file)
    assert config.with_overrides(config.preset(choices["preset"]), overrides) == config.from_dict(content)


@pytest.mark.parametrize("value", [64.0, "64", True])
def test_a_choice_among_whole_numbers_takes_no_other_type(value: object) -> None:
    with pytest.raises(UserError, match="resolution must be"):
        config.with_overrides(config.preset("preview", "fastgan"), {"resolution": value})
