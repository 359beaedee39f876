"""Evenly spread indices."""

from __future__ import annotations


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, the first and the last among them."""
    number = min(count, most)
    if number < 2:
        return [0] * number
    step = (count - 1) / (number - 1)
    return [round(index * step) for index in range(number - 1)] + [count - 1]
