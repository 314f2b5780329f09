"""What the settings of all verbs share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from codeprior.errors import InputError

NOT_IDENTITY = {"identity": False}

Views = Literal["centre", "flip", "shift"]
"""Views that a square image gives: augmentation while training on images."""
StoredViews = Literal["centre", "flip", "shift", "ten-crop-1.1", "ten-crop-1.05", "ten-crop-1.1+1.05"]
"""Views that codes are stored of."""


def require(condition: bool, message: str) -> None:
    """Refuse a setting with that message unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_positive(config: object, *names: str) -> None:
    """Refuse settings of these names that are not above zero."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class VerbConfig:
    """What every verb understands."""

    seed: int = 0
    """Seed of everything random."""
    device: str = field(default="auto", metadata=NOT_IDENTITY)
    """cpu, cuda, cuda:1, ... or auto: a CUDA device if there is one (that of LOCAL_RANK under torchrun), else the
    CPU."""
    json: bool = field(default=False, metadata=NOT_IDENTITY)
    """Print the result as one line of JSON at the end."""
    dry_run: bool = field(default=False, metadata=NOT_IDENTITY)
    """Print the resolved settings as YAML and stop."""
    config: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """A YAML file of settings, or the name of a recipe that comes along (GPT-B-dcpe); flags given besides it win."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values; paths to inputs stand in the manifest as digests."""
        return {
            f.name: value
            for f in fields(self)
            if f.metadata.get("identity", True) and not isinstance(value := getattr(self, f.name), Path)
        }


@dataclass(frozen=True, kw_only=True)
class MakeConfig(VerbConfig):
    """A verb that leaves an artifact."""

    output: Path = field(metadata=NOT_IDENTITY)
    """Where the result goes. Run the same command again to continue an interrupted run."""
    overwrite: bool = field(default=False, metadata=NOT_IDENTITY)
    """Replace what --output holds if it was made with other settings or inputs."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Where images come from."""

    data: str = field(metadata=NOT_IDENTITY)
    """Images: a folder with one folder a class, a .parquet file (or a folder of them), an .npz file (arr_0 uint8 NHWC,
    arr_1 labels), or built-in: digits, digits:heldout, photos12, photos12:heldout."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be decoded: refuse names the first that is met, skip counts and
    leaves them out."""
