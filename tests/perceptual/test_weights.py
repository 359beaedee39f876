"""Weights are found, downloaded once and checked; whatever goes wrong is one clear line."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from oneshotgan.errors import UserError
from oneshotgan.perceptual import InceptionStem, weights
from oneshotgan.perceptual.weights import ALEXNET, Weights, WeightsFile


def saved(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


STATE = {"a.weight": torch.arange(20_000.0), "a.bias": torch.ones(3), "unused": torch.zeros(5)}
CONTENT = saved(STATE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT in the manner that a path names, and counts the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        if self.path.startswith("/reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if self.path.startswith("/stalled"):
            time.sleep(3)
            return
        body = b"x" * len(CONTENT) if self.path.startswith("/other") else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/cut"):
            self.wfile.write(body[: len(body) // 2])
        elif self.path.startswith("/slow"):
            for start in range(0, len(body), 10_000):
                self.wfile.write(body[start : start + 10_000])
                self.wfile.flush()
                time.sleep(0.1)
        elif self.path.startswith("/halting"):
            self.wfile.write(body[:10_000])
            self.wfile.flush()
            time.sleep(3)
        else:
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server on loopback, and an empty cache."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def wanted(server: Server, manner: str = "good", sha256: str = DIGEST) -> WeightsFile:
    url = f"http://127.0.0.1:{server.server_address[1]}/{manner}/net.pth"
    return WeightsFile(url, sha256, layers=("a.weight", "a.bias"), other_names=("part.pth",))


def cached(tmp_path: Path) -> list[str]:
    """What lies in the cache but for the lock."""
    return [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")]


def refusal(file: WeightsFile) -> str:
    with pytest.raises(UserError) as caught:
        weights.load(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- downloading ---


def test_a_download_is_checked_kept_and_not_repeated(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = weights.load(wanted(server))
    assert set(loaded.tensors) == {"a.weight", "a.bias"}  # what is not used is not kept
    assert torch.equal(loaded.tensors["a.weight"], STATE["a.weight"])
    assert (loaded.sha256, loaded.mark, loaded.file) == (DIGEST, "", "net.pth")
    assert cached(tmp_path) == ["net.pth"]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("downloading http://127.0.0.1")
    weights.load(wanted(server))
    assert len(server.requests) == 1
    assert capsys.readouterr().err == ""


def test_as_many_digits_of_a_checksum_as_are_known_are_checked(server: Server) -> None:
    assert weights.load(wanted(server, sha256=DIGEST[:8])).mark == ""
    assert "checksum" in refusal(wanted(server, "again", sha256="00000000"))


def test_a_slow_download_is_waited_for(server: Server) -> None:
    assert weights.load(wanted(server, "slow")).mark == ""


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("cut", "cut off after"),
        ("other", "another checksum"),
        ("absent", "the server answered 404"),
        ("reset", "eset"),
        ("stalled", "no answer for"),
        ("halting", "no answer for"),
    ],
)
def test_a_failed_download_says_why_and_what_to_do_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, reason: str
) -> None:
    monkeypatch.setattr(weights, "STALLED", 0.5)
    file = wanted(server, manner)
    message = refusal(file)
    for part in (reason, file.url, str(tmp_path / "cache"), weights.VARIABLE):
        assert part in message
    assert cached(tmp_path) == []


def test_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    file = wanted(server)
    server.shutdown()
    server.server_close()
    assert file.url in refusal(file)
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    message = refusal(wanted(server))
    for part in ("exists", wanted(server).url, str(tmp_path / "cache"), weights.VARIABLE):
        assert part in message
    assert "--out" not in message


def test_a_proxy_that_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http:/proxy:3128")
    monkeypatch.setattr("urllib.request._opener", None)  # it remembers the proxies
    assert wanted(server).url in refusal(wanted(server))


def test_a_damaged_cache_is_mended(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "net.pth").write_bytes(CONTENT[:-100])
    assert weights.load(wanted(server)).sha256 == DIGEST
    assert len(server.requests) == 1


def test_what_pytorch_has_downloaded_is_used(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "net.pth").write_bytes(CONTENT)
    assert weights.load(wanted(server)).sha256 == DIGEST
    assert server.requests == []


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    url = wanted(server, "slow").url
    script = (
        "import sys; from pathlib import Path; from oneshotgan.perceptual import weights as w;"
        "w.cache_folder = lambda: Path(sys.argv[1]);"
        "print(w.load(w.WeightsFile(sys.argv[2], sys.argv[3], ('a.weight',))).sha256)"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "cache"), url, DIGEST]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip() == DIGEST
    assert len(server.requests) == 1


# --- a folder of the user's ---


def test_a_named_folder_is_the_only_place_looked_at(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv(weights.VARIABLE, str(folder))
    message = refusal(wanted(server))
    for part in (weights.VARIABLE, str(folder), "net.pth", wanted(server).url):
        assert part in message
    monkeypatch.setenv(weights.VARIABLE, str(folder / "none"))
    assert "no folder" in refusal(wanted(server))
    monkeypatch.setenv(weights.VARIABLE, str(folder))
    (folder / "part.pth").write_bytes(CONTENT)
    assert weights.load(wanted(server)).file == "part.pth"
    (folder / "net.pth").write_bytes(CONTENT)
    assert weights.load(wanted(server)).file == "net.pth"
    assert server.requests == []


def test_unknown_values_are_marked_known_ones_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    layers = {name: STATE[name] for name in ("a.weight", "a.bias")}
    (tmp_path / "net.pth").write_bytes(saved(layers))  # the same values in another file
    digest = weights.file_sha256(tmp_path / "net.pth")
    unknown = weights.load(wanted(server))
    assert (unknown.mark, unknown.marked("alex")) == (digest[:8], f"alex_{digest[:8]}")
    for mark, name in (("", "alex"), ("approx", "alex_approx")):
        file = WeightsFile(
            wanted(server).url, DIGEST, tuple(layers), known_values={weights.values_digest(layers): mark}
        )
        assert weights.load(file).marked("alex") == name


def test_the_digest_of_values_knows_names_shapes_and_values_alone() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
    digest = weights.values_digest({"a": a, "b": b})
    assert weights.values_digest({"b": b.half(), "a": a.clone()}) == digest
    for other in ({"a": a.view(3, 2), "b": b}, {"a": a, "c": b}, {"a": a + 1e-6, "b": b}):
        assert weights.values_digest(other) != digest


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", ["text", "half", "other layers", "not finite", "hostile"])
def test_a_file_that_is_none_is_refused_and_never_executed(
    server: Server, workdir: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv(weights.VARIABLE, ".")
    if content == "hostile":
        torch.save({"a.weight": Hostile()}, "net.pth")
    else:
        broken = saved(STATE | {"a.bias": torch.tensor([1.0, float("nan")])})
        made = {
            "not finite": broken,
            "text": b"hello",
            "half": CONTENT[:1000],
            "other layers": saved({"b": torch.ones(1)}),
        }
        Path("net.pth").write_bytes(made[content])
    assert "net.pth is damaged or does not hold the layers" in refusal(wanted(server))
    assert not Path("executed").exists()


def test_layers_of_another_shape_are_refused() -> None:
    tensors = {name: torch.ones(3) for name in weights.INCEPTION_FID.layers}
    with pytest.raises(UserError, match="another shape"):
        InceptionStem("fid", Weights(tensors, "some.pth", "00", ""))


def test_the_cache_is_where_the_platform_expects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert weights.cache_folder() == tmp_path / "oneshotgan" / "weights"
    assert ALEXNET.name == "alexnet-owt-7be5be79.pth"


def test_the_provided_files_are_known(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.VARIABLE, str(test_data / "weights"))
    marks = [
        weights.load(file).mark
        for file in (ALEXNET, weights.VGG16, weights.INCEPTION_TORCHVISION, weights.INCEPTION_FID)
    ]
    assert marks == ["", "fp16", "approx", ""]
