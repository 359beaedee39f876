"""A suite, a TOML file that names sources, settings, methods and a budget, -> its cases.

The format is described in docs/benchmark.md. A suite is checked as a whole before anything is trained.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from oneshotgan import config, media
from oneshotgan.errors import UserError, UserErrors

SETTINGS = ("image", "video")  # the middle frame alone; all frames
PROTOCOLS = ("paper", "released")
DAVIS = Path("JPEGImages") / "480p"
MIN_SIZE, MAX_SIZE = 32, 8192  # sides of the images that are measured, in pixels
# What a suite says for all of its methods, so that none of them can say it of itself.
_OF_THE_SUITE = {"seed": "seeds", "threads": "one thread per case"}


@dataclass(frozen=True)
class Case:
    """One training and its figures.

    Attributes:
        suite: the name of the suite; of one that comes with the package without ``.toml``.
        source: the name of the photo or clip.
        setting: "image" or "video".
        overrides: settings of the method that differ from the preset's.
        steps: the budget in steps, or None.
        seconds: the budget in seconds of training, or None; with neither the preset's own steps count.
        samples: how many are measured.
        size: (height, width) that samples and real images are measured at; None for the run's own.
        path: where the source lies. All else is on record; this may change from start to start.
    """

    suite: str
    source: str
    setting: str
    method: str
    preset: str
    overrides: dict[str, Any]
    seed: int
    steps: int | None
    seconds: float | None
    samples: int
    size: tuple[int, int] | None
    protocol: str
    path: str = ""

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{self.source}-{self.setting}-{self.method}-seed{self.seed}"

    def facts(self) -> dict[str, Any]:
        """What is on record of it, as plain values of JSON."""
        facts = dataclasses.asdict(self)
        del facts["path"]
        return facts | {"size": None if self.size is None else list(self.size)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Case:
        """A case back from `facts`; TypeError where they are others."""
        size = facts.get("size")
        return cls(**{**facts, "size": None if size is None else (int(size[0]), int(size[1]))})

    def settings(self) -> dict[str, Any]:
        """What `launch.train` is given beside method and preset, but for steps that are yet to be planned."""
        given = self.overrides | {"seed": self.seed, "threads": 1}
        if self.setting == "image":
            given["max_frames"] = 1  # of a clip, that is the middle one
        return given if self.steps is None else given | {"steps": self.steps}


def shipped() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".toml"))


def load_suite(suite: Path | str, data: Path | str | None = None) -> list[Case]:
    """Read a suite and check all of it.

    Args:
        suite: a TOML file, or the name of a suite that comes with the package.
        data: the folder below which its sources lie, in place of its own ``root``.

    Raises:
        UserErrors: one line per mistake, each naming the entry.
        UserError: there is no such suite, or it is no TOML.
    """
    path, name = _found(suite)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the suite {path}: {error}") from error
    reader = _Reader(content, name)
    cases = _cases(reader, path.parent, name, data)
    if reader.mistakes:
        raise UserErrors(reader.mistakes)
    return cases


class _Reader:
    """Takes entries out of a suite, and notes what is wrong with them."""

    def __init__(self, content: dict[str, Any], name: str) -> None:
        self.content, self.name = content, name
        self.mistakes: list[str] = []
        self.asked: list[str] = []

    def note(self, entry: str, mistake: object) -> None:
        self.mistakes.append(f"{self.name}: {entry}: {mistake}")

    def take(self, entry: str, default: Any, wanted: str, good: Callable[[Any], bool]) -> Any:
        """The entry if it is there and `good`, else the default."""
        self.asked.append(entry)
        if entry not in self.content:
            return default
        value = self.content[entry]
        if good(value):
            return value
        self.note(entry, f"must be {wanted}, not {value!r}")
        return default

    def number(self, entry: str, default: Any, low: float, whole: bool = True) -> Any:
        kind = int if whole else int | float
        wanted = f"a {'whole ' if whole else ''}number from {low:g}"
        return self.take(entry, default, wanted, lambda v: _is(v, kind) and low <= v < 1e9)

    def choices(self, entry: str, default: list[str], allowed: tuple[str, ...]) -> Any:
        wanted = f"a list of {' and '.join(allowed)}, each once"
        return self.take(entry, default, wanted, lambda v: _unique(v, str) and set(v) <= set(allowed))

    def unknown(self) -> None:
        """Note the entries that nobody asked for."""
        for entry in self.content.keys() - set(self.asked):
            close = difflib.get_close_matches(entry, self.asked, n=1, cutoff=0.5)
            self.note(entry, "unknown entry" + (f" (did you mean {close[0]}?)" if close else ""))


def _cases(reader: _Reader, folder: Path, name: str, data: Path | str | None) -> list[Case]:
    settings = reader.choices("settings", list(SETTINGS), SETTINGS)
    low, high = (config.FIELDS["seed"][1].metadata[end] for end in ("low", "high"))
    seeds = reader.take("seeds", [0], f"a list of whole numbers from {low} to {high}, each once",
                        lambda v: _unique(v, int) and low <= min(v) and max(v) <= high)  # fmt: skip
    samples = reader.number("samples", 100, 2)
    protocol = reader.take("protocol", "paper", " or ".join(PROTOCOLS), lambda v: v in PROTOCOLS)
    size = _size(reader)
    steps, seconds = reader.number("steps", None, 1), reader.number("seconds", None, 1, whole=False)
    if steps is not None and seconds is not None:
        reader.note("seconds", "leave it or steps out: a budget is one of them")
    budget = {"steps": steps, "seconds": seconds}
    methods = _methods(reader, budget)
    sources = _sources(reader, folder, data, settings)
    reader.unknown()
    return [
        Case(name, source, setting, method, preset, overrides, seed, **budget,
             samples=samples, size=size, protocol=protocol, path=path)
        for source, path in sources.items()
        for setting in settings
        for method, (preset, overrides) in methods.items()
        for seed in seeds
    ]  # fmt: skip


def _size(reader: _Reader) -> tuple[int, int] | None:
    """``size``, written WIDTHxHEIGHT, as (height, width)."""

    def good(value: Any) -> bool:
        sides = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
        return sides is not None and all(MIN_SIZE <= int(side) <= MAX_SIZE for side in sides.groups())

    wanted = f'a text like "320x192", width first, sides from {MIN_SIZE} to {MAX_SIZE}'
    text = reader.take("size", None, wanted, good)
    if text is None:
        return None
    width, height = text.split("x")
    return int(height), int(width)


def _methods(reader: _Reader, budget: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each method's preset and overrides."""
    preset = reader.take("preset", "paper", " or ".join(config.PRESETS), lambda v: v in config.PRESETS)
    tables = reader.take("methods", None, "tables [methods.NAME]", lambda v: isinstance(v, dict) and bool(v))
    if tables is None:
        if "methods" not in reader.content:
            reader.note("methods", "missing: name at least one, as [methods.oneshot]")
        return {}
    methods = {}
    for method, table in tables.items():
        entry = f"methods.{method}"
        if method not in config.METHODS:
            reader.note(entry, f"unknown method: choose {', '.join(config.METHODS)}")
            continue
        if not isinstance(table, dict):
            reader.note(entry, f"must be a table of settings, not {table!r}")
            continue
        overrides = dict(table)
        own = overrides.pop("preset", preset)
        taken = dict(_OF_THE_SUITE)
        if any(value is not None for value in budget.values()):
            taken["steps"] = "the budget"
        for setting in overrides.keys() & taken.keys():
            reader.note(f"{entry}.{setting}", f"is said for all methods: {taken[setting]}")
        try:
            settings = config.with_overrides(config.preset(own, method), overrides)
        except UserError as error:
            reader.note(entry, error)
            continue
        if budget["seconds"] is not None and getattr(settings.model, "coarse_steps", False):
            reader.note(f"{entry}.coarse_steps", "its steps are not alike: give a budget in steps")
        methods[method] = (own, overrides)
    return methods


def _sources(reader: _Reader, folder: Path, data: Path | str | None, settings: list[str]) -> dict[str, str]:
    """The name and the path of every source that can be read."""
    # What is named, and below which folder.
    root = reader.take("root", None, "the path of a folder", lambda v: _is(v, str))
    count = reader.number("count", None, 1)
    wanted = 'a list of paths, a table of names and paths, or "all"'
    named = reader.take("sources", [], wanted, _are_sources)
    davis = reader.take("davis", [], "a list of clips, each once", lambda v: _unique(v, str))
    below = Path(data) if data is not None else folder / Path(root or "").expanduser()
    placed = data is not None or root is not None
    if (named == "all" or davis) and not placed:
        reader.note("sources" if named == "all" else "davis", "say where the clips lie: --data DIR")
        return {}
    if placed and not below.is_dir():
        reader.note("root" if data is None else "--data", f"{below} is no folder")
        return {}

    # Each of them: read, named, counted.
    paths: list[tuple[str, str, Path]] = [("davis", clip, below / DAVIS / clip) for clip in davis]
    if named == "all":
        paths += [("sources", p.name, p) for p in sorted(below.iterdir()) if not p.name.startswith(".")]
    elif isinstance(named, dict):
        paths += [("sources", name, below / path) for name, path in named.items()]
    else:
        paths += [("sources", name, below / name) for name in named]
    found: dict[str, str] = {}
    for entry, text, path in paths:
        try:
            frames = len(media.read_frames(path, lambda _: (1, 1), 2).images)
        except UserError as error:
            reader.note(f"{entry}: {text}", error)
            continue
        name = text if isinstance(named, dict) and entry == "sources" else media.source_name(path)
        if name in found:
            reader.note(f"{entry}: {text}", f"a second source of the name {name}: name both in a table")
        if frames == 1 and "video" in settings:
            reader.note(f"{entry}: {text}", 'is one picture, no clip: leave "video" out of settings')
        found[name] = str(path.absolute())
    if not paths and (named == "all" or not {"sources", "davis"} & reader.content.keys()):
        reader.note("sources", f"nothing lies in {below}" if named == "all" else "name at least one")
    if count is not None and paths and len(paths) != count:
        reader.note("count", f"{count} sources are wanted, {len(paths)} are there")
    return found


def _found(suite: Path | str) -> tuple[Path, str]:
    """The file of a suite, and its name."""
    if str(suite) in shipped():
        return Path(str(_folder() / f"{suite}.toml")), str(suite)
    path = Path(suite)
    if path.is_file():
        return path, path.name
    raise UserError(f"no suite {suite}: name a TOML file, or one of {', '.join(shipped())}")


def _folder() -> Any:
    return resources.files("oneshotgan") / "benchmark" / "suites"


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _unique(value: Any, kind: type) -> bool:
    """Whether it is a list of one or more different values of a kind."""
    return isinstance(value, list) and all(_is(v, kind) for v in value) and len({*value}) == len(value) > 0


def _are_sources(value: Any) -> bool:
    if isinstance(value, dict):
        names = all(re.fullmatch(r"[^/\\.][^/\\]*", name) for name in value)
        return names and all(_is(path, str) for path in value.values())
    return value == "all" or _unique(value, str)
