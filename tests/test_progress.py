"""What a training says on stderr, and that no training ends for want of a listener."""

import io

import pytest
from rich.console import Console

from oneshotgan.progress import Reporter


class Failing(io.StringIO):
    """A stream whose other end is closed, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_plain_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    with Reporter(stream=stream) as reporter:
        reporter.line("photo [red] :cat: one\ntwo")
        reporter.progress(50, 4500, 10.0, {"loss_G": 3.0})
    first, second = stream.getvalue().splitlines()
    assert first == "photo [red] :cat: one two"
    assert second == "step 50/4500  10.00 steps/s  7:25 left  loss_G 3.000"


def test_time_left_is_told_only_where_the_pace_will_stay() -> None:
    stream = io.StringIO()
    with Reporter(stream=stream) as reporter:
        reporter.progress(50, 4500, 10.0, {"loss_G": 3.0}, steady=False)
    assert stream.getvalue() == "step 50/4500  10.00 steps/s  loss_G 3.000\n"


def test_a_terminal_shows_the_time_left_of_a_run_that_goes_on() -> None:
    stream = io.StringIO()
    with Reporter() as reporter:
        reporter.console = Console(file=stream, force_terminal=True, width=200)
        reporter.progress(501, 4500, 0.5, {"loss_G": 3.0}, steady=False)  # a sign of life: no pace is known
        assert "left" not in stream.getvalue()
        reporter.progress(550, 4500, 10.0, {"loss_G": 3.0})
    assert "6:35 left" in stream.getvalue()
    assert "10.00 steps/s" in stream.getvalue()


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with Reporter(quiet=True, stream=stream) as reporter:
        reporter.line("something")
        reporter.progress(1, 2, 1.0, {})
    assert stream.getvalue() == ""


@pytest.mark.parametrize("error", [BrokenPipeError(32, "broken pipe"), OSError(28, "no space left")])
def test_a_stream_that_fails_is_given_up(error: OSError) -> None:
    with Reporter(stream=Failing(error)) as reporter:
        reporter.line("one")
        reporter.progress(1, 2, 1.0, {"loss_G": 1.0})
    assert reporter.console.quiet
