"""codeprior: put the codebook's knowledge of which tokens look alike to work in autoregressive image generation.

The prior half (`Codebook`, `CodebookPrior`, `DCPE`, `average_linkage`) needs NumPy and numba and imports without torch;
the rooms that need torch are imported by name: `codeprior.model`, `codeprior.training`, `codeprior.generation`, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codeprior.version import VERSION

if TYPE_CHECKING:
    from codeprior.clustering.estimator import DCPE
    from codeprior.clustering.linkage import average_linkage
    from codeprior.codebook import Codebook
    from codeprior.prior import CodebookPrior

__version__ = VERSION

_HOMES = {
    "Codebook": "codeprior.codebook",
    "CodebookPrior": "codeprior.prior",
    "DCPE": "codeprior.clustering.estimator",
    "average_linkage": "codeprior.clustering.linkage",
}

__all__ = ["DCPE", "Codebook", "CodebookPrior", "__version__", "average_linkage"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import codeprior` stays quick."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'codeprior' has no attribute {name!r}")
