"""Artifacts: the files that the rooms hand each other, written whole, signed with digests, checked on reading.

An artifact is a folder with a `manifest.json`: what it is, the settings and inputs that it was made from, its files
with their digests, its results. While it is being made the folder holds `unfinished.json` instead, so that a killed run
is recognised and continued, and a finished one is not done twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from codeprior.errors import InputError
from codeprior.hub import Hub, is_on_hub, split_source
from codeprior.shards import Shard
from codeprior.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_DIGEST_LIMIT_BYTES = 256 * 2**20  # larger files are checked by size alone when an artifact is opened
_SAMPLED_BLOCKS, _SAMPLED_BYTES = 64, 2**20


def digest_bytes(*chunks: bytes) -> str:
    """SHA-256 of the chunks, as `sha256:<64 hex digits>`."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


def digest_array(array: np.ndarray) -> str:
    """Digest of an array's dtype, shape and values (C order, little-endian): equal arrays have equal digests."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return digest_bytes(f"{array.dtype.str}{array.shape}".encode(), array.tobytes())


def digest_file(path: Path) -> str:
    """Digest of a file's bytes; about a second a gigabyte."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_sampled(path: Path) -> str:
    """Digest of a file's bytes, or, above 64 MiB, of its size and 64 blocks of 1 MiB evenly spaced, ends included."""
    size = path.stat().st_size
    n_blocks = min(_SAMPLED_BLOCKS, -(-size // _SAMPLED_BYTES))
    last = max(0, size - _SAMPLED_BYTES)
    blocks = [str(size).encode()]
    with open(path, "rb") as file:
        for number in range(n_blocks):
            file.seek(last * number // max(1, n_blocks - 1))
            blocks.append(file.read(_SAMPLED_BYTES))
    return digest_bytes(*blocks)


def digest_json(value: Any) -> str:
    """Digest of a JSON value, whatever the order of its keys."""
    return digest_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def short(digest: str) -> str:
    """A digest as people compare it: the first twelve hex digits."""
    return digest.removeprefix("sha256:")[:12]


@contextlib.contextmanager
def write_atomically(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on an error remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors makes files that their owner alone can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)  # it can only be read by setting it
    os.umask(mask)
    return mask


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: the library's, at random, gives equal content other bytes."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON value, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        If the file is absent or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a JSON file ({error}); is it complete?") from None


@dataclass(frozen=True)
class Manifest:
    """What an artifact folder says of itself.

    `files` maps names to `{"bytes": int, "digest": str}`; `inputs` maps names to the digests of what it was made from.
    """

    folder: Path
    kind: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, dict[str, Any]]
    results: dict[str, Any]
    time_s: float
    environment: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Digest of the content: kind and files, neither time nor place."""
        return digest_json([self.kind, {name: entry["digest"] for name, entry in self.files.items()}])

    def path(self, name: str) -> Path:
        """Path of one of the artifact's files."""
        return self.folder / name


def with_article(kind: object) -> str:
    """A kind of artifact as a sentence has it: "a prior", "codes"."""
    name = str(kind)
    return name if name.endswith("s") else f"{'an' if name.startswith(('a', 'e', 'i', 'o', 'u')) else 'a'} {name}"


def read_manifest(folder: Path | str, kind: str | None = None) -> Manifest:
    """Read and check the manifest of a finished artifact, in a folder or on the Hugging Face hub.

    From the hub, `hf:owner/name[@revision][/folder]`, the files that the manifest names come into the client's cache;
    they are compared with their digests whatever their size.

    Raises
    ------
    InputError
        If the folder is absent, unfinished, of another kind or format, or one of its files is missing, of another size
        or (up to 256 MiB) of another content than was written.
    """
    wanted = kind or "artifact"
    limit = _DIGEST_LIMIT_BYTES
    if is_on_hub(folder):
        folder, limit = fetch_artifact(folder, wanted), sys.maxsize
    folder = Path(folder)
    if folder.is_file():
        raise InputError(
            f"{folder} is a file, not a folder of ours; of an original's checkpoint, `codeprior convert` makes one"
        )
    if not folder.is_dir():
        raise InputError(f"no {wanted} at {folder}: there is no such folder")
    if (folder / UNFINISHED).exists() and not (folder / MANIFEST).exists():
        raise InputError(f"the {wanted} at {folder} is unfinished; run the command that makes it again to continue it")
    if not (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds no {wanted}: it has no {MANIFEST}")
    record = read_json(folder / MANIFEST)
    if record.get("format") != FORMAT:
        raise InputError(f"{folder} has format {record.get('format')}; this version of codeprior reads format {FORMAT}")
    manifest = Manifest(folder=folder, **record)
    if kind is not None and manifest.kind != kind:
        raise InputError(f"{folder} holds {with_article(manifest.kind)}, not {with_article(kind)}")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise InputError(f"{path} is missing; remove {folder} and make it again")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise InputError(
                f"{path} has {size} bytes, {entry['bytes']} were written; remove {folder} and make it again"
            )
        if size <= limit and digest_file(path) != entry["digest"]:
            raise InputError(f"{path} was changed after it was written; remove {folder} and make it again")
    return manifest


def is_artifact(source: Path | str) -> bool:
    """Whether a folder, here or on the hub, is an artifact of codeprior, be it unfinished."""
    if not is_on_hub(source):
        return any((Path(source) / name).exists() for name in (MANIFEST, UNFINISHED))
    return not Path(split_source(source)[2]).suffix and Hub.folder(source).fetch(MANIFEST) is not None


def fetch_artifact(source: Path | str, wanted: str = "artifact") -> Path:
    """Bring an artifact from the hub into the cache: its manifest and the files that this names. Their folder.

    Raises
    ------
    InputError
        If it is not there, or not whole.
    """
    hub = Hub.folder(source)
    path = hub.fetch(MANIFEST)
    if path is None:
        raise InputError(f"{source} holds no {wanted} of codeprior: {MANIFEST} {hub.missing}")
    record = read_json(path)
    files = record.get("files") if isinstance(record, dict) else None
    for name in files if isinstance(files, dict) else ():
        if hub.fetch(name) is None:
            raise InputError(f"{name} of {source} {hub.missing}")
    return path.parent


def environment() -> dict[str, Any]:
    """The versions and the machine that a result was made with (only of packages already imported)."""
    names = ("numpy", "numba", "scipy", "sklearn", "torch")
    versions = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    return {
        "codeprior": VERSION,
        "python": platform.python_version(),
        **versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def seal(
    folder: Path,
    kind: str,
    files: list[str],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    results: Mapping[str, Any],
    time_s: float = 0.0,
) -> Manifest:
    """Write the manifest of a folder whose files are all there; from here on it is a finished artifact."""
    manifest = Manifest(
        folder=folder,
        kind=kind,
        settings=dict(settings),
        inputs=dict(inputs),
        files={
            name: {"bytes": (folder / name).stat().st_size, "digest": digest_file(folder / name)}
            for name in sorted(files)
        },
        results=json.loads(json.dumps(dict(results), default=_plain)),
        time_s=round(time_s, 3),
        environment=environment(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    record = asdict(manifest)
    del record["folder"]
    write_json(folder / MANIFEST, record)
    return manifest


class Workspace:
    """An artifact folder while it is being made.

    Opening it decides what is left to do: `complete` is true where the same settings and inputs have already been
    worked off, `resumed` where a run with them was interrupted. A folder that holds other work is refused, or cleared
    if `overwrite` is set. The folder is locked: a second process that opens it is refused, unless both are shards of
    the same work; then a second process of the same rank is.

    Parameters
    ----------
    folder : path
        Created if missing.
    kind : str
        What is being made: "tokenizer", "codes", ...
    settings : mapping
        What decides the result. Not the device, not the place, nothing that only decides how fast.
    inputs : mapping of str to digest
        What it is made from.
    overwrite : bool
        Clear a folder that holds something else, or this with files missing or changed.
    shard : Shard
        Which of the processes that make it together this is. One of them calls `finish`, inside of `alone`.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        kind: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        overwrite: bool = False,
        shard: Shard = Shard(),  # noqa: B008 - frozen
    ) -> None:
        self.shard = shard
        self.folder = Path(folder)
        self.kind = kind
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
        self.inputs = dict(inputs)
        self.manifest: Manifest | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; choose a folder as --output")
        self._is_new = not self.folder.exists() and shard.alone
        self.folder.mkdir(parents=True, exist_ok=True)
        self._locks = self._acquire_locks()
        if shard.alone:
            for leftover in self.folder.glob(".*.partial"):  # of a write that was killed
                _remove(leftover)
        try:
            self._open(overwrite)
        except BaseException:
            self.close()
            raise

    def _open(self, overwrite: bool) -> None:
        difference = self._difference()
        if difference is None and (self.folder / MANIFEST).exists():
            try:
                self.manifest = read_manifest(self.folder, self.kind)
            except InputError:  # a file is missing or changed
                if not overwrite:
                    raise
                self._clear()
        elif difference is not None:
            if not overwrite:
                raise InputError(f"{self.folder} {difference}; choose another --output, or replace it with --overwrite")
            self._clear()
        self.resumed = (self.folder / UNFINISHED).exists()
        self._spent_s = float(read_json(self.folder / UNFINISHED)["time_s"]) if self.resumed else 0.0
        self._started = time.monotonic()
        if self.manifest is None and (self.shard.rank == 0 or not self.resumed):
            self.checkpoint()
            with write_atomically(self.folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.manifest is not None

    def path(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.folder / name

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other shard is inside of here; what one of them finished meanwhile is `complete`."""
        with open(self.folder / ".alone", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.folder / MANIFEST).exists():
                self.manifest = read_manifest(self.folder, self.kind)
            yield

    def checkpoint(self) -> None:
        """Record the time spent so far, so that a resumed run adds to it; of several shards the first one's counts."""
        record = {
            "format": FORMAT,
            "kind": self.kind,
            "settings": self.settings,
            "inputs": self.inputs,
            "time_s": self._spent_s + time.monotonic() - self._started,
        }
        write_json(self.folder / UNFINISHED, record)

    def finish(self, files: list[str], results: Mapping[str, Any]) -> Manifest:
        """Write the manifest; the artifact is complete from here on.

        Parameters
        ----------
        files : list of str
            The files that are the artifact; logs and pictures need not be among them.
        results : mapping
            The numbers to report, as JSON values.
        """
        time_s = self._spent_s + time.monotonic() - self._started
        self.manifest = seal(self.folder, self.kind, files, self.settings, self.inputs, results, time_s)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return self.manifest

    def _difference(self) -> str | None:
        """How what the folder holds differs from what is to be made; None if it does not."""
        for name in (MANIFEST, UNFINISHED):
            if not (self.folder / name).exists():
                continue
            record = read_json(self.folder / name)
            if record.get("kind") != self.kind:
                return f"holds {with_article(record.get('kind'))}, not {with_article(self.kind)}"
            if changed := _changes(record.get("settings", {}), self.settings):
                return f"holds {with_article(self.kind)} made with other settings ({changed})"
            if record.get("inputs") != self.inputs:
                changed = _changes(record.get("inputs", {}), self.inputs)
                return f"holds {with_article(self.kind)} made from other inputs ({changed})"
            return None
        others = [entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")]
        return f"is not empty (it holds {sorted(others)[0]})" if others else None

    def _clear(self) -> None:
        if not any((self.folder / name).exists() for name in (MANIFEST, UNFINISHED)):
            raise InputError(f"{self.folder} is not empty and not codeprior's; choose another --output")
        if not self.shard.alone:
            raise InputError(f"{self.folder} holds other work, which several processes cannot replace; remove it first")
        for entry in self.folder.iterdir():
            if entry.name == ".lock":
                continue
            _remove(entry)

    def _acquire_locks(self) -> list[IO[str]]:
        """Lock the folder: for this process, or for all shards and for one of this rank. Held until closed."""
        whole = fcntl.LOCK_EX if self.shard.alone else fcntl.LOCK_SH
        locks = [self._acquire_lock(".lock", whole, "another process is")]
        if not self.shard.alone:
            said = f"another process of rank {self.shard.rank} is"
            try:
                locks.append(self._acquire_lock(f".lock-{self.shard.rank}", fcntl.LOCK_EX, said))
            except InputError:
                locks[0].close()
                raise
        return locks

    def _acquire_lock(self, name: str, kind: int, said: str) -> IO[str]:
        lock = open(self.folder / name, "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(f"{said} working in {self.folder}; wait for it or choose another --output") from None
        return lock

    def close(self) -> None:
        """Release the folder."""
        for lock in self._locks:
            lock.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, InputError):
            self._take_back()
        self.close()

    def _take_back(self) -> None:
        """Remove what opening made, if a caller's mistake was found before any work was done."""
        bookkeeping = {UNFINISHED, "config.yaml", ".lock"}
        if self._is_new and {entry.name for entry in self.folder.iterdir()} <= bookkeeping:
            shutil.rmtree(self.folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {_brief(old.get(name))}, now {_brief(new.get(name))}" for name in names[:4])


def _brief(value: Any) -> str:
    return short(value) if isinstance(value, str) and value.startswith("sha256:") else str(value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
