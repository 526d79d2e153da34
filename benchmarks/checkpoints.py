"""Writes random checkpoints in the shape of real models: sharded safetensors with the index and config.json.

Usage: python benchmarks/checkpoints.py gpt2|llama|tinyllama FOLDER LAYERS HIDDEN FFN
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHARD_BYTES = 500 << 20


def gpt2(layers: int, hidden: int, vocab: int = 50257, positions: int = 1024) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a GPT-2 style model; 24 layers of 2048 are 1.3 B parameters."""
    yield "transformer.wte.weight", (vocab, hidden)
    yield "transformer.wpe.weight", (positions, hidden)
    for layer in range(layers):
        block = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            yield f"{block}{norm}.weight", (hidden,)
            yield f"{block}{norm}.bias", (hidden,)
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            yield f"{block}{name}.weight", (inputs, outputs)
            yield f"{block}{name}.bias", (outputs,)
    yield "transformer.ln_f.weight", (hidden,)
    yield "transformer.ln_f.bias", (hidden,)


def llama(
    layers: int, hidden: int, ffn: int, vocab: int = 32000, kv_share: int = 1
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a LLaMA style model; 24 layers of 2048 with 5504 are 1.3 B parameters.

    With one key and value head to eight of queries (`kv_share`), 22 layers of 2048 with 5632 are TinyLlama's 1.1 B.
    """
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        block = f"model.layers.{layer}."
        yield f"{block}input_layernorm.weight", (hidden,)
        yield f"{block}mlp.down_proj.weight", (hidden, ffn)
        yield f"{block}mlp.gate_proj.weight", (ffn, hidden)
        yield f"{block}mlp.up_proj.weight", (ffn, hidden)
        yield f"{block}post_attention_layernorm.weight", (hidden,)
        for name in ("k_proj", "o_proj", "q_proj", "v_proj"):
            shared = kv_share if name in ("k_proj", "v_proj") else 1
            yield f"{block}self_attn.{name}.weight", (hidden // shared, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def write(
    folder: Path, config: dict[str, object], tensors: Iterator[tuple[str, tuple[int, ...]]], dtype: str = "F16"
) -> int:
    """Write a checkpoint of random 16-bit numbers below 2 in magnitude.

    Args:
        folder: To create.
        config: Becomes config.json.
        tensors: Names and shapes.
        dtype: F16 or BF16; the uppermost exponent bit is clear in both.

    Returns:
        Bytes of weights written.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    random = np.random.default_rng(0)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors:
        tensor_bytes = 2 * int(np.prod(shape))
        if size + tensor_bytes > SHARD_BYTES and len(shards[-1]) > 0:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += tensor_bytes
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in shard.items():
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            weight_map[name] = file
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for shape in shard.values():
                bits = random.integers(0, 1 << 16, int(np.prod(shape)), dtype=np.uint16) & np.uint16(0xBFFF)
                stream.write(bits.data)
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


GPT2_CONFIG: dict[str, object] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_head": 16,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
LLAMA_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    """Write what the command line asks for."""
    kind, folder, *numbers = sys.argv[1:]
    layers, hidden, ffn = map(int, numbers)
    if kind == "gpt2":
        write(Path(folder), GPT2_CONFIG | {"n_layer": layers, "n_embd": hidden}, gpt2(layers, hidden))
    elif kind == "tinyllama":
        sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 4, "torch_dtype": "bfloat16"}
        write(Path(folder), LLAMA_CONFIG | sizes | heads, llama(layers, hidden, ffn, kv_share=8), "BF16")
    else:
        sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn}
        write(Path(folder), LLAMA_CONFIG | sizes, llama(layers, hidden, ffn))


if __name__ == "__main__":
    main()
