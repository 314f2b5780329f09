"""A folder with every kind of artifact, as a run of the demo leaves it, but of models that saw ten batches."""

from pathlib import Path

import pytest

from codeprior.config import (
    EvaluateConfig,
    ExtractConfig,
    LikelihoodConfig,
    ReconstructConfig,
    SampleConfig,
    TrainClassifierConfig,
    TrainConfig,
)
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.judge import evaluate
from codeprior.extract import extract
from codeprior.generation.sample import sample
from codeprior.likelihood import likelihood
from codeprior.reconstruct import reconstruct
from codeprior.training.loop import train


@pytest.fixture(scope="session")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for name in ("tokenizer", "codes", "heldout"):
        (folder / name).symlink_to(tiny / name)
    priors = {name: folder / "priors" / f"{name}.safetensors" for name in ("kmeans", "dcpe")}
    for method, path in priors.items():
        extract(ExtractConfig(codebook=tiny / "tokenizer", method=method, output=path))
    digits, heldout, cnn = str(tiny / "digits.npz"), str(tiny / "heldout.npz"), folder / "classifier"
    train_classifier(TrainClassifierConfig(data=digits, heldout=heldout, output=cnn, steps=5, width=4, device="cpu"))
    reconstruct(
        ReconstructConfig(
            data=heldout,
            tokenizer=tiny / "tokenizer",
            priors=tuple(priors.values()),
            features=str(cnn),
            n_seeds=2,
            output=folder / "replacement",
            device="cpu",
        )
    )
    for name in ("token", "kmeans", "dcpe"):
        train(
            TrainConfig(
                codes=tiny / "codes",
                heldout_codes=tiny / "heldout",
                prior=priors.get(name),
                steps=20,
                batch_size=8,
                validate_every=10,
                output=folder / "models" / name,
                device="cpu",
            )
        )
        samples = folder / "samples" / name
        sample(
            SampleConfig(
                checkpoint=folder / "models" / name,
                tokenizer=tiny / "tokenizer",
                n_images=16,
                output=samples,
                device="cpu",
            )
        )
        evaluate(
            EvaluateConfig(
                samples=samples,
                reference=heldout,
                baseline=digits,
                features=str(cnn),
                output=folder / "evaluations" / name,
                device="cpu",
            )
        )
        likelihood(
            LikelihoodConfig(
                checkpoint=folder / "models" / name,
                codes=tiny / "heldout",
                output=folder / "likelihoods" / name,
                device="cpu",
            )
        )
    return folder
