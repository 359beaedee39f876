"""A model that is saved, shared and loaded again; the hub itself is a stand-in."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from conftest import Command, Tree
from huggingface_hub.errors import LocalEntryNotFoundError

from oneshotgan import hub
from oneshotgan.errors import UserError
from oneshotgan.sampling import OneShotGAN


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no proxy, an empty cache."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_saved_model_draws_the_same(trained: Path, tree: Callable[[Path], Tree]) -> None:
    before = tree(trained)
    gan = OneShotGAN.from_pretrained(trained)
    gan.save_pretrained("shared")
    assert sorted(path.name for path in Path("shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "reals.png",
        "samples.png",
    ]
    again = OneShotGAN.from_pretrained("shared")
    assert again.step == gan.step
    assert np.array_equal(again.sample(range(3)), gan.sample(range(3)))
    again.save_pretrained("twice")  # from a folder that knows less
    assert not Path("twice/reals.png").exists()
    assert np.array_equal(OneShotGAN.from_pretrained("twice").sample([5]), gan.sample([5]))
    assert tree(trained) == before


def test_the_card_says_what_is_known(trained: Path) -> None:
    row = {"name": "sifid64", "value": 0.5, "standard_error": None, "direction": "↓", "count": 8}
    (trained / "metrics.json").write_text(json.dumps({"step": 8, "figures": [row]}))
    OneShotGAN.from_pretrained(trained).save_pretrained("shared")
    card = Path("shared/README.md").read_text()
    assert card.startswith("---\nlibrary_name: oneshotgan\n")
    for part in (
        "![training images](reals.png)",
        "| sifid64 ↓ | 0.5 | 8 |",
        "| base_width | 4 |",
        "grants no licence",
    ):
        assert part in card
    assert "`scene`" in card
    OneShotGAN.from_pretrained(trained, 4).save_pretrained("earlier")
    card = Path("earlier/README.md").read_text()
    assert "None measured at this step" in card  # the figures are of step 8
    assert "4 training steps" in card


def test_a_run_is_not_written_over(trained: Path, tree: Callable[[Path], Tree]) -> None:
    before = tree(trained)
    for folder in (trained, trained / "model"):
        with pytest.raises(UserError, match="belongs to a run"):
            OneShotGAN.from_pretrained(trained).save_pretrained(folder)
    assert tree(trained) == before


def test_an_id_is_fetched_where_no_folder_has_its_name(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OneShotGAN.from_pretrained(trained).save_pretrained("cache/there")
    asked: list[tuple[str, str, dict[str, Any]]] = []

    def download(model: str, name: str, **options: Any) -> str:
        asked.append((model, name, options))
        return f"cache/there/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    gan = OneShotGAN.from_pretrained("someone/scene", revision="v1")
    assert gan.step == 8
    assert asked == [("someone/scene", name, {"revision": "v1"}) for name in hub.FILES]
    Path("someone").mkdir()
    shutil.copytree("cache/there", "someone/scene")
    OneShotGAN.from_pretrained("someone/scene")
    OneShotGAN.from_pretrained(Path("someone/scene"))
    assert len(asked) == 2


@pytest.mark.usefixtures("offline", "workdir")
def test_without_a_network_it_fails_at_once(trained_once: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no run at someone/scene; .* cannot be reached"):
        OneShotGAN.from_pretrained("someone/scene", cache_dir="cache")
    with pytest.raises(UserError, match="cannot be reached"):
        OneShotGAN.from_pretrained(trained_once).push_to_hub("someone/scene")
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("offline", "workdir")
def test_without_a_network_the_cache_serves(trained_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OneShotGAN.from_pretrained(trained_once).save_pretrained("cache/there")

    def download(model: str, name: str, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only
        return f"cache/there/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert OneShotGAN.from_pretrained("someone/scene").step == 8


def test_a_model_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="no run at someone/scene"):
        OneShotGAN.from_pretrained("someone/scene", local_files_only=True)


def test_a_push_uploads_the_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[list[str]] = []

    class Api:
        def __init__(self, token: object = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **options: object) -> str:
            uploaded.append(sorted(path.name for path in Path(folder_path).iterdir()))
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    OneShotGAN.from_pretrained(trained).push_to_hub("someone/scene")
    assert uploaded == [["README.md", "config.json", "model.safetensors", "reals.png", "samples.png"]]


def test_a_mistyped_path_is_no_id(workdir: Path, command: Command) -> None:
    assert "no run directory" in command("sample", "runs/scene", "--count", 1).error
    assert not hub.is_id("./runs/scene")
    assert not hub.is_id("scene")
    assert not hub.is_id(Path("runs/scene"))
    assert hub.is_id("someone/scene")
