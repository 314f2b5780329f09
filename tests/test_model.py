import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codeprior.errors import InputError
from codeprior.generation.decoding import Decoding
from codeprior.generation.guidance import Guidance
from codeprior.generation.sequence import generate
from codeprior.losses import cross_entropy_nats
from codeprior.model import Dropout, DropPath, ModelConfig, Transformer, model_config, rotate, rotation_table
from codeprior.tensors import on_meta
from recorded import rebuild

GOLDEN = Path(__file__).parent / "golden"
RECORDED_CONFIG = ModelConfig(
    dim=64, n_layers=2, n_heads=4, vocab_size=128, n_classes=10, grid=(4, 4), ffn_multiple=32
)  # LlamaGen ce98ec4 on PyTorch 2.13, CPU, float32


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "llamagen_c2i_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def original() -> Transformer:
    model = Transformer(RECORDED_CONFIG)
    model.load_state_dict(load_file(GOLDEN / "llamagen_c2i_tiny.safetensors"))
    return model.eval()


def sized(name: str, vocab_size: int = 16384, **others: Any) -> Transformer:
    with on_meta():
        return Transformer(model_config(name, vocab_size=vocab_size, grid=(16, 16), **{"n_classes": 1000, **others}))


def test_teacher_forced_logits_and_loss_are_llamagens(original, recorded):
    with torch.inference_mode():
        logits = original(recorded["classes"], recorded["tokens"][:, :-1])
    # 1e-5: other CPUs multiply matrices in another order; on the recording one the difference is 0
    torch.testing.assert_close(logits, recorded["teacher_forced_logits"], rtol=1e-5, atol=1e-5)
    assert float(cross_entropy_nats(logits, recorded["tokens"])) == pytest.approx(float(recorded["loss"]), abs=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_learned_positions_logits_loss_and_greedy_tokens_are_gigatoks(qk_norm):
    config = ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=4,
        vocab_size=96,
        n_classes=10,
        grid=(4, 4),
        ffn_multiple=32,
        positions="learned",
        qk_norm=qk_norm,
    )  # GigaTok 182920c on PyTorch 2.13, CPU, float32
    with on_meta():
        model = Transformer(config)
    model = rebuild(model)
    with np.load(GOLDEN / "gigatok_1d_tiny_io.npz") as arrays:
        recorded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    end = "_qk_norm" * qk_norm
    classes, tokens = recorded["classes"], recorded["tokens"]
    with torch.inference_mode():
        logits = model(classes, tokens[:, :-1])
    # 1e-5: other CPUs multiply matrices in another order
    torch.testing.assert_close(logits, recorded[f"teacher_forced_logits{end}"], rtol=1e-5, atol=1e-5)
    assert float(cross_entropy_nats(logits, tokens)) == pytest.approx(float(recorded[f"loss{end}"]), abs=1e-5)
    for name, scale, interval in [(f"{s}", s, -1) for s in (1.0, 1.5, 4.0, 7.5)] + [("4.0_interval_5", 4.0, 5)]:
        guidance = Guidance(scale, interval=interval)
        greedy = generate(model, classes, torch.zeros(3, 16, dtype=torch.float64), Decoding(top_k=1), guidance)
        assert torch.equal(greedy, recorded[f"greedy_cfg_{name}{end}"]), name


@pytest.mark.parametrize("name", ["GPT-B", "GPT-L", "GPT-XL", "GPT-XXL"])
def test_state_dict_has_llamagens_names_and_shapes(name):
    expected = json.loads((GOLDEN / "llamagen_state_dicts.json").read_text())[name]
    model = sized(name)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == expected["state_dict"]
    assert model.n_parameters == expected["params"]


# fmt: off
N_PARAMETERS = {  # LlamaGen's, counted on its code
    #           16384          8192           4096           2048           1024 tokens
    "GPT-B":    (110_888_448,   98_305_536,    92_014_080,    88_868_352,    87_295_488),
    "GPT-L":    (342_910_976,   326_133_760,   317_745_152,   313_550_848,   311_453_696),
    "GPT-XL":   (774_699_520,   753_728_000,   743_242_240,   737_999_360,   735_377_920),
    "GPT-XXL":  (1_410_972_672, 1_385_806_848, 1_373_223_936, 1_366_932_480, 1_363_786_752),
    "GPT-XXXL": (3_893_027_840, 3_851_084_800, 3_830_113_280, 3_819_627_520, 3_814_384_640),
    "GPT-1B":   (1_199_616_000, 1_166_061_568, 1_149_284_352, 1_140_895_744, 1_136_701_440),
    "GPT-3B":   (3_096_659_200, 3_044_230_400, 3_018_016_000, 3_004_908_800, 2_998_355_200),
    "GPT-7B":   (6_614_589_440, 6_547_480_576, 6_513_926_144, 6_497_148_928, 6_488_760_320),
}
# fmt: on


@pytest.mark.parametrize("name", N_PARAMETERS)
def test_parameter_counts_are_llamagens_for_every_size_and_vocabulary(name):
    counts = [sized(name, vocab_size).n_parameters for vocab_size in (16384, 8192, 4096, 2048, 1024)]
    assert tuple(counts) == N_PARAMETERS[name]


def test_learned_positions_and_captions_change_the_count_by_what_they_add():
    whole, dim = N_PARAMETERS["GPT-B"][0], 768
    assert sized("GPT-B", positions="learned").n_parameters == whole + 257 * dim
    captioned = sized("GPT-B", n_classes=0, caption_dim=2048)
    assert captioned.n_parameters == whole - 1001 * dim + 2048 * dim + dim * dim
    assert captioned.rotation_table.shape == (120 + 256, 32, 2)


@pytest.mark.parametrize(
    ("n_clusters", "n_layers", "millions"),
    [
        (8192, 1, 26.72),
        (8192, 3, 40.88),
        (8192, 6, 62.12),
        (8192, 9, 83.36),
        (8192, 12, 104.60),
        (4096, 1, 23.58),
        (2048, 1, 22.00),
        (1024, 1, 21.22),
        (512, 1, 20.83),
    ],
)
def test_refine_nets_have_the_sizes_that_follow_from_the_paper(n_clusters, n_layers, millions):
    shape = {"vocab_size": n_clusters, "output_size": 16384, "causal": False, "n_layers": n_layers}
    with torch.device("meta"):
        model = Transformer(model_config("GPT-B", n_classes=1000, grid=(16, 16), **shape))
    assert round(model.n_parameters / 1e6, 2) == millions


def test_tiny_has_under_a_million_parameters():
    config = model_config("tiny", vocab_size=512, n_classes=10, grid=(8, 8))
    assert 500_000 < Transformer(config).n_parameters < 1_000_000


def test_rotation_turns_rows_in_the_first_half_and_columns_in_the_second():
    table = rotation_table((2, 3), head_dim=8)
    assert table.shape == (7, 4, 2)
    assert not table[0].any()  # the class slot: cos = sin = 0
    angles = torch.atan2(table[1:, :, 1], table[1:, :, 0]).reshape(2, 3, 4)
    frequencies = torch.tensor([1.0, 0.01])  # 10000^(-0/4), 10000^(-2/4)
    torch.testing.assert_close(angles[:, 0, :2], torch.arange(2.0)[:, None] * frequencies)
    torch.testing.assert_close(angles[0, :, 2:], torch.arange(3.0)[:, None] * frequencies)
    torch.testing.assert_close(angles[0, :, :2], torch.zeros(3, 2))


def test_rotating_equals_the_definition_by_adjacent_pairs():
    table = rotation_table((2, 3), head_dim=8)
    x = torch.randn(2, 7, 5, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    first, second = x[..., 0::2], x[..., 1::2]
    rotated = rotate(x, table)
    torch.testing.assert_close(rotated[..., 0::2], first * cos - second * sin)
    torch.testing.assert_close(rotated[..., 1::2], second * cos + first * sin)


def test_a_position_sees_nothing_after_it(original, recorded):
    tokens = recorded["tokens"].clone()
    tokens[:, 7:] = (tokens[:, 7:] + 1) % 128
    with torch.inference_mode():
        before = original(recorded["classes"], recorded["tokens"][:, :-1])
        after = original(recorded["classes"], tokens[:, :-1])
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_an_untrained_model_gives_every_token_the_same_probability():
    model = Transformer(model_config("tiny", vocab_size=50, n_classes=3, grid=(2, 3)), torch.Generator().manual_seed(0))
    tokens = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        loss = cross_entropy_nats(model.eval()(torch.tensor([0, 3]), tokens[:, :-1]), tokens)
    assert float(loss) == pytest.approx(np.log(50), abs=1e-5)  # float32


def test_models_of_other_vocabularies_start_from_the_same_trunk():
    large, small = (
        Transformer(model_config("tiny", vocab_size=v, n_classes=3, grid=(2, 2)), torch.Generator().manual_seed(5))
        for v in (64, 32)
    )
    for (name, a), b in zip(large.named_parameters(), small.parameters(), strict=True):
        if name not in ("tok_embeddings.weight", "output.weight"):
            assert torch.equal(a, b), name


def test_dropout_acts_in_training_alone():
    config = model_config("tiny", vocab_size=8, n_classes=2, grid=(2, 2), dropout=0.5)
    model = Transformer(config, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, generator=torch.Generator().manual_seed(0))
    classes, tokens = torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(model.eval()(classes, tokens), model(classes, tokens))
    assert not torch.equal(model.train()(classes, tokens), model(classes, tokens))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_the_sum_scaled_alike_back_and_forth(share, dtype):
    torch.manual_seed(0)
    x = torch.ones(3, 1001, 67, dtype=dtype, requires_grad=True)
    y = Dropout(share)(x)
    y.sum().backward()
    y = y.detach()
    kept = y != 0
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - share)) < 5 * deviation + 2**-16  # the bits' resolution
    assert torch.equal(y[kept], y[kept][:1].expand_as(y[kept]))
    torch.testing.assert_close(
        float(y.max()), 1 / (1 - min(round(share * 2**16), 2**16 - 1) / 2**16), rtol=1e-2, atol=0
    )
    assert torch.equal(x.grad, y)


def test_what_dropout_leaves_out_is_drawn_anew_by_the_seed_alone():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(64, 64))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    flat = drawn(0).flatten()
    assert abs(torch.corrcoef(torch.stack([flat[:-1], flat[1:]]))[0, 1]) < 0.1


def test_drop_path_grows_over_the_layers_and_takes_the_place_of_dropout():
    config = model_config("tiny", vocab_size=8, n_classes=2, grid=(2, 2), drop_path=0.3)
    assert (config.resid_dropout, config.ffn_dropout, config.token_dropout) == (0, 0, 0.1)
    shares = [1 - float(layer.drop_path.kept) for layer in Transformer(config).layers]
    assert shares == pytest.approx(torch.linspace(0, 0.3, 4).tolist())  # LlamaGen's


def test_drop_path_drops_a_branch_of_an_image_and_keeps_the_mean():
    torch.manual_seed(0)
    path = DropPath(0.25)
    y = path(torch.ones(4000, 2, 3))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert float(y.mean()) == pytest.approx(1, abs=0.05)  # seven standard errors
    assert torch.equal(path.eval()(y), y)


def test_without_the_mask_every_position_sees_all_and_predicts_its_own():
    config = model_config("tiny", vocab_size=5, output_size=9, n_classes=2, grid=(2, 3), causal=False)
    model = random_output(Transformer(config, torch.Generator().manual_seed(0)).eval())
    clusters = torch.tensor([[0, 1, 2, 3, 4, 0]])
    with torch.inference_mode():
        before = model(torch.tensor([1]), clusters)
        clusters[0, -1] = 2
        after = model(torch.tensor([1]), clusters)
        assert before.shape == (1, 6, 9)
        assert (before != after).any(-1).all()
        assert (model(torch.tensor([0]), clusters) != after).any(-1).all()


def random_output(model: Transformer) -> Transformer:
    """Outputs start at zero; here they say something."""
    outputs = [model.output, *([model.cluster_output] if model.cluster_output is not None else [])]
    for output in outputs:
        torch.nn.init.normal_(output.weight, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def factorised() -> Transformer:
    """Three clusters of eight tokens, of which token 5 is dead."""
    config = model_config("tiny", vocab_size=8, n_clusters=3, n_classes=2, grid=(2, 2))
    model = random_output(Transformer(config, torch.Generator().manual_seed(0)).eval())
    model.factorise(torch.tensor([0, 2, 2, 1, 2, 0, 2, 2]), torch.arange(8) != 5)
    return model


def test_a_factorised_output_is_the_product_of_its_two_probabilities(factorised):
    classes, tokens = torch.tensor([0, 1]), torch.tensor([[1, 3, 7], [0, 0, 2]])
    with torch.inference_mode():
        logits = factorised(classes, tokens).double()
        states = factorised.states(factorised.embed(classes, tokens)).double()
        of_tokens = states @ factorised.output.weight.double().T
        of_clusters = (states @ factorised.cluster_output.weight.double().T).softmax(-1)
    for cluster, members in enumerate([[0], [3], [1, 2, 4, 6, 7]]):
        expected = of_clusters[..., cluster, None] * of_tokens[..., members].softmax(-1)
        torch.testing.assert_close(logits[..., members].exp(), expected, rtol=1e-4, atol=1e-6)
    probs = logits.float().softmax(-1)
    assert (probs[..., 5] == 0).all()  # dead
    torch.testing.assert_close(probs, logits.exp().float(), rtol=1e-5, atol=1e-6)


def test_guidance_of_what_is_never_predicted_is_a_number(factorised):
    logits = factorised(torch.tensor([0, 2]), torch.zeros(2, 0, dtype=torch.int64))[:, -1]
    guided = logits[1:] + 7.5 * (logits[:1] - logits[1:])
    assert guided.isfinite().all()
    assert guided.softmax(-1)[0, 5] == 0


def test_the_partition_is_part_of_a_factorised_models_state(factorised):
    other = Transformer(factorised.config)
    other.load_state_dict(factorised.state_dict())
    assert other.cluster_output is not None
    assert other.cluster_output.token_to_cluster.tolist() == [0, 2, 2, 1, 2, 0, 2, 2]
    assert other.cluster_output.live.tolist() == [True] * 5 + [False] + [True] * 2


def test_a_partition_that_does_not_fit_is_refused(factorised):
    everything = torch.ones(8, dtype=torch.bool)
    for labels, live in [
        (torch.zeros(8, dtype=torch.int64), everything),
        (torch.arange(9) % 3, torch.ones(9, dtype=torch.bool)),
        (torch.arange(8) % 4, everything),
    ]:
        with pytest.raises(ValueError, match="clusters"):
            factorised.factorise(labels, live)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 60},
        {"vocab_size": 0},
        {"grid": (4, 0)},
        {"ffn_dropout": 1.0},
        {"drop_path": -0.1},
        {"n_classes": 0},
        {"n_clusters": 9},
        {"output_size": 0},
    ],
)
def test_sizes_that_make_no_model_are_refused(change):
    sizes = {"dim": 64, "n_layers": 1, "n_heads": 4, "vocab_size": 8, "n_classes": 2, "grid": (4, 4)}
    with pytest.raises(InputError):
        ModelConfig(**{**sizes, **change})


def test_an_unknown_model_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="GPT-B"):
        model_config("GPT-Z", vocab_size=8, n_classes=2, grid=(2, 2))
