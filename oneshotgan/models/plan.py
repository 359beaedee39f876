"""From image size to architecture, as a pure function: how many blocks, how wide, how small the noise.

The generator starts at the noise size and doubles it in every block but the first, so the size it
trains at is ``noise · 2^(L−1)``. The plan chooses L and the noise size so that this is as near to the
wanted size as the rule allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from oneshotgan.errors import UserError

Size = tuple[int, int]  # (height, width) in pixels

MIN_SIDE = 32  # pixels; the shortest side that can be trained
MAX_ASPECT = 16.0  # long side over short side
ASPECT_TOLERANCE = 0.10  # how far the trained aspect may be from the source's
NOISE_SIDE = range(3, 8)  # the noise side that the plan aims at, in noise pixels
MAX_BLOCKS = 9

# Channel multiples of the base width. A generator of L blocks takes the last L + 1.
GENERATOR_MULTIPLES = (8, 8, 8, 8, 8, 8, 8, 4, 2, 1)
DISCRIMINATOR_MULTIPLES = (1, 2, 4, 8, 8, 8, 8, 8, 8)
# L -> (discriminator blocks in all, of which low-level); the released program's table, and L = 4.
DISCRIMINATOR_BLOCKS = {4: (5, 2), 5: (6, 2), 6: (7, 3), 7: (7, 3), 8: (7, 4), 9: (8, 4)}


@dataclass(frozen=True)
class Plan:
    """The architecture for one training size; see `make_plan`."""

    height: int
    width: int
    noise_height: int
    noise_width: int
    generator_widths: tuple[int, ...]  # channels before the first block, then after each block: L + 1
    low_level_widths: tuple[int, ...]  # channels before the first low-level block, then after each
    branch_widths: tuple[int, ...]  # channels of the content branch: at its start, then after each block

    @property
    def blocks(self) -> int:
        """L, the number of generator blocks."""
        return len(self.generator_widths) - 1

    @property
    def low_level_blocks(self) -> int:
        """Discriminator blocks before the branching; also the number of image scales D reads."""
        return len(self.low_level_widths) - 1

    @property
    def branch_blocks(self) -> int:
        """Blocks of each of the two branches, content and layout."""
        return len(self.branch_widths) - 1


def make_plan(
    size: Size, base_width: int = 32, aspect: float | None = None, low_level_blocks: int = 0
) -> Plan:
    """Plan the networks for an image of about `size` (height, width).

    The trained size, ``(plan.height, plan.width)``, keeps the aspect within 10 %, and planning for it
    again gives the same size. The released program's rule is taken where it works, else the short-side
    rule; a rule that keeps `size` as it is comes before one that changes it.

    Args:
        aspect: width / height to keep, where `size` is a rounded one; that of `size` if None.
        low_level_blocks: how many of the discriminator's blocks come before the branching, 1 to 4, and so how
            many scales it reads; 0 for the number that belongs to L.

    Raises:
        UserError: a side below 32 px, an aspect beyond 16:1, or a short side above 1,792 px.
    """
    check_size(size)
    aspect = aspect or size[1] / size[0]
    rules = [
        rule for rule in (_released_rule(size, aspect), _short_side_rule(size, aspect)) if rule is not None
    ]
    exact = [
        rule
        for rule in rules
        if all(n * 2 ** (rule[0] - 1) == side for n, side in zip(rule[1], size, strict=True))
    ]
    blocks, (noise_height, noise_width) = (exact or rules)[0]
    total, low_level = DISCRIMINATOR_BLOCKS[blocks]
    low_level = low_level_blocks or low_level
    generator = GENERATOR_MULTIPLES[-(blocks + 1) :]
    discriminator = DISCRIMINATOR_MULTIPLES[: total + 1]
    return Plan(
        height=noise_height * 2 ** (blocks - 1),
        width=noise_width * 2 ** (blocks - 1),
        noise_height=noise_height,
        noise_width=noise_width,
        generator_widths=tuple(base_width * m for m in generator),
        low_level_widths=tuple(base_width * m for m in discriminator[: low_level + 1]),
        branch_widths=tuple(base_width * m for m in discriminator[low_level:]),
    )


def limit_size(size: Size, max_size: int | None, short_size: int | None) -> Size:
    """Scale `size` down so that its long side is at most `max_size` and its short side `short_size`.

    Nothing is enlarged, and the short side is not taken below 32 px: the limit gives way first.
    """
    height, width = size
    short, long = min(size), max(size)
    scale = min(1.0, (max_size or long) / long, (short_size or short) / short)
    scale = max(scale, min(1.0, MIN_SIDE / short))
    height, width = round(height * scale), round(width * scale)
    if long <= MAX_ASPECT * short:  # rounding must not make a strip of it that cannot be trained
        most = int(MAX_ASPECT) * min(height, width)
        height, width = min(height, most), min(width, most)
    return height, width


def check_size(size: Size) -> None:
    """Raise a UserError if a photo of `size` cannot be trained on."""
    height, width = size
    short, long = min(size), max(size)
    if short < MIN_SIDE:
        raise UserError(f"{width}x{height} pixels are too few: the short side must be {MIN_SIDE} px or more")
    if long > MAX_ASPECT * short:
        raise UserError(
            f"{width}x{height} pixels is too narrow a strip: crop it to {MAX_ASPECT:.0f}:1 at most"
        )
    largest = NOISE_SIDE[-1] * 2 ** (MAX_BLOCKS - 1)
    if short > largest:
        raise UserError(
            f"{width}x{height} pixels are too many: lower --max-size (short side at most {largest} px)"
        )


def _released_rule(size: Size, aspect: float) -> tuple[int, Size] | None:
    """The released program's choice, where it keeps both noise sides in 3…7 and the aspect.

    L is the smallest count by which each side, at that or a smaller count, has fitted into 3…7 once.
    """
    waiting = set(size)
    for blocks in range(1, MAX_BLOCKS + 1):
        noise = _noise(size, blocks)
        waiting = {side for side in waiting if round(side / 2 ** (blocks - 1)) not in NOISE_SIDE}
        if not waiting:
            known = blocks in DISCRIMINATOR_BLOCKS
            fits = all(side in NOISE_SIDE for side in noise) and _keeps(aspect, noise)
            return (blocks, noise) if known and fits else None
    return None


def _short_side_rule(size: Size, aspect: float) -> tuple[int, Size]:
    """The short noise side in 3…7 by the smallest L that does it, the long side free, the aspect kept.

    The noise's short side is the exact one rounded down or up, whichever is nearer to the wanted size;
    where neither keeps the aspect (64×71: 4×4), one step further is allowed (7×8).
    """
    for reach in (0, 1):
        for blocks in sorted(DISCRIMINATOR_BLOCKS):
            exact = min(size) / 2 ** (blocks - 1)
            shorts = range(math.floor(exact) - reach, math.ceil(exact) + reach + 1)
            pairs = [
                (short, _nearest(short * max(aspect, 1 / aspect))) for short in shorts if short in NOISE_SIDE
            ]
            noises = [pair if aspect >= 1 else pair[::-1] for pair in pairs]
            kept = [noise for noise in noises if _keeps(aspect, noise)]
            if kept:
                return blocks, min(kept, key=lambda noise: abs(min(noise) - exact))
    raise AssertionError(f"no plan for {size}")  # the sizes let through by check_size all have one


def _nearest(side: float) -> int:
    """The nearest whole number, a half going up, even if arithmetic missed it: turned images plan alike."""
    return math.floor(side + 0.5 + 1e-9)


def _noise(size: Size, blocks: int) -> Size:
    return round(size[0] / 2 ** (blocks - 1)), round(size[1] / 2 ** (blocks - 1))


def _keeps(aspect: float, noise: Size) -> bool:
    """Whether `noise` is within the tolerance of `aspect` (width / height)."""
    if min(noise) == 0:
        return False
    ratio = (noise[1] / noise[0]) / aspect
    return max(ratio, 1 / ratio) - 1 <= ASPECT_TOLERANCE
