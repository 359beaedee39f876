"""A server in a process of its own, and requests to it with any header."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A page server, and the folder that it shows."""

    root: Path
    address: str
    process: subprocess.Popen[str]

    @property
    def host(self) -> str:
        """Name and port."""
        return urlsplit(self.address).netloc

    def __call__(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> Reply:
        """Send a request with the path exactly as it stands; one that posts comes from our own page."""
        sent = {"Host": self.host} | ({"Origin": f"http://{self.host}"} if method == "POST" else {})
        sent |= headers or {}
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
        start = time.perf_counter()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body is not None:
                sent.setdefault("Content-Length", str(len(body)))
            elif method == "POST":
                sent.setdefault("Content-Length", "0")
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, content, time.perf_counter() - start)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Reply:
        return self(path, "POST", body, headers)

    def children(self) -> list[int]:
        """The processes that it has started and that run, as far as /proc tells."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    def worker(self) -> int:
        """The process that draws."""
        for pid in self.children():
            if b"oneshotgan.web.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no worker runs")


Serve = Callable[..., Server]


def wait_for(what: Callable[[], Any], seconds: float = 40) -> Any:
    """The first true value of `what`."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def started(root: Path, *arguments: object, **environment: str) -> Server:
    """Start a server on a free port."""
    words = [sys.executable, "-m", "oneshotgan", "serve", str(root), "--port", "0", *map(str, arguments)]
    with open(root.parent / "server.err", "a") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
        )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://"), address
    return Server(root, address, process)


def ended(server: Server) -> int:
    """Ctrl-C, and the exit code."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
    code = server.process.wait(20)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, trained_once: Path, random_weights: Path
) -> Iterator[Server]:
    """A server of a folder with two runs, for looking only: ``one`` and ``more/two``."""
    root = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(trained_once, root / "one")
    shutil.copytree(trained_once, root / "more" / "two")
    server = started(root, "--trainings", 1, ONESHOTGAN_WEIGHTS=str(random_weights))
    yield server
    ended(server)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of the folder ``runs`` in the test's own; they and their trainings end with it."""
    servers: list[Server] = []

    def serve(*arguments: object, **environment: str) -> Server:
        root = tmp_path / "runs"
        root.mkdir(exist_ok=True)
        servers.append(started(root, *arguments, **environment))
        return servers[-1]

    yield serve
    for server in servers:
        trainings = [pid for pid in server.children() if _trains(pid)]
        ended(server)
        for pid in trainings:
            if _trains(pid):
                os.kill(pid, signal.SIGKILL)


def _trains(pid: int) -> bool:
    try:
        return b"train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
