"""A second reader of FP8 folders: compressed-tensors, which knows the same format by its own names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import models

if TYPE_CHECKING:
    from conftest import Run

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 2}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


def as_compressed_tensors(folder: Path, output: Path) -> None:
    """Say the same of a folder's linear layers in the other words; its scalars have one axis there."""
    shutil.copytree(folder, output)
    config: dict[str, Any] = json.loads((output / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": FLOAT8, "input_activations": FLOAT8}},
        "ignore": config["quantization_config"]["ignore"],
    }
    (output / "config.json").write_text(json.dumps(config))
    held = load_file(output / "model.safetensors")
    whole = {name: value.reshape(1) if value.dim() == 0 else value for name, value in held.items()}
    save_file(whole, output / "model.safetensors", {"format": "pt"})


def by_hand(folder: Path, model: Path, tokens: Tensor) -> Tensor:
    """The logits with weights times their scales, and inputs rounded to float8 of theirs, in float32."""
    held = load_file(folder / "model.safetensors")
    network = AutoModelForCausalLM.from_pretrained(model).float()
    for name, module in network.named_modules():
        if f"{name}.weight_scale" not in held:
            continue
        module.weight.data = held[f"{name}.weight"].float() * held[f"{name}.weight_scale"]
        step = held[f"{name}.input_scale"]

        def rounded(_: object, arguments: tuple[Tensor, ...], step: Tensor = step) -> tuple[Tensor, ...]:
            return ((arguments[0] / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step, *arguments[1:])

        module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        logits: Tensor = network(tokens).logits
    return logits


def test_float8_reloads_through_compressed_tensors(run: Run, tmp_path: Path) -> None:
    """float-quantized, with one scale for each tensor of weights and of inputs, is the same format."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: pip install -e '.[dev]'")
    source = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=WIDE)
    models.add_tokenizer(source)
    asked = ("build", "trtllm", "-m", source, "--target", "llmapi", "--quantization", "fp8")
    assert run(*asked, tmp_path / "output").code == 0
    as_compressed_tensors(tmp_path / "output", tmp_path / "other")
    tokens = torch.arange(1, 17)[None]

    network = AutoModelForCausalLM.from_pretrained(tmp_path / "other", dtype=torch.float32)
    with torch.no_grad():
        found = network(tokens).logits

    torch.testing.assert_close(found, by_hand(tmp_path / "output", source, tokens), rtol=0, atol=1e-4)
