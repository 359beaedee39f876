"""`serve`: the page about a folder of runs, until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import uvicorn

from oneshotgan.errors import UserError
from oneshotgan.layout import RunFiles
from oneshotgan.web.app import Pages
from oneshotgan.web.guard import Guard, check_access
from oneshotgan.web.trainings import MOST

PORT = 8000


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    trainings: int = MOST,
    ready: Callable[[str], None] = lambda address: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Show the runs below `root` at ``http://host:port/``.

    Args:
        port: 0 for any that is free.
        token: without which nothing is answered; needed where `host` is not this machine alone.
        trainings: that may run at once; 0 for a page that only shows.
        ready: told the address once it answers.
        say: told what is left when it ends.

    Raises:
        UserError: no such folder, a port that is taken, or a host without token.
    """
    check_access(host, token)
    if trainings < 0:
        raise UserError(f"--trainings must be 0 or more, not {trainings}")
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds the runs")
    if RunFiles.exists(root):
        raise UserError(f"{root} is a run: name the folder that it lies in")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of a worker that ended with the server
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    pages = Pages(root, trainings)
    app = pages.app()
    guarded = Guard(app, host, port, token)
    settings = uvicorn.Config(
        guarded, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )

    async def run() -> None:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{port}/" + (f"?token={quote(token)}" if token else ""))
        await uvicorn.Server(settings).serve(sockets=[listening])

    try:
        asyncio.run(run())
    finally:
        left = len(pages.trainings.running())
        if left:
            number = "one training runs" if left == 1 else f"{left} trainings run"
            say(f"{number} on; oneshotgan serve {root} shows and stops them")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that the first request never comes too early."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port must lie between 0 and 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error.strerror}): choose another --port"
        ) from error
