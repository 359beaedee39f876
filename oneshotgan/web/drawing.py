"""Samples of runs as PNG: checked, drawn by the artist, and remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oneshotgan.errors import UserError
from oneshotgan.web.artist import LONG_PATIENCE, Artist
from oneshotgan.web.library import Library

REMEMBERED = 64 * 2**20  # bytes of PNG
COMPARED = 256  # comparisons with the training images, remembered
AT_ONCE = 4  # requests that the artist has at a time; the others wait here, and can be given up
LARGEST_SEED = 2**32 - 1


class Changed(Exception):
    """The model is not the one that was asked for any more."""


class GivenUp(Exception):
    """Nobody waits for the image any more."""


@dataclass(frozen=True)
class Sample:
    """What makes one image.

    Attributes:
        run: its id.
        step: of a snapshot, None for the newest model.
        seed: of z.
        truncation: 0 … 1.
        toward: another seed, and
        at: how far on the way to it, 0 … 1.
    """

    run: str
    step: int | None
    seed: int
    truncation: float = 1.0
    toward: int | None = None
    at: float = 0.0

    @classmethod
    def parsed(cls, run: str, given: Mapping[str, Any]) -> Sample:
        """From the words of a query, or plain values of JSON.

        Raises:
            UserError: one is no number, or out of range.
        """
        toward = whole(given, "toward")
        return cls(
            run=run,
            step=whole(given, "step"),
            seed=whole(given, "seed") or 0,
            truncation=_share(given, "truncation", 1.0),
            toward=toward,
            at=_share(given, "at", 0.0) if toward is not None else 0.0,
        )


@dataclass(frozen=True)
class Drawn:
    """An image, and the model it came from."""

    png: bytes
    checksum: str
    step: int


class Drawing:
    """Draws samples, the last ones remembered."""

    def __init__(self, library: Library, artist: Artist) -> None:
        self.library, self.artist = library, artist
        self._memory: OrderedDict[tuple[Any, ...], Drawn] = OrderedDict()
        self._bytes = 0
        self._compared: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def model(self, run: str, step: int | None) -> tuple[str, str]:
        """The folder of a run and the checksum of its weights at `step`.

        Raises:
            NotFound, UserError: see `Library.run` and `Library.weights`.
        """

        def look() -> tuple[str, str]:
            found = self.library.run(run)
            return str(found.path), self.library.checksum(self.library.weights(found, step))

        return await asyncio.to_thread(look)

    def remembered(self, sample: Sample, checksum: str) -> Drawn | None:
        """The image, if it was drawn a while ago."""
        found = self._memory.get((sample, checksum))
        if found is not None:
            self._memory.move_to_end((sample, checksum))
        return found

    async def draw(
        self,
        sample: Sample,
        checksum: str | None = None,
        given_up: Callable[[], Awaitable[bool]] | None = None,
    ) -> Drawn:
        """The image of a sample.

        Args:
            checksum: of the model that it is asked of; None for whatever is there.
            given_up: asked when its turn comes.

        Raises:
            Changed: the model has another checksum now.
            GivenUp: nobody waits for it any more.
            NotFound, UserError: there is no such run or snapshot, or it cannot be drawn.
        """
        path, current = await self.model(sample.run, sample.step)
        if checksum is not None and checksum != current:
            raise Changed
        if (found := self.remembered(sample, current)) is not None:
            return found
        async with self._turn:
            if given_up is not None and await given_up():
                raise GivenUp
            said, png = await self.artist.ask(
                {
                    "what": "draw",
                    "run": path,
                    "checksum": current,
                    "step": sample.step,
                    "seed": sample.seed,
                    "truncation": sample.truncation,
                    "toward": sample.toward,
                    "at": sample.at,
                }
            )
        drawn = Drawn(png, current, said["step"])
        self._memory[(sample, current)] = drawn
        self._bytes += len(png)
        while self._bytes > REMEMBERED:
            _, dropped = self._memory.popitem(last=False)
            self._bytes -= len(dropped.png)
        return drawn

    async def nearest(self, sample: Sample, seeds: list[int]) -> dict[str, Any]:
        """For each of `seeds` the nearest training image, and its LPIPS distance; see `worker.Painter`."""
        path, checksum = await self.model(sample.run, sample.step)
        key = (sample.run, checksum, sample.truncation, tuple(seeds))
        if key not in self._compared:
            said, _ = await self.artist.ask(
                {
                    "what": "compare",
                    "run": path,
                    "checksum": checksum,
                    "step": sample.step,
                    "seeds": seeds,
                    "truncation": sample.truncation,
                },
                LONG_PATIENCE,
            )
            self._compared[key] = {"nearest": said["nearest"], "frames": said["frames"]}
            while len(self._compared) > COMPARED:
                self._compared.popitem(last=False)
        return self._compared[key]

    async def copy(self, run: str, frame: int, copy: int) -> bytes:
        """One of the training images and copies that samples are compared with, as PNG."""
        path = await asyncio.to_thread(lambda: str(self.library.run(run).path))
        _, png = await self.artist.ask({"what": "copy", "run": path, "frame": frame, "copy": copy})
        return png


def whole(given: Mapping[str, Any], name: str, most: int = LARGEST_SEED) -> int | None:
    """A whole number from 0 to `most`; None where it is not given.

    Raises:
        UserError: it is something else.
    """
    value = given.get(name)
    if value is None or value == "":
        return None
    text = str(value)
    if isinstance(value, bool) or not (
        text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most
    ):
        raise UserError(f"{name} must be a whole number from 0 to {most:,}")
    return int(text)


def _share(given: Mapping[str, Any], name: str, default: float) -> float:
    """A number from 0 to 1, to three digits."""
    value = given.get(name)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(f"{name} must be a number from 0 to 1")
    return round(number, 3)
