"""Sets of images to judge, or to judge by: as pixels, as features, as statistics, in whatever file they come."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codeprior import embedded
from codeprior.artifact import MANIFEST, UNFINISHED, digest_json, digest_sampled, read_manifest, with_article
from codeprior.crops import to_rgb
from codeprior.errors import InputError
from codeprior.evaluation.statistics import Gaussian
from codeprior.hub import is_on_hub
from codeprior.images import IMAGE_SUFFIXES, ImageSet, open_images
from codeprior.machine import available_threads
from codeprior.npz import MappedNpz

SAMPLES, REFERENCE = "samples.npz", "reference.npz"
NOTE = "codeprior"  # the key of what our own files say of themselves, as JSON
_JPEG = (".jpg", ".jpeg")
_FILES_OF = {"samples": SAMPLES, "reference": REFERENCE}
_STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True, eq=False)
class Images:
    """Square images that are read when they are needed: `read` gives those of some numbers, uint8 (B, S, S, 3)."""

    n_images: int
    size: int
    read: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    is_scaled: bool = False
    """Whether they are cut to squares and scaled on the way, in a manner that others may not share."""
    is_jpeg: bool = False
    """Whether some were compressed after they had been made."""


@dataclass(frozen=True, eq=False)
class Source:
    """What is known of a set of images: its pixels, features of theirs, statistics, in whatever combination."""

    name: str
    digest: str
    images: Images | None = None
    labels: np.ndarray | None = None
    features: np.ndarray | None = None
    """(N, F), where a file holds them already."""
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    statistics: Mapping[str, Gaussian] = field(default_factory=dict)
    """Of "features" and "spatial", as a reference batch comes with: of more images than it holds, perhaps."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What a file of ours says: of which images and which network it is, and what it is meant for."""

    @property
    def n_images(self) -> int | None:
        """Images at hand, as pixels or features; None of statistics alone."""
        if self.images is not None:
            return self.images.n_images
        return None if self.features is None else len(self.features)

    @property
    def image_size(self) -> int | None:
        """Side of the images, pixels, where it is known."""
        return self.note.get("image_size") if self.images is None else self.images.size


def open_source(place: str, image_size: int | None = None, *, seed: int = 0, bad_images: str = "refuse") -> Source:
    """Open a set of images, without decoding them.

    Parameters
    ----------
    place : str
        A folder from `sample` or `reference`; an `.npz` with images (arr_0, uint8 NHWC, and perhaps labels, arr_1),
        statistics (mu, sigma, and perhaps mu_s, sigma_s), features (features, and perhaps spatial), or several of
        these, as ADM's reference batches; an `.npy` of features; a folder of images of one size; or, where
        `image_size` is given, whatever `images.open_images` reads, cut to squares.
    image_size : int, optional
        Side of the squares, pixels.
    seed, bad_images
        See `images.open_images`.

    Raises
    ------
    InputError
        If there is nothing to be read, or images are not as they must be: uint8, square, RGB, of one size.
    """
    path = Path(place)
    if is_on_hub(place) or (path / MANIFEST).exists() or (path / UNFINISHED).exists():
        manifest = read_manifest(place)
        if manifest.kind not in _FILES_OF:
            raise InputError(f"{place} holds {with_article(manifest.kind)}, neither samples nor a reference")
        return _open_npz(manifest.path(_FILES_OF[manifest.kind]), manifest.digest, name=path.name)
    if path.is_file() and path.suffix == ".npz":
        return _open_npz(path, digest_sampled(path))
    if path.is_file() and path.suffix == ".npy":
        return _open_npy(path)
    if path.is_dir() and (files := _flat_images(path)):
        return _open_files(path, files)
    if image_size is None and path.is_dir():
        files = sorted(found for found in path.rglob("*") if _is_image(found))
        return _open_files(path, files)
    if image_size is None:
        raise InputError(f"no samples at {place}; give a folder from `codeprior sample`, or an .npz with arr_0")
    return set_source(open_images(place, bad_images=bad_images, seed=seed), image_size)


def set_source(images: ImageSet, image_size: int, numbers: np.ndarray | None = None) -> Source:
    """A set of images, or those with some numbers, cut to squares of that size."""
    chosen = np.arange(len(images)) if numbers is None else numbers

    def read(rows: np.ndarray) -> np.ndarray:
        return images.read_many(chosen[rows], image_size)

    is_square = images.name in embedded.NAMES or images.opener(int(chosen[0])).size == (image_size, image_size)
    pixels = Images(len(chosen), image_size, read, is_scaled=not is_square)
    return Source(images.name, images.digest, pixels, images.labels[chosen])


# -- arrays --


def _open_npz(path: Path, digest: str, name: str | None = None) -> Source:
    arrays = MappedNpz(path)
    if not {"arr_0", "mu", "features"} & set(arrays):
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold arr_0 (uint8 NHWC), mu and sigma, or features"
        )
    images = _check_pixels(arrays["arr_0"], path) if "arr_0" in arrays else None
    features = _check_features(arrays["features"], path) if "features" in arrays else None
    n_images = images.n_images if images is not None else len(features) if features is not None else None
    if images is not None and features is not None and len(features) != n_images:
        raise InputError(f"{path} has {n_images} images but features of {len(features)}")
    return Source(
        name or path.stem,
        digest,
        images,
        _check_labels(arrays["arr_1"], n_images, path) if "arr_1" in arrays else None,
        features,
        arrays.get("spatial"),
        arrays.get("probabilities"),
        _read_statistics(arrays, path),
        read_note(arrays),
    )


def _open_npy(path: Path) -> Source:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}; is the file complete?") from error
    return Source(path.stem, digest_sampled(path), features=_check_features(features, path))


def _check_pixels(pixels: np.ndarray, path: Path) -> Images:
    """Refuse what are not the images that networks judge, saying what they look like."""
    said = f"arr_0 of {path} must be square uint8 RGB images (N, H, H, 3), got {pixels.dtype} {pixels.shape}"
    if pixels.dtype.kind == "f":
        raise InputError(f"{said}; write 127.5 x + 128 of values in [-1, 1], or 255 x of [0, 1], clipped, as uint8")
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[3] != 3:
        raise InputError(f"{said}; channels must come last: transpose(0, 2, 3, 1)")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels):
        raise InputError(said)
    if pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
        raise InputError(said)
    if pixels[: min(len(pixels), 64)].max() <= 1:
        raise InputError(f"arr_0 of {path} holds no value above 1: scale images in [0, 1] by 255 before they are uint8")
    return Images(len(pixels), pixels.shape[1], pixels.__getitem__)


def _check_features(features: np.ndarray, path: Path) -> np.ndarray:
    if features.dtype.kind != "f" or features.ndim != 2 or not len(features):
        raise InputError(
            f"features of {path} must be a matrix of floats, a row an image, got {features.dtype} {features.shape}"
        )
    return features


def _check_labels(labels: np.ndarray, n_images: int | None, path: Path) -> np.ndarray:
    if labels.shape != (n_images,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            f"arr_1 of {path} must be {n_images} labels, integers from 0, got {labels.dtype} {labels.shape}"
        )
    return np.asarray(labels, dtype=np.int64)


def _read_statistics(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Gaussian]:
    found = {}
    for which, (mean, covariance) in _STATISTICS.items():
        if mean not in arrays:
            continue
        if covariance not in arrays:
            raise InputError(f"{path} holds {mean} but no {covariance}")
        values = [np.array(arrays[key], dtype=np.float64) for key in (mean, covariance)]
        if values[0].ndim != 1 or values[1].shape != 2 * values[0].shape:
            raise InputError(f"{mean} and {covariance} of {path} do not fit: {values[0].shape}, {values[1].shape}")
        found[which] = Gaussian(*values)
    return found


def statistics_arrays(statistics: Mapping[str, Gaussian]) -> dict[str, np.ndarray]:
    """Statistics under the keys of ADM's reference batches."""
    keys = {which: _STATISTICS[which] for which in statistics}
    return {
        key: array
        for which, (mean, covariance) in keys.items()
        for key, array in ((mean, statistics[which].mean), (covariance, statistics[which].covariance))
    }


def note_array(note: Mapping[str, Any]) -> np.ndarray:
    """A note as an array of text, which others' readers of an `.npz` pass over."""
    return np.array(json.dumps(dict(note)))


def read_note(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a file of ours says of itself; nothing for others' files."""
    if NOTE not in arrays:
        return {}
    note: dict[str, Any] = json.loads(str(arrays[NOTE]))
    return note


# -- folders of samples --


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _flat_images(folder: Path) -> list[Path]:
    """Images that lie in a folder itself, 2.png before 10.png."""
    return sorted(filter(_is_image, folder.iterdir()), key=lambda path: (_number(path.stem), path.name))


def _number(stem: str) -> int:
    digits = re.findall(r"\d+", stem)
    return int(digits[-1]) if digits else 0


def _open_files(folder: Path, files: list[Path]) -> Source:
    """Images as they are, all of one size: that of each is looked up now, in its header."""
    if not files:
        raise InputError(f"{folder} holds no images, and is no folder from `codeprior sample` or `codeprior reference`")
    with ThreadPoolExecutor(available_threads()) as pool:
        sizes = list(pool.map(_size_of, files))
    other = next((number for number, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise InputError(
            f"{files[other]} is {_pixels(sizes[other])}, {files[0].name} {_pixels(sizes[0])}: images of several sizes "
            "make no score, and they are not resized here"
        )
    if sizes[0][0] != sizes[0][1]:
        raise InputError(f"the images of {folder} are {_pixels(sizes[0])}; they must be square")

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([_read_file(files[int(row)]) for row in rows])

    digest = digest_json([[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])
    is_jpeg = any(path.suffix.lower() in _JPEG for path in files)
    return Source(folder.name, digest, Images(len(files), sizes[0][0], read, is_jpeg=is_jpeg))


def _size_of(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.size


def _read_file(path: Path) -> np.ndarray:
    with _opened(path) as image:
        return np.asarray(to_rgb(image))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # the decoders raise many types
        raise InputError(f"{path} is not a readable image ({error})") from error


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
