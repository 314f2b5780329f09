import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from codeprior.generation.decoding import Decoding, logits_to_probs, sample_tokens, uniforms_of


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (20, 1.0, 0.7), (0, 0.8, 1.0), (50, 0.9, 1.3)]
)
def test_filtered_probabilities_are_llamagens(recorded, top_k, top_p, temperature):
    decoding = Decoding(top_k=top_k, top_p=top_p, temperature=temperature)
    probs = logits_to_probs(recorded["teacher_forced_logits"][:, 0], decoding)
    expected = recorded[f"probs_topk{top_k}_topp{top_p}_temp{temperature}"]
    torch.testing.assert_close(probs, expected, rtol=1e-5, atol=1e-7)  # float32 softmax, other vector widths
    assert torch.equal(probs > 0, expected > 0)


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (20, 1.0, 0.7), (0, 0.8, 1.0), (50, 0.9, 1.3)]
)
def test_tokens_are_drawn_as_llamagens_recorded_distributions_say(recorded, top_k, top_p, temperature):
    decoding = Decoding(top_k=top_k, top_p=top_p, temperature=temperature)
    uniforms = torch.from_numpy(uniforms_of(5, np.arange(20000), ()))
    for row, expected in enumerate(recorded[f"probs_topk{top_k}_topp{top_p}_temp{temperature}"].double()):
        probs = logits_to_probs(recorded["teacher_forced_logits"][row : row + 1, 0], decoding)
        counts = torch.bincount(sample_tokens(probs.expand(20000, -1), uniforms), minlength=len(expected))
        likely = expected * 20000 > 5  # the rest together, for the test wants five of each
        assert not counts[expected == 0].any()
        seen, due = (torch.cat([x[likely], x[~likely].sum()[None]]) for x in (counts, 20000 * expected))
        kept = due > 0
        assert chisquare(seen[kept].numpy(), (due[kept] * 20000 / due.sum()).numpy()).pvalue > 1e-4


def test_temperature_0_takes_the_likeliest():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(logits_to_probs(logits, Decoding(temperature=0.0)).argmax(-1), logits.argmax(-1))
    assert logits_to_probs(logits, Decoding(temperature=0.0)).max(-1).values.min() > 0.99


def test_top_k_keeps_ties():
    probs = logits_to_probs(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), Decoding(top_k=2))
    assert (probs > 0).tolist() == [[True, True, True, False]]


def test_top_k_may_exceed_the_vocabulary():
    logits = torch.tensor([[3.0, 1.0]])
    torch.testing.assert_close(logits_to_probs(logits, Decoding(top_k=2000)), logits.softmax(-1))


def test_top_p_keeps_the_token_that_crosses_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (logits_to_probs(logits, Decoding(top_p=0.6)) > 0).tolist() == [[True, True, False]]
    assert (logits_to_probs(logits, Decoding(top_p=1e-9)) > 0).tolist() == [[True, False, False]]


def test_sampling_follows_the_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.0, 0.1, 0.025, 0.0])
    uniforms = torch.from_numpy(uniforms_of(11, np.arange(20000), ()))
    counts = torch.bincount(sample_tokens(probs.expand(20000, -1), uniforms), minlength=8).numpy()
    assert not counts[[1, 4, 7]].any()
    live = probs.numpy() > 0
    assert chisquare(counts[live], probs.double().numpy()[live] / probs.double().sum().item() * 20000).pvalue > 1e-3


def test_a_token_of_probability_zero_is_never_drawn():
    probs = torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]]).expand(2, -1)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample_tokens(probs, ends).tolist() == [1, 3]


def test_random_numbers_belong_to_seed_and_index():
    together = uniforms_of(5, np.arange(10), (2, 3))
    assert np.array_equal(together[7:9], uniforms_of(5, np.array([7, 8]), (2, 3)))
    assert len(np.unique(together)) == together.size
    assert not np.array_equal(together, uniforms_of(6, np.arange(10), (2, 3)))
    assert not np.array_equal(together, uniforms_of(5, np.arange(10), (2, 3), stream=1))
