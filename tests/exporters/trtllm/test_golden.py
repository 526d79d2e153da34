"""The rank files of every family are those of TensorRT-LLM's own converter, tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from conftest import Run
from llmcompile import pipeline
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.options import TrtllmOptions, from_upstream

Array = NDArray[Any]

GOLDEN = Path(__file__).parents[2] / "golden" / "trtllm"
VARIANTS = sorted(
    f"{path.parts[-3]}/{path.stem}"
    for path in GOLDEN.glob("*/expected/*.json")
    if not path.stem.endswith(("_BUGGY", "_noplugin_tp1"))
)
BUGGY = ("fp16_tp4_legacysafetensors_BUGGY", "fp16_tp4_unified_BUGGY")
BUFFERS = ("embed_positions", "embed_positions_for_gpt_attention", "rotary_inv_freq", "alibi_slopes", "clamp_val")
"""Endings of what the converter saves and the runtime computes."""
CODES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
}
WITHOUT_VALUE = ("--use_parallel_embedding", "--use_embedding_sharing")
QUANTIZATION = ("--use_weight_only", "--per_group", "--use_fp8", "--use_fp8_rowwise", "--fp8_kv_cache")
NO_EFFECT = ("--load_model_on_cpu", "--load_by_shard")
HOW_TO_RUN = ("--model_type", "--workers", "--ckpt-type")
VALUES: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "--dtype": ("dtype", str),
    "--tp_size": ("tp", int),
    "--world-size": ("tp", int),
    "--pp_size": ("pp", int),
    "--moe_tp_size": ("moe_tp", int),
    "--moe_ep_size": ("moe_ep", int),
    "--embedding_sharding_dim": ("embedding_sharding_dim", int),
}

Recorded = dict[str, dict[str, tuple[str, tuple[int, ...], str]]]
"""File -> tensor -> type, shape and sha256."""


class Silent:
    """A view that shows nothing."""

    def planned(self, job: pipeline.Job) -> None:
        """The plan stands."""

    @contextmanager
    def writing(self, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
        """Progress that nobody looks at."""
        yield lambda size_bytes, tensor: None

    def validating(self, subject: str, ranks: int) -> None:
        """Not called: nothing here validates."""

    def checked(self, check: object) -> None:
        """Likewise."""

    def building(self, line: object) -> None:
        """Likewise."""


def fields(args: list[str]) -> dict[str, Any]:
    """convert_checkpoint.py's command line as fields of TrtllmOptions."""
    given: dict[str, Any] = {}
    quantization: dict[str, Any] = {}
    words = iter(args)
    for word in words:
        name = word.removeprefix("--")
        if word in VALUES:
            field, kind = VALUES[word]
            given[field] = kind(next(words))
        elif word in WITHOUT_VALUE:
            given[name] = True
        elif word in QUANTIZATION:
            quantization[name] = True
        elif word == "--weight_only_precision":
            quantization[name] = next(words)
        elif word == "--group_size":
            quantization[name] = int(next(words))
        elif word in HOW_TO_RUN:
            next(words)
        else:
            assert word in NO_EFFECT, word
    found = from_upstream(**quantization)
    given |= {"quantization": found.quantization, "kv_cache": found.kv_cache, "group_size": found.group_size}
    return given | ({"wo_layout": "sm80"} if found.quantization in ("w8a16", "w4a16") else {})


def convert(source: Path, output: Path, **given: Any) -> Path:
    """The folder of the checkpoint that the pipeline makes of a model for TensorRT-LLM 0.13, unvalidated."""
    build = BuildOptions(model=str(source), output=output, validate=False, workers=2)
    options = TrtllmOptions(build=build, stop_after="checkpoint", **{"trtllm_version": "0.13.0", **given})
    report = pipeline.begin()
    job = pipeline.prepare(options, report)
    pipeline.refuse(job)
    pipeline.build(job, Silent(), report)
    return output / "checkpoint"


def recorded_of(folder: Path) -> Recorded:
    """What the rank files of a folder hold, read without the code under test."""
    return {str(path.relative_to(folder)): tensors_of(path) for path in sorted(folder.rglob("rank*.safetensors"))}


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Tensor -> type, shape and sha256."""
    content = path.read_bytes()
    base = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:base])
    return {
        name: (
            CODES[entry["dtype"]],
            tuple(entry["shape"]),
            hashlib.sha256(content[base + entry["data_offsets"][0] : base + entry["data_offsets"][1]]).hexdigest(),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


@cache
def golden(variant: str) -> dict[str, Any]:
    """One recorded conversion, by `case/variant`."""
    case, name = variant.split("/")
    expectation: dict[str, Any] = json.loads((GOLDEN / case / "expected" / f"{name}.json").read_bytes())
    return expectation


def vendors(variant: str) -> Recorded:
    """What the vendor's converter wrote, without the buffers."""
    return {
        file: {
            name: (entry["dtype"], tuple(entry["shape"]), entry["sha256"])
            for name, entry in tensors.items()
            if not name.endswith(BUFFERS)
        }
        for file, tensors in golden(variant)["ranks"].items()
    }


def hf(variant: str) -> Path:
    """The source of a recorded conversion."""
    return GOLDEN / variant.split("/")[0] / "hf"


# Every recorded conversion


def test_all_cases_are_there() -> None:
    """Every case has a recorded conversion, so that an empty folder cannot pass."""
    assert len(VARIANTS) >= 114
    assert {variant.split("/")[0] for variant in VARIANTS} == {path.name for path in GOLDEN.iterdir() if path.is_dir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_equal_the_vendors(variant: str, tmp_path: Path) -> None:
    """The same files, tensors, types, shapes and bytes, and none of the buffers that the runtime computes."""
    found = convert(hf(variant), tmp_path / "out", **fields(golden(variant)["args"]))

    assert recorded_of(found) == vendors(variant)


@pytest.mark.parametrize(
    "variant",
    [
        "llama_gqa/bf16_tp2_pp2",
        "llama_wo/w4_sm80_tp2",
        "llama_gptq/bf16_tp2_sm80",
        "llama_fp8_prequant/bf16_tp2_fp8kv",
        "mixtral/fp16_tp4_moetp2_ep2",
        "opt/fp16_tp2_parembd0_share",
        "gemma2/bf16_tp2",
        "t5/fp16_tp2",
        "llama_meta_mp2/bf16_tp4",
    ],
)
def test_the_vendors_command_line_gives_the_vendors_tensors(variant: str, run: Run, tmp_path: Path) -> None:
    """convert_checkpoint.py's flags, taken over as they are, make what they made there."""
    args = golden(variant)["args"]
    words = [word for word in args if word not in ("--model_type", "--ckpt-type", "bart", "t5", "hf")]
    layout = ["--wo-layout", "sm80"] if "ORACLE_SM" in golden(variant)["env"] and "int4_gptq" not in args else []
    words = ["--tp_size" if word == "--world-size" else word for word in words]

    result = run(
        *("build", "trtllm", "--model_dir", hf(variant), *words, *layout, "--trtllm-version", "0.13.0"),
        *("--stop-after", "checkpoint", "--no-validate", tmp_path / "out"),
    )

    assert (result.code, result.err) == (0, result.err)
    assert recorded_of(tmp_path / "out" / "checkpoint") == vendors(variant)


@pytest.mark.parametrize(
    "variant", ["llama_gqa/fp16_tp2", "mixtral/fp16_tp2", "gpt2/fp16_tp2", "falcon_40b_gqa/fp16_tp4"]
)
@pytest.mark.parametrize("version", ["0.9.0", "0.11.0", "0.15.0", "1.2.1"])
def test_tensors_do_not_depend_on_the_release(variant: str, version: str, tmp_path: Path) -> None:
    """The same rank files serve every release from 0.9 to 1.2."""
    found = convert(hf(variant), tmp_path / "out", **fields(golden(variant)["args"]), trtllm_version=version)

    assert recorded_of(found) == vendors(variant)


def test_deferred_weight_only_tensors_are_the_plain_ones(tmp_path: Path) -> None:
    """Without --wo-layout the rank files of w8a16 are those of the unquantized model; only config.json differs."""
    plain = convert(hf("llama_wo/w8_sm80_tp2"), tmp_path / "plain", tp=2)
    deferred = convert(hf("llama_wo/w8_sm80_tp2"), tmp_path / "deferred", tp=2, quantization="w8a16")

    assert recorded_of(deferred) == recorded_of(plain)
    assert json.loads((deferred / "config.json").read_bytes())["quantization"] == {"quant_algo": "W8A16"}


# What the vendor's converter gets wrong: section 13 of the specification, in its order


@dataclass(frozen=True)
class Source:
    """A model whose config and tensors a test may change."""

    config: dict[str, Any]
    tensors: dict[str, Array]

    def save(self, folder: Path) -> Path:
        """Write the model to `folder`."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(
            {name: np.ascontiguousarray(array) for name, array in self.tensors.items()}, folder / "model.safetensors"
        )
        return folder


def source(case: str) -> Source:
    """A golden case's model."""
    return Source(
        json.loads((GOLDEN / case / "hf" / "config.json").read_bytes()),
        load_file(GOLDEN / case / "hf" / "model.safetensors"),
    )


def ranks_of(folder: Path) -> list[dict[str, Array]]:
    """The tensors of rank 0, 1 and so on."""
    count = len(list(folder.glob("rank*.safetensors")))
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(count)]


def config_of(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config


@pytest.mark.parametrize("variant", BUGGY)
def test_key_and_value_heads_on_more_ranks_than_heads_are_not_cut(variant: str, tmp_path: Path) -> None:
    """13.1: with 2 heads on 4 ranks we write what --load_by_shard does, and not what the default paths do."""
    found = convert(hf("llama_gqa_kvdup/x"), tmp_path / "out", **fields(golden(f"llama_gqa_kvdup/{variant}")["args"]))

    assert recorded_of(found) == vendors("llama_gqa_kvdup/fp16_tp4_byshard")
    assert recorded_of(found) != vendors(f"llama_gqa_kvdup/{variant}")


@pytest.mark.parametrize("variant", BUGGY)
def test_only_qkv_differs_from_what_the_vendor_gets_wrong(variant: str, tmp_path: Path) -> None:
    """13.1: everything but qkv is right in the default paths, too."""
    found = recorded_of(convert(hf("llama_gqa_kvdup/x"), tmp_path / "out", tp=4, dtype="float16"))

    wrong = vendors(f"llama_gqa_kvdup/{variant}")
    different = {name for file, tensors in found.items() for name in tensors if tensors[name] != wrong[file].get(name)}
    assert different == {f"transformer.layers.{layer}.attention.qkv.weight" for layer in (0, 1)}


def test_a_tied_llama_needs_no_head(tmp_path: Path) -> None:
    """13.2: without lm_head.weight in the source the head is the embedding."""
    assert "lm_head.weight" not in source("llama_mqa_tied_bf16").tensors

    found = convert(hf("llama_mqa_tied_bf16/x"), tmp_path / "out", dtype="bfloat16")

    tensors = recorded_of(found)["rank0.safetensors"]
    assert tensors["lm_head.weight"] == tensors["transformer.vocab_embedding.weight"]


@pytest.mark.parametrize("version", ["0.9.0", "0.13.0", "0.21.0"])
def test_layers_that_do_not_divide_are_refused_for_old_releases(version: str, run: Run, tmp_path: Path) -> None:
    """13.3: 3 layers in 2 stages lose one there, so exit code 4 and nothing is written."""
    result = run(
        *("build", "trtllm", "--model", hf("llama_fp8rowwise/x"), "--pp", "2", "--trtllm-version", version),
        *("--stop-after", "checkpoint", "--no-validate", tmp_path / "out"),
    )

    assert result.code == 4
    assert "3 layers / 2 stages = 1.50; expected a whole number" in result.err
    assert list(tmp_path.iterdir()) == []


def test_layers_that_do_not_divide_are_dealt_for_new_releases(tmp_path: Path) -> None:
    """13.3: of 3 layers in 2 stages, the first stage has two and numbers them 0 and 1; the second has one, 0."""
    weights = source("llama_fp8rowwise").tensors

    first, second = ranks_of(
        convert(hf("llama_fp8rowwise/x"), tmp_path / "out", pp=2, dtype="bfloat16", trtllm_version="1.0.0")
    )

    norm = "transformer.layers.{}.input_layernorm.weight"
    held = [
        {name.split(".")[2] for name in stage if name.startswith("transformer.layers.")} for stage in (first, second)
    ]
    assert held == [{"0", "1"}, {"0"}]
    for stage, local, layer in ((first, 0, 0), (first, 1, 1), (second, 0, 2)):
        expected = weights[f"model.layers.{layer}.input_layernorm.weight"]
        assert stage[norm.format(local)].tobytes() == expected.tobytes()


def padded(array: Array, ranks: int) -> list[Array]:
    """Equal shares of the rows, zeros added behind the last."""
    rows = -(-array.shape[0] // ranks)
    whole = np.zeros((rows * ranks, *array.shape[1:]), array.dtype)
    whole[: array.shape[0]] = array
    return list(whole.reshape(ranks, rows, *array.shape[1:]))


def with_vocabulary(case: str, rows: int, *names: str) -> Source:
    """A case whose vocabulary is cut to `rows`, in the tensors called `names`."""
    made = source(case)
    for name in names:
        made.tensors[name] = made.tensors[name][:rows]
    return Source({**made.config, "vocab_size": rows}, made.tensors)


ODD = {
    "gptj": ("lm_head.weight", "transformer.wte.weight", "lm_head.bias"),
    "falcon_40b_gqa": ("transformer.word_embeddings.weight",),
    "opt": ("model.decoder.embed_tokens.weight",),
    "bloom": ("transformer.word_embeddings.weight",),
    "gptneox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
}
"""Case -> its head, its embedding where that is another tensor, and what else is as long as the vocabulary."""


@pytest.mark.parametrize("case", ["gptj", "falcon_40b_gqa", "opt"])
def test_a_head_that_does_not_divide_is_padded(case: str, tmp_path: Path) -> None:
    """13.4: 75 rows on 4 ranks are 19 on each, and the last has a row of zeros; config.json keeps 75."""
    made = with_vocabulary(case, 75, *ODD[case])

    found = convert(made.save(tmp_path / "hf"), tmp_path / "out", tp=4, dtype="float16")

    expected = padded(made.tensors[ODD[case][0]], 4)
    assert [share.shape[0] for share in expected] == [19] * 4
    for rank, tensors in enumerate(ranks_of(found)):
        np.testing.assert_array_equal(tensors["lm_head.weight"], expected[rank])
    assert config_of(found)["vocab_size"] == 75


def test_the_heads_bias_is_padded_as_the_head_is(tmp_path: Path) -> None:
    """13.4: GPT-J's lm_head.bias of 75 elements is 19 on each of 4 ranks."""
    made = with_vocabulary("gptj", 75, *ODD["gptj"])

    found = convert(made.save(tmp_path / "hf"), tmp_path / "out", tp=4, dtype="float16")

    for tensors, share in zip(ranks_of(found), padded(made.tensors["lm_head.bias"], 4), strict=True):
        np.testing.assert_array_equal(tensors["lm_head.bias"], share)


@pytest.mark.parametrize("case", ["bloom", "gptneox"])
def test_a_parallel_embedding_that_does_not_divide_is_padded(case: str, tmp_path: Path) -> None:
    """13.4: a table of 75 rows, split by vocabulary over 4 ranks, has 19 on each and zeros behind the last."""
    made = with_vocabulary(case, 75, *ODD[case])

    found = convert(made.save(tmp_path / "hf"), tmp_path / "out", tp=4, dtype="float16", use_parallel_embedding=True)

    for tensors, share in zip(ranks_of(found), padded(made.tensors[ODD[case][-1]], 4), strict=True):
        np.testing.assert_array_equal(tensors["transformer.vocab_embedding.weight"], share)


def test_biases_of_shared_key_and_value_heads_are_shared(tmp_path: Path) -> None:
    """13.5: Qwen2's 2 biased key and value heads on 4 ranks: rank r has those of head r // 2."""
    made = source("qwen2_gqa")
    prefix, size = "model.layers.1.self_attn.", 12

    found = convert(made.save(tmp_path / "hf"), tmp_path / "out", tp=4, dtype="float32")

    q, k, v = (made.tensors[f"{prefix}{part}_proj.bias"].astype(np.float32).reshape(-1, size) for part in "qkv")
    for rank, tensors in enumerate(ranks_of(found)):
        expected = np.concatenate([q[rank], k[rank // 2], v[rank // 2]])
        np.testing.assert_array_equal(tensors["transformer.layers.1.attention.qkv.bias"], expected)


def test_an_odd_vocabulary_in_bfloat16_is_padded(tmp_path: Path) -> None:
    """13.5: Qwen2 in bfloat16 with 97 words on 2 ranks has 49 on each; the vendor's NumPy has no such type."""
    made = with_vocabulary("qwen2_gqa", 97, "lm_head.weight", "model.embed_tokens.weight")

    found = convert(made.save(tmp_path / "hf"), tmp_path / "out", tp=2, dtype="bfloat16")

    for tensors, share in zip(ranks_of(found), padded(made.tensors["lm_head.weight"], 2), strict=True):
        assert tensors["lm_head.weight"].dtype == ml_dtypes.bfloat16
        assert tensors["lm_head.weight"].tobytes() == share.tobytes()


def test_phi3_on_two_ranks(tmp_path: Path) -> None:
    """13.6: the fused matrices are split part by part: q, k and v each, and up before gate."""
    weights = source("phi3").tensors
    layer, heads, kv_heads, size = "model.layers.1.", 4, 2, 8

    found = ranks_of(convert(hf("phi3/x"), tmp_path / "out", tp=2, dtype="float16"))

    q, k, v = np.split(weights[f"{layer}self_attn.qkv_proj.weight"], [heads * size, (heads + kv_heads) * size])
    gate, up = np.split(weights[f"{layer}mlp.gate_up_proj.weight"], 2)
    for rank, tensors in enumerate(found):
        qkv = [np.split(part, 2)[rank] for part in (q, k, v)]
        fc = [np.split(part, 2)[rank] for part in (up, gate)]
        np.testing.assert_array_equal(tensors["transformer.layers.1.attention.qkv.weight"], np.concatenate(qkv))
        np.testing.assert_array_equal(tensors["transformer.layers.1.mlp.fc.weight"], np.concatenate(fc))
        for name, role in (("attention.dense", "self_attn.o_proj"), ("mlp.proj", "mlp.down_proj")):
            expected = np.split(weights[f"{layer}{role}.weight"], 2, axis=1)[rank]
            np.testing.assert_array_equal(tensors[f"transformer.layers.1.{name}.weight"], expected)


@pytest.mark.parametrize("case", ["gptneox", "opt"])
def test_the_intermediate_size_is_written(case: str, tmp_path: Path) -> None:
    """13.7: 96, which the vendor's config.json leaves out and its loader would take for 4 x 48."""
    found = convert(hf(f"{case}/x"), tmp_path / "out", dtype="float16")

    assert config_of(found)["intermediate_size"] == 96
    assert "intermediate_size" not in golden(f"{case}/fp16_tp1")["configs"]["config.json"]


def test_mpt_has_the_name_and_the_size_the_vendor_knows(tmp_path: Path) -> None:
    """13.7: the class is called MPTForCausalLM there, and the feed-forward is expansion_ratio times as wide."""
    made = source("mpt")
    attention = {**made.config["attn_config"], "alibi": True}
    mosaic = {"architectures": ["MPTForCausalLM"], "expansion_ratio": 2, "no_bias": True, "attn_config": attention}
    made.config.update(mosaic)
    for name, array in made.tensors.items():
        if "ffn" in name:
            made.tensors[name] = array[:64] if "up_proj" in name else array[:, :64]

    found = config_of(convert(made.save(tmp_path / "hf"), tmp_path / "out", dtype="float16"))

    assert (found["architecture"], found["intermediate_size"]) == ("MPTForCausalLM", 64)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_barts_epsilon_is_a_number(stack: str, tmp_path: Path) -> None:
    """13.7: 1e-5, where the vendor's converter writes false."""
    found = convert(hf("bart/x"), tmp_path / "out", dtype="float16")

    assert config_of(found / stack)["norm_epsilon"] == 1e-5
    assert golden("bart/fp16_tp1")["configs"][f"{stack}/config.json"]["norm_epsilon"] is False


def test_a_starcoder_is_known_by_its_config(tmp_path: Path) -> None:
    """13.8: its variant does not depend on the folder's name, which here is x."""
    shutil.copytree(hf("starcoder_bigcode_mqa/x"), tmp_path / "x")

    found = convert(tmp_path / "x", tmp_path / "out", tp=2, dtype="float16", trtllm_version="0.13.0")

    assert config_of(found)["gpt_variant"] == "starcoder"
    assert recorded_of(found) == vendors("starcoder_bigcode_mqa/fp16_tp2")


@pytest.mark.parametrize("case", ["falcon_7b_mqa", "phi2"])
def test_bfloat16_needs_no_gpu(case: str, tmp_path: Path) -> None:
    """13.9: every tensor is the float16 one, rounded to bfloat16, whatever GPU the converting machine has."""
    (narrow,) = ranks_of(convert(hf(f"{case}/x"), tmp_path / "bf16", dtype="bfloat16"))
    (plain,) = ranks_of(convert(hf(f"{case}/x"), tmp_path / "fp16", dtype="float16"))

    assert {array.dtype for array in narrow.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, array in plain.items():
        assert narrow[name].tobytes() == array.astype(ml_dtypes.bfloat16).tobytes()
