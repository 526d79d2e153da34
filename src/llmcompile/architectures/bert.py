"""BERT: an encoder with LayerNorms after each block."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    linear,
    norm,
    per_head,
    read_config,
)


class BertConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/bert/configuration_bert.py."""

    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    position_embedding_type: str = "absolute"
    model_type: str = "bert"
    is_decoder: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a BERT config."""
    c = read_config(BertConfig, config)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "types": c.type_vocab_size,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "head_dim": per_head(c.hidden_size, c.num_attention_heads),
            "ffn": c.intermediate_size,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.layer_norm_eps,
            "position_embedding_type": c.position_embedding_type,
            "model_type": c.model_type,
            "is_decoder": c.is_decoder,
            "name_or_path": c.name_or_path,
        },
    )


_LAYER = "encoder.layer.{layer}"

BERT = Architecture(
    name="bert",
    classes=(
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
    ),
    model_types=("bert",),
    prefixes=("bert.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embeddings.word_embeddings.weight", "vocab", "hidden"),
        Tensor(("embed.positions.weight",), "embeddings.position_embeddings.weight", "positions", "hidden"),
        Tensor(("embed.types.weight",), "embeddings.token_type_embeddings.weight", "types", "hidden"),
        *norm("embed.norm", "embeddings.LayerNorm", legacy=True),
        *linear("attn.q", f"{_LAYER}.attention.self.query", "heads head_dim", "hidden"),
        *linear("attn.k", f"{_LAYER}.attention.self.key", "heads head_dim", "hidden"),
        *linear("attn.v", f"{_LAYER}.attention.self.value", "heads head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.attention.output.dense", "hidden", "heads head_dim"),
        *norm("attn.norm", f"{_LAYER}.attention.output.LayerNorm", legacy=True),
        *linear("mlp.up", f"{_LAYER}.intermediate.dense", "ffn", "hidden"),
        *linear("mlp.down", f"{_LAYER}.output.dense", "hidden", "ffn"),
        *norm("mlp.norm", f"{_LAYER}.output.LayerNorm", legacy=True),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "embeddings.position_ids": "a buffer: 0, 1, 2, ...",
            "pooler.dense.*": "the pooler, a task head",
            "cls.*": "the pretraining heads",
            "classifier.*": "a classification head",
            "qa_outputs.*": "the question-answering head",
        }
    ),
)
