import pytest
import torch

from codeprior.generation.decoding import Decoding
from codeprior.generation.guidance import Guidance
from codeprior.generation.sequence import decode_one_token, generate
from codeprior.model import KVCache, Transformer


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (1.5, -1), (4.0, -1), (4.0, 5)])
def test_greedy_decoding_is_llamagens(original, recorded, scale, interval):
    name = f"greedy_cfg_{scale}" + (f"_interval_{interval}" if interval >= 0 else "")
    guidance = Guidance(scale, interval=interval)
    uniforms = torch.zeros(3, 16, dtype=torch.float64)
    tokens = generate(original, recorded["classes"], uniforms, Decoding(top_k=1), guidance)
    assert torch.equal(tokens, recorded[name])


def test_cached_decoding_equals_the_full_forward(original, recorded):
    classes, tokens = recorded["classes"], recorded["tokens"]
    cache = KVCache(original.config, 3, device=classes.device, dtype=torch.float32)
    with torch.inference_mode():
        steps = [original.prefill(classes, tokens[:, :0], cache)]
        steps += [decode_one_token(original, tokens[:, t], cache) for t in range(15)]
        full = original(classes, tokens[:, :-1])
    # 1e-5: the same sums in another order
    torch.testing.assert_close(torch.stack(steps, dim=1), full, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="one position"):
        original.logits(original.embed(classes, tokens[:, :1]), cache)


def drawn(model, classes, guidance=None, prefix=None):
    uniforms = torch.rand(len(classes), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return generate(model, classes, uniforms, Decoding(), guidance or Guidance(2.0), prefix)


def test_a_prefix_that_was_sampled_is_continued_as_it_was(original, recorded):
    whole = drawn(original, recorded["classes"])
    for n_given in (1, 7, 15):
        assert torch.equal(drawn(original, recorded["classes"], prefix=whole[:, :n_given]), whole)


def test_another_prefix_stays_and_changes_what_follows(original, recorded):
    classes = recorded["classes"]
    other = (drawn(original, classes)[:, :8] + 1) % 128
    tokens = drawn(original, classes, prefix=other)
    assert torch.equal(tokens[:, :8], other)
    assert not torch.equal(tokens, drawn(original, classes))


def test_the_unconditional_branch_is_left_out_where_it_is_not_needed(original, recorded, monkeypatch):
    rows = []
    states = Transformer.states

    def counted(model, x, *rest):
        rows.append(len(x))
        return states(model, x, *rest)

    monkeypatch.setattr(Transformer, "states", counted)
    drawn(original, recorded["classes"], Guidance(4.0, interval=5))
    assert rows == [6] * 7 + [3] * 9
