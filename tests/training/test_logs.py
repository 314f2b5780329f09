"""Throughput, and its share of a device's peak."""

import pytest
import torch

from codeprior.model import Transformer, model_config
from codeprior.tensors import on_meta
from codeprior.training.logs import flops_per_image, peak_memory_bytes, peak_tflops, speed


def test_operations_are_six_for_each_weight_of_a_product_and_those_of_attention():
    config = model_config("GPT-B", vocab_size=16384, n_classes=1000, grid=(16, 16))
    with on_meta():
        model = Transformer(config)
    looked_up = model.tok_embeddings.weight.numel() + model.cls_embedding.embedding_table.weight.numel()
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    products = 6 * (model.n_parameters - looked_up - vectors) * 256
    attention = 12 * 12 * 256 * 256 * 768  # queries by keys and weights by values, 2 x 2 a pair; backward twice that
    assert flops_per_image(config) == products + attention


def test_speed_in_every_unit():
    config = model_config("GPT-B", vocab_size=16384, n_classes=1000, grid=(16, 16))
    said = speed(1000.0, config, 8, peak=989.0)
    assert said["tokens_per_s"] == 256_000
    assert said["tflops_per_s"] == pytest.approx(flops_per_image(config) * 125 / 1e12)
    assert said["mfu"] == pytest.approx(said["tflops_per_s"] / 989)
    assert "mfu" not in speed(1000.0, config, 8, peak=None)


def test_a_peak_is_known_by_the_name_of_the_device_and_for_bf16_alone(monkeypatch):
    cuda = torch.device("cuda", 0)
    for name, peak in (
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("Other", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_tflops(cuda, "bf16") == peak
    assert peak_tflops(cuda, "fp32") is peak_tflops(torch.device("cpu"), "bf16") is None


def test_memory_is_that_of_this_process():
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(2**28 // 4)
    assert peak_memory_bytes(torch.device("cpu")) >= max(before, held.nbytes)
