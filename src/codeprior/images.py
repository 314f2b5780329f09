"""Images from folders, parquet and npz files or from installed packages, cropped to squares; NumPy and Pillow."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codeprior import embedded
from codeprior.artifact import digest_array, digest_json, digest_sampled
from codeprior.crops import all_views, centre_crop
from codeprior.errors import InputError
from codeprior.machine import available_threads
from codeprior.npz import HELD_IN_MEMORY_BYTES, MappedNpz
from codeprior.progress import track

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_CHECKED_AT_ONCE = 256
_FILES_DIGESTED = 64
_THREADED_SIDE = 128  # smaller images are read faster than threads are started
_SHARD = re.compile(r"(.+)-\d+-of-\d+")

Opener = Callable[[int], Image.Image]


class BadImageError(InputError):
    """An image that cannot be decoded; `reason` names it and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; mend it or use --bad-images skip")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images that are decoded when they are read; reading a bad one raises `BadImageError`.

    `labels` is int64 (N,), below `len(class_names)`. `digest` names the content, the same on every machine: of class
    folders the names and sizes of all files and the bytes of 64 of them, of large files their size and 64 blocks.
    `skipped` names what was left out, with the reason.
    """

    name: str
    digest: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    opener: Opener = field(repr=False)
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, image_size: int) -> np.ndarray:
        """One image, cut to a square: uint8 (image_size, image_size, 3)."""
        return centre_crop(self.opener(index), image_size)

    def read_views(self, index: int, image_size: int, name: str) -> np.ndarray:
        """All views of one image (see `crops.all_views`): uint8 (A, image_size, image_size, 3)."""
        return all_views(self.opener(index), name, image_size)

    def read_many(self, indices: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
        """Some images: uint8 (n, image_size, image_size, 3)."""
        read = partial(self.read, image_size=image_size)
        if image_size < _THREADED_SIDE:
            return np.stack([read(int(index)) for index in indices])
        with ThreadPoolExecutor(available_threads()) as pool:
            return np.stack(list(pool.map(read, (int(index) for index in indices))))


def open_images(data: str, *, bad_images: str = "refuse", seed: int = 0) -> ImageSet:
    """Open labelled images, without decoding them.

    Parameters
    ----------
    data : str
        A folder with one folder a class (classes in the order of their names), `.parquet` files (one, a folder of
        them, or a pattern such as `data/train-*.parquet`), an `.npz` file (`arr_0` uint8 NHWC, `arr_1` labels), or
        `digits`, `digits:heldout`, `photos12`, `photos12:heldout`.
    bad_images : {"refuse", "skip", "later"}
        What to do with images that cannot be decoded or lie outside the class folders: refuse them (the latter now,
        the former when one is read), decode all now to leave them out, or leave out the latter alone: then it is the
        reader who catches `BadImageError`.
    seed : int
        Seed of the random crops of photos12. What is held out does not depend on it.

    Raises
    ------
    InputError
        If there are no images, or bad ones that are to be refused.
    """
    images = _open(data, bad_images, seed)
    return _without_bad(images) if bad_images == "skip" else images


def _open(data: str, bad_images: str, seed: int) -> ImageSet:
    if data in embedded.NAMES:
        return _open_embedded(data, seed)
    path = Path(data)
    if "*" in path.name:
        return _open_parquet(path, sorted(path.parent.glob(path.name)))
    if not path.exists():
        raise InputError(f"no images at {data}: give a folder, .parquet, .npz, or one of {', '.join(embedded.NAMES)}")
    if path.suffix == ".parquet":
        return _open_parquet(path, [path])
    if path.suffix == ".npz":
        return _open_npz(path)
    if not path.is_dir():
        raise InputError(f"cannot read images from {path.name}; give a folder, a .parquet or an .npz file")
    if files := sorted(path.glob("*.parquet")):
        return _open_parquet(path, files)
    return _open_folder(path, bad_images)


def _open_embedded(data: str, seed: int) -> ImageSet:
    squares, labels, class_names = embedded.load(data, seed)
    digest = digest_json([digest_array(labels), digest_array(squares)])
    return ImageSet(data, digest, labels, class_names, lambda index: Image.fromarray(squares[index]))


# -- class folders --


def _open_folder(root: Path, bad_images: str) -> ImageSet:
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    stray = sorted(entry.name for entry in root.iterdir() if _is_image(entry))
    if not classes:
        holds = "no class folders" if stray else "no images"
        raise InputError(f"{root} holds {holds}; put the images in one folder a class, for example {root / 'all'}")
    if stray and bad_images == "refuse":
        raise InputError(f"{len(stray)} images lie outside the class folders of {root}, first {stray[0]}; move them")
    files = [_class_files(root / name, name) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in files])
    names = [name for found in files for name, _ in found]
    sizes = [size for found in files for _, size in found]
    sample = np.unique(np.linspace(0, len(names) - 1, _FILES_DIGESTED).round().astype(np.int64))
    digest = digest_json([names, sizes, [digest_sampled(root / names[index]) for index in sample]])

    def open_file(index: int) -> Image.Image:
        return _decode(root / names[index], names[index])

    skipped = [f"{name} (outside the class folders)" for name in stray]
    return ImageSet(root.name, digest, labels, tuple(classes), open_file, skipped)


def _class_files(folder: Path, name: str) -> list[tuple[str, int]]:
    """Names and sizes of the images of a class, which may hold one level more, as Tiny-ImageNet's `<class>/images`."""
    found = sorted(_scan(folder, name))
    if not found:
        raise InputError(f"class folder {folder} holds no images; remove it or fill it")
    inner = [file.removeprefix(f"{name}/").partition("/") for file, _ in found]
    parents = {first for first, slash, _ in inner if slash}
    if len(parents) > 1 and all(slash for _, slash, _ in inner):
        raise InputError(f"{folder} holds {len(parents)} folders of images; if these are the classes, give {folder}")
    return found


def _scan(folder: Path | str, prefix: str) -> Iterator[tuple[str, int]]:
    """The images below a folder. By `scandir`, which asks the disk once a file: there may be a million."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}/{entry.name}")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield f"{prefix}/{entry.name}", entry.stat().st_size


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


# -- parquet and npz --


def _open_parquet(path: Path, files: list[Path]) -> ImageSet:
    """Files in the hub's schema: a column image or img of {bytes, path}, a column label."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install 'codeprior[data]'") from None
    if not files:
        raise InputError(f"no files match {path}")
    splits = sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.stem))})
    if len(splits) > 1:
        raise InputError(
            f"{path} holds several splits ({', '.join(splits)}); give one: '{path}/{splits[-1]}-*.parquet'"
        )
    try:
        tables = [pq.ParquetFile(file) for file in files]
        labels = np.concatenate([table.read(["label"])["label"].to_numpy() for table in tables])
    except Exception as error:  # pyarrow raises a dozen types for a damaged file or a missing column
        raise InputError(
            f"cannot read images from {path}: {_first_line(error)}; it must have a column label"
        ) from error
    columns = [name for name in ("image", "img") if name in tables[0].schema_arrow.names]
    if not columns:
        raise InputError(
            f"{path} has columns {', '.join(tables[0].schema_arrow.names)}; images must be in image or img"
        )
    groups = [(table, group) for table in tables for group in range(table.num_row_groups)]
    starts = np.cumsum([0, *(table.metadata.row_group(group).num_rows for table, group in groups)])
    # A row group decodes whole. Training reads at random, so small data is kept; of large data only the last few.
    in_memory = sum(file.stat().st_size for file in files) <= HELD_IN_MEMORY_BYTES

    lock = threading.Lock()

    @lru_cache(maxsize=None if in_memory else 8)
    def read_group(number: int) -> list[Any]:
        table, group = groups[number]
        return table.read_row_group(group, columns=columns[:1])[columns[0]].to_pylist()

    def open_row(index: int) -> Image.Image:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        with lock:
            cell = read_group(number)[index - int(starts[number])]
        encoded = cell["bytes"] if isinstance(cell, dict) else cell
        return _decode(encoded or b"", f"{path.name} row {index}")

    names = _feature_names(tables[0].schema_arrow.metadata)
    digest = digest_json([digest_sampled(file) for file in files])
    return ImageSet(path.stem, digest, *_check_labels(labels, len(labels), names, path), open_row)


def _feature_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """Class names as the hub's `datasets` stores them in a parquet schema; empty where it did not."""
    described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    label = described.get("info", {}).get("features", {}).get("label", {})
    return tuple(label.get("names") or ())


def _open_npz(path: Path) -> ImageSet:
    """ADM's batch format: `arr_0` uint8 (N, H, W, 3) and, if there are labels, `arr_1` (N,)."""
    arrays = MappedNpz(path)
    if "arr_0" not in arrays:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold arr_0 (images)")
    pixels = arrays["arr_0"]
    labels = arrays["arr_1"] if "arr_1" in arrays else np.zeros(len(pixels), np.int64)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise InputError(f"arr_0 of {path} must be uint8 (N, H, W, 1 or 3), got {pixels.dtype} {pixels.shape}")
    squares = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    labels, class_names = _check_labels(np.array(labels), len(pixels), (), path)
    digest = digest_sampled(path)
    return ImageSet(path.stem, digest, labels, class_names, lambda index: Image.fromarray(squares[index]))


def _check_labels(
    labels: np.ndarray, n_images: int, names: tuple[str, ...], path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.shape != (n_images,) or labels.dtype.kind not in "iu" or not n_images or labels.min() < 0:
        raise InputError(f"labels of {path} must be {n_images} integers from 0, got {labels.dtype} {labels.shape}")
    names = names or tuple(str(label) for label in range(int(labels.max()) + 1))
    if labels.max() >= len(names):
        raise InputError(f"{path} has label {labels.max()} but only {len(names)} class names")
    return labels.astype(np.int64), names


# -- bad images --


def _decode(source: Path | bytes, name: str) -> Image.Image:
    try:
        encoded = source.read_bytes() if isinstance(source, Path) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which does not touch the pixels
            image = Image.open(io.BytesIO(encoded))
            image.load()
            return image
    except Exception as error:  # the decoders raise many types, struct.error and SyntaxError among them
        raise BadImageError(f"{name} is not a readable image ({_first_line(error)})") from error


def _without_bad(images: ImageSet) -> ImageSet:
    """The set without what cannot be decoded, which takes decoding everything."""

    def check(chunk: range) -> dict[int, str]:
        bad = {}
        for index in chunk:
            try:
                images.opener(index)
            except BadImageError as error:
                bad[index] = error.reason
        return bad

    bad: dict[int, str] = {}
    for found in _in_threads(check, len(images)):
        bad |= found
    good = np.array([index for index in range(len(images)) if index not in bad], dtype=np.int64)
    if not good.size:
        raise InputError(f"none of the {len(images)} images can be read")
    opener = images.opener
    return ImageSet(
        images.name,
        images.digest,
        images.labels[good],
        images.class_names,
        (lambda index: opener(int(good[index]))) if bad else opener,
        images.skipped + [bad[index] for index in sorted(bad)],
    )


def _in_threads(check: Callable[[range], dict[int, str]], n_images: int) -> Iterator[dict[int, str]]:
    chunks = [range(start, min(start + _CHECKED_AT_ONCE, n_images)) for start in range(0, n_images, _CHECKED_AT_ONCE)]
    with ThreadPoolExecutor(available_threads()) as pool:
        yield from track(pool.map(check, chunks), "checking images", total=len(chunks))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
