"""The Hugging Face hub, as a place where files are: `hf:owner/name[@revision][/folder][/file]`.

Everything goes through the hub's own client: its cache, its token, its settings (`HF_HOME`, `HF_TOKEN`,
`HF_HUB_OFFLINE`, `HF_ENDPOINT`). Where the hub cannot be asked, what the cache holds is used.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from codeprior.errors import InputError

HUB = "hf:"
_SOURCE = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?")


def is_on_hub(source: Path | str) -> bool:
    """Whether a source names something on the hub."""
    return str(source).startswith(HUB)


def source_name(source: Path | str) -> str:
    """A source as people write it; `hf:owner/name` may have come as a path."""
    return Path(source).as_posix() if is_on_hub(source) else str(source)


def split_source(source: Path | str) -> tuple[str, str | None, str]:
    """Repository, revision and what is asked for in it ("" for all) of a source.

    Raises
    ------
    InputError
        If it names no repository.
    """
    match = _SOURCE.fullmatch(source_name(source).rstrip("/"))
    if match is None:
        raise InputError(f"{source} must name a repository: hf:owner/name[@revision][/folder][/file]")
    return match["repository"], match["revision"], match["path"] or ""


class Hub:
    """A repository below a folder; without the network, what the cache of the hub's client holds of it."""

    def __init__(self, source: str, repository: str, revision: str | None, folder: str) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(library_name="codeprior")
        self._source, self._repository, self._revision = source, repository, revision
        self._folder = f"{folder}/" if folder else ""
        self._names: set[str] | None = None
        self.missing = "is not in the repository"
        try:
            self._names = {
                entry.rfilename for entry in self._api.model_info(repository, revision=revision).siblings or ()
            }
        except Exception as error:  # the client raises its own types, and those of the HTTP library it stands on
            self.missing = f"is not in the cache, and the hub cannot be asked: {first_line(error)}"

    @classmethod
    def folder(cls, source: Path | str) -> Hub:
        """The folder that a source names."""
        return cls(source_name(source), *split_source(source))

    def listing(self) -> list[str]:
        """Names of the files below the folder."""
        if self._names is None:
            raise InputError(f"{self._source} {self.missing}")
        return sorted(name.removeprefix(self._folder) for name in self._names if name.startswith(self._folder))

    def fetch(self, name: str) -> Path | None:
        """A file, from the cache or downloaded into it; None where there is none."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        if ".." in PurePosixPath(name).parts:
            raise InputError(f"{self._source} names a file outside of itself: {name}")
        name, offline = self._folder + name, self._names is None
        if self._names is not None and name not in self._names:
            return None
        try:
            found = self._api.hf_hub_download(self._repository, name, revision=self._revision, local_files_only=offline)
            return Path(found)
        except LocalEntryNotFoundError:
            return None
        except Exception as error:  # as above
            raise InputError(f"cannot fetch {name} of {self._source}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error of the hub's client says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
