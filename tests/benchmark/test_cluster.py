"""The same cases on a real Ray cluster of two nodes on this machine; a worker and a node are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, write_suite
from safetensors.numpy import load_file
from test_runner import step_of, wait_for

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

Start = Callable[..., subprocess.Popen[str]]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
STEPS = 40
NAMES = [f"clip-image-{method}-seed{seed}" for method in ("oneshot", "singan") for seed in (0, 1)]


@pytest.fixture(scope="module")
def cluster(random_weights: Path) -> Iterator[Any]:
    """The head of a cluster, with one CPU; tests add nodes. Its processes see the random weights."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        yield made
        made.shutdown()


def tasks() -> dict[int, int]:
    """The Ray workers on this machine that have a case: pid -> pid of their node."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_text().startswith("ray::_task"):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def write_time(out: Path, name: str) -> int:
    """When the snapshot of step 2 was written."""
    return (out / name / "snapshots" / "step-000002.safetensors").stat().st_mtime_ns


def test_a_worker_and_a_node_that_die_cost_the_steps_since_the_last_checkpoint(
    cluster: Any, workdir: Path, start: Start, command: Command, with_weights: Path
) -> None:
    often = {"snapshot_every": 2}
    suite = write_suite(Path("s.toml"), {"oneshot": often, "singan": often}, steps=STEPS, seeds=[0, 1])
    out = workdir / "ray"
    second = cluster.add_node(**NODE)
    process = start("benchmark", suite, "--out", "ray", "--ray", cluster.address)
    try:
        wait_for(lambda: len([name for name in NAMES if step_of(out / name) >= 4]) == 2, "two running cases")
        running = [name for name in NAMES if step_of(out / name) >= 4]
        written = {name: write_time(out, name) for name in running}
        reached = {name: step_of(out / name) for name in running}

        # A worker is killed: its case goes on from its checkpoint.
        raylet = next(p.process.pid for p in second.all_processes["raylet"])
        workers = tasks()
        (there,) = [pid for pid, parent in workers.items() if parent == raylet]
        (here,) = workers.keys() - {there}
        os.kill(here, signal.SIGKILL)
        wait_for(lambda: all(step_of(out / name) > reached[name] for name in running), "steps of both cases")
    finally:
        # The second node is killed with all it runs.
        cluster.remove_node(second, allow_graceful=False)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count(": finished") == 4
    for name in running:
        assert write_time(out, name) == written[name], "the case began anew"

    # And the results are those of the local run.
    assert command("benchmark", suite, "--out", "local", "--workers", 2).code == 0
    for name in NAMES:
        ours, theirs = out / name, workdir / "local" / name
        lines = [json.loads(line)["step"] for line in (ours / "stats.jsonl").read_text().splitlines()]
        assert lines == list(range(1, STEPS + 1))
        weights = [load_file(run / "model" / "model.safetensors") for run in (ours, theirs)]
        assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[1])
        figures = [json.loads((run / "metrics.json").read_text())["figures"] for run in (ours, theirs)]
        assert figures[0] == figures[1]


def test_a_node_that_sees_another_folder_is_one_clear_error(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start, with_weights: Path
) -> None:
    # The path of the output means another folder in a process that works elsewhere.
    for name in ("one", "other"):
        (tmp_path / name / "out" / "cases").mkdir(parents=True)
    write_suite(tmp_path / "s.toml")
    monkeypatch.chdir(tmp_path / "other")
    elsewhere = cluster.add_node(**NODE)
    monkeypatch.chdir(tmp_path / "one")
    try:
        words = ("benchmark", tmp_path / "s.toml", "--out", "/proc/self/cwd/out", "--ray", cluster.address)
        process = start(*words)
        out, err = process.communicate(timeout=60)
    finally:
        cluster.remove_node(elsewhere, allow_graceful=False)
    assert process.returncode == 2
    assert out == ""
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: node ")
    assert "does not see the same folder /proc/self/cwd/out: --out must lie on storage that all" in error
    assert not list((tmp_path / "one" / "out").glob("clip-*"))


def test_no_cluster_is_one_clear_error(workdir: Path, start: Start, with_weights: Path) -> None:
    process = start("benchmark", write_suite(Path("s.toml")), "--out", "out", "--ray", "127.0.0.1:1")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith("error: no Ray cluster answers at 127.0.0.1:1")
