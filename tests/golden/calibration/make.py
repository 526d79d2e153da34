"""Write ranges.json and nvfp4.safetensors: what nvidia-modelopt makes of a tiny LLaMA. See README.md."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def exported() -> dict[str, Tensor]:
    """The first layer's linears as NVFP4, by their names in the checkpoint, and the bfloat16 matrices they are of."""
    model = models.build("llama_gqa", config=SIZES).to(torch.bfloat16)
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    tensors = {
        "attention.qkv": torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        "attention.dense": attention.o_proj.weight,
        "mlp.fc": mlp.gate_proj.weight,
        "mlp.gate": mlp.up_proj.weight,
        "mlp.proj": mlp.down_proj.weight,
    }
    tensors = {f"{name}.source": weight.detach().clone() for name, weight in tensors.items()}
    with torch.no_grad():
        mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, forward_loop=lambda quantized: quantized(TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        export_tensorrt_llm_checkpoint(model, "llama", torch.bfloat16, folder, inference_tensor_parallel=1)
        stored = load_file(Path(folder) / "rank0.safetensors")
    prefix = "transformer.layers.0."
    linears = tuple(prefix + name.removesuffix("source") for name in tensors)
    return tensors | {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(linears)}


def edges() -> dict[str, Tensor]:
    """A matrix with what is rare: ties, zeros of both signs, scales below and above what float8 holds."""
    steps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 5.5, 6.0])
    rows = [steps, -steps, torch.zeros(16), -torch.zeros(16)]
    rows += [steps * 448, steps * 2**-9, steps * 2**-10, steps * 2**-11]
    rows += [torch.randn(16, generator=torch.Generator().manual_seed(0)) * 10.0**power for power in range(-6, 3)]
    rows += [steps.roll(5) * 0.3, steps * 1.7, steps * 100]
    source = torch.cat(rows).reshape(4, -1).to(torch.bfloat16)
    tensors = {}
    for name, second in (("round", torch.tensor(1.0)), ("odd", torch.tensor(0.3719))):
        data, block, _ = NVFP4QTensor.quantize(source, 16, None, second)
        scales = {"weights_scaling_factor": block, "weights_scaling_factor_2": second}
        tensors |= {f"{name}.{key}": value for key, value in {"weight": data._quantized_data, **scales}.items()}
        tensors[f"{name}.source"] = source.clone()
    return tensors


save_file(exported() | edges(), Path(__file__).with_name("nvfp4.safetensors"))
