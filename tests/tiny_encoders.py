"""One tiny encoder of each model type that the lowering was tried on, made from its config."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from llmcompile.exporters.neuron.encoders import CLASSES

VOCABULARY, SEQUENCE = 40, 8
_SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 24,
    }
)
_XLM: Mapping[str, Any] = MappingProxyType(
    {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 24}
)
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "bert",
                "camembert",
                "data2vec-text",
                "ernie",
                "megatron-bert",
                "mpnet",
                "roberta",
                "roberta-prelayernorm",
                "xlm-roberta",
                "xlm-roberta-xl",
            ),
            _SIZES,
        ),
        "albert": {**_SIZES, "embedding_size": 12},
        "convbert": {**_SIZES, "embedding_size": 16, "num_attention_heads": 4, "conv_kernel_size": 3},
        "deberta": {**_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "deberta-v2": {
            **_SIZES,
            "relative_attention": True,
            "position_buckets": 4,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": True,
        },
        "distilbert": {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20},
        "electra": {**_SIZES, "embedding_size": 12},
        "esm": {**_SIZES, "pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
        "flaubert": _XLM,
        "mobilebert": {**_SIZES, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
        "modernbert": {
            **_SIZES,
            "num_hidden_layers": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "global_attn_every_n_layers": 2,
            "local_attention": 4,
        },
        "nystromformer": {**_SIZES, "segment_means_seq_len": SEQUENCE, "num_landmarks": 2, "conv_kernel_size": 3},
        "rembert": {**_SIZES, "input_embedding_size": 12, "output_embedding_size": 10},
        "roformer": {**_SIZES, "embedding_size": 12},
        "squeezebert": {**_SIZES, "embedding_size": 16, **{f"{part}_groups": 2 for part in ("q", "k", "v")}},
        "xlm": _XLM,
    }
)
"""Of each model type: its config, as small as it works."""


def save(model_type: str, task: str, folder: Path) -> Path:
    """Save a model with the head of a task and random weights, none of them 0 or 1 as they are before training."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some models use what torch has deprecated when they are imported
        config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
        model = getattr(transformers, CLASSES[task]).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder
