"""Images: those of the command line, one by one, kept by the browser; favourites; and a worker that dies."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Command
from PIL import Image

from oneshotgan.sampling import OneShotGAN
from web.conftest import Serve, Server, wait_for


def picture(content: bytes) -> np.ndarray:
    """A PNG as (H, W, 3)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- samples ---


@pytest.mark.parametrize(("step", "truncation"), [(None, 1.0), (None, 0.35), (4, 1.0), (2, 0.0)])
def test_a_sample_is_that_of_the_command_line(shared: Server, step: int | None, truncation: float) -> None:
    gan = OneShotGAN.from_pretrained(shared.root / "one", step)
    for seed in (0, 7, 2**32 - 1):
        query = f"seed={seed}&truncation={truncation}" + (f"&step={step}" if step is not None else "")
        reply = shared(f"/runs/one/sample?{query}")
        assert reply.status == 200
        assert reply.headers["x-step"] == str(gan.step)
        drawn = picture(reply.body).astype(int)
        assert np.abs(drawn - gan.sample([seed], truncation)[0]).max() <= 1


def test_the_way_between_two_seeds_is_that_of_the_command_line(shared: Server) -> None:
    path = OneShotGAN.from_pretrained(shared.root / "one").interpolate(3, 8, 5, 0.7)
    for index, expected in enumerate(path):
        reply = shared(f"/runs/one/sample?seed=3&toward=8&at={index / 4}&truncation=0.7")
        assert np.abs(picture(reply.body).astype(int) - expected).max() <= 1
    ends = [shared(f"/runs/one/sample?seed={seed}&truncation=0.7").body for seed in (3, 8)]
    assert np.abs(picture(ends[0]).astype(int) - path[0]).max() <= 1
    assert np.abs(picture(ends[1]).astype(int) - path[4]).max() <= 1


def test_an_image_of_a_known_model_is_kept_for_ever(shared: Server) -> None:
    model = shared("/runs/one/model").json["checksum"]
    first = shared(f"/runs/one/sample?seed=5&model={model}")
    assert "immutable" in first.headers["cache-control"]
    assert first.headers["x-model"] == model == checksum(shared.root / "one/model/model.safetensors")
    again = shared(f"/runs/one/sample?seed=5&model={model}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert shared("/runs/one/sample?seed=5").headers["cache-control"] == "no-cache"
    assert shared(f"/runs/one/sample?seed=5&model={'0' * 64}").status == 409
    others = ("6", "5&truncation=0.5", "5&step=4", "5&toward=6&at=0.5", "5&toward=6&at=0.6", "5")
    assert len({shared(f"/runs/one/sample?seed={query}").headers["etag"] for query in others}) == 6


def test_the_second_time_an_image_is_remembered(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    first = server("/runs/one/sample?seed=1")
    os.kill(server.worker(), signal.SIGSTOP)
    assert server("/runs/one/sample?seed=1", timeout=5).body == first.body


def test_the_first_image_comes_within_a_second(serve: Serve, trained_once: Path) -> None:
    """Once the drawing process is up, which the first page starts."""
    server = serve()
    for name in ("warm", "one", "two", "three"):
        shutil.copytree(trained_once, server.root / name)
    server("/")
    server("/runs/warm/sample?seed=0")
    assert min(server(f"/runs/{name}/sample?seed=0").seconds for name in ("one", "two", "three")) < 1.0


def test_a_model_that_goes_on_is_drawn_anew(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    before = server("/runs/one/sample?seed=1")
    shutil.copy(
        server.root / "one/snapshots/step-000002.safetensors", server.root / "one/model/model.safetensors"
    )
    after = server("/runs/one/sample?seed=1")
    assert (before.headers["x-step"], after.headers["x-step"]) == ("8", "2")
    assert before.headers["etag"] != after.headers["etag"]
    assert server(f"/runs/one/sample?seed=1&model={before.headers['x-model']}").status == 409


def test_every_method_is_drawn(serve: Serve, photo: Path, command: Command) -> None:
    server = serve()
    for method, own in (("singan", ("--min-size", 12, "--scales", 2)), ("fastgan", ("--resolution", 64))):
        flags = [*TINY, *own, "--no-reconstruction"] if method == "fastgan" else [*TINY, *own]
        outcome = command(
            "train", photo, "--method", method, "--steps", 2, "--out", server.root / method, *flags
        )
        assert outcome.code == 0, outcome.err
    for method in ("singan", "fastgan"):
        gan = OneShotGAN.from_pretrained(server.root / method)
        drawn = picture(server(f"/runs/{method}/sample?seed=3").body).astype(int)
        assert np.abs(drawn - gan.sample([3])[0]).max() <= 1
        assert server(f"/runs/{method}/sample?seed=3&toward=4&at=0.5").status == 200


# --- the worker ---


def test_a_worker_that_dies_is_replaced(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    first = server("/runs/one/sample?seed=1").body
    for seed in (2, 3):
        worker = server.worker()
        os.kill(worker, signal.SIGKILL)
        assert server(f"/runs/one/sample?seed={seed}").status == 200
        assert server.worker() != worker
    os.kill(server.worker(), signal.SIGKILL)
    assert server("/runs/one/sample?seed=1").body == first  # remembered


def test_the_worker_is_the_least_of_all_programs(shared: Server) -> None:
    shared("/runs/one/sample?seed=0")
    own = os.getpriority(os.PRIO_PROCESS, shared.process.pid)
    assert os.getpriority(os.PRIO_PROCESS, shared.worker()) == min(19, own + 10)
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{shared.worker()}/environ").read_bytes().split(b"\0")


def test_it_ends_with_a_server_that_is_killed(serve: Serve) -> None:
    server = serve()
    server("/")
    worker = server.worker()
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{worker}"))


# --- the nearest training image ---


def test_the_nearest_is_that_of_the_report(shared: Server, with_weights: Path) -> None:
    import torch

    from oneshotgan.metrics import distance_to_train, training_copies
    from oneshotgan.perceptual import LPIPS
    from oneshotgan.run import Run

    run = Run.open(shared.root / "one")
    frames = torch.from_numpy(run.frames())
    fake = torch.from_numpy(OneShotGAN.from_pretrained(run.path).sample([4, 9, 2]))
    expected = distance_to_train(fake, frames, LPIPS.load())
    found = shared("/runs/one/nearest?seeds=4,9,2").json
    assert [entry["seed"] for entry in found["nearest"]] == [4, 9, 2]
    for entry, distance, index in zip(found["nearest"], expected.distance, expected.index, strict=True):
        assert entry["distance"] == pytest.approx(float(distance), abs=2e-3)
        assert (entry["frame"], entry["copy"]) == divmod(int(index), 8)
    from oneshotgan.data import to_float, to_uint8

    copies = to_uint8(training_copies(to_float(frames)))
    for copy in (0, 1, 5):
        assert np.array_equal(picture(shared(f"/runs/one/copy?frame=0&copy={copy}").body), copies[copy])


def test_of_a_clip_every_frame_counts(
    serve: Serve, workdir: Path, command: Command, random_weights: Path
) -> None:
    import torch
    from conftest import scene

    from oneshotgan import media
    from oneshotgan.metrics import distance_to_train
    from oneshotgan.perceptual import LPIPS
    from oneshotgan.run import Run

    for index in range(7):
        Path("clip").mkdir(exist_ok=True)
        media.write_png(f"clip/{index}.png", scene(seed=index))
    server = serve(ONESHOTGAN_WEIGHTS=str(random_weights))
    assert command("train", "clip", "--steps", 1, "--out", server.root / "clip", *TINY).code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOTGAN_WEIGHTS", str(random_weights))
        frames = Run.open(server.root / "clip").frames()
        fake = torch.from_numpy(OneShotGAN.from_pretrained(server.root / "clip").sample(range(3)))
        expected = distance_to_train(fake, torch.from_numpy(frames), LPIPS.load())
    found = server("/runs/clip/nearest?seeds=0,1,2").json
    assert found["frames"] == 7
    assert [divmod(int(i), 8) for i in expected.index] == [(e["frame"], e["copy"]) for e in found["nearest"]]


def test_without_weights_it_says_so_and_downloads_nothing(
    serve: Serve, trained_once: Path, tmp_path: Path
) -> None:
    server = serve(
        ONESHOTGAN_WEIGHTS="", XDG_CACHE_HOME=str(tmp_path / "cache"), TORCH_HOME=str(tmp_path / "torch")
    )
    shutil.copytree(trained_once, server.root / "one")
    found = server("/runs/one/nearest?seeds=0").json
    assert found["nearest"] == []
    assert "not on this machine" in found["reason"]
    assert not (tmp_path / "cache").exists()
    assert server("/runs/one/sample?seed=0").status == 200


# --- favourites ---


def test_favourites_become_a_zip_with_a_manifest(shared: Server) -> None:
    model, early = (shared(f"/runs/one/model{query}").json["checksum"] for query in ("", "?step=4"))
    chosen = [
        {"run": "one", "step": None, "seed": 3, "truncation": 1, "model": model},
        {"run": "one", "step": 4, "seed": 3, "truncation": 0.5, "model": early},
        {"run": "more/two", "step": None, "seed": 3, "truncation": 1, "toward": 9, "at": 0.25},
        {"run": "one", "step": None, "seed": 3, "truncation": 1, "model": model},  # twice
        {"run": "one", "step": 4, "seed": 3, "truncation": 1, "model": model},  # another model by now
        {"run": "none", "step": None, "seed": 3, "truncation": 1},
        {"run": "../outside", "step": None, "seed": 3},
    ]
    reply = shared.post("/favourites.zip", json.dumps({"favourites": chosen}).encode())
    assert reply.status == 200
    assert "attachment" in reply.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        names = archive.namelist()
        assert len(names) == 4
        assert all(not name.startswith("/") and ".." not in name for name in names)
        images = manifest["images"]
        for entry in images:
            assert hashlib.sha256(archive.read(entry["file"])).hexdigest() == entry["sha256"]
        assert [(e["run"], e["seed"], e["step"], e["truncation"]) for e in images] == [
            ("one", 3, 8, 1.0), ("one", 3, 4, 0.5), ("more/two", 3, 8, 1.0)
        ]  # fmt: skip
        assert (images[2]["toward"], images[2]["position"]) == (9, 0.25)
        assert images[1]["model_sha256"] == checksum(shared.root / "one/snapshots/step-000004.safetensors")
        again = OneShotGAN.from_pretrained(shared.root / "one", 4).sample([3], 0.5)[0]
        assert np.abs(picture(archive.read(images[1]["file"])).astype(int) - again).max() <= 1
    assert [entry["run"] for entry in manifest["missing"]] == ["one", "none", "../outside"]
    assert all(entry["reason"] for entry in manifest["missing"])


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"favourites": []}', b'{"favourites": 3}', b'{"favourites": [3]}',
     b'{"favourites": [{"run": "one", "seed": -1}]}', b'{"favourites": [{"run": "one", "seed": true}]}',
     b'{"favourites": [{"run": "one", "truncation": "x"}]}', b"[" * 10_000, b" " * 2_000_000,
     json.dumps({"favourites": [{"run": "one", "seed": 1}] * 501}).encode()],
)  # fmt: skip
def test_what_is_no_list_of_favourites_is_refused(shared: Server, body: bytes) -> None:
    reply = shared.post("/favourites.zip", body)
    assert reply.status == 400
    assert reply.json["error"]


def test_a_request_given_up_is_not_drawn(serve: Serve, trained_once: Path) -> None:
    """Those whose reader has gone make room for the ones that follow."""
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    server("/runs/one/sample?seed=0")
    os.kill(server.worker(), signal.SIGSTOP)
    for seed in range(100, 120):
        with socket.create_connection(("127.0.0.1", int(server.host.split(":")[1]))) as given_up:
            asked = f"GET /runs/one/sample?seed={seed} HTTP/1.1\r\nHost: {server.host}\r\n\r\n"
            given_up.sendall(asked.encode())
    time.sleep(0.3)
    os.kill(server.worker(), signal.SIGCONT)
    assert server("/runs/one/sample?seed=1").status == 200
    os.kill(server.worker(), signal.SIGSTOP)
    assert server("/runs/one/sample?seed=1", timeout=5).status == 200  # remembered
    with pytest.raises(TimeoutError):
        server("/runs/one/sample?seed=119", timeout=0.5)
