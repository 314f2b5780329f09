"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: models of this size gain nothing from a second thread, and threads that wait for each other
# on busy cores make a test fifty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.npz, tokenizer, codes, heldout and prior.safetensors; read only, please."""
    import tiny as artifacts

    return artifacts.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer that saw clusters for a few steps."""
    from codeprior.config import TrainConfig
    from codeprior.training.loop import train

    output = tmp_path_factory.mktemp("checkpoint") / "gpt"
    prior = tiny / "prior.safetensors"
    train(TrainConfig(codes=tiny / "codes", prior=prior, output=output, steps=10, batch_size=16, device="cpu"))
    return output
