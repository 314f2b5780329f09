"""Tensors of anybody's checkpoint, one at a time: a 30 GB file gives its 8 MB codebook without being loaded.

A source is a `.pt`, `.pth`, `.ckpt`, `.bin` or `.safetensors` file, a folder as Hugging Face lays it out (one file, or
shards with an index), or `hf:owner/name[/folder][/file]`. Nothing is executed; see `pickles` for how that is ensured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import read_json
from codeprior.errors import InputError
from codeprior.hub import Hub, is_on_hub, source_name, split_source
from codeprior.pickles import Leftover, Storage, StoredTensor, printable, read_pickled

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
WRAPPERS = ("ema", "model", "module", "state_dict")  # LlamaGen's order for tokenizers; the bare file comes last
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_CONSOLIDATED = "consolidated.pth"  # beside the optimizer's shards of LlamaGen's training with FSDP
_FOLDERS = ("", "vqvae/", "movq/", "vqmodel/")  # where diffusers' pipelines keep their tokenizers
_CONFIG_ENTRIES = ("args", "config", "hyper_parameters", "cfg")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_DEPTH = 6
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_ITEMSIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class Scope:
    """The tensors below one wrapper of a checkpoint ("" for the bare file); names without `module.`, `_orig_mod.`."""

    wrapper: str
    tensors: Mapping[str, StoredTensor]

    def read(self, name: str) -> np.ndarray:
        """One tensor; floats as float32."""
        return self.tensors[name].read()


@dataclass(frozen=True)
class Checkpoint:
    """What a source holds: its scopes, preferred first, and what it says of its own making."""

    source: str
    scopes: tuple[Scope, ...]
    config: dict[str, Any] = field(default_factory=dict)

    def settings(self, *names: str) -> list[Any]:
        """Values that any of these settings has anywhere in the configuration."""
        found = [value for name, value in _walk_config(self.config) if name in names]
        return [value.get("_val") if isinstance(value, dict) else value for value in found]  # omegaconf's boxes


def is_checkpoint(source: Path | str) -> bool:
    """Whether a source is one that `open_checkpoint` reads (a folder may turn out to hold nothing)."""
    text = source_name(source)
    return is_on_hub(text) or Path(text).suffix in SUFFIXES or Path(text).is_dir()


def open_checkpoint(source: Path | str) -> Checkpoint:
    """Open a checkpoint: its tensors' names and shapes, no numbers yet.

    Raises
    ------
    InputError
        If there is nothing at the source, it is damaged, holds no tensors, or is a pickle that wants to run code.
    """
    text = source_name(source)
    if is_on_hub(text):
        return _open_hub(text)
    path = Path(text)
    if path.is_dir():
        return _open_folder(text, partial(_fetch_local, path), lambda: [p.name for p in sorted(path.iterdir())])
    if not path.is_file():
        raise InputError(f"no such file: {text}")
    beside = path.with_name("config.json")
    return _open_file(text, path, _read_config(beside if beside.is_file() else None))


def _open_file(source: str, path: Path, config: dict[str, Any]) -> Checkpoint:
    _refuse_stand_in(path)
    if path.suffix == ".safetensors":
        return Checkpoint(source, (Scope("", _strip(read_safetensors(path))),), config)
    tree = read_pickled(path)
    if isinstance(tree, StoredTensor):
        tree = {"tensor": tree}
    entries = _members(tree)
    said = {name: _plain(entries[name]) for name in _CONFIG_ENTRIES if name in entries}
    inner = {wrapper: dict(_walk_tensors(entries[wrapper])) for wrapper in WRAPPERS if wrapper in entries}
    inner[""] = dict(_walk_tensors(tree))
    scopes = tuple(Scope(wrapper, _strip(tensors)) for wrapper, tensors in inner.items() if tensors)
    if not scopes:
        raise InputError(f"{path} holds a {type(tree).__qualname__} without named tensors; save a state_dict")
    return Checkpoint(source, scopes, {**config, **said})


def _refuse_stand_in(path: Path) -> None:
    """Refuse what a clone or a browser leaves in place of the file."""
    with open(path, "rb") as file:
        start = file.read(20).lower()
    if start.startswith(b"version https://git-"):
        raise InputError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull` where it was cloned")
    if start.lstrip().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page, not the file; open its link in a browser and download what it offers")


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The header of a `.safetensors` file; read here because the library's NumPy door has no bfloat16.

    Raises
    ------
    InputError
        If the header is no header, or places a tensor where the file has ended.
    """
    size_of_file = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size_of_file - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path} has no safetensors header; is the file complete?")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = {name: _described(path, 8 + length, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} has a damaged safetensors header ({error}); is the file complete?") from None
    for name, tensor in found.items():
        end = tensor.storage.locate() + tensor.storage.size * _itemsize(header[name]["dtype"])
        if end > size_of_file:
            raise InputError(f"{path} is cut off inside {name}; is the file complete? download it again")
    return found


def _described(path: Path, start: int, entry: dict[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("sizes must be whole numbers")
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if end - begin != size * _itemsize(entry["dtype"]):
        raise ValueError("a tensor's place does not fit its shape")
    strides = tuple(int(np.prod(shape[i + 1 :], dtype=object)) for i in range(len(shape)))
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
    return StoredTensor(Storage(path, dtype, size, partial(int, start + begin)), 0, shape, strides)


def _itemsize(dtype: str) -> int:
    return _ITEMSIZES.get(dtype, 1)


def _open_folder(source: str, fetch: Callable[[str], Path | None], listing: Callable[[], list[str]]) -> Checkpoint:
    """The weights of a folder, local or not: `fetch` gives the path of one of its files, or None."""
    for folder in _FOLDERS:
        for stem in _STEMS:
            for suffix in (".safetensors", ".bin"):
                if path := fetch(f"{folder}{stem}{suffix}"):
                    return _open_file(source, path, _read_config(fetch(f"{folder}config.json")))
                if path := fetch(f"{folder}{stem}{suffix}.index.json"):
                    shards = _Shards(path, fetch, folder)
                    return Checkpoint(source, (Scope("", shards),), _read_config(fetch(f"{folder}config.json")))
    if path := fetch(_CONSOLIDATED):
        return _open_file(source, path, {})
    files = [name for name in listing() if Path(name).suffix in SUFFIXES]
    if len(files) == 1 and (path := fetch(files[0])):
        return _open_file(source, path, _read_config(fetch("config.json")))
    if files:
        raise InputError(f"{source} holds several checkpoints; give one of {', '.join(files[:8])} below it")
    raise InputError(f"{source} holds no checkpoint ({', '.join(SUFFIXES)})")


class _Shards(Mapping[str, StoredTensor]):
    """The tensors of a sharded checkpoint; a shard is fetched and opened when one of its tensors is asked for."""

    def __init__(self, index: Path, fetch: Callable[[str], Path | None], folder: str) -> None:
        record = read_json(index)
        places = record.get("weight_map") if isinstance(record, dict) else None
        if not isinstance(places, dict):
            raise InputError(f"{index} has no weight_map; is it complete?")
        self._stored_names = {stripped: name for name, stripped in _stripped_names(places).items()}
        self._places = {str(name): str(shard) for name, shard in places.items()}
        self._index, self._fetch, self._folder = index, fetch, folder
        self._opened: dict[str, Mapping[str, StoredTensor]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_names)

    def __len__(self) -> int:
        return len(self._stored_names)

    def __getitem__(self, name: str) -> StoredTensor:
        stored = self._stored_names[name]
        shard = self._places[stored]
        if shard not in self._opened:
            path = self._fetch(self._folder + shard) if shard == Path(shard).name else None
            if path is None:
                raise InputError(f"{self._index} places {stored} in {shard}, which is not there")
            _refuse_stand_in(path)
            is_safe = path.suffix == ".safetensors"
            self._opened[shard] = read_safetensors(path) if is_safe else dict(_walk_tensors(read_pickled(path)))
        if stored not in self._opened[shard]:
            raise InputError(f"{shard} does not hold {stored}, as {self._index} says it does")
        return self._opened[shard][stored]


def _fetch_local(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _open_hub(source: str) -> Checkpoint:
    repository, revision, path = split_source(source)
    place = Path(path)
    if place.suffix not in SUFFIXES:
        hub = Hub(source, repository, revision, path)
        return _open_folder(source, hub.fetch, hub.listing)
    hub = Hub(source, repository, revision, "")
    file = hub.fetch(path)
    if file is None:
        raise InputError(f"{source} {hub.missing}")
    return _open_file(source, file, _read_config(hub.fetch(place.with_name("config.json").as_posix())))


def _read_config(path: Path | None) -> dict[str, Any]:
    record = read_json(path) if path else {}
    return record if isinstance(record, dict) else {}


def _walk_tensors(tree: Any, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, StoredTensor]]:
    """Tensors of nested dicts and modules by their dotted names; lists (optimizer states) are passed over."""
    seen = set() if seen is None else seen
    if id(tree) in seen:
        return
    seen.add(id(tree))  # a pickle may hold a dict within itself
    for key, value in _members(tree).items():
        if isinstance(value, StoredTensor):
            yield f"{prefix}{key}", value
        else:
            yield from _walk_tensors(value, f"{prefix}{key}.", seen)


def _members(tree: Any) -> dict[Any, Any]:
    """What is below a name: entries of a dict, or of a module that was saved whole parameters, buffers, modules."""
    if not isinstance(tree, Leftover):
        return tree if isinstance(tree, dict) else {}
    state = tree.state if isinstance(tree.state, dict) else {}
    rooms = [room for name in ("_parameters", "_buffers", "_modules") if isinstance(room := state.get(name), dict)]
    return {key: value for room in rooms for key, value in room.items()} if rooms else state


def _strip(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {stripped: tensors[name] for name, stripped in _stripped_names(tensors).items()}


def _stripped_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Names without what DataParallel and torch.compile put before them, unless two would become one."""
    found: dict[str, str] = {}
    taken = set(names)
    for name in map(str, names):
        bare = name.replace("_orig_mod.", "")
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        bare = printable(bare)
        found[name] = name if bare in taken else bare
        taken.add(found[name])
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """What a configuration inside a pickle says: the state of its leftovers, as dicts."""
    if depth > _MAX_DEPTH:
        return None
    state = value.state if isinstance(value, Leftover) else value
    if isinstance(state, dict):
        return {str(key): _plain(inner, depth + 1) for key, inner in state.items()}
    return state if isinstance(state, bool | int | float | str | None) else None


def _walk_config(config: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict) and depth <= _MAX_DEPTH:
        for name, value in config.items():
            yield str(name), value
            yield from _walk_config(value, depth + 1)
