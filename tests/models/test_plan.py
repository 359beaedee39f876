"""The plan: known sizes, the released rule's values, and laws over a wide grid."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oneshotgan.errors import UserError
from oneshotgan.models.plan import limit_size, make_plan


def test_the_papers_clip_size() -> None:
    plan = make_plan(limit_size((480, 854), max_size=330, short_size=None))
    assert (plan.height, plan.width) == (192, 320)
    assert (plan.noise_height, plan.noise_width) == (3, 5)
    assert plan.blocks == 7
    assert plan.generator_widths == (256, 256, 256, 256, 256, 128, 64, 32)
    assert plan.low_level_widths == (32, 64, 128, 256)  # three blocks before branching (section 2)
    assert plan.branch_blocks == 4  # four for each branch (section 2)


@pytest.mark.parametrize(
    ("size", "trained", "blocks"),
    [
        ((32, 32), (32, 32), 4),
        ((33, 200), (32, 192), 4),
        ((64, 640), (64, 640), 5),
        ((100, 180), (96, 176), 5),
        ((128, 128), (128, 128), 6),
        ((330, 185), (320, 192), 7),
        ((1024, 1024), (1024, 1024), 9),
        ((64, 71), (56, 64), 4),  # 4×4 noise would bend the aspect by 11 %
    ],
)
def test_sizes_that_the_released_program_cannot_train(size, trained, blocks) -> None:
    plan = make_plan(size)
    assert ((plan.height, plan.width), plan.blocks) == (trained, blocks)


@settings(max_examples=1000, deadline=None)
@given(st.integers(32, 1792), st.floats(1, 16), st.booleans())
def test_every_size_keeps_its_shape(short: int, aspect: float, upright: bool) -> None:
    long = int(short * aspect)
    size = (long, short) if upright else (short, long)
    plan = make_plan(size)
    factor = 2 ** (plan.blocks - 1)
    assert (plan.height, plan.width) == (plan.noise_height * factor, plan.noise_width * factor)
    ratio = (plan.width / plan.height) / (size[1] / size[0])
    assert 1 / 1.1 - 1e-9 <= ratio <= 1.1 + 1e-9
    assert 3 <= min(plan.noise_height, plan.noise_width) <= 7
    again = make_plan((plan.height, plan.width))
    assert (again.height, again.width) == (plan.height, plan.width)
    assert 0.7 < min(plan.height, plan.width) / short < 1.35


@settings(max_examples=1000, deadline=None)
@given(st.integers(32, 1792), st.floats(1, 16), st.integers(32, 1200))
def test_a_limited_size_keeps_the_shape_of_its_source(short: int, aspect: float, limit: int) -> None:
    size = (short, int(short * aspect))
    plan = make_plan(limit_size(size, limit, None), aspect=size[1] / size[0])
    ratio = (plan.width / plan.height) / (size[1] / size[0])
    assert 1 / 1.1 - 1e-9 <= ratio <= 1.1 + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.integers(32, 1792), st.integers(32, 1792))
@example(32, 196)  # half way between two noise sizes
def test_a_turned_image_gets_the_turned_plan(height: int, width: int) -> None:
    if max(height, width) > 16 * min(height, width):
        return
    plan, turned = make_plan((height, width)), make_plan((width, height))
    assert (plan.height, plan.width) == (turned.width, turned.height)


@pytest.mark.parametrize("size", [(31, 64), (1, 1), (32, 513), (2000, 2000)])
def test_what_lies_beyond_is_refused(size) -> None:
    with pytest.raises(UserError):
        make_plan(size)


def test_limits_scale_down_only_and_spare_the_short_side() -> None:
    assert limit_size((480, 854), 330, None) == (185, 330)
    assert limit_size((480, 854), None, 64) == (64, 114)
    assert limit_size((40, 50), 330, 64) == (40, 50)
    assert limit_size((100, 1600), 330, None) == (32, 512)  # a strip: the short side stays trainable
    assert limit_size((100, 1600), 1000, None) == (62, 992)  # 62×1000 would be beyond 16:1
    assert limit_size((20, 20), 330, None) == (20, 20)


def test_widths_are_multiples_of_the_base_width() -> None:
    narrow, wide = make_plan((64, 80), 16), make_plan((64, 80), 32)
    assert [2 * w for w in narrow.generator_widths] == list(wide.generator_widths)
    assert wide.generator_widths == (256, 256, 256, 128, 64, 32)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (64, 80), (192, 320), (1024, 1024)])
def test_the_branching_can_be_moved_and_the_discriminators_blocks_stay(size, blocks: int) -> None:
    plan, moved = make_plan(size), make_plan(size, low_level_blocks=blocks)
    assert moved.low_level_blocks == blocks
    assert moved.low_level_blocks + moved.branch_blocks == plan.low_level_blocks + plan.branch_blocks
    assert moved.low_level_widths[-1] == moved.branch_widths[0]
    assert moved.generator_widths == plan.generator_widths
