"""The cases of a suite, on local processes or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from oneshotgan.benchmark.board import Board
from oneshotgan.benchmark.case import enter, fail, finished, known, note, read, recorded, run_case
from oneshotgan.benchmark.suite import Case, load_suite
from oneshotgan.errors import UserError, UserErrors
from oneshotgan.files import storage_errors
from oneshotgan.machine import available_cores
from oneshotgan.perceptual import weights
from oneshotgan.run import Run

POLL = 1.0  # seconds between looks at the running cases
VISIBLE = "CUDA_VISIBLE_DEVICES"
GRACE = 30.0  # seconds in which a process that is to end may write its checkpoint


def run_suite(
    suite: Path | str,
    out: Path | str,
    data: Path | str | None = None,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    gpus: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train and measure every case of a suite into ``out/<case>/``; what is finished is skipped.

    Args:
        suite: a TOML file, or the name of one that comes with the package.
        out: an existing folder.
        data: the folder below which the sources lie.
        workers: processes on this machine at a time.
        ray_address: of a Ray cluster to use instead.
        gpus: per case, on the cluster; None for 1 where it has any.
        say: told the progress, line by line.

    Raises:
        UserError: no such suite, mistakes in it, other cases of the same names in `out`, missing weights.
        UserErrors: cases failed; one line for each, after all others were done.
    """
    out = Path(out).absolute()
    cases = load_suite(suite, data)
    _check_workers(workers, cases)
    _check_weights(cases, say)
    with storage_errors(out):
        (out / "cases").mkdir(exist_ok=True)
    try:
        lock = FileLock(out / "cases" / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"another benchmark writes {out}: wait for it, or choose another --out") from None
    with lock:
        failures = _put_on_record(out, cases)
        waiting = [case for case in cases if not finished(out, case)]
        say(f"{len(cases)} cases, {len(cases) - len(waiting)} of them finished: {out}")
        waiting = [case for case in waiting if case.name not in failures]
        for case in waiting:
            note(out, case, node=None, failure=None, traceback=None)  # of an earlier start
        with Board(out, say) as board:
            try:
                if ray_address is None:
                    failures |= run_local(out, waiting, workers, board)
                else:
                    from oneshotgan.benchmark.cluster import run_on_ray

                    failures |= run_on_ray(out, waiting, ray_address, gpus, board)
            except KeyboardInterrupt:
                board.line("stopped; the same command goes on from there")
                raise
    if failures:
        raise UserErrors([f"{name}: {reason}" for name, reason in failures.items()])


def _check_workers(workers: int, cases: Sequence[Case]) -> None:
    if workers < 1:
        raise UserError(f"--workers must be 1 or more, not {workers}")
    if all(case.seconds is None for case in cases):
        return
    limits = [(available_cores(), "core")]
    if visible_gpus() and any(case.overrides.get("device") != "cpu" for case in cases):
        limits.append((len(visible_gpus()), "GPU"))
    most, what = min(limits)
    if workers > most:
        raise UserError(
            f"the suite counts seconds, and {workers} workers would share {most} {what}{'s' * (most > 1)}: "
            f"--workers {most} at most"
        )


def _check_weights(cases: Sequence[Case], say: Callable[[str], None]) -> None:
    """All missing weights are told now, not after hours; without VGG16 the other methods can be trained."""
    wanted = [weights.INCEPTION_TORCHVISION, weights.ALEXNET]
    if any(case.method == "fastgan" and case.overrides.get("reconstruction", True) for case in cases):
        wanted.append(weights.VGG16)
    missing = {}
    for file in wanted:
        try:
            weights.find(file)
        except UserError as error:
            missing[file.name] = str(error)
    if missing.keys() - {weights.VGG16.name}:
        raise UserErrors(list(missing.values()))
    for line in missing.values():
        say(f"cases of FastGAN will fail: {line}")


def visible_gpus() -> list[str]:
    """The CUDA devices of this process, each as CUDA_VISIBLE_DEVICES names it."""
    if not torch.cuda.is_available():
        return []
    count, named = torch.cuda.device_count(), os.environ.get(VISIBLE)
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def _put_on_record(out: Path, cases: Sequence[Case]) -> dict[str, str]:
    """Write the record of each case that has none, or another one but no run; only if all is well.

    Returns:
        By its name, what is wrong with the record of a case, which cannot go on for that.

    Raises:
        UserError: the folder belongs to another suite.
        UserErrors: it has a run of the same name and other facts.
    """
    old, damaged = dict[str, dict[str, Any]](), dict[str, str]()
    for name in recorded(out):
        try:
            old[name] = read(out, name)["facts"]
        except UserError as error:
            damaged[name] = str(error)
    for facts in old.values():
        suite = facts.get("suite", cases[0].suite)
        if suite != cases[0].suite:
            raise UserError(f"{out} belongs to the suite {suite}: choose another --out")
    changed, mistakes = [], []
    for case in cases:
        facts, was = case.facts(), old.get(case.name, {})
        if case.name in damaged or was == facts:
            continue
        changed.append(case)
        if was and Run.exists(out / case.name):
            name = next(n for n in facts if was.get(n) != facts[n])
            mistakes.append(
                f"{case.name}: {out} has it with {name} {was.get(name)}, not {facts[name]}: "
                "choose another --out"
            )
    if mistakes:
        raise UserErrors(mistakes)
    for case in changed:
        enter(out, case)
    return {case.name: damaged[case.name] for case in cases if case.name in damaged}


# --- local processes ---


def run_local(out: Path, cases: Sequence[Case], workers: int, board: Board) -> dict[str, str]:
    """Each case in a process of its own, `workers` at a time; gives the failures by the cases' names.

    A fresh process per case: none has another one's memory, and one that is killed is one case's loss.
    Where there are several GPUs, a process sees one of them, and they are shared out evenly.
    """
    spawn = multiprocessing.get_context("spawn")
    devices = visible_gpus()
    places = [devices[index % len(devices)] if len(devices) > 1 else None for index in range(workers)]
    waiting, failures = list(reversed(cases)), dict[str, str]()
    running: dict[SpawnProcess, tuple[Case, str | None]] = {}
    try:
        while waiting or running:
            while waiting and places:
                case, gpu = waiting.pop(), places.pop(0)
                process = spawn.Process(target=_work, args=(out, case, gpu), name=case.name)
                with interrupts_held():
                    process.start()
                    running[process] = case, gpu
            board.show([case.name for case, _ in running.values()])
            connection.wait([process.sentinel for process in running], timeout=POLL)
            for process in [process for process in running if not process.is_alive()]:
                case, gpu = running.pop(process)
                places.append(gpu)
                if reason := _ended(out, case, process.exitcode):
                    failures[case.name] = reason
                board.line(f"{case.name}: {f'failed: {reason}' if reason else 'finished'}")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(GRACE)
            process.kill()
    return failures


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within this context Ctrl-C waits, and a process that is started begins with it waiting.

    Its imports take a second, in which it still belongs to the group of the benchmark: Ctrl-C reaches both.
    """
    here = threading.current_thread() is threading.main_thread()
    if not (here and hasattr(signal, "pthread_sigmask")):
        yield
        return
    resource_tracker.ensure_running()  # started with the first process, it would end the wait
    came: list[int] = []  # by way of another thread
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _release_interrupts() -> None:
    """In a process of a case: forget a Ctrl-C that waits, which was for the benchmark; hear later ones."""
    if hasattr(signal, "pthread_sigmask"):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, handler)


def _ended(out: Path, case: Case, code: int | None) -> str | None:
    """Why the process of a case ended before the case was finished; None if it was."""
    if code == 0 and finished(out, case):
        return None
    if code == 0:
        return known(out, case.name).get("failure") or fail(out, case, "it ended unfinished")
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return fail(out, case, f"its process {how}; the same command goes on from its last checkpoint")


def _work(out: Path, case: Case, gpu: str | None) -> None:
    """What the process of a case does; `gpu` is the only one that it sees, None for all."""
    if gpu is not None:
        os.environ[VISIBLE] = gpu  # CUDA reads it when it is first asked for a device
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C goes to the benchmark, which ends this process in good order
    _release_interrupts()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_case(out, case)


def _end_with_parent() -> None:
    """When the benchmark is killed, stop training as if asked to: with a checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
