"""Pareto fronts of a cost against a value."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Return whether point a (cost, value) is as good as b in both, and better in one."""
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def dominators(points: Sequence[Point]) -> list[int]:
    """Return by how many of the points (cost, value) each is dominated; on the Pareto front by none."""
    return [sum(dominates(other, point) for other in points) for point in points]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the places of the points (cost, value) that no other dominates, from the lowest cost to the highest."""
    front = [i for i, count in enumerate(dominators(points)) if count == 0]
    return sorted(front, key=lambda i: points[i])
