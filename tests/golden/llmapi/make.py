"""Records what nvidia-modelopt's export_hf_checkpoint writes: names, types, shapes, JSON, and some tensors. See README.

Run once, with nvidia-modelopt installed: PYTHONPATH=tests python tests/golden/llmapi/make.py
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

import models

HERE = Path(__file__).parent
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
RECIPES = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_kv": "FP8_DEFAULT_CFG",
    "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "w8a16": "INT8_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
KEPT = ("layers.0.self_attn.o_proj.", "layers.0.self_attn.v_proj.", "layers.0.input_layernorm.")


def settings(name: str) -> dict:
    """The recipe, with groups that the tiny model's sizes are multiples of."""
    found = copy.deepcopy(getattr(mtq, RECIPES[name]))
    for entry in found["quant_cfg"]:
        config = entry.get("cfg")
        for part in config if isinstance(config, list) else [config]:
            if isinstance(part, dict) and part.get("block_sizes", {}).get(-1) == 128:
                part["block_sizes"][-1] = 64
    if name == "fp8_kv":
        found = mtq.utils.update_quant_cfg_with_kv_cache_quant(found, mtq.FP8_KV_CFG["quant_cfg"])
    return found


def calibrate(model: torch.nn.Module) -> None:
    """Feed fixed tokens."""
    model(torch.randint(0, models.VOCAB, (4, 12), generator=torch.Generator().manual_seed(0)))


def main() -> None:
    """Write layouts.json and tensors.safetensors."""
    layouts, kept = {}, {}
    for name in RECIPES:
        model = models.build("llama_gqa", dtype="bfloat16", config=SIZES)
        model.config.architectures = ["LlamaForCausalLM"]
        with torch.no_grad():
            mtq.quantize(model, settings(name), calibrate)
        with tempfile.TemporaryDirectory() as folder:
            export_hf_checkpoint(model, export_dir=folder)
            config = json.loads((Path(folder) / "config.json").read_text())
            tensors = {}
            with safe_open(Path(folder) / "model.safetensors", framework="pt") as opened:
                for tensor in sorted(opened.keys()):
                    value = opened.get_tensor(tensor)
                    tensors[tensor] = [str(value.dtype).removeprefix("torch."), list(value.shape)]
                    if any(part in tensor for part in KEPT):
                        kept[f"{name}/{tensor}"] = value.clone()
            layouts[name] = {
                "hf_quant_config": json.loads((Path(folder) / "hf_quant_config.json").read_text()),
                "quantization_config": config["quantization_config"],
                "tensors": tensors,
            }
    (HERE / "layouts.json").write_text(json.dumps(layouts) + "\n")
    save_file(kept, HERE / "tensors.safetensors")


if __name__ == "__main__":
    main()
