"""Device, precision, threads; and memory errors in one line."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oneshotgan import machine
from oneshotgan.config import MachineConfig
from oneshotgan.errors import UserError
from oneshotgan.machine import choose, memory_errors, running_on


def test_auto_is_resolved_and_recorded() -> None:
    chosen = choose(MachineConfig(threads=3))
    assert (chosen.device, chosen.threads) == ("cpu", 3)
    assert chosen.precision in ("fp32", "bf16")
    assert chosen.torch == torch.__version__
    assert chosen.deterministic
    assert str(choose(MachineConfig(threads=1, precision="fp32"))) == "cpu, fp32, 1 thread"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        choose(MachineConfig(device="cuda"))


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with running_on(choose(MachineConfig(threads=before + 1))) as device:
        assert torch.get_num_threads() == before + 1
        assert device == torch.device("cpu")
    assert torch.get_num_threads() == before


def test_memory_that_only_caches_files_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP", str(tmp_path))
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert machine.available_memory(torch.device("cpu")) == 100
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\nactive_file 200\n")
    assert machine.available_memory(torch.device("cpu")) == 400
    (tmp_path / "memory.max").write_text("max\n")
    free = machine.available_memory(torch.device("cpu"))
    assert free is None or free > 1000


FAULTS = """
import resource, torch
from oneshotgan.machine import freed_memory_kept

def faults():
    counts = []
    for _ in range(24):  # the heap settles within eight: rests of an alignment keep freed blocks apart
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(33 * 2**18).fill_(1)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)

def resident():
    return int(open("/proc/self/statm").read().split()[1])

print(faults())
with freed_memory_kept():
    print(faults(), resident())
print(resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_within_the_context_and_only_there() -> None:
    """Pages the system had to provide for 33 MB, allocated and freed again and again; and those held."""
    words = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    outside, inside, held, afterwards = (int(word) for word in printed.split())
    assert inside < outside / 10
    assert afterwards < held - outside / 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_errors_become_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match="out of memory: lower it"), memory_errors("lower it"):
        raise error


def test_other_errors_stay_themselves() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors("lower it"):
        raise RuntimeError("shape mismatch")
