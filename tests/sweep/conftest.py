"""A small sweep: two scales of guidance by two seeds, judged by a classifier that saw digits for a few steps."""

from pathlib import Path
from typing import Any

import pytest

from codeprior.config import SweepConfig, TrainClassifierConfig
from codeprior.evaluation.classifier import train_classifier
from codeprior.sweep.sweep import sweep


@pytest.fixture(scope="session")
def judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "judge"
    train_classifier(
        TrainClassifierConfig(data=str(tiny / "digits.npz"), output=folder, steps=10, width=8, device="cpu")
    )
    return folder


@pytest.fixture(scope="session")
def settings(tiny: Path, checkpoint: Path, judge: Path) -> dict[str, Any]:
    return {
        "over": ("cfg-scale=1,3", "seed=0,1"),
        "sample": (f"checkpoint={checkpoint}", f"tokenizer={tiny / 'tokenizer'}", "n-images=24"),
        "evaluate": (f"reference={tiny / 'heldout.npz'}", f"features={judge}", "n-resamples=4"),
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def swept(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("swept") / "sweep"
    return output, sweep(SweepConfig(**settings, output=output))
