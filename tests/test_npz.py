"""Arrays of an npz: mapped where they are stored, read where they are compressed, refused where they are damaged."""

import numpy as np
import pytest

from codeprior.errors import InputError
from codeprior.npz import MappedNpz


def test_stored_arrays_are_mapped_and_compressed_ones_read_the_same(tmp_path):
    arrays = {"arr_0": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8), "mu": np.arange(5.0)}
    np.savez(tmp_path / "a.npz", **arrays, note=np.array("text"))
    np.savez_compressed(tmp_path / "b.npz", **arrays, note=np.array("text"))
    for name, kind in (("a.npz", np.memmap), ("b.npz", np.ndarray)):
        found = MappedNpz(tmp_path / name)
        assert list(found) == ["arr_0", "mu", "note"]
        assert type(found["arr_0"]) is kind
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
        assert str(found["note"]) == "text"
    rows = np.array([[3, 0], [2, 2]])
    np.testing.assert_array_equal(MappedNpz(tmp_path / "a.npz")["arr_0"][rows], arrays["arr_0"][rows])


def test_compressed_arrays_beyond_memory_are_refused_with_what_to_do(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "b.npz", arr_0=np.zeros((4, 16, 16, 3), np.uint8))
    monkeypatch.setattr("codeprior.npz.HELD_IN_MEMORY_BYTES", 1000)
    with pytest.raises(InputError, match=r"compressed, 0\.0 GB unpacked; write it by np\.savez"):
        MappedNpz(tmp_path / "b.npz")["arr_0"]


def test_arrays_of_objects_are_refused_and_empty_ones_are_not(tmp_path):
    np.savez(tmp_path / "a.npz", objects=np.array([{}], dtype=object), nothing=np.empty((0, 3)))
    assert MappedNpz(tmp_path / "a.npz")["nothing"].shape == (0, 3)
    with pytest.raises(InputError, match="Python objects"):
        MappedNpz(tmp_path / "a.npz")["objects"]


@pytest.mark.parametrize("change", [lambda b: b[:-60], lambda b: b"text", lambda b: b[:70] + b"\0" * 90 + b[160:]])
def test_damaged_files_are_refused(tmp_path, change):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="cannot read"):
        MappedNpz(path)["arr_0"]
