"""What ADM's evaluator does differently, for numbers that stand beside published ones: float16 distances, its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from codeprior.evaluation.manifold import NEIGHBOURS, TILE, check_sets, tiles

BLOCK = 10_000  # rows and columns of a block, which falls back to float32 as a whole
_NEVER_BEYOND = 16_000.0  # of squared lengths up to here no distance leaves float16, which ends at 65,504

# In the order and the words of the original's output.
_LINES = {
    "IS": "Inception Score",
    "FID": "FID",
    "sFID": "sFID",
    "precision": "Precision",
    "recall": "Recall",
}


def precision_and_recall_float16(
    reference: np.ndarray,
    samples: np.ndarray,
    neighbours: int = NEIGHBOURS,
    *,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Precision and recall as ADM's evaluator computes them: from squared distances in float16.

    The features are rounded to float16, and so is each step of |x|^2 - 2 x y + |y|^2; what comes out below 0 is 0. Many
    distances become equal that way, and a near miss counts as inside. A block of 10,000 x 10,000 distances one of which
    is beyond float16 is made in float32 instead. The radius is the (k + 1)-th smallest distance to all images of the
    set, the image itself included, which at this precision need not be the nearest.

    Parameters and errors are those of `manifold.precision_and_recall`.

    Notes
    -----
    Sums of products and of squares are taken in float32 and rounded once, as GPU libraries do; the original does not
    say. It may differ from the original's run in the last digit.

    References
    ----------
    Dhariwal and Nichol 2021, arXiv:2105.05233; openai/guided-diffusion, evaluations/evaluator.py.
    """
    reference, samples = np.asarray(reference), np.asarray(samples)
    check_sets(reference, samples, neighbours)
    real, made = _Halves(reference, device), _Halves(samples, device)
    real_radii, made_radii = (_radii(halves, neighbours) for halves in (real, made))
    precise, recalled = (torch.zeros(len(halves), dtype=torch.bool, device=device) for halves in (made, real))
    for rows, columns, sqdist, _ in _distances(real, made, symmetric=False):
        recalled[rows] |= (sqdist <= made_radii[columns]).any(dim=1)
        precise[columns] |= (sqdist <= real_radii[rows, None]).any(dim=0)
    return float(precise.double().mean()), float(recalled.double().mean())


class _Halves:
    """Features (N, F) in float32, the same rounded to float16, and their squared lengths in float16."""

    def __init__(self, features: np.ndarray, device: torch.device | str) -> None:
        self.full = torch.empty(features.shape, dtype=torch.float32, device=device)
        self.squares = torch.empty(len(features), dtype=torch.float16, device=device)
        for rows, _ in tiles(len(features), 1):
            self.full[rows] = torch.from_numpy(np.ascontiguousarray(features[rows], dtype=np.float32)).to(device)
            self.squares[rows] = self.rounded(rows).half().square().float().sum(dim=1).half()

    def __len__(self) -> int:
        return len(self.full)

    def rounded(self, rows: slice) -> Tensor:
        """Features of float16 precision, as float32: products of two are exact."""
        return self.full[rows].half().float()


def _radii(halves: _Halves, neighbours: int) -> Tensor:
    """The (k + 1)-th smallest squared distance of each row to all rows, float32 (N,)."""
    smallest = halves.full.new_full((len(halves), neighbours + 1), torch.inf)

    def keep(rows: slice, sqdist: Tensor) -> None:
        found = sqdist.topk(min(neighbours + 1, sqdist.shape[1]), largest=False, sorted=False).values
        both = torch.cat([smallest[rows], found], dim=1)
        smallest[rows] = both.topk(neighbours + 1, largest=False).values

    for rows, columns, sqdist, transposed in _distances(halves, halves, symmetric=True):
        keep(rows, sqdist)
        if transposed is not None:
            keep(columns, transposed)
    return smallest[:, -1]


def _distances(
    left: _Halves, right: _Halves, *, symmetric: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Squared distances in float32, tile by tile: rows, columns, (R, C) and, if wanted, the tile below the diagonal.

    The latter (C, R) is not the transpose: |x|^2 and |y|^2 are rounded in the other order.
    """
    for block_rows, block_columns in tiles(len(left), len(right), BLOCK):
        distance = _float32 if _falls_back(left, block_rows, right, block_columns) else _float16
        for rows, columns in _tiles_of(block_rows, block_columns):
            if symmetric and rows.start > columns.start:
                continue
            below = symmetric and rows.start < columns.start
            yield rows, columns, *distance(left, rows, right, columns, below)


def _tiles_of(block_rows: slice, block_columns: slice) -> Iterator[tuple[slice, slice]]:
    for rows, columns in tiles(block_rows.stop - block_rows.start, block_columns.stop - block_columns.start, TILE):
        yield _shifted(rows, block_rows.start), _shifted(columns, block_columns.start)


def _shifted(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)


def _falls_back(left: _Halves, rows: slice, right: _Halves, columns: slice) -> bool:
    """Whether a distance of a block is beyond float16."""
    lengths = [halves.squares[part].max() for halves, part in ((left, rows), (right, columns))]
    if max(map(float, lengths)) <= _NEVER_BEYOND:
        return False
    made = (_float16(left, r, right, c, False)[0] for r, c in _tiles_of(rows, columns))
    return not all(bool(sqdist.isfinite().all()) for sqdist in made)


def _float16(left: _Halves, rows: slice, right: _Halves, columns: slice, below: bool) -> tuple[Tensor, Tensor | None]:
    twice = torch.mm(left.rounded(rows), right.rounded(columns).T).half() * 2
    x, y = left.squares[rows], right.squares[columns]
    return _from_parts(x, twice, y), _from_parts(y, twice.T, x) if below else None


def _float32(left: _Halves, rows: slice, right: _Halves, columns: slice, below: bool) -> tuple[Tensor, Tensor | None]:
    a, b = left.full[rows], right.full[columns]
    twice = torch.mm(a, b.T) * 2
    x, y = a.square().sum(dim=1), b.square().sum(dim=1)
    return _from_parts(x, twice, y), _from_parts(y, twice.T, x) if below else None


def _from_parts(x: Tensor, twice: Tensor, y: Tensor) -> Tensor:
    """max(|x|^2 - 2 x y + |y|^2, 0), each step rounded to the parts' own precision."""
    return (x[:, None] - twice).add_(y).float().clamp_(min=0)


def scores_text(results: Mapping[str, float | None]) -> str:
    """Scores in the lines that ADM's evaluator prints; keys as in `_LINES`, absent ones are left out."""
    return "".join(f"{line}: {results[key]}\n" for key, line in _LINES.items() if results.get(key) is not None)
