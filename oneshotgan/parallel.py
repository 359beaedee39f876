"""Several processes that train one model: who one is among them, and what they do together.

``torchrun --nproc-per-node 2 -m oneshotgan train …`` starts them. The batch of a step is the whole group's:
every process draws the same random numbers for all of it, works on its own rows, and the gradients are
added up. So all processes hold the same weights, and the first alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oneshotgan.errors import UserError


@dataclass(frozen=True)
class Group:
    """The processes of a training; a single one does all of this at no cost.

    Attributes:
        rank: the place of this process, from 0.
        size: how many there are.
        local_rank: its place among those of its machine, which is the GPU it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Which rows of a batch are this process's: as equal parts as there can be.

        Raises:
            UserError: there are fewer rows than processes.
        """
        if batch_size < self.size:
            raise UserError(
                f"{self.size} processes cannot share a batch of {batch_size}: start fewer, or raise "
                "--batch-size"
            )
        return slice(*(batch_size * rank // self.size for rank in (self.rank, self.rank + 1)))

    @torch.no_grad()
    def mean_gradients(self, network: nn.Module, share: float) -> None:
        """Make every gradient the mean over the whole batch, of which this process had the share `share`."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) * share
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    @torch.no_grad()
    def mean(self, terms: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Scalars as their means over the whole batch."""
        if self.size == 1:
            return dict(terms)
        values = torch.stack([term.detach() for term in terms.values()]) * share
        dist.all_reduce(values)
        return dict(zip(terms, values.unbind(), strict=True))

    def agreed(self, flag: int) -> int:
        """The largest `flag` of all processes, so that all do the same; they wait here for one another."""
        if self.size == 1:
            return flag
        largest = torch.tensor(flag)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where one process fails within this context, the others end after it, and say nothing."""
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone already
                self.agreed(1)
            raise
        if self.agreed(0):
            raise SystemExit(2)


ALONE = Group()


def is_first() -> bool:
    """Whether this process is the first, or the only one, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """The group that torchrun started this process in, else `ALONE`.

    Args:
        device: that of the training, as asked for; on CUDA every process of a machine has a GPU of its own.

    Raises:
        UserError: there are more processes on this machine than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank + 1} of this machine has no GPU of its own, as there are "
                f"{torch.cuda.device_count()}: start fewer, or train with --device cpu"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Group(dist.get_rank(), size, local_rank)
    finally:
        dist.destroy_process_group()
