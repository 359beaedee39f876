"""What every result under ``benchmarks/results/`` says of where it comes from."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from oneshotgan.machine import available_cores, processor

ROOT = Path(__file__).resolve().parents[1]


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions and commit; a commit with changes beside it ends in ``+``."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown" if words[0] == "rev-parse" else done.stdout.strip()
