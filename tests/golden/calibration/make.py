"""Write ranges.json: what nvidia-modelopt measures on a tiny LLaMA. See README.md."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch

import models

SIZES = {"hidden_size": 64, "intermediate_size": 96}
TOKENS = torch.arange(4 * 12).reshape(4, 12) * 5 % models.VOCAB


def figures(config: Any, kinds: tuple[str, ...]) -> dict[str, list[float]]:
    """Quantizer of each linear layer -> its amax, or its pre_quant_scale."""
    model = models.build("llama_gqa", config=SIZES)
    with torch.no_grad():
        mtq.quantize(model, config, forward_loop=lambda quantized: quantized(TOKENS))
    found = {}
    for path, module in model.named_modules():
        if "layers" not in path or not hasattr(module, "input_quantizer"):
            continue
        values = {
            "input_amax": module.input_quantizer.amax,
            "weight_amax": module.weight_quantizer.amax,
            "pre_quant_scale": module.input_quantizer.pre_quant_scale,
        }
        found |= {f"{path}.{kind}": values[kind].flatten().tolist() for kind in kinds}
    return found


smooth = copy.deepcopy(mtq.INT8_SMOOTHQUANT_CFG)
smooth["algorithm"] = {"method": "smoothquant", "alpha": 0.5}
result = {
    "fp8": figures(mtq.FP8_DEFAULT_CFG, ("input_amax", "weight_amax")),
    "int8_sq": figures(smooth, ("input_amax", "weight_amax", "pre_quant_scale")),
}
alone = ("o_proj", "down_proj")
result["int8_sq"] = {name: values for name, values in result["int8_sq"].items() if any(part in name for part in alone)}
Path(__file__).with_name("ranges.json").write_text(json.dumps(result, indent=1) + "\n")
