"""Trainings from the page: begun by an upload, watched, stopped, gone on with; and uploads refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TRAINED_STEPS, png_bytes, scene
from PIL import Image

from oneshotgan import media
from oneshotgan.run import Run
from web.conftest import Serve, Server, ended, started, wait_for

Starter = Callable[..., subprocess.Popen[str]]
LONG = 1_000_000  # steps that no test waits for


def state(server: Server, id: str) -> dict[str, Any]:
    reply = server(f"/runs/{id}/state")
    return reply.json if reply.status == 200 else {"state": "gone"}


def until(server: Server, id: str, *words: str) -> dict[str, Any]:
    return wait_for(lambda: (now := state(server, id))["state"] in words and now)


def begin(server: Server, steps: int = LONG, name: str = "scene.png", **query: object) -> str:
    """Start a small training by an upload; gives the run's id."""
    words = "".join(f"&{key}={value}" for key, value in query.items())
    reply = server.post(f"/trainings?name={name}&steps={steps}{words}", png_bytes(scene(32, 40)))
    assert reply.status == 201, reply.text
    return str(reply.json["run"])


def left_over(server: Server) -> list[str]:
    """Every file and folder that uploads have left."""
    folder = server.root / ".oneshotgan-web" / "uploads"
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def trainings_below(folder: Path) -> list[int]:
    """The processes that train a run there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"train" in words.split(b"\0") and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[None]:
    """Afterwards no training below the test's folder is left."""
    yield
    for pid in trainings_below(tmp_path):
        os.kill(pid, signal.SIGKILL)


pytestmark = pytest.mark.usefixtures("clean")


# --- begin, watch, finish ---


def test_an_upload_becomes_a_run_that_finishes(serve: Serve) -> None:
    server = serve()
    id = begin(server, steps=2, method="oneshot", preset="preview")
    assert id == "scene-oneshot"
    assert state(server, id)["state"] in ("starting", "training")
    assert server(f"/runs/{id}/").status == 200  # from the first moment on
    until(server, id, "finished")
    run = Run.open(server.root / id)
    assert run.record["source"]["name"] == "scene"
    assert run.settings.training.steps == 2
    assert "finished 2 steps" in server(f"/runs/{id}/").text
    assert server(f"/runs/{id}/sample?seed=0").status == 200
    assert begin(server) == "scene-oneshot-2"  # never into another run's folder


def test_a_clip_is_taken_too(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    media.write_animation(tmp_path / "my clip.mp4", np.stack([scene(32, 40, seed) for seed in range(5)]))
    reply = server.post(
        "/trainings?name=my%20clip.mp4&steps=1&seed=3", (tmp_path / "my clip.mp4").read_bytes()
    )
    assert reply.status == 201, reply.text
    assert reply.json["run"] == "my-clip-oneshot"
    until(server, "my-clip-oneshot", "training", "finished")
    run = Run.open(server.root / "my-clip-oneshot")
    assert run.record["frames"]["count"] == 5
    assert run.settings.training.seed == 3


def test_a_finished_run_is_extended_whatever_its_sources_name(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    config = json.loads((server.root / "one/config.json").read_text())
    config["run"]["source"]["name"] = "-my.holiday.photo"
    (server.root / "one/config.json").write_text(json.dumps(config))
    assert server.post("/runs/one/go-on", b'{"steps": 10}').status == 200
    assert until(server, "one", "finished")["steps"] == 10
    assert Run.open(server.root / "one").checkpoint_steps()[-1] == 10


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to find other trainings")
def test_stopped_gone_on_with_and_outliving_its_servers(serve: Serve, trained_once: Path) -> None:
    # Stop is Ctrl-C: a checkpoint is written.
    server = serve()
    id = "one"
    shutil.copytree(trained_once, server.root / id)
    assert server.post("/runs/one/go-on", json.dumps({"steps": LONG}).encode()).status == 200
    wait_for(lambda: state(server, id)["step"] > TRAINED_STEPS)
    assert server.post(f"/runs/{id}/stop").status == 200
    assert server.post(f"/runs/{id}/stop").status in (200, 400)  # once more does no harm
    now = until(server, id, "stopped")
    step = Run.open(server.root / id).checkpoint_steps()[-1]
    assert now["step"] == step > TRAINED_STEPS
    assert f"stopped at step {step}" in server(f"/runs/{id}/part/status").text
    assert server.post(f"/runs/{id}/stop").status == 400

    # Go on is the same command.
    assert server.post(f"/runs/{id}/go-on").status == 200
    assert server.post(f"/runs/{id}/go-on").status == 400  # it runs
    wait_for(lambda: f"going on from step {step}" in server(f"/runs/{id}/part/status").text)
    wait_for(lambda: state(server, id)["step"] > step)

    # The server ends, the training does not; the next server finds it, and it counts.
    assert ended(server) == 130
    assert "one training runs on" in (server.root.parent / "server.err").read_text()
    step = logged(server.root / id)
    wait_for(lambda: logged(server.root / id) > step)
    second = started(server.root)
    assert state(second, id)["state"] == "training"
    assert second.post("/trainings?name=a.png", png_bytes(scene())).status == 400

    # Both are killed: the run is there to go on with.
    second.process.kill()
    second.process.wait()
    for pid in trainings_below(server.root):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not trainings_below(server.root))
    third = started(server.root)
    assert state(third, id)["state"] == "stopped"
    assert "Go on" in third(f"/runs/{id}/part/actions").text
    ended(third)
    ended(second)


def logged(run: Path) -> int:
    """The newest step in the run's stats."""
    return int(Run(run).last_stats().get("step", 0))


# --- how many, and whose ---


def test_no_more_trainings_than_allowed(serve: Serve, trained_once: Path) -> None:
    server = serve("--trainings", 2)
    shutil.copytree(trained_once, server.root / "one")
    ids = [begin(server), begin(server)]
    for reply in (
        server.post("/trainings?name=third.png", png_bytes(scene())),
        server.post("/runs/one/go-on", b'{"steps": 100}'),
    ):
        assert reply.status == 400
        assert "2 trainings run already" in reply.json["error"]
    assert len(left_over(server)) == 4  # a folder and a file each
    server.post(f"/runs/{ids[0]}/stop")
    until(server, ids[0], "stopped", "failed", "gone")
    third = begin(server)
    for id in (ids[1], third):
        server.post(f"/runs/{id}/stop")
        until(server, id, "stopped", "failed", "gone")


def test_a_page_that_only_shows(serve: Serve) -> None:
    server = serve("--trainings", 0)
    assert server.post("/trainings?name=a.png", png_bytes(scene())).status == 400
    assert left_over(server) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to find other trainings")
def test_a_training_from_a_terminal_is_shown_and_stopped(
    serve: Serve, start: Starter, tmp_path: Path
) -> None:
    server = serve()
    (tmp_path / "photo.png").write_bytes(png_bytes(scene(32, 40)))
    out = server.root / "mine"
    process = start("train", tmp_path / "photo.png", "--out", out, "--steps", LONG, "--log-every", 1, *TINY)
    until(server, "mine", "training")
    wait_for(lambda: state(server, "mine")["step"] > 0)
    server.post("/runs/mine/stop")
    assert process.wait(30) == 143
    until(server, "mine", "stopped")


# --- what is refused ---


def bomb() -> bytes:
    """A PNG of a few hundred kilobytes that would be 12,000 × 12,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pressed = zlib.compressobj(9)
    rows = b"".join(pressed.compress(bytes(1 + 12_000 * 3)) for _ in range(50)) + pressed.flush()
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def large_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 6300)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


REFUSED = {
    "empty.png": (b"", "empty"),
    "text.png": (b"no picture at all", "picture"),
    "program.exe": (b"MZ", "PNG, JPEG"),
    "page.html": (b"<script>", "PNG, JPEG"),
    "drawing.svg": (b"<svg/>", "PNG, JPEG"),
    "noname": (b"x", "PNG, JPEG"),
    "cut.png": (png_bytes(scene())[:150], "damaged"),
    "list.mp4": (b"#EXTM3U\nfile:///etc/passwd\n", "picture"),
    "bomb.png": (bomb(), "pixels"),
    "large.png": (large_picture(), "50 million"),
}


def test_uploads_that_are_refused_leave_nothing(serve: Serve) -> None:
    server = serve()
    for name, (content, said) in REFUSED.items():
        reply = server.post(f"/trainings?name={name}", content)
        assert reply.status == 400, name
        assert said in reply.json["error"], (name, reply.json)
        assert str(server.root) not in reply.text
        assert left_over(server) == [], name
    assert server("/runs.json").json["runs"] == []


WRONG = ("method=none", "preset=none", "steps=-1", "steps=x", "steps=0", "steps=10000000000", "seed=1.5",
         "method=oneshot&preset=%2Fetc%2Fpasswd")  # fmt: skip


def test_wrong_settings_are_told_before_anything_is_written(serve: Serve) -> None:
    server = serve()
    for query in WRONG:
        reply = server.post(f"/trainings?name=a.png&{query}", png_bytes(scene()))
        assert reply.status == 400, query
        assert left_over(server) == []


def test_a_name_is_only_a_name(serve: Serve) -> None:
    server = serve()
    for name in (
        "..%2F..%2Fup.png",
        "..%5C..%5Cup.png",
        "%2Fetc%2Fup.png",
        "-up.png",
        ".up.png",
        "u%00p.png",
    ):
        reply = server.post(f"/trainings?name={name}&steps=1", png_bytes(scene(32, 40)))
        assert reply.status == 201, (name, reply.text)
        id = reply.json["run"]
        assert id.startswith(("up-oneshot", "u-p-oneshot")), (name, id)
        server.post(f"/runs/{id}/stop")
        until(server, id, "finished", "stopped", "failed", "gone")
    assert sorted(path.name for path in server.root.parent.iterdir()) == ["runs", "server.err"]


def test_more_bytes_than_allowed_are_refused(serve: Serve) -> None:
    """By what is said of them, and where nothing is said by what comes."""
    server = serve()
    said = server("/trainings?name=a.png", "POST", b"x", {"Content-Length": str(300 * 2**20)})
    assert said.status == 400
    assert "200 MB" in said.json["error"]


def test_more_bytes_than_allowed_are_not_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    from collections.abc import AsyncIterator

    from oneshotgan.errors import UserError
    from oneshotgan.web import uploads

    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 300

    with pytest.raises(UserError, match="larger than"):
        asyncio.run(uploads.take_in(chunks(10**9), "a.png", tmp_path / "up"))
    assert list((tmp_path / "up").iterdir()) == []


def test_an_upload_that_is_cut_off_leaves_nothing(serve: Serve) -> None:
    import socket

    server = serve()
    content = png_bytes(scene(200, 200))
    with socket.create_connection(("127.0.0.1", int(server.host.split(":")[1]))) as given_up:
        head = (
            f"POST /trainings?name=a.png HTTP/1.1\r\nHost: {server.host}\r\nOrigin: http://{server.host}\r\n"
            f"Content-Length: {len(content) + 1000}\r\n\r\n"
        )
        given_up.sendall(head.encode() + content)
        wait_for(lambda: left_over(server))
    wait_for(lambda: left_over(server) == [])
    assert server("/").status == 200
    assert "Traceback" not in (server.root.parent / "server.err").read_text()


def test_a_training_that_fails_says_why(serve: Serve) -> None:
    server = serve()
    reply = server.post("/trainings?name=thin.png&steps=3", png_bytes(np.zeros((40, 2000, 3), np.uint8)))
    assert reply.status == 201
    id = reply.json["run"]
    until(server, id, "failed")
    assert 'class="problem"' in server(f"/runs/{id}/").text
    assert state(server, id)["said"]
