"""Which device, precision and threads a training uses, and why."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from oneshotgan import __version__, neighbours
from oneshotgan.config import MachineConfig
from oneshotgan.errors import UserError

CGROUP = "/sys/fs/cgroup"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of mallopt(3)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Machine:
    """What bit-equality depends on: the same values give the same weights."""

    device: str
    precision: str
    threads: int
    package: str
    torch: str
    processor: str
    deterministic: bool
    processes: int

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.device == "cpu" else ""
        together = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.device}, {self.precision}{threads}{together}"


def choose(
    settings: MachineConfig, precisions: Sequence[str] = ("bf16", "fp32"), processes: int = 1
) -> Machine:
    """Resolve ``auto`` to what this machine has.

    Args:
        precisions: those that the method can be trained in.
        processes: how many train the model together.

    Raises:
        UserError: CUDA was asked for and is not there, or a precision that the method cannot have.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found: leave out --device, or use --device cpu")
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if "bf16" in precisions and _has_fast_bf16(device) else "fp32"
    if precision not in precisions:
        raise UserError(f"this method is trained in {' or '.join(precisions)}: leave out --precision")
    return Machine(
        device=device,
        precision=precision,
        threads=settings.threads or fair_threads(),
        package=__version__,
        torch=torch.__version__,
        processor=torch.cuda.get_device_name() if device == "cuda" else processor(),
        deterministic=device == "cpu" or settings.deterministic,
        processes=processes,
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still get, as far as the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _number("/proc/meminfo", "MemAvailable:")
    ceiling, used = (_number(f"{CGROUP}/memory.{name}") for name in ("max", "current"))
    limits = [] if free is None else [1024 * free]
    if ceiling is not None and used is not None:
        cached = _number(f"{CGROUP}/memory.stat", "inactive_file ") or 0  # given back when it is needed
        limits.append(ceiling - used + cached)
    return min(limits, default=None)


def _number(path: str, label: str = "") -> int | None:
    """The first number after `label` in a file of the system, None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return int(file.read().partition(label)[2].split()[0] if label else file.read())
    except (OSError, ValueError, IndexError):  # another system, or no limit
        return None


def fair_threads() -> int:
    """This training's share of the cores, at least one."""
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun; they may not be there yet
    return max(1, available_cores() // max(siblings, 1 + neighbours.others()))


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def running_on(machine: Machine) -> Iterator[torch.device]:
    """Set PyTorch up for `machine` within the context, and put its settings back after it."""
    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(machine.threads)
    if machine.device == "cuda" and machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        with freed_memory_kept() if machine.device == "cpu" else nullcontext():
            yield torch.device(machine.device)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(algorithms)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context the process keeps the memory it frees, for the next tensor; glibc only.

    Else every large tensor is fresh memory from the system, which clears it page by page: a tenth of the
    time of a step at 192×320. It costs a tenth more memory.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # glibc adapts its thresholds until the first mallopt; these are where large tensors bring them.
        mallopt(_M_MMAP_MAX, 65536)
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
        malloc_trim(0)


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn running out of memory into a UserError that gives `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if known or any(sign in text for sign in _OUT_OF_MEMORY):
            raise UserError(f"out of memory: {advice}") from error
        raise


def _has_fast_bf16(device: str) -> bool:
    """Whether bf16 convolutions are quick: on a CPU, only with AMX or AVX512-BF16 instructions."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


def processor() -> str:
    """The name of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
