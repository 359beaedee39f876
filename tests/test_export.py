"""A model as an ONNX file draws the same images, whatever the method."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command

from oneshotgan import export
from oneshotgan.sampling import OneShotGAN

pytest.importorskip("onnxscript", reason="the export needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export needs the extra onnx")

METHODS = {
    "oneshot": ("--base-width", "4", "--short-size", "32"),
    "singan": ("--base-width", "4", "--short-size", "32", "--min-size", "12", "--scales", "2"),
    "fastgan": ("--base-width", "4", "--short-size", "32", "--no-reconstruction", "--batch-size", "2"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_file_draws_what_the_model_draws(method: str, photo: Path, command: Command) -> None:
    trained = command("train", photo, "--method", method, "--steps", 2, "--out", "run", *METHODS[method])
    assert trained.code == 0, trained.err
    outcome = command("export", "run", "--out", "made/model.onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "made/model.onnx\n"
    assert [path.name for path in Path("made").iterdir()] == ["model.onnx"]
    gan = OneShotGAN.from_pretrained("run")
    session = onnxruntime.InferenceSession("made/model.onnx", providers=["CPUExecutionProvider"])
    height, width = gan.size
    assert session.get_modelmeta().custom_metadata_map["size"] == f"{width}x{height}"
    for count in (1, 7):
        z = gan.sampler.latents(range(count))
        drawn = session.run(None, {"z": z.numpy()})[0]
        assert drawn.shape == (count, 3, height, width)
        assert np.abs(drawn - gan.sampler.images(z).numpy()).max() < 1e-4


def test_a_file_that_draws_something_else_is_not_written(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = OneShotGAN.from_pretrained(trained)
    monkeypatch.setattr(type(gan.sampler), "images", lambda self, z: torch.zeros(len(z), 3, *gan.size) - 1)
    assert "differ from PyTorch's" in command("export", trained, "--out", "model.onnx").error
    assert not Path("model.onnx").exists()


def test_what_cannot_be_exported_says_so(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(self: object, z: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(z)

    monkeypatch.setattr(type(OneShotGAN.from_pretrained(trained).sampler), "draw", draw)
    assert "cannot be exported" in command("export", trained, "--out", "model.onnx").error
    assert not Path("model.onnx").exists()


def test_missing_packages_and_a_wrong_name_are_told(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name it .onnx" in command("export", trained, "--out", "model.pt").error
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "oneshotgan[onnx]" in command("export", trained, "--out", "model.onnx").error
    assert export.TOLERANCE == 1e-4
