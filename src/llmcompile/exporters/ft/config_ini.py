"""config.ini, key by key in the order of the vendor's converters, so that their text and ours are the same bytes.

Source: NVIDIA/FasterTransformer@df4a753:examples/pytorch/*/utils/huggingface_*_convert.py (keys and order) and
src/fastertransformer/triton_backend/*/*TritonModel.cc (what is read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmcompile.architectures.spec import Dims, Fact

Entries: TypeAlias = Sequence[tuple[str, str]]

MAX_LINE_BYTES = 190
"""FasterTransformer's INI reader cuts lines at 200 bytes. Source: @df4a753:3rdparty/INIReader.h (INI_MAX_LINE)."""


@dataclass(frozen=True)
class Given:
    """What config.ini holds beside the model's own facts.

    Attributes:
        model_name: Name to record.
        dtype: fp32, fp16 or bf16.
        ranks: Tensor parallel degree.
        encoder_only: Leave [decoder] empty.
        int8: Whether the SmoothQuant set is there.
    """

    model_name: str
    dtype: str
    ranks: int
    encoder_only: bool
    int8: bool


def _text(sections: Sequence[tuple[str, Entries]], *, spaced: bool = True) -> str:
    """The file's text; BLOOM's converter writes no spaces around the equals sign."""
    sign = " = " if spaced else "="
    return "".join(
        f"[{section}]\n" + "".join(f"{key}{sign}{value}\n" for key, value in entries) + "\n"
        for section, entries in sections
    )


def gpt2(d: Dims, given: Given) -> str:
    """Section [gpt] of GPT-2, with the layernorm_eps and activation the converter leaves to wrong defaults."""
    return _text(
        (
            (
                "gpt",
                (
                    ("model_name", given.model_name),
                    *_attention_sizes(d),
                    ("inter_size", _size(d, "ffn")),
                    ("max_pos_seq_len", _size(d, "positions")),
                    ("num_layer", _size(d, "layers")),
                    *_vocabulary(d),
                    ("weight_data_type", given.dtype),
                    ("tensor_para_size", str(given.ranks)),
                    ("layernorm_eps", str(d.facts["norm_eps"])),
                    *(() if is_gelu(d.facts["activation"]) else (("activation_type", "Relu"),)),
                ),
            ),
        )
    )


def opt(d: Dims, given: Given) -> str:
    """Section [gpt] of OPT."""
    return _text(
        (
            (
                "gpt",
                (
                    ("model_name", given.model_name),
                    *_attention_sizes(d),
                    ("inter_size", _size(d, "ffn")),
                    ("max_pos_seq_len", _size(d, "positions")),
                    ("num_layer", _size(d, "layers")),
                    ("layernorm_eps", "1e-5"),
                    ("layernorm_type", "pre_layernorm" if d.facts["pre_norm"] is True else "post_layernorm"),
                    ("activation_type", "Gelu" if is_gelu(d.facts["activation"]) else "Relu"),
                    ("has_post_decoder_layernorm", "1" if d.facts["final_norm"] is True else "0"),
                    *_vocabulary(d),
                    ("weight_data_type", given.dtype),
                    ("int8", str(given.int8)),
                ),
            ),
        )
    )


def bloom(d: Dims, given: Given) -> str:
    """Section [gpt] of BLOOM."""
    after = d.facts["residual_after_norm"] is True
    return _text(
        (
            (
                "gpt",
                (
                    ("model_name", given.model_name),
                    ("num_layer", _size(d, "layers")),
                    ("head_num", _size(d, "heads")),
                    ("inter_size", _size(d, "ffn")),
                    ("size_per_head", _size(d, "head_dim")),
                    ("vocab_size", _size(d, "vocab")),
                    ("tensor_para_size", str(given.ranks)),
                    ("weight_data_type", given.dtype),
                    ("model_variant", "bloom-post" if after else "bloom-pre"),
                    ("layernorm_eps", str(d.facts["norm_eps"])),
                    ("layernorm_type", "post_layernorm" if after else "pre_layernorm"),
                    ("activation_type", "Gelu"),
                    ("has_positional_encoding", "False"),
                    ("has_pre_decoder_layernorm", "True"),
                    ("has_post_decoder_layernorm", "True"),
                    ("use_attention_linear_bias", "True"),
                    ("start_id", str(d.facts["start_id"])),
                    ("end_id", str(d.facts["end_id"])),
                ),
            ),
        ),
        spaced=False,
    )


def gptj(d: Dims, given: Given) -> str:
    """Section [gptj]."""
    return _text(
        (
            (
                "gptj",
                (
                    ("model_name", given.model_name),
                    *_attention_sizes(d),
                    ("inter_size", _size(d, "ffn")),
                    ("num_layer", _size(d, "layers")),
                    ("rotary_embedding", str(d.facts["rotary_dim"])),
                    *_vocabulary(d),
                    ("weight_data_type", given.dtype),
                ),
            ),
        )
    )


def gptneox(d: Dims, given: Given) -> str:
    """Section [gptneox]."""
    return _text(
        (
            (
                "gptneox",
                (
                    ("model_name", given.model_name),
                    *_attention_sizes(d),
                    ("inter_size", _size(d, "ffn")),
                    ("num_layer", _size(d, "layers")),
                    ("rotary_embedding", str(d.facts["rotary_dim"])),
                    *_vocabulary(d),
                    ("use_gptj_residual", "1" if d.facts["parallel_residual"] is True else "0"),
                    ("weight_data_type", given.dtype),
                ),
            ),
        )
    )


def llama(d: Dims, given: Given) -> str:
    """Section [llama]; `kv_head_num` only with grouped-query attention, whose fork alone reads it."""
    grouped = d.sizes["kv_heads"] != d.sizes["heads"]
    return _text(
        (
            (
                "llama",
                (
                    ("model_name", given.model_name),
                    ("head_num", _size(d, "heads")),
                    *((("kv_head_num", _size(d, "kv_heads")),) if grouped else ()),
                    ("size_per_head", _size(d, "head_dim")),
                    ("inter_size", _size(d, "ffn")),
                    ("num_layer", _size(d, "layers")),
                    ("rotary_embedding", _size(d, "head_dim")),
                    ("layernorm_eps", str(d.facts["norm_eps"])),
                    *_vocabulary(d),
                    ("weight_data_type", given.dtype),
                ),
            ),
        )
    )


def bert(d: Dims, given: Given) -> str:
    """Section [bert]."""
    return _text(
        (
            (
                "bert",
                (
                    ("model_name", given.model_name),
                    ("position_embedding_type", str(d.facts["position_embedding_type"])),
                    ("hidden_size", _size(d, "hidden")),
                    ("num_layer", _size(d, "layers")),
                    *_attention_sizes(d),
                    ("activation_type", str(d.facts["activation"])),
                    ("inter_size", _size(d, "ffn")),
                    ("max_position_embeddings", _size(d, "positions")),
                    ("layer_norm_eps", str(d.facts["norm_eps"])),
                    ("weight_data_type", given.dtype),
                    ("tensor_para_size", str(given.ranks)),
                ),
            ),
        )
    )


def t5(d: Dims, given: Given) -> str:
    """Sections [encoder], [decoder] and [structure].

    The converter dumps every attribute of the config object, different ones with each transformers release; here are
    those that FasterTransformer, its Triton backend or its Python examples read.
    """
    structure = (
        ("t5_with_bias", "false"),
        ("use_gated_activation", "1" if d.facts["gated"] is True else "false"),
        ("position_embedding_type", "relative"),
    )
    return _text(
        (
            ("encoder", _t5_stack(d, given, d.sizes["layers"])),
            ("decoder", () if given.encoder_only else _t5_stack(d, given, d.sizes["decoder_layers"])),
            ("structure", structure),
        )
    )


def _t5_stack(d: Dims, given: Given, layers: int) -> Entries:
    return (
        ("_name_or_path", given.model_name),
        ("vocab_size", _size(d, "vocab")),
        ("d_model", _size(d, "hidden")),
        ("d_kv", _size(d, "head_dim")),
        ("d_ff", _size(d, "ffn")),
        ("num_layers", str(layers)),
        ("num_decoder_layers", _size(d, "decoder_layers")),
        ("num_heads", _size(d, "heads")),
        ("relative_attention_max_distance", str(d.facts["max_distance"])),
        ("layer_norm_epsilon", str(d.facts["norm_eps"])),
        ("feed_forward_proj", str(d.facts["feed_forward_proj"])),
        ("is_gated_act", str(d.facts["gated"])),
        ("tie_word_embeddings", str(d.facts["tied"])),
        ("pad_token_id", str(d.facts["pad_id"])),
        ("eos_token_id", str(d.facts["end_id"])),
        ("decoder_start_token_id", str(d.facts["decoder_start_id"])),
        ("weight_data_type", given.dtype),
        ("relative_attention_num_buckets_or_max_pos_seq_len", _size(d, "buckets")),
    )


def is_gelu(activation: Fact) -> bool:
    """Whether a transformers activation name is a GELU, of whichever formula."""
    return "gelu" in str(activation)


def _size(d: Dims, axis: str) -> str:
    return str(d.sizes[axis])


def _attention_sizes(d: Dims) -> Entries:
    return (("head_num", _size(d, "heads")), ("size_per_head", _size(d, "head_dim")))


def _vocabulary(d: Dims) -> Entries:
    return (
        ("vocab_size", _size(d, "vocab")),
        ("start_id", str(d.facts["start_id"])),
        ("end_id", str(d.facts["end_id"])),
    )
