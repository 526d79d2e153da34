"""config.json of a decoder: what is told from it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcompile.errors import MismatchError, UnsupportedError
from llmcompile.validation.tensorrt_llm.config import read_config

PHI = {
    "architecture": "PhiForCausalLM",
    "dtype": "float16",
    "vocab_size": 44,
    "hidden_size": 32,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_size": 8,
    "hidden_act": "gelu_new",
    "norm_epsilon": 1e-5,
    "position_embedding_type": "rope_gpt_neox",
    "max_position_embeddings": 20,
    "rotary_pct": 0.5,
    "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
}
LLAMA = {**PHI, "architecture": "LlamaForCausalLM", "hidden_act": "silu", "rotary_pct": 1.0, "num_key_value_heads": 2}


def read(folder: Path, base: dict[str, Any], **changes: Any) -> Any:
    """The network of a changed config.json."""
    (folder / "config.json").write_text(json.dumps({**base, **changes}))
    return read_config(folder)


def test_a_share_of_each_head_is_rotated(tmp_path: Path) -> None:
    """Half of eight channels."""
    assert read(tmp_path, PHI).rotary.channels == 4


def test_two_shares_that_differ_are_refused(tmp_path: Path) -> None:
    """Versions differ in which of the two fields they read."""
    assert read(tmp_path, PHI, partial_rotary_factor=0.5).rotary.channels == 4
    with pytest.raises(MismatchError, match="partial_rotary_factor"):
        read(tmp_path, PHI, partial_rotary_factor=0.75)


def test_two_scalings_that_differ_are_refused(tmp_path: Path) -> None:
    """`type` and `rope_type`, for the same reason."""
    with pytest.raises(MismatchError, match="rope_type"):
        read(tmp_path, LLAMA, rotary_scaling={"type": "linear", "rope_type": "llama3", "factor": 2.0})


@pytest.mark.parametrize(
    ("ranks", "key_heads"), [({"world_size": 2, "tp_size": 2}, 1), ({"world_size": 4, "tp_size": 4}, 1)]
)
def test_ranks_share_heads_of_keys(ranks: dict[str, int], key_heads: int, tmp_path: Path) -> None:
    """Two heads are one for each of two ranks, and one for each two of four."""
    assert read(tmp_path, LLAMA, mapping=ranks).local_key_heads == key_heads


def test_a_misspelt_field_is_refused(tmp_path: Path) -> None:
    """TensorRT-LLM would only warn."""
    with pytest.raises(MismatchError, match="norm_eps"):
        read(tmp_path, LLAMA, norm_eps=1e-6)


def test_dynamic_scaling_is_not_executed(tmp_path: Path) -> None:
    """And is refused, not ignored."""
    with pytest.raises(UnsupportedError, match="dynamic"):
        read(tmp_path, LLAMA, rotary_scaling={"type": "dynamic", "factor": 2.0})
