import contextlib
import json
import os

import numpy as np
import pytest

from codeprior.artifact import (
    Workspace,
    digest_array,
    digest_file,
    read_json,
    read_manifest,
    write_atomically,
)
from codeprior.errors import InputError

WORK = {"kind": "codes", "settings": {"seed": 0, "views": "flip"}, "inputs": {"tokenizer": "sha256:" + "a" * 64}}


def make(folder, **changes):
    with Workspace(folder, **{**WORK, **changes}) as work:
        if not work.complete:
            work.path("codes.npy").write_bytes(b"1234")
            work.finish(["codes.npy"], {"n_images": np.int64(3)})
        return work


def test_equal_arrays_have_equal_digests_and_others_do_not():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_array(a) == digest_array(np.asfortranarray(a)) == digest_array(a.astype(">f4"))
    assert len({digest_array(a), digest_array(a.T), digest_array(a.astype(np.float64)), digest_array(a + 1)}) == 4


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_finished_work_is_recognised_and_not_done_again(tmp_path):
    first = make(tmp_path / "out")
    written = (tmp_path / "out" / "codes.npy").stat().st_mtime_ns
    second = make(tmp_path / "out")
    assert second.complete
    assert second.manifest.digest == first.manifest.digest
    assert second.manifest.results == {"n_images": 3}
    assert (tmp_path / "out" / "codes.npy").stat().st_mtime_ns == written


def test_interrupted_work_is_recognised_and_its_time_kept(tmp_path):
    work = Workspace(tmp_path, **WORK)
    work.close()
    record = read_json(tmp_path / "unfinished.json")
    (tmp_path / "unfinished.json").write_text(json.dumps({**record, "time_s": 100.0}))
    with Workspace(tmp_path, **WORK) as again:
        assert again.resumed
        assert not again.complete
        again.path("codes.npy").write_bytes(b"1")
        assert again.finish(["codes.npy"], {}).time_s >= 100.0
    assert not (tmp_path / "unfinished.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"seed": 1, "views": "flip"}}, "other settings (seed: 0, now 1)"),
        ({"inputs": {"tokenizer": "sha256:" + "b" * 64}}, "other inputs (tokenizer: aaaaaaaaaaaa, now bbbbbbbbbbbb)"),
        ({"kind": "samples"}, "holds codes, not samples"),
    ],
)
def test_other_work_is_refused_unless_overwritten(tmp_path, changes, said):
    make(tmp_path)
    with pytest.raises(InputError) as error:
        make(tmp_path, **changes)
    assert said in str(error.value)
    assert (tmp_path / "codes.npy").read_bytes() == b"1234"
    assert make(tmp_path, **changes, overwrite=True).manifest.kind == changes.get("kind", "codes")


def test_a_folder_of_somebody_elses_is_neither_used_nor_cleared(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty"):
            Workspace(tmp_path, **WORK, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    with Workspace(tmp_path, **WORK), pytest.raises(InputError, match="another process"):
        Workspace(tmp_path, **WORK)


def test_missing_truncated_and_changed_files_are_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "codes.npy"
    for damage, said in [(b"12", "has 2 bytes, 4 were written"), (b"4321", "was changed"), (None, "is missing")]:
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(InputError, match=said):
            read_manifest(tmp_path, "codes")


def test_a_mistake_found_before_any_work_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no such model"):
        refuse(tmp_path / "out", with_work=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no such model"):
        refuse(tmp_path / "out", with_work=True)
    assert (tmp_path / "out" / "codes.npy").exists()


def refuse(folder, *, with_work):
    with Workspace(folder, **WORK) as work:
        if with_work:
            work.path("codes.npy").write_bytes(b"1")
        raise InputError("no such model")


def test_damaged_work_is_done_again_if_overwritten(tmp_path):
    make(tmp_path)
    (tmp_path / "codes.npy").unlink()
    with pytest.raises(InputError, match="is missing"):
        make(tmp_path)
    make(tmp_path, overwrite=True)
    assert (tmp_path / "codes.npy").exists()


def test_what_is_no_artifact_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no codes"):
        read_manifest(tmp_path, "codes")
    Workspace(tmp_path / "half", **WORK).close()
    with pytest.raises(InputError, match="unfinished"):
        read_manifest(tmp_path / "half", "codes")
    make(tmp_path / "whole")
    with pytest.raises(InputError, match="holds codes, not a tokenizer"):
        read_manifest(tmp_path / "whole", "tokenizer")


def test_the_digest_of_an_artifact_is_that_of_its_content(tmp_path):
    assert make(tmp_path / "a").manifest.digest == make(tmp_path / "b", settings={"seed": 5}).manifest.digest
    assert digest_file(tmp_path / "a" / "codes.npy") == digest_file(tmp_path / "b" / "codes.npy")
