"""A plan covers the checkpoint and the layout completely, or says everything that stands in the way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.architectures import ARCHITECTURES
from llmcompile.architectures.bert import BERT
from llmcompile.architectures.gpt2 import GPT2
from llmcompile.architectures.gpt_bigcode import GPT_BIGCODE
from llmcompile.architectures.llama import LLAMA
from llmcompile.architectures.mixtral import MIXTRAL
from llmcompile.architectures.opt import OPT
from llmcompile.architectures.spec import Architecture, Dims, Tensor
from llmcompile.checkpoint.headers import Stored
from llmcompile.dtypes import BF16, BY_NAME, FP16, FP32, INT8, DType
from llmcompile.exporters.ft import rows
from llmcompile.exporters.ft.layout import FAMILIES
from llmcompile.exporters.trtllm import encodings
from llmcompile.exporters.trtllm.rows import FAMILIES as TRTLLM_FAMILIES
from llmcompile.exporters.trtllm.rows import RANK, Recipe, decoder_rows
from llmcompile.plan import BLOCK_BYTES, Compute, Grid, Piece, Plan, Row, make_plan, placed, share_shape, spans

LLAMA_CONFIG = {
    "vocab_size": 44,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 28,
}
LLAMA_SHAPES = {
    "model.embed_tokens.weight": (44, 24),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(3)
        for name, shape in {
            "input_layernorm": (24,),
            "self_attn.q_proj": (24, 24),
            "self_attn.k_proj": (12, 24),
            "self_attn.v_proj": (12, 24),
            "self_attn.o_proj": (24, 24),
            "post_attention_layernorm": (24,),
            "mlp.gate_proj": (28, 24),
            "mlp.up_proj": (28, 24),
            "mlp.down_proj": (24, 28),
        }.items()
    },
    "model.norm.weight": (24,),
    "lm_head.weight": (44, 24),
}
BERT_CONFIG = {
    "vocab_size": 44,
    "max_position_embeddings": 20,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 28,
}


def checkpoint(shapes: Mapping[str, tuple[int, ...]], *, dtype: DType = FP16, shards: int = 1) -> dict[str, Stored]:
    """Tensors of `shapes` one behind the other, dealt out to `shards` files in turn."""
    ends = [0] * shards
    stored: dict[str, Stored] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        shard = number % shards
        stored[name] = Stored(name, f"model-{shard}.safetensors", dtype, shape, ends[shard])
        ends[shard] += stored[name].size_bytes
    return stored


def llama_plan(
    stored: Mapping[str, Stored],
    *,
    ranks: int = 2,
    config: Mapping[str, Any] = LLAMA_CONFIG,
    table: Sequence[Row] = rows.LLAMA_ROWS,
    dtype: DType = FP16,
    unused: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a LLaMA checkpoint for FasterTransformer."""
    return make_plan(
        LLAMA, LLAMA.dims(config), stored, table, ranks=ranks, dtype=dtype, unused={} if unused is None else unused
    )


def without(*names: str) -> dict[str, tuple[int, ...]]:
    """The LLaMA checkpoint's shapes but for some."""
    return {name: shape for name, shape in LLAMA_SHAPES.items() if name not in names}


def test_a_whole_checkpoint_has_no_problems() -> None:
    """A checkpoint that holds exactly the family's tensors gives a plan without problems."""
    plan = llama_plan(checkpoint(LLAMA_SHAPES))

    assert plan.problems == ()


def test_a_whole_checkpoint_is_read_completely() -> None:
    """Every tensor of a checkpoint without extras is read, and none is ignored."""
    plan = llama_plan(checkpoint(LLAMA_SHAPES))

    assert set(plan.tensors_read) == set(LLAMA_SHAPES)
    assert plan.ignored == {}


def test_the_plan_names_every_file_with_its_bytes() -> None:
    """The files of LLaMA with two ranks are those of FasterTransformer's table, with bytes of 2 per element."""
    layer = {
        f"model.layers.{layer}.{name}": elements * 2
        for layer in range(3)
        for name, elements in {
            "input_layernorm.weight.bin": 24,
            **{f"attention.query_key_value.weight.{rank}.bin": 24 * (24 + 12 + 12) // 2 for rank in (0, 1)},
            **{f"attention.dense.weight.{rank}.bin": 24 * 24 // 2 for rank in (0, 1)},
            "post_attention_layernorm.weight.bin": 24,
            **{
                f"mlp.{name}_proj.weight.{rank}.bin": 24 * 28 // 2 for name in ("gate", "up", "down") for rank in (0, 1)
            },
        }.items()
    }
    expected = {
        **layer,
        "model.wte.weight.bin": 44 * 24 * 2,
        "model.lm_head.weight.bin": 44 * 24 * 2,
        "model.final_layernorm.weight.bin": 24 * 2,
    }

    plan = llama_plan(checkpoint(LLAMA_SHAPES))

    assert dict(plan.files) == expected


def test_output_bytes_are_the_sum_of_the_files() -> None:
    """With the source's type and nothing stored twice, LLaMA's files have as many bytes as its tensors."""
    stored = checkpoint(LLAMA_SHAPES)

    plan = llama_plan(stored)

    assert plan.output_bytes == sum(tensor.size_bytes for tensor in stored.values())


def test_output_bytes_count_the_artifacts_type() -> None:
    """A plan for fp32 writes twice the bytes of a plan for bf16."""
    stored = checkpoint(LLAMA_SHAPES)

    assert llama_plan(stored, dtype=FP32).output_bytes == 2 * llama_plan(stored, dtype=BF16).output_bytes


def test_a_missing_tensor_is_a_problem_with_its_shape_and_arithmetic() -> None:
    """An absent tensor is named with the shape that config.json gives it and how that comes about."""
    plan = llama_plan(checkpoint(without("model.layers.1.self_attn.k_proj.weight")))

    (problem,) = plan.problems
    assert problem.subject == "layers.1.self_attn.k_proj.weight"
    assert problem.found == "absent from the checkpoint"
    assert problem.expected == "(12, 24) by config.json (kv_heads 2 x head_dim 6, hidden 24)"


def test_a_misshapen_tensor_is_a_problem_with_both_shapes_and_its_file() -> None:
    """A tensor of another shape is named with that shape, its file, and the shape config.json gives it."""
    stored = checkpoint({**LLAMA_SHAPES, "model.layers.2.mlp.up_proj.weight": (28, 23)})

    plan = llama_plan(stored)

    (problem,) = plan.problems
    assert problem.subject == "layers.2.mlp.up_proj.weight"
    assert problem.found == "shape (28, 23) in model-0.safetensors"
    assert problem.expected == "(28, 24) by config.json (ffn 28, hidden 24)"


def test_an_unknown_tensor_is_a_problem() -> None:
    """A tensor the family does not know is never left out silently."""
    plan = llama_plan(checkpoint({**LLAMA_SHAPES, "model.layers.0.adapter.weight": (4, 24)}))

    (problem,) = plan.problems
    assert problem.subject == "model.layers.0.adapter.weight"
    assert problem.found == "a tensor that no llama checkpoint holds"


def test_a_tensor_of_a_layer_beyond_the_last_is_a_problem() -> None:
    """A fourth layer in the files of a three-layer config.json is reported, not dropped."""
    plan = llama_plan(checkpoint({**LLAMA_SHAPES, "model.layers.3.mlp.up_proj.weight": (28, 24)}))

    assert [problem.subject for problem in plan.problems] == ["model.layers.3.mlp.up_proj.weight"]


def test_an_integer_tensor_where_a_weight_belongs_is_a_problem() -> None:
    """Quantized weights are refused, by tensor and type."""
    stored = checkpoint(LLAMA_SHAPES)
    name = "model.layers.0.mlp.up_proj.weight"
    stored[name] = replace(stored[name], dtype=INT8)

    plan = llama_plan(stored)

    (problem,) = plan.problems
    assert (problem.subject, problem.found) == ("layers.0.mlp.up_proj.weight", "dtype int8")


def test_an_axis_that_does_not_divide_is_a_problem_with_the_degrees_that_would() -> None:
    """Two KV heads for four ranks are half a head each, and the hint lists the degrees that suit the whole model."""
    plan = llama_plan(checkpoint(LLAMA_SHAPES), ranks=4)

    (problem,) = plan.problems
    assert (problem.subject, problem.found) == ("--tp 4", "2 kv_heads / 4 ranks = 0.50")
    assert problem.hint == "degrees that divide this model: 1, 2"


def test_problems_of_all_kinds_are_reported_at_once() -> None:
    """A missing, a misshapen, an unknown tensor and an axis that does not divide are all in one list."""
    shapes = without("model.norm.weight")
    shapes["model.layers.0.input_layernorm.weight"] = (23,)
    shapes["extra"] = (1,)

    plan = llama_plan(checkpoint(shapes), ranks=4)

    found = " | ".join(str(problem) for problem in plan.problems)
    for part in ("norm.weight: absent", "shape (23)", "extra: a tensor", "2 kv_heads / 4 ranks"):
        assert part in found


def test_equal_problems_of_neighbouring_layers_are_folded() -> None:
    """Four missing and one far layer's tensor make one problem that says "0-3,5"."""
    config = {**LLAMA_CONFIG, "num_hidden_layers": 7}
    table = {name: shape for name, shape in LLAMA_SHAPES.items() if ".layers." not in name}
    layer = {
        name.removeprefix("model.layers.0."): shape for name, shape in LLAMA_SHAPES.items() if ".layers.0." in name
    }
    shapes = {f"model.layers.{number}.{name}": shape for number in range(7) for name, shape in layer.items()}
    for number in (0, 1, 2, 3, 5):
        del shapes[f"model.layers.{number}.mlp.up_proj.weight"]

    plan = llama_plan(checkpoint({**table, **shapes}), config=config)

    assert [problem.subject for problem in plan.problems] == ["layers.0-3,5.mlp.up_proj.weight"]


def test_different_problems_of_one_tensor_are_not_folded() -> None:
    """Layers whose tensor has different wrong shapes stay apart, because the messages differ."""
    shapes = {**LLAMA_SHAPES, "model.layers.0.mlp.up_proj.weight": (1, 1), "model.layers.1.mlp.up_proj.weight": (2, 2)}

    plan = llama_plan(checkpoint(shapes))

    assert [problem.subject for problem in plan.problems] == [
        "layers.0.mlp.up_proj.weight",
        "layers.1.mlp.up_proj.weight",
    ]


def test_a_role_without_a_place_in_the_layout_is_a_problem_that_names_its_layers() -> None:
    """Attention biases, which FasterTransformer's LLaMA has no file for, are reported by tensor with their layers."""
    biases = {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": (size,)
        for layer in range(3)
        for name, size in (("q", 24), ("k", 12), ("v", 12), ("o", 24))
    }

    plan = llama_plan(checkpoint({**LLAMA_SHAPES, **biases}), config={**LLAMA_CONFIG, "attention_bias": True})

    assert [problem.subject for problem in plan.problems] == [
        f"layers.0-2.self_attn.{name}_proj.bias" for name in ("q", "k", "v", "o")
    ]


def test_a_role_the_backend_declares_unused_is_ignored_with_its_reason() -> None:
    """Tensors whose role starts with a prefix in `unused` are left out, and the plan says why."""
    table = [row for row in rows.LLAMA_ROWS if row.roles != ("head.weight",)]

    plan = llama_plan(checkpoint(LLAMA_SHAPES), table=table, unused={"head.": "another server's"})

    assert plan.problems == ()
    assert plan.ignored == {"lm_head.weight": "another server's"}


def test_an_absent_tensor_of_an_unused_role_is_no_problem() -> None:
    """BERT's embeddings, which no file needs, may be missing."""
    layer = "encoder.layer.0."
    shapes = {
        **{f"{layer}attention.self.{name}.weight": (24, 24) for name in ("query", "key", "value")},
        **{f"{layer}attention.self.{name}.bias": (24,) for name in ("query", "key", "value")},
        f"{layer}attention.output.dense.weight": (24, 24),
        f"{layer}attention.output.dense.bias": (24,),
        f"{layer}intermediate.dense.weight": (28, 24),
        f"{layer}intermediate.dense.bias": (28,),
        f"{layer}output.dense.weight": (24, 28),
        f"{layer}output.dense.bias": (24,),
        **{
            f"{layer}{part}output.LayerNorm.{kind}": (24,) for part in ("attention.", "") for kind in ("weight", "bias")
        },
    }

    plan = make_plan(
        BERT, BERT.dims(BERT_CONFIG), checkpoint(shapes), rows.BERT_ROWS, ranks=1, dtype=FP16, unused={"embed.": "no"}
    )

    assert plan.problems == ()


def test_a_buffer_is_ignored_with_the_familys_reason() -> None:
    """The rotary table of old LLaMA checkpoints is not read, and the plan says that it is recomputed."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"

    plan = llama_plan(checkpoint({**LLAMA_SHAPES, name: (3,)}))

    assert plan.problems == ()
    assert plan.ignored == {name: "recomputed from rope_theta"}


def test_a_tied_head_is_made_from_the_embedding() -> None:
    """With tied embeddings and no head in the files, the head's file reads the embedding."""
    config = {**LLAMA_CONFIG, "tie_word_embeddings": True}

    plan = llama_plan(checkpoint(without("lm_head.weight")), config=config)

    (step,) = [step for step in plan.steps if step.files == ("model.lm_head.weight.bin",)]
    assert [piece.stored.name for piece in step.pieces] == ["model.embed_tokens.weight"]


def test_a_stored_copy_of_a_tied_head_is_ignored() -> None:
    """With tied embeddings a stored head is not read, as transformers does not, and the plan says so."""
    config = {**LLAMA_CONFIG, "tie_word_embeddings": True}

    plan = llama_plan(checkpoint(LLAMA_SHAPES), config=config)

    assert plan.problems == ()
    assert plan.ignored == {"lm_head.weight": "tied: embed.tokens.weight is used instead, as transformers does"}


def test_an_absent_head_that_is_not_tied_is_a_problem() -> None:
    """Without tied embeddings nothing stands in for a missing head."""
    plan = llama_plan(checkpoint(without("lm_head.weight")))

    assert [problem.subject for problem in plan.problems] == ["lm_head.weight"]


@pytest.mark.parametrize("extra", [{}, {"transformer.h.0.attn.bias": (1, 1, 9, 9), "strange": (3,)}])
def test_every_stored_tensor_is_read_or_ignored_or_a_problem(extra: dict[str, tuple[int, ...]]) -> None:
    """The three lists have each stored tensor exactly once."""
    config = {"vocab_size": 44, "n_positions": 9, "n_embd": 24, "n_layer": 1, "n_head": 4}
    shapes = {
        "transformer.wte.weight": (44, 24),
        "transformer.wpe.weight": (9, 24),
        **{f"transformer.h.0.{norm}.{kind}": (24,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
        "transformer.h.0.attn.c_attn.weight": (24, 72),
        "transformer.h.0.attn.c_attn.bias": (72,),
        "transformer.h.0.attn.c_proj.weight": (24, 24),
        "transformer.h.0.attn.c_proj.bias": (24,),
        "transformer.h.0.mlp.c_fc.weight": (24, 96),
        "transformer.h.0.mlp.c_fc.bias": (96,),
        "transformer.h.0.mlp.c_proj.weight": (96, 24),
        "transformer.h.0.mlp.c_proj.bias": (24,),
        "transformer.ln_f.weight": (24,),
        "transformer.ln_f.bias": (24,),
        "lm_head.weight": (44, 24),
        **extra,
    }

    plan = make_plan(GPT2, GPT2.dims(config), checkpoint(shapes), rows.GPT2_ROWS, ranks=2, dtype=FP16, unused={})

    listed = [*plan.tensors_read, *plan.ignored, *(problem.subject for problem in plan.problems)]
    assert sorted(listed) == sorted(shapes)


def test_steps_lie_in_the_order_of_their_sources_on_disk() -> None:
    """Files are written in the order in which the first byte of each lies in the shards."""
    stored = checkpoint(dict(reversed(LLAMA_SHAPES.items())), shards=3)

    plan = llama_plan(stored)

    firsts = [min((piece.stored.file, piece.stored.offset) for piece in step.pieces) for step in plan.steps]
    assert firsts == sorted(firsts)


def test_a_step_counts_a_shared_source_once() -> None:
    """GPT-2's q, k and v lie in one tensor, whose bytes count once."""
    config = {"vocab_size": 44, "n_positions": 9, "n_embd": 24, "n_layer": 1, "n_head": 4}
    stored = checkpoint({"h.0.attn.c_attn.weight": (24, 72)})

    plan = make_plan(GPT2, GPT2.dims(config), stored, rows.GPT2_ROWS, ranks=2, dtype=FP16, unused={})

    assert [step.source_bytes for step in plan.steps] == [24 * 72 * 2]


def test_a_row_for_one_layer_makes_one_step() -> None:
    """A row that names its layer is not repeated for the others."""
    row = Row("only.{layer}.bin", ("mlp.up.weight",), layer=1)

    plan = llama_plan(checkpoint(LLAMA_SHAPES), table=[*rows.LLAMA_ROWS, row])

    assert [file for file in plan.files if file.startswith("only")] == ["only.1.bin"]


def test_a_computed_file_has_the_elements_its_row_says() -> None:
    """The bytes of a computed file are its named axes and numbers multiplied, divided by the ranks of its split."""
    compute = Compute(lambda inputs, dtype, ranks, constants: [], "3 heads head_dim")
    row = Row("x.{rank}.bin", ("attn.q.weight",), compute=compute, dtype=FP32, split="out", layer=0)

    plan = llama_plan(checkpoint(LLAMA_SHAPES), table=[*rows.LLAMA_ROWS, row])

    assert plan.files["x.0.bin"] == 3 * 4 * 6 * 4 // 2


def test_opt_positions_leave_out_the_two_padding_rows() -> None:
    """OPT stores two more rows than it has positions, and the file has only the positions."""
    config = {
        "vocab_size": 44,
        "max_position_embeddings": 20,
        "hidden_size": 24,
        "num_hidden_layers": 0,
        "num_attention_heads": 4,
        "ffn_dim": 28,
    }
    stored = checkpoint({"decoder.embed_positions.weight": (22, 24)})

    plan = make_plan(OPT, OPT.dims(config), stored, rows.OPT_ROWS, ranks=1, dtype=FP16, unused={})

    assert plan.files["model.wpe.bin"] == 20 * 24 * 2


def test_memory_of_more_workers_is_that_of_the_hungriest_steps() -> None:
    """The bytes for n workers are the sum of the n largest steps, so a worker more never needs less."""
    plan = llama_plan(checkpoint(LLAMA_SHAPES))
    sizes = sorted((step.memory_bytes() for step in plan.steps), reverse=True)

    assert [plan.memory_bytes(workers) for workers in (1, 2, 3)] == [sum(sizes[:count]) for count in (1, 2, 3)]


def big_llama(hidden: int) -> Plan:
    """The plan of a one-layer LLaMA with large matrices, of 8 heads, for 4 ranks."""
    config = {
        "vocab_size": 8 * hidden,
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "intermediate_size": 4 * hidden,
    }
    scale = {24: hidden, 44: 8 * hidden, 28: 4 * hidden, 12: hidden}
    shapes = {
        name: tuple(scale[side] for side in shape)
        for name, shape in LLAMA_SHAPES.items()
        if ".layers." not in name or ".layers.0." in name
    }
    return llama_plan(checkpoint(shapes), config=config, ranks=4)


def test_memory_of_an_embedding_is_a_few_blocks_whatever_its_size() -> None:
    """A file whose rows lie as they do in the source is written some rows at a time."""
    (step,) = [step for step in big_llama(4096).steps if step.files == ("model.wte.weight.bin",)]

    assert step.source_bytes == 8 * 4096 * 4096 * 2
    assert step.memory_bytes() <= 6 * BLOCK_BYTES


def test_memory_of_a_column_split_is_one_ranks_share() -> None:
    """A rank's columns are rows of torch's matrix, so only a quarter of it is held for four ranks."""
    (step,) = [step for step in big_llama(4096).steps if "up_proj" in step.files[0]]

    assert step.memory_bytes() <= step.source_bytes // 4 + 6 * BLOCK_BYTES


def test_memory_of_a_row_split_is_the_matrix() -> None:
    """A rank's rows are columns of torch's matrix, which is held whole and once."""
    (step,) = [step for step in big_llama(4096).steps if "down_proj" in step.files[0]]

    assert step.source_bytes <= step.memory_bytes() <= step.source_bytes + 6 * BLOCK_BYTES


@pytest.mark.parametrize(
    "architecture",
    [architecture for architecture in ARCHITECTURES if architecture.name in FAMILIES],
    ids=lambda architecture: architecture.name,
)
def test_every_row_of_every_family_is_made_of_roles_the_family_has(architecture: Architecture) -> None:
    """No FasterTransformer file asks for a role that its family's table does not hold."""
    known = {role for tensor in architecture.tensors for role in tensor.roles}
    needed = {role for row in FAMILIES[architecture.name].rows for role in row.roles}

    assert needed <= known


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_the_steps_carry_the_artifacts_type(name: str) -> None:
    """Every file of a plan has the artifact's element type where its row names none."""
    plan = llama_plan(checkpoint(LLAMA_SHAPES), dtype=BY_NAME[name])

    assert {step.dtype.name for step in plan.steps} == {name}


# Files that hold several tensors


MIXTRAL_CONFIG = {
    **LLAMA_CONFIG,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
MIXTRAL_SHAPES = {
    "model.embed_tokens.weight": (44, 24),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(2)
        for name, shape in {
            "input_layernorm": (24,),
            **{f"self_attn.{part}_proj": (24, 24) for part in "qkvo"},
            "post_attention_layernorm": (24,),
            "block_sparse_moe.gate": (8, 24),
            **{f"block_sparse_moe.experts.{expert}.w{part}": (28, 24) for expert in range(8) for part in (1, 3)},
            **{f"block_sparse_moe.experts.{expert}.w2": (24, 28) for expert in range(8)},
        }.items()
    },
    "model.norm.weight": (24,),
    "lm_head.weight": (44, 24),
}


def trtllm_plan(
    shapes: Mapping[str, tuple[int, ...]] = LLAMA_SHAPES,
    *,
    config: Mapping[str, Any] = LLAMA_CONFIG,
    family: str = "llama",
    ranks: int = 1,
    pp: int = 1,
    moe_ep: int = 1,
    dtype: DType = FP16,
    **recipe: Any,
) -> Plan:
    """The plan of a checkpoint for TensorRT-LLM."""
    architecture = {"llama": LLAMA, "mixtral": MIXTRAL}[family]
    dims = architecture.dims(config)
    table = decoder_rows(TRTLLM_FAMILIES[family], Recipe(dtype=dtype, layers=dims.sizes["layers"], **recipe))
    held = {role for tensor in architecture.tensors if tensor.exists(dims) for role in tensor.roles}
    table = tuple(row for row in table if not held.isdisjoint(row.needed))
    return make_plan(
        architecture, dims, checkpoint(shapes), table, ranks=ranks, dtype=dtype, unused={}, pp=pp, moe_ep=moe_ep
    )


def vectors(sizes_and_types: Sequence[tuple[int, DType]]) -> Plan:
    """The plan of a file of one vector for each size, of that type."""
    count = len(sizes_and_types)
    tensors = tuple(Tensor((f"role{number}",), f"t{number}", f"size{number}") for number in range(count))
    dims = Dims({f"size{number}": size for number, (size, _) in enumerate(sizes_and_types)}, {})
    table = [
        Row(RANK, (f"role{number}",), tensor=f"t{number}", dtype=dtype)
        for number, (_, dtype) in enumerate(sizes_and_types)
    ]
    architecture = Architecture("tiny", (), (), (), tensors, lambda _: dims, {})
    stored = checkpoint({f"t{number}": (size,) for number, (size, _) in enumerate(sizes_and_types)})
    return make_plan(architecture, dims, stored, table, ranks=1, dtype=FP16, unused={})


def entries(header: bytes) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Tensor -> type, shape, and where it begins and ends behind a header."""
    assert len(header) == 8 + int.from_bytes(header[:8], "little")
    return {
        name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in json.loads(header[8:]).items()
        if name != "__metadata__"
    }


BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F8_E4M3": 1, "I32": 4}


def assert_aligned(plan: Plan) -> None:
    """Every tensor of every file begins on a multiple of its element size, and the header on one of eight."""
    for header in plan.headers.values():
        assert len(header) % 8 == 0
        for name, (kind, _, start, _) in entries(header).items():
            assert start % BYTES[kind] == 0, name


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([FP32, FP16, BF16, INT8, BY_NAME["fp8_e4m3"]])),
        min_size=1,
        max_size=12,
    )
)
def test_tensors_of_all_types_are_aligned_and_read_by_the_library(sizes_and_types: list[tuple[int, DType]]) -> None:
    """Odd sizes and mixed types: each begins on a multiple of its element size, and torch can load it."""
    plan = vectors(sizes_and_types)

    assert_aligned(plan)
    (header,) = plan.headers.values()
    loaded = safetensors.torch.load(header + bytes(plan.output_bytes - len(header)))
    assert {name: tensor.shape[0] for name, tensor in loaded.items()} == {
        f"t{number}": size for number, (size, _) in enumerate(sizes_and_types)
    }


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("recipe", ["plain", "weight_only", "awq", "fp8_rowwise"])
def test_packed_tensors_beside_an_odd_vocabulary_are_aligned(recipe: str, ranks: int, dtype: DType) -> None:
    """Integers, float32 scales and an odd number of words in one file."""
    config = {**LLAMA_CONFIG, "vocab_size": 45, "hidden_size": 128, "intermediate_size": 128}
    sizes = {24: 128, 12: 64, 28: 128, 44: 45}
    shapes = {name: tuple(sizes[side] for side in shape) for name, shape in LLAMA_SHAPES.items()}

    plan = trtllm_plan(shapes, config=config, ranks=ranks, dtype=dtype, kind=recipe, group_size=32, kv_scale=True)

    assert plan.problems == ()
    assert_aligned(plan)


def test_the_header_is_followed_by_the_tensors_without_gaps() -> None:
    """Offsets begin at 0, each tensor where the last one ended, to the end of the file."""
    plan = trtllm_plan(ranks=2)

    for file, header in plan.headers.items():
        found = sorted(entries(header).values(), key=lambda entry: entry[2])
        assert [start for _, _, start, _ in found] == [0, *(end for _, _, _, end in found[:-1])]
        assert all(end - start == math.prod(shape) * BYTES[kind] for kind, shape, start, end in found)
        assert plan.files[file] == len(header) + found[-1][3]


def test_the_steps_of_a_file_are_in_the_order_of_its_header() -> None:
    """What is written first comes first, for the header stands before the first byte is known."""
    plan = trtllm_plan(ranks=2, pp=3)

    for file, header in plan.headers.items():
        written = [tensor.name for step in plan.steps if file in step.files for tensor in step.tensors]
        assert written == list(entries(header))


def test_files_of_one_tensor_have_no_header() -> None:
    """FasterTransformer's files are bytes alone."""
    assert llama_plan(checkpoint(LLAMA_SHAPES)).headers == {}


def test_there_is_a_file_for_each_rank_of_each_stage() -> None:
    """Rank = stage * tp + tensor rank."""
    plan = trtllm_plan(ranks=2, pp=3)

    assert sorted(plan.headers) == [f"rank{rank}.safetensors" for rank in range(6)]


@given(layers=st.integers(1, 40), pp=st.integers(1, 8))
def test_layers_are_dealt_as_numpy_splits_a_range(layers: int, pp: int) -> None:
    """The first (layers mod pp) stages have one more; each is numbered from 0."""
    pp = min(pp, layers)
    expected = [
        (stage, local) for stage, part in enumerate(np.array_split(np.arange(layers), pp)) for local in range(len(part))
    ]

    assert [Grid(2, pp).stage(layer, layers) for layer in range(layers)] == expected


@pytest.mark.parametrize(("tp", "moe_ep", "moe_tp"), [(1, 1, 1), (4, 1, 4), (4, 2, 2), (4, 4, 1)])
def test_ranks_that_do_not_share_the_experts_share_each_of_them(tp: int, moe_ep: int, moe_tp: int) -> None:
    """moe_tp times moe_ep is tp."""
    assert Grid(tp, 1, moe_ep).moe_tp == moe_tp


# Shares


def piece_of(role: str, sizes: Mapping[str, int], out: tuple[str, ...], inp: tuple[str, ...] = ()) -> Piece:
    """A role that has a stored tensor to itself."""
    tensor = Tensor((role,), "t", " ".join(out), " ".join(inp))
    dims = Dims(dict(sizes), {})
    architecture = Architecture("tiny", (), (), (), (tensor,), lambda _: dims, {})
    stored = checkpoint({"t": tensor.stored_shape(dims)})
    row = Row("f", (role,))
    (step,) = make_plan(architecture, dims, stored, [row], ranks=1, dtype=FP16, unused={}).steps
    return step.pieces[0]


@given(size=st.integers(1, 30), ranks=st.integers(1, 8))
def test_padded_shares_cover_the_axis_once_in_order(size: int, ranks: int) -> None:
    """Joined, the shares are the whole axis; none is longer than the first, to which all are padded."""
    row = Row("f", ("a",), split="out", uneven="pad")
    piece = piece_of("a", {"n": size}, ("n",))

    found = [spans(row, piece, ranks, rank) for rank in range(ranks)]

    shares = [range(span.start, span.stop) for share in found if share is not None for span in share]
    assert [index for share in shares for index in share] == list(range(size))
    assert share_shape(row, piece, ranks) == (-(-size // ranks), 1)


@given(size=st.integers(1, 12), ranks=st.integers(1, 24), uneven=st.sampled_from(["", "replicate"]))
def test_an_axis_divides_or_is_shared_or_is_refused(size: int, ranks: int, uneven: str) -> None:
    """Equal parts; with "replicate", rank r of more ranks than indices has index floor(r * n / ranks); else None."""
    row = Row("f", ("a",), split="out", uneven=uneven)
    piece = piece_of("a", {"n": size, "m": 3}, ("n", "m"))

    for rank in range(ranks):
        found = spans(row, piece, ranks, rank)
        if size % ranks == 0 or (uneven == "replicate" and ranks % size == 0):
            assert found is not None
            (span,) = found
            first = rank * size // ranks
            assert (span.axis, span.start, span.stop) == ("n", first, first + max(1, size // ranks))
        else:
            assert found is None


@given(kv=st.integers(1, 4), group=st.integers(1, 8), ranks=st.integers(1, 16))
def test_ranks_that_share_a_group_divide_it(kv: int, group: int, ranks: int) -> None:
    """All query heads are dealt out, each to one rank, in order; heads that do not divide are refused."""
    row = Row("f", ("a",), split="out", uneven="replicate")
    piece = piece_of("a", {"kv": kv, "group": group}, ("kv", "group"))

    found = [spans(row, piece, ranks, rank) for rank in range(ranks)]

    divides = kv % ranks == 0 or (ranks % kv == 0 and group % (ranks // kv) == 0)
    assert all((share is not None) is divides for share in found)
    if divides:
        heads = np.arange(kv * group).reshape(kv, group)
        for rank, share in enumerate(found):
            cut = {span.axis: slice(span.start, span.stop) for span in share or ()}
            part = heads[cut.get("kv", slice(None)), cut.get("group", slice(None))].ravel()
            assert part.tolist() == np.array_split(heads.ravel(), ranks)[rank].tolist()


def test_slots_that_are_equal_shares_are_nothing_special() -> None:
    """They are the same spans as without, and memory is that of a rank's share."""
    stored = checkpoint({"a": (8 * 64, 4096)}, dtype=FP32)
    dims = Dims({"h": 8, "d": 64, "m": 4096}, {})
    family = Architecture("tiny", (), (), (), (Tensor(("a",), "a", "h d", "m", in_first=False),), lambda _: dims, {})
    plain = Row("rank{rank}.safetensors", ("a",), tensor="a", split="out")
    slotted = replace(plain, slots=lambda role, ranks: tuple(tuple(range(2 * rank, 2 * rank + 2)) for rank in range(4)))

    steps = [
        make_plan(family, dims, stored, [row], ranks=4, dtype=FP32, unused={}).steps[0] for row in (plain, slotted)
    ]

    for rank in range(4):
        shares = [spans(step.row, step.pieces[0], 4, rank) for step in steps]
        assert shares[0] == shares[1]
        assert placed(slotted, steps[1].pieces[0], 4, rank) is None
    assert steps[0].memory_bytes() == steps[1].memory_bytes()


def test_the_degrees_that_are_suggested_count_slots_as_whole() -> None:
    """An axis that does not divide is named with degrees at which another, which has slots, need not divide."""
    stored = checkpoint({"a": (6, 4), "b": (8, 4)})
    dims = Dims({"n": 6, "k": 8, "m": 4}, {})
    tensors = (Tensor(("a",), "a", "n", "m"), Tensor(("b",), "b", "k", "m"))
    family = Architecture("tiny", (), (), (), tensors, lambda _: dims, {})
    table = [
        Row("rank{rank}.safetensors", ("a",), tensor="a", split="out", slots=lambda role, ranks: ((0, 1),) * ranks),
        Row("rank{rank}.safetensors", ("b",), tensor="b", split="out"),
    ]

    (problem,) = make_plan(family, dims, stored, table, ranks=3, dtype=FP16, unused={}).problems

    assert problem.hint == "degrees that divide this model: 1, 2, 4, 8"


def test_a_row_that_is_not_split_gives_everything_to_all() -> None:
    """No spans, and the shape of the whole."""
    piece = piece_of("a", {"n": 6, "m": 5}, ("n",), ("m",))

    assert spans(Row("f", ("a",)), piece, 4, 3) == ()
    assert share_shape(Row("f", ("a",)), piece, 4) == (6, 5)


def test_roles_on_a_sum_of_axes_lie_one_after_the_other() -> None:
    """StarCoder's fused rows: 4 heads of q, then one of k, then one of v."""
    h = 32
    config = {"vocab_size": 44, "n_positions": 20, "n_embd": h, "n_layer": 1, "n_head": 4, "n_inner": 36}
    dims = GPT_BIGCODE.dims(config)
    shapes = {tensor.name_at(layer, None): tensor.stored_shape(dims) for tensor, layer, _ in GPT_BIGCODE.expected(dims)}
    roles = ("attn.q.weight", "attn.k.weight", "attn.v.weight")
    table = [Row("f{layer}.bin", roles)]

    plan = make_plan(GPT_BIGCODE, dims, checkpoint(shapes), table, ranks=1, dtype=FP16, unused={})

    (step,) = plan.steps
    chosen = [piece.chosen for piece in step.pieces]
    assert [(part.name, part.start, part.stop) for part in chosen if part is not None] == [
        ("heads", 0, 4),
        ("kv_heads", 4, 5),
        ("kv_heads", 5, 6),
    ]


# Experts and stages


@pytest.mark.parametrize(
    ("moe_ep", "expected"),
    [
        (1, [["rank0", "rank1", "rank2", "rank3"]]),
        (2, [["rank0", "rank2"], ["rank1", "rank3"]]),
        (4, [["rank0"], ["rank1"], ["rank2"], ["rank3"]]),
    ],
)
def test_the_ranks_that_share_an_expert_are_moe_ep_apart(moe_ep: int, expected: list[list[str]]) -> None:
    """One step for each group of experts, whose files are the ranks that have them."""
    plan = trtllm_plan(MIXTRAL_SHAPES, config=MIXTRAL_CONFIG, family="mixtral", ranks=4, moe_ep=moe_ep)

    steps = [step for step in plan.steps if step.tensors[0].name == "transformer.layers.0.mlp.fc.weight"]
    assert [[file.removesuffix(".safetensors") for file in step.files] for step in steps] == expected
    assert all(step.tensors[0].shape == (8 // moe_ep, 2 * 28 * moe_ep // 4, 24) for step in steps)


def test_a_missing_expert_is_named_with_its_number() -> None:
    """Expert 3's matrix, absent from both layers, is one problem."""
    shapes = {name: shape for name, shape in MIXTRAL_SHAPES.items() if "experts.3.w2" not in name}

    plan = trtllm_plan(shapes, config=MIXTRAL_CONFIG, family="mixtral")

    (problem,) = plan.problems
    assert problem.subject == "layers.0-1.block_sparse_moe.experts.3.w2.weight"
    assert problem.found == "absent from the checkpoint"


def test_experts_that_do_not_divide_are_named_by_their_degree() -> None:
    """A feed-forward of 28 over 3 ranks is 9.33, and --moe-tp is what to change."""
    config = {**MIXTRAL_CONFIG, "num_attention_heads": 24, "num_key_value_heads": 24, "head_dim": 1, "vocab_size": 48}
    shapes = {name: tuple(48 if side == 44 else side for side in shape) for name, shape in MIXTRAL_SHAPES.items()}

    plan = trtllm_plan(shapes, config=config, family="mixtral", ranks=12, moe_ep=4)

    (problem,) = plan.problems
    assert (problem.subject, problem.found) == ("--moe-tp 3", "28 ffn / 3 ranks = 9.33")
    assert problem.hint == "degrees that divide this model: 4, 8"


def test_heads_fewer_than_ranks_are_no_problem_for_a_row_that_repeats_them() -> None:
    """Two key and value heads on four ranks: no problem, and qkv has one of each on every rank."""
    plan = trtllm_plan(ranks=4)

    assert plan.problems == ()
    (shape,) = {step.tensors[0].shape for step in plan.steps if "qkv" in step.tensors[0].name}
    assert shape == ((1 + 1 + 1) * 6, 24)


def test_a_shape_that_cannot_be_packed_is_one_problem_for_all_layers() -> None:
    """The tensor with its layers, its shape on each rank, and the degrees as they are now."""
    plan = trtllm_plan(ranks=2, kind="weight_only")

    problem = next(problem for problem in plan.problems if "mlp.gate" in problem.subject)
    assert problem.subject == "transformer.layers.0-2.mlp.gate.weight"
    assert problem.found == "shape (14, 24) on each rank"
    assert "14 outputs / 32 = 0.44" in problem.expected
    assert problem.hint == "drop --quantization; no --tp suits every matrix"


def test_a_step_counts_what_it_computes_from() -> None:
    """The scales an encoding needs beside its matrices are among the step's sources, and in its memory."""
    packed = Row(
        RANK, ("a",), tensor="a.weight", encoding=encodings.fp8_requantized(), asides=("s",), dtype=BY_NAME["fp8_e4m3"]
    )
    dims = Dims({"n": 6, "m": 5}, {})
    tensors = (Tensor(("a",), "a", "n", "m", kind="fp8_e4m3"), Tensor(("s",), "s", "1"))
    architecture = Architecture("tiny", (), (), (), tensors, lambda _: dims, {})
    stored = checkpoint({"a": (6, 5), "s": (1,)}, dtype=FP32)
    stored["a"] = replace(stored["a"], dtype=BY_NAME["fp8_e4m3"])

    plan = make_plan(architecture, dims, stored, [packed], ranks=1, dtype=FP16, unused={})

    (step,) = plan.steps
    assert plan.problems == ()
    assert [piece.role for piece in step.sources] == ["a", "s"]
    assert step.source_bytes == 30 + 4
