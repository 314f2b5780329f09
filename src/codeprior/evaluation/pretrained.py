"""Published weights that scores are defined by: where researchers already have them, and how to get them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from codeprior.artifact import digest_file
from codeprior.errors import InputError
from codeprior.progress import announce

FOLDER_VARIABLE = "CODEPRIOR_WEIGHTS"
"""Names a folder to look in first."""


@dataclass(frozen=True)
class Published:
    """A file of weights: what it is for, what it is called, the SHA-256 that the first of its names stands for, and
    what to do without it."""

    what: str
    purpose: str
    names: tuple[str, ...]
    sha256: str
    url: str
    instead: str


INCEPTION = Published(
    "Inception of 2015",
    "FID, sFID, KID, IS",
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "scores of other networks need none: --features CLASSIFIER",
)
_NO_LPIPS = "leave out --lpips"
VGG16 = Published(
    "VGG-16",
    "LPIPS[vgg]",
    ("vgg16-397923af.pth",),
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    _NO_LPIPS,
)
ALEXNET = Published(
    "AlexNet",
    "LPIPS[alex]",
    ("alexnet-owt-7be5be79.pth",),
    "7be5be79",  # as much as its name says
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    _NO_LPIPS,
)
_HEADS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
LPIPS_VGG = Published(
    "LPIPS' weights of VGG-16's layers",
    "LPIPS[vgg]",
    ("vgg.pth", "vgg_lpips.pth"),
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    f"{_HEADS}/vgg.pth",
    _NO_LPIPS,
)
LPIPS_ALEX = Published(
    "LPIPS' weights of AlexNet's layers",
    "LPIPS[alex]",
    ("alex.pth",),
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    f"{_HEADS}/alex.pth",
    _NO_LPIPS,
)
ALL = (INCEPTION, VGG16, LPIPS_VGG, ALEXNET, LPIPS_ALEX)


class Found(NamedTuple):
    """A file, by which way it was found, and its digest."""

    path: Path
    way: str
    digest: str

    def is_published(self, published: Published) -> bool:
        """Whether it holds what was published."""
        return self.digest.startswith(f"sha256:{published.sha256}")


def find_weights(published: Published, given: Path | None = None, *, download: bool = False) -> Found:
    """A file of published weights, and say which it is.

    Looked for where it is said to be, in the folder that CODEPRIOR_WEIGHTS names, in torch's hub cache (where
    torch-fidelity, pytorch-fid and torchvision put theirs), and in an installed lpips package; then, if that is
    allowed, downloaded into the hub cache, its hash checked.

    Raises
    ------
    InputError
        If it is nowhere; says what to do.
    """
    if given is not None and not given.is_file():
        raise InputError(f"no weights at {given}: there is no such file")
    found = (given, "as given") if given is not None else locate(published)
    if found is None and download:
        found = _download(published), "downloaded"
    if found is None:
        places = ", ".join(str(folder) for folder, _ in searched_folders())
        raise InputError(
            f"{published.what}, by which {published.purpose} is defined, is not at hand: put {published.names[0]} "
            f"({published.url}) into one of {places}, or allow --download; {published.instead}"
        )
    weights = Found(*found, digest_file(found[0]))
    said = weights.way if weights.is_published(published) else f"{weights.way}; not what was published"
    announce(f"{published.what}: {weights.path} ({said})")
    return weights


def locate(published: Published) -> tuple[Path, str] | None:
    """Where a file lies already and which way it was found; None if nowhere."""
    for folder, way in searched_folders():
        for name in published.names:
            if (folder / name).is_file():
                return folder / name, way
    return None


def searched_folders() -> Iterator[tuple[Path, str]]:
    """Where files are looked for, in order, and what each place is called."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        yield Path(folder), FOLDER_VARIABLE
    yield hub_folder(), "torch hub's cache"
    package = importlib.util.find_spec("lpips")
    if package is not None and package.origin is not None:
        yield Path(package.origin).parent / "weights" / "v0.1", "lpips package"


def hub_folder() -> Path:
    """Where torch.hub keeps what it has downloaded: below TORCH_HOME, or XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def _download(published: Published) -> Path:
    from torch.hub import download_url_to_file

    path = hub_folder() / published.names[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    announce(f"downloading {published.url}")
    try:
        download_url_to_file(published.url, str(path), hash_prefix=published.sha256)
    except (OSError, RuntimeError) as error:  # no network, or another hash
        raise InputError(f"cannot download {published.url}: {error}; fetch it by hand into {path.parent}") from error
    return path
