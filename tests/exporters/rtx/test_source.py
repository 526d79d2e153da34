"""The model as it is loaded for export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from llmcompile.errors import CheckpointError, UnsupportedError
from llmcompile.exporters.rtx import export, networks, source


def test_a_cap_of_scores_is_not_left_out(tmp_path: Path) -> None:
    """Gemma 2 caps its attention scores, which transformers' fused attention passes over without a word."""
    loaded = source.load(models.save("gemma2", tmp_path), "text-generation", "fp32")

    assert loaded.model.config._attn_implementation == "eager"


def test_neither_the_head_nor_what_is_tied_to_it_is_quantized(tmp_path: Path) -> None:
    """GPT-2's layers have their inputs first, and its head is the embedding; LLaMA's head is its own."""
    gpt2 = source.load(models.save("gpt2", tmp_path / "gpt2"), "text-generation", "fp32")
    llama = source.load(models.save("llama_gqa", tmp_path / "llama"), "text-generation", "fp32")

    assert set(gpt2.linear.values()) == {False}
    assert not any("head" in name for name in (*gpt2.linear, *llama.linear))
    assert len(llama.linear) == 14


def test_what_is_infinite_in_16_bits_is_counted(tmp_path: Path) -> None:
    """One weight of 70000 is more than fp16 has."""
    folder = models.save("bert", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name][0, 0] = 70000.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert source.load(folder, "fill-mask", "fp16").overflowed == {name: 1}
    assert source.load(folder, "fill-mask", "bf16").overflowed == {}


def test_weights_transformers_keeps_in_float32_are_named(tmp_path: Path) -> None:
    """T5's second projection overflows in fp16; in bf16 transformers keeps it, too."""
    loaded = source.load(models.save("t5", tmp_path), "text2text-generation", "fp16")

    assert loaded.float32 != ()
    assert all(name.endswith("wo.weight") for name in loaded.float32)
    assert loaded.model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32


def test_a_pooler_that_was_not_saved_is_no_output(tmp_path: Path) -> None:
    """A masked language model has none; a head that was not saved is an error by its name."""
    folder = models.save("bert", tmp_path)

    assert not source.load(folder, "feature-extraction", "fp32").pooler
    with pytest.raises(CheckpointError, match="classifier"):
        source.load(folder, "token-classification", "fp32")
    with pytest.raises(UnsupportedError, match="text-generation of a t5"):
        source.load(models.save("t5", tmp_path / "t5"), "text-generation", "fp32")


def test_a_model_that_looks_at_its_values_is_refused(tmp_path: Path) -> None:
    """BART does in fp16 alone, which the hint says; nothing is printed by torch."""
    loaded = source.load(models.save("bart", tmp_path / "model"), "text2text-generation", "fp16")
    network = next(networks.networks(loaded, "text2text-generation", all_logits=False))

    with pytest.raises(UnsupportedError) as caught:
        export.export(network, tmp_path / "model.onnx", opset=21)

    assert caught.value.problems[0].hint == "--dtype bf16, or fp32"
