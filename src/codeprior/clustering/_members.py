"""The members of clusters and the means of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._matrix import Clusters

SAMPLE = 1024  # points that the origin and the scale of means are taken from


@dataclass
class Members:
    """The points of the clusters: those of cluster c are ``points[bounds[c]:bounds[c + 1]]``."""

    points: np.ndarray  # (n, E), sorted by cluster
    weights: np.ndarray  # (n,)
    bounds: np.ndarray  # (clusters + 1,)


@dataclass
class Means:
    """The means of clusters, about a point among them."""

    mean: np.ndarray  # float64 (clusters, E)
    origin: np.ndarray  # float64 (E,)
    largest: float  # coordinate of a member about the origin
    scale: float  # that makes them coordinates of a tree

    @classmethod
    def of(cls, members: Members, clusters: Clusters) -> Means:
        """Return those of some clusters."""
        points = members.points
        origin = np.median(points[:: -(-len(points) // SAMPLE)], axis=0).astype(np.float64)
        mean = points - origin
        largest = float(max(mean.max(), -mean.min()))
        if len(points) > len(clusters):
            sums = np.add.reduceat(mean * members.weights[:, None], members.bounds[:-1], axis=0)
            mean = sums / clusters.weights[:, None]
        # Tree coordinates: most of them within one unit, the rest cut off at four. Cutting off is a projection, which
        # makes distances smaller, so they stay lower bounds; and float32 then has room for the many.
        some = np.abs(mean[:: -(-len(mean) // SAMPLE)]).max(axis=1)
        return cls(mean, origin, largest, scale=1.0 / (float(np.quantile(some, 0.95)) or largest or 1.0))


def concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return arange(s, s + n) for each start s and length n, one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))
