import copy
import shutil

import pytest
import torch

import codeprior.generation.compiled as compiled
from codeprior.generation.compiled import CompiledEngine
from codeprior.generation.decoding import Decoding
from codeprior.generation.guidance import Guidance
from codeprior.generation.sequence import generate


def greedy(model, classes, engine):
    uniforms = torch.zeros(3, 16, dtype=torch.float64, device=classes.device)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_step_is_traced_once_a_window_and_branch_and_never_again_for_another_batch(original, recorded, monkeypatch):
    """Graphs are captured for places in memory: another batch must neither be traced anew nor lie elsewhere."""
    monkeypatch.setattr(compiled, "_SMALLEST_WINDOW", 5)
    traced = []
    engine = CompiledEngine(backend=lambda graph, inputs: traced.append(graph) or graph.forward)
    tokens = greedy(original, recorded["classes"], engine)
    assert torch.equal(tokens, recorded["greedy_cfg_4.0_interval_5"])
    place, n_traced = engine._cache.keys.data_ptr(), len(traced)
    assert n_traced == 2 + 3  # windows of 5 and 10 for both branches, then 10, 15 and 17 for one
    other = greedy(original, recorded["classes"].flip(0), engine)
    assert torch.equal(other, tokens.flip(0))
    assert (engine._cache.keys.data_ptr(), len(traced)) == (place, n_traced)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_captured_graphs_decode_as_llamagen_does(original, recorded, monkeypatch):
    monkeypatch.setattr(compiled, "_SMALLEST_WINDOW", 5)
    model, engine = copy.deepcopy(original).cuda(), CompiledEngine()
    for _ in range(3):  # compiled, captured, replayed
        tokens = greedy(model, recorded["classes"].cuda(), engine)
        assert torch.equal(tokens.cpu(), recorded["greedy_cfg_4.0_interval_5"])
    assert engine._step is not compiled.step  # it did not fall back


def test_a_cache_is_used_again_only_where_it_fits(original, recorded):
    engine = CompiledEngine(backend="eager")
    cpu = torch.device("cpu")
    cache = engine.new_cache(original, 4, cpu)
    assert engine.new_cache(original, 4, cpu) is cache
    assert engine.new_cache(original, 6, cpu) is not cache


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
