# mypy: disallow-untyped-defs=False
"""Compiled loops over rows, given arrays that they fill. No allocation policy, no checks: the drivers see to those.

Every sum has one order, written here and independent of the thread that runs it: no ``fastmath``, which would let the
compiler reassociate sums and thereby change which pair merges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

njit: Any = numba.njit
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(function: Kernel) -> Any:
    """Compile `function` without the interpreter lock, and keep the machine code on disk where there is a place."""
    return _compiled(function)


def lean_kernel(function: Kernel) -> Any:
    """Compile a `kernel` that allocates nothing: then arrays need no reference counts, which cost more than a search.

    Their counting is atomic, and numba does not see that it could be spared for arrays in named tuples.
    """
    return _compiled(function, _nrt=False)


def part(function: Kernel) -> Any:
    """Compile `function` into the kernels that call it: a call would hand over each array by its seven values."""
    inlined = {"_nrt": False, "forceinline": True, "no_cpython_wrapper": True}
    return njit(**_OPTIONS, **inlined)(function)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    options = {**_OPTIONS, **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return njit(**options)(function)


@kernel
def tie_rounded(distance):
    """Round to 41 significant bits (Veltkamp's splitting), so that distances equal but for rounding are equal."""
    t = distance * 4097.0
    return t - (t - distance)


@kernel
def mutual_pairs(nearest, partner):
    """Mark ``partner[i] = j`` for all i, j that are each other's nearest, else -1; return the number of pairs."""
    n_pairs = 0
    for i in range(len(nearest)):
        j = nearest[i]
        if j >= 0 and nearest[j] == i:
            partner[i] = j
            if i < j:
                n_pairs += 1
        else:
            partner[i] = -1
    return n_pairs


@kernel
def assemble(low, high, heights, n_codes, order, Z):
    """Write merges of representatives, taken in `order`, as SciPy's linkage matrix; return False if they cannot be.

    A merge is named by the lowest codes of its two clusters. `order` is invalid where a merge comes before one that
    made its child: then nothing sensible is in `Z`.
    """
    last = np.full(n_codes, -1)  # of each representative: the last merge that it took part in, as first made
    before_low = np.empty(len(low), dtype=np.int64)
    before_high = np.empty(len(low), dtype=np.int64)
    for t in range(len(low)):
        before_low[t] = last[low[t]]
        before_high[t] = last[high[t]]
        last[low[t]] = t
    done = np.zeros(len(low), dtype=np.bool_)
    cluster = np.arange(n_codes)
    size = np.ones(n_codes)
    for step in range(len(Z)):
        t = order[step]
        if (before_low[t] >= 0 and not done[before_low[t]]) or (before_high[t] >= 0 and not done[before_high[t]]):
            return False
        done[t] = True
        i = low[t]
        j = high[t]
        Z[step, 0] = min(cluster[i], cluster[j])
        Z[step, 1] = max(cluster[i], cluster[j])
        Z[step, 2] = heights[t]
        size[i] += size[j]
        Z[step, 3] = size[i]
        cluster[i] = n_codes + step
    return True
