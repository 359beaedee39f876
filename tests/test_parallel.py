"""Several processes train one model: the update of one process on the whole batch; the first writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import TINY, scene
from torch import Tensor

from oneshotgan import config, losses
from oneshotgan.errors import UserError
from oneshotgan.methods import METHODS
from oneshotgan.parallel import ALONE, Group, joined
from oneshotgan.run import Run

HERE = Path(__file__).parent
BATCH = 5  # two rows for the first process, three for the second
SETTINGS: dict[str, dict[str, Any]] = {
    "oneshot": {"base_width": 4, "feature_augment_probability": 0.0},
    "fastgan": {"base_width": 4, "noise_dim": 8, "reconstruction": False},
}


def method_of(name: str, diversity: float, group: Group = ALONE) -> Any:
    """A method of small networks in float64, on a made clip."""
    given = SETTINGS[name] | {"batch_size": BATCH}
    if name == "oneshot":
        given |= {"diversity_weight": diversity}
    settings = config.with_overrides(config.preset("preview", name), given)
    frames = np.stack([scene(32, 40, seed) for seed in range(7)])
    return METHODS[name](settings, frames, torch.device("cpu"), "fp64", print, group)


def torchrun(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*program, *map(str, words)], capture_output=True, text=True, timeout=200, env=environment, cwd=cwd
    )


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return {path: t for key, entry in entries for path, t in tensors(entry, f"{name}/{key}").items()}


def two_processes(name: str, diversity: float, folder: Path) -> list[dict[str, Any]]:
    outcome = torchrun(HERE / "parallel_update.py", name, diversity, folder)
    assert outcome.returncode == 0, outcome.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("diversity", [0.0, 0.4])
def test_two_processes_make_the_update_of_one(
    diversity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eq. 1 sees the pairs within each process's rows, each process weighted by its share of the batch."""
    first, second = two_processes("oneshot", diversity, tmp_path)
    alone = method_of("oneshot", diversity)
    whole = losses.diversity

    def within(features: list[Tensor], squash: bool = True) -> Tensor:
        parts = [whole([f[rows] for f in features], squash) for rows in (slice(2), slice(2, 5))]
        return 2 / 5 * parts[0] + 3 / 5 * parts[1]

    monkeypatch.setattr(losses, "diversity", within)
    expected = [alone.step(step) for step in (1, 2)][-1]
    ours, plain = tensors(first["state"]), tensors(alone.state())
    assert ours.keys() == plain.keys()
    for name in plain:  # weights, moments of Adam, moving average, the vectors of the spectral norms
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-9, atol=1e-12, msg=name)
    for name, value in expected.items():
        torch.testing.assert_close(first["losses"][name], value, rtol=1e-9, atol=0)
    others = tensors(second["state"])
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_fastgan_keeps_its_processes_together(tmp_path: Path) -> None:
    first, second = (tensors(part["state"]) for part in two_processes("fastgan", 0.0, tmp_path))
    kept = [name for name in first if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in kept)


def test_torchrun_trains_one_model_that_goes_on(photo: Path, workdir: Path) -> None:
    words = ("-m", "oneshotgan", "train", photo, *TINY, "--out", "run", "--checkpoint-every", 2)
    outcome = torchrun(*words, "--steps", 4)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split() == ["run"]
    assert outcome.stderr.count("finished 4 steps") == 1
    assert "2 processes" in outcome.stderr
    outcome = torchrun(*words, "--steps", 6)
    assert outcome.returncode == 0, outcome.stderr
    assert "going on from step 4" in outcome.stderr
    run = Run.open("run")
    assert [machine["processes"] for machine in run.record["machines"]] == [2]
    assert run.checkpoint_steps()[-1] == 6
    assert [line["step"] for line in run.stats()] == [4, 6]
    assert torchrun(*words, "--steps", 6).returncode == 0  # it is finished: no process waits for another


def test_rows_are_equal_parts_of_the_batch_and_none_is_empty() -> None:
    parts = [Group(rank, 3).rows(8) for rank in range(3)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(8))
    assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1
    with pytest.raises(UserError, match="cannot share"):
        Group(0, 3).rows(2)


def test_what_cannot_be_divided_is_refused() -> None:
    settings = config.with_overrides(config.preset("preview"), {"batch_size": 3})
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"eq\. 1"):
            METHODS["oneshot"].check(settings, Group(rank, 2))
    with pytest.raises(UserError, match="one image at a time"):
        METHODS["singan"].check(config.preset("preview", "singan"), Group(0, 2))
    settings = config.with_overrides(config.preset("preview", "fastgan"), {"reconstruction": False})
    with pytest.raises(UserError, match="cannot share"):
        METHODS["fastgan"].check(settings, Group(0, 9))


@pytest.mark.parametrize("norm", ["paper", "released"])
def test_the_strength_of_eq_1_does_not_depend_on_the_processes(norm: str) -> None:
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4, "diversity_norm": norm})
    frames = scene(32, 40)[None]
    made = [
        METHODS["oneshot"](settings, frames, torch.device("cpu"), "fp32", print, group)
        for group in (ALONE, Group(0, 2), Group(1, 2))
    ]
    assert len({method._diversity_strength for method in made}) == 1


def test_a_refusal_is_one_line_and_leaves_no_run(photo: Path, workdir: Path) -> None:
    outcome = torchrun("-m", "oneshotgan", "train", photo, "--batch-size", 3, "--out", "run")
    assert outcome.returncode != 0
    ours = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1
    assert "start fewer" in ours[0]
    assert "Connection closed" not in outcome.stderr
    assert not Path("run").exists()


def test_all_processes_go_on_from_the_same_checkpoint(photo: Path, workdir: Path) -> None:
    """The first chooses; where another cannot read that one, all end before a step is made."""
    words = ("-m", "oneshotgan", "train", photo, *TINY, "--out", "run", "--checkpoint-every", 2)
    assert torchrun(*words, "--steps", 4).returncode == 0
    Path("one.py").write_text(
        "import os, sys\n"
        "from oneshotgan import cli\n"
        "from oneshotgan.errors import UserError\n"
        "from oneshotgan.run import Run\n"
        "read = Run.read_checkpoint\n"
        "def failing(self, step, device):\n"
        "    if os.environ['RANK'] == '1' and step == 4:\n"
        "        raise UserError('this process cannot read it')\n"
        "    return read(self, step, device)\n"
        "Run.read_checkpoint = failing\n"
        "cli.main()\n"
    )
    outcome = torchrun("one.py", *words[2:], "--steps", 6)
    assert outcome.returncode != 0
    assert "error: this process cannot read it" in outcome.stderr
    assert Run.open("run").checkpoint_steps()[-1] == 4


def test_a_gpu_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="GPU of its own"), joined():
        pass
    backends: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", backends.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined("cpu") as group:
        assert (group.rank, group.size) == (1, 2)
    assert backends == ["gloo"]
