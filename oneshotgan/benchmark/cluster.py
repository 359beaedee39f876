"""The cases of a suite as tasks of a Ray cluster, whose scheduler does the rest."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshotgan.benchmark.board import Board
from oneshotgan.benchmark.case import fail, known, run_case
from oneshotgan.benchmark.suite import Case
from oneshotgan.errors import UserError
from oneshotgan.files import write_text
from oneshotgan.machine import available_cores
from oneshotgan.perceptual.weights import VARIABLE

POLL = 1.0  # seconds between looks at the running cases
RETRIES = 10  # of a case whose worker or node was lost; it goes on from its last checkpoint
KNOCK_SECONDS = 10.0  # that a cluster has to answer
PROBE_SECONDS = 120.0  # that a node has to answer
MARKER = Path("cases") / ".marker"


def run_on_ray(
    out: Path, cases: Sequence[Case], address: str, gpus: float | None, board: Board
) -> dict[str, str]:
    """Each case as a task with one CPU and `gpus` GPUs; gives the failures by the cases' names.

    Args:
        out: on storage that every node sees under the same path.
        address: of a running cluster, or "auto".
        gpus: per case; None for 1 where the cluster has any.

    Raises:
        UserError: Ray is not installed, no cluster answers, or a node does not see `out`.
    """
    ray = _connected(address)
    try:
        token = uuid.uuid4().hex
        write_text(out / MARKER, token)
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        timed = any(case.seconds is not None for case in cases)
        if timed and 0 < gpus < 1:
            raise UserError("the suite counts seconds, and cases would share a GPU: --gpus 1 or more")
        _check_nodes(ray, out, token, timed)
        return _run(ray, out, cases, token, gpus, board)
    finally:
        ray.shutdown()  # ends the tasks that still run


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'oneshotgan[ray]'") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error
    return ray


def _knock(address: str) -> None:
    """Raise an OSError or ValueError if nothing listens there; Ray itself would try for minutes."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def _check_nodes(ray: Any, out: Path, token: str, timed: bool) -> None:
    """Let every node read the marker file.

    Raises:
        UserError: one does not see it; or it has fewer cores than Ray CPUs, and time counts.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in [node for node in ray.nodes() if node["Alive"]]:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_probe).options(num_cpus=0, scheduling_strategy=here)
        name = f"node {node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        try:
            problem, cores = ray.get(task.remote(out, token), timeout=PROBE_SECONDS)
        except ray.exceptions.RayError as error:
            raise UserError(f"{name} cannot run oneshotgan: {error}") from error
        if problem is not None:
            raise UserError(f"{name}: {problem}")
        slots = int(node["Resources"].get("CPU", 0))
        if timed and slots > cores:
            raise UserError(f"the suite counts seconds, and {name} offers {slots} CPUs on {cores} cores")


def _run(ray: Any, out: Path, cases: Sequence[Case], token: str, gpus: float, board: Board) -> dict[str, str]:
    task = ray.remote(_task).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
    weights = os.environ.get(VARIABLE)
    running = {task.remote(out, case, token, weights): case for case in cases}
    failures: dict[str, str] = {}
    while running:
        board.show([case.name for case in running.values() if "node" in known(out, case.name)])
        done, _ = ray.wait(list(running), timeout=POLL)
        for result in done:
            case = running.pop(result)
            try:
                reason = ray.get(result)
            except ray.exceptions.RayError as error:
                reason = fail(out, case, f"Ray lost it: {error}")
            if reason:
                failures[case.name] = reason
            board.line(f"{case.name}: {f'failed: {reason}' if reason else 'finished'}")
    return failures


# --- on the nodes ---


def _probe(out: Path, token: str) -> tuple[str | None, int]:
    """Whether this node sees the benchmark's folder, and its cores."""
    return _not_shared(out, token), available_cores()


def _task(out: Path, case: Case, token: str, weights: str | None) -> str | None:
    """One case; see `run_case`. A node that came later has not been asked for the marker yet."""
    if problem := _not_shared(out, token):
        return problem
    if weights is not None:
        os.environ[VARIABLE] = weights
    return run_case(out, case)


def _not_shared(out: Path, token: str) -> str | None:
    try:
        if (out / MARKER).read_text(encoding="utf-8") == token:
            return None
    except OSError:
        pass
    return f"does not see the same folder {out}: --out must lie on storage that all nodes share"
