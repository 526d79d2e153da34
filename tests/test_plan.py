"""A plan covers the checkpoint and the layout completely, or says everything that stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmcompile.architectures import ARCHITECTURES
from llmcompile.architectures.bert import BERT
from llmcompile.architectures.gpt2 import GPT2
from llmcompile.architectures.llama import LLAMA
from llmcompile.architectures.opt import OPT
from llmcompile.architectures.spec import Architecture
from llmcompile.checkpoint.headers import Stored
from llmcompile.dtypes import BF16, BY_NAME, FP16, FP32, INT8, DType
from llmcompile.exporters.ft import rows
from llmcompile.exporters.ft.layout import FAMILIES
from llmcompile.plan import BLOCK_BYTES, Compute, Plan, Row, make_plan

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
