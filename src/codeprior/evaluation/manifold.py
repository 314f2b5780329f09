"""Precision and recall: how many samples lie among the real images, and how much of the real images they cover."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from codeprior.errors import InputError

NEIGHBOURS = 3  # of precision and recall, in the paper and in ADM's evaluator
TILE = 2048  # rows and columns of the distances that are held at a time: 16 MB, what a processor's caches hold
SPARE = 5  # neighbours kept beyond the k nearest, in case rounding confused their order
_EXACT_BYTES = 1 << 27


def precision_and_recall(
    reference: np.ndarray,
    samples: np.ndarray,
    neighbours: int = NEIGHBOURS,
    *,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Improved precision and recall, exactly.

    An image lies on a set's manifold if it is no farther from one of its images than that one's `neighbours`-th nearest
    other image of the set. Precision is the share of samples on the reference's manifold, recall the share of the
    reference on that of the samples.

    Parameters
    ----------
    reference, samples : ndarray of shape (N, F) and (M, F)
        More than `neighbours` rows each; may be mapped from disk. Not modified.
    neighbours : int
        3 in the paper and in ADM's evaluator.
    device : device
        Where the products are made.

    Returns
    -------
    precision, recall : float
        Both grow or fall with the numbers of images, so only scores with equal N and M compare.

    Raises
    ------
    InputError
        If the sets do not have the same features, or too few rows.

    Notes
    -----
    Distances are compared in float64 wherever float32 products leave a doubt; an image at a radius is inside. Each
    distance is made once: F (N^2 + M^2 + 2 N M) operations. Memory is that of both sets in float32 and some tiles.
    ADM's evaluator rounds squared distances to float16, see `adm.precision_and_recall_float16`.

    References
    ----------
    Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1-2.
    """
    reference, samples = np.asarray(reference), np.asarray(samples)
    check_sets(reference, samples, neighbours)
    centre = reference.mean(axis=0, dtype=np.float64)  # shorter vectors, smaller errors
    real, made = _Points(reference, centre, device), _Points(samples, centre, device)
    real_radii, made_radii = (squared_radii(points, neighbours) for points in (real, made))
    return _coverage(real, real_radii, made, made_radii)


def check_sets(reference: np.ndarray, samples: np.ndarray, neighbours: int) -> None:
    """Refuse sets that have no precision and recall."""
    for name, features in (("reference", reference), ("samples", samples)):
        if features.ndim != 2 or len(features) <= neighbours or features.shape[1] != reference.shape[1]:
            raise InputError(
                f"precision and recall need more than {neighbours} rows of equal features, got {features.shape} of the "
                f"{name} (reference: {reference.shape})"
            )


def tiles(n_rows: int, n_columns: int, side: int = TILE) -> Iterator[tuple[slice, slice]]:
    """Squares that cover a matrix."""
    for row in range(0, n_rows, side):
        for column in range(0, n_columns, side):
            yield slice(row, min(row + side, n_rows)), slice(column, min(column + side, n_columns))


class _Points:
    """Features (N, F): as they are, for exact distances, and centred in float32 on a device, for quick ones."""

    def __init__(self, features: np.ndarray, centre: np.ndarray, device: torch.device | str) -> None:
        self.features = features
        self.x = torch.empty(features.shape, dtype=torch.float32, device=device)
        for rows, _ in tiles(len(features), 1):
            self.x[rows] = torch.from_numpy((features[rows] - centre).astype(np.float32)).to(device)
        self.squares = torch.linalg.vecdot(self.x, self.x)
        self.longest = float(self.squares.max())

    def __len__(self) -> int:
        return len(self.features)

    def margin(self, other: _Points) -> float:
        """No approximate squared distance to another set is farther off than this.

        Of the sums of F products: F 2^-24 of the lengths; the rest covers the other roundings.
        """
        return 2.0**-23 * (self.x.shape[1] + 16) * (self.longest + other.longest)

    def approximate(self, rows: slice | Tensor, other: _Points, columns: slice) -> Tensor:
        """Squared distances (R, C), float32."""
        products = torch.mm(self.x[rows], other.x[columns].T)
        return products.mul_(-2).add_(self.squares[rows, None]).add_(other.squares[columns])

    def exact(self, rows: np.ndarray, other: _Points, columns: np.ndarray) -> np.ndarray:
        """Squared distances of pairs (P,), float64."""
        exact = np.empty(len(rows))
        step = max(1, _EXACT_BYTES // (8 * self.x.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            left, right = (torch.from_numpy(f) for f in (self.features[rows[some]], other.features[columns[some]]))
            exact[some] = left.double().sub_(right).square_().sum(dim=1).numpy()
        return exact


def squared_radii(points: _Points, neighbours: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest other point, float64 (N,)."""
    n_kept = min(neighbours + SPARE, len(points) - 1)
    sqdist, columns = _nearest(points, n_kept)
    radii = _kth_exact(points, np.arange(len(points)), sqdist, columns, neighbours)
    if n_kept < len(points) - 1:
        in_doubt = sqdist[:, -1] <= sqdist[:, neighbours - 1] + 2 * points.margin(points)
        for rows in in_doubt.nonzero()[:, 0].split(max(1, TILE * TILE // len(points))):
            radii[rows.cpu().numpy()] = _kth_of_all(points, rows, neighbours)
    return radii


def _nearest(points: _Points, n_kept: int) -> tuple[Tensor, Tensor]:
    """Approximate squared distances to the nearest other points, ascending, and their numbers: (N, n_kept) both.

    A tile above the diagonal serves its rows, and transposed its columns.
    """
    sqdist = points.x.new_full((len(points), n_kept), torch.inf)
    columns = torch.zeros(sqdist.shape, dtype=torch.int64, device=sqdist.device)

    def keep(rows: slice, tile: Tensor, first_column: int) -> None:
        found, where = tile.topk(min(n_kept, tile.shape[1]), largest=False, sorted=False)
        both = torch.cat([sqdist[rows], found], dim=1)
        numbers = torch.cat([columns[rows], where + first_column], dim=1)
        sqdist[rows], order = both.topk(n_kept, largest=False)
        columns[rows] = numbers.gather(1, order)

    for rows, others in tiles(len(points), len(points)):
        if rows.start > others.start:
            continue
        tile = points.approximate(rows, points, others)
        if rows == others:
            tile.fill_diagonal_(torch.inf)
        else:
            keep(others, tile.T.contiguous(), rows.start)
        keep(rows, tile, others.start)
    return sqdist, columns


def _kth_of_all(points: _Points, rows: Tensor, k: int) -> np.ndarray:
    """`squared_radii` of some rows, from their distances to all points."""
    sqdist = points.approximate(rows, points, slice(None))
    sqdist[torch.arange(len(rows)), rows] = torch.inf
    columns = torch.arange(len(points), device=rows.device).expand_as(sqdist)
    return _kth_exact(points, rows.cpu().numpy(), sqdist, columns, k)


def _kth_exact(points: _Points, rows: np.ndarray, sqdist: Tensor, columns: Tensor, k: int) -> np.ndarray:
    """The k-th smallest exact squared distance of each row, of candidates with approximate ones (R, C).

    What lies more than two margins below the k-th approximate distance is nearer, what lies as much above is farther;
    only those between are measured.
    """
    kth = sqdist.kthvalue(k, dim=1, keepdim=True).values
    below = sqdist < kth - 2 * points.margin(points)
    between = (sqdist <= kth + 2 * points.margin(points)) & ~below
    row = between.nonzero()[:, 0].cpu().numpy()
    exact = points.exact(rows[row], points, columns[between].cpu().numpy())
    order = np.lexsort((exact, row))
    first = np.searchsorted(row[order], np.arange(len(rows)))
    return exact[order][first + k - 1 - below.sum(dim=1).cpu().numpy()]


def _coverage(real: _Points, real_radii: np.ndarray, made: _Points, made_radii: np.ndarray) -> tuple[float, float]:
    """Share of the second set on the manifold of the first, and of the first on that of the second."""
    precision, recall = _Manifold(real, real_radii, made), _Manifold(made, made_radii, real)
    for rows, columns in tiles(len(made), len(real)):
        sqdist = made.approximate(rows, real, columns)
        precision.add(sqdist, rows, columns)
        recall.add(sqdist.T, columns, rows)
    return float(precision.inside.mean()), float(recall.inside.mean())


class _Manifold:
    """Balls around centres, and which of the queries lie in one."""

    def __init__(self, centres: _Points, squared_radii: np.ndarray, queries: _Points) -> None:
        self.centres, self.queries = centres, queries
        self.exact_radii = squared_radii
        self.radii = torch.from_numpy(squared_radii.astype(np.float32)).to(centres.x.device)
        self.margin = centres.margin(queries) + 2.0**-23 * float(squared_radii.max())  # radii are rounded too
        self.inside = np.zeros(len(queries), dtype=bool)

    def add(self, sqdist: Tensor, queries: slice, centres: slice) -> None:
        """Learn from approximate squared distances (Q, C); what is in doubt is measured exactly."""
        beyond = sqdist - self.radii[centres]
        nearest = beyond.amin(dim=1).cpu().numpy()
        inside = self.inside[queries]
        inside |= nearest < -self.margin
        doubtful = np.flatnonzero(~inside & (nearest <= self.margin))
        if len(doubtful):
            pairs = (beyond[torch.from_numpy(doubtful).to(beyond.device)].abs() <= self.margin).nonzero().cpu().numpy()
            query, centre = doubtful[pairs[:, 0]] + queries.start, pairs[:, 1] + centres.start
            hits = self.queries.exact(query, self.centres, centre) <= self.exact_radii[centre]
            self.inside[query[hits]] = True
