from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.generation.guidance import Guidance, count_guided, guide

GOLDEN = Path(__file__).parent.parent / "golden"
WINDOWS = {"step": (0.18, 1.0), "rectangular": (0.1, 0.7)}


@pytest.mark.parametrize("n_tokens", [16, 256])
@pytest.mark.parametrize("schedule", ["constant", "linear", "linear_re", "triangular", "rectangular", "step", "cosine"])
def test_schedules_are_gigatoks_after_a_first_token_at_full_scale(schedule, n_tokens):
    guidance = Guidance(1.75, schedule, window=WINDOWS.get(schedule, (0.0, 1.0)))
    scales = guidance.scales(n_tokens)
    assert scales[0] == 1.75
    with np.load(GOLDEN / "gigatok_guidance.npz") as recorded:
        np.testing.assert_allclose(scales[1:], recorded[f"{schedule}_{n_tokens}"], rtol=1e-14)


@pytest.mark.parametrize(("scale", "power"), [(16.0, 2.75), (6.9, 1.5), (4.0, 0.0)])
def test_power_cosine_is_rars(scale, power):
    with np.load(GOLDEN / "rar_guidance.npz") as recorded:
        expected = recorded[f"{scale}_{power}"]
    # RAR computes it in float32, where 1 - cos of a small angle is rounded by up to 1e-7
    scales = Guidance(scale, "power_cosine", power=power).scales(256)
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


def test_an_interval_ends_any_schedule_and_with_it_the_need_for_the_other_branch():
    scales = Guidance(3.0, "linear", interval=4).scales(10)
    assert (scales[:6] > 1).all()
    assert (scales[6:] == 1).all()
    assert count_guided(scales) == 6
    assert count_guided(Guidance(1.0, "step").scales(10)) == 0
    assert count_guided(Guidance(2.0).scales(10)) == 10


def test_one_token_has_the_full_scale():
    assert Guidance(2.0, "linear").scales(1).tolist() == [2.0]


def test_guidance_extrapolates_from_the_unconditional_branch():
    logits = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    torch.testing.assert_close(guide(logits, torch.tensor(3.0)), torch.tensor([[2.0, 0.0]]))


def test_scale_1_is_the_conditional_branch_exactly():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 1e3
    assert torch.equal(guide(logits, torch.tensor(1.0)), logits[:3])
