"""Series over the steps of a training, ready to draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from oneshotgan.spread import spread

CURVE_POINTS = 300
CURVE_SIZE = (300.0, 90.0)  # width and height of a curve, in the units of its drawing


@dataclass(frozen=True)
class Curve:
    """One series over the steps, ready to draw: the points of a polyline, and what the axes say."""

    name: str
    points: str
    low: float
    high: float
    first: int
    last: int
    value: float


def curves(stats: list[dict[str, Any]]) -> list[Curve]:
    """One curve for each loss, and for each figure measured during training."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in stats:
        losses = {
            k: v for k, v in line.items() if k not in ("step", "seconds", "images_per_second", "figures")
        }
        figures = line.get("figures")
        for name, value in (losses | (figures if isinstance(figures, dict) else {})).items():
            if isinstance(value, int | float):
                series.setdefault(name, []).append((line["step"], value))
    return [_curve(name, points) for name, points in series.items()]


def _curve(name: str, points: list[tuple[int, float]]) -> Curve:
    values = [value for _, value in points]
    low, high, first, last = min(values), max(values), points[0][0], points[-1][0]
    width, height = CURVE_SIZE

    def place(step: int, value: float) -> str:
        x = width * (step - first) / max(last - first, 1)
        y = height * (1 - (value - low) / ((high - low) or 1))
        return f"{x:.1f},{y:.1f}"

    drawn = " ".join(place(*point) for point in _thinned(points))
    return Curve(name, drawn, low, high, first, last, values[-1])


def _thinned(points: list[tuple[int, float]]) -> Iterable[tuple[int, float]]:
    """At most `CURVE_POINTS` points, the first and the last among them."""
    chosen = spread(len(points), CURVE_POINTS)
    return (points[i] for i in chosen)
