"""Started by torchrun in test_parallel.py: two steps of a method; each process writes its state."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_parallel import method_of

from oneshotgan.parallel import joined

if __name__ == "__main__":
    name, diversity, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with joined() as group:
        method = method_of(name, diversity, group)
        losses = [method.step(step) for step in (1, 2)][-1]
        torch.save({"state": method.state(), "losses": losses}, folder / f"rank-{group.rank}.pt")
