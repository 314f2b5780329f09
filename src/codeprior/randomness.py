"""Random numbers that belong to what they are for, whatever was drawn before: no random state is ever kept."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Random numbers that belong to (seed, purpose, index): `index` is an epoch, a step, a part of a step, ..."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *index])
