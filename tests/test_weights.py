"""Checkpoints in every container: read lazily, and refused in one line where they are broken."""

import argparse
import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codeprior.codebook import Codebook, read_counts
from codeprior.errors import InputError
from codeprior.weights import open_checkpoint
from recorded import save_legacy, save_zip

BOOK = "quantize.embedding.weight"
BIG = 2_500_000_000  # bytes, beyond what 32 bits count; a hole in the file, which takes no room on the disk


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"decoder.conv_blocks.0.norm.weight": torch.ones(3), BOOK: torch.randn(24, 8, generator=generator)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_safetensors_of_every_dtype(tmp_path, dtype):
    values = torch.arange(12).reshape(3, 4).to(dtype)
    save_file({BOOK: values, "scalar": values[0, 0].clone()}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    scope = open_checkpoint(tmp_path / "a.safetensors").scopes[0]
    np.testing.assert_array_equal(scope.read(BOOK), values.float().numpy())
    assert scope.read("scalar").shape == ()


def test_prefixes_of_parallel_and_compiled_models_are_taken_off(tmp_path, state):
    named = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save({"module": named}, tmp_path / "a.pt")
    assert list(open_checkpoint(tmp_path / "a.pt").scopes[0].tensors) == list(state)


def sparse_zip(path, state):
    """A torch archive in which 2.5 GB lie before the codebook, as if its first tensor's storage were that large."""
    small = io.BytesIO()
    torch.save({"model": {"big": torch.zeros(1), **state}}, small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
            if name.endswith("data/0"):
                target.filelist[-1].file_size = target.filelist[-1].compress_size = BIG
                target.start_dir += BIG


def sparse_safetensors(path, state):
    book = state[BOOK].numpy().tobytes()
    places = {"big": {"dtype": "F32", "shape": [BIG // 4], "data_offsets": [0, BIG]}}
    places[BOOK] = {"dtype": "F32", "shape": [24, 8], "data_offsets": [BIG, BIG + len(book)]}
    header = json.dumps(places).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(BIG, os.SEEK_CUR)
        file.write(book)


@pytest.mark.parametrize(("name", "make"), [("a.pt", sparse_zip), ("a.safetensors", sparse_safetensors)])
def test_a_codebook_comes_out_of_a_file_of_gigabytes_without_loading_it(tmp_path, state, name, make):
    make(tmp_path / name, state)
    assert (tmp_path / name).stat().st_size > BIG
    tracemalloc.start()
    codebook = Codebook.load(tmp_path / name, normalize=True)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(codebook.vectors, state[BOOK].numpy())
    assert peak_bytes < 20e6


def test_only_the_shard_with_the_codebook_is_opened(tmp_path, state):
    save_file({BOOK: state[BOOK]}, tmp_path / "model-00002-of-00002.safetensors")
    first = "model-00001-of-00002.safetensors"  # not even there
    places = {"decoder.conv_blocks.0.norm.weight": first, BOOK: "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    codebook = Codebook.load(tmp_path)
    assert (codebook.origin.family, codebook.space_name) == ("llamagen", "normalised")
    with pytest.raises(InputError, match=r"no tensor nowhere; it holds decoder.*weight, quantize.*weight"):
        Codebook.load(tmp_path, key="nowhere")  # and no shard is opened to say so
    with pytest.raises(InputError, match=r"places decoder.* in model-00001.*, which is not there"):
        Codebook.load(tmp_path, key="decoder.conv_blocks.0.norm.weight")


def test_shards_of_pickles_and_an_index_that_lies(tmp_path, state):
    torch.save(state, tmp_path / "shard.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "shard.bin")}))
    assert len(Codebook.load(tmp_path)) == 24
    index.write_text(json.dumps({"weight_map": {BOOK: "../shard.bin"}}))
    with pytest.raises(InputError, match="which is not there"):
        Codebook.load(tmp_path)
    index.write_text(json.dumps({"weight_map": {f"other.{BOOK}": "shard.bin"}}))
    with pytest.raises(InputError, match=f"shard.bin does not hold other.{BOOK}"):
        Codebook.load(tmp_path)
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        Codebook.load(tmp_path)


def test_folders_give_their_one_checkpoint_or_list_them(tmp_path, state):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Codebook.load(tmp_path)
    (tmp_path / "vqvae").mkdir()
    save_file(state, tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors")
    assert len(Codebook.load(tmp_path)) == 24
    (tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "mine.safetensors")
    assert len(Codebook.load(tmp_path)) == 24
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"several checkpoints; give one of mine.safetensors, other.pt"):
        Codebook.load(tmp_path)


ASK = """
import sys
from codeprior.codebook import Codebook
from codeprior.errors import InputError
for source in sys.argv[1:]:
    try:
        codebook = Codebook.load(source)
        print(len(codebook), codebook.origin.family)
    except InputError as error:
        print(error)
"""


def ask(sources, **environment):
    """What a process with another environment says of these codebooks, a line each."""
    command = [sys.executable, "-c", ASK, *sources]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def hub_cache(root, state):
    """What the hub's client leaves in its cache after a download."""
    folder = root / "models--owner--name"
    snapshot = folder / "snapshots" / "abc"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    torch.save({"model": state}, snapshot / "vq_ds16_c2i.pt")
    (snapshot / "tokenizer").mkdir()
    save_file(state, snapshot / "tokenizer" / "model.safetensors")


@pytest.mark.parametrize("absence", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_the_hub_its_cache_is_read(tmp_path, state, absence):
    hub_cache(tmp_path, state)
    sources = ["hf:owner/name/vq_ds16_c2i.pt", "hf:owner/name/tokenizer", "hf:owner/name/no.pt", "hf:owner", "hf:a/b"]
    told = ask(sources, HF_HUB_CACHE=str(tmp_path), **absence)
    assert told[:2] == ["24 llamagen", "24 llamagen"]
    assert "no.pt is not in the cache, and the hub cannot be asked" in told[2]
    assert "must name a repository" in told[3]
    assert "hf:a/b is not in the cache" in told[4]


class Hub(http.server.SimpleHTTPRequestHandler):
    """As much of the hub as its client needs: the list of a repository's files, and the files."""

    def do_GET(self):
        if not self.path.startswith("/api/models/"):
            return super().do_GET()
        folder = Path(self.directory) / "owner" / "name" / "resolve" / "main"
        names = [{"rfilename": str(path.relative_to(folder))} for path in folder.rglob("*") if path.is_file()]
        body = json.dumps({"id": "owner/name", "sha": "a" * 40, "siblings": names}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        super().end_headers()
        return self.wfile.write(body)

    def end_headers(self):
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"' + self.path.replace("/", "-") + '"')
        super().end_headers()

    def log_message(self, *_):
        pass


def test_from_the_hub_only_the_shard_with_the_codebook_is_downloaded(tmp_path, state):
    repository = tmp_path / "served" / "owner" / "name" / "resolve" / "main"
    repository.mkdir(parents=True)
    save_file({BOOK: state[BOOK]}, repository / "model-00002-of-00002.safetensors")
    save_file({"decoder.conv_blocks.0.x": torch.ones(1)}, repository / "model-00001-of-00002.safetensors")
    places = {"decoder.conv_blocks.0.x": "model-00001-of-00002.safetensors", BOOK: "model-00002-of-00002.safetensors"}
    (repository / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    handler = functools.partial(Hub, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        told = ask(["hf:owner/name", "hf:owner/name/no.pt"], HF_HUB_CACHE=str(tmp_path / "cache"), HF_ENDPOINT=endpoint)
        server.shutdown()
    assert told == ["24 llamagen", "hf:owner/name/no.pt is not in the repository"]
    fetched = {path.name for path in (tmp_path / "cache").glob("**/snapshots/**/*.safetensors")}
    assert fetched == {"model-00002-of-00002.safetensors"}


def test_a_checkpoint_is_read_without_torch(tmp_path, state):
    torch.save({"model": state}, tmp_path / "a.pt")
    script = "import sys\nfrom codeprior import Codebook\nCodebook.load(sys.argv[1])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.pt")], check=False).returncode == 0


def damaged(whole, generator):
    """A file with a few bytes replaced, lost or put in, half of the time where its description stands."""
    content = bytearray(whole)
    for _ in range(generator.integers(1, 6)):
        limit = len(content) if generator.random() < 0.5 else min(len(content), 900)
        place, change = int(generator.integers(limit)), generator.random()
        end = place + (0 if change > 0.8 else 1 if change < 0.6 else int(generator.integers(1, 20)))
        content[place:end] = b"" if 0.6 <= change <= 0.8 else generator.bytes(1)
    return bytes(content)


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "a.safetensors"])
def test_damage_anywhere_gives_a_codebook_or_one_line_never_a_traceback(tmp_path, state, name):
    save = {"zip.pt": save_zip, "legacy.pt": save_legacy, "a.safetensors": save_file}[name]
    tree = {**state, "quantize.cluster_size": torch.ones(24)}
    save(tree if name == "a.safetensors" else {"model": tree, "args": argparse.Namespace(lr=1)}, tmp_path / name)
    whole, generator = (tmp_path / name).read_bytes(), np.random.default_rng(3)
    said = []
    for _ in range(150):
        (tmp_path / name).write_bytes(damaged(whole, generator))
        for read in (Codebook.load, read_counts):
            try:
                read(tmp_path / name)
            except InputError as error:
                said.append(str(error))
    assert len(said) > 50
    assert all(message.isprintable() for message in said)


@pytest.mark.parametrize("n_bytes", [0, 4, 50, 1000])
def test_a_cut_safetensors_file_is_said_in_one_line(tmp_path, n_bytes):
    save_file({BOOK: torch.randn(500, 8)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:n_bytes])
    with pytest.raises(InputError, match="is the file complete"):
        Codebook.load(tmp_path / "a.safetensors", normalize=False)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [24, 8], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-24, -8], "data_offsets": [0, 768]},
        {"dtype": "F32", "shape": "many", "data_offsets": [0, 768]},
        {"dtype": "F32", "shape": [24, 8]},
        [],
    ],
)
def test_a_header_that_makes_no_sense_is_said_in_one_line(tmp_path, entry):
    header = json.dumps({BOOK: entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(768))
    with pytest.raises(InputError, match="damaged safetensors header"):
        Codebook.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        ("<!DOCTYPE html><title>Google Drive: too large to scan for viruses</title>", "is a web page"),
    ],
)
def test_what_a_clone_or_a_browser_leaves_in_place_of_the_file_is_recognised(tmp_path, text, said):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            Codebook.load(tmp_path / name)
