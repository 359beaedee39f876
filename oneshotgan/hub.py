"""A model's way to the Hugging Face Hub and back: files to fetch, the card of a model that is shared.

`oneshotgan.sampling.OneShotGAN` has `save_pretrained`, `push_to_hub` and `from_pretrained` by the mixin of
huggingface_hub; this is what they need beside it.
"""

from __future__ import annotations

import os
import re
import socket
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jinja2 import Environment, StrictUndefined

from oneshotgan import __version__, config
from oneshotgan.errors import UserError
from oneshotgan.run import Run

WAIT = 3.0  # seconds for the hub to answer at all
FILES = ("config.json", "model.safetensors")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAMES = {"oneshot": "One-Shot GAN", "singan": "SinGAN", "fastgan": "FastGAN"}


def is_id(name: object) -> bool:
    """Whether `name` can be that of a model on the hub: two words with a slash between them, as text."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None


def fetched(model: str, **options: Any) -> Path:
    """The folder with the files of a model on the hub, from the cache where they are there and current.

    Args:
        options: of `huggingface_hub.hf_hub_download`: revision, token, cache_dir, local_files_only, …

    Raises:
        UserError: the hub cannot be reached and the cache does not have it, or there is no such model.
    """
    offline = not options.get("local_files_only") and not is_reachable()
    if offline:
        options["local_files_only"] = True  # huggingface_hub would try again for half a minute
    try:
        for name in FILES:
            path = Path(huggingface_hub.hf_hub_download(model, name, **options))
        return path.parent
    except LocalEntryNotFoundError as error:
        why = f"{_host()[0]} cannot be reached, and " if offline else ""
        raise UserError(f"there is no run at {model}; {why}no model of this name is in the cache") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"there is no run at {model}, and no model of this name on the hub that can be read: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from error


def is_reachable() -> bool:
    """Whether the hub answers. Behind a proxy that is not for us to try."""
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.create_connection(_host(), timeout=WAIT).close()
    except OSError:
        return False
    return True


def check_reachable() -> None:
    """Raise a UserError if the hub does not answer."""
    if not is_reachable():
        raise UserError(f"{_host()[0]} cannot be reached: try again where there is a network")


def _host() -> tuple[str, int]:
    parts = urlsplit(constants.ENDPOINT)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def card(content: dict[str, Any], step: int, place: Path) -> str:
    """The text of the model card: input, samples, figures, settings, the note on rights; Markdown.

    Args:
        content: of the model's config.json.
        step: how long it was trained.
        place: a run directory or its ``model/`` folder; of another folder less is known, and said.
    """
    height, width = content["size"]
    run = run_of(place)
    template = files("oneshotgan").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        name=_NAMES[content["method"]],
        method=content["method"],
        step=step,
        size=f"{width}×{height}",
        version=__version__,
        source=run and _plain(run.record["source"]["name"]),
        frames=run and run.record["frames"]["count"],
        figures=_figures(run, step),
        settings=config.listed(run.settings) if run else sorted(content["model"].items()),
    )


def run_of(place: Path) -> Run | None:
    """The run that `place`, itself or its ``model/`` folder, belongs to."""
    for folder in (place, place.parent):
        if Run.exists(folder):
            return Run.open(folder)
    return None


def _figures(run: Run | None, step: int) -> list[dict[str, Any]]:
    """Those in the run's metrics.json, if they are of this step."""
    figures, measured_at = run.figures() if run is not None else ({}, None)
    return list(figures.values()) if measured_at == step else []


def _plain(name: str) -> str:
    """A file's name without what Markdown would read as markup."""
    return re.sub(r"[^\w .,()+-]", "_", name)
