"""Sharing: artifacts saved by name, pushed to the Hugging Face hub with a card, and loaded again from either.

What is shared is an artifact's folder as it is: `manifest.json`, `config.json`, safetensors; and `README.md`, its card.
So every verb takes `hf:owner/name` where it takes a folder, and what was downloaded is compared with its digests.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

from codeprior.artifact import MANIFEST, Manifest, is_artifact, read_manifest, seal, short
from codeprior.errors import InputError
from codeprior.hub import first_line

CARD = "README.md"
_SOMEWHERE = "OWNER/NAME"  # in a card until it is known where it goes
_TASKS = {"checkpoint": "unconditional-image-generation"}
_USES = {
    "tokenizer": "codeprior encode --data IMAGES --tokenizer hf:{} --output codes",
    "checkpoint": "codeprior sample --checkpoint hf:{} --tokenizer TOKENIZER --output samples",
    "prior": "codeprior train --codes CODES --prior hf:{} --output model",
}
_CLASSES = {
    "tokenizer": 'from codeprior.tokenizers import load_tokenizer\n\ntokenizer = load_tokenizer("hf:{}")',
    "checkpoint": 'from codeprior.checkpoint import Checkpoint\n\ncheckpoint = Checkpoint.from_pretrained("{}")',
    "prior": 'from codeprior import CodebookPrior\n\nprior = CodebookPrior.from_pretrained("{}")',
}


class Shared:
    """What can be saved to a folder, pushed to the hub and loaded from both: tokenizers, checkpoints, priors."""

    kind: ClassVar[str]
    made: Manifest | None = None
    """What its folder says of its making, if it was loaded from one."""

    def write_files(self, folder: Path) -> list[str]:
        """Write everything but the manifest; the files' names."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The numbers that a card shows, where nothing more is known."""
        return {}

    @classmethod
    def open(cls, source: Path | str) -> Self:
        """Load from a folder, or from `hf:owner/name`."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, source: Path | str) -> Self:
        """Load from a folder, or from the hub: `owner/name`, `owner/name@revision` or `hf:owner/name`.

        Raises
        ------
        InputError
            If there is no such thing, or it is not whole.
        """
        is_elsewhere = re.fullmatch(r"[\w.-]+/[\w.-]+(@[^/]+)?", str(source)) and not Path(source).exists()
        return cls.open(f"hf:{source}" if is_elsewhere else source)

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> Manifest:
        """Write it as an artifact's folder, whole or not at all, with a card.

        Parameters
        ----------
        folder : path
            Created. One that holds this very thing already is left as it is.
        overwrite : bool
            Replace another artifact that the folder holds.

        Raises
        ------
        InputError
            If the folder holds something else.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        temporary.mkdir(parents=True)
        try:
            manifest = self._seal(temporary, self.write_files(temporary))
            (temporary / CARD).write_text(card(manifest, folder.name))
            _put(temporary, folder, manifest, overwrite=overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return read_manifest(folder, self.kind)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Save it and push it; see `push_folder` for the options. The commit's address."""
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / repository.rpartition("/")[2]
            self.save_pretrained(folder)
            return push_folder(folder, repository, **options)

    def _seal(self, folder: Path, files: list[str]) -> Manifest:
        """The manifest; with what is known of its making, if it is still what was made."""
        manifest = seal(folder, self.kind, files, {}, {}, self.facts())
        made = self.made
        if made is None or made.digest != manifest.digest:
            return manifest
        return seal(folder, self.kind, files, made.settings, made.inputs, made.results, made.time_s)


def push_folder(
    folder: Path | str,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Push an artifact's folder to a repository of the hub, which is made if there is none.

    Only the artifact's own files go, and a card: the folder's `README.md`, or a new one. A card that the repository has
    already is left alone.

    Parameters
    ----------
    folder : path
        A finished artifact.
    repository : str
        `owner/name`.
    private : bool, optional
        Of a repository that is made: whether only its owner sees it; default: as the owner's settings say.
    revision : str, optional
        Branch; default: main.
    message : str, optional
        Of the commit.
    token : str, optional
        Default: that of `hf auth login`, or `HF_TOKEN`.

    Returns
    -------
    url : str
        Of the commit.

    Raises
    ------
    InputError
        If the folder is no finished artifact, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    manifest = read_manifest(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"a repository is named owner/name, got {repository}")
    api = HfApi(token=token, library_name="codeprior")
    files = {name: manifest.path(name) for name in (*manifest.files, MANIFEST)}
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        if not api.file_exists(repository, CARD, revision=revision):
            operations.append(CommitOperationAdd(CARD, _card_of(manifest, repository).encode()))
        done = api.create_commit(
            repository, operations, commit_message=message or f"A {manifest.kind} of codeprior", revision=revision
        )
    except Exception as error:  # the client raises its own types, and those of the HTTP library it stands on
        raise InputError(f"cannot push to {repository}: {first_line(error)}") from None
    return str(done.commit_url)


def card(manifest: Manifest, name: str) -> str:
    """A card for the hub: what the artifact is, what it was made with, how it is used."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="codeprior",
        tags=["codeprior", manifest.kind, "autoregressive-image-generation", "vector-quantization"],
        pipeline_tag=_TASKS.get(manifest.kind),
    )
    template = (Path(__file__).parent / "templates" / "card.md").read_text()
    made = ModelCard.from_template(
        data,
        template_str=template,
        name=name,
        kind=manifest.kind,
        digest=short(manifest.digest),
        rows={"results": _rows(manifest.results), "settings": _rows(manifest.settings)},
        inputs={name: short(digest) for name, digest in manifest.inputs.items()},
        command=_USES.get(manifest.kind, "codeprior inspect hf:{}").format(_SOMEWHERE),
        code=_CLASSES.get(manifest.kind, "").format(_SOMEWHERE),
        versions=manifest.environment,
    )
    return str(made)


def _card_of(manifest: Manifest, repository: str) -> str:
    path = manifest.path(CARD)
    text = path.read_text() if path.exists() else card(manifest, repository.rpartition("/")[2])
    return text.replace(_SOMEWHERE, repository)


def _rows(values: dict[str, Any]) -> dict[str, str]:
    """What of settings or results fits a table: plain values, digests in brief."""
    plain = {name: str(value) for name, value in values.items() if isinstance(value, str | int | float) and value != ""}
    brief = {name: short(text) if text.startswith("sha256:") else text for name, text in plain.items()}
    return {name: text.replace("|", "\\|") for name, text in brief.items() if len(text) < 80}


def _put(made: Path, folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Move a finished folder to its place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not folder.is_dir() or not is_artifact(folder):
            raise InputError(f"{folder} is not empty and not codeprior's; choose another folder")
        if (folder / MANIFEST).exists() and read_manifest(folder).digest == manifest.digest:
            return
        if not overwrite:
            raise InputError(f"{folder} holds another artifact; choose another folder, or replace it with overwrite")
        shutil.rmtree(folder)
    if folder.exists():
        folder.rmdir()
    os.replace(made, folder)
