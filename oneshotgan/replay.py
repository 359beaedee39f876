"""An update recorded once as a CUDA graph and replayed, so that a GPU does not wait for its launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # ordinary updates before one is recorded: libraries choose their algorithms in them

Losses = dict[str, Tensor]


class Inputs(Protocol):
    """What an update takes: tensors of shapes that never change."""

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""

    def to(self, device: torch.device) -> Any:
        """The same on `device`."""


Taken = TypeVar("Taken", bound=Inputs)


class Recorder(Protocol):
    """How an update is recorded; CUDA's is `CudaGraphs`."""

    def warm_up(self, work: Callable[[], Losses]) -> Losses:
        """Do `work` before it is recorded."""

    def record(self, work: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """Record `work` without doing it: where its losses will be, and what does it."""


class Replayed(Generic[Taken]):
    """Calls `update`: the first times as it is, then by replaying a recording of it.

    `update` must be a function of its inputs and of tensors that stay where they are, and must read nothing
    back from the device. Where it cannot be recorded it is called as it is, and that is told once.

    Args:
        notify: is given the line that says why nothing is recorded.
    """

    def __init__(
        self,
        update: Callable[[Taken], Losses],
        device: torch.device,
        recorder: Recorder,
        notify: Callable[[str], None],
    ) -> None:
        self.update, self.device, self.recorder, self.notify = update, device, recorder, notify
        self.possible = True
        self.forget()

    def forget(self) -> None:
        """Record anew: the tensors that `update` works on have been replaced."""
        self.calls = 0
        self.inputs: Taken | None = None
        self.replay: Callable[[], None] | None = None
        self.losses: Losses = {}

    def __call__(self, inputs: Taken) -> Losses:
        """One update. The losses are overwritten by the next one."""
        if self.replay is None and self.possible and self.calls == WARM_UP:
            self._record(inputs)
        if self.replay is not None and self.inputs is not None:
            for static, new in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
                static.copy_(pinned(new, self.device), non_blocking=True)
            self.replay()
            return self.losses
        self.calls += 1
        on_device = inputs.to(self.device)
        if not self.possible:
            return self.update(on_device)
        return self.recorder.warm_up(lambda: self.update(on_device))

    def _record(self, inputs: Taken) -> None:
        on_device = inputs.to(self.device)
        try:
            self.losses, self.replay = self.recorder.record(lambda: self.update(on_device))
            self.inputs = on_device
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.possible = False
            reason = str(error).strip().splitlines()[0]
            self.notify(
                f"the step cannot be replayed as a CUDA graph, so it is launched piece by piece: {reason}"
            )


class CudaGraphs:
    """Records on the current CUDA device."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], Losses]) -> Losses:
        """On a stream of its own, as the recording will be."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = work()
        current.wait_stream(self.stream)
        return losses

    def record(self, work: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """As a CUDA graph with memory of its own."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            losses = work()
        return losses, graph.replay


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, in memory from which a copy to `device` does not make the host wait."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
