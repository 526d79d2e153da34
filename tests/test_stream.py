"""Streaming writes exactly the vendor's bytes, whatever the sizes, types, shards, threads and interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

import llmcompile
from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import Checkpoint, open_checkpoint
from llmcompile.checkpoint.headers import Stored
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import BY_NAME
from llmcompile.errors import CheckpointError, OutputError
from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.layout import make_layout as make_trtllm_layout
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.plan import Plan, make_plan
from llmcompile.stream import Streamed, stream
from llmcompile.writing import WorkDirectory

Array = NDArray[Any]
Weights = dict[str, torch.Tensor]

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
NUMPY = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
IDS = {"bos_token_id": 1, "eos_token_id": 2}
SRC = str(Path(llmcompile.__file__).parents[1])


# Models: sizes, weights with their Hugging Face names, and what FasterTransformer's files hold, in plain NumPy.


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a tiny model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int = 7

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Family:
    """A family's config.json, its weights' shapes, and one rank's files by the table in the specification."""

    config: Callable[[Sizes], dict[str, Any]]
    shapes: Callable[[Sizes], dict[str, tuple[int, ...]]]
    files: Callable[[Sizes, Mapping[str, Array], int, int], dict[str, Array]]


def block(array: Array, axis: int, rank: int, ranks: int) -> Array:
    """The rank's block of equal contiguous ones along `axis`."""
    return np.split(array, ranks, axis=axis)[rank]


def llama_config(s: Sizes) -> dict[str, Any]:
    """config.json of a LLaMA."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "intermediate_size": s.ffn,
        **IDS,
    }


def llama_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of a LLaMA's weights."""
    layer = {
        "input_layernorm": (s.hidden,),
        "self_attn.q_proj": (s.hidden, s.hidden),
        "self_attn.k_proj": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.v_proj": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.o_proj": (s.hidden, s.hidden),
        "post_attention_layernorm": (s.hidden,),
        "mlp.gate_proj": (s.ffn, s.hidden),
        "mlp.up_proj": (s.ffn, s.hidden),
        "mlp.down_proj": (s.hidden, s.ffn),
    }
    return {
        "model.embed_tokens.weight": (s.vocab, s.hidden),
        **{f"model.layers.{n}.{name}.weight": shape for n in range(s.layers) for name, shape in layer.items()},
        "model.norm.weight": (s.hidden,),
        "lm_head.weight": (s.vocab, s.hidden),
    }


def llama_files(s: Sizes, w: Mapping[str, Array], rank: int, ranks: int) -> dict[str, Array]:
    """Files of one rank of a LLaMA, by section 7 of the specification."""
    files = {
        "model.wte.weight.bin": w["model.embed_tokens.weight"],
        "model.final_layernorm.weight.bin": w["model.norm.weight"],
        "model.lm_head.weight.bin": w["lm_head.weight"],
    }
    for n in range(s.layers):
        a, to = f"model.layers.{n}.", f"model.layers.{n}."
        qkv = [block(w[f"{a}self_attn.{part}_proj.weight"], 0, rank, ranks) for part in "qkv"]
        files |= {
            f"{to}input_layernorm.weight.bin": w[f"{a}input_layernorm.weight"],
            f"{to}post_attention_layernorm.weight.bin": w[f"{a}post_attention_layernorm.weight"],
            f"{to}attention.query_key_value.weight.{rank}.bin": np.concatenate(qkv).T,
            f"{to}attention.dense.weight.{rank}.bin": block(w[f"{a}self_attn.o_proj.weight"].T, 0, rank, ranks),
            f"{to}mlp.gate_proj.weight.{rank}.bin": block(w[f"{a}mlp.gate_proj.weight"].T, 1, rank, ranks),
            f"{to}mlp.up_proj.weight.{rank}.bin": block(w[f"{a}mlp.up_proj.weight"].T, 1, rank, ranks),
            f"{to}mlp.down_proj.weight.{rank}.bin": block(w[f"{a}mlp.down_proj.weight"].T, 0, rank, ranks),
        }
    return files


def gpt_files(
    s: Sizes, rank: int, ranks: int, globals_: dict[str, Array], layers: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """Files of one rank by the table of section 2; matrices in `layers` are (in, out), qkv is (in, 3, out)."""
    files = dict(globals_)
    for n, w in enumerate(layers):
        to = f"model.layers.{n}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            files |= {f"{to}{norm}.{kind}.bin": w[f"{norm}.{kind}"] for kind in ("weight", "bias")}
        files |= {
            f"{to}attention.query_key_value.weight.{rank}.bin": block(w["qkv.weight"], 2, rank, ranks),
            f"{to}attention.query_key_value.bias.{rank}.bin": block(w["qkv.bias"], 1, rank, ranks),
            f"{to}attention.dense.weight.{rank}.bin": block(w["dense.weight"], 0, rank, ranks),
            f"{to}attention.dense.bias.bin": w["dense.bias"],
            f"{to}mlp.dense_h_to_4h.weight.{rank}.bin": block(w["up.weight"], 1, rank, ranks),
            f"{to}mlp.dense_h_to_4h.bias.{rank}.bin": block(w["up.bias"], 0, rank, ranks),
            f"{to}mlp.dense_4h_to_h.weight.{rank}.bin": block(w["down.weight"], 0, rank, ranks),
            f"{to}mlp.dense_4h_to_h.bias.bin": w["down.bias"],
        }
    return files


def both(name: str, weight: tuple[int, ...], bias: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's weight and bias."""
    return {f"{name}.weight": weight, f"{name}.bias": (bias,)}


def gpt2_config(s: Sizes) -> dict[str, Any]:
    """config.json of a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": s.vocab,
        "n_positions": s.positions,
        "n_embd": s.hidden,
        "n_layer": s.layers,
        "n_head": s.heads,
        "n_inner": s.ffn,
        **IDS,
    }


def gpt2_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of a GPT-2's weights, (in, out)."""
    layer = {
        **both("ln_1", (s.hidden,), s.hidden),
        **both("attn.c_attn", (s.hidden, 3 * s.hidden), 3 * s.hidden),
        **both("attn.c_proj", (s.hidden, s.hidden), s.hidden),
        **both("ln_2", (s.hidden,), s.hidden),
        **both("mlp.c_fc", (s.hidden, s.ffn), s.ffn),
        **both("mlp.c_proj", (s.ffn, s.hidden), s.hidden),
    }
    return {
        "transformer.wte.weight": (s.vocab, s.hidden),
        "transformer.wpe.weight": (s.positions, s.hidden),
        **{f"transformer.h.{n}.{name}": shape for n in range(s.layers) for name, shape in layer.items()},
        **both("transformer.ln_f", (s.hidden,), s.hidden),
    }


def gpt2_files(s: Sizes, w: Mapping[str, Array], rank: int, ranks: int) -> dict[str, Array]:
    """Files of one rank of a GPT-2, by section 2.1 of the specification."""
    t = "transformer."
    globals_ = {
        "model.wte.bin": w[f"{t}wte.weight"],
        "model.wpe.bin": w[f"{t}wpe.weight"],
        **{f"model.final_layernorm.{kind}.bin": w[f"{t}ln_f.{kind}"] for kind in ("weight", "bias")},
    }
    layers = []
    for n in range(s.layers):
        h = f"{t}h.{n}."
        names = {
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "dense": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        }
        layer = {f"{to}.{kind}": w[f"{h}{hf}.{kind}"] for to, hf in names.items() for kind in ("weight", "bias")}
        layer["qkv.weight"] = w[f"{h}attn.c_attn.weight"].reshape(s.hidden, 3, s.hidden)
        layer["qkv.bias"] = w[f"{h}attn.c_attn.bias"].reshape(3, s.hidden)
        layers.append(layer)
    return gpt_files(s, rank, ranks, globals_, layers)


def bloom_config(s: Sizes) -> dict[str, Any]:
    """config.json of a BLOOM."""
    return {
        "architectures": ["BloomForCausalLM"],
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "n_layer": s.layers,
        "n_head": s.heads,
        **IDS,
    }


def bloom_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of a BLOOM's weights."""
    h = s.hidden
    layer = {
        **both("input_layernorm", (h,), h),
        **both("self_attention.query_key_value", (3 * h, h), 3 * h),
        **both("self_attention.dense", (h, h), h),
        **both("post_attention_layernorm", (h,), h),
        **both("mlp.dense_h_to_4h", (4 * h, h), 4 * h),
        **both("mlp.dense_4h_to_h", (h, 4 * h), h),
    }
    return {
        "word_embeddings.weight": (s.vocab, h),
        **both("word_embeddings_layernorm", (h,), h),
        **{f"h.{n}.{name}": shape for n in range(s.layers) for name, shape in layer.items()},
        **both("ln_f", (h,), h),
    }


def bloom_files(s: Sizes, w: Mapping[str, Array], rank: int, ranks: int) -> dict[str, Array]:
    """Files of one rank of a BLOOM, by section 2.3 of the specification."""
    globals_ = {
        "model.wte.bin": w["word_embeddings.weight"],
        **{
            f"model.{to}.{kind}.bin": w[f"{hf}.{kind}"]
            for to, hf in (("pre_decoder_layernorm", "word_embeddings_layernorm"), ("final_layernorm", "ln_f"))
            for kind in ("weight", "bias")
        },
    }
    layers = []
    for n in range(s.layers):
        h = f"h.{n}."
        names = {
            "dense": "self_attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        }
        qkv = f"{h}self_attention.query_key_value"
        fused = w[f"{qkv}.weight"].reshape(s.heads, 3, s.head_dim, s.hidden)
        layer = {f"{to}.weight": w[f"{h}{hf}.weight"].T for to, hf in names.items()}
        layer |= {f"{to}.bias": w[f"{h}{hf}.bias"] for to, hf in names.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layer |= {f"{norm}.{kind}": w[f"{h}{norm}.{kind}"] for kind in ("weight", "bias")}
        layer["qkv.weight"] = fused.transpose(3, 1, 0, 2).reshape(s.hidden, 3, s.hidden)
        bias = w[f"{qkv}.bias"].reshape(s.heads, 3, s.head_dim)
        layer["qkv.bias"] = bias.transpose(1, 0, 2).reshape(3, s.hidden)
        layers.append(layer)
    return gpt_files(s, rank, ranks, globals_, layers)


def opt_config(s: Sizes) -> dict[str, Any]:
    """config.json of an OPT."""
    return {
        "architectures": ["OPTForCausalLM"],
        "vocab_size": s.vocab,
        "max_position_embeddings": s.positions,
        "hidden_size": s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "ffn_dim": s.ffn,
        **IDS,
    }


def opt_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of an OPT's weights."""
    h = s.hidden
    layer = {
        **both("self_attn_layer_norm", (h,), h),
        **{k: v for part in "qkv" for k, v in both(f"self_attn.{part}_proj", (h, h), h).items()},
        **both("self_attn.out_proj", (h, h), h),
        **both("final_layer_norm", (h,), h),
        **both("fc1", (s.ffn, h), s.ffn),
        **both("fc2", (h, s.ffn), h),
    }
    d = "model.decoder."
    return {
        f"{d}embed_tokens.weight": (s.vocab, h),
        f"{d}embed_positions.weight": (s.positions + 2, h),
        **{f"{d}layers.{n}.{name}": shape for n in range(s.layers) for name, shape in layer.items()},
        **both(f"{d}final_layer_norm", (h,), h),
    }


def opt_files(s: Sizes, w: Mapping[str, Array], rank: int, ranks: int) -> dict[str, Array]:
    """Files of one rank of an OPT, by section 2.2 of the specification."""
    d = "model.decoder."
    globals_ = {
        "model.wte.bin": w[f"{d}embed_tokens.weight"],
        "model.lm_head.weight.bin": w[f"{d}embed_tokens.weight"],
        "model.wpe.bin": w[f"{d}embed_positions.weight"][2:],
        **{f"model.final_layernorm.{kind}.bin": w[f"{d}final_layer_norm.{kind}"] for kind in ("weight", "bias")},
    }
    layers = []
    for n in range(s.layers):
        h = f"{d}layers.{n}."
        names = {"dense": "self_attn.out_proj", "up": "fc1", "down": "fc2"}
        layer = {f"{to}.weight": w[f"{h}{hf}.weight"].T for to, hf in names.items()}
        layer |= {f"{to}.bias": w[f"{h}{hf}.bias"] for to, hf in names.items()}
        norms = {"input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm"}
        layer |= {f"{to}.{kind}": w[f"{h}{hf}.{kind}"] for to, hf in norms.items() for kind in ("weight", "bias")}
        layer["qkv.weight"] = np.stack([w[f"{h}self_attn.{part}_proj.weight"].T for part in "qkv"], axis=1)
        layer["qkv.bias"] = np.stack([w[f"{h}self_attn.{part}_proj.bias"] for part in "qkv"])
        layers.append(layer)
    return gpt_files(s, rank, ranks, globals_, layers)


FAMILIES = {
    "llama": Family(llama_config, llama_shapes, llama_files),
    "gpt2": Family(gpt2_config, gpt2_shapes, gpt2_files),
    "bloom": Family(bloom_config, bloom_shapes, bloom_files),
    "opt": Family(opt_config, opt_shapes, opt_files),
}
TINY = Sizes(layers=2, heads=4, kv_heads=2, head_dim=6, ffn=28, vocab=44)


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtypes: Sequence[str], seed: int = 0) -> Weights:
    """Normally distributed weights whose types are those of `dtypes` in turn."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(TORCH[dtypes[number % len(dtypes)]])
        for number, (name, shape) in enumerate(shapes.items())
    }


def save(folder: Path, config: Mapping[str, Any], weights: Weights, shards: int = 1) -> Path:
    """Write a checkpoint, tensors dealt out to the shards in turn, so that q, k and v lie in different files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    where = {tensor: names[number % shards] for number, tensor in enumerate(weights)}
    for name in names:
        save_file({tensor: weights[tensor] for tensor, file in where.items() if file == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def as_float32(weights: Weights) -> dict[str, Array]:
    """The weights in float32, as NumPy arrays."""
    return {name: tensor.to(torch.float32).numpy() for name, tensor in weights.items()}


def expected_files(family: str, s: Sizes, weights: Weights, ranks: int, dtype: str) -> dict[str, bytes]:
    """Every file of the artifact, by the specification, as bytes."""
    arrays = as_float32(weights)
    with np.errstate(over="ignore"):
        return {
            name: np.ascontiguousarray(array).astype(NUMPY[dtype]).tobytes()
            for rank in range(ranks)
            for name, array in FAMILIES[family].files(s, arrays, rank, ranks).items()
        }


# Running


def plan_for(checkpoint: Checkpoint, *, tp: int, dtype: str) -> Plan:
    """The FasterTransformer plan of a checkpoint."""
    architecture = lookup(checkpoint.config)
    dims = architecture.dims(checkpoint.config)
    options = FtOptions(build=BuildOptions(model="m", output=Path("o")), tp=tp, dtype=dtype)
    layout = make_layout(architecture, dims, options, source_dtype=BY_NAME[dtype], model_label="m")
    assert layout.refusals == ()
    plan = make_plan(
        architecture, dims, checkpoint.tensors, layout.rows, ranks=tp, dtype=layout.dtype, unused=layout.unused
    )
    assert plan.problems == ()
    return plan


def silent(size_bytes: int, tensor: str) -> None:
    """Progress that nobody looks at."""


def run(
    source: Path,
    output: Path,
    *,
    tp: int = 2,
    dtype: str = "fp16",
    workers: int = 2,
    budget_bytes: int = 1 << 30,
    prefix: str = "",
    resume: bool = False,
    job: Mapping[str, Any] | None = None,
    advance: Callable[[int, str], None] = silent,
) -> Streamed:
    """Stream a checkpoint into `output`'s work directory and leave that there."""
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, tp=tp, dtype=dtype)
    with WorkDirectory(output, job={"tp": tp} if job is None else job, resume=resume, force=False) as work:
        return stream(
            plan,
            checkpoint.files,
            work,
            prefix=prefix,
            budget_bytes=budget_bytes,
            workers=workers,
            advance=advance,
        )


def partial(output: Path) -> Path:
    """The work directory of `output`."""
    return output.with_name(output.name + ".partial")


def written(output: Path) -> dict[str, bytes]:
    """The files in the work directory of `output`, but for the journal."""
    folder = partial(output)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".journal"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder; hypothesis runs a test's examples within one `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Bytes


@st.composite
def sizes_and_ranks(draw: st.DrawFn) -> tuple[Sizes, int]:
    """Random dimensions, and a number of ranks that divides heads and feed-forward."""
    ranks = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = ranks * draw(st.integers(1, 2))
    sizes = Sizes(
        layers=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 5)),
        ffn=ranks * draw(st.integers(1, 9)),
        vocab=draw(st.integers(1, 30)),
    )
    return sizes, ranks


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=sizes_and_ranks(),
    dtypes=st.lists(st.sampled_from(["fp32", "fp16", "bf16", "fp64"]), min_size=1, max_size=3),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    shards=st.integers(1, 4),
    workers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_every_file_equals_plain_numpy_slices(
    family: str, model: tuple[Sizes, int], dtypes: list[str], dtype: str, shards: int, workers: int, seed: int
) -> None:
    """Whatever the dimensions, ranks, types, mixtures of types and shards, all files are the specification's."""
    sizes, ranks = model
    weights = random_weights(FAMILIES[family].shapes(sizes), dtypes, seed)
    with scratch() as folder:
        save(folder / "hf", FAMILIES[family].config(sizes), weights, shards)

        run(folder / "hf", folder / "out", tp=ranks, dtype=dtype, workers=workers)

        assert written(folder / "out") == expected_files(family, sizes, weights, ranks, dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("block_bytes", "workers", "budget_bytes"),
    [(64, 1, 1 << 30), (200, 3, 1), (1000, 4, 5000), (4096, 2, 20_000), (4 << 20, 4, 1)],
)
def test_bytes_do_not_depend_on_blocks_threads_or_budget(
    family: str, block_bytes: int, workers: int, budget_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a few bytes or megabytes, one thread or four, ample memory or none to spare: the files are the same."""
    weights = random_weights(FAMILIES[family].shapes(TINY), ["fp32", "bf16"])
    save(tmp_path / "hf", FAMILIES[family].config(TINY), weights, shards=3)
    monkeypatch.setattr("llmcompile.assembly.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("llmcompile.plan.BLOCK_BYTES", block_bytes)

    run(tmp_path / "hf", tmp_path / "out", workers=workers, budget_bytes=budget_bytes, dtype="bf16")

    assert written(tmp_path / "out") == expected_files(family, TINY, weights, 2, "bf16")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt"])
def test_rank_files_side_by_side_are_the_file_of_one_rank(family: str, ranks: int, tmp_path: Path) -> None:
    """Joining the files of n ranks along the axis that is split gives the file written for one rank."""
    h, sizes = TINY.hidden, TINY
    ffn = 4 * h if family == "bloom" else sizes.ffn
    shapes = {
        "attention.query_key_value.weight": ((h, 3, h // ranks), 2),
        "attention.query_key_value.bias": ((3, h // ranks), 1),
        "attention.dense.weight": ((h // ranks, h), 0),
        "mlp.dense_h_to_4h.weight": ((h, ffn // ranks), 1),
        "mlp.dense_h_to_4h.bias": ((ffn // ranks,), 0),
        "mlp.dense_4h_to_h.weight": ((ffn // ranks, h), 0),
    }
    weights = random_weights(FAMILIES[family].shapes(sizes), ["fp16"])
    save(tmp_path / "hf", FAMILIES[family].config(sizes), weights)

    run(tmp_path / "hf", tmp_path / "one", tp=1)
    run(tmp_path / "hf", tmp_path / "many", tp=ranks)

    one, many = written(tmp_path / "one"), written(tmp_path / "many")
    for layer in range(sizes.layers):
        for name, (shape, axis) in shapes.items():
            path = f"model.layers.{layer}.{name}"
            parts = [np.frombuffer(many[f"{path}.{rank}.bin"], np.float16) for rank in range(ranks)]
            joined = np.concatenate([part.reshape(shape) for part in parts], axis=axis)
            assert joined.tobytes() == one[f"{path}.0.bin"], path


def test_files_of_a_prefix_lie_in_that_folder(tmp_path: Path) -> None:
    """All paths of the plan are relative to the prefix, in the work directory and in its journal."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)

    run(tmp_path / "hf", tmp_path / "out", prefix="2-gpu/")

    expected = expected_files("llama", TINY, weights, 2, "fp16")
    assert written(tmp_path / "out") == {f"2-gpu/{name}": content for name, content in expected.items()}


def test_a_pickle_with_transposed_tensors_gives_the_same_files(tmp_path: Path) -> None:
    """Tensors that a pickle stores in another order than C are read in their logical order."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    odd = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in weights.items()}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(llama_config(TINY)))
    torch.save(odd, tmp_path / "hf" / "pytorch_model.bin")

    run(tmp_path / "hf", tmp_path / "out")

    assert written(tmp_path / "out") == expected_files("llama", TINY, weights, 2, "fp16")


def test_the_source_files_are_hashed_whole(tmp_path: Path) -> None:
    """The result names every weight file with the sha256 of all its bytes."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]), shards=3)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("hf/*.safetensors")}

    streamed = run(tmp_path / "hf", tmp_path / "out")

    assert dict(streamed.source_sha256) == expected


def test_progress_is_told_every_byte(tmp_path: Path) -> None:
    """The bytes reported add up to the bytes of all files, and every name is a tensor of the checkpoint."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    told: list[tuple[int, str]] = []

    run(tmp_path / "hf", tmp_path / "out", advance=lambda size, tensor: told.append((size, tensor)))

    assert sum(size for size, _ in told) == sum(len(content) for content in written(tmp_path / "out").values())
    assert {tensor for _, tensor in told} <= set(weights)


# Overflow


def overflowing(family: str, values: Mapping[str, float], tmp_path: Path, config: Mapping[str, Any]) -> Streamed:
    """Stream fp32 weights as fp16, two elements of some tensors replaced by a value."""
    weights = random_weights(FAMILIES[family].shapes(TINY), ["fp32"])
    for name, value in values.items():
        weights[name].view(-1)[[0, -1]] = value
    save(tmp_path / "hf", {**FAMILIES[family].config(TINY), **config}, weights)
    return run(tmp_path / "hf", tmp_path / "out")


def test_overflow_is_counted_by_tensor(tmp_path: Path) -> None:
    """Elements that become infinite in fp16 are counted under the tensor's name in the checkpoint."""
    name = "model.layers.1.self_attn.k_proj.weight"

    streamed = overflowing("llama", {name: 7e4}, tmp_path, {})

    assert dict(streamed.overflowed) == {name: 2}


def test_values_that_fit_are_no_overflow(tmp_path: Path) -> None:
    """The largest fp16 value and an infinity that was in the source already are not counted."""
    values = {"model.norm.weight": 65504.0, "model.layers.0.mlp.up_proj.weight": float("inf")}

    streamed = overflowing("llama", values, tmp_path, {})

    assert dict(streamed.overflowed) == {}


def test_overflow_of_a_tensor_that_is_written_twice_counts_once(tmp_path: Path) -> None:
    """OPT's embedding is both wte and lm_head; its two large elements are two, not four."""
    name = "model.decoder.embed_tokens.weight"

    streamed = overflowing("opt", {name: 7e4}, tmp_path, {})

    assert dict(streamed.overflowed) == {name: 2}


def test_overflow_in_a_fused_tensor_counts_all_its_parts(tmp_path: Path) -> None:
    """One element in q and one in v of BLOOM's fused tensor are two of that tensor, over all ranks."""
    name = "h.0.self_attention.query_key_value.weight"

    streamed = overflowing("bloom", {name: -1e6}, tmp_path, {})

    assert dict(streamed.overflowed) == {name: 2}


def neox(folder: Path, value: float) -> None:
    """Save a one-layer GPT-NeoX whose two shared biases have `value` as their first element."""
    h, v = 8, 11
    layer = "gpt_neox.layers.0."
    shapes = {
        "gpt_neox.embed_in.weight": (v, h),
        **both(f"{layer}input_layernorm", (h,), h),
        **both(f"{layer}post_attention_layernorm", (h,), h),
        **both(f"{layer}attention.query_key_value", (3 * h, h), 3 * h),
        **both(f"{layer}attention.dense", (h, h), h),
        **both(f"{layer}mlp.dense_h_to_4h", (12, h), 12),
        **both(f"{layer}mlp.dense_4h_to_h", (h, 12), h),
        **both("gpt_neox.final_layer_norm", (h,), h),
        "embed_out.weight": (v, h),
    }
    weights = random_weights(shapes, ["fp32"])
    weights[f"{layer}attention.dense.bias"][0] = value
    weights[f"{layer}mlp.dense_4h_to_h.bias"][0] = value
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": v,
        "max_position_embeddings": 9,
        "hidden_size": h,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "rotary_pct": 0.5,
        **IDS,
    }
    save(folder, config, weights)


def test_overflow_of_a_computed_files_input_is_counted(tmp_path: Path) -> None:
    """GPT-NeoX's biases, which go through arithmetic, are counted when their cast makes infinities."""
    neox(tmp_path / "hf", 7e4)

    streamed = run(tmp_path / "hf", tmp_path / "out")

    layer = "gpt_neox.layers.0."
    assert dict(streamed.overflowed) == {f"{layer}attention.dense.bias": 1, f"{layer}mlp.dense_4h_to_h.bias": 1}


def test_overflow_of_a_computed_files_result_is_counted(tmp_path: Path) -> None:
    """Two biases that fit fp16 and whose sum does not are counted under the first of them."""
    neox(tmp_path / "hf", 6e4)

    streamed = run(tmp_path / "hf", tmp_path / "out", tp=1)

    assert dict(streamed.overflowed) == {"gpt_neox.layers.0.attention.dense.bias": 1}


# Memory


FORTY = Sizes(layers=4, heads=8, kv_heads=8, head_dim=64, ffn=2048, vocab=8192)
"""39 tensors and 64 MiB in fp16."""


def peak_bytes(source: Path, output: Path, *, dtype: str, workers: int, budget_bytes: int) -> int:
    """Bytes Python and NumPy held at most while streaming, beyond those before."""
    tracemalloc.start()
    try:
        run(source, output, dtype=dtype, workers=workers, budget_bytes=budget_bytes)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A LLaMA of 39 tensors in a type of choice."""
    made: dict[str, Path] = {}

    def make(dtype: str) -> Path:
        if dtype not in made:
            folder = tmp_path_factory.mktemp("forty") / "hf"
            weights = random_weights(llama_shapes(FORTY), ["fp32"])
            made[dtype] = save(folder, llama_config(FORTY), {n: t.to(TORCH[dtype]) for n, t in weights.items()})
        return made[dtype]

    return make


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("source", "target"),
    [("fp16", "fp16"), ("fp32", "fp16"), ("fp32", "bf16"), ("bf16", "fp16"), ("bf16", "fp32"), ("fp16", "fp32")],
)
def test_memory_stays_below_what_the_plan_says(
    source: str, target: str, workers: int, forty: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is held at once is at most the plan's bytes for so many workers, and 3 MiB for hashing and bookkeeping."""
    plan = plan_for(open_checkpoint(forty(source)), tp=2, dtype=target)

    peak = peak_bytes(forty(source), tmp_path / "out", dtype=target, workers=workers, budget_bytes=1 << 40)

    assert peak <= plan.memory_bytes(workers) + (3 << 20)


@pytest.mark.parametrize(("source", "target"), [("fp16", "fp16"), ("fp32", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_memory_of_large_matrices_stays_below_what_the_plan_says(
    family: str, source: str, target: str, tmp_path: Path
) -> None:
    """Matrices of several blocks, of which one rank's share is held at a time, take no more than the plan says."""
    sizes = Sizes(layers=1, heads=8, kv_heads=8, head_dim=128, ffn=6144, vocab=64)
    weights = random_weights(FAMILIES[family].shapes(sizes), [source])
    save(tmp_path / "hf", FAMILIES[family].config(sizes), weights)
    plan = plan_for(open_checkpoint(tmp_path / "hf"), tp=2, dtype=target)

    peak = peak_bytes(tmp_path / "hf", tmp_path / "out", dtype=target, workers=1, budget_bytes=1 << 40)

    assert peak <= plan.memory_bytes(1) + (3 << 20)


def test_memory_of_a_column_split_is_one_ranks_share(tmp_path: Path) -> None:
    """The share of one rank is let go before that of the next is read."""
    sizes = Sizes(layers=1, heads=8, kv_heads=8, head_dim=256, ffn=64, vocab=64)
    save(tmp_path / "hf", llama_config(sizes), random_weights(llama_shapes(sizes), ["fp16"]))
    plan = plan_for(open_checkpoint(tmp_path / "hf"), tp=2, dtype="fp16")

    peak = peak_bytes(tmp_path / "hf", tmp_path / "out", dtype="fp16", workers=1, budget_bytes=1 << 40)

    assert peak <= plan.memory_bytes(1) + (3 << 20) < 3 * sizes.hidden**2 * 2 + (4 << 20)


@pytest.mark.parametrize("target", ["fp16", "fp32"])
def test_memory_of_a_projected_embedding_stays_below_what_the_plan_says(target: str, tmp_path: Path) -> None:
    """An embedding that is multiplied by a projection, as OPT-350m's, is made some rows at a time."""
    h, width, vocab = 1024, 256, 20_000
    sizes = Sizes(layers=1, heads=8, kv_heads=8, head_dim=128, ffn=64, vocab=vocab)
    d = "model.decoder."
    shapes = {
        **{name: shape for name, shape in opt_shapes(sizes).items() if f"{d}final_layer_norm" not in name},
        f"{d}embed_tokens.weight": (vocab, width),
        f"{d}project_in.weight": (h, width),
        f"{d}project_out.weight": (width, h),
    }
    config = {**opt_config(sizes), "word_embed_proj_dim": width, "do_layer_norm_before": False}
    save(tmp_path / "hf", config, random_weights(shapes, ["fp16"]))
    plan = plan_for(open_checkpoint(tmp_path / "hf"), tp=1, dtype=target)

    peak = peak_bytes(tmp_path / "hf", tmp_path / "out", dtype=target, workers=1, budget_bytes=1 << 40)

    assert peak <= plan.memory_bytes(1) + (3 << 20)


def test_memory_is_far_below_the_checkpoint(
    forty: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streaming 39 tensors of 64 MiB with small blocks holds less than a tenth of them."""
    monkeypatch.setattr("llmcompile.assembly.BLOCK_BYTES", 256 << 10)
    monkeypatch.setattr("llmcompile.plan.BLOCK_BYTES", 256 << 10)
    size = open_checkpoint(forty("fp16")).files[0].size_bytes

    peak = peak_bytes(forty("fp16"), tmp_path / "out", dtype="fp16", workers=1, budget_bytes=1 << 40)

    assert peak < size / 10


def test_a_small_budget_keeps_many_workers_small(forty: Callable[[str], Path], tmp_path: Path) -> None:
    """Four workers with a budget for one hold about what one holds."""
    plan = plan_for(open_checkpoint(forty("fp16")), tp=2, dtype="fp16")
    budget = plan.memory_bytes(1)

    peak = peak_bytes(forty("fp16"), tmp_path / "out", dtype="fp16", workers=4, budget_bytes=budget)

    assert peak <= budget + (4 << 20)


# Failures


def stream_threads() -> list[str]:
    """Names of the streaming threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


def truncated_run(tmp_path: Path, cut: Callable[[Path], None], workers: int = 3) -> None:
    """Stream a checkpoint whose shard is cut after the plan was made."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]), shards=2)
    checkpoint = open_checkpoint(tmp_path / "hf")
    plan = plan_for(checkpoint, tp=2, dtype="fp16")
    cut(tmp_path / "hf" / "model-00002-of-00002.safetensors")
    with WorkDirectory(tmp_path / "out", job={}, resume=False, force=False) as work:
        stream(plan, checkpoint.files, work, prefix="", budget_bytes=1 << 30, workers=workers, advance=silent)


def test_a_shard_truncated_after_the_plan_is_a_checkpoint_error(tmp_path: Path) -> None:
    """A file that became shorter is named with the byte it ends at."""

    def cut(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 100)

    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: the file ends at byte"):
        truncated_run(tmp_path, cut)


def test_a_shard_removed_after_the_plan_is_a_checkpoint_error(tmp_path: Path) -> None:
    """A file that vanished is named with the system's reason."""
    with pytest.raises(CheckpointError, match="No such file or directory"):
        truncated_run(tmp_path, Path.unlink)


def test_a_failure_stops_all_threads(tmp_path: Path) -> None:
    """Once the error has surfaced, no thread of the run is left."""
    with pytest.raises(CheckpointError):
        truncated_run(tmp_path, lambda path: os.truncate(path, 2000), workers=4)

    assert stream_threads() == []


def test_a_failure_of_the_caller_stops_the_run(tmp_path: Path) -> None:
    """An exception in the progress callback comes back as it is, and no thread is left."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]))

    def fail(size_bytes: int, tensor: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "hf", tmp_path / "out", advance=fail)
    assert stream_threads() == []


def test_a_failure_ends_the_other_threads_early(tmp_path: Path) -> None:
    """After one thread failed, the others do not go on to the end of the plan."""
    sizes = Sizes(layers=20, heads=4, kv_heads=4, head_dim=2, ffn=8, vocab=9)
    save(tmp_path / "hf", llama_config(sizes), random_weights(llama_shapes(sizes), ["fp16"]))
    told: list[str] = []

    def fail_first(size_bytes: int, tensor: str) -> None:
        told.append(tensor)
        if len(told) == 1:
            raise ZeroDivisionError
        time.sleep(0.005)

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "hf", tmp_path / "out", advance=fail_first)
    assert len(told) < 100


def test_a_failed_run_closes_the_files_it_opened(tmp_path: Path) -> None:
    """No descriptor is left open by a run that failed."""
    before = set(os.listdir("/proc/self/fd"))

    with pytest.raises(CheckpointError):
        truncated_run(tmp_path, lambda path: os.truncate(path, 2000))

    assert set(os.listdir("/proc/self/fd")) <= before


# Resuming


def identities(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of modification of every file in the work directory."""
    folder = partial(output)
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*.bin")
    }


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes]]:
    """A checkpoint, an output whose work directory is complete but not published, and its files."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]), shards=2)
    run(tmp_path / "hf", tmp_path / "out")
    return tmp_path / "hf", tmp_path / "out", written(tmp_path / "out")


def test_resuming_does_not_write_finished_files_again(finished: tuple[Path, Path, dict[str, bytes]]) -> None:
    """Files that the journal has and whose bytes are as recorded keep inode and time."""
    source, output, _ = finished
    before = identities(output)

    run(source, output, resume=True)

    assert identities(output) == before


def test_resuming_hashes_the_sources_again(finished: tuple[Path, Path, dict[str, bytes]]) -> None:
    """The sources' sha256 is complete also when there was nothing left to write."""
    source, output, _ = finished
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.safetensors")}

    streamed = run(source, output, resume=True)

    assert dict(streamed.source_sha256) == expected


@pytest.mark.parametrize("change", ["flip", "shorten", "remove"])
def test_resuming_writes_a_tampered_file_again(change: str, finished: tuple[Path, Path, dict[str, bytes]]) -> None:
    """A finished file whose bytes changed, which is shorter, or gone is made again, right."""
    source, output, expected = finished
    victim = partial(output) / "model.layers.1.mlp.up_proj.weight.1.bin"
    content = bytearray(victim.read_bytes())
    content[5] ^= 1
    victim.write_bytes(content if change == "flip" else content[:-1])
    if change == "remove":
        victim.unlink()

    run(source, output, resume=True)

    assert written(output) == expected


def test_resuming_ignores_a_torn_last_line_of_the_journal(finished: tuple[Path, Path, dict[str, bytes]]) -> None:
    """A journal cut in the middle of its last line loses that file, which is written again."""
    source, output, expected = finished
    journal = partial(output) / ".journal"
    os.truncate(journal, journal.stat().st_size - 9)

    run(source, output, resume=True)

    assert written(output) == expected


def test_a_run_resumed_from_a_torn_journal_can_be_resumed_again(
    finished: tuple[Path, Path, dict[str, bytes]],
) -> None:
    """What is appended after a torn line is read back as entries of its own."""
    source, output, expected = finished
    journal = partial(output) / ".journal"
    os.truncate(journal, journal.stat().st_size - 9)
    run(source, output, resume=True)
    before = identities(output)

    run(source, output, resume=True)

    assert identities(output) == before
    assert written(output) == expected


def test_resuming_another_job_is_refused_by_its_key(finished: tuple[Path, Path, dict[str, bytes]]) -> None:
    """A work directory begun with other options is not continued, and the message names the option and both values."""
    source, output, _ = finished

    with pytest.raises(OutputError, match="belongs to another job: tp was 2, now 4"):
        run(source, output, resume=True, job={"tp": 4})


def test_overflow_found_before_an_interruption_is_reported_after_it(tmp_path: Path) -> None:
    """A tensor that overflowed in a file finished by the first run is still in the resumed run's result."""
    name = "model.layers.1.self_attn.k_proj.weight"
    first = overflowing("llama", {name: 7e4}, tmp_path, {})

    second = run(tmp_path / "hf", tmp_path / "out", resume=True)

    assert dict(second.overflowed) == dict(first.overflowed)


CHILD = """
import sys, time
from pathlib import Path
from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import FP16
from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.plan import make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

source, output = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint = open_checkpoint(source)
architecture = lookup(checkpoint.config)
dims = architecture.dims(checkpoint.config)
options = FtOptions(build=BuildOptions(model="m", output=output), tp=2, dtype="fp16")
layout = make_layout(architecture, dims, options, source_dtype=FP16, model_label="m")
plan = make_plan(architecture, dims, checkpoint.tensors, layout.rows, ranks=2, dtype=FP16, unused=layout.unused)
told = []

def advance(size_bytes, tensor):
    told.append(size_bytes)
    if len(told) == int(sys.argv[3]):
        print("now", flush=True)
        time.sleep(600)

with WorkDirectory(output, job={"tp": 2}, resume=True, force=False) as work:
    stream(plan, checkpoint.files, work, prefix="", budget_bytes=1 << 30, workers=2, advance=advance)
"""


def kill_during(source: Path, output: Path, blocks: int, delay_s: float) -> int:
    """Run CHILD, whose one thread stops after so many blocks, and kill it a moment later; its exit code."""
    environment = {**os.environ, "PYTHONPATH": SRC}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(output), str(blocks)], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay_s)
        child.kill()
        return child.wait()


def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """A process killed three times while it streams 90 MB, at random moments, is resumed to what one run writes."""
    sizes = Sizes(layers=4, heads=8, kv_heads=4, head_dim=64, ffn=3072, vocab=16384)
    weights = random_weights(llama_shapes(sizes), ["fp16"])
    save(tmp_path / "hf", llama_config(sizes), weights, shards=2)
    chance = random.Random(20261121)

    codes = [
        kill_during(tmp_path / "hf", tmp_path / "out", chance.randint(1, 25), chance.uniform(0, 0.05)) for _ in range(3)
    ]
    run(tmp_path / "hf", tmp_path / "out", resume=True)

    assert codes[0] == -9
    assert written(tmp_path / "out") == expected_files("llama", sizes, weights, 2, "fp16")


def test_an_interrupted_run_keeps_what_it_finished(tmp_path: Path) -> None:
    """Files finished before the interruption are not written again by the run that resumes it."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]))
    told: list[str] = []

    def interrupt(size_bytes: int, tensor: str) -> None:
        told.append(tensor)
        if len(told) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "hf", tmp_path / "out", workers=1, advance=interrupt)
    before = identities(tmp_path / "out")
    run(tmp_path / "hf", tmp_path / "out", resume=True)

    after = identities(tmp_path / "out")
    assert len(before) > 0
    assert {name: after[name] for name in before} == before


# Files that hold several tensors: TensorRT-LLM's ranks


@st.composite
def ranked_llamas(draw: st.DrawFn) -> tuple[Sizes, int, int]:
    """Random dimensions, tensor parallel ranks that suit them, and stages."""
    ranks = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = draw(st.sampled_from([heads for heads in (1, 2, 3, 4) if heads % ranks == 0 or ranks % heads == 0]))
    layers = draw(st.integers(1, 3))
    sizes = Sizes(
        layers=layers,
        heads=int(np.lcm(ranks, kv_heads)) * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 5)),
        ffn=ranks * draw(st.integers(1, 9)),
        vocab=draw(st.integers(1, 30)),
    )
    return sizes, ranks, draw(st.integers(1, layers))


def rank_files(s: Sizes, weights: Weights, tp: int, pp: int, dtype: str) -> dict[str, dict[str, Array]]:
    """File -> tensors of a LLaMA for TensorRT-LLM, by sections 3.1 and 4 of the specification, in plain NumPy."""
    with np.errstate(over="ignore"):
        w = {name: array.astype(NUMPY[dtype]) for name, array in as_float32(weights).items()}
    rows = -(-s.vocab // tp)
    head = np.zeros((rows * tp, s.hidden), NUMPY[dtype])
    head[: s.vocab] = w["lm_head.weight"]
    stages = np.array_split(np.arange(s.layers), pp)
    files: dict[str, dict[str, Array]] = {}
    for stage, layers in enumerate(stages):
        for rank in range(tp):
            tensors = files[f"rank{stage * tp + rank}.safetensors"] = {}
            if stage == 0:
                tensors["transformer.vocab_embedding.weight"] = w["model.embed_tokens.weight"]
            if stage == pp - 1:
                tensors["transformer.ln_f.weight"] = w["model.norm.weight"]
                tensors["lm_head.weight"] = block(head, 0, rank, tp)
            for local, layer in enumerate(layers):
                a, to = f"model.layers.{layer}.", f"transformer.layers.{local}."
                first = rank * s.kv_heads // tp
                held = slice(first, first + max(1, s.kv_heads // tp))
                q, k, v = (w[f"{a}self_attn.{part}_proj.weight"].reshape(-1, s.head_dim, s.hidden) for part in "qkv")
                qkv = np.concatenate([block(q, 0, rank, tp), k[held], v[held]])
                tensors |= {
                    f"{to}input_layernorm.weight": w[f"{a}input_layernorm.weight"],
                    f"{to}post_layernorm.weight": w[f"{a}post_attention_layernorm.weight"],
                    f"{to}attention.qkv.weight": qkv.reshape(-1, s.hidden),
                    f"{to}attention.dense.weight": block(w[f"{a}self_attn.o_proj.weight"], 1, rank, tp),
                    f"{to}mlp.fc.weight": block(w[f"{a}mlp.gate_proj.weight"], 0, rank, tp),
                    f"{to}mlp.gate.weight": block(w[f"{a}mlp.up_proj.weight"], 0, rank, tp),
                    f"{to}mlp.proj.weight": block(w[f"{a}mlp.down_proj.weight"], 1, rank, tp),
                }
    return files


def trtllm_plan(checkpoint: Checkpoint, *, tp: int, pp: int, dtype: str, recipe: str | None) -> Plan:
    """The TensorRT-LLM plan of a checkpoint."""
    architecture = lookup(checkpoint.config)
    dims = architecture.dims(checkpoint.config)
    options = TrtllmOptions(
        build=BuildOptions(model="m", output=Path("o")),
        tp=tp,
        pp=pp,
        dtype={"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[dtype],
        quantization=recipe,
        wo_layout="deferred" if recipe is None else "sm80",
        trtllm_version="1.2.1",
    )
    layout = make_trtllm_layout(architecture, dims, options, source_dtype=BY_NAME[dtype], model_label="m")
    assert layout.refusals == ()
    plan = make_plan(
        architecture, dims, checkpoint.tensors, layout.rows, ranks=tp, dtype=layout.dtype, unused={}, pp=pp
    )
    assert plan.problems == ()
    return plan


def within(seconds: float, work: Callable[[], Streamed]) -> Streamed:
    """Do `work` in a thread, and fail if it does not end in time; what it raises is raised here."""
    raised: list[BaseException] = []
    results: list[Streamed] = []

    def guarded() -> None:
        try:
            results.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the run hangs"
    if len(raised) > 0:
        raise raised[0]
    return results[0]


def run_ranks(
    source: Path,
    output: Path,
    *,
    tp: int = 2,
    pp: int = 1,
    dtype: str = "fp16",
    recipe: str | None = None,
    workers: int = 2,
    budget_bytes: int = 1 << 30,
    resume: bool = False,
    advance: Callable[[int, str], None] = silent,
) -> Streamed:
    """Stream a checkpoint as TensorRT-LLM's ranks into `output`'s work directory and leave that there."""
    checkpoint = open_checkpoint(source)
    plan = trtllm_plan(checkpoint, tp=tp, pp=pp, dtype=dtype, recipe=recipe)
    with WorkDirectory(output, job={"tp": tp}, resume=resume, force=False) as work:
        return within(
            100,
            lambda: stream(
                plan, checkpoint.files, work, prefix="", budget_bytes=budget_bytes, workers=workers, advance=advance
            ),
        )


def assert_ranks(output: Path, expected: Mapping[str, Mapping[str, Array]]) -> None:
    """The work directory holds these files, and each what safetensors itself saves of these tensors."""
    found = written(output)
    assert sorted(found) == sorted(expected)
    for file, tensors in expected.items():
        wanted = {name: as_torch(array) for name, array in tensors.items()}
        assert safetensors.torch.save(safetensors.torch.load(found[file])) == safetensors.torch.save(wanted)


def as_torch(array: Array) -> torch.Tensor:
    """A tensor of the same bits; NumPy's bfloat16 is no type that torch knows."""
    if array.dtype != NUMPY["bf16"]:
        return torch.from_numpy(np.ascontiguousarray(array))
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)


@contextmanager
def blocks_of(size_bytes: int, *, direct: bool = False) -> Iterator[None]:
    """Blocks of that many bytes; `direct`: and files of any size are written past the cache, a page at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcompile.assembly.BLOCK_BYTES", size_bytes)
        patch.setattr("llmcompile.plan.BLOCK_BYTES", size_bytes)
        if direct:
            patch.setattr("llmcompile.writing._DIRECT_FROM_BYTES", 1)
            patch.setattr("llmcompile.stream._LEAST_STAGING_BYTES", 4096)
            patch.setattr("llmcompile.stream.BLOCK_BYTES", 4096)
        yield


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=ranked_llamas(),
    dtypes=st.lists(st.sampled_from(["fp32", "fp16", "bf16"]), min_size=1, max_size=3),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    shards=st.integers(1, 4),
    workers=st.integers(1, 4),
    block_bytes=st.sampled_from([16, 200, 4 << 20]),
    budget_bytes=st.sampled_from([1, 3000, 1 << 30]),
    direct=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_rank_file_equals_plain_numpy_slices(
    model: tuple[Sizes, int, int],
    dtypes: list[str],
    dtype: str,
    shards: int,
    workers: int,
    block_bytes: int,
    budget_bytes: int,
    direct: bool,
    seed: int,
) -> None:
    """Whatever the plan, the threads, the blocks and the memory: each file holds its tensors, whole and in order."""
    sizes, tp, pp = model
    weights = random_weights(llama_shapes(sizes), dtypes, seed)
    with scratch() as folder, blocks_of(block_bytes, direct=direct):
        save(folder / "hf", llama_config(sizes), weights, shards)

        run_ranks(
            *(folder / "hf", folder / "out"), tp=tp, pp=pp, dtype=dtype, workers=workers, budget_bytes=budget_bytes
        )

        assert_ranks(folder / "out", rank_files(sizes, weights, tp, pp, dtype))


PACKABLE = Sizes(layers=3, heads=4, kv_heads=4, head_dim=32, ffn=128, vocab=45)
"""Sizes that the SM80 layout can hold on one rank and on two."""


@pytest.mark.parametrize("recipe", [None, "w8a16", "w4a16"])
def test_rank_files_do_not_depend_on_threads_blocks_or_memory(recipe: str | None, tmp_path: Path) -> None:
    """One thread with ample memory and six with none to spare write equal bytes, packed or not."""
    weights = random_weights(llama_shapes(PACKABLE), ["fp16"])
    save(tmp_path / "hf", llama_config(PACKABLE), weights, shards=2)
    run_ranks(tmp_path / "hf", tmp_path / "one", recipe=recipe, workers=1)

    for number, (workers, block_bytes, budget_bytes) in enumerate([(6, 300, 1), (3, 5000, 50_000), (4, 1 << 20, 1)]):
        with blocks_of(block_bytes):
            run_ranks(
                *(tmp_path / "hf", tmp_path / f"other{number}"),
                recipe=recipe,
                workers=workers,
                budget_bytes=budget_bytes,
            )
        assert written(tmp_path / f"other{number}") == written(tmp_path / "one")


@pytest.mark.parametrize("budget_bytes", [1, 2000])
def test_a_full_budget_does_not_stop_the_threads_for_each_other(budget_bytes: int, tmp_path: Path) -> None:
    """Twelve threads, room for one step, and every step waiting for its turn in a file: the run ends."""
    sizes = Sizes(layers=12, heads=4, kv_heads=2, head_dim=2, ffn=8, vocab=9)
    weights = random_weights(llama_shapes(sizes), ["fp16"])
    save(tmp_path / "hf", llama_config(sizes), weights, shards=3)

    with blocks_of(32):
        run_ranks(tmp_path / "hf", tmp_path / "out", tp=4, pp=3, workers=12, budget_bytes=budget_bytes)

    assert_ranks(tmp_path / "out", rank_files(sizes, weights, 4, 3, "fp16"))


def test_a_failure_frees_the_threads_that_wait_for_their_turn(tmp_path: Path) -> None:
    """An error in one of eight threads surfaces, though the others wait for it."""
    sizes = Sizes(layers=8, heads=4, kv_heads=2, head_dim=2, ffn=8, vocab=9)
    save(tmp_path / "hf", llama_config(sizes), random_weights(llama_shapes(sizes), ["fp16"]))
    told: list[str] = []

    def fail(size_bytes: int, tensor: str) -> None:
        told.append(tensor)
        if len(told) == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_ranks(tmp_path / "hf", tmp_path / "out", workers=8, advance=fail)
    assert stream_threads() == []


def test_progress_of_rank_files_is_told_every_byte_of_data(tmp_path: Path) -> None:
    """The bytes reported are those of all tensors; headers are not counted."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    told: list[int] = []

    run_ranks(tmp_path / "hf", tmp_path / "out", advance=lambda size, tensor: told.append(size))

    expected = rank_files(TINY, weights, 2, 1, "fp16")
    assert sum(told) == sum(array.nbytes for tensors in expected.values() for array in tensors.values())


# Rank files, interrupted


class StoppedError(Exception):
    """What a test interrupts a run with."""


def stop_after(blocks: int, told: list[str]) -> Callable[[int, str], None]:
    """A progress callback that raises once so many blocks are written; notes the tensors in `told`."""
    lock = threading.Lock()

    def advance(size_bytes: int, tensor: str) -> None:
        with lock:
            told.append(tensor)
            if len(told) >= blocks:
                raise StoppedError

    return advance


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    stops=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    workers=st.integers(1, 4),
    block_bytes=st.sampled_from([200, 4 << 20]),
    direct=st.booleans(),
    pp=st.integers(1, 2),
)
def test_a_run_stopped_anywhere_is_resumed_to_the_same_bytes(
    stops: list[int], workers: int, block_bytes: int, direct: bool, pp: int
) -> None:
    """Stopped several times after any number of blocks, in whatever thread: the files are those of one run."""
    weights = random_weights(llama_shapes(TINY), ["fp32"])
    with scratch() as folder, blocks_of(block_bytes, direct=direct):
        save(folder / "hf", llama_config(TINY), weights, shards=2)
        places = (folder / "hf", folder / "out")

        for number, blocks in enumerate(stops):
            try:
                run_ranks(*places, pp=pp, workers=workers, resume=number > 0, advance=stop_after(blocks, []))
            except StoppedError:
                pass
        run_ranks(*places, pp=pp, workers=workers, resume=True)

        assert_ranks(folder / "out", rank_files(TINY, weights, 2, pp, "fp16"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are read, in order."""
    names: list[str] = []
    original = Reader.read_rows

    def read_rows(self: Reader, stored: Stored, first: int, last: int) -> Array:
        names.append(stored.name)
        return original(self, stored, first, last)

    monkeypatch.setattr(Reader, "read_rows", read_rows)
    return names


@pytest.mark.parametrize("blocks", [2, 9, 17, 30, 41])
def test_resuming_reads_only_what_is_missing(blocks: int, reads: list[str], tmp_path: Path) -> None:
    """What the first run read for finished tensors is not read again; everything else is."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]))
    told: list[str] = []
    with pytest.raises(StoppedError):
        run_ranks(tmp_path / "hf", tmp_path / "out", workers=1, advance=stop_after(blocks, told))
    finished = set(told) - {told[-1]}
    reads.clear()

    run_ranks(tmp_path / "hf", tmp_path / "out", workers=1, resume=True)

    parts = {name.replace("q_proj", part) for name in told for part in ("k_proj", "v_proj")}
    assert finished.isdisjoint(reads)
    assert {*reads, *told, *parts} == set(llama_shapes(TINY))


def test_resuming_finished_rank_files_reads_nothing(reads: list[str], tmp_path: Path) -> None:
    """Files that are whole keep inode and time, and no tensor is read."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]))
    run_ranks(tmp_path / "hf", tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in partial(tmp_path / "out").glob("*.safetensors")}
    reads.clear()

    run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert reads == []
    after = {path.name: path.stat().st_mtime_ns for path in partial(tmp_path / "out").glob("*.safetensors")}
    assert after == before


def test_a_rank_file_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    """One byte of one finished file is flipped: that file is made again, the other is left alone."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    run_ranks(tmp_path / "hf", tmp_path / "out")
    first, second = (partial(tmp_path / "out") / f"rank{rank}.safetensors" for rank in (0, 1))
    before = second.stat().st_mtime_ns
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)

    run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert second.stat().st_mtime_ns == before
    assert_ranks(tmp_path / "out", rank_files(TINY, weights, 2, 1, "fp16"))


@pytest.mark.parametrize("where", ["header", "middle", "last"])
@pytest.mark.parametrize("direct", [False, True])
def test_a_beginning_that_was_damaged_is_written_again(where: str, direct: bool, tmp_path: Path) -> None:
    """A byte flipped in the part an interrupted run left, wherever it is, is not in the resumed file."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    with blocks_of(4 << 20, direct=direct):
        with pytest.raises(StoppedError):
            run_ranks(tmp_path / "hf", tmp_path / "out", workers=1, advance=stop_after(30, []))
        journal = (partial(tmp_path / "out") / ".journal").read_text().splitlines()
        kept = [
            entry["upto"]
            for line in journal
            for entry in [json.loads(line)]
            if entry.get("file") == "rank0.safetensors"
        ]
        part = partial(tmp_path / "out") / "rank0.safetensors.part"
        content = bytearray(part.read_bytes())
        content[{"header": 9, "middle": kept[-1] // 2, "last": kept[-1] - 1}[where]] ^= 1
        part.write_bytes(content)

        run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert_ranks(tmp_path / "out", rank_files(TINY, weights, 2, 1, "fp16"))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("renamed", [0, 1])
def test_a_run_killed_before_the_rename_is_resumed(renamed: int, direct: bool, tmp_path: Path) -> None:
    """The last byte of a file is written and its name is not yet: it is finished by the next run."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    rename, calls = os.rename, []

    def stopped(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > renamed:
            raise StoppedError
        rename(source, target)

    with blocks_of(4 << 20, direct=direct):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmcompile.writing.os.rename", stopped)
            with pytest.raises(StoppedError):
                run_ranks(tmp_path / "hf", tmp_path / "out", workers=1)
        run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert_ranks(tmp_path / "out", rank_files(TINY, weights, 2, 1, "fp16"))


def test_a_whole_file_without_its_name_is_not_read_for_again(reads: list[str], tmp_path: Path) -> None:
    """Both files were written to the last byte and not renamed: the next run renames them and reads no tensor."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)
    run_ranks(tmp_path / "hf", tmp_path / "out", workers=1)
    folder = partial(tmp_path / "out")
    lines = (folder / ".journal").read_text().splitlines(keepends=True)
    (folder / ".journal").write_text("".join(line for line in lines if '"bytes"' not in line))
    for rank in (0, 1):
        (folder / f"rank{rank}.safetensors").rename(folder / f"rank{rank}.safetensors.part")
    reads.clear()

    run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert reads == []
    assert_ranks(tmp_path / "out", rank_files(TINY, weights, 2, 1, "fp16"))


@pytest.mark.parametrize("direct", [False, True])
def test_the_journal_names_only_bytes_that_are_on_disk(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an entry is made, the part file already begins with so many bytes of that hash, past any buffer of ours."""
    save(tmp_path / "hf", llama_config(TINY), random_weights(llama_shapes(TINY), ["fp16"]))
    noted: list[tuple[str, int]] = []
    progress = WorkDirectory.progress

    def checked(self: WorkDirectory, file: str, size_bytes: int, sha256: str, overflowed: Mapping[str, int]) -> None:
        begin = (self.path / f"{file}.part").read_bytes()[:size_bytes]
        assert hashlib.sha256(begin).hexdigest() == sha256
        noted.append((file, size_bytes))
        progress(self, file, size_bytes, sha256, overflowed)

    monkeypatch.setattr(WorkDirectory, "progress", checked)

    with blocks_of(4 << 20, direct=direct):
        run_ranks(tmp_path / "hf", tmp_path / "out", workers=3)

    assert {file for file, _ in noted} == {"rank0.safetensors", "rank1.safetensors"}


def test_a_file_in_small_steps_is_noted_after_each(tmp_path: Path) -> None:
    """Without a buffer, every tensor of a file has its entry in the journal, at the end of the tensor."""
    weights = random_weights(llama_shapes(TINY), ["fp16"])
    save(tmp_path / "hf", llama_config(TINY), weights)

    run_ranks(tmp_path / "hf", tmp_path / "out", tp=1)

    entries = [json.loads(line) for line in (partial(tmp_path / "out") / ".journal").read_text().splitlines()]
    content = written(tmp_path / "out")["rank0.safetensors"]
    base = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:base])
    ends = sorted(base + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert [entry["upto"] for entry in entries if "upto" in entry] == ends


def test_overflow_in_rank_files_is_counted_once_also_after_an_interruption(tmp_path: Path) -> None:
    """Two elements that become infinite, in a tensor written before the interruption and one written after it."""
    early, late = "model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    weights = random_weights(llama_shapes(TINY), ["fp32"])
    for name in (early, late):
        weights[name].view(-1)[[0, -1]] = 7e4
    save(tmp_path / "hf", llama_config(TINY), weights)
    told: list[str] = []
    with pytest.raises(StoppedError):
        run_ranks(tmp_path / "hf", tmp_path / "out", workers=1, advance=stop_after(22, told))
    assert (early in told[:-1], late in told) == (True, False)

    streamed = run_ranks(tmp_path / "hf", tmp_path / "out", workers=1, resume=True)

    assert dict(streamed.overflowed) == {early: 2, late: 2}


RANKS_CHILD = (
    CHILD.replace("ft.layout", "trtllm.layout")
    .replace("ft.options", "trtllm.options")
    .replace("FtOptions", "TrtllmOptions")
    .replace('dtype="fp16"', 'dtype="float16"')
)


def test_killed_rank_files_are_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed three times while it streams 40 MB past the cache is resumed to what one run writes."""
    monkeypatch.setitem(globals(), "CHILD", RANKS_CHILD)
    sizes = Sizes(layers=3, heads=8, kv_heads=4, head_dim=64, ffn=2048, vocab=8191)
    weights = random_weights(llama_shapes(sizes), ["fp16"])
    save(tmp_path / "hf", llama_config(sizes), weights, shards=2)
    chance = random.Random(20261121)

    codes = [
        kill_during(tmp_path / "hf", tmp_path / "out", chance.randint(5, 12), chance.uniform(0, 0.02)) for _ in range(3)
    ]
    run_ranks(tmp_path / "hf", tmp_path / "out", resume=True)

    assert codes[0] == -9
    assert_ranks(tmp_path / "out", rank_files(sizes, weights, 2, 1, "fp16"))


# Memory of rank files


def peak_of_ranks(source: Path, output: Path, **given: Any) -> int:
    """Bytes Python and NumPy held at most while streaming rank files, beyond those before."""
    tracemalloc.start()
    try:
        run_ranks(source, output, **given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = {
    "embedding": Sizes(layers=1, heads=4, kv_heads=4, head_dim=32, ffn=128, vocab=150_000),
    "matrix": Sizes(layers=1, heads=8, kv_heads=8, head_dim=128, ffn=12_288, vocab=64),
}
"""Models whose largest tensor is most of the checkpoint: a table of 37 MiB, and matrices of 24 MiB."""


@pytest.mark.parametrize("recipe", [None, "w8a16", "w4a16"])
@pytest.mark.parametrize(("source", "target"), [("fp16", "fp16"), ("fp32", "bf16")])
@pytest.mark.parametrize("large", LARGE)
def test_memory_of_one_large_tensor_stays_below_what_the_plan_says(
    large: str, source: str, target: str, recipe: str | None, tmp_path: Path
) -> None:
    """Whichever tensor is large, however it is cast or packed: the plan's bytes, and 3 MiB for bookkeeping."""
    save(tmp_path / "hf", llama_config(LARGE[large]), random_weights(llama_shapes(LARGE[large]), [source]))
    plan = trtllm_plan(open_checkpoint(tmp_path / "hf"), tp=2, pp=1, dtype=target, recipe=recipe)

    peak = peak_of_ranks(
        *(tmp_path / "hf", tmp_path / "out"), dtype=target, recipe=recipe, workers=2, budget_bytes=1 << 40
    )

    assert peak <= plan.memory_bytes(2) + (3 << 20)


def test_a_large_table_passes_in_blocks(tmp_path: Path) -> None:
    """An embedding of 37 MiB takes less than 16 MiB, with one thread, on both ranks."""
    save(tmp_path / "hf", llama_config(LARGE["embedding"]), random_weights(llama_shapes(LARGE["embedding"]), ["fp16"]))

    assert peak_of_ranks(tmp_path / "hf", tmp_path / "out", workers=1) < 16 << 20
