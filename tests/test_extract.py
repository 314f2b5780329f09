from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from codeprior import Codebook, CodebookPrior
from codeprior.config import ExtractConfig, InspectConfig
from codeprior.errors import InputError
from codeprior.extract import extract
from codeprior.inspection import inspect


@pytest.fixture
def vectors():
    return np.random.default_rng(5).standard_normal((60, 4)).astype(np.float32)


@pytest.fixture
def codebook_file(tmp_path, vectors):
    np.save(tmp_path / "codebook.npy", vectors)
    return tmp_path / "codebook.npy"


def run(codebook_file, **changes):
    output = codebook_file.parent / changes.pop("output", "prior.safetensors")
    return extract(ExtractConfig(codebook=codebook_file, output=output, **changes)), output


def test_half_the_codebook_is_the_default(codebook_file, vectors):
    result, output = run(codebook_file)
    prior = CodebookPrior.load(output)
    assert prior.n_clusters == result["n_clusters"] == 30
    assert prior.linkage.shape == (59, 4)
    assert prior.codebook_digest == Codebook(vectors).digest


def test_a_cut_of_the_stored_tree_is_the_extraction_at_that_number(codebook_file):
    _, output = run(codebook_file)
    for k in (5, 45):
        _, direct = run(codebook_file, n_clusters=k, output=f"{k}.safetensors")
        expected = CodebookPrior.load(direct).token_to_cluster
        np.testing.assert_array_equal(CodebookPrior.load(output).cut(k).token_to_cluster, expected)


def test_dead_codes_are_attached_never_clustered_and_never_picked(codebook_file, vectors):
    usage = np.ones(60, dtype=np.int64)
    usage[40:] = 0
    np.save(codebook_file.parent / "usage.npy", usage)
    result, output = run(codebook_file, n_clusters=20, usage=codebook_file.parent / "usage.npy")
    prior = CodebookPrior.load(output)
    assert (result["live_codes"], result["dead_codes"]) == (40, 20)
    assert "20 of 60 codes are never used" in result["warnings"][0]
    assert set(prior.token_to_cluster[:40]) == set(range(20))
    assert prior.linkage.shape == (39, 4)
    assert (prior.members()[1] < 40).all()
    cut = prior.cut(7, Codebook(vectors))
    distances = np.linalg.norm(vectors[40:, None] - vectors[None, :40], axis=2)
    means = [distances[:, cut.token_to_cluster[:40] == c].mean(1) for c in range(7)]
    np.testing.assert_array_equal(cut.token_to_cluster[40:], np.argmin(means, axis=0))
    with pytest.raises(InputError, match="give the codebook too"):
        prior.cut(7)


def test_the_counts_of_an_ema_codebook_are_read(codebook_file):
    save_file({"quantize.cluster_size": np.linspace(0, 3, 60)[None]}, codebook_file.parent / "ema.safetensors")
    result, _ = run(codebook_file, n_clusters=9, usage=codebook_file.parent / "ema.safetensors")
    assert result["dead_codes"] == 1


def test_counts_that_the_checkpoint_keeps_are_pointed_out(tmp_path, vectors):
    path = tmp_path / "ema.safetensors"
    counts = np.linspace(0, 3, 60).astype(np.float32)
    save_file({"quantize.embedding.weight": vectors, "quantize.cluster_size": counts}, path)
    result, _ = run(path, normalize=False)
    assert "1 of 60 codes were never used" in result["warnings"][0]
    assert result["dead_codes"] == 0
    result, _ = run(path, normalize=False, usage=path, output="live.safetensors")
    assert result["dead_codes"] == 1
    assert inspect(InspectConfig(paths=(path,), normalize=False))["dead_codes"] == 1


def test_the_same_again_is_nothing_to_do_and_another_is_refused(codebook_file):
    _, output = run(codebook_file)
    written = output.stat().st_mtime_ns
    run(codebook_file)
    assert output.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="holds another prior"):
        run(codebook_file, n_clusters=10)
    assert CodebookPrior.load(output).n_clusters == 30
    run(codebook_file, n_clusters=10, overwrite=True)
    assert CodebookPrior.load(output).n_clusters == 10


def test_exports_are_what_scipy_and_iar_read(codebook_file, vectors):
    folder = codebook_file.parent
    _, output = run(
        codebook_file,
        export_labels=folder / "labels.npy",
        export_linkage=folder / "Z.npy",
        export_mapping=folder / "mapping.pt",
    )
    prior = CodebookPrior.load(output)
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), prior.token_to_cluster)
    np.testing.assert_array_equal(np.load(folder / "Z.npy"), prior.linkage)
    mapping = torch.load(folder / "mapping.pt", weights_only=True).numpy()
    assert sorted(mapping) == list(range(60))
    reordered = np.empty_like(prior.token_to_cluster)
    reordered[mapping] = prior.token_to_cluster
    np.testing.assert_array_equal(reordered, np.sort(prior.token_to_cluster))


def test_iars_mapping_makes_the_prior_that_it_was_made_of(codebook_file):
    folder = codebook_file.parent
    _, output = run(codebook_file, method="balanced-kmeans", n_clusters=12, export_mapping=folder / "mapping.pt")
    mapping = torch.load(folder / "mapping.pt", weights_only=True)
    torch.save(torch.cat([torch.arange(60), mapping])[60:], folder / "view.pt")  # as IAR's file: a view with an offset
    np.save(folder / "mapping.npy", mapping.numpy())
    for name in ("mapping.pt", "view.pt", "mapping.npy"):
        result, back = run(codebook_file, mapping=folder / name, n_clusters=12, output=folder / f"{name}.safetensors")
        labels = CodebookPrior.load(back).token_to_cluster
        np.testing.assert_array_equal(labels, CodebookPrior.load(output).token_to_cluster)
        assert result["method"] == "rearrangement"
    with pytest.raises(InputError, match="holds another prior"):
        run(codebook_file, mapping=folder / "mapping.pt", n_clusters=6, output=back)


@pytest.mark.parametrize(
    ("array", "n_clusters", "said"),
    [
        (np.arange(60) // 2, 12, "must hold one permutation of codes"),
        (np.arange(61), 12, "is of 61 codes, the codebook has 60"),
        (np.arange(60.0), 12, "got float64"),
        (np.arange(60), 7, "60 codes make no 7"),
    ],
)
def test_what_is_no_rearrangement_is_refused(codebook_file, array, n_clusters, said):
    np.save(codebook_file.parent / "mapping.npy", array)
    with pytest.raises(InputError, match=said):
        run(codebook_file, mapping=codebook_file.parent / "mapping.npy", n_clusters=n_clusters)


def test_a_checkpoint_in_place_of_a_mapping_is_refused(codebook_file):
    torch.save({"model": torch.arange(60)}, codebook_file.parent / "mapping.pt")
    with pytest.raises(InputError, match="something else than one tensor"):
        run(codebook_file, mapping=codebook_file.parent / "mapping.pt", n_clusters=12)


def test_comparison_shows_each_method_at_the_same_number(codebook_file):
    result, _ = run(codebook_file, compare=("kmeans", "ward"))
    rows = result["comparison"]
    assert [row["method"] for row in rows] == ["dcpe", "kmeans", "ward"]
    assert {row["n_clusters"] for row in rows} == {30}
    assert rows[0]["ari"] == 1.0


def test_comparison_with_usage_shows_the_entropy_of_the_clusters_that_tokens_fall_into(codebook_file):
    usage = np.arange(60) % 5
    np.save(codebook_file.parent / "usage.npy", usage)
    result, output = run(codebook_file, n_clusters=8, usage=codebook_file.parent / "usage.npy", compare=("kmeans",))
    share = np.bincount(CodebookPrior.load(output).token_to_cluster, usage) / usage.sum()
    assert result["comparison"][0]["entropy_nats"] == pytest.approx(-(share * np.log(share)).sum())
    assert 0 < result["comparison"][1]["entropy_nats"] < np.log(8)


def test_long_work_says_how_far_it_is(codebook_file, monkeypatch, capsys):
    monkeypatch.setattr("codeprior.progress._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("CODEPRIOR_PROGRESS", "lines")
    monkeypatch.setattr("codeprior.clustering._matrix.FINISH_BELOW", 1)
    run(codebook_file)
    assert "merges: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_clusters": 61}, "between 1 and 60"),
        ({"n_clusters": 0}, "between 1 and 60"),
        ({"n_clusters": 1.5}, "a share such as 0.5, got 1.5"),
        ({"method": "kmeens"}, "method must be one of dcpe, kmeans"),
        ({"compare": ("kmeens",)}, "method must be one of dcpe, kmeans"),
        ({"compare": ("kmeans++-weighted",)}, "kmeans..-weighted .* give --usage"),
        ({"method": "kmeans", "export_linkage": Path("z.npy")}, "kmeans makes none"),
        ({"strict": True}, "give it too"),
        ({"output": "prior.pt"}, "a prior is a .safetensors file"),
        ({"usage": "absent.npy"}, "no usage counts at"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(codebook_file, changes, said):
    if "usage" in changes:
        changes = {"usage": codebook_file.parent / changes["usage"]}
    with pytest.raises(InputError, match=said):
        run(codebook_file, **changes)
    assert [path.name for path in codebook_file.parent.iterdir()] == ["codebook.npy"]
