"""That compilation is told once, and only where there is any."""

from __future__ import annotations

import numba

from codeprior.clustering.compilation import compilation_told


def test_compilation_is_told_once_and_before_it_begins():
    told = []

    @numba.njit
    def double(x):
        return 2 * x

    with compilation_told(lambda: told.append(len(double.signatures))):
        assert double(1) == 2
        assert double(1.5) == 3.0
    assert told == [0]
    with compilation_told(lambda: told.append("again")):
        assert double(1) == 2
    assert told == [0]
