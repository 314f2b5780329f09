"""Torch's pickles: read as torch reads them, and nothing of them is ever run."""

import argparse
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.codebook import Codebook, read_counts
from codeprior.errors import InputError
from codeprior.pickles import Leftover, read_pickled
from codeprior.weights import open_checkpoint
from recorded import save_legacy, save_zip

BOOK = "quantize.embedding.weight"


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"decoder.conv_blocks.0.norm.weight": torch.ones(3), BOOK: torch.randn(24, 8, generator=generator)}


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


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_said_in_one_line(tmp_path, save, share):
    save({"model": {BOOK: torch.randn(500, 8)}}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut off") as error:
        Codebook.load(tmp_path / "cut.pt", normalize=False)
    assert "\n" not in str(error.value)


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


def test_float8_is_refused_by_name(tmp_path):
    torch.save({BOOK: torch.zeros(4, 4).to(torch.float8_e4m3fn)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="float8_e4m3fn"):
        Codebook.load(tmp_path / "a.pt")
