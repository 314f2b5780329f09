import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.stats import chisquare
from sklearn.metrics import adjusted_rand_score

from codeprior import Codebook, CodebookPrior
from codeprior.errors import InputError
from codeprior.prior import is_prior_file

LABELS = np.array([0, 1, 0, 2, 1, 0, 2, 3])


@pytest.fixture
def codebook():
    return Codebook(np.random.default_rng(1).standard_normal((40, 5)))


@pytest.fixture
def prior(codebook):
    Z = scipy_linkage(codebook.vectors.astype(np.float64), "average")
    labels = np.arange(len(codebook))
    return CodebookPrior(labels, codebook.digest, "dcpe", linkage=Z)


def test_what_is_saved_is_what_is_loaded(tmp_path, codebook):
    usage = np.arange(8) + 1
    prior = CodebookPrior(LABELS, "sha256:ab", "kmeans", usage=usage, seed=7, parameters={"n_clusters": 4})
    prior.save(tmp_path / "p.safetensors")
    again = CodebookPrior.load(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(again.token_to_cluster, LABELS)
    np.testing.assert_array_equal(again.usage, usage)
    assert (again.method, again.seed, again.parameters) == ("kmeans", 7, {"n_clusters": 4})
    assert again.digest == prior.digest
    assert is_prior_file(tmp_path / "p.safetensors")


def test_the_file_is_what_others_build_on(tmp_path, prior):
    prior.save(tmp_path / "p.safetensors")
    arrays = load_file(tmp_path / "p.safetensors")
    assert arrays["token_to_cluster"].dtype == np.int64
    assert arrays["linkage"].dtype == np.float64
    assert arrays["linkage"].shape == (39, 4)


@pytest.mark.parametrize("k", [1, 2, 7, 39, 40])
def test_cutting_gives_scipys_partition(prior, k):
    cut = prior.cut(k)
    assert cut.n_clusters == k
    assert adjusted_rand_score(cut.token_to_cluster, fcluster(prior.linkage, k, "maxclust")) == 1.0


def test_a_cut_outside_the_tree_is_refused(prior):
    for k in (0, 41):
        with pytest.raises(InputError, match=f"between 1 and 40 for this tree, got {k}"):
            prior.cut(k)
    with pytest.raises(InputError, match="has no tree"):
        CodebookPrior(LABELS, "sha256:ab", "kmeans").cut(2)


@pytest.mark.parametrize("by", ["uniform", "usage"])
def test_picked_tokens_belong_to_their_cluster_and_follow_the_distribution(by):
    usage = np.array([5, 1, 3, 2, 3, 2, 8, 4])
    prior = CodebookPrior(LABELS, "sha256:ab", "dcpe", usage=usage)
    clusters = np.repeat(np.arange(4), 20_000).reshape(4, 100, 200)
    tokens = prior.pick_tokens(clusters, np.random.default_rng(3), by=by)
    np.testing.assert_array_equal(LABELS[tokens], clusters)
    for cluster in range(4):
        members = np.flatnonzero(LABELS == cluster)
        weights = usage[members] if by == "usage" else np.ones(len(members))
        counts = np.bincount(tokens[cluster].ravel(), minlength=8)[members]
        assert len(members) == 1 or chisquare(counts, weights / weights.sum() * 20_000).pvalue > 1e-4


@pytest.mark.parametrize("by", ["uniform", "usage"])
def test_a_dead_code_is_never_picked(by):
    usage = np.array([5, 0, 3, 0, 3, 0, 8, 4])
    prior = CodebookPrior(LABELS, "sha256:ab", "dcpe", usage=usage)
    extremes = np.array([[0.0, 0.5, np.nextafter(1, 0)]] * 4).T
    tokens = prior.pick_tokens_at(np.arange(4)[None].repeat(3, 0), extremes, by=by)
    assert (usage[tokens] > 0).all()
    np.testing.assert_array_equal(prior.members()[0], [0, 2, 3, 4, 5])


def test_the_codebook_decides_what_may_be_combined(prior, codebook):
    prior.verify(codebook.digest, "this tokenizer")
    other = Codebook(codebook.vectors + 1)
    with pytest.raises(InputError) as error:
        prior.verify(other.digest, "this tokenizer")
    for digest in (codebook.digest, other.digest):
        assert digest.removeprefix("sha256:")[:12] in str(error.value)


@pytest.mark.parametrize(
    ("labels", "usage", "said"),
    [
        (np.array([0, 2, 2]), None, "leaves 1 clusters empty, first 1"),
        (np.array([0, -1]), None, "negative entry, first at code 1"),
        (np.array([[0]]), None, "vector of integers"),
        (np.array([0.0, 1.0]), None, "vector of integers"),
        (np.array([0, 1]), np.array([1, 0]), "1 clusters hold dead codes only, first 1"),
        (np.array([0, 1]), np.array([1]), "must be 2 counts"),
    ],
)
def test_what_is_no_partition_is_refused(labels, usage, said):
    with pytest.raises(InputError, match=said):
        CodebookPrior(labels, "sha256:ab", "dcpe", usage=usage)


def test_what_is_no_prior_is_said_in_one_line(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{")
    for name, said in {
        "absent.safetensors": "no such file",
        "model.safetensors": "not a prior",
        "cut.safetensors": "is the file complete",
    }.items():
        with pytest.raises(InputError, match=said):
            CodebookPrior.load(tmp_path / name)
        assert not is_prior_file(tmp_path / name)


def test_clusters_out_of_range_are_refused(prior):
    with pytest.raises(InputError, match=r"must lie in 0\.\.39, got 0\.\.40"):
        prior.pick_tokens(np.array([0, 40]), np.random.default_rng(0))


def test_the_same_prior_is_the_same_bytes_whenever_it_is_written(tmp_path):
    prior = CodebookPrior(np.array([0, 1, 0]), "sha256:0", "dcpe", parameters={"note": 'äöü " \\ \n'})
    for number in range(5):
        prior.save(tmp_path / f"{number}.safetensors")
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(5)}) == 1
    assert CodebookPrior.load(tmp_path / "0.safetensors").parameters == prior.parameters
