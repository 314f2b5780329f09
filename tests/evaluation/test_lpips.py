from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.errors import InputError
from codeprior.evaluation.lpips import Lpips
from recorded import LPIPS_FILES, lpips_pairs, write_lpips

GOLDEN = Path(__file__).parent.parent / "golden" / "lpips_io.npz"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both networks, with the weights of their names."""
    folder = tmp_path_factory.mktemp("lpips")
    for net in ("vgg", "alex"):
        write_lpips(folder, net)
    return folder


@pytest.fixture
def at_hand(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(weights))


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_distances_are_those_of_the_lpips_package(net: str) -> None:
    metric = Lpips(net, torch.device("cpu"))
    distances = metric.distances(*lpips_pairs())
    with np.load(GOLDEN) as recorded:
        np.testing.assert_allclose(distances, recorded[net], rtol=1e-4, atol=1e-7)
    assert distances[2] == 0  # equal images
    assert metric.name == f"lpips_{net}[other weights]"


@pytest.mark.usefixtures("at_hand")
def test_weights_of_another_network_and_missing_ones_are_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, other in zip(LPIPS_FILES["alex"], LPIPS_FILES["vgg"], strict=True):
        (tmp_path / other).write_bytes((weights / name).read_bytes())
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"it has no features\.2\.weight"):
        Lpips("vgg", torch.device("cpu"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"AlexNet, by which LPIPS\[alex\] is defined, is not at hand"):
        Lpips("alex", torch.device("cpu"))
