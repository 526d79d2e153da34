"""Options that contradict each other are refused by their flags, and the vendor's spellings mean what they meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcompile.errors import OptionsError, UnsupportedError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.options import Quantization, TrtllmOptions, from_upstream


def options(**given: Any) -> TrtllmOptions:
    """Options of some model, for TensorRT-LLM 1.2.1 unless told otherwise."""
    return TrtllmOptions(build=BuildOptions(model="org/name", output=Path("out")), **given)


def test_the_defaults_are_an_unquantized_engine_of_the_last_release() -> None:
    """Nothing but the model and OUTPUT has to be said."""
    found = options()

    assert (found.trtllm_version, found.release, found.moe, found.algorithm) == ("1.2.1", (1, 2), (1, 1), None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp": 0}, "--tp: 0; expected 1 or more"),
        ({"build_workers": 0}, "--build-workers: 0"),
        ({"build_timeout_seconds": 0.0}, "--build-timeout: 0.0"),
        ({"dtype": "fp16"}, "--dtype: fp16; expected float16 or bfloat16 or float32"),
        ({"quantization": "nf4"}, "--quantization: nf4; expected w8a16 or"),
        ({"wo_layout": "sm90", "quantization": "w8a16"}, "--wo-layout: sm90; expected deferred or sm80"),
        ({"kv_cache": "int4"}, "--kv-cache: int4; expected fp8 or int8"),
        ({"calib_size": 0}, "--calib-size: 0; expected 1 or more"),
        ({"calib_seq_len": 1}, "--calib-seq-len: 1; expected 2 or more"),
        ({"wo_layout": "sm80"}, "--wo-layout: without --quantization"),
        ({"wo_layout": "sm80", "quantization": "fp8"}, "--wo-layout: sm80 with --quantization fp8"),
        ({"group_size": 64}, "--group-size: 64 without groups"),
        ({"quantization": "w8a16", "dtype": "float32"}, "--dtype: float32 with --quantization w8a16"),
        ({"tp": 4, "moe_tp": 2, "moe_ep": 4}, "2 x 4 = 8; expected tp, 4"),
        ({"tp": 4, "moe_ep": 3}, "--moe-ep: tp 4 / 3 = 1.33"),
        ({"embedding_sharding_dim": 1}, "--embedding-sharding-dim: 1 without --use-parallel-embedding"),
        ({"use_embedding_sharing": True}, "--use-embedding-sharing: with TensorRT-LLM 1.2.1, which shares"),
        ({"stop_after": "checkpoint", "from_checkpoint": Path("c")}, "--stop-after: checkpoint with --from-checkpoint"),
        (
            {"from_checkpoint": Path("c"), "use_parallel_embedding": True},
            "--use-parallel-embedding: with --from-checkpoint",
        ),
        ({"from_checkpoint": Path("c"), "calib_size": 4}, "--calib-size: with --from-checkpoint"),
        ({"from_checkpoint": Path("c"), "calib_seq_len": 4}, "--calib-seq-len: with --from-checkpoint"),
        ({"from_checkpoint": Path("c"), "keep_checkpoint": True}, "--keep-checkpoint: with --from-checkpoint"),
        ({"engine": (("--output_dir", "x"),)}, "--output_dir: given as an engine flag"),
        ({"engine": (("--max_output_len", "9"),)}, "--max_output_len: trtllm-build of TensorRT-LLM 1.2.1 lacks it"),
        ({"engine": (("--weight_streaming", ""), ("--gemm_plugin", "auto"))}, "--weight_streaming: with --gemm_plugin"),
        ({"engine": (("--multiple_profiles", "enable"), ("--opt_num_tokens", "8"))}, "--multiple_profiles: with"),
        ({"engine": (("--user_buffer", "enable"),)}, "--user_buffer: without --reduce_fusion"),
        ({"engine": (("--gather_all_token_logits", ""), ("--max_draft_len", "5"))}, "--gather_context_logits: with"),
        ({"engine": (("--max_input_len", "9"), ("--max_seq_len", "8"))}, "--max_input_len: 9, more than --max_seq_len"),
        ({"engine": (("--paged_kv_cache", "enable"), ("--kv_cache_type", "paged"))}, "--paged_kv_cache: with"),
        ({"engine": (("--kv_cache_type", "big"),)}, "--kv_cache_type: big; expected paged or"),
        ({"builder": "api", "trtllm_version": "0.11.0"}, "--builder: api with TensorRT-LLM 0.11.0"),
        ({"builder": "api", "engine": (("--lora_dir", "x"),)}, "--lora_dir: with --builder api"),
    ],
)
def test_a_contradiction_is_refused_by_its_flag(given: dict[str, Any], message: str) -> None:
    """Exit code 2, and the flag as typed comes first."""
    with pytest.raises(OptionsError) as caught:
        options(**given)

    assert message in str(caught.value)


def test_all_contradictions_are_said_at_once() -> None:
    """Two wrong flags are two lines."""
    with pytest.raises(OptionsError) as caught:
        options(group_size=64, embedding_sharding_dim=1)

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ({"tp": 1}, True),
        ({"tp": 2, "use_parallel_embedding": True}, True),
        ({"tp": 2}, False),
        ({"tp": 2, "use_parallel_embedding": True, "embedding_sharding_dim": 1}, False),
        ({"pp": 2}, False),
    ],
)
def test_a_table_is_shared_on_one_rank_or_split_by_vocabulary(given: dict[str, Any], accepted: bool) -> None:
    """One rank, or a parallel embedding of dimension 0; never over pipeline stages."""
    whole = {**given, "use_embedding_sharing": True, "trtllm_version": "0.13.0"}

    if accepted:
        assert options(**whole).use_embedding_sharing
    else:
        with pytest.raises(OptionsError, match="--use-embedding-sharing"):
            options(**whole)


def test_0_10_does_not_load_a_table_split_by_vocabulary() -> None:
    """It is refused there, and taken when split by hidden size or from 0.11."""
    with pytest.raises(OptionsError, match="--use-parallel-embedding: split by vocabulary"):
        options(tp=2, use_parallel_embedding=True, trtllm_version="0.10.0")

    options(tp=2, use_parallel_embedding=True, embedding_sharding_dim=1, trtllm_version="0.10.0")
    options(tp=2, use_parallel_embedding=True, trtllm_version="0.11.0")


@pytest.mark.parametrize("version", ["1.3.0rc20", "0.8.0"])
def test_an_unsupported_version_is_refused_as_unsupported(version: str) -> None:
    """Exit code 4: no flag contradicts another."""
    with pytest.raises(UnsupportedError, match="--trtllm-version"):
        options(trtllm_version=version)


def test_a_recipe_newer_than_the_version_is_refused_as_unsupported() -> None:
    """fp8_rowwise came with 0.12."""
    with pytest.raises(UnsupportedError, match="fp8_rowwise"):
        options(quantization="fp8_rowwise", trtllm_version="0.11.0")


@pytest.mark.parametrize(
    ("given", "moe"),
    [
        ({"tp": 4}, (4, 1)),
        ({"tp": 4, "moe_ep": 2}, (2, 2)),
        ({"tp": 4, "moe_tp": 1}, (1, 4)),
        ({"tp": 4, "moe_tp": 2, "moe_ep": 2}, (2, 2)),
    ],
)
def test_one_moe_degree_gives_the_other(given: dict[str, Any], moe: tuple[int, int]) -> None:
    """Their product is tp."""
    assert options(**given).moe == moe


# The vendor's spellings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Quantization()),
        ({"use_weight_only": True}, Quantization(quantization="w8a16")),
        ({"use_weight_only": True, "weight_only_precision": "int8"}, Quantization(quantization="w8a16")),
        ({"use_weight_only": True, "weight_only_precision": "int4"}, Quantization(quantization="w4a16")),
        (
            {"use_weight_only": True, "weight_only_precision": "int4_gptq", "per_group": True, "group_size": 64},
            Quantization(quantization="w4a16_gptq", group_size=64),
        ),
        ({"use_weight_only": True, "weight_only_precision": "int4_awq"}, Quantization(quantization="w4a16_awq")),
        ({"use_fp8": True, "fp8_kv_cache": True}, Quantization(quantization="fp8", kv_cache="fp8")),
        ({"use_fp8_rowwise": True}, Quantization(quantization="fp8_rowwise")),
        ({"fp8_kv_cache": True}, Quantization(kv_cache="fp8")),
        ({"int8_kv_cache": True}, Quantization(kv_cache="int8")),
    ],
)
def test_the_vendors_flags_name_our_recipes(given: dict[str, Any], expected: Quantization) -> None:
    """--use_weight_only alone is int8, as in convert_checkpoint.py."""
    assert from_upstream(**given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"smoothquant": 0.5}, "--smoothquant: one of the converter's own SmoothQuant layouts"),
        ({"per_channel": True}, "--per_channel: one of the converter's own SmoothQuant layouts"),
        ({"per_token": True}, "--per_token: one of the converter's own SmoothQuant layouts"),
        ({"use_weight_only": True, "use_fp8": True}, "--use_weight_only: with --use_fp8"),
        ({"use_fp8": True, "use_fp8_rowwise": True}, "--use_fp8: with --use_fp8_rowwise"),
        ({"weight_only_precision": "int4"}, "--weight_only_precision: without --use_weight_only"),
        ({"use_weight_only": True, "weight_only_precision": "int3"}, "--weight_only_precision: int3"),
        ({"use_weight_only": True, "per_group": True}, "--per_group: without a groupwise precision"),
        ({"group_size": 64}, "--group_size: without a groupwise precision"),
        (
            {"use_weight_only": True, "weight_only_precision": "int4_gptq", "per_group": True, "group_size": -1},
            "--group_size: -1; expected 1 or more",
        ),
    ],
)
def test_the_vendors_contradictions_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    """A flag that would be ignored, or that needs data, is not ignored here."""
    with pytest.raises(OptionsError) as caught:
        from_upstream(**given)

    assert message in str(caught.value)


def test_calibrated_flags_are_all_named() -> None:
    """Each of a SmoothQuant command's flags gets its line."""
    with pytest.raises(OptionsError) as caught:
        from_upstream(smoothquant=0.5, per_channel=True, per_token=True)

    assert [problem.subject for problem in caught.value.problems] == ["--smoothquant", "--per_channel", "--per_token"]
