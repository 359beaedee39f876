"""Addresses -> pages, JSON and images. What a page can do, the command line can do, by the same functions.

The address of a run's page ends in a slash, ``/runs/ID/``, and what belongs to the run lies beside it:
``/runs/ID/state``, ``/runs/ID/sample?seed=3``, … so that any id, slashes and all, is told from the rest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from oneshotgan import __version__, config
from oneshotgan.errors import UserError, one_line
from oneshotgan.layout import RunFiles, weights_step
from oneshotgan.web import favourites, uploads
from oneshotgan.web.artist import Artist
from oneshotgan.web.drawing import Changed, Drawing, GivenUp, Sample, whole
from oneshotgan.web.library import Card, Library, NotFound
from oneshotgan.web.trainings import State, Trainings

MOST_BODY = 2**20  # bytes of a request that is no upload
MOST_COMPARED = 64  # seeds held against the training images in one request
LARGEST_STEP = 10**9
_FOREVER = "private, max-age=31536000, immutable"


@dataclass(frozen=True)
class Shown:
    """A run in the list: what is known of it, and how its training stands."""

    card: Card
    state: State


class Pages:
    """The answers to all requests about one folder."""

    def __init__(self, root: Path, most_trainings: int) -> None:
        self.library = Library(root)
        self.trainings = Trainings(self.library, most_trainings)
        self.artist = Artist()
        self.drawing = Drawing(self.library, self.artist)
        self.templates = Environment(
            loader=PackageLoader("oneshotgan.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals |= {"version": __version__, "root": one_line(root), "run_url": run_url}
        self.templates.filters |= {"duration": duration, "thousands": "{:,}".format}
        self._loop: asyncio.AbstractEventLoop | None = None

    def app(self) -> Starlette:
        """The application, without its guard."""
        run = "/runs/{id:path}"
        routes = [
            Route("/", self.index),
            Route("/cards", self.cards),
            Route("/runs.json", self.runs_json),
            Route("/explore", self.explore),
            Route("/compare", self.compare),
            Route("/trainings", self.begin, methods=["POST"]),
            Route("/favourites.zip", self.favourites, methods=["POST"]),
            Mount("/static", StaticFiles(packages=[("oneshotgan.web", "static")])),
            Route(f"{run}/", self.run_page),
            Route(f"{run}/part/{{part}}", self.part),
            Route(f"{run}/state", self.state),
            Route(f"{run}/model", self.model),
            Route(f"{run}/sheet/{{step}}", self.sheet),
            Route(f"{run}/reals", self.reals),
            Route(f"{run}/sample", self.sample),
            Route(f"{run}/nearest", self.nearest),
            Route(f"{run}/copy", self.copy),
            Route(f"{run}/stop", self.stop, methods=["POST"]),
            Route(f"{run}/go-on", self.go_on, methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {
            NotFound: self._not_found,
            UserError: self._refused,
            Changed: self._changed,
            HTTPException: self._http_error,
            ClientDisconnect: self._left,
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._living)

    @asynccontextmanager
    async def _living(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        yield
        await self.artist.stop()

    # --- the list of runs ---

    def index(self, request: Request) -> Response:
        """All runs as cards, and the form that starts a training."""
        self._warm()
        content = self._cards(request)
        return self._page(
            "index.html",
            cards=self._part("cards.html", **content),
            figures=content["figures"],
            sort=content["sort"],
            methods=config.METHODS,
            presets=config.PRESETS,
            most_bytes=uploads.MOST_BYTES,
        )

    def cards(self, request: Request) -> Response:
        """The cards alone; 204 where the browser has them already."""
        content = self._part("cards.html", **self._cards(request))
        known = f'seen={request.query_params.get("seen", "")}"' in content
        return Response(status_code=204) if known else HTMLResponse(content)

    def _cards(self, request: Request) -> dict[str, Any]:
        """The runs in the order asked for, and the figures that they can be sorted by."""
        shown = self._shown()
        figures = sorted({name for run in shown for name in run.card.figures})
        sort = request.query_params.get("sort", "newest")
        if sort in figures:
            shown.sort(key=lambda run: _rank(run.card, sort))
        elif sort == "step":
            shown.sort(key=lambda run: -run.card.step)
        elif sort == "newest":
            shown.sort(key=lambda run: -run.card.changed)
        return {"runs": shown, "figures": figures, "sort": sort}

    def runs_json(self, request: Request) -> Response:
        """The same as JSON."""
        return _json({"runs": [_described(run) for run in self._shown()]})

    def _shown(self) -> list[Shown]:
        running = self.trainings.running()
        known = self.library.ids()
        waiting = [id for id in self.trainings.begun_here() if id not in known]
        return [self._one(id, running) for id in [*waiting, *known]]

    def _one(self, id: str, running: dict[str, int] | None = None) -> Shown:
        card = self.library.card(id)
        state = self.trainings.state(id, card.step, card.steps, running)
        if card.problem and state.word == "starting":  # it is not there yet
            card = Card(id=id, name=card.name, changed=time.time())
        elif card.problem and state.word == "failed":  # and never will be
            card = dataclasses.replace(card, problem=f"the training ended before it began: {state.said}")
        return Shown(card, state)

    # --- one run ---

    def run_page(self, request: Request) -> Response:
        """All about one run."""
        shown = self._asked(request)
        self._warm()
        settings: list[tuple[str, str]] = []
        machines: list[str] = []
        figures: dict[str, dict[str, Any]] = {}
        measured_at = None
        if not shown.card.problem and shown.state.word != "starting":
            run = self.library.run(shown.card.id)
            settings, record = config.listed(run.settings), run.record
            machines = list(dict.fromkeys(_machine(m) for m in record["machines"]))
            figures, measured_at = run.figures()
        others = [id for id in self.library.ids() if id != shown.card.id]
        return self._page(
            "run.html",
            run=shown,
            status=self._status(shown),
            actions=self._actions(shown),
            charts=self._charts(shown),
            settings=settings,
            machines=machines,
            figures=figures,
            measured_at=measured_at,
            others=others,
        )

    def part(self, request: Request) -> Response:
        """A part of that page that changes while a training runs; 204 where the browser has it already."""
        parts = {"status": self._status, "actions": self._actions, "charts": self._charts}
        make = parts.get(request.path_params["part"])
        if make is None:
            raise NotFound(request.path_params["part"])
        content = make(self._asked(request))
        known = f'seen={request.query_params.get("seen", "")}"' in content
        return Response(status_code=204) if known else HTMLResponse(content)

    def _status(self, shown: Shown) -> str:
        return self._part("status.html", run=shown)

    def _actions(self, shown: Shown) -> str:
        return self._part("actions.html", run=shown)

    def _charts(self, shown: Shown) -> str:
        good = not shown.card.problem and shown.state.word != "starting"
        drawn = self.library.curves(self.library.run(shown.card.id)) if good else []
        return self._part("charts.html", run=shown, curves=drawn)

    def state(self, request: Request) -> Response:
        """What changes of a run, for the sliders: steps of its contact sheets and snapshots, newest model."""
        shown = self._asked(request)
        content = _described(shown)
        if not shown.card.problem and shown.state.word != "starting":
            run = self.library.run(shown.card.id)
            content |= {"sheets": run.sheet_steps(), "snapshots": run.snapshot_steps()}
            content["model"] = self._model(run, None)
        return _json(content)

    def model(self, request: Request) -> Response:
        """Step and checksum of a snapshot, or of the newest model."""
        run = self.library.run(request.path_params["id"])
        step = whole(request.query_params, "step", LARGEST_STEP)
        found = self._model(run, step)
        if found is None:
            raise NotFound("model")
        return _json(found)

    def _model(self, run: RunFiles, step: int | None) -> dict[str, Any] | None:
        try:
            path = self.library.weights(run, step)
        except NotFound:
            return None
        return {"step": weights_step(path), "checksum": self.library.checksum(path)}

    # --- images ---

    def sheet(self, request: Request) -> Response:
        """The contact sheet of a step."""
        step = whole(request.path_params, "step", LARGEST_STEP)
        return self._file(request, self._run(request).sheet_path(step or 0))

    def reals(self, request: Request) -> Response:
        """The contact sheet of the training images."""
        return self._file(request, self._run(request).path / "reals.png")

    async def sample(self, request: Request) -> Response:
        """One sample; with ``model``, a checksum, it may be kept for ever."""
        asked = Sample.parsed(request.path_params["id"], request.query_params)
        checksum = request.query_params.get("model") or None
        _, current = await self.drawing.model(asked.run, asked.step)
        if checksum is not None and checksum != current:
            raise Changed
        headers = {"ETag": _etag(asked, current), "Cache-Control": _FOREVER if checksum else "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        try:
            drawn = await self.drawing.draw(asked, current, request.is_disconnected)
        except GivenUp:  # the slider has moved on
            return Response(status_code=204)
        headers |= {"X-Step": str(drawn.step), "X-Model": drawn.checksum}
        return Response(drawn.png, media_type="image/png", headers=headers)

    async def nearest(self, request: Request) -> Response:
        """For each of ``seeds`` the nearest training image and its distance; or why that is not known."""
        asked = Sample.parsed(request.path_params["id"], request.query_params)
        seeds = _seeds(request.query_params.get("seeds", "0"))
        try:
            return _json(await self.drawing.nearest(asked, seeds))
        except UserError as error:
            return _json({"nearest": [], "frames": 0, "reason": str(error)})

    async def copy(self, request: Request) -> Response:
        """One of the images that samples are compared with."""
        query = request.query_params
        frame, copy = (whole(query, name, 10**6) or 0 for name in ("frame", "copy"))
        png = await self.drawing.copy(request.path_params["id"], frame, copy)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    def _file(self, request: Request, path: Path) -> Response:
        """A PNG of a run as it lies there."""
        self.library.file(path)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise NotFound(path.name) from error
        headers = {"ETag": f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/png", headers=headers)

    # --- exploring ---

    def explore(self, request: Request) -> Response:
        """Samples by seed, truncation, checkpoint, and the way between two seeds, of one run."""
        self._warm()
        return self._explorer([request.query_params.get("run", "")])

    def compare(self, request: Request) -> Response:
        """The same of two runs, side by side."""
        self._warm()
        return self._explorer([request.query_params.get(name, "") for name in ("a", "b")])

    def _explorer(self, asked: Sequence[str]) -> Response:
        good = [run.card for run in self._shown() if not run.card.problem and run.state.word != "starting"]
        ids = [card.id for card in good]
        if not any(asked) and len(good) >= len(asked):  # the newest
            newest = sorted(good, key=lambda card: -card.changed)
            asked = [card.id for card in newest[: len(asked)]]
        chosen = [card for id in asked for card in good if card.id == id]
        if any(asked) and len(chosen) < len(asked):
            missing = next(id for id in asked if id not in ids)
            problem = f"{missing or 'the second run'} is no run that can be drawn from"
        else:
            problem = "" if chosen else "There is no run to draw from yet."
        panes = [{"id": card.id, "name": card.name, "url": run_url(card.id)} for card in chosen]
        return self._page(
            "explore.html",
            runs=sorted(ids),
            asked=list(asked),
            panes=[] if problem else panes,
            cards=[] if problem else chosen,
            problem=problem,
        )

    async def favourites(self, request: Request) -> Response:
        """Chosen samples as a ZIP."""
        body = await _body(request)
        content = await favourites.packed(body.get("favourites"), self.drawing)
        headers = {"Content-Disposition": 'attachment; filename="favourites.zip"'}
        return Response(content, media_type="application/zip", headers=headers)

    # --- trainings ---

    async def begin(self, request: Request) -> Response:
        """Start a training on what the body holds; the settings stand in the address."""
        query = request.query_params
        given: dict[str, Any] = {name: query.get(name) or None for name in ("method", "preset")}
        given |= {name: whole(query, name, LARGEST_STEP) for name in ("steps", "seed")}
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > uploads.MOST_BYTES:
            raise UserError(f"the file is larger than {uploads.MOST_BYTES // 2**20} MB")
        self.trainings.check(given)  # before anything is taken in
        folder = self.trainings.folder / "uploads"
        path = await uploads.take_in(request.stream(), query.get("name", ""), folder)
        try:
            id = await asyncio.to_thread(self.trainings.begin, path, path.stem, given)
        except UserError:
            path.unlink(missing_ok=True)
            path.parent.rmdir()
            raise
        return _json({"run": id, "url": run_url(id)}, 201)

    def stop(self, request: Request) -> Response:
        """Ask a training to end."""
        self.trainings.stop(request.path_params["id"])
        return self._done(request)

    async def go_on(self, request: Request) -> Response:
        """Train further."""
        body = await _body(request)
        steps = whole(body, "steps", LARGEST_STEP)
        await asyncio.to_thread(self.trainings.go_on, request.path_params["id"], steps)
        return await asyncio.to_thread(self._done, request)

    def _done(self, request: Request) -> Response:
        """After an action: the buttons as they are now."""
        return HTMLResponse(self._actions(self._asked(request)))

    # --- the parts ---

    def _run(self, request: Request) -> RunFiles:
        return self.library.run(request.path_params["id"])

    def _asked(self, request: Request) -> Shown:
        """The run of the address, whatever its state."""
        id = request.path_params["id"]
        path = self.library.place(id)
        if not os.path.isdir(path) and id not in self.trainings.begun_here():
            raise NotFound(id)
        return self._one(id)

    def _warm(self) -> None:
        """Start the process that draws, as someone is about to look at a model."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self.artist.start(), self._loop)

    def _page(self, template: str, **content: Any) -> Response:
        return HTMLResponse(self._rendered(template, **content))

    def _rendered(self, template: str, **content: Any) -> str:
        """A template filled in; what a file holds that is no text is replaced."""
        text = self.templates.get_template(template).render(**content)
        return text.encode("utf-8", "replace").decode()

    def _part(self, template: str, **content: Any) -> str:
        """A part that asks for itself again; its address ends in ``seen=`` and a digest of its content."""
        text = self._rendered(template, **content)
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]
        return text.replace('seen="', f'seen={digest}"')

    # --- what went wrong ---

    def _not_found(self, request: Request, error: Exception) -> Response:
        return self._problem(request, 404, "There is no such run or file here.")

    def _refused(self, request: Request, error: Exception) -> Response:
        return self._problem(request, 400, str(error).replace(f"{self.library.root}/", ""))

    def _changed(self, request: Request, error: Exception) -> Response:
        return self._problem(request, 409, "The model has changed since.")

    def _http_error(self, request: Request, error: HTTPException) -> Response:
        return self._problem(request, error.status_code, error.detail)

    def _left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    def _problem(self, request: Request, code: int, said: str) -> Response:
        if "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers:
            return HTMLResponse(self._rendered("problem.html", said=said), code)
        return _json({"error": said}, code)


# --- small things ---


def run_url(id: str) -> str:
    """The address of a run's page."""
    return f"/runs/{quote(id)}/"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"


def _described(shown: Shown) -> dict[str, Any]:
    card, state = shown.card, shown.state
    return {
        "id": card.id,
        "url": run_url(card.id),
        "problem": card.problem,
        "state": state.word,
        "live": state.live,
        "said": state.said,
        "method": card.method,
        "preset": card.preset,
        "step": card.step,
        "steps": card.steps,
        "size": list(card.size),
        "figures": {
            name: value if math.isfinite(value) else None for name, (value, _) in card.figures.items()
        },
    }


def _json(content: dict[str, Any], code: int = 200) -> Response:
    """JSON in ASCII, so that no name in a file can break it."""
    return Response(json.dumps(content, allow_nan=False), code, media_type="application/json")


def _rank(card: Card, figure: str) -> tuple[bool, float]:
    """The best first, runs without the figure last."""
    if figure not in card.figures:
        return True, 0.0
    value, direction = card.figures[figure]
    return False, -value if direction == "↑" else value


def _machine(record: dict[str, Any]) -> str:
    return ", ".join(str(record[key]) for key in ("processor", "device", "precision") if key in record)


def _etag(sample: Sample, checksum: str) -> str:
    way = f"-{sample.toward}-{sample.at}" if sample.toward is not None else ""
    return f'"{checksum[:16]}-{sample.seed}-{sample.truncation}{way}"'


def _seeds(text: str) -> list[int]:
    """Seeds from ``3,4,9``.

    Raises:
        UserError: one is no seed, or there are too many.
    """
    words = text.split(",")
    if len(words) > MOST_COMPARED:
        raise UserError(f"at most {MOST_COMPARED} seeds are compared at a time")
    found = [whole({"seed": word}, "seed") for word in words]
    if None in found:
        raise UserError("seeds are whole numbers with commas between them")
    return [seed for seed in found if seed is not None]


async def _body(request: Request) -> dict[str, Any]:
    """The small JSON object that a request holds; {} for none.

    Raises:
        UserError: it is too large or something else.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BODY:
            raise UserError("the request is too large")
    if not content:
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("the request must be a JSON object")
    return found
