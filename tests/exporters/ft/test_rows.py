"""The files of every family are those of FasterTransformer's own converters, byte for byte."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BY_NAME
from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.plan import make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

GOLDEN = Path(__file__).parents[2] / "golden" / "ft"
EXPECTATIONS = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob("*/expected-*.json"))
QUIRKS = {
    "bloom-b/expected-tp2.json": ("model.lm_head.weight.bin",),
    "gptneox-b/expected-tp2.json": (
        "model.layers.*.attention.dense.bias.bin",
        "model.layers.*.mlp.dense_4h_to_h.bias.bin",
    ),
}
"""Expectations that hold a mistake of the vendor's converter -> the files it is in, by tests/golden/ft/README.md."""


def convert(source: Path, *, tp: int, dtype: str, **options: Any) -> dict[str, bytes]:
    """The files llmcompile makes of a checkpoint, without config.ini."""
    checkpoint = open_checkpoint(source)
    architecture = lookup(checkpoint.config)
    dims = architecture.dims(checkpoint.config)
    asked = FtOptions(build=BuildOptions(model="hf", output=Path("out")), tp=tp, dtype=dtype, **options)
    layout = make_layout(architecture, dims, asked, source_dtype=BY_NAME[dtype], model_label="hf")
    plan = make_plan(
        architecture, dims, checkpoint.tensors, layout.rows, ranks=tp, dtype=layout.dtype, unused=layout.unused
    )
    assert (layout.refusals, plan.problems) == ((), ())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        with WorkDirectory(output, job={}, resume=False, force=False) as work:
            stream(
                plan,
                checkpoint.files,
                work,
                prefix=layout.folder,
                budget_bytes=1 << 30,
                workers=2,
                advance=lambda size_bytes, tensor: None,
            )
            work.publish()
        assert [path.name for path in output.iterdir()] == [f"{tp}-gpu"]
        return {path.name: path.read_bytes() for path in (output / f"{tp}-gpu").iterdir()}


def digests(files: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each file."""
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


@cache
def golden(name: str) -> dict[str, Any]:
    """What the vendor's converter made, by the name of the expectation."""
    expectation: dict[str, Any] = json.loads((GOLDEN / name).read_bytes())
    return expectation


@cache
def converted(name: str) -> dict[str, tuple[int, str]]:
    """What llmcompile makes of the same checkpoint with the same options."""
    expectation = golden(name)
    scales = (GOLDEN / name).parent / "hf" / "act_scales.pt" if "-act_scale" in expectation["command"] else None
    return digests(
        convert(
            (GOLDEN / name).parent / "hf",
            tp=expectation["tensor_parallel"],
            dtype=expectation["weight_data_type"],
            act_scales=scales,
        )
    )


def vendors(name: str) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each of the vendor's files."""
    return {file: (entry["bytes"], entry["sha256"]) for file, entry in golden(name)["files"].items()}


def is_quirk(name: str, file: str) -> bool:
    """Whether the vendor's converter is known to write this file wrong."""
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in QUIRKS.get(name, ()))


def test_all_expectations_are_there() -> None:
    """Every variant of the golden set has its expectations, so that none is skipped by an empty folder."""
    assert {name.split("/")[0] for name in EXPECTATIONS} == {path.name for path in GOLDEN.iterdir() if path.is_dir()}
    assert len(EXPECTATIONS) >= 43


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_files_equal_the_vendors_byte_for_byte(name: str) -> None:
    """The same files by name, size and sha256, but for those the vendor's converter is known to write wrong."""
    found = {file: entry for file, entry in converted(name).items() if not is_quirk(name, file)}

    expected = {file: entry for file, entry in vendors(name).items() if not is_quirk(name, file)}
    assert found == expected


@pytest.mark.parametrize("name", QUIRKS)
def test_files_the_vendor_writes_wrong_differ(name: str) -> None:
    """Each documented mistake is really in the golden files and not in ours."""
    files = [file for file in vendors(name) if is_quirk(name, file)]

    assert len(files) > 0
    assert all(converted(name).get(file) != vendors(name)[file] for file in files)


def hf(variant: str) -> dict[str, NDArray[Any]]:
    """The float32 weights of a golden variant's checkpoint."""
    folder = GOLDEN / variant / "hf"
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
    else:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def test_a_tied_bloom_that_repeats_its_head_has_no_head_file() -> None:
    """Without the file FasterTransformer's loader reads wte, which is what tied means."""
    assert "model.lm_head.weight.bin" not in converted("bloom-b/expected-tp2.json")


def test_biases_of_a_sequential_gpt_neox_are_whole() -> None:
    """Without the parallel residual every rank adds the bias after the all-reduce, so it is not divided."""
    weights = hf("gptneox-b")

    files = convert(GOLDEN / "gptneox-b" / "hf", tp=2, dtype="fp32")

    for file, tensor in (("attention.dense", "attention.dense"), ("mlp.dense_4h_to_h", "mlp.dense_4h_to_h")):
        expected = weights[f"gpt_neox.layers.1.{tensor}.bias"].tobytes()
        assert files[f"model.layers.1.{file}.bias.bin"] == expected


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_shared_biases_of_a_parallel_gpt_neox_are_rounded_in_the_vendors_order(dtype: str, tmp_path: Path) -> None:
    """Over three ranks each bias is rounded, divided, rounded, then added and rounded once more."""
    kind = {"fp16": np.float16, "fp32": np.float32}[dtype]
    h, layer = 12, "gpt_neox.layers.0."
    shapes = {
        "gpt_neox.embed_in.weight": (5, h),
        f"{layer}input_layernorm.weight": (h,),
        f"{layer}input_layernorm.bias": (h,),
        f"{layer}post_attention_layernorm.weight": (h,),
        f"{layer}post_attention_layernorm.bias": (h,),
        f"{layer}attention.query_key_value.weight": (3 * h, h),
        f"{layer}attention.query_key_value.bias": (3 * h,),
        f"{layer}attention.dense.weight": (h, h),
        f"{layer}attention.dense.bias": (h,),
        f"{layer}mlp.dense_h_to_4h.weight": (6, h),
        f"{layer}mlp.dense_h_to_4h.bias": (6,),
        f"{layer}mlp.dense_4h_to_h.weight": (h, 6),
        f"{layer}mlp.dense_4h_to_h.bias": (h,),
        "gpt_neox.final_layer_norm.weight": (h,),
        "gpt_neox.final_layer_norm.bias": (h,),
        "embed_out.weight": (5, h),
    }
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": 5,
        "max_position_embeddings": 8,
        "hidden_size": h,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 6,
        "rotary_pct": 0.5,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    biases = [weights[f"{layer}{name}.bias"].numpy().astype(kind) for name in ("attention.dense", "mlp.dense_4h_to_h")]
    shared = [(bias.astype(np.float32) / np.float32(3)).astype(kind) for bias in biases]
    total = (shared[0].astype(np.float32) + shared[1].astype(np.float32)).astype(kind)

    files = convert(tmp_path, tp=3, dtype=dtype)

    assert files["model.layers.0.attention.dense.bias.bin"] == shared[0].tobytes()
    assert files["model.layers.0.mlp.dense_4h_to_h.bias.bin"] == shared[1].tobytes()
    assert files["model.layers.0.mlp.attention.bias.sum.bin"] == total.tobytes()


def with_config(variant: str, folder: Path, **changes: Any) -> Path:
    """A copy of a golden variant's checkpoint with another config.json."""
    shutil.copytree(GOLDEN / variant / "hf", folder)
    config = json.loads((folder / "config.json").read_bytes()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_tied_llama_gets_its_head_from_the_embedding(tmp_path: Path) -> None:
    """The loader needs the head's file, so it is written, although the vendor's converter leaves it out."""
    folder = with_config("llama-a", tmp_path / "hf", tie_word_embeddings=True)

    files = convert(folder, tp=1, dtype="fp16")

    assert files["model.lm_head.weight.bin"] == files["model.wte.weight.bin"]
    assert digests(files)["model.wte.weight.bin"] == vendors("llama-a/expected-tp1.json")["model.wte.weight.bin"]


def test_a_gpt2_whose_head_is_not_tied_keeps_it(tmp_path: Path) -> None:
    """The head is written as (vocab, hidden), although the vendor's converter drops it."""
    folder = with_config("gpt2-a", tmp_path / "hf", tie_word_embeddings=False)
    weights = {name: torch.from_numpy(array.copy()) for name, array in hf("gpt2-a").items()}
    head = torch.randn(weights["transformer.wte.weight"].shape, generator=torch.Generator().manual_seed(5))
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors")

    files = convert(folder, tp=2, dtype="fp32")

    assert files["model.lm_head.weight.bin"] == head.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_gptj_can_be_written_in_half_types(dtype: str) -> None:
    """Every file is the vendor's fp32 file rounded, which its loader reads though its converter cannot write it."""
    kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    folder = GOLDEN / "gptj-a" / "hf"

    wide = convert(folder, tp=2, dtype="fp32")
    narrow = convert(folder, tp=2, dtype=dtype)

    assert digests(wide) == vendors("gptj-a/expected-tp2.json")
    assert narrow == {name: np.frombuffer(content, np.float32).astype(kind).tobytes() for name, content in wide.items()}


def test_the_encoder_alone_is_the_encoder_part_of_t5() -> None:
    """--encoder-only writes the vendor's files of encoder and embedding, and no others."""
    expected = {
        file: entry
        for file, entry in vendors("t5-a/expected-tp2.json").items()
        if file.startswith(("encoder.", "shared."))
    }

    files = convert(GOLDEN / "t5-a" / "hf", tp=2, dtype="fp32", encoder_only=True)

    assert digests(files) == expected


def test_files_do_not_depend_on_the_pipeline_degree() -> None:
    """Layer numbers are global, so two pipeline stages read the files of one."""
    folder = GOLDEN / "gpt2-a" / "hf"

    assert convert(folder, tp=2, dtype="fp32", pp=2) == convert(folder, tp=2, dtype="fp32", pp=1)


def test_sources_in_pickles_and_safetensors_give_the_same_files(tmp_path: Path) -> None:
    """How the checkpoint is stored does not show in the artifact."""
    weights = {name: torch.from_numpy(array) for name, array in hf("llama-a").items()}
    for folder, suffix in ((tmp_path / "a", "model.safetensors"), (tmp_path / "b", "pytorch_model.bin")):
        folder.mkdir()
        shutil.copy(GOLDEN / "llama-a" / "hf" / "config.json", folder)
        (save_file if suffix.endswith("safetensors") else torch.save)(weights, folder / suffix)

    assert convert(tmp_path / "a", tp=2, dtype="fp16") == convert(tmp_path / "b", tp=2, dtype="fp16")
