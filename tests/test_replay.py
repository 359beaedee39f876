"""Recording and replaying an update: the same training, and a way back where it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from oneshotgan import config
from oneshotgan.methods.oneshot import OneShot
from oneshotgan.replay import WARM_UP, Losses, Replayed

CPU = torch.device("cpu")
STEPS = 8


class Repeats:
    """Stands in for CUDA graphs: the recording is the work itself, its losses lie where they lay."""

    def __init__(self, error: Exception | None = None) -> None:
        self.leave_behind: Callable[[], None] = lambda: None  # what a recording that failed has changed
        self.error, self.warmed, self.recorded, self.replayed = error, 0, 0, 0

    def warm_up(self, work: Callable[[], Losses]) -> Losses:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        self.recorded += 1
        if self.error is not None:
            self.leave_behind()
            raise self.error
        losses = {name: torch.zeros(()) for name in OneShot.loss_names}

        def replay() -> None:
            self.replayed += 1
            for name, loss in work().items():
                losses[name].copy_(loss)

        return losses, replay


def method(device: torch.device = CPU, precision: str = "fp32", **overrides: object) -> OneShot:
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4} | overrides)
    frames = np.random.default_rng(0).integers(0, 256, (7, 32, 48, 3), dtype=np.uint8)
    return OneShot(settings, frames, device, precision)


def replayed(recorder: Repeats, notify: Callable[[str], None] = print, **settings: object) -> OneShot:
    made = method(**settings)
    made.replayed = Replayed(made.update, CPU, recorder, notify)
    return made


def train(made: OneShot, first: int = 1, last: int = STEPS) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in made.step(step).items()} for step in range(first, last + 1)]


def same(one: OneShot, other: OneShot) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(one.generate([0]), other.generate([0]))


@pytest.mark.parametrize("settings", [{}, {"constant_rate_steps": 2, "augment_ramp_steps": 20}], ids=str)
def test_replaying_trains_the_same_bit_for_bit(settings: dict[str, object]) -> None:
    """What changes with the step, the rates too, reaches a recorded step."""
    recorder = Repeats()
    one, other = replayed(recorder, **settings), method(**settings)
    assert train(one) == train(other)
    assert same(one, other)
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (WARM_UP, 1, STEPS - WARM_UP)


def test_after_loading_a_state_it_is_recorded_anew() -> None:
    recorder = Repeats()
    one, other = replayed(recorder), method()
    train(one, last=5)
    train(other, last=5)
    state = copy.deepcopy(other.state())
    train(one, 6, 7)  # leaves the common path, and comes back
    one.load_state(state)
    assert train(one, 6, 12) == train(other, 6, 12)
    assert same(one, other)
    assert (recorder.warmed, recorder.recorded) == (2 * WARM_UP, 2)


def test_where_it_cannot_be_recorded_it_is_launched_and_that_is_told_once() -> None:
    told: list[str] = []
    recorder = Repeats(RuntimeError("operation not permitted when stream is capturing\nmore"))
    one, other = replayed(recorder, told.append), method()

    def uncomputed_gradients() -> None:
        for weights in (one.weights_G, one.weights_D):
            for prepared in weights.prepared:
                prepared.kernel.grad = torch.full_like(prepared.kernel, torch.nan)
        for parameter in (*one.G.parameters(), *one.D.parameters()):
            parameter.grad = torch.full_like(parameter, torch.nan)

    recorder.leave_behind = uncomputed_gradients
    assert train(one) == train(other)
    assert same(one, other)
    assert told == [
        "the step cannot be replayed as a CUDA graph, so it is launched piece by piece: "
        "operation not permitted when stream is capturing"
    ]
    one.load_state(other.state())
    train(one, STEPS + 1, STEPS + 5)
    assert len(told) == recorder.recorded == 1


def test_out_of_memory_is_no_reason_to_go_on() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(replayed(Repeats(torch.OutOfMemoryError("CUDA out of memory"))))


# --- less memory ---


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_activations_trains_the_same_bit_for_bit(precision: str) -> None:
    one, other = method(precision=precision, recompute="on"), method(precision=precision, recompute="off")
    assert one.G.recompute
    assert not other.G.recompute
    assert train(one, last=3) == train(other, last=3)
    assert same(one, other)


@pytest.mark.parametrize(("free", "expected"), [(10**12, False), (10**6, True), (None, False)])
def test_activations_are_recomputed_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, free: int | None, expected: bool
) -> None:
    monkeypatch.setattr("oneshotgan.methods.oneshot.available_memory", lambda device: free)
    told: list[str] = []
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4})
    made = OneShot(settings, np.zeros((1, 32, 48, 3), np.uint8), CPU, "fp32", told.append)
    assert made.G.recompute is made.D.low_level.recompute is expected
    assert len(told) == expected


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["on", "off"])
def test_a_cuda_graph_trains_as_launches_do(precision: str, recompute: str) -> None:
    told: list[str] = []
    device = torch.device("cuda")
    one = method(device, precision, recompute=recompute)
    other = method(device, precision, recompute=recompute, cuda_graphs=False)
    assert one.replayed is not None
    one.replayed.notify = told.append
    for ours, theirs in zip(train(one), train(other), strict=True):
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=0.02, abs=0.01), name
    assert one.replayed.replay is not None
    assert told == []
