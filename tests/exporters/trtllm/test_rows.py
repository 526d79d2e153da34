"""Every rank gets its share of every matrix under the vendor's name, whatever the sizes and degrees: against NumPy."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import FP16
from llmcompile.errors import CheckpointError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.layout import make_layout
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.exporters.trtllm.rows import ENCODER_DECODER, FAMILIES, Recipe, encoder_decoder_rows
from llmcompile.pipeline.job import prevailing_dtype
from llmcompile.plan import Plan, make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

Array = NDArray[Any]
Weights = dict[str, Array]
BF16 = np.dtype(ml_dtypes.bfloat16)
LAYER = "transformer.layers.0."
QUICK = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])

ENDS = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    **ENDS,
}
MIXTRAL: dict[str, Any] = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
}
QWEN2_MOE: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 16,
    "num_key_value_heads": 8,
}
FALCON: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "parallel_attn": True,
    "bias": True,
}
GPTJ: dict[str, Any] = {
    "architectures": ["GPTJForCausalLM"],
    "vocab_size": 11,
    "n_positions": 7,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 4,
    "rotary_dim": 4,
    "tie_word_embeddings": False,
    **ENDS,
}
GEMMA: dict[str, Any] = {**LLAMA, "architectures": ["GemmaForCausalLM"], "head_dim": 4}
GEMMA2: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "head_dim": 4,
    "query_pre_attn_scalar": 4,
    "sliding_window": 16,
}
T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 12,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 6,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


# Models, and what we make of them


def random_weights(config: Mapping[str, Any], seed: int = 0) -> Weights:
    """Normally distributed tensors by the names and shapes of the family's table; packed ones are random integers."""
    architecture = lookup(dict(config))
    dims = architecture.dims(dict(config))
    numbers = np.random.default_rng(seed)
    weights: Weights = {}
    for tensor, layer, expert in architecture.expected(dims):
        name, shape = tensor.name_at(layer, expert), tensor.stored_shape(dims)
        if tensor.tied_to != "" and dims.facts["tied"] is True:
            continue
        if tensor.kind == "int32":
            weights[name] = numbers.integers(-(2**31), 2**31, shape, np.int32)
        elif tensor.kind == "fp8_e4m3":
            weights[name] = numbers.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
        elif name.endswith("_scale"):
            weights[name] = numbers.uniform(0.01, 0.1, shape).astype(np.float32)
        else:
            kind = np.float16 if name.endswith(".scales") else np.float32
            weights[name] = numbers.normal(size=shape).astype(kind)
    return weights


def plan_of(folder: Path, **given: Any) -> Plan:
    """The plan of a checkpoint, problems and all."""
    checkpoint = open_checkpoint(folder)
    architecture = lookup(checkpoint.config, checkpoint.tensors)
    dims = architecture.dims(checkpoint.config)
    build = BuildOptions(model="m", output=Path("out"))
    options = TrtllmOptions(build=build, stop_after="checkpoint", **{"trtllm_version": "0.13.0", **given})
    layout = make_layout(architecture, dims, options, source_dtype=prevailing_dtype(checkpoint), model_label="m")
    assert layout.refusals == ()
    return make_plan(
        architecture,
        dims,
        checkpoint.tensors,
        layout.rows,
        ranks=layout.ranks,
        dtype=layout.dtype,
        unused=layout.unused,
        pp=layout.pp,
        moe_ep=layout.moe_ep,
    )


def save(folder: Path, config: Mapping[str, Any], weights: Weights) -> Path:
    """Write a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder; hypothesis runs a test's examples within one `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def files_of(config: Mapping[str, Any], weights: Weights, **given: Any) -> dict[str, Weights]:
    """File -> tensors, as llmcompile writes them; in float32 unless told otherwise."""
    with scratch() as folder:
        save(folder / "hf", config, weights)
        plan = plan_of(folder / "hf", **{"dtype": "float32", **given})
        assert plan.problems == ()
        with WorkDirectory(folder / "out", job={}, resume=False, force=False) as work:
            stream(
                plan,
                open_checkpoint(folder / "hf").files,
                work,
                prefix="",
                budget_bytes=1 << 30,
                workers=2,
                advance=lambda size_bytes, tensor: None,
            )
            work.publish()
        return {str(path.relative_to(folder / "out")): load(path) for path in (folder / "out").rglob("*.safetensors")}


KINDS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BF16,
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}


def load(path: Path) -> Weights:
    """The tensors of a safetensors file, float8 included, which the library's NumPy side cannot load."""
    content = path.read_bytes()
    base = 8 + int.from_bytes(content[:8], "little")
    return {
        name: np.frombuffer(content[base + start : base + end], KINDS[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in json.loads(content[8:base]).items()
        if name != "__metadata__"
        for start, end in [entry["data_offsets"]]
    }


def ranks_of(config: Mapping[str, Any], weights: Weights, **given: Any) -> list[Weights]:
    """The tensors of rank 0, 1 and so on."""
    files = files_of(config, weights, **given)
    assert sorted(files) == sorted(f"rank{rank}.safetensors" for rank in range(len(files)))
    return [files[f"rank{rank}.safetensors"] for rank in range(len(files))]


def share(array: Array, rank: int, ranks: int, axis: int = 0) -> Array:
    """The rank's of equal contiguous parts along an axis."""
    return np.split(array, ranks, axis=axis)[rank]


def same(found: Array, expected: Array) -> None:
    """Equal types, shapes and bits."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def name_of(config: Mapping[str, Any]) -> str:
    """A config's class, for the name of a test."""
    return str(config["architectures"][0])


# Names


def test_a_llama_has_these_tensors_and_no_others() -> None:
    """One layer: two norms, qkv and dense, fc, gate and proj; embedding, last norm and head."""
    (found,) = ranks_of(LLAMA, random_weights(LLAMA))

    layer = ("input_layernorm", "attention.qkv", "attention.dense", "post_layernorm", "mlp.fc", "mlp.gate", "mlp.proj")
    whole = ("transformer.vocab_embedding", "transformer.ln_f", "lm_head")
    assert set(found) == {f"{name}.weight" for name in (*whole, *(f"{LAYER}{name}" for name in layer))}


@pytest.mark.parametrize(
    ("config", "kind", "absent"),
    [
        (GEMMA2, "pre_feedforward_layernorm", "lm_head.weight"),
        (FALCON, "mlp_layernorm", f"{LAYER}post_layernorm.weight"),
        (GPTJ, "input_layernorm", f"{LAYER}post_layernorm.weight"),
    ],
    ids=["gemma2", "falcon", "gptj"],
)
def test_norms_have_the_familys_names(config: dict[str, Any], kind: str, absent: str) -> None:
    """The norm before the feed-forward is called otherwise in some families, and is absent in others."""
    (found,) = ranks_of(config, random_weights(config))

    assert f"{LAYER}{kind}.weight" in found
    assert absent not in found


@pytest.mark.parametrize(
    "config",
    [LLAMA, MIXTRAL, QWEN2_MOE, FALCON, GPTJ, GEMMA, GEMMA2, T5],
    ids=lambda config: config["architectures"][0],
)
def test_no_two_steps_write_one_tensor(config: dict[str, Any], tmp_path: Path) -> None:
    """Rows of one name are about roles that no family has both of."""
    save(tmp_path / "hf", config, random_weights(config))

    plan = plan_of(tmp_path / "hf", tp=2)

    places = [(file, tensor.name) for step in plan.steps for file in step.files for tensor in step.tensors]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_each_stack_has_a_folder(stack: str) -> None:
    """The ranks of encoder and decoder lie in folders of their own, each with an embedding."""
    files = files_of(T5, random_weights(T5), tp=2)

    assert {file for file in files if file.startswith(stack)} == {f"{stack}/rank{rank}.safetensors" for rank in (0, 1)}
    assert "embedding.vocab_embedding.weight" in files[f"{stack}/rank1.safetensors"]


def test_relative_biases_are_divided_by_heads_and_repeated_for_each_layer() -> None:
    """T5's table (buckets, heads) becomes (heads / tp, buckets) in every layer, and at the top of the decoder."""
    weights = random_weights(T5)

    files = files_of(T5, weights, tp=2)

    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for rank in (0, 1):
        encoder, decoder = (files[f"{stack}/rank{rank}.safetensors"] for stack in ("encoder", "decoder"))
        for layer in range(2):
            table = encoder[f"encoder_layers.{layer}.attention.rel_attn_table"]
            same(table, share(weights[f"encoder.{name}"].T, rank, 2))
        expected = share(weights[f"decoder.{name}"].T, rank, 2)
        for layer in range(3):
            same(decoder[f"decoder_layers.{layer}.self_attention.rel_attn_table"], expected)
        same(decoder["rel_attn_table"], expected)
        assert "rel_attn_table" not in encoder


def test_a_tied_t5_has_its_head_in_the_decoder_alone() -> None:
    """lm_head is `shared`, divided by vocabulary."""
    weights = random_weights(T5)

    files = files_of(T5, weights, tp=2)

    for rank in (0, 1):
        same(files[f"decoder/rank{rank}.safetensors"]["lm_head.weight"], share(weights["shared.weight"], rank, 2))
        assert "lm_head.weight" not in files[f"encoder/rank{rank}.safetensors"]


def test_both_kinds_of_tables_know_every_family() -> None:
    """No family is in both, and the rows of both stacks name their folder."""
    assert set(FAMILIES).isdisjoint(ENCODER_DECODER)
    rows = encoder_decoder_rows(Recipe(dtype=FP16), gated=True)
    assert {row.file.split("/")[0] for row in rows} == {"encoder", "decoder"}


# Splits


@st.composite
def llamas(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A LLaMA's config, and a number of ranks that suits it: key and value heads divide it or it them."""
    ranks = draw(st.sampled_from([1, 2, 3, 4, 6]))
    kv_heads = draw(st.sampled_from([size for size in (1, 2, 3, 4, 6, 12) if size % ranks == 0 or ranks % size == 0]))
    heads = ranks * kv_heads // int(np.gcd(ranks, kv_heads)) * draw(st.integers(1, 2))
    size = 2 * draw(st.integers(1, 3))
    return {
        **LLAMA,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "hidden_size": draw(st.integers(1, 9)),
        "intermediate_size": ranks * draw(st.integers(1, 7)),
        "vocab_size": draw(st.integers(1, 17)),
        "attention_bias": draw(st.booleans()),
    }, ranks


def llama_rank(config: Mapping[str, Any], w: Weights, rank: int, ranks: int) -> Weights:
    """One rank's tensors of a one-layer LLaMA, by section 4 of the specification."""
    heads, kv_heads, size = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    a, mlp = "layers.0.self_attn.", "layers.0.mlp."
    rows = -(-config["vocab_size"] // ranks)
    head = np.zeros((rows * ranks, config["hidden_size"]), np.float32)
    head[: config["vocab_size"]] = w["lm_head.weight"]
    held = range(rank * kv_heads // ranks, max(rank * kv_heads // ranks + 1, (rank + 1) * kv_heads // ranks))
    tensors = {
        "transformer.vocab_embedding.weight": w["embed_tokens.weight"],
        "transformer.ln_f.weight": w["norm.weight"],
        "lm_head.weight": share(head, rank, ranks),
        f"{LAYER}input_layernorm.weight": w["layers.0.input_layernorm.weight"],
        f"{LAYER}post_layernorm.weight": w["layers.0.post_attention_layernorm.weight"],
        f"{LAYER}attention.dense.weight": share(w[f"{a}o_proj.weight"], rank, ranks, 1),
        f"{LAYER}mlp.fc.weight": share(w[f"{mlp}gate_proj.weight"], rank, ranks),
        f"{LAYER}mlp.gate.weight": share(w[f"{mlp}up_proj.weight"], rank, ranks),
        f"{LAYER}mlp.proj.weight": share(w[f"{mlp}down_proj.weight"], rank, ranks, 1),
    }
    kinds = ("weight", "bias") if config["attention_bias"] else ("weight",)
    for kind in kinds:
        q = w[f"{a}q_proj.{kind}"].reshape(heads, size, -1)
        k, v = (w[f"{a}{part}_proj.{kind}"].reshape(kv_heads, size, -1) for part in "kv")
        parts = [share(q, rank, ranks), k[held.start : held.stop], v[held.start : held.stop]]
        joined = np.concatenate(parts).reshape(-1, q.shape[2])
        tensors[f"{LAYER}attention.qkv.{kind}"] = joined if kind == "weight" else joined.reshape(-1)
    if config["attention_bias"]:
        tensors[f"{LAYER}attention.dense.bias"] = w[f"{a}o_proj.bias"]
    return tensors


@QUICK
@given(model=llamas(), seed=st.integers(0, 99))
def test_every_tensor_equals_plain_numpy_slices(model: tuple[dict[str, Any], int], seed: int) -> None:
    """Whatever the sizes and ranks: heads shared by floor(r * kv / tp), the head padded, rows and columns cut."""
    config, ranks = model
    weights = random_weights(config, seed)

    found = ranks_of(config, weights, tp=ranks)

    for rank, tensors in enumerate(found):
        expected = llama_rank(config, weights, rank, ranks)
        assert set(tensors) == set(expected)
        for name, array in expected.items():
            same(tensors[name], array)


@QUICK
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    ranks=st.sampled_from([1, 2, 4, 8]),
    size=st.integers(1, 3),
    bias=st.booleans(),
)
def test_falcons_groups_are_divided_among_the_ranks_that_share_a_head(
    kv_heads: int, ranks: int, size: int, bias: bool
) -> None:
    """Rank r of 8 has a part of group r * kv // 8's queries, and the whole of its key and value."""
    heads = 8
    config = {**FALCON, "num_kv_heads": kv_heads, "hidden_size": heads * size, "bias": bias}
    weights = random_weights(config)
    fused = "h.0.self_attention.query_key_value"

    found = ranks_of(config, weights, tp=ranks)

    for kind in ("weight", "bias") if bias else ("weight",):
        view = weights[f"{fused}.{kind}"].reshape(kv_heads, heads // kv_heads + 2, size, -1)
        q = view[:, :-2].reshape(heads, size, -1)
        for rank, tensors in enumerate(found):
            first, last = rank * kv_heads // ranks, max((rank + 1) * kv_heads // ranks, rank * kv_heads // ranks + 1)
            parts = [share(q, rank, ranks), view[first:last, -2], view[first:last, -1]]
            expected = np.concatenate(parts).reshape(-1, view.shape[-1])
            same(tensors[f"{LAYER}attention.qkv.{kind}"], expected if kind == "weight" else expected.reshape(-1))


@pytest.mark.parametrize("kv_heads", [3, 8])
def test_heads_that_neither_divide_nor_are_divided_are_refused(kv_heads: int, tmp_path: Path) -> None:
    """Six ranks cannot share 4 or 16 key and value heads, and the degrees that can are named."""
    config = {**LLAMA, "num_attention_heads": 24, "num_key_value_heads": kv_heads, "intermediate_size": 80}
    save(tmp_path / "hf", config, random_weights(config))

    plan = plan_of(tmp_path / "hf", tp=5 if kv_heads == 3 else 16)

    found = " | ".join(problem.found for problem in plan.problems)
    assert f"{kv_heads} kv_heads / " in found or "24 heads / " in found
    assert all("degrees that divide this model" in problem.hint for problem in plan.problems)


def test_biases_behind_a_sum_are_whole_on_every_rank() -> None:
    """LLaMA's dense.bias is the same on each rank: the runtime adds it once."""
    config = {**LLAMA, "attention_bias": True, "num_key_value_heads": 8}
    weights = random_weights(config)

    for tensors in ranks_of(config, weights, tp=4):
        same(tensors[f"{LAYER}attention.dense.bias"], weights["layers.0.self_attn.o_proj.bias"])


def test_gptjs_biases_behind_a_sum_are_on_the_first_rank() -> None:
    """mlp.proj.bias is zeros on ranks above 0: the network adds all of them."""
    weights = random_weights(GPTJ)

    first, *others = ranks_of(GPTJ, weights, tp=4)

    same(first[f"{LAYER}mlp.proj.bias"], weights["h.0.mlp.fc_out.bias"])
    for tensors in others:
        same(tensors[f"{LAYER}mlp.proj.bias"], np.zeros(24, np.float32))


@pytest.mark.parametrize("name", ["attention.dense.bias", "mlp.proj.bias"])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_parallel_falcons_biases_behind_a_sum_are_on_the_first_rank(parallel: bool, name: str) -> None:
    """Zeros on rank 1 where attention and feed-forward are added in parallel, whole on both ranks elsewhere."""
    config = {**FALCON, "parallel_attn": parallel, "new_decoder_architecture": parallel}
    weights = random_weights(config)
    role = {"attention.dense.bias": "self_attention.dense", "mlp.proj.bias": "mlp.dense_4h_to_h"}[name]
    whole = weights[f"h.0.{role}.bias"]

    first, second = ranks_of(config, weights, tp=2)

    same(first[f"{LAYER}{name}"], whole)
    same(second[f"{LAYER}{name}"], np.zeros_like(whole) if parallel else whole)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", [GEMMA, GEMMA2], ids=["gemma", "gemma2"])
def test_gemmas_norms_are_stored_plus_one(config: dict[str, Any], dtype: str) -> None:
    """1 + w, w rounded to the type first and the sum rounded again, in every norm."""
    kind = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BF16}[dtype]
    weights = random_weights(config)
    names = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}
    if config is GEMMA2:
        names |= {f"{side}_feedforward_layernorm": f"{side}_feedforward_layernorm" for side in ("pre", "post")}

    (found,) = ranks_of(config, weights, dtype=dtype)

    for ours, theirs in names.items():
        rounded = weights[f"layers.0.{theirs}.weight"].astype(kind).astype(np.float32)
        same(found[f"{LAYER}{ours}.weight"], (rounded + np.float32(1)).astype(kind))
    last = weights["norm.weight"].astype(kind).astype(np.float32)
    same(found["transformer.ln_f.weight"], (last + np.float32(1)).astype(kind))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_router_is_float32(dtype: str) -> None:
    """Whatever the artifact's type, every rank has the whole router, unrounded."""
    weights = random_weights(MIXTRAL)

    for tensors in ranks_of(MIXTRAL, weights, tp=2, dtype=dtype):
        same(tensors[f"{LAYER}mlp.router.weight"], weights["layers.0.block_sparse_moe.gate.weight"])


# Embeddings


@QUICK
@given(vocab=st.integers(1, 21), ranks=st.sampled_from([1, 2, 4]), seed=st.integers(0, 9))
def test_a_table_split_by_vocabulary_is_padded_with_zeros(vocab: int, ranks: int, seed: int) -> None:
    """Shares of ceil(vocab / tp) rows; joined, they are the table and zeros, for embedding and head alike."""
    config = {**LLAMA, "vocab_size": vocab, "num_key_value_heads": 8}
    weights = random_weights(config, seed)

    found = ranks_of(config, weights, tp=ranks, use_parallel_embedding=True)

    rows = -(-vocab // ranks)
    for name, stored in (("transformer.vocab_embedding", "embed_tokens"), ("lm_head", "lm_head")):
        shares = [tensors[f"{name}.weight"] for tensors in found]
        assert [len(part) for part in shares] == [rows] * ranks
        joined = np.concatenate(shares)
        same(joined[:vocab], weights[f"{stored}.weight"])
        assert not joined[vocab:].any()


def test_a_table_split_by_hidden_size_is_cut_in_columns() -> None:
    """Dimension 1: every word on every rank, a part of its elements; the head is split by vocabulary all the same."""
    weights = random_weights(LLAMA)

    found = ranks_of(LLAMA, weights, tp=4, use_parallel_embedding=True, embedding_sharding_dim=1)

    for rank, tensors in enumerate(found):
        same(tensors["transformer.vocab_embedding.weight"], share(weights["embed_tokens.weight"], rank, 4, 1))
        assert tensors["lm_head.weight"].shape == (3, 24)


def test_positions_are_split_as_the_words_are() -> None:
    """GPT-2's position table goes the way of its embedding."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 11,
        "n_positions": 7,
        "n_embd": 24,
        "n_layer": 1,
        "n_head": 4,
        **ENDS,
    }
    weights = random_weights(config)

    found = ranks_of(config, weights, tp=2, use_parallel_embedding=True)

    joined = np.concatenate([tensors["transformer.position_embedding.weight"] for tensors in found])
    same(joined[:7], weights["wpe.weight"])
    assert joined.shape == (8, 24)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_shared_head_is_left_out(tp: int) -> None:
    """With --use-embedding-sharing a tied model has no lm_head."""
    config = {**LLAMA, "tie_word_embeddings": True}

    found = ranks_of(config, random_weights(config), tp=tp, use_embedding_sharing=True, use_parallel_embedding=tp > 1)

    assert all("lm_head.weight" not in tensors for tensors in found)


def test_gemmas_table_is_split_where_there_are_several_ranks() -> None:
    """Gemma has no head, so over 2 ranks its table is split by vocabulary without being asked."""
    weights = random_weights(GEMMA)

    found = ranks_of(GEMMA, weights, tp=2)

    joined = np.concatenate([tensors["transformer.vocab_embedding.weight"] for tensors in found])
    same(joined[:11], weights["embed_tokens.weight"])
    assert all("lm_head.weight" not in tensors for tensors in found)


# Stages


@QUICK
@given(layers=st.integers(1, 7), pp=st.integers(1, 4), tp=st.sampled_from([1, 2]))
def test_layers_are_dealt_to_stages_and_numbered_anew(layers: int, pp: int, tp: int) -> None:
    """The first (layers mod pp) stages have one more; each begins at 0; rank = stage * tp + tensor rank."""
    pp = min(pp, layers)
    config = {**LLAMA, "num_hidden_layers": layers, "hidden_size": 8, "intermediate_size": 8}
    weights = random_weights(config)

    found = ranks_of(config, weights, tp=tp, pp=pp, trtllm_version="1.0.0")

    stages = np.array_split(np.arange(layers), pp)  # the first ones have one more, as NumPy does it
    assert len(found) == tp * pp
    for number, tensors in enumerate(found):
        stage = number // tp
        local = {int(name.split(".")[2]) for name in tensors if name.startswith("transformer.layers.")}
        assert local == set(range(len(stages[stage])))
        for index, layer in enumerate(stages[stage]):
            name = f"transformer.layers.{index}.mlp.fc.weight"
            same(tensors[name], share(weights[f"layers.{layer}.mlp.gate_proj.weight"], number % tp, tp))


def test_the_embedding_is_on_the_first_stage_and_the_head_on_the_last() -> None:
    """Of three stages, the middle one has neither; ln_f goes with the head."""
    config = {**LLAMA, "num_hidden_layers": 3}

    found = ranks_of(config, random_weights(config), pp=3)

    ends = ("transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight")
    assert [[name in tensors for name in ends] for tensors in found] == [
        [True, False, False],
        [False, False, False],
        [False, True, True],
    ]


# Experts


@pytest.mark.parametrize(("tp", "moe_ep"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 2), (8, 4)])
def test_experts_are_dealt_and_cut(tp: int, moe_ep: int) -> None:
    """Rank r has the experts of r % ep, and of each the part r // ep; up before gate, the experts stacked."""
    weights = random_weights(MIXTRAL)
    moe_tp, each = tp // moe_ep, 8 // moe_ep

    found = ranks_of(MIXTRAL, weights, tp=tp, moe_ep=moe_ep)

    assert len(found) == tp
    for rank, tensors in enumerate(found):
        tp_rank, ep_rank = rank // moe_ep, rank % moe_ep
        experts = range(ep_rank * each, (ep_rank + 1) * each)

        def part(expert: int, name: str, axis: int, tp_rank: int = tp_rank) -> Array:
            return share(weights[f"layers.0.block_sparse_moe.experts.{expert}.{name}.weight"], tp_rank, moe_tp, axis)

        fc = [np.concatenate([part(expert, "w3", 0), part(expert, "w1", 0)]) for expert in experts]
        same(tensors[f"{LAYER}mlp.fc.weight"], np.stack(fc))
        same(tensors[f"{LAYER}mlp.proj.weight"], np.stack([part(expert, "w2", 1) for expert in experts]))


def test_attention_is_split_over_all_ranks_whatever_the_experts() -> None:
    """With 2 x 2 experts the heads are still dealt to 4 ranks."""
    weights = random_weights(MIXTRAL)

    found = ranks_of(MIXTRAL, weights, tp=4, moe_ep=2)

    for rank, tensors in enumerate(found):
        same(tensors[f"{LAYER}attention.dense.weight"], share(weights["layers.0.self_attn.o_proj.weight"], rank, 4, 1))


def test_experts_of_stages(tmp_path: Path) -> None:
    """With 2 stages, 2 ranks and the experts dealt, rank 3 has the second half of the second layer's."""
    config = {**MIXTRAL, "num_hidden_layers": 2}
    weights = random_weights(config)

    found = ranks_of(config, weights, tp=2, pp=2, moe_ep=2)

    name = "layers.1.block_sparse_moe.experts.{}.w2.weight"
    same(found[3][f"{LAYER}mlp.proj.weight"], np.stack([weights[name.format(expert)] for expert in range(4, 8)]))


@pytest.mark.parametrize(("version", "place"), [("0.13.0", ""), ("0.15.0", ""), ("0.16.0", "mlp."), ("1.2.1", "mlp.")])
def test_an_expert_for_all_tokens_is_split_over_all_ranks(version: str, place: str) -> None:
    """Qwen2-MoE's shared expert: up before gate; it moved under `mlp.` with 0.16, and its switch is whole."""
    weights = random_weights(QWEN2_MOE)
    shared = "layers.0.mlp.shared_expert"

    found = ranks_of(QWEN2_MOE, weights, tp=4, moe_ep=2, trtllm_version=version)

    for rank, tensors in enumerate(found):
        fc = [share(weights[f"{shared}.{name}_proj.weight"], rank, 4) for name in ("up", "gate")]
        same(tensors[f"{LAYER}{place}shared_expert.fc.weight"], np.concatenate(fc))
        down = share(weights[f"{shared}.down_proj.weight"], rank, 4, 1)
        same(tensors[f"{LAYER}{place}shared_expert.proj.weight"], down)
        same(tensors[f"{LAYER}{place}shared_expert_gate.weight"], weights[f"{shared}_gate.weight"])


# Checkpoints that come quantized


GPTQ_SOURCE: dict[str, Any] = {
    **LLAMA,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that lies in each nibble of an int32, the lowest first. Source: AutoAWQ's order_map."""


def nibbles(packed: Array) -> Array:
    """(rows, words) int32 -> (rows, words, 8), the lowest nibble first."""
    return packed.view(np.uint32)[..., np.newaxis] >> np.arange(0, 32, 4, dtype=np.uint32) & 15


def sm80(values: Array) -> Array:
    """Int4 weights (in, out) from -8 to 7 in the layout of SM75 to SM89, as bytes (in, out / 2): section 6.2."""
    inputs, outputs = values.shape
    order = [8 * c + 2 * a + b for a in range(4) for c in range(4) for b in (0, 1)]
    columns = values.reshape(-1, 32, outputs)[:, order].reshape(inputs, outputs).T  # 1 and 2
    tiles = columns.reshape(outputs // 4, 4, inputs // 64, 64).transpose(0, 2, 1, 3)  # 3
    words = (tiles.reshape(-1, 8) + 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint8)  # 4
    pairs = words.reshape(-1, 2)
    return (pairs[:, 0] | pairs[:, 1] << 4).reshape(inputs, outputs // 2)  # 5


def awq_values(qweight: Array) -> Array:
    """AutoAWQ's (in, out / 8) as integers (in, out) from 0 to 15."""
    values = np.empty((*qweight.shape, 8), np.int64)
    values[..., list(AWQ_ORDER)] = nibbles(qweight)
    return values.reshape(qweight.shape[0], -1)


def gptq_values(qweight: Array) -> Array:
    """AutoGPTQ's (in / 8, out) as integers (in, out) from 0 to 15."""
    values = nibbles(qweight).astype(np.int64)
    return values.transpose(0, 2, 1).reshape(-1, qweight.shape[1])


def linear(w: Weights, name: str, method: str) -> tuple[Array, Array, Array]:
    """A quantized layer's integers (in, out) less 8, its scales (groups, out), and its offsets (groups, out)."""
    qweight, qzeros, scales = (w[f"{name}.{ending}"] for ending in ("qweight", "qzeros", "scales"))
    if method == "awq":
        return awq_values(qweight) - 8, scales, (8 - awq_values(qzeros)) * scales.astype(np.float64)
    zeros = nibbles(qzeros).reshape(scales.shape).astype(np.int64)
    return gptq_values(qweight) - 8, scales, (7 - zeros) * scales.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("quantization", [AWQ, GPTQ], ids=["awq", "gptq"])
def test_groupwise_sources_are_laid_out_for_the_gptq_kernel(quantization: dict[str, Any], tp: int, dtype: str) -> None:
    """AutoAWQ's and AutoGPTQ's integers in SM80's layout, their scales as they are, and (8 - z) * scale as zero."""
    config = {**GPTQ_SOURCE, "quantization_config": quantization}
    weights = random_weights(config)
    kind = BF16 if dtype == "bfloat16" else np.dtype(np.float16)
    method = str(quantization["quant_method"])

    found = ranks_of(config, weights, tp=tp, dtype=dtype)

    a, mlp = "layers.0.self_attn.", "layers.0.mlp."
    parts = {
        "attention.qkv": ([f"{a}{part}_proj" for part in "qkv"], 1),
        "attention.dense": ([f"{a}o_proj"], 0),
        "mlp.fc": ([f"{mlp}gate_proj"], 1),
        "mlp.gate": ([f"{mlp}up_proj"], 1),
        "mlp.proj": ([f"{mlp}down_proj"], 0),
    }
    for rank, tensors in enumerate(found):
        for ours, (theirs, axis) in parts.items():
            layers = [linear(weights, name, method) for name in theirs]
            integers, scales, zeros = (
                np.concatenate([share(layer[index], rank, tp, axis) for layer in layers], axis=1) for index in range(3)
            )
            weight = tensors[f"{LAYER}{ours}.weight"]
            assert (weight.dtype, weight.shape) == (kind, (integers.shape[0], integers.shape[1] // 4))
            assert weight.tobytes() == sm80(integers).tobytes()
            same(tensors[f"{LAYER}{ours}.weights_scaling_factor"], scales)
            # AutoGPTQ's product is rounded to float16 first, as the vendor's converter does.
            rounded = zeros.astype(np.float16) if method == "gptq" else zeros
            same(tensors[f"{LAYER}{ours}.zero"], rounded.astype(kind))


FP8_SOURCE: dict[str, Any] = {
    **LLAMA,
    "num_key_value_heads": 4,
    "quantization_config": {"quant_method": "fp8", "activation_scheme": "static"},
}


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_float8_sources_keep_their_bytes_and_scales(tp: int) -> None:
    """A layer of its own: the same elements, split; weight_scale and input_scale as float32 of shape (1)."""
    weights = random_weights(FP8_SOURCE)

    found = ranks_of(FP8_SOURCE, weights, tp=tp, dtype="bfloat16")

    for rank, tensors in enumerate(found):
        for ours, theirs, axis in (("fc", "gate", 0), ("gate", "up", 0), ("proj", "down", 1)):
            stored = f"layers.0.mlp.{theirs}_proj"
            same(tensors[f"{LAYER}mlp.{ours}.weight"], share(weights[f"{stored}.weight"], rank, tp, axis))
            for scale, source in (("weights", "weight"), ("activation", "input")):
                expected = weights[f"{stored}.{source}_scale"].reshape(1)
                same(tensors[f"{LAYER}mlp.{ours}.{scale}_scaling_factor"], expected)


def test_float8_parts_of_qkv_are_brought_to_one_scale() -> None:
    """Qkv has the largest of three scales, and each part is fp8(q * s_part / s_max)."""
    weights = random_weights(FP8_SOURCE)
    a = "layers.0.self_attn."
    scales = [weights[f"{a}{part}_proj.weight_scale"].reshape(()) for part in "qkv"]
    largest = max(scales)

    found = ranks_of(FP8_SOURCE, weights, tp=2, dtype="bfloat16")

    for rank, tensors in enumerate(found):
        parts = [
            (share(weights[f"{a}{part}_proj.weight"], rank, 2).astype(np.float32) * scale / largest).astype(
                ml_dtypes.float8_e4m3fn
            )
            for part, scale in zip("qkv", scales, strict=True)
        ]
        same(tensors[f"{LAYER}attention.qkv.weight"], np.concatenate(parts))
        same(tensors[f"{LAYER}attention.qkv.weights_scaling_factor"], largest.reshape(1))
        inputs = max(weights[f"{a}{part}_proj.input_scale"].reshape(()) for part in "qkv")
        same(tensors[f"{LAYER}attention.qkv.activation_scaling_factor"], inputs.reshape(1))


SCALES: Mapping[str, np.dtype[Any]] = {
    "bf16": BF16,
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}


def rescaled(weights: Weights, kind: np.dtype[Any]) -> tuple[Weights, Weights]:
    """The weights with scales stored as `kind`, and with the same scales as the vendor's quantizers store them."""
    ends = {".scales": np.float16, "_scale": np.float32}
    stored, usual = dict(weights), dict(weights)
    for name, array in weights.items():
        for end, type_ in ends.items():
            if name.endswith(end):
                stored[name] = array.astype(kind)
                usual[name] = stored[name].astype(type_)
    return stored, usual


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_scales_are_numbers_whatever_they_are_stored_as(method: str, kind: str) -> None:
    """Scales of another float type make the same bytes as those values in the usual type do."""
    source = {"awq": AWQ, "gptq": GPTQ}
    config = FP8_SOURCE if method == "fp8" else {**GPTQ_SOURCE, "quantization_config": source[method]}
    stored, usual = rescaled(random_weights(config), SCALES[kind])

    found, expected = (ranks_of(config, weights, tp=2, dtype="bfloat16") for weights in (stored, usual))

    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            same(ours[name], array)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_offsets_are_made_of_the_scales_that_stand_beside_them(method: str) -> None:
    """float32 scales are rounded to float16 first: (q - 8) * scale + zero is then 0 where q is the zero point."""
    config = {**GPTQ_SOURCE, "quantization_config": {"awq": AWQ, "gptq": GPTQ}[method]}
    weights = random_weights(config)
    exact = {
        name: np.random.default_rng(7).uniform(0.01, 0.1, array.shape).astype(np.float32)
        for name, array in weights.items()
        if name.endswith(".scales")
    }

    (found,) = ranks_of(config, {**weights, **exact}, dtype="float16")

    name = "layers.0.mlp.down_proj"
    scales = exact[f"{name}.scales"].astype(np.float16)
    _, _, zeros = linear({**weights, f"{name}.scales": scales}, name, method)
    same(found[f"{LAYER}mlp.proj.weights_scaling_factor"], scales)
    same(found[f"{LAYER}mlp.proj.zero"], zeros.astype(np.float16))


@pytest.mark.parametrize("scale", [1e6, 6e4])
def test_scales_beyond_float16_are_counted(scale: float) -> None:
    """A scale of 1e6 is infinite in the artifact, and one of 6e4 makes infinite offsets; the run says so."""
    config = {**GPTQ_SOURCE, "quantization_config": GPTQ}
    weights = random_weights(config)
    name = "layers.0.mlp.down_proj.scales"
    weights[name] = np.full(weights[name].shape, scale, np.float32)

    with scratch() as folder:
        save(folder / "hf", config, weights)
        with WorkDirectory(folder / "out", job={}, resume=False, force=False) as work:
            streamed = stream(
                plan_of(folder / "hf", dtype="float16"),
                open_checkpoint(folder / "hf").files,
                work,
                prefix="",
                budget_bytes=1 << 30,
                workers=1,
                advance=lambda size_bytes, tensor: None,
            )

    assert streamed.overflowed.keys() == {name}


@pytest.mark.parametrize("bad", [0.0, -0.5, np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.k_proj.weight_scale",
        "layers.0.self_attn.v_proj.input_scale",
        "layers.0.mlp.down_proj.weight_scale",
        "layers.0.mlp.up_proj.input_scale",
    ],
)
def test_float8_scales_that_are_none_are_named(name: str, bad: float) -> None:
    """A scale must be finite and above 0; the tensor that holds another is named, wherever it stands among others."""
    weights = random_weights(FP8_SOURCE)
    weights[name] = np.full(weights[name].shape, bad, np.float32)

    with pytest.raises(CheckpointError) as caught:
        ranks_of(FP8_SOURCE, weights, dtype="bfloat16")

    (problem,) = caught.value.problems
    assert (problem.subject, problem.found) == (name, f"a scale of {bad}")
    assert problem.expected == "finite numbers above 0"


def test_a_float8_cache_has_a_scale_of_one_in_every_layer() -> None:
    """attention.kv_cache_scaling_factor is 1.0 in float32 on each rank."""
    config = {**LLAMA, "num_hidden_layers": 2}

    for tensors in ranks_of(config, random_weights(config), tp=2, kv_cache="fp8", dtype="float16"):
        for layer in range(2):
            name = f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"
            same(tensors[name], np.ones(1, np.float32))


# Quantized here


def test_only_inner_layers_are_float8_per_row() -> None:
    """Of 4 layers, the feed-forwards of layers 1 and 2 alone are packed; attention never is."""
    config = {**LLAMA, "num_hidden_layers": 4}

    (found,) = ranks_of(config, random_weights(config), quantization="fp8_rowwise", dtype="bfloat16")

    packed = {name for name, array in found.items() if array.dtype == ml_dtypes.float8_e4m3fn}
    layers = "transformer.layers"
    assert packed == {f"{layers}.{layer}.mlp.{name}.weight" for layer in (1, 2) for name in ("fc", "gate", "proj")}
    assert {name for name in found if name.endswith("per_channel_scale")} == {
        name.replace("weight", "per_channel_scale") for name in packed
    }


def test_float8_per_row_of_a_column_split_has_the_scales_of_its_rank() -> None:
    """mlp.proj's scale is that of the rank's columns alone: max|w| / 448."""
    config = {**LLAMA, "num_hidden_layers": 3}
    weights = random_weights(config)

    found = ranks_of(config, weights, tp=2, quantization="fp8_rowwise", dtype="bfloat16")

    for rank, tensors in enumerate(found):
        part = share(weights["layers.1.mlp.down_proj.weight"].astype(BF16).astype(np.float32), rank, 2, 1)
        scale = (np.abs(part).max(axis=1) / np.float32(448)).astype(np.float32)
        same(tensors["transformer.layers.1.mlp.proj.per_channel_scale"], scale)
        expected = (part / scale[:, np.newaxis]).astype(ml_dtypes.float8_e4m3fn)
        same(tensors["transformer.layers.1.mlp.proj.weight"], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tp", [1, 2])
def test_rounded_groups_come_near_the_weights(tp: int, dtype: str) -> None:
    """w4a16_awq: nibbles (out / 2, in) times their group's scale are within half a step of every weight."""
    weights = random_weights(GPTQ_SOURCE)
    kind = BF16 if dtype == "bfloat16" else np.dtype(np.float16)

    found = ranks_of(GPTQ_SOURCE, weights, tp=tp, quantization="w4a16_awq", group_size=32, dtype=dtype)

    for rank, tensors in enumerate(found):
        packed = tensors[f"{LAYER}mlp.proj.weight"].view(np.uint8)
        scales = tensors[f"{LAYER}mlp.proj.weights_scaling_factor"]
        part = share(weights["layers.0.mlp.down_proj.weight"].astype(kind).astype(np.float32), rank, tp, 1)
        both = np.stack([packed & 15, packed >> 4], axis=1).reshape(part.shape).astype(np.int8)
        integers = np.where(both > 7, both - 16, both)
        assert scales.shape == (128, part.shape[1] // 32)
        steps = np.repeat(scales, 32, axis=1)
        assert np.abs(integers * steps - part).max() <= 0.5001 * steps.max()
        assert (np.abs(integers * steps - part) <= 0.5001 * steps).all()
        same(tensors[f"{LAYER}mlp.proj.prequant_scaling_factor"], np.ones(part.shape[1], kind))


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only_rows_have_scales_of_the_largest_weight(bits: int) -> None:
    """per_channel_scale is max|w| * 2**-(bits - 1) of each row, rounded to the type."""
    weights = random_weights(GPTQ_SOURCE)
    recipe = {8: "w8a16", 4: "w4a16"}[bits]

    found = ranks_of(GPTQ_SOURCE, weights, tp=2, quantization=recipe, wo_layout="sm80", dtype="float16")

    for rank, tensors in enumerate(found):
        part = share(weights["layers.0.mlp.gate_proj.weight"].astype(np.float16), rank, 2)
        expected = np.abs(part.astype(np.float32)).max(axis=1) * np.float32(2.0 ** -(bits - 1))
        same(tensors[f"{LAYER}mlp.fc.per_channel_scale"], expected.astype(np.float16))
        assert tensors[f"{LAYER}mlp.fc.weight"].shape == (128, 128 * bits // 8)


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"quantization": "w8a16", "wo_layout": "sm80"}, "shape (40, 24) on each rank"),
        ({"quantization": "w4a16_awq"}, "shape (40, 24) on each rank"),
    ],
    ids=["w8a16", "w4a16_awq"],
)
def test_shapes_that_cannot_be_packed_are_problems(given_: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The tensor is named with its shape on each rank, what is needed, and the way on."""
    save(tmp_path / "hf", LLAMA, random_weights(LLAMA))

    plan = plan_of(tmp_path / "hf", dtype="float16", **given_)

    problem = next(problem for problem in plan.problems if "mlp.fc" in problem.subject)
    assert problem.subject == f"{LAYER}mlp.fc.weight"
    assert problem.found == reason
    assert problem.hint == "drop --quantization; no --tp suits every matrix"


PACKABLE = {**GPTQ_SOURCE, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 16}


@pytest.mark.parametrize(("recipe", "degrees"), [("w8a16", "1, 2, 4"), ("w4a16", "1, 2, 4"), ("w4a16_awq", "1, 2")])
def test_degrees_that_the_builder_cannot_lay_out_are_told(recipe: str, degrees: str, tmp_path: Path) -> None:
    """256 inputs on 8 ranks are 32 each, half a tile of 64: what stops the builder is known from the plan."""
    save(tmp_path / "hf", PACKABLE, random_weights(PACKABLE))

    plan = plan_of(tmp_path / "hf", dtype="float16", tp=8, quantization=recipe)

    problem = next(problem for problem in (*plan.problems, *plan.unpackable) if "mlp.proj" in problem.subject)
    assert problem.found == "shape (256, 32) on each rank"
    assert "32 inputs / 64 = 0.50" in problem.expected
    assert f"choose a --tp that suits every matrix ({degrees}; now 8)" in problem.hint
    assert "drop --quantization" in problem.hint


@pytest.mark.parametrize("recipe", ["w8a16", "w4a16"])
def test_degrees_that_the_builder_can_lay_out_are_no_problem(recipe: str, tmp_path: Path) -> None:
    """256 inputs on 4 ranks are a tile each."""
    save(tmp_path / "hf", PACKABLE, random_weights(PACKABLE))

    plan = plan_of(tmp_path / "hf", dtype="float16", tp=4, quantization=recipe)

    assert (plan.problems, plan.unpackable) == ((), ())


def test_experts_that_the_builder_cannot_lay_out_are_told(tmp_path: Path) -> None:
    """Those too are quantized by the builder; the router and the head are not."""
    config = {**MIXTRAL, "hidden_size": 128, "intermediate_size": 40}
    save(tmp_path / "hf", config, random_weights(config))

    plan = plan_of(tmp_path / "hf", dtype="float16", quantization="w8a16")

    assert [problem.subject for problem in plan.unpackable] == [f"{LAYER}mlp.fc.weight", f"{LAYER}mlp.proj.weight"]


def test_groups_that_do_not_divide_blame_their_size(tmp_path: Path) -> None:
    """192 inputs are three groups of 64, and one and a half of 128."""
    config = {**GPTQ_SOURCE, "intermediate_size": 192}
    save(tmp_path / "hf", config, random_weights(config))

    (problem,) = plan_of(tmp_path / "hf", dtype="float16", quantization="w4a16_awq").problems

    assert problem.subject == f"{LAYER}mlp.proj.weight"
    assert "192 inputs / 128 = 1.50" in problem.expected
    assert problem.hint == "give --group-size 64 (now 128); no --tp suits every matrix"


def test_a_weight_that_is_not_finite_cannot_be_packed() -> None:
    """An infinity in a matrix that is to be quantized is an error that names the tensor."""
    weights = random_weights(GPTQ_SOURCE)
    weights["layers.0.mlp.up_proj.weight"][3, 5] = np.inf

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: .*infinite"):
        ranks_of(GPTQ_SOURCE, weights, quantization="w8a16", wo_layout="sm80", dtype="float16")
