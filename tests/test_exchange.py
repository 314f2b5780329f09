"""Codes of other projects: their files become a store and a store becomes their files, without loss."""

import dataclasses
import json

import numpy as np
import pytest

from codeprior.codes import CodeStore
from codeprior.config import ExportCodesConfig, ImportCodesConfig
from codeprior.errors import InputError
from codeprior.exchange import export_codes, import_codes

N_IMAGES, N_TOKENS, V = 7, 16, 32  # the tiny tokenizer: 32 codes, 16x16 images, 4x4 tokens
CLASSES = np.array([0, 0, 1, 2, 2, 2, 3])


def codes_of(n_views, seed=0):
    return np.random.default_rng(seed).integers(0, V, (N_IMAGES, n_views, N_TOKENS))


def write_like_llamagen(folder, codes, classes=CLASSES):
    """The loop of its extract_codes_c2i.py: a batch of one image, so everything has a leading axis of one."""
    for kind in ("codes", "labels"):
        (folder / f"imagenet16_{kind}").mkdir(parents=True)
    for number, (views, label) in enumerate(zip(codes, classes, strict=True)):
        np.save(folder / "imagenet16_codes" / f"{number}.npy", views[None])
        np.save(folder / "imagenet16_labels" / f"{number}.npy", np.array([label]))
    return folder


def write_like_gigatok(folder, codes):
    for kind in ("codes", "labels"):
        (folder / f"imagenet16_{kind}").mkdir(parents=True)
    for number, (views, label) in enumerate(zip(codes, CLASSES, strict=True)):
        np.save(folder / "imagenet16_codes" / f"{number}.npy", views)
        np.save(folder / "imagenet16_labels" / f"{number}.npy", label)
    return folder


def write_like_rar(path, codes):
    with open(path, "w") as file:
        for views, label in zip(codes, CLASSES, strict=True):
            for view in views:
                json.dump({"class_id": int(label), "tokens": view.tolist()}, file)
                file.write("\n")
    return path


def take(tiny, output, *sources, **settings):
    config = ImportCodesConfig(
        sources=sources, tokenizer=tiny / "tokenizer", output=output, **{"views": "ten-crop-1.1", **settings}
    )
    return import_codes(config)


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LAYOUTS = {"llamagen": write_like_llamagen, "gigatok": write_like_gigatok, "rar": write_like_rar}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("views", ["centre", "flip", "ten-crop-1.1"])
def test_a_store_holds_what_the_files_held_and_gives_them_back_byte_for_byte(tiny, tmp_path, layout, views):
    n_views = {"centre": 1, "flip": 2, "ten-crop-1.1": 10}[views]
    source = tmp_path / ("codes.jsonl" if layout == "rar" else "source")
    LAYOUTS[layout](source, codes_of(n_views))
    results = take(tiny, tmp_path / "store", source, views=views)
    store = CodeStore.open(tmp_path / "store")
    assert np.array_equal(store.codes, codes_of(n_views))
    assert store.labels.tolist() == CLASSES.tolist()
    assert store.class_names == ("0", "1", "2", "3")
    assert (store.views, store.grid, store.image_size) == (views, (4, 4), 16)
    assert results["n_images"] == N_IMAGES
    assert store.tokenizer_digest == CodeStore.open(tiny / "codes").tokenizer_digest

    export_codes(ExportCodesConfig(codes=tmp_path / "store", layout=layout, output=tmp_path / "out"))
    if layout == "rar":
        assert (tmp_path / "out" / "codes.jsonl").read_bytes() == source.read_bytes()
    else:
        place = "flip_ten_crop" if n_views == 10 else views
        assert files_below(tmp_path / "out" / place) == files_below(source)


def test_both_crop_ranges_become_one_store_and_two_folders_again(tiny, tmp_path):
    wide = write_like_llamagen(tmp_path / "flip_ten_crop", codes_of(10, 1))
    narrow = write_like_llamagen(tmp_path / "flip_ten_crop_105", codes_of(10, 2))
    take(tiny, tmp_path / "store", wide, narrow, views="ten-crop-1.1+1.05")
    store = CodeStore.open(tmp_path / "store")
    assert np.array_equal(store.codes, np.concatenate([codes_of(10, 1), codes_of(10, 2)], axis=1))
    export_codes(ExportCodesConfig(codes=tmp_path / "store", layout="llamagen", output=tmp_path / "out"))
    assert files_below(tmp_path / "out" / "flip_ten_crop") == files_below(wide)
    assert files_below(tmp_path / "out" / "flip_ten_crop_105") == files_below(narrow)


def test_padded_extractions_are_cut_and_classes_named(tiny, tmp_path):
    source = write_like_llamagen(tmp_path / "source", codes_of(10))
    for name in ("zebra", "ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
    take(tiny, tmp_path / "store", source, n_images=6, class_names=tmp_path / "images")
    store = CodeStore.open(tmp_path / "store")
    assert (len(store), store.class_names) == (6, ("ant", "bee", "cat", "zebra"))
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(InputError, match="there is a class 3, but only 2 class names"):
        take(tiny, tmp_path / "other", source, class_names=tmp_path / "names.txt")


def test_ranks_import_what_one_process_imports(tiny, tmp_path, monkeypatch):
    source = write_like_llamagen(tmp_path / "source", codes_of(10))
    take(tiny, tmp_path / "alone", source)
    monkeypatch.setattr("codeprior.exchange._IMAGES_AT_ONCE", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        take(tiny, tmp_path / "ranks", source)
    alone, ranks = CodeStore.open(tmp_path / "alone"), CodeStore.open(tmp_path / "ranks")
    assert alone.digest == ranks.digest


@pytest.mark.parametrize("layout", ["llamagen", "rar"])
def test_an_interrupted_export_goes_on(tiny, tmp_path, monkeypatch, layout):
    LAYOUTS["gigatok"](tmp_path / "source", codes_of(10))
    take(tiny, tmp_path / "store", tmp_path / "source")
    config = ExportCodesConfig(codes=tmp_path / "store", layout=layout, output=tmp_path / "whole")
    export_codes(config)
    broken, written = dataclasses.replace(config, output=tmp_path / "broken"), []
    name = "write_jsonl" if layout == "rar" else "write_npy"
    write = getattr(__import__("codeprior.exchange", fromlist=[name]), name)

    def stops(*arguments, **options):
        written.append(arguments)
        if len(written) == 5:
            raise KeyboardInterrupt
        write(*arguments, **options)

    monkeypatch.setattr(f"codeprior.exchange.{name}", stops)
    monkeypatch.setattr("codeprior.exchange.SECONDS_BETWEEN_RECORDS", 0)
    with pytest.raises(KeyboardInterrupt):
        export_codes(broken)
    export_codes(broken)
    assert len(written) == 5 + 3
    for path in (tmp_path / "whole").rglob("*.npy" if layout == "llamagen" else "*.jsonl"):
        assert path.read_bytes() == (tmp_path / "broken" / path.relative_to(tmp_path / "whole")).read_bytes()


def put(array):
    return lambda root: np.save(root / "imagenet16_codes" / "3.npy", array)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put(np.zeros((2, 1, 10, 16), int)), "IAR2 keeps two codes a token"),
        (put(np.full((1, 10, 16), V)), "image 3 has codes from 32 to 32, but the tokenizer has 32"),
        (put(np.zeros((1, 10, 9), int)), r"shape \(10, 9\), but ten-crop-1.1 at 16 pixels are \(10, 16\)"),
        (put(np.zeros((1, 10, 16))), "must hold integers"),
        (lambda root: (root / "imagenet16_codes" / "3.npy").write_bytes(b"\x93NUMPY"), "cannot read .*3.npy"),
        (lambda root: (root / "imagenet16_codes" / "3.npy").unlink(), "3.npy is missing; is the extraction complete"),
        (lambda root: np.save(root / "imagenet16_labels" / "3.npy", [1, 2]), "must hold one label"),
        (lambda root: (root / "imagenet16_labels").rename(root / "labels"), "imagenet16_labels is missing"),
        (
            lambda root: (root / "imagenet16_codes").rename(root / "codes"),
            "must hold one folder <name>_codes.*holds codes",
        ),
    ],
)
def test_damaged_or_foreign_files_are_one_line(tiny, tmp_path, spoil, message):
    source = write_like_llamagen(tmp_path / "source", codes_of(10))
    spoil(source)
    with pytest.raises(InputError, match=message):
        take(tiny, tmp_path / "store", source)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-9], "line 70 is not .* is it complete"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "69 lines, which must be a multiple of the 10 views"),
        (lambda text: text.replace('"class_id": 3', '"class_id": 2', 1), "lines from 61 on are of several classes"),
        (lambda text: text.replace('"tokens"', '"codes"'), "lines from 1: 'tokens'"),
    ],
)
def test_damaged_json_lines_are_one_line(tiny, tmp_path, spoil, message):
    path = write_like_rar(tmp_path / "codes.jsonl", codes_of(10))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=message):
        take(tiny, tmp_path / "store", path)


def test_sources_that_do_not_fit_each_other_are_refused(tiny, tmp_path):
    wide = write_like_llamagen(tmp_path / "a", codes_of(10))
    other = write_like_llamagen(tmp_path / "b", codes_of(10), CLASSES[::-1])
    with pytest.raises(InputError, match=r"ten-crop-1\.1 are 10 views, which 2 sources cannot share"):
        take(tiny, tmp_path / "store", wide, other)
    with pytest.raises(InputError, match="different classes, first for image 0"):
        take(tiny, tmp_path / "store", wide, other, views="ten-crop-1.1+1.05")
    with pytest.raises(InputError, match="n_images must be between 1 and 7"):
        take(tiny, tmp_path / "store2", wide, n_images=8)
    with pytest.raises(InputError, match="no codes at"):
        take(tiny, tmp_path / "store2", tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["llamagen", "rar"])
def test_processes_that_share_an_export_write_what_one_writes(tiny, tmp_path, monkeypatch, layout):
    def export(output, rank, size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        return export_codes(ExportCodesConfig(codes=tiny / "codes", layout=layout, output=output))

    def content(folder):
        files = [path for path in folder.rglob("*") if path.suffix in (".npy", ".jsonl")]
        return {path.relative_to(folder): path.read_bytes() for path in files}

    export(tmp_path / "alone", 0, 1)
    export(tmp_path / "ranks", 0, 2)  # begun by two, of which one never runs
    waiting = export(tmp_path / "ranks", 2, 3)
    assert waiting["state"] == "done; the last of 3 processes to finish closes the folder"
    export(tmp_path / "ranks", 0, 3)
    assert export(tmp_path / "ranks", 1, 3)["n_images"] == 60
    assert content(tmp_path / "ranks") == content(tmp_path / "alone")
    assert not list((tmp_path / "ranks").glob("progress-*"))
