import numpy as np
import pytest
from safetensors.numpy import save_file

from codeprior import Codebook
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
