"""One case: train, evaluate, and what is on record about it.

A case has a run directory, ``DIR/<case>/``, and a record, ``DIR/cases/<case>.json``: its facts, its plan
where the budget is in seconds, where it runs or ran last, and why it failed if it did.
"""

from __future__ import annotations

import json
import platform
import traceback
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from oneshotgan.benchmark.pace import plan_steps
from oneshotgan.benchmark.suite import Case
from oneshotgan.errors import UserError, one_line
from oneshotgan.files import write_json
from oneshotgan.launch import train
from oneshotgan.metrics.evaluate import evaluate_run
from oneshotgan.metrics.figures import Networks
from oneshotgan.run import Run

PATIENCE = 60.0  # seconds that a case waits for an earlier start of it to end


def run_case(out: Path, case: Case) -> str | None:
    """Train and evaluate a case from wherever it stands, on one thread.

    Returns:
        None, or in one line why it failed. That is on record too, an unexpected failure with its traceback.
    """
    torch.set_num_threads(1)
    try:
        with FileLock(out / "cases" / f".{case.name}.lock", timeout=PATIENCE):
            if not finished(out, case):
                note(out, case, node=platform.node(), failure=None, traceback=None)
                _train(out, case)
                _evaluate(out, case)
    except Timeout:
        return fail(out, case, "another benchmark works on it")
    except UserError as error:
        return fail(out, case, str(error))
    except Exception as error:
        return fail(out, case, f"{type(error).__name__}: {error}", traceback.format_exc())
    return None


def finished(out: Path, case: Case) -> bool:
    """Whether the case is trained to its end, and measured as it should be."""
    path = out / case.name
    try:
        run = Run.open(path)
    except UserError:  # none yet, or a damaged one, which the training will tell
        return False
    steps = run.settings.training.steps
    if max(run.checkpoint_steps(), default=0) < steps:
        return False
    try:
        content = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        figures = content["figures"]
        size = figures[0]["size"] if case.size is None else list(case.size)
        alike = all(figure["count"] == case.samples and figure["size"] == size for figure in figures)
        released = any(str(figure["name"]).endswith("_released") for figure in figures)
        whole = len(figures) > 0 and content["step"] == steps
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False
    return bool(whole and alike and (released or case.protocol == "paper"))


# --- the two parts of a case ---


def _train(out: Path, case: Case) -> None:
    given = case.settings()
    if case.seconds is not None:
        given["steps"] = _planned_steps(out, case)
    train(case.path, out / case.name, method=case.method, preset=case.preset, quiet=True, **given)


def _planned_steps(out: Path, case: Case) -> int:
    """The steps that the budget of seconds holds, measured once, before the case begins."""
    if Run.exists(out / case.name):
        return Run.open(out / case.name).settings.training.steps
    plan = read(out, case.name).get("plan")
    if plan is None:
        assert case.seconds is not None
        made = plan_steps(case.seconds, case.method, case.preset, case.settings(), case.path)
        plan = {"steps": made.steps, "seconds_per_step": made.seconds_per_step}
        note(out, case, plan=plan)
    return int(plan["steps"])


def _evaluate(out: Path, case: Case) -> None:
    Networks.load("torchvision", "cpu")  # a table has all figures or none: missing weights are an error
    released = case.protocol == "released"
    evaluate_run(out / case.name, case.samples, released=released, size=case.size, real=case.path)


# --- the record ---


def read(out: Path, name: str) -> dict[str, Any]:
    """The record of the case of that name; empty if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = out / "cases" / f"{name}.json"
    if not path.exists():
        return {}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        dict(record["facts"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: delete it") from error
    return record


def known(out: Path, name: str) -> dict[str, Any]:
    """The same, and empty if the file is damaged."""
    try:
        return read(out, name)
    except UserError:
        return {}


def recorded(out: Path) -> list[str]:
    """The names of all cases with a record."""
    return sorted(path.stem for path in (out / "cases").glob("*.json") if not path.name.startswith("."))


def enter(out: Path, case: Case) -> None:
    """Begin the record of a case, in the place of any before."""
    write_json(out / "cases" / f"{case.name}.json", {"facts": case.facts()})


def note(out: Path, case: Case, **entries: Any) -> None:
    """Put entries into the record of a case; None takes one away."""
    content = read(out, case.name) | {"facts": case.facts()} | entries
    content = {name: value for name, value in content.items() if value is not None}
    write_json(out / "cases" / f"{case.name}.json", content)


def fail(out: Path, case: Case, reason: str, trace: str | None = None) -> str:
    """Put on record that a case failed, and give the reason back as one line.

    Where that cannot be written, the line says so, too: it is no reason to stop other cases.
    """
    try:
        note(out, case, failure=one_line(reason), traceback=trace)
    except UserError as error:
        if str(error) not in reason:
            reason += f"; {error}"
    return one_line(reason)
