"""Tokens replaced by random ones of their clusters: the priors of a test, and what each makes of an image's codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codeprior.errors import InputError
from codeprior.prior import CodebookPrior


def name_priors(paths: tuple[Path, ...]) -> dict[str, CodebookPrior]:
    """Load priors, each by its file's name, or by its path where two names are equal."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    reserved = {"none", "original", "reconstruction"}
    if len(set(names)) < len(names) or reserved & set(names):
        raise InputError(f"the priors of a test need names of their own, got {', '.join(names)}")
    return {name: CodebookPrior.load(path) for name, path in zip(names, paths, strict=True)}


@dataclass(frozen=True)
class Variant:
    """A way of decoding: the codes as they are, or each replaced within its cluster by the seed's random numbers."""

    name: str
    prior: CodebookPrior | None = None
    seed: tuple[int, ...] = ()

    def codes(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """What the codes (B, T) of the images with these numbers become; it does not depend on the other images."""
        if self.prior is None:
            return codes
        shape = codes.shape[1:]
        uniforms = np.stack([np.random.default_rng([*self.seed, int(number)]).random(shape) for number in numbers])
        return self.prior.pick_tokens_at(self.prior.token_to_cluster[codes], uniforms)
