import shutil

import pytest
import torch

import codeprior.generation.compiled as compiled
from codeprior.generation.compiled import CompiledEngine
from codeprior.generation.decoding import Decoding
from codeprior.generation.guidance import Guidance
from codeprior.generation.sequence import generate


def greedy(model, classes, engine):
    uniforms = torch.zeros(3, 16, dtype=torch.float64)
    return generate(model, classes, uniforms, Decoding(top_k=1), Guidance(4.0, interval=5), engine=engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, as it is imported
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")
def test_compiled_steps_decode_as_llamagen_does(original, recorded, monkeypatch):
    monkeypatch.setattr(compiled, "_SMALLEST_WINDOW", 5)
    engine = CompiledEngine()
    tokens = greedy(original, recorded["classes"], engine)
    assert torch.equal(tokens, recorded["greedy_cfg_4.0_interval_5"])
    assert engine._step is not compiled.step  # it did not fall back
    assert torch.equal(greedy(original, recorded["classes"], engine), tokens)


def test_steps_that_cannot_be_compiled_are_taken_as_they_stand_and_that_is_said(
    original, recorded, monkeypatch, capsys
):
    def broken(*_, **__):
        def fail(*_):
            raise RuntimeError("no triton here\nand more")

        return fail

    monkeypatch.setenv("CODEPRIOR_PROGRESS", "lines")
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compiled, "_SMALLEST_WINDOW", 5)
    tokens = greedy(original, recorded["classes"], CompiledEngine())
    assert torch.equal(tokens, recorded["greedy_cfg_4.0_interval_5"])
    assert capsys.readouterr().err.count("not compiled (RuntimeError: no triton here)") == 1
