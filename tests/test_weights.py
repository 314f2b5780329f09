"""Checkpoints in every container: read lazily, safely, and refused in one line where they are broken."""

import argparse
import functools
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codeprior.codebook import Codebook, read_counts
from codeprior.errors import InputError
from codeprior.pickles import Leftover, read_pickled
from codeprior.weights import open_checkpoint

BOOK = "quantize.embedding.weight"
BIG = 2_500_000_000  # bytes, beyond what 32 bits count; a hole in the file, which takes no room on the disk


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"decoder.conv_blocks.0.norm.weight": torch.ones(3), BOOK: torch.randn(24, 8, generator=generator)}


def save_zip(tree, path):
    torch.save(tree, path)


def save_legacy(tree, path):
    torch.save(tree, path, _use_new_zipfile_serialization=False)


BOTH = pytest.mark.parametrize("save", [save_zip, save_legacy])


@BOTH
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_every_dtype_and_view_is_read_as_torch_reads_it(tmp_path, save, dtype):
    values = (torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    views = {
        "whole": values,
        "turned": values.permute(2, 1, 0),
        "part": values[2:5, 1:],
        "step": values[::2],
        "one": values[1, 2, 3],
    }
    views |= {"none": values[:0], "parameter": torch.nn.Parameter(values.float())}
    save({"state_dict": OrderedDict(views)}, tmp_path / "a.pt")
    scope = open_checkpoint(tmp_path / "a.pt").scopes[0]
    assert scope.wrapper == "state_dict"
    for name, view in views.items():
        expected = view.detach().float() if dtype.is_floating_point else view.detach()
        np.testing.assert_array_equal(scope.read(name), expected.numpy(), err_msg=name)


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


class Quantizer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(24, 8)
        self.register_buffer("cluster_size", torch.arange(24.0))


@BOTH
def test_a_module_that_was_saved_whole_is_read_without_its_class(tmp_path, save):
    model = torch.nn.ModuleDict({"quantize": Quantizer(), "decoder": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    save({"model": model, "epoch": 3}, tmp_path / "whole.pt")
    scope = open_checkpoint(tmp_path / "whole.pt").scopes[0]
    assert list(scope.tensors) == list(model.state_dict())
    np.testing.assert_array_equal(scope.read(BOOK), model["quantize"].embedding.weight.detach().numpy())
    np.testing.assert_array_equal(read_counts(tmp_path / "whole.pt"), np.arange(24))
    save(model, tmp_path / "bare.pt")
    assert len(Codebook.load(tmp_path / "bare.pt", family="taming")) == 24


# -- safety --


@pytest.fixture
def foreign():
    """Modules with classes that exist while a checkpoint is written, and not while it is read."""
    before = set(sys.modules)

    def make(module, name):
        parts = module.split(".")
        for n in range(len(parts)):
            parent = ".".join(parts[: n + 1])
            sys.modules.setdefault(parent, types.ModuleType(parent))
        found = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, found)
        return found

    def forget():
        for module in set(sys.modules) - before:
            if module.partition(".")[0] in ("pytorch_lightning", "omegaconf", "lightning"):
                del sys.modules[module]

    yield make, forget
    forget()


@BOTH
def test_what_lightning_omegaconf_and_argparse_leave_behind_is_passed_over(tmp_path, state, foreign, save):
    foreign, forget = foreign
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    boxed = foreign("omegaconf.nodes", "AnyNode")()
    boxed._val = True
    config = foreign("omegaconf.dictconfig", "DictConfig")()
    config._content = {"codebook_l2_norm": boxed}
    hyper = foreign("lightning.fabric.utilities.data", "AttributeDict")()
    hyper.n_embed = 24
    tree = {
        "state_dict": OrderedDict(state),
        "callbacks": {callback: {"best_model_score": torch.tensor(1.0), "path": Path("/somewhere")}},
        "hyper_parameters": config,
        "more": [hyper, defaultdict(dict, {1: {}}), np.float64(3), np.arange(3), torch.float32, torch.device("cpu")],
        "args": argparse.Namespace(lr=1e-4, device=torch.Size([3])),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
    }
    save(tree, tmp_path / "last.ckpt")
    forget()
    codebook = Codebook.load(tmp_path / "last.ckpt")
    np.testing.assert_array_equal(codebook.vectors, state[BOOK].numpy())
    checkpoint = open_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.settings("codebook_l2_norm") == [True]
    assert checkpoint.config["args"]["lr"] == 1e-4


class Runs:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@BOTH
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (subprocess.Popen, "subprocess.Popen"),
        (pickle.loads, "loads"),
        (__import__, "builtins.__import__"),
        (torch.hub.load_state_dict_from_url, "torch.hub.load_state_dict_from_url"),
        (np.load, "numpy.load"),
    ],
)
def test_a_pickle_that_wants_to_run_code_runs_nothing_and_is_named(tmp_path, state, save, function, named):
    mark = tmp_path / "was-here"
    evil = Runs(function, f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')")
    save({"model": state, "args": argparse.Namespace(x=[evil])}, tmp_path / "evil.pt")
    for read in (Codebook.load, read_counts):
        with pytest.raises(InputError, match=rf"evil.pt is a pickle that calls \S*{named}.* nothing was run") as error:
            read(tmp_path / "evil.pt")
        assert "\n" not in str(error.value)
    assert not mark.exists()


def write_pickle(path, code):
    """A torch archive around hand-written pickle opcodes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes())
        archive.writestr("archive/data/1", b"")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"cposix\nsystem\n(S'touch was-here'\ntR.", "calls posix.system"),
        (b"(S'touch was-here'\niposix\nsystem\n.", "calls posix.system"),
        (b"(cposix\nsystem\nS'touch was-here'\no.", "calls posix.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "calls os.system"),
        (b"cbuiltins\ngetattr\n(cbuiltins\n__import__\nS'system'\ntR.", "calls builtins.__import__"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I2\nt(I1\ntI00\nNtR.", "described by something else"),
        (b"N.", "holds a NoneType without named tensors"),
        (b"}.", "holds a dict without named tensors"),
        (b"}q\x00S'a'\nh\x00s.", "without named tensors"),
        (b"garbage", "not a checkpoint that torch wrote"),
        (b"", "not a checkpoint that torch wrote"),
    ],
)
def test_hand_written_pickles(tmp_path, monkeypatch, code, said):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "a.pt", code)
    with pytest.raises(InputError, match=said):
        Codebook.load(tmp_path / "a.pt")
    assert not (tmp_path / "was-here").exists()


def test_a_state_forced_upon_a_builder_changes_nothing(tmp_path, state):
    code = b"}S'a'\nctorch._utils\n_rebuild_tensor_v2\n}S'function'\ncmine\nThing\nsbs."
    write_pickle(tmp_path / "a.pt", code)
    read_pickled(tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.pt")
    assert len(Codebook.load(tmp_path / "b.pt")) == 24


def test_classes_are_never_imported(tmp_path):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    write_pickle(tmp_path / "a.pt", b"ctrap\nTrap\n)\x81.")
    sys.path.insert(0, str(tmp_path))
    try:
        made = read_pickled(tmp_path / "a.pt")
    finally:
        sys.path.remove(str(tmp_path))
    assert isinstance(made, Leftover)
    assert type(made).__qualname__ == "trap.Trap"
    assert "trap" not in sys.modules


# -- damage --


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_said_in_one_line(tmp_path, save, share):
    save({"model": {BOOK: torch.randn(500, 8)}}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut off") as error:
        Codebook.load(tmp_path / "cut.pt", normalize=False)
    assert "\n" not in str(error.value)


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


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path, state):
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "text.pt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    torch.save([state[BOOK]], tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/constants.pkl", b"N.")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N.")
    for name, said in {
        "plain.pt": "not one of torch.save",
        "text.pt": "not a checkpoint that torch wrote",
        "zip.pt": "without torch's data.pkl",
        "list.pt": "holds a list without named tensors",
        "script.pt": "TorchScript program",
        "packed.pt": "was compressed after torch wrote it",
        "absent.pt": "no such file",
    }.items():
        with pytest.raises(InputError, match=said):
            Codebook.load(tmp_path / name)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        with pytest.raises(InputError, match="is a Git LFS pointer"):
            Codebook.load(tmp_path / name)


def test_float8_is_refused_by_name(tmp_path):
    torch.save({BOOK: torch.zeros(4, 4).to(torch.float8_e4m3fn)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="float8_e4m3fn"):
        Codebook.load(tmp_path / "a.pt")
