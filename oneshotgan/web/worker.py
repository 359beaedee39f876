"""The process that draws: requests come in on stdin, images go out on stdout, until stdin ends.

A request is one line of JSON, an answer one line of JSON (``id``, ``size``, and what is said of the image)
and ``size`` bytes of PNG. Samples go before comparisons with the training images, which are made a few frames
at a time between them.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, TypeVar

import numpy as np
import torch

from oneshotgan import media
from oneshotgan.data import in_batches, to_uint8
from oneshotgan.errors import UserError
from oneshotgan.metrics.distance import COPIES, nearest_copies, training_copies
from oneshotgan.perceptual import LPIPS, weights
from oneshotgan.report import COMPARED
from oneshotgan.run import Run
from oneshotgan.sampling import OneShotGAN
from oneshotgan.spread import spread
from oneshotgan.web.library import file_checksum

MODELS = 4  # kept loaded
RUNS = 2  # whose training images are kept
NICE = 10
_FRAMES = 4  # training frames compared between two looks for other requests
_END, _DRAW, _COMPARE = range(3)  # the order in which requests are taken

T = TypeVar("T")
Request = dict[str, Any]
Answer = tuple[dict[str, Any], bytes]


class Painter:
    """Models and training images, the last used kept loaded."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], OneShotGAN] = {}
        self._frames: dict[tuple[str, str], np.ndarray] = {}
        self._network: LPIPS | None = None

    def draw(self, request: Request) -> Answer:
        """One sample: ``run``, ``step``, ``checksum``, ``seed``, ``truncation``, ``toward``, ``at``."""
        gan = self._model(request)
        seed, truncation = request["seed"], request["truncation"]
        if request.get("toward") is None:
            image = gan.sample([seed], truncation)[0]
        else:
            image = gan.between(seed, request["toward"], request["at"], truncation)
        return {"step": gan.step}, media.encode_png(image)

    def copy(self, request: Request) -> Answer:
        """One image of the fixed set that stands for training: ``run``, ``frame``, ``copy``."""
        frames = self._reals(request)
        frame, copy = request["frame"], request["copy"]
        if not (0 <= frame < len(frames) and 0 <= copy < COPIES):
            raise UserError("there is no such training image")
        batch = next(in_batches(torch.from_numpy(frames[frame : frame + 1])))
        return {}, media.encode_png(to_uint8(training_copies(batch, COPIES, frame)[copy : copy + 1])[0])

    def compare(self, request: Request) -> Iterator[Answer | None]:
        """For each of ``seeds`` the nearest image of that set, as the report finds it; None between parts."""
        network = self._lpips()
        frames = self._reals(request)
        fakes = self._model(request).sample(request["seeds"], request["truncation"])
        samples = network.embed(torch.from_numpy(fakes))
        distance = torch.full((len(fakes),), float("inf"), dtype=torch.float64)
        index = torch.zeros(len(fakes), dtype=torch.int64)
        for first in range(0, len(frames), _FRAMES):
            part = torch.from_numpy(frames[first : first + _FRAMES])
            found = nearest_copies(samples, part, network, first=first)
            closer = found.distance < distance
            distance[closer] = found.distance[closer]
            index[closer] = found.index[closer] + first * COPIES
            yield None
        nearest = [
            {"seed": seed, "distance": round(float(d), 4), "frame": int(i) // COPIES, "copy": int(i) % COPIES}
            for seed, d, i in zip(request["seeds"], distance, index, strict=True)
        ]
        yield {"nearest": nearest, "frames": len(frames)}, b""

    def _lpips(self) -> LPIPS:
        """The network of the comparison, from this machine; nothing is downloaded behind a page."""
        if self._network is None:
            if weights.find_local(weights.ALEXNET) is None:
                raise UserError("the weights of AlexNet are not on this machine: oneshotgan report gets them")
            self._network = LPIPS.load()
        return self._network

    def _model(self, request: Request) -> OneShotGAN:
        """The model, if its file still has the checksum that was asked for."""
        run, step, checksum = request["run"], request["step"], request["checksum"]
        key = (run, checksum)
        if key not in self._models:
            gan = OneShotGAN.from_pretrained(run, step)
            if file_checksum(gan.path) != checksum:  # the training went on in between
                raise UserError("the model has changed: load the page again")
            self._models[key] = gan
        return _kept(self._models, key, MODELS)

    def _reals(self, request: Request) -> np.ndarray:
        """The training images that samples are compared with."""
        run = Run.open(request["run"])
        key = (request["run"], run.record["frames"]["checksum"])
        if key not in self._frames:
            frames = run.frames()
            self._frames[key] = frames[spread(len(frames), COMPARED)]
        return _kept(self._frames, key, RUNS)


def _kept(memory: dict[tuple[str, str], T], key: tuple[str, str], most: int) -> T:
    """The value of `key`, now the last to be forgotten."""
    memory[key] = memory.pop(key)
    while len(memory) > most:
        del memory[next(iter(memory))]
    return memory[key]


def work(requests: IO[str], answers: IO[bytes]) -> None:
    """Answer requests until they end."""
    waiting: queue.PriorityQueue[tuple[int, int, Request]] = queue.PriorityQueue()
    order = itertools.count()

    def listen() -> None:
        for line in requests:
            request = json.loads(line)
            waiting.put((_COMPARE if request["what"] == "compare" else _DRAW, next(order), request))
        waiting.put((_END, next(order), {"what": "end"}))

    threading.Thread(target=listen, daemon=True).start()
    painter = Painter()
    begun: dict[int, Iterator[Answer | None]] = {}
    while True:
        priority, number, request = waiting.get()
        if request["what"] == "end":
            return
        if request["what"] == "compare":
            parts = begun.setdefault(number, painter.compare(request))
            answer = _answered(lambda parts=parts: next(parts))  # type: ignore[misc]
            if answer is None:
                waiting.put((priority, number, request))
                continue
            del begun[number]
        else:
            act = painter.draw if request["what"] == "draw" else painter.copy
            answer = _answered(lambda act=act, request=request: act(request))  # type: ignore[misc]
        assert answer is not None
        said, content = answer
        answers.write(
            json.dumps(said | {"id": request["id"], "size": len(content)}).encode() + b"\n" + content
        )
        answers.flush()


def _answered(act: Callable[[], Answer | None]) -> Answer | None:
    """What `act` gives; what went wrong as an answer."""
    try:
        return act()
    except UserError as error:
        return {"error": str(error)}, b""
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        print(f"while drawing: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return {"error": "the model or its run cannot be read"}, b""


def main() -> None:
    """Answer on what is stdout now; whatever else prints, prints to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end closes stdin
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    work(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8"), answers)


if __name__ == "__main__":
    main()
