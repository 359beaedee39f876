"""Chosen samples as a ZIP: the images, and a manifest from which each can be drawn again."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

from oneshotgan import __version__
from oneshotgan.errors import UserError
from oneshotgan.web.drawing import Changed, Drawing, Sample
from oneshotgan.web.library import NotFound

MOST = 500


async def packed(chosen: object, drawing: Drawing) -> bytes:
    """The ZIP of chosen samples: PNG files and ``manifest.json``.

    A sample whose model is gone is not in the ZIP, and listed under ``missing`` with the reason.

    Args:
        chosen: objects of run, step, seed, truncation, perhaps toward and at, and model, the checksum of
            the weights they were seen with.

    Raises:
        UserError: it is no such list, or too long.
    """
    if not isinstance(chosen, list) or not all(isinstance(entry, dict) for entry in chosen):
        raise UserError("favourites are a list of objects")
    if not 0 < len(chosen) <= MOST:
        raise UserError(f"choose 1 to {MOST} favourites")
    images: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:  # PNG does not shrink any more
        for entry in chosen:
            sample = Sample.parsed(str(entry.get("run", "")), entry)
            known = _known(sample)
            try:
                drawn = await drawing.draw(sample, str(entry["model"]) if entry.get("model") else None)
            except Changed:
                missing.append(known | {"reason": "the model has changed since"})
                continue
            except (NotFound, UserError) as error:
                reason = "the run or its snapshot is gone" if isinstance(error, NotFound) else str(error)
                missing.append(known | {"reason": reason})
                continue
            name = _name(sample, drawn.step)
            if name in archive.namelist():
                continue
            archive.writestr(name, drawn.png)
            images.append(
                {"file": name}
                | known
                | {
                    "step": drawn.step,
                    "sha256": hashlib.sha256(drawn.png).hexdigest(),
                    "model_sha256": drawn.checksum,
                }
            )
        manifest = {"made_by": f"oneshotgan {__version__}", "images": images, "missing": missing}
        archive.writestr("manifest.json", json.dumps(manifest, indent=2) + "\n")
    return content.getvalue()


def _known(sample: Sample) -> dict[str, Any]:
    known: dict[str, Any] = {
        "run": sample.run,
        "step": sample.step,
        "seed": sample.seed,
        "truncation": sample.truncation,
    }
    if sample.toward is not None:
        known |= {"toward": sample.toward, "position": sample.at}
    return known


def _name(sample: Sample, step: int) -> str:
    """A file name that tells the samples apart."""
    way = f"-to-{sample.toward}-at-{sample.at:g}" if sample.toward is not None else ""
    folder = sample.run.replace("/", "_")
    return f"{folder}/step-{step:06d}-seed-{sample.seed:06d}{way}-truncation-{sample.truncation:g}.png"
