"""A trained model as one ONNX file, for programs that do not have PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oneshotgan import __version__
from oneshotgan.errors import UserError
from oneshotgan.files import replacing
from oneshotgan.sampling import OneShotGAN

TOLERANCE = 1e-4  # between PyTorch and onnxruntime, on a scale from -1 to 1
CHECKED = [1, 2, 5]  # images at a time, in the check
OPSET = 18


class Drawing(nn.Module):
    """What the file holds: z (N, dim) -> images (N, 3, H, W)."""

    def __init__(self, gan: OneShotGAN) -> None:
        super().__init__()
        self.sampler = gan.sampler
        self.generator = gan.sampler.generator  # a module of this one, so that its weights are found

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.sampler.draw(z)
        return image


def export_onnx(gan: OneShotGAN, out: Path | str) -> float:
    """Write `gan` to the file `out`, checked in onnxruntime, and give the largest difference found.

    The file has one input, ``z``, float32 (N, dim) from N(0, I), and one output, ``image``, float32
    (N, 3, H, W) in [-1, 1], with any N. Its metadata say method, step and size.

    Raises:
        UserError: the packages of the extra ``onnx`` are missing, the model has a part that ONNX lacks, or
            the file's images are not PyTorch's to 1e-4.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UserError("the export needs more packages: pip install 'oneshotgan[onnx]'") from error
    out = Path(out)
    z = gan.sampler.latents(range(sum(CHECKED)))
    with replacing(out) as temporary:
        try:
            with _quiet():
                program = torch.onnx.export(
                    Drawing(gan).eval(),
                    (z[:2],),
                    input_names=["z"],
                    output_names=["image"],
                    dynamic_shapes=({0: torch.export.Dim("N")},),
                    dynamo=True,
                    opset_version=OPSET,
                    verbose=False,
                )
        except Exception as error:  # whatever the exporter trips over
            raise UserError(
                f"this model of the method {gan.method} cannot be exported: ONNX lacks a part of it"
            ) from error
        assert program is not None
        height, width = gan.size
        program.model.metadata_props.update(
            {
                "oneshotgan": __version__,
                "method": gan.method,
                "step": str(gan.step),
                "size": f"{width}x{height}",
            }
        )
        program.save(temporary, external_data=False)
        largest = _difference(
            gan, z, onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        )
        if largest > TOLERANCE:
            raise UserError(
                f"{out} was not written: onnxruntime's images differ from PyTorch's by {largest:.1e}, "
                f"more than {TOLERANCE:g}"
            )
    return largest


def _difference(gan: OneShotGAN, z: Tensor, session: Any) -> float:
    """The largest difference of a pixel over batches of several sizes."""
    worst = 0.0
    for part in torch.split(z, CHECKED):
        drawn = torch.from_numpy(session.run(["image"], {"z": part.numpy()})[0])
        worst = max(worst, float((drawn - gan.sampler.images(part)).abs().max()))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of what concerns its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
