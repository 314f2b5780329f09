"""Codes from and for other projects: packed into a store, written out in their layouts, losslessly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Workspace, digest_json, read_json, write_json
from codeprior.codes import CodeStore, StoreWriter
from codeprior.config import ExportCodesConfig, ImportCodesConfig
from codeprior.crops import CROP_RANGES
from codeprior.errors import InputError
from codeprior.layouts import CodeFiles, open_code_files, write_jsonl, write_npy
from codeprior.parts import SECONDS_BETWEEN_RECORDS, Rows
from codeprior.progress import track
from codeprior.shards import Shard
from codeprior.tokenizers import load_tokenizer

_PROGRESS = "progress.json"
_IMAGES_AT_ONCE = 64
_TEN_CROP_FOLDERS = {1.1: "flip_ten_crop", 1.05: "flip_ten_crop_105"}


def import_codes(config: ImportCodesConfig) -> dict[str, Any]:
    """Pack codes that another project extracted into a store; an interrupted run is continued, by ranks if need be.

    Raises
    ------
    InputError
        If the files are incomplete, of another shape than the tokenizer and the views give, or hold codes or classes
        that are out of range.
    """
    tokenizer = load_tokenizer(config.tokenizer, "cpu")
    writer = StoreWriter(tokenizer, config.image_size or tokenizer.image_size, config.views)
    sources = _open_sources(config, writer.shape[0])
    n_images = _number_of_images(config, sources)
    inputs = {"codes": digest_json([source.digest for source in sources]), "tokenizer": tokenizer.digest}
    with Workspace(
        config.output,
        kind="codes",
        settings=config.settings(),
        inputs=inputs,
        overwrite=config.overwrite,
        shard=Shard.from_environment(),
    ) as workspace:
        if not workspace.complete:

            def read_labels() -> np.ndarray:
                return _agreed_labels(sources, n_images)

            def batches(run: range) -> Iterator[Rows]:
                for start in range(run.start, run.stop, _IMAGES_AT_ONCE):
                    numbers = range(start, min(start + _IMAGES_AT_ONCE, run.stop))
                    yield np.stack([_read_checked(sources, number, writer) for number in numbers]), {}

            writer.write(workspace, n_images, _IMAGES_AT_ONCE, batches, "import")
            writer.finish(workspace, read_labels, read_class_names(config.class_names))
        return {"output": str(config.output), **writer.results(workspace)}


def export_codes(config: ExportCodesConfig) -> dict[str, Any]:
    """Write a store as another project reads it; an interrupted run is continued.

    LlamaGen's loader tells by the path whether there are views to choose from ("flip" in it) and where the second crop
    range is (`ten_crop_105` for `ten_crop`), so the folders have these names.

    Raises
    ------
    InputError
        If the store cannot be opened, or the output holds something else.
    """
    store = CodeStore.open(config.codes)
    inputs = {"codes": store.digest}
    with Workspace(
        config.output, kind="exported codes", settings=config.settings(), inputs=inputs, overwrite=config.overwrite
    ) as workspace:
        if not workspace.complete:
            write = _write_jsonl if config.layout == "rar" else _write_files
            places = write(config, store, workspace)
            results = {"n_images": len(store), "layout": config.layout, "written": ", ".join(map(str, places))}
            workspace.finish([], results)
            workspace.path(_PROGRESS).unlink(missing_ok=True)
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def _open_sources(config: ImportCodesConfig, n_views: int) -> list[CodeFiles]:
    if n_views % len(config.sources) or n_views // len(config.sources) not in (n_views, 10):
        raise InputError(f"{config.views} are {n_views} views, which {len(config.sources)} sources cannot share")
    return [open_code_files(source, n_views // len(config.sources)) for source in config.sources]


def _number_of_images(config: ImportCodesConfig, sources: list[CodeFiles]) -> int:
    lengths = {len(source) for source in sources}
    if len(lengths) > 1:
        raise InputError(f"the sources hold different numbers of images: {', '.join(map(str, sorted(lengths)))}")
    available = lengths.pop()
    if config.n_images is not None and config.n_images > available:
        raise InputError(f"n_images must be between 1 and {available} (those there are), got {config.n_images}")
    return config.n_images or available


def _read_checked(sources: list[CodeFiles], number: int, writer: StoreWriter) -> np.ndarray:
    """All views of an image: (A, T), in the range of the codebook."""
    codes = [source.read(number) for source in sources]
    joined = np.concatenate(codes) if len({part.shape[1] for part in codes}) == 1 else codes[0]
    if joined.shape != writer.shape:
        raise InputError(
            f"image {number} has codes of shape {joined.shape}, but {writer.views} at {writer.image_size} pixels are "
            f"{writer.shape}; give the --views and --image-size that they were made with"
        )
    if joined.min() < 0 or joined.max() >= writer.codebook_size:
        raise InputError(
            f"image {number} has codes from {joined.min()} to {joined.max()}, but the tokenizer has "
            f"{writer.codebook_size}, from 0; they are of another tokenizer"
        )
    return joined


def _agreed_labels(sources: list[CodeFiles], n_images: int) -> np.ndarray:
    labels = [source.labels()[:n_images] for source in sources]
    for other in labels[1:]:
        if len(differing := np.flatnonzero(other != labels[0])):
            raise InputError(f"the sources have different classes, first for image {differing[0]}")
    return labels[0]


def read_class_names(path: Path | None) -> tuple[str, ...] | None:
    """Names of the classes in their order: of folders, or of lines."""
    if path is None:
        return None
    if path.is_dir():
        return tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not path.exists():
        raise InputError(f"no class names at {path}: there is no such file or folder")
    return tuple(path.read_text().splitlines())


def _write_files(config: ExportCodesConfig, store: CodeStore, workspace: Workspace) -> list[Path]:
    """A file an image, in a folder for each crop range; says which."""
    ranges = list(_ranges(store))
    folders = []
    for place, _ in ranges:
        base = workspace.path(place)
        folders.append(
            (base / f"{config.name}{store.image_size}_codes", base / f"{config.name}{store.image_size}_labels")
        )
        for folder in folders[-1]:
            folder.mkdir(parents=True, exist_ok=True)
    done = int(read_json(workspace.path(_PROGRESS))["images"]) if workspace.path(_PROGRESS).exists() else 0
    recorded = time.monotonic()
    for number in track(range(done, len(store)), "export", total=len(store), start=done):
        label = int(store.labels[number])
        for pair, (_, views) in zip(folders, ranges, strict=True):
            write_npy(pair, number, store.codes[number, views], label, leading_axis=config.layout == "llamagen")
        if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS:
            write_json(workspace.path(_PROGRESS), {"images": number + 1})
            recorded = time.monotonic()
    return [Path(place) for place, _ in ranges]


def _write_jsonl(config: ExportCodesConfig, store: CodeStore, workspace: Workspace) -> list[Path]:
    """One file with a line for each view; says which."""
    path = workspace.path("codes.jsonl")
    progress = read_json(workspace.path(_PROGRESS)) if workspace.path(_PROGRESS).exists() else {"images": 0, "bytes": 0}
    done = int(progress["images"])
    recorded = time.monotonic()
    with open(path, "a") as file:
        file.truncate(progress["bytes"])
        for number in track(range(done, len(store)), "export", total=len(store), start=done):
            write_jsonl(file, store.codes[number], int(store.labels[number]))
            if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS:
                file.flush()
                write_json(workspace.path(_PROGRESS), {"images": number + 1, "bytes": path.stat().st_size})
                recorded = time.monotonic()
    return [Path(path.name)]


def _ranges(store: CodeStore) -> Iterator[tuple[str, slice]]:
    """The folder of each of the store's crop ranges, or of all its views, by LlamaGen's names; and which views."""
    ranges = CROP_RANGES.get(store.views)
    if ranges is None:
        yield store.views, slice(None)
        return
    for number, crop_range in enumerate(ranges):
        yield _TEN_CROP_FOLDERS[crop_range], slice(10 * number, 10 * (number + 1))
