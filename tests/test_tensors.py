import subprocess
import sys

import pytest
import torch

from codeprior.errors import InputError
from codeprior.tensors import read_tensors, save_tensors, write_tensors


def test_a_failed_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.ones(2)})
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(2)}, {"record": 3})  # metadata must be text
    tensors, _ = read_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*folder"):
        write_tensors(tmp_path / "folder", {"a": torch.ones(2)})


def test_a_truncated_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="complete"):
        read_tensors(path)


def test_models_of_shapes_alone_are_made_without_torchs_compiler():
    code = (
        "import sys\n"
        "from codeprior.model import Transformer, model_config\n"
        "from codeprior.tensors import on_meta\n"
        "from codeprior.tokenizers.gigatok import PRESETS as GIGATOK, GigaTok\n"
        "from codeprior.tokenizers.vqgan import PRESETS, VQGAN\n"
        "with on_meta():\n"
        "    models = [\n"
        "        VQGAN(PRESETS['VQ-16']), GigaTok(GIGATOK['GigaTok-S-S']),\n"
        "        Transformer(model_config('GPT-B', vocab_size=64, n_classes=10, grid=(4, 4))),\n"
        "    ]\n"
        "assert all(p.is_meta for model in models for p in model.parameters())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
