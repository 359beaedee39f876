"""The process that draws, as the server sees it: started when it is first needed, and again when it dies."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from contextlib import suppress
from typing import Any

from oneshotgan.errors import UserError

PATIENCE = 120.0  # seconds for one answer; after that the process is given up
LONG_PATIENCE = 1800.0  # for a comparison with all frames of a clip
_LINE = 2**20  # bytes of an answer's first line at most

Answer = tuple[dict[str, Any], bytes]


class Artist:
    """Sends requests to `oneshotgan.web.worker` and gives its answers; one process at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process, if there is none."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "oneshotgan.web.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                limit=_LINE,
            )
            self._waiting = {}
            self._reader = asyncio.create_task(self._read(self._process, self._waiting))

    async def ask(self, request: dict[str, Any], patience: float = PATIENCE) -> Answer:
        """The answer to a request, see `worker`; asked again once if the process dies over it.

        Raises:
            UserError: what the worker says, or that it died or does not answer.
        """
        for _ in range(2):
            await self.start()
            try:
                said, content = await asyncio.wait_for(self._send(request), patience)
            except TimeoutError:
                self._kill()
                raise UserError("the drawing process did not answer and was ended: try again") from None
            except (ConnectionError, EOFError):
                continue
            if "error" in said:
                raise UserError(said["error"])
            return said, content
        raise UserError("the drawing process died twice over this: is there enough memory?")

    async def stop(self) -> None:
        """End the process."""
        self._kill()
        if self._reader is not None:
            await self._reader

    async def _send(self, request: dict[str, Any]) -> Answer:
        process, waiting = self._process, self._waiting
        if process is None or process.stdin is None:
            raise EOFError
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting[number] = answer
        try:
            process.stdin.write(json.dumps(request | {"id": number}).encode() + b"\n")
            await process.stdin.drain()
            return await answer
        finally:
            waiting.pop(number, None)

    async def _read(
        self, process: asyncio.subprocess.Process, waiting: dict[int, asyncio.Future[Answer]]
    ) -> None:
        """Hand out the answers of one process until it ends."""
        assert process.stdout is not None
        with suppress(asyncio.IncompleteReadError, ValueError, ConnectionError):
            while line := await process.stdout.readline():
                said = json.loads(line)
                content = await process.stdout.readexactly(said["size"])
                answer = waiting.get(said["id"])
                if answer is not None and not answer.done():
                    answer.set_result((said, content))
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if self._process is process:
            self._process = None
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(EOFError())

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
