"""Codes from and for other projects: packed into a store, written out in their layouts, losslessly."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Workspace, digest_json, read_json, write_atomically, write_json
from codeprior.codes import CodeStore, StoreWriter
from codeprior.config import ExportCodesConfig, ImportCodesConfig
from codeprior.crops import CROP_RANGES
from codeprior.errors import InputError
from codeprior.layouts import CodeFiles, open_code_files, write_jsonl, write_npy
from codeprior.parts import SECONDS_BETWEEN_RECORDS, Rows
from codeprior.progress import track
from codeprior.shards import Shard
from codeprior.tokenizers import load_tokenizer

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
    """Write a store as another project reads it; an interrupted run is continued, by ranks if need be.

    LlamaGen's loader tells by the path whether there are views to choose from ("flip" in it) and where the second crop
    range is (`ten_crop_105` for `ten_crop`), so the folders have these names. Under `torchrun` each process writes its
    share of the images; with another number of processes than it was begun with, an interrupted run begins anew.

    Raises
    ------
    InputError
        If the store cannot be opened, or the output holds something else.
    """
    store, shard = CodeStore.open(config.codes), Shard.from_environment()
    with Workspace(
        config.output,
        kind="exported codes",
        settings=config.settings(),
        inputs={"codes": store.digest},
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            export = _Lines(store, workspace) if config.layout == "rar" else _Files(config, store, workspace)
            export.write()
            with workspace.alone():
                if not workspace.complete and export.all_done():
                    places = ", ".join(export.finish())
                    workspace.finish([], {"n_images": len(store), "layout": config.layout, "written": places})
                    export.remove_records()
        if workspace.manifest is None:
            state = f"done; the last of {shard.size} processes to finish closes the folder"
            return {"output": str(config.output), "rank": shard.rank, "state": state}
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


class _Export:
    """A share of a store's images, written one by one, with a record of how many are done."""

    def __init__(self, store: CodeStore, workspace: Workspace) -> None:
        self.store, self.workspace = store, workspace
        self.share = workspace.shard.of(len(store))

    def write(self) -> None:
        """Write what is missing of this process's share."""
        done = self._read_record(self.workspace.shard.rank).get("images", self.share.start)
        recorded = time.monotonic()
        for number in track(
            range(done, self.share.stop), "export", total=len(self.share), start=done - self.share.start
        ):
            self.write_one(number)
            if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS:
                write_json(self._record(self.workspace.shard.rank), self.record(number + 1))
                recorded = time.monotonic()
        write_json(self._record(self.workspace.shard.rank), self.record(self.share.stop))

    def write_one(self, number: int) -> None:
        """Write an image's codes."""
        raise NotImplementedError

    def record(self, done: int) -> dict[str, int]:
        """What is safely written when images before `done` are."""
        return {"images": done}

    def finish(self) -> list[str]:
        """Put together what all shares wrote; where it is."""
        raise NotImplementedError

    def all_done(self) -> bool:
        """Whether every process has written its share."""
        size = self.workspace.shard.size
        stops = [Shard(rank, size).of(len(self.store)).stop for rank in range(size)]
        return all(self._read_record(rank).get("images") == stop for rank, stop in enumerate(stops))

    def remove_records(self) -> None:
        """Remove the records, once everything is there."""
        for record in self.workspace.folder.glob("progress-*.json"):
            record.unlink()

    def _record(self, rank: int) -> Path:
        return self.workspace.path(f"progress-{rank}-of-{self.workspace.shard.size}.json")

    def _read_record(self, rank: int) -> dict[str, int]:
        return dict(read_json(self._record(rank))) if self._record(rank).exists() else {}


class _Files(_Export):
    """A file an image, in a folder for each crop range."""

    def __init__(self, config: ExportCodesConfig, store: CodeStore, workspace: Workspace) -> None:
        super().__init__(store, workspace)
        self.leading_axis = config.layout == "llamagen"
        self.ranges = dict(_ranges(store))
        names = [f"{config.name}{store.image_size}_{kind}" for kind in ("codes", "labels")]
        self.folders = {place: tuple(workspace.path(place) / name for name in names) for place in self.ranges}
        for folder in (folder for pair in self.folders.values() for folder in pair):
            folder.mkdir(parents=True, exist_ok=True)

    def write_one(self, number: int) -> None:
        label = int(self.store.labels[number])
        for place, (codes, labels) in self.folders.items():
            views = self.store.codes[number, self.ranges[place]]
            write_npy((codes, labels), number, views, label, leading_axis=self.leading_axis)

    def finish(self) -> list[str]:
        return list(self.ranges)


class _Lines(_Export):
    """One file with a line for each view; each process writes its part of it."""

    def write(self) -> None:
        rank = self.workspace.shard.rank
        with open(self._part(rank), "a") as self.file:
            self.file.truncate(self._read_record(rank).get("bytes", 0))
            super().write()

    def write_one(self, number: int) -> None:
        write_jsonl(self.file, self.store.codes[number], int(self.store.labels[number]))

    def record(self, done: int) -> dict[str, int]:
        self.file.flush()
        return {"images": done, "bytes": os.fstat(self.file.fileno()).st_size}

    def finish(self) -> list[str]:
        parts = [self._part(rank) for rank in range(self.workspace.shard.size)]
        with write_atomically(self.workspace.path("codes.jsonl")) as temporary, open(temporary, "wb") as whole:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, whole)
        for part in self.workspace.folder.glob("codes-*-of-*.jsonl"):
            part.unlink()
        return ["codes.jsonl"]

    def _part(self, rank: int) -> Path:
        return self.workspace.path(f"codes-{rank}-of-{self.workspace.shard.size}.jsonl")


def _ranges(store: CodeStore) -> Iterator[tuple[str, slice]]:
    """The folder of each of the store's crop ranges, or of all its views, by LlamaGen's names; and which views."""
    ranges = CROP_RANGES.get(store.views)
    if ranges is None:
        yield store.views, slice(None)
        return
    for number, crop_range in enumerate(ranges):
        yield _TEN_CROP_FOLDERS[crop_range], slice(10 * number, 10 * (number + 1))
