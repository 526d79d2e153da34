"""Tiny Hugging Face checkpoints, one factory per family: from a config, by transformers itself, without a network.

Every parameter, norms and biases too, is drawn from N(0, 0.5), so that a swapped, transposed or mis-sliced tensor
cannot pass; no two axes of a tensor are equal where the family allows it, and heads divide by 4.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

with warnings.catch_warnings():
    # Its module compiles functions with torch.jit.script when it is imported, which newer PyTorch warns about.
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers.models.gpt_bigcode.modeling_gpt_bigcode

VOCAB = 44
SHARD_BYTES = 16_000
"""Small enough that every family is split in float32, large enough for its largest tensor."""


@dataclass(frozen=True)
class Family:
    """How transformers makes a model of one family.

    Attributes:
        config_class: Name of the config class.
        model_class: Name of the class with a head; its tensor names carry the family's prefix, where it has one.
        base_class: Name of the class without a head; its tensor names carry no prefix.
        config: What the config class is called with.
    """

    config_class: str
    model_class: str
    base_class: str
    config: Mapping[str, Any]


def _family(config_class: str, model_class: str, base_class: str, **config: Any) -> Family:
    return Family(config_class, model_class, base_class, MappingProxyType({"vocab_size": VOCAB, **config}))


_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_GPT = {**_ENDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20}
_MODERN = {
    **_ENDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
_T5 = {
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "decoder_start_token_id": 0,
}
_NEOX = ("GPTNeoXConfig", "GPTNeoXForCausalLM", "GPTNeoXModel")
_LLAMA = ("LlamaConfig", "LlamaForCausalLM", "LlamaModel")
_OPT = ("OPTConfig", "OPTForCausalLM", "OPTModel")
_LATER = {**_MODERN, "intermediate_size": 36, "num_key_value_heads": 2}
_QWEN_MOE = {**_LATER, "moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2}
_BIGCODE = ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", "GPTBigCodeModel")
_FALCON = ("FalconConfig", "FalconForCausalLM", "FalconModel")
_T5_CLASSES = ("T5Config", "T5ForConditionalGeneration", "T5Model")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gpt2": _family("GPT2Config", "GPT2LMHeadModel", "GPT2Model", **_GPT, n_inner=36),
        "opt": _family(*_OPT, **_MODERN, ffn_dim=36, word_embed_proj_dim=32, pad_token_id=0),
        "opt_350m": _family(
            *_OPT, **_MODERN, ffn_dim=36, word_embed_proj_dim=12, do_layer_norm_before=False, pad_token_id=0
        ),
        "bloom": _family("BloomConfig", "BloomForCausalLM", "BloomModel", **_ENDS, hidden_size=32, n_layer=2, n_head=4),
        "gptj": _family("GPTJConfig", "GPTJForCausalLM", "GPTJModel", **_GPT, n_inner=36, rotary_dim=4),
        "gptneox": _family(*_NEOX, **_MODERN, intermediate_size=36, rotary_pct=0.5),
        "gptneox_sequential": _family(
            *_NEOX, **_MODERN, intermediate_size=36, rotary_pct=0.5, use_parallel_residual=False
        ),
        "llama": _family(*_LLAMA, **_MODERN, intermediate_size=36),
        "llama_gqa": _family(*_LLAMA, **_MODERN, intermediate_size=36, num_key_value_heads=2),
        "bert": _family(
            "BertConfig",
            "BertForMaskedLM",
            "BertModel",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=36,
            max_position_embeddings=20,
        ),
        "t5": _family(*_T5_CLASSES, **_T5),
        "t5_v11": _family(*_T5_CLASSES, **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "mt5": _family("MT5Config", "MT5ForConditionalGeneration", "MT5Model", **_T5),
        "mistral": _family("MistralConfig", "MistralForCausalLM", "MistralModel", **_LATER, sliding_window=16),
        "mixtral": _family(
            "MixtralConfig",
            "MixtralForCausalLM",
            "MixtralModel",
            **_LATER,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        "qwen2": _family("Qwen2Config", "Qwen2ForCausalLM", "Qwen2Model", **_LATER),
        "qwen2_moe": _family(
            "Qwen2MoeConfig",
            "Qwen2MoeForCausalLM",
            "Qwen2MoeModel",
            **_QWEN_MOE,
            shared_expert_intermediate_size=28,
        ),
        "qwen3": _family("Qwen3Config", "Qwen3ForCausalLM", "Qwen3Model", **_LATER, head_dim=10),
        "qwen3_moe": _family("Qwen3MoeConfig", "Qwen3MoeForCausalLM", "Qwen3MoeModel", **_QWEN_MOE, head_dim=10),
        "gemma": _family("GemmaConfig", "GemmaForCausalLM", "GemmaModel", **_LATER, head_dim=10),
        "gemma2": _family(
            "Gemma2Config",
            "Gemma2ForCausalLM",
            "Gemma2Model",
            **_LATER,
            head_dim=10,
            query_pre_attn_scalar=12,
            sliding_window=16,
        ),
        "gpt_bigcode": _family(*_BIGCODE, **_GPT, n_inner=36),
        "gpt_bigcode_mha": _family(*_BIGCODE, **_GPT, n_inner=36, multi_query=False),
        "starcoder2": _family("Starcoder2Config", "Starcoder2ForCausalLM", "Starcoder2Model", **_LATER),
        "falcon_7b": _family(*_FALCON, **_MODERN, ffn_hidden_size=36),
        "falcon_40b": _family(*_FALCON, **_MODERN, ffn_hidden_size=36, new_decoder_architecture=True, num_kv_heads=2),
        "falcon_rw": _family(
            *_FALCON,
            **_MODERN,
            ffn_hidden_size=36,
            multi_query=False,
            parallel_attn=False,
            alibi=True,
            bias=True,
        ),
        "mpt": _family(
            "MptConfig", "MptForCausalLM", "MptModel", **_ENDS, d_model=32, n_layers=2, n_heads=4, max_seq_len=20
        ),
        "bart": _family(
            "BartConfig",
            "BartForConditionalGeneration",
            "BartModel",
            d_model=32,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=36,
            decoder_ffn_dim=36,
            max_position_embeddings=20,
        ),
        "phi": _family("PhiConfig", "PhiForCausalLM", "PhiModel", **{**_LATER, "num_key_value_heads": 4}),
        "phi3": _family("Phi3Config", "Phi3ForCausalLM", "Phi3Model", **_LATER, pad_token_id=0),
    }
)

FT_FAMILIES = (
    *("gpt2", "opt", "opt_350m", "bloom", "gptj", "gptneox", "gptneox_sequential"),
    *("llama", "llama_gqa", "bert", "t5", "t5_v11", "mt5"),
)
"""Those that FasterTransformer's exporter knows."""


def build(
    family: str,
    *,
    base: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> transformers.PreTrainedModel:
    """A model of `family` with random parameters.

    Args:
        family: Key of FAMILIES.
        base: Whether to make the class without a head, whose tensor names carry no prefix.
        dtype: Name of the torch dtype that the parameters are rounded to.
        seed: Another one gives other parameters.
        config: Config keys to set besides, or instead of, the family's own.
    """
    made = FAMILIES[family]
    settings = getattr(transformers, made.config_class)(**{**made.config, **config})
    numbers = torch.Generator().manual_seed(seed)
    model = getattr(transformers, made.base_class if base else made.model_class)(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=numbers)
    return model.to(getattr(torch, dtype)).eval()


def save(
    family: str,
    folder: Path,
    *,
    base: bool = False,
    dtype: str = "float32",
    pickle: bool = False,
    sharded: bool = False,
    seed: int = 0,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write a checkpoint of `family` to `folder`, and return `folder`.

    Args:
        family: As for `build`, like `base`, `dtype`, `seed` and `config`.
        folder: Made where it does not exist.
        base: As for `build`.
        dtype: As for `build`.
        pickle: Whether to write pytorch_model.bin rather than model.safetensors.
        sharded: Whether to write several files and an index.
        seed: As for `build`.
        config: As for `build`.
    """
    model = build(family, base=base, dtype=dtype, seed=seed, config=config)
    model.save_pretrained(folder, safe_serialization=not pickle, max_shard_size=SHARD_BYTES if sharded else "1GB")
    return folder


def add_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words to `folder`: `<pad> <s> </s> <unk>`, then a to z and 0 to 9."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", *"0123456789"]
    assert len(words) <= VOCAB
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
