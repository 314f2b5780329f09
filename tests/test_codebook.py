import numpy as np
import pytest
from safetensors.numpy import save_file

from codeprior import Codebook
from codeprior.codebook import read_counts
from codeprior.errors import InputError


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


def test_every_format_gives_the_same_codebook(tmp_path, vectors):
    np.save(tmp_path / "a.npy", vectors)
    np.savez(tmp_path / "b.npz", book=vectors, bias=vectors[0])
    save_file({"quantize.embedding.weight": vectors, "head.weight": vectors.T.copy()}, tmp_path / "c.safetensors")
    digests = {Codebook.load(tmp_path / name).digest for name in ("a.npy", "b.npz", "c.safetensors")}
    assert digests == {Codebook(vectors).digest}


def test_space_is_of_unit_length_only_if_the_quantizer_normalises(vectors):
    np.testing.assert_allclose(np.linalg.norm(Codebook(vectors, normalize=True).space, axis=1), 1, rtol=1e-6)
    assert Codebook(vectors).space is Codebook(vectors).space or np.array_equal(Codebook(vectors).space, vectors)


def test_normalising_does_not_change_the_digest(vectors):
    assert Codebook(vectors, normalize=True).digest == Codebook(vectors).digest


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v[0], "one row a code"),
        (lambda v: v[:0], "one row a code"),
        (lambda v: v.astype(str), "one row a code"),
        (lambda v: np.where(np.arange(20)[:, None] == 7, np.nan, v), "1 non-finite vectors, first at index 7"),
        (lambda v: np.where(np.arange(20)[:, None] > 17, np.inf, v), "2 non-finite vectors, first at index 18"),
    ],
)
def test_what_is_no_codebook_is_refused(vectors, spoil, said):
    with pytest.raises(InputError, match=said):
        Codebook(spoil(vectors))


def test_a_zero_vector_has_no_direction(vectors):
    vectors[3] = 0
    with pytest.raises(InputError, match="code 3 is the zero vector"):
        _ = Codebook(vectors, normalize=True).space


def test_unreadable_files_are_said_in_one_line(tmp_path, vectors):
    np.save(tmp_path / "whole.npy", vectors)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:200])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    (tmp_path / "notes.txt").write_text("hello")
    np.savez(tmp_path / "two.npz", a=vectors, b=vectors)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, said in {
        "absent.npy": "no such file",
        "cut.npy": "is the file complete",
        "cut.safetensors": "is the file complete",
        "notes.txt": "cannot read a codebook from",
        "two.npz": "several matrices: a, b",
        "objects.npy": "allow_pickle=False",
    }.items():
        with pytest.raises(InputError, match=said):
            Codebook.load(tmp_path / name)


def test_the_space_says_its_name(vectors):
    assert [Codebook(vectors, normalize=normalize).space_name for normalize in (False, True)] == ["raw", "normalised"]


def test_family_and_key_are_for_checkpoints(tmp_path, vectors):
    np.save(tmp_path / "a.npy", vectors)
    with pytest.raises(InputError, match="choose within other people's checkpoints"):
        Codebook.load(tmp_path / "a.npy", family="llamagen")


def test_a_matrix_alone_is_taken_as_it_is(tmp_path, vectors):
    save_file({"mine": vectors, "bias": vectors[0]}, tmp_path / "a.safetensors")
    codebook = Codebook.load(tmp_path / "a.safetensors")
    assert (codebook.origin.key, codebook.origin.family, codebook.space_name) == ("mine", None, "raw")


def test_counts_are_read_or_refused_in_one_line(tmp_path):
    np.save(tmp_path / "counts.npy", np.array([[0.0, 0.2, 3.0]]))
    np.testing.assert_array_equal(read_counts(tmp_path / "counts.npy"), [0, 1, 3])
    np.save(tmp_path / "negative.npy", np.array([-1, 2]))
    (tmp_path / "notes.npy").write_text("hello")
    for name, said in {
        "negative.npy": "0 or more",
        "notes.npy": "cannot read counts",
        "no.npy": "no usage counts",
    }.items():
        with pytest.raises(InputError, match=said):
            read_counts(tmp_path / name)


def test_codes_that_never_left_their_start_are_counted(vectors):
    assert Codebook(vectors).n_untouched == 0
    vectors[5:9] = np.random.default_rng(1).uniform(-1 / 20, 1 / 20, (4, 4))
    assert Codebook(vectors).n_untouched == 4
