"""Checkpoints that transformers cannot read as they are: quantized ones as floats, and Meta's files as Hugging Face's.

Written from the formats' own definitions, apart from the code that converts them.
Sources: AutoGPTQ's qlinear_cuda_old.py (zeros are stored less one), AutoAWQ's gemm.py (order of eight outputs in an
int32), vllm-project/compressed-tensors (weight = float8 * weight_scale).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from llmcompile.errors import CheckpointError
from llmcompile.validation.checks import StoredWeights

_ENDINGS = {"gptq": ".qweight", "awq": ".qweight", "fp8": ".weight_scale"}
_AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
_FUSED = ("q_proj", "k_proj", "v_proj")
_HINT = "get the checkpoint again, or quantize the model again"


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
        """One tensor as floats; a weight (out, in) in float32.

        Raises:
            CheckpointError: A scale is not finite, or one of FP8 not above 0.
        """
        if not self.is_quantized(name):
            return self._stored.read(name)
        layer = name.removesuffix(".weight")
        if self.method == "fp8":
            return self._fp8(layer)
        packed, zeros = self._stored.read(f"{layer}.qweight"), self._stored.read(f"{layer}.qzeros")
        scales = self._scales(layer)
        values = _nibbles_of_rows(packed) if self.method == "gptq" else _awq_nibbles(packed)
        offsets = _nibbles_of_columns(zeros) + 1 if self.method == "gptq" else _awq_nibbles(zeros)
        wide = scales.repeat_interleave(self.group_size, 0)
        if self.stored_dtype is None:
            return ((values - offsets.repeat_interleave(self.group_size, 0)) * wide).T.contiguous()
        # What is stored: integers about eight, their scales, and the rest of each zero as a rounded offset.
        rest = (8 - offsets).float() * scales
        rest = (rest.half() if self.method == "gptq" else rest).to(self.stored_dtype).float()
        return ((values - 8) * wide + rest.repeat_interleave(self.group_size, 0)).T.contiguous()

    def _fp8(self, layer: str) -> Tensor:
        bits, scale = self._stored.read(f"{layer}.weight"), self._scale(layer)
        parent, _, leaf = layer.rpartition(".")
        if self.stored_dtype is None or leaf not in _FUSED:
            return bits.float() * scale
        largest = max(self._scale(f"{parent}.{part}") for part in _FUSED)
        return (bits.float() * scale / largest).to(torch.float8_e4m3fn).float() * largest

    def _scales(self, layer: str) -> Tensor:
        """Scales of groups in float32, of whatever float type; float16 in what is stored, as the vendor's form has it.

        Raises:
            CheckpointError: One is not finite.
        """
        name = f"{layer}.scales"
        scales = self._stored.read(name).float()
        if self.stored_dtype is not None:
            scales = scales.half().float()
        if not bool(scales.isfinite().all()):
            raise CheckpointError(name, "a scale that is NaN, infinite or too large", "finite float16 numbers", _HINT)
        return scales

    def _scale(self, layer: str) -> Tensor:
        return self._single(f"{layer}.weight_scale")

    def _single(self, name: str) -> Tensor:
        """The only value of a tensor, of whatever float type, in float32: shape ().

        Raises:
            CheckpointError: There are several, or it is not finite and above 0.
        """
        stored = self._stored.read(name)
        if stored.numel() != 1:
            raise CheckpointError(name, f"shape {tuple(stored.shape)}", "one scale for the whole tensor", _HINT)
        scale = stored.float().reshape(())
        if not 0 < float(scale) < math.inf:
            raise CheckpointError(name, str(float(scale)), "a finite number above 0", _HINT)
        return scale

    def input_scale(self, layer: str) -> float:
        """Scale of the activations that enter an FP8 layer.

        Raises:
            CheckpointError: It is not finite and above 0.
        """
        return float(self._single(f"{layer}.input_scale"))


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
_META_RECOMPUTED = "rope.freqs"
"""Of all layers in LLaMA 2 and 3; LLaMA 1 has one in each layer, `attention.inner_attention.rope.freqs`."""
_META_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling_factor": 8.0}
)
"""Source: meta-llama/llama@main:llama/model.py (ModelArgs), meta-llama/llama-models@v0.0.45:reference_impl/model.py."""


class MetaWeights:
    """Meta's consolidated files under Hugging Face's names: model-parallel parts joined, rotary pairs put apart.

    Source: huggingface/transformers@v4.57.6:src/transformers/models/llama/convert_llama_weights_to_hf.py.
    """

    def __init__(self, files: Sequence[Path], parameters: Path) -> None:
        self._ranks = [StoredWeights([file]) for file in sorted(files)]
        self._path = parameters
        self._parameters = _meta_parameters(parameters)
        self._meta = {_hf_name(name): name for name in self._ranks[0].names() if not name.endswith(_META_RECOMPUTED)}
        if self._head % 2 != 0:
            raise CheckpointError(f"{parameters}: head_dim", str(self._head), "an even number", _META_HINT)

    def names(self) -> Collection[str]:
        """Every tensor, as Hugging Face calls it."""
        return self._meta.keys()

    def read(self, name: str) -> Tensor:
        """One tensor, joined over the files.

        Raises:
            CheckpointError: There is none, its parts do not fit each other, or it is not whole heads.
        """
        if name not in self._meta:
            raise CheckpointError(name, "not in the checkpoint", "one of Meta's tensors", _META_HINT)
        meta = self._meta[name]
        parts = [rank.read(meta) for rank in self._ranks]
        leaf = meta.removesuffix(".weight").rpartition(".")[2]
        if leaf == "tok_embeddings":
            # LLaMA 1 and 2 divide the hidden size, 3 the vocabulary.
            whole = _joined(meta, parts, 0 if parts[0].shape[-1] == self._parameters["dim"] else 1)
        else:
            whole = _joined(meta, parts, _META_AXES[leaf]) if leaf in _META_AXES else parts[0]
        if leaf not in ("wq", "wk"):
            return whole
        if whole.dim() != 2 or whole.shape[0] % self._head != 0:
            expected = f"a matrix of whole heads of {self._head} rows"
            raise CheckpointError(meta, f"shape {tuple(whole.shape)}", expected, _META_HINT)
        return self._apart(whole)

    @property
    def _head(self) -> int:
        """Rows of one head: `head_dim`, where llama-models' newer files have it, else the hidden size divided."""
        given = self._parameters
        return int(given["dim"] // given["n_heads"] if given.get("head_dim") is None else given["head_dim"])

    def _apart(self, weight: Tensor) -> Tensor:
        """Rows of each head from pairs (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...)."""
        head = self._head
        heads = weight.shape[0] // head
        return weight.view(heads, head // 2, 2, -1).transpose(1, 2).reshape(weight.shape)

    def write_config(self, folder: Path) -> None:
        """Write the config.json of the same model into `folder`."""
        given = self._parameters
        heads = given["n_heads"]
        scaled = {
            "rope_type": "llama3",
            "factor": given["rope_scaling_factor"],
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
            "head_dim": self._head,
            "rms_norm_eps": given["norm_eps"],
            "rope_theta": given["rope_theta"],
            "rope_scaling": scaled if given.get("use_scaled_rope") is True else None,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))


_META_HINT = "check that params.json belongs to these weights"


def _meta_parameters(path: Path) -> Mapping[str, Any]:
    """params.json with Meta's defaults.

    Raises:
        CheckpointError: It is not a JSON object, or a value cannot be what it should.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"unreadable: {error}", "a JSON object", _META_HINT) from error
    if not isinstance(given, dict):
        raise CheckpointError(str(path), f"a JSON {type(given).__name__}", "an object", _META_HINT)
    merged = {**_META_DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
    for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim"):
        value = merged.get(key)
        absent = value is None and key in ("n_kv_heads", "head_dim")
        if not absent and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31):
            raise CheckpointError(f"{path}: {key}", repr(value)[:80], "a whole number above 0", _META_HINT)
    for key in _META_DEFAULTS:
        value = merged[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1e30:
            raise CheckpointError(f"{path}: {key}", repr(value)[:80], "a number above 0", _META_HINT)
    if merged["dim"] < merged["n_heads"]:
        found = f"{merged['n_heads']} heads in a hidden size of {merged['dim']}"
        raise CheckpointError(f"{path}: n_heads", found, "at most one for each unit", _META_HINT)
    return MappingProxyType(merged)


def _joined(name: str, parts: Sequence[Tensor], axis: int) -> Tensor:
    try:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CheckpointError(name, f"parts of shapes {shapes}", f"shapes alike but for axis {axis}") from error


def _hf_name(meta: str) -> str:
    """What Hugging Face calls a tensor of Meta's.

    Raises:
        CheckpointError: There is no such tensor.
    """
    plain = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if meta in plain:
        return plain[meta]
    prefix, _, rest = meta.partition(".")
    layer, _, inside = rest.partition(".")
    leaf = _META_NAMES.get(inside.removesuffix(".weight"))
    if prefix != "layers" or leaf is None:
        raise CheckpointError(meta, "a tensor that no LLaMA of Meta's holds", "", _META_HINT)
    return f"model.layers.{layer}.{leaf}.weight"
