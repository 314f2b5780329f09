import numpy as np
import pytest
from PIL import Image

from codeprior import Codebook, CodebookPrior
from codeprior.artifact import Workspace
from codeprior.clustering.curve import within_cluster_distance
from codeprior.config import ExtractConfig, InspectConfig
from codeprior.errors import InputError
from codeprior.extract import extract
from codeprior.inspection import inspect


@pytest.fixture
def folder(tmp_path):
    vectors = np.random.default_rng(8).standard_normal((50, 3)).astype(np.float32)
    vectors[10] = vectors[11] = vectors[12]
    np.save(tmp_path / "codebook.npy", vectors)
    for method in ("dcpe", "kmeans"):
        output = tmp_path / f"{method}.safetensors"
        extract(ExtractConfig(codebook=tmp_path / "codebook.npy", method=method, n_clusters=10, output=output))
    return tmp_path


def test_a_codebook_shows_its_copies_and_its_density(folder):
    result = inspect(InspectConfig(paths=(folder / "codebook.npy",)))
    vectors = np.load(folder / "codebook.npy")
    gaps = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (result["n_codes"], result["dim"], result["duplicates"]) == (50, 3, 2)
    assert result["nearest_distance_median"] == pytest.approx(np.median(gaps.min(1)), abs=1e-5)


def test_a_prior_shows_its_sizes_and_the_curve(folder):
    result = inspect(InspectConfig(paths=(folder / "dcpe.safetensors",)))
    prior = CodebookPrior.load(folder / "dcpe.safetensors")
    assert result["largest_cluster"] == prior.sizes.max()
    assert [row["n_clusters"] for row in result["curve"]] == [1, 2, 4, 8, 10, 16, 32]


@pytest.mark.parametrize("method", ["ward", "complete", "centroid"])
def test_the_curve_of_another_linkage_is_right_and_without_mean_distances(folder, method):
    output = folder / f"{method}.safetensors"
    extract(ExtractConfig(codebook=folder / "codebook.npy", method=method, n_clusters=10, output=output))
    result = inspect(InspectConfig(paths=(output,), plot=folder / "plots"))
    assert method in result["curve_without"]
    for row in result["curve"]:
        sizes = CodebookPrior.load(output).cut(row["n_clusters"]).sizes
        assert row == {
            "n_clusters": len(sizes),
            "largest": sizes.max(),
            "singletons": np.count_nonzero(sizes == 1),
        }
    assert (folder / "plots" / "curve.png").exists()
    assert (folder / "plots" / "dendrogram.png").exists() == (method != "centroid")
    with_codebook = inspect(InspectConfig(paths=(output, folder / "codebook.npy")))
    assert "curve_without" not in with_codebook
    for row in with_codebook["curve"]:
        labels = CodebookPrior.load(output).cut(row["n_clusters"]).token_to_cluster
        expected = within_cluster_distance(np.load(folder / "codebook.npy"), labels)
        assert row["mean_distance"] == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_priors_of_one_codebook_are_compared(folder):
    result = inspect(InspectConfig(paths=(folder / "dcpe.safetensors", folder / "kmeans.safetensors")))
    assert -1 < result["agreement"][0]["ari"] < 1
    other = CodebookPrior(np.zeros(50, dtype=np.int64), Codebook(np.ones((50, 2))).digest, "dcpe")
    other.save(folder / "other.safetensors")
    with pytest.raises(InputError, match="belongs to codebook"):
        inspect(InspectConfig(paths=(folder / "dcpe.safetensors", folder / "other.safetensors")))


def test_the_neighbours_of_a_code_come_nearest_first(folder):
    result = inspect(InspectConfig(paths=(folder / "dcpe.safetensors", folder / "codebook.npy"), code=10))
    assert {result["neighbours"][0]["code"], result["neighbours"][1]["code"]} == {11, 12}
    assert all(row["same_cluster"] for row in result["neighbours"][:2])
    distances = [row["distance"] for row in result["neighbours"]]
    assert distances == sorted(distances)


def test_priors_of_one_name_are_told_apart_in_pictures(folder, monkeypatch):
    (folder / "other").mkdir()
    (folder / "other" / "dcpe.safetensors").write_bytes((folder / "dcpe.safetensors").read_bytes())
    drawn = []
    monkeypatch.setattr("codeprior.plots.cluster_sizes", lambda labels, _: drawn.extend(labels))
    paths = tuple(folder / name for name in ("dcpe.safetensors", "other/dcpe.safetensors", "kmeans.safetensors"))
    inspect(InspectConfig(paths=paths, plot=folder / "plots"))
    assert drawn == [str(paths[0]), str(paths[1]), "kmeans"]


def test_the_pictures_are_pictures(folder):
    inspect(InspectConfig(paths=(folder / "dcpe.safetensors", folder / "kmeans.safetensors"), plot=folder / "plots"))
    for name in ("sizes", "dendrogram", "curve"):
        with Image.open(folder / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_any_artifact_folder_is_shown(folder):
    with Workspace(folder / "run", kind="samples", settings={}, inputs={}) as work:
        work.path("a.txt").write_text("x")
        work.finish(["a.txt"], {"n_images": 7})
    assert inspect(InspectConfig(paths=(folder / "run",)))["n_images"] == 7


@pytest.mark.parametrize(
    ("paths", "changes", "said"),
    [
        (["absent"], {}, "nothing at"),
        (["dcpe.safetensors"], {"code": 50}, "--code must be between 0 and 49, got 50"),
        (["codebook.npy"], {"plot": "plots"}, "--plot needs a prior"),
        ([], {}, "at least one artifact"),
    ],
)
def test_a_mistake_is_said(folder, paths, changes, said):
    with pytest.raises(InputError, match=said):
        inspect(InspectConfig(paths=tuple(folder / path for path in paths), **changes))
