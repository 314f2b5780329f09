"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.npz, tokenizer, codes, heldout and prior.safetensors; read only, please."""
    import tiny as artifacts

    return artifacts.make(tmp_path_factory.mktemp("tiny"))
