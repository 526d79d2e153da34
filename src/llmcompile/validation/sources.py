"""Checkpoints that transformers cannot read as they are: quantized ones as floats, and Meta's files as Hugging Face's.

Written from the formats' own definitions, apart from the code that converts them.
Sources: AutoGPTQ's qlinear_cuda_old.py (zeros are stored less one), AutoAWQ's gemm.py (order of eight outputs in an
int32), vllm-project/compressed-tensors (weight = float8 * weight_scale).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.validation.checks import StoredWeights

_ENDINGS = {"gptq": ".qweight", "awq": ".qweight", "fp8": ".weight_scale"}
_AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
_FUSED = ("q_proj", "k_proj", "v_proj")


class QuantizedWeights:
    """The float weights that a quantized checkpoint stands for.

    Attributes:
        method: "gptq", "awq" or "fp8".
        group_size: Inputs that share a scale.
        stored_dtype: None: what the quantizer meant. Otherwise what is left of it in a TensorRT-LLM checkpoint of this
            type: offsets rounded, and the parts of a fused FP8 matrix brought to one scale.
    """

    def __init__(
        self, files: Sequence[Path], method: str, *, group_size: int, stored_dtype: torch.dtype | None = None
    ) -> None:
        self._stored = StoredWeights(files)
        self.method = method
        self.group_size = group_size
        self.stored_dtype = stored_dtype
        ending = _ENDINGS[method]
        self._layers = {name.removesuffix(ending) for name in self._stored.names() if name.endswith(ending)}
        plain = [name for name in self._stored.names() if name.rpartition(".")[0] not in self._layers]
        biases = [name for name in self._stored.names() if name.endswith(".bias") and name not in plain]
        self._names = {*plain, *biases, *(f"{layer}.weight" for layer in self._layers)}

    def names(self) -> Collection[str]:
        """Every tensor, quantized ones by the name of their weight."""
        return self._names

    def is_quantized(self, name: str) -> bool:
        """Whether the tensor called `name` comes quantized."""
        return name.removesuffix(".weight") in self._layers and name.endswith(".weight")

    def read(self, name: str) -> Tensor:
        """One tensor as floats; a weight (out, in) in float32."""
        if not self.is_quantized(name):
            return self._stored.read(name)
        layer = name.removesuffix(".weight")
        if self.method == "fp8":
            return self._fp8(layer)
        packed, zeros = self._stored.read(f"{layer}.qweight"), self._stored.read(f"{layer}.qzeros")
        scales = self._stored.read(f"{layer}.scales")
        values = _nibbles_of_rows(packed) if self.method == "gptq" else _awq_nibbles(packed)
        offsets = _nibbles_of_columns(zeros) + 1 if self.method == "gptq" else _awq_nibbles(zeros)
        wide = scales.float().repeat_interleave(self.group_size, 0)
        if self.stored_dtype is None:
            return ((values - offsets.repeat_interleave(self.group_size, 0)) * wide).T.contiguous()
        # What is stored: integers about eight, their scales as they are, and the rest of each zero as a rounded offset.
        rest = (8 - offsets).float() * scales.float()
        rest = (rest.half() if self.method == "gptq" else rest).to(self.stored_dtype).float()
        return ((values - 8) * wide + rest.repeat_interleave(self.group_size, 0)).T.contiguous()

    def _fp8(self, layer: str) -> Tensor:
        bits, scale = self._stored.read(f"{layer}.weight"), self._scale(layer)
        parent, _, leaf = layer.rpartition(".")
        if self.stored_dtype is None or leaf not in _FUSED:
            return bits.float() * scale
        largest = max(self._scale(f"{parent}.{part}") for part in _FUSED)
        return (bits.float() * scale / largest).to(torch.float8_e4m3fn).float() * largest

    def _scale(self, layer: str) -> Tensor:
        return self._stored.read(f"{layer}.weight_scale").float().reshape(())

    def input_scale(self, layer: str) -> float:
        """Scale of the activations that enter an FP8 layer."""
        return float(self._stored.read(f"{layer}.input_scale").float().reshape(()))


def _nibbles_of_rows(packed: Tensor) -> Tensor:
    """int32 (rows / 8, columns), eight rows in each, low first -> (rows, columns)."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (packed[:, None, :] >> shifts[None, :, None] & 15).reshape(-1, packed.shape[1])


def _nibbles_of_columns(packed: Tensor) -> Tensor:
    """int32 (rows, columns / 8), eight columns in each, low first -> (rows, columns)."""
    return _nibbles_of_rows(packed.T.contiguous()).T


def _awq_nibbles(packed: Tensor) -> Tensor:
    """int32 (rows, columns / 8), in AutoAWQ's order -> (rows, columns)."""
    shifts = torch.tensor(_AWQ_NIBBLES, dtype=torch.int32) * 4
    return (packed[:, :, None] >> shifts & 15).reshape(packed.shape[0], -1)


_META_AXES = {
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w3": 0,
    "w2": 1,
    "output": 0,
}
_META_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class MetaWeights:
    """Meta's consolidated files under Hugging Face's names: model-parallel parts joined, rotary pairs put apart.

    Source: huggingface/transformers@v4.57.6:src/transformers/models/llama/convert_llama_weights_to_hf.py.
    """

    def __init__(self, files: Sequence[Path], parameters: Path) -> None:
        self._ranks = [StoredWeights([file]) for file in sorted(files)]
        self._parameters = json.loads(parameters.read_text())
        self._meta = {_hf_name(name): name for name in self._ranks[0].names() if name != "rope.freqs"}

    def names(self) -> Collection[str]:
        """Every tensor, as Hugging Face calls it."""
        return self._meta.keys()

    def read(self, name: str) -> Tensor:
        """One tensor, joined over the files."""
        meta = self._meta[name]
        parts = [rank.read(meta) for rank in self._ranks]
        leaf = meta.removesuffix(".weight").rpartition(".")[2]
        if leaf == "tok_embeddings":
            # LLaMA 1 and 2 divide the hidden size, 3 the vocabulary.
            whole = torch.cat(parts, 0 if parts[0].shape[1] == self._parameters["dim"] else 1)
        else:
            whole = torch.cat(parts, _META_AXES[leaf]) if leaf in _META_AXES and len(parts) > 1 else parts[0]
        return self._apart(whole) if leaf in ("wq", "wk") else whole

    def _apart(self, weight: Tensor) -> Tensor:
        """Rows of each head from pairs (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...)."""
        head = self._parameters["dim"] // self._parameters["n_heads"]
        heads = weight.shape[0] // head
        return weight.view(heads, head // 2, 2, -1).transpose(1, 2).reshape(weight.shape)

    def write_config(self, folder: Path) -> None:
        """Write the config.json of the same model into `folder`."""
        given = self._parameters
        heads = given["n_heads"]
        scaled = {
            "rope_type": "llama3",
            "factor": given.get("rope_scaling_factor", 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.read("model.embed_tokens.weight").shape[0],
            "hidden_size": given["dim"],
            "intermediate_size": self.read("model.layers.0.mlp.gate_proj.weight").shape[0],
            "num_hidden_layers": given["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": heads if given.get("n_kv_heads") is None else given["n_kv_heads"],
            "rms_norm_eps": given["norm_eps"],
            "rope_theta": given.get("rope_theta", 10000.0),
            "rope_scaling": scaled if given.get("use_scaled_rope") is True else None,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))


def _hf_name(meta: str) -> str:
    plain = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if meta in plain:
        return plain[meta]
    if meta == "output.weight":
        return "lm_head.weight"
    _, layer, rest = meta.split(".", 2)
    return f"model.layers.{layer}.{_META_NAMES[rest.removesuffix('.weight')]}.weight"
