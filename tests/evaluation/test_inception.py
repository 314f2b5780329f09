import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.evaluation.inception import InceptionFeatures
from recorded import inception_images, inception_weight, save_zip

GOLDEN = Path(__file__).parent.parent / "golden" / "inception_io.npz"


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def weights(recorded: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of torch-fidelity, with the weights of its names."""
    path = tmp_path_factory.mktemp("inception") / "random-inception.pth"
    shapes = dict(zip(recorded["names"], map(json.loads, recorded["shapes"]), strict=True))
    save_zip({str(name): inception_weight(str(name), tuple(shape)) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="session")
def network(weights: Path) -> InceptionFeatures:
    return InceptionFeatures(weights, torch.device("cpu"))


@pytest.mark.parametrize("size", [32, 75, 256, 299, 384])
def test_features_and_logits_are_those_of_torch_fidelity(
    network: InceptionFeatures, recorded: dict[str, np.ndarray], size: int
) -> None:
    rows = network.features(inception_images(size))
    np.testing.assert_allclose(rows[:, :2048], recorded[f"pool_{size}"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows[:, 2048:], recorded[f"spatial_{size}"], rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(recorded[f"logits_{size}"]).softmax(dim=1).numpy()
    np.testing.assert_allclose(network.probabilities(rows[:, :2048]), expected, rtol=1e-3, atol=1e-6)
