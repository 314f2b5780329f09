"""A classifier of tiny digits, for the tests of what judges with it."""

from pathlib import Path

import pytest

from codeprior.config import TrainClassifierConfig
from codeprior.evaluation.classifier import train_classifier


@pytest.fixture(scope="session")
def classifier(tiny: Path) -> Path:
    folder = tiny / "classifier"
    train_classifier(
        TrainClassifierConfig(data=str(tiny / "digits.npz"), output=folder, steps=10, width=8, device="cpu")
    )
    return folder
