"""Run directories -> the table: methods by settings by figures, the paper's beside ours."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oneshotgan.benchmark.case import finished, read, recorded
from oneshotgan.benchmark.published import TABLE_1, difference
from oneshotgan.benchmark.suite import SETTINGS, Case
from oneshotgan.errors import UserError
from oneshotgan.layout import RunFiles

METHODS = {"singan": "SinGAN", "fastgan": "FastGAN", "oneshot": "One-Shot GAN"}
FIGURES = ("sifid64", "lpips", "ms_ssim", "dist_to_train")  # what the names of those in the table begin with

Clip = dict[str, list[float]]  # source -> the values of its seeds


@dataclass(frozen=True)
class Result:
    """What the directory of a case holds."""

    case: Case
    state: str  # "finished", or in a few words why it is not
    figures: list[dict[str, Any]] = field(default_factory=list)  # the entries of metrics.json
    steps: int = 0
    seconds: float = 0.0  # of training, summed over restarts


@dataclass(frozen=True, order=True)
class Column:
    """Figures that may be averaged: of one name, number of samples, weights, and size where one is set."""

    setting: int  # index in SETTINGS
    kind: int  # index in FIGURES
    name: str
    count: int
    weights: str  # the first digits of their checksum
    size: tuple[int, ...]  # (height, width); () for the runs' own
    title: str = field(compare=False)
    direction: str = field(compare=False)


@dataclass(frozen=True, order=True)
class Row:
    """Cases that differ in clip, setting and seed only."""

    method: int  # index in METHODS
    variant: str  # preset, budget and overrides
    name: str


@dataclass
class Cell:
    """A mean over clips.

    Attributes:
        error: the standard error over clips; None for a single one.
        clips: how many; `wanted`, how many there should be.
        paper: the paper's figure, where ours may stand beside it.
        note: why it may not.
    """

    value: float
    error: float | None
    clips: int
    wanted: int
    paper: float | None = None
    note: str | None = None
    best: bool = False


@dataclass
class Table:
    """The table as data: cells by row and column, the mean seconds of training, and what is not there."""

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell]
    training: dict[tuple[Row, int], tuple[float, float]]  # mean seconds and mean steps, by row and setting
    results: list[Result]

    def absent(self) -> list[Result]:
        """The cases that are not finished."""
        return [result for result in self.results if result.state != "finished"]


def write_table(folder: Path | str, format: str) -> str:
    """The table of a benchmark as text.

    Args:
        folder: the benchmark's ``--out``.
        format: "markdown", "csv", "latex" or "json".

    Raises:
        UserError: the folder holds no benchmark.
    """
    formats: dict[str, Callable[[Table], str]] = {
        "markdown": _markdown,
        "csv": _csv,
        "latex": _latex,
        "json": _json,
    }
    return formats[format](tabulate(results(Path(folder))))


def results(folder: Path) -> list[Result]:
    """What the directories of all cases hold.

    Raises:
        UserError: the folder holds no benchmark, or a record is damaged.
    """
    found = [_result(folder, name) for name in recorded(folder)]
    if not found:
        raise UserError(f"{folder} holds no benchmark: oneshotgan benchmark SUITE --out {folder} makes one")
    return found


def _result(folder: Path, name: str) -> Result:
    record = read(folder, name)
    try:
        case = Case.from_facts(record["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'cases' / name}.json is damaged: delete it") from error
    path = folder / name
    if not finished(folder, case):
        step = RunFiles(path).last_stats().get("step")
        begun = f"not finished: step {step}" if step is not None else "not begun"
        return Result(case, f"failed: {record['failure']}" if "failure" in record else begun)
    figures = json.loads((path / "metrics.json").read_text(encoding="utf-8"))["figures"]
    run = RunFiles.open(path)
    return Result(
        case, "finished", figures, run.settings.training.steps, float(run.last_stats().get("seconds", 0.0))
    )


def tabulate(found: Sequence[Result]) -> Table:
    """Means over clips, of each clip over its seeds first; the best of each column; the paper's figures."""
    # Sort every figure into its row and column.
    values: dict[tuple[Row, Column], Clip] = {}
    sizes: dict[tuple[Row, Column], set[tuple[int, int]]] = {}
    for result in found:
        for entry in result.figures:
            column = _column(result.case, entry)
            if column is not None:
                key = (_row(result.case), column)
                clip = values.setdefault(key, {}).setdefault(result.case.source, [])
                clip.append(entry["value"])
                sizes.setdefault(key, set()).add((entry["size"][0], entry["size"][1]))

    # A cell each, complete where every clip has every seed.
    cells = {}
    for (row, column), clips in values.items():
        setting = SETTINGS[column.setting]
        own = [r.case for r in found if _row(r.case) == row and r.case.setting == setting]
        seeds = len({case.seed for case in own})
        whole = [statistics.mean(clip) for clip in clips.values() if len(clip) == seeds]
        if not whole:
            continue
        error = statistics.stdev(whole) / len(whole) ** 0.5 if len(whole) > 1 else None
        cell = Cell(statistics.mean(whole), error, len(whole), len({case.source for case in own}))
        cell.note = difference(own[0], column.name, sizes[row, column], len(whole))
        if cell.note is None:
            cell.paper = TABLE_1[own[0].method][setting][column.title]
        cells[row, column] = cell

    # The best of each column, among the complete ones.
    rows, columns = sorted({_row(r.case) for r in found}), sorted({column for _, column in cells})
    for column in columns:
        complete = [cell for (_, c), cell in cells.items() if c == column and cell.clips == cell.wanted]
        better = max if column.direction == "↑" else min
        if len(complete) > 1:
            best = better(cell.value for cell in complete)
            for cell in complete:
                cell.best = cell.value == best
    return Table(rows, columns, cells, _training(found), list(found))


def _row(case: Case) -> Row:
    budget = {"steps": case.steps, "seconds": case.seconds}
    variant = {"preset": case.preset} | {k: v for k, v in budget.items() if v is not None} | case.overrides
    method = list(METHODS).index(case.method)
    return Row(method, ", ".join(f"{k} {v}" for k, v in variant.items()), METHODS[case.method])


def _column(case: Case, entry: dict[str, Any]) -> Column | None:
    """The column of a figure; None for one that is not in the table."""
    kind = next((i for i, prefix in enumerate(FIGURES) if entry["name"].startswith(prefix)), None)
    if kind is None:
        return None
    return Column(
        SETTINGS.index(case.setting),
        kind,
        entry["name"],
        entry["count"],
        entry["weights"]["sha256"][:8] if entry["weights"] else "",
        case.size or (),
        entry["title"],
        entry["direction"],
    )


def _training(found: Sequence[Result]) -> dict[tuple[Row, int], tuple[float, float]]:
    parts: dict[tuple[Row, int], list[Result]] = {}
    for result in found:
        if result.state == "finished":
            parts.setdefault((_row(result.case), SETTINGS.index(result.case.setting)), []).append(result)
    return {
        key: (statistics.mean(r.seconds for r in part), statistics.mean(r.steps for r in part))
        for key, part in parts.items()
    }


# --- what all formats say ---


def _names(table: Table) -> list[str]:
    """The rows' names, with what tells rows of one method apart."""
    methods = [row.method for row in table.rows]
    return [f"{r.name} ({r.variant})" if methods.count(r.method) > 1 else r.name for r in table.rows]


def _titles(table: Table) -> list[str]:
    """The columns' titles, with the name where two have one title."""
    titles = [f"{SETTINGS[c.setting]} {c.title} {c.direction}" for c in table.columns]
    described = [f"{title} ({_protocol(c)})" for title, c in zip(titles, table.columns, strict=True)]
    return [d if titles.count(t) > 1 else t for t, d in zip(titles, described, strict=True)]


def _protocol(column: Column) -> str:
    size = f"{column.size[1]}x{column.size[0]}" if column.size else "the runs' own size"
    return f"{column.name}, {column.count} samples at {size}"


def _settings(table: Table) -> list[int]:
    return sorted({setting for _, setting in table.training})


def _grid(
    table: Table, bold: Callable[[str], str], mark: Callable[[str], str], plus: str
) -> tuple[list[list[str]], list[str]]:
    """Header and rows as texts, and the footnotes in the order of their numbers."""
    notes: list[str] = []

    shared = _shared_note(table)

    def shown(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        value = f"{cell.value:.3f}"
        text = bold(value) if cell.best else value
        text += f" {plus} {cell.error:.3f}" if cell.error is not None else ""
        if cell.clips < cell.wanted:
            text += f" ({cell.clips} of {cell.wanted} clips)"
        if cell.paper is not None:
            return f"{text} [{cell.paper:.2f}]"
        if shared is not None:
            return text
        if cell.note not in notes:
            notes.append(str(cell.note))
        return text + mark(str(notes.index(str(cell.note)) + 1))

    settings = _settings(table)
    lines = [["method", *_titles(table), *(f"{SETTINGS[s]} seconds (steps)" for s in settings)]]
    for row, name in zip(table.rows, _names(table), strict=True):
        trained = [table.training.get((row, setting)) for setting in settings]
        figures = [shown(table.cells.get((row, column))) for column in table.columns]
        lines.append([name, *figures, *(f"{t[0]:.0f} ({t[1]:.0f})" if t else "–" for t in trained)])
    return lines, notes


def _shared_note(table: Table) -> str | None:
    """Why no figure stands beside the paper's, where all have one reason."""
    reasons = {cell.note for cell in table.cells.values()}
    return reasons.pop() if len(reasons) == 1 else None


def _legend(table: Table) -> list[str]:
    """What stands below the table, beside the footnotes."""
    shared = _shared_note(table)
    protocols = dict.fromkeys(_protocol(column) for column in table.columns)
    lines = ["mean ± standard error over clips; [..] the paper's figure; the best complete mean is bold"]
    lines += [f"figures: {'; '.join(protocols)}"] if protocols else []
    lines += [f"not comparable with the paper's figures: {shared}"] if shared else []
    lines += [f"{row.name}: {row.variant}" for row in table.rows]
    return lines + [f"{result.case.name}: {result.state}" for result in table.absent()]


# --- the formats ---


def _markdown(table: Table) -> str:
    lines, notes = _grid(table, "**{}**".format, " [^{}]".format, "±")
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    rows = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
    footnotes = [f"[^{number}]: not comparable: {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*rows, "", *(f"- {line}" for line in _legend(table)), "", *footnotes]).rstrip()


def _latex(table: Table) -> str:
    lines, notes = _grid(table, r"\textbf{{{}}}".format, r"$^{{{}}}$".format, r"$\pm$")
    signs = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "_": r"\_", "±": r"$\pm$"}

    def plain(text: str) -> str:
        for sign, command in signs.items():
            text = text.replace(sign, command)
        return text

    footnotes = [rf"$^{{{number}}}$ not comparable: {plain(note)}" for number, note in enumerate(notes, 1)]
    rows = [" & ".join(map(plain, line)) + r" \\" for line in lines]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            *(f"% {line}" for line in _legend(table)),
            *([r"\par{\footnotesize " + r" \\ ".join(footnotes) + "}"] if footnotes else []),
        ]
    )


def _entries(table: Table) -> Iterable[dict[str, Any]]:
    """A plain object per cell."""
    for row in table.rows:
        for column in table.columns:
            cell = table.cells.get((row, column))
            if cell is None:
                continue
            seconds, steps = table.training[row, column.setting]
            yield {
                "method": list(METHODS)[row.method],
                "variant": row.variant,
                "setting": SETTINGS[column.setting],
                "figure": column.title,
                "name": column.name,
                "direction": column.direction,
                "samples": column.count,
                "size": f"{column.size[1]}x{column.size[0]}" if column.size else "",
                "weights": column.weights,
                "value": cell.value,
                "standard_error": cell.error,
                "clips": cell.clips,
                "clips_wanted": cell.wanted,
                "best": cell.best,
                "paper": cell.paper,
                "not_comparable": cell.note,
                "seconds": seconds,
                "steps": steps,
            }


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    entries = list(_entries(table))
    writer = csv.DictWriter(buffer, list(entries[0]) if entries else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return buffer.getvalue().rstrip("\n")


def _json(table: Table) -> str:
    cases = [
        {"name": r.case.name, "state": r.state, "steps": r.steps, "seconds": r.seconds} | r.case.facts()
        for r in table.results
    ]
    return json.dumps({"cells": list(_entries(table)), "cases": cases}, indent=2, ensure_ascii=False)
