"""How far the axes of point clouds go, so that several are drawn on the same ones."""

from typing import Any

import numpy as np

Limits = float | tuple[tuple[float, float], tuple[float, float]]  # of a square about 0, or of x and of y


def common_limit(clouds: Any) -> float:
    """Half the side of a square about 0 that holds all but a few outliers of each cloud."""
    return max(1.15 * float(np.quantile(np.abs(np.asarray(points)[:, :2]), 0.998)) for points in clouds)


def common_ranges(clouds: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """For each of the first two coordinates the range that holds all but a few outliers of the clouds."""
    ends = [np.quantile(np.asarray(points, float)[:, :2], [0.002, 0.998], axis=0) for points in clouds]
    low, high = np.min([e[0] for e in ends], axis=0), np.max([e[1] for e in ends], axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    ranges = [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]
    return ranges[0], ranges[1] if len(ranges) > 1 else (-1.0, 1.0)
