"""The runner on this machine: every case once, whatever fails or is killed on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Tree, scene, write_suite
from filelock import FileLock
from safetensors.numpy import load_file

from oneshotgan import media
from oneshotgan.benchmark import case as case_module
from oneshotgan.benchmark import cluster, runner
from oneshotgan.benchmark.board import Board, progress
from oneshotgan.benchmark.case import finished, note, read, run_case
from oneshotgan.benchmark.runner import run_suite
from oneshotgan.benchmark.suite import Case, load_suite
from oneshotgan.errors import UserErrors
from oneshotgan.run import Run

Start = Callable[..., subprocess.Popen[str]]
METHODS: dict[str, dict[str, Any]] = {"oneshot": {}, "singan": {}, "fastgan": {}}
CASE = "clip-image-oneshot-seed0"


@pytest.fixture(scope="session")
def benchmarked(tmp_path_factory: pytest.TempPathFactory, random_weights: Path, command: Command) -> Path:
    """``out`` of a suite of two settings and three methods, and what the command said; for reading only.

    FastGAN's cases fail: its reconstruction loss wants weights that are not there.
    """
    folder = tmp_path_factory.mktemp("benchmarked")
    suite = write_suite(folder / "s.toml", METHODS, settings=["image", "video"], size="40x32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOTGAN_WEIGHTS", str(random_weights))
        outcome = command("benchmark", suite, "--out", folder / "out", "--workers", "2")
    (folder / "said.json").write_text(json.dumps([outcome.code, outcome.out, outcome.err]))
    return folder


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def is_locked(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return True
    lock.release()
    return False


def step_of(path: Path) -> int:
    return max(Run(path).checkpoint_steps(), default=0)


# --- all cases ---


def test_every_case_is_a_finished_run_with_its_figures(benchmarked: Path) -> None:
    out = benchmarked / "out"
    for name in ("clip-image-oneshot-seed0", "clip-video-oneshot-seed0", "clip-image-singan-seed0"):
        run = Run.open(out / name)
        assert run.checkpoint_steps()[-1] == run.settings.training.steps == 4
        assert run.settings.machine.threads == 1
        figures = json.loads((out / name / "metrics.json").read_text())["figures"]
        assert {(tuple(figure["size"]), figure["count"]) for figure in figures} == {((32, 40), 3)}


def test_image_is_the_middle_frame_and_video_all_of_them(benchmarked: Path) -> None:
    one = Run.open(benchmarked / "out" / "clip-image-oneshot-seed0").frames()
    every = Run.open(benchmarked / "out" / "clip-video-oneshot-seed0").frames()
    assert (len(one), len(every)) == (1, 5)
    assert np.array_equal(one[0], every[2])
    assert not np.array_equal(one[0], every[0])


def test_a_failure_is_one_line_and_the_others_go_on(benchmarked: Path) -> None:
    code, out, err = json.loads((benchmarked / "said.json").read_text())
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == [
        "clip-image-fastgan-seed0",
        "clip-video-fastgan-seed0",
    ]
    assert all("FastGAN's reconstruction loss needs weights" in line for line in errors)
    assert "reconstruction loss" in read(benchmarked / "out", "clip-image-fastgan-seed0")["failure"]
    assert err.count(": finished") == 4


def test_what_is_finished_is_skipped(
    benchmarked: Path, tmp_path: Path, command: Command, with_weights: Path, tree: Callable[[Path], Tree]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(benchmarked, folder)
    suite = write_suite(folder / "s.toml", {"oneshot": {}, "singan": {}}, settings=["image", "video"],
                        size="40x32")  # fmt: skip
    before = tree(folder / "out")
    outcome = command("benchmark", suite, "--out", folder / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.err == f"4 cases, 4 of them finished: {folder / 'out'}\n"
    assert tree(folder / "out") == before


def test_the_real_images_come_from_the_source_at_the_size_of_the_figures(
    benchmarked: Path, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshotgan.metrics import evaluate

    seen: list[np.ndarray] = []
    of = evaluate.Reference.of

    def noting(images: Any, *rest: Any) -> Any:
        seen.append(images.numpy())
        return of(images, *rest)

    monkeypatch.setattr(evaluate.Reference, "of", noting)
    monkeypatch.setattr(evaluate, "write_json", lambda *_: None)
    out, case = benchmarked / "out", load_suite(benchmarked / "s.toml")[0]
    evaluate.evaluate_run(out / case.name, 2, size=(48, 64), real=case.path)
    assert np.array_equal(seen[0], scene(seed=2)[None])
    evaluate.evaluate_run(out / case.name, 2, size=(48, 64))
    assert np.array_equal(seen[1], media.resized(Run.open(out / case.name).frames(), (48, 64)))


@pytest.mark.parametrize("change", ["samples", "size", "step", "no step", "no figures", "gone", "torn"])
def test_a_case_is_finished_only_with_the_figures_it_should_have(
    benchmarked: Path, tmp_path: Path, change: str
) -> None:
    case = load_suite(benchmarked / "s.toml")[0]
    shutil.copytree(benchmarked / "out" / CASE, tmp_path / CASE)
    assert finished(tmp_path, case)
    path = tmp_path / CASE / "metrics.json"
    content = json.loads(path.read_text())
    if change in ("samples", "size"):
        content["figures"][1] |= {"count": 2} if change == "samples" else {"size": [32, 41]}
    content["step"] -= change == "step"
    content["figures"] = [] if change == "no figures" else content["figures"]
    if change == "no step":
        del content["step"]
    text = json.dumps(content)
    path.write_text(text[:50] if change == "torn" else text)
    if change == "gone":
        path.unlink()
    assert not finished(tmp_path, case)


# --- refusals ---


def test_a_folder_keeps_to_one_suite_and_its_facts(
    benchmarked: Path, tmp_path: Path, command: Command, with_weights: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(benchmarked, folder)
    out, suite = folder / "out", write_suite(folder / "s.toml", size="40x32", samples=4)
    outcome = command("benchmark", suite, "--out", out)
    assert outcome.error == f"{CASE}: {out} has it with samples 3, not 4: choose another --out"
    outcome = command("benchmark", write_suite(folder / "t.toml"), "--out", out)
    assert outcome.error == f"{out} belongs to the suite s.toml: choose another --out"


def test_a_suite_that_is_refused_leaves_no_record(
    benchmarked: Path, tmp_path: Path, command: Command, with_weights: Path, tree: Callable[[Path], Tree]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(benchmarked, folder)
    before = tree(folder / "out")
    suite = write_suite(folder / "s.toml", size="40x32", samples=4, seeds=[1, 0])
    assert command("benchmark", suite, "--out", folder / "out").error.startswith(f"{CASE}: ")
    assert tree(folder / "out") == before


def test_a_case_that_has_not_begun_takes_other_settings_and_forgets_its_plan(
    workdir: Path, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run_local", lambda *_: {})
    run_suite(write_suite(Path("s.toml"), steps=None, seconds=5), workdir)
    (case,) = load_suite("s.toml")
    note(workdir, case, plan={"steps": 9, "seconds_per_step": 0.5})
    run_suite("s.toml", workdir)
    assert read(workdir, CASE)["plan"]["steps"] == 9
    run_suite(write_suite(Path("s.toml"), steps=None, seconds=7), workdir)
    (case,) = load_suite("s.toml")
    assert read(workdir, CASE) == {"facts": case.facts()}


def test_two_benchmarks_in_one_folder_are_refused(
    workdir: Path, command: Command, with_weights: Path
) -> None:
    (workdir / "out" / "cases").mkdir(parents=True)
    with FileLock(workdir / "out" / "cases" / ".lock"):
        outcome = command("benchmark", write_suite(Path("s.toml")), "--out", "out")
    assert outcome.error.startswith(f"another benchmark writes {workdir / 'out'}")


def test_a_benchmark_that_failed_frees_its_folder(
    workdir: Path, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run_local", lambda *_: {CASE: "no luck"})
    suite = write_suite(Path("s.toml"))
    kept = []  # an error that is kept keeps all that its traceback shows
    for _ in range(2):
        with pytest.raises(UserErrors, match="no luck") as caught:
            run_suite(suite, workdir)
        kept.append(caught)


def test_workers_share_no_core_while_seconds_count(
    workdir: Path, command: Command, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: 2)
    monkeypatch.setattr(runner, "run_local", lambda *_: {})
    timed = write_suite(Path("t.toml"), steps=None, seconds=5)
    assert "3 workers would share 2 cores" in command("benchmark", timed, "--out", "t", "--workers", 3).error
    assert command("benchmark", timed, "--out", "t", "--workers", 2).code == 0
    counted = write_suite(Path("s.toml"))
    assert command("benchmark", counted, "--out", "s", "--workers", 3).code == 0
    assert "--workers must be 1 or more" in command("benchmark", counted, "--out", "s", "--workers", 0).error


@pytest.mark.parametrize(("count", "most"), [(1, "1 GPU: --workers 1"), (2, "2 GPUs: --workers 2")])
def test_workers_share_no_gpu_while_seconds_count(
    workdir: Path,
    command: Command,
    with_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    most: str,
) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    monkeypatch.setattr(runner, "run_local", lambda *_: {})
    has_gpus(monkeypatch, count)
    timed = write_suite(Path("t.toml"), steps=None, seconds=5)
    outcome = command("benchmark", timed, "--out", "t", "--workers", count + 1)
    assert outcome.error == f"the suite counts seconds, and {count + 1} workers would share {most} at most"
    assert command("benchmark", timed, "--out", "t", "--workers", count).code == 0
    on_cpu = write_suite(Path("c.toml"), {"oneshot": {"device": "cpu"}}, steps=None, seconds=5)
    assert command("benchmark", on_cpu, "--out", "c", "--workers", count + 1).code == 0
    counted = write_suite(Path("s.toml"))
    assert command("benchmark", counted, "--out", "s", "--workers", count + 1).code == 0


def has_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("visible", "count", "workers", "seen"),
    [
        (None, 2, 2, ["0", "1"]),
        ("3,GPU-ab,9", 2, 2, ["3", "GPU-ab"]),
        ("5", 1, 2, ["5", "5"]),
        (None, 2, 3, ["0", "0", "1"]),
    ],
)
def test_workers_have_gpus_of_their_own(
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    count: int,
    workers: int,
    seen: list[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    has_gpus(monkeypatch, count)
    monkeypatch.setattr(runner, "_work", work_that_tells_its_gpu)
    cases = load_suite(write_suite(Path("s.toml"), seeds=list(range(workers))))
    (workdir / "cases").mkdir()
    runner.run_local(workdir, cases, workers, Board(workdir, lambda line: None))
    assert sorted(path.read_text() for path in workdir.glob("*.gpu")) == seen


def work_that_tells_its_gpu(*given: Any) -> None:
    """In the place of the work of a case: what GPU it would be done on."""

    def tell(out: Path, case: Case) -> None:
        (out / f"{case.name}.gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    runner.run_case = tell  # type: ignore[assignment]
    runner._work(*given)


def test_missing_weights_are_told_before_anything_is_trained(
    workdir: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "empty").mkdir()
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(workdir / "empty"))
    suite = write_suite(Path("s.toml"), {"oneshot": {}, "fastgan": {}})
    outcome = command("benchmark", suite, "--out", "out")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    named = [name for line in lines for name in re.findall("holds no ([a-z0-9]+)", line)]
    assert named == ["inception", "alexnet", "vgg16"]
    assert not list(Path("out").iterdir())


def test_ray_is_asked_for_only_when_it_is_used(
    workdir: Path, command: Command, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    suite = write_suite(Path("s.toml"))
    outcome = command("benchmark", suite, "--out", "out", "--ray", "auto")
    assert outcome.late_error == "--ray needs Ray: pip install 'oneshotgan[ray]'"
    assert command("benchmark", suite, "--out", "out", "--gpus", 1).error == "--gpus belongs to --ray"
    both = command("benchmark", suite, "--out", "out", "--ray", "auto", "--workers", 2)
    assert both.error == "--workers is for this machine, --ray for a cluster: give one of them"


# --- what fails, and what is killed ---


def test_an_unexpected_failure_keeps_its_traceback(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(case_module, "train", broken)
    (case,) = load_suite(write_suite(Path("s.toml")))
    (workdir / "cases").mkdir()
    assert run_case(workdir, case) == "ZeroDivisionError: by zero"
    record = read(workdir, CASE)
    assert record["failure"] == "ZeroDivisionError: by zero"
    assert "in broken" in record["traceback"]


def test_a_damaged_record_is_one_line_and_the_others_go_on(
    workdir: Path, command: Command, with_weights: Path
) -> None:
    (workdir / "out" / "cases").mkdir(parents=True)
    record = workdir / "out" / "cases" / f"{CASE}.json"
    record.write_text("{")
    outcome = command("benchmark", write_suite(Path("s.toml"), seeds=[0, 1]), "--out", "out")
    assert outcome.late_error == f"{CASE}: {record} is damaged: delete it"
    assert "clip-image-oneshot-seed1: finished" in outcome.err
    assert record.read_text() == "{"


@pytest.mark.parametrize("code", [0, 1])
def test_a_record_that_is_damaged_while_its_case_runs_is_one_line(
    workdir: Path, command: Command, with_weights: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(runner, "_work", [damage_and_succeed, damage_and_fail][code])
    outcome = command("benchmark", write_suite(Path("s.toml"), seeds=[0, 1]), "--out", "out")
    *_, first, second = outcome.err.splitlines()
    how = "its process ended with exit code 1; the same command" if code else "it ended unfinished"
    for seed, line in enumerate((first, second)):
        name = f"clip-image-oneshot-seed{seed}"
        assert line.startswith(f"error: {name}: {how}")
        assert line.endswith(f"; {workdir}/out/cases/{name}.json is damaged: delete it")


def test_a_damaged_record_does_not_end_a_benchmark_on_ray(workdir: Path) -> None:
    (case,) = load_suite(write_suite(Path("s.toml")))
    task = SimpleNamespace(remote=lambda *_: "a result")
    ray = SimpleNamespace(
        remote=lambda _: SimpleNamespace(options=lambda **_: task),
        wait=lambda running, timeout: (running, []),
        get=lambda _: run_case(workdir, case),
        exceptions=SimpleNamespace(RayError=OSError),
    )
    (workdir / "cases").mkdir()
    record = workdir / "cases" / f"{CASE}.json"
    record.write_text("{")
    failures = cluster._run(ray, workdir, [case], "", 0.0, Board(workdir, lambda line: None))
    assert failures == {CASE: f"{record} is damaged: delete it"}


def damage_and_succeed(out: Path, case: Case, *_: object) -> None:
    """In the place of the work of a case: its record is damaged, and it knows."""
    (out / "cases" / f"{case.name}.json").write_text("{")
    assert run_case(out, case) == f"{out}/cases/{case.name}.json is damaged: delete it"


def damage_and_fail(out: Path, case: Case, *_: object) -> None:
    damage_and_succeed(out, case)
    sys.exit(1)


def test_seconds_are_planned_once_and_a_killed_benchmark_goes_on(
    workdir: Path, start: Start, command: Command, with_weights: Path
) -> None:
    suite = write_suite(Path("s.toml"), steps=None, seconds=2)
    path, words = workdir / "out" / CASE, ("benchmark", suite, "--out", "out")

    # Killed when the training is under way: its process ends, too, and frees the case.
    process = start(*words)
    wait_for(lambda: step_of(path) >= 4, "a checkpoint")
    process.kill()
    process.wait()
    wait_for(lambda: not is_locked(path.parent / "cases" / f".{CASE}.lock"), "the end of the worker")
    before = step_of(path)
    planned = read(path.parent, CASE)["plan"]["steps"]
    assert before < planned
    assert progress(path).startswith(f"step {before}/{planned}")
    assert not (path / "metrics.json").exists()

    # Started again, it goes on to the same number of steps, with the same weights as without a break.
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert step_of(path) == planned
    given = load_suite(suite)[0].settings()
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    whole = ("train", "clip", "--out", "whole", "--preset", "preview", "--steps", planned, *flags)
    assert command(*whole).code == 0
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (path, Path("whole")))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_worker_is_one_failure_and_its_case_goes_on(
    workdir: Path, start: Start, command: Command, with_weights: Path
) -> None:
    suite = write_suite(Path("s.toml"), {"oneshot": {"checkpoint_every": 7}}, steps=5000)
    path, words = workdir / "out" / CASE, ("benchmark", suite, "--out", "out")
    process = start(*words)
    wait_for(lambda: step_of(path) >= 7, "a checkpoint")
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    failure = f"error: {CASE}: its process was killed by signal 9; the same command goes on"
    assert err.splitlines()[-1].startswith(failure)
    reached = step_of(path)
    assert 7 <= reached < 5000

    process = start(*words, start_new_session=True)
    wait_for(lambda: step_of(path) > reached, "a later checkpoint")
    reached = step_of(path)
    press_ctrl_c(process, lambda: step_of(path) > reached)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; the same command goes on from there"
    assert "Traceback" not in err
    assert step_of(path) > reached  # the worker did not hear it
    first = [json.loads(line)["step"] for line in (path / "stats.jsonl").read_text().splitlines()]
    assert first == list(range(1, len(first) + 1))
    assert step_of(path) == first[-1]  # Ctrl-C wrote a checkpoint


def test_ctrl_c_while_a_worker_starts_is_quiet(workdir: Path, start: Start, with_weights: Path) -> None:
    process = start(
        "benchmark", write_suite(Path("s.toml"), steps=5000), "--out", "out", start_new_session=True
    )
    wait_for(lambda: any(map(imports_torch, children(process.pid))), "a worker that imports")
    press_ctrl_c(process, lambda: Run.exists(workdir / "out" / CASE))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; the same command goes on from there"
    assert "Traceback" not in err
    assert Run.exists(workdir / "out" / CASE)  # the worker did not hear it


def imports_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def press_ctrl_c(process: subprocess.Popen[str], until: Callable[[], object]) -> None:
    """Ctrl-C reaches every process of a terminal; here the benchmark itself hears it last.

    It is given the time that it takes `until` something is so, or its workers have ended by themselves.
    """
    os.kill(process.pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: until() or not children(process.pid), "what the workers do on Ctrl-C")
    os.kill(process.pid, signal.SIGCONT)


def test_ctrl_c_while_a_process_is_started_comes_after_it() -> None:
    over, done = threading.Event(), []

    def start_one() -> None:
        with runner.interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # in which it comes
            done.append("started")

    other = threading.Thread(target=over.wait)  # the system may give the signal to any thread
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start_one()
    finally:
        over.set()
        other.join()
    assert done == ["started"]


def test_a_worker_forgets_ctrl_c_from_before_its_start_and_hears_its_own(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_work", work_on_ctrl_c)
    (case,) = load_suite(write_suite(Path("s.toml")))
    (workdir / "cases").mkdir()
    runner.run_local(workdir, [case], 1, Board(workdir, lambda line: None))
    assert (workdir / "heard").exists()


def work_on_ctrl_c(*given: Any) -> None:
    """In the place of the work of a case: Ctrl-C before it and within."""

    def hear(out: Path, case: Case) -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        (out / "heard").touch()

    runner.run_case = hear  # type: ignore[assignment]
    os.kill(os.getpid(), signal.SIGINT)
    runner._work(*given)


def children(parent: int) -> list[int]:
    """The processes that `parent` started to train in."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "spawn_main" in words:
            found.append(int(entry.name))
    return found


def test_a_line_of_progress_is_not_repeated(
    trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("oneshotgan.benchmark.board.EVERY", 0.0)
    shutil.copytree(trained_once, tmp_path / "case")
    with Board(tmp_path, said.append) as board:
        board.show(["case"])
        board.show(["case"])
        assert said == ["case: 8 steps, figures are measured"]
        stats = tmp_path / "case" / "stats.jsonl"
        stats.write_text("".join(stats.read_text().splitlines(keepends=True)[:5]))
        board.show(["case"])
    assert len(said) == 2
    assert said[1].startswith("case: step 5/8, ")
