"""What nvidia-modelopt exports, name by name, JSON by JSON and, from the same figures, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import models
from llmcompile.dtypes import BF16, FP32
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.llmapi import encodings
from llmcompile.exporters.trtllm.llmapi.recipes import RECIPES
from llmcompile.plan import Encoding
from llmcompile.ranges import Measured
from llmcompile.transforms import Array

if TYPE_CHECKING:
    from conftest import Run

GOLDEN = Path(__file__).parents[2] / "golden" / "llmapi"
LAYOUTS: dict[str, Any] = json.loads((GOLDEN / "layouts.json").read_text())
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
"""As in make.py."""
OURS = {"fp8_kv": ("fp8", "--kv-cache", "fp8")}
LAYER = "model.layers.0.self_attn"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that modelopt exported."""
    folder = tmp_path_factory.mktemp("golden") / "model"
    models.save("llama_gqa", folder, dtype="bfloat16", config=SIZES)
    models.add_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in LAYOUTS if OURS.get(name, (name,))[0] in versions.RECIPES])
def test_names_types_shapes_and_json_are_modelopts(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    """Every tensor's name, type and shape, hf_quant_config.json and quantization_config are those of the export."""
    recipe, *more = OURS.get(name, (name,))
    group = ["--group-size", 64] if RECIPES[recipe].groups is None else []
    output = tmp_path / "output"
    asked = ("build", "trtllm", "-m", model, "--target", "llmapi", "--quantization", recipe, "--no-validate")
    result = run(*asked, *group, *more, output)
    assert result.code == 0, result.err

    with safe_open(output / "model.safetensors", framework="pt") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 -- no dict
    golden = LAYOUTS[name]
    shapes = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in found.items()}
    assert shapes == golden["tensors"]
    assert json.loads((output / "hf_quant_config.json").read_text()) == golden["hf_quant_config"]
    assert json.loads((output / "config.json").read_text())["quantization_config"] == golden["quantization_config"]


def source(name: str) -> Tensor:
    """A parameter of the model, in bfloat16."""
    built = models.build("llama_gqa", dtype="bfloat16", config=SIZES)
    return dict(built.named_parameters())[name].detach()


def encoded(encoding: Encoding, weight: Tensor) -> list[Array]:
    """What an encoder makes of a matrix, all rows at once."""
    asides = [] if encoding.columns is None else [encoding.columns]
    encoder = encoding.start(BF16, asides)
    block = weight.contiguous().view(torch.int16).numpy().view(BF16.bits)
    return [encoder.encode(block, 0), *encoder.rest()]


def as_bytes(value: Tensor) -> bytes:
    """The bytes of a tensor, scalars too."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def of(value: Tensor) -> Array:
    """The bytes of a tensor, as numbers."""
    return value.contiguous().view(torch.uint8).numpy()


def steps(packed: Tensor, recipe: str) -> Tensor:
    """Numbers whose neighbours are one apart: the magnitude bits of float8, or two signed integers of each byte."""
    if recipe == "fp8":
        return (packed & 127).to(torch.int16) * torch.where(packed > 127, -1, 1)
    both = torch.stack((packed & 15, packed >> 4)).to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def measured(tensors: dict[str, Tensor], name: str, second: str, steps: float) -> Measured:
    """The figures modelopt's scales say; the largest weight is a bfloat16 where no factors divide it."""
    inputs, weights = (tensors[f"{name}.{ending}"] * steps for ending in ("input_scale", second))
    if f"{name}.pre_quant_scale" not in tensors:
        weights = weights.to(torch.bfloat16)
    columns = tensors.get(f"{name}.pre_quant_scale")
    return Measured(float(inputs), float(weights), None if columns is None else columns.float().numpy())


FROM_FIGURES: dict[str, Callable[[dict[str, Tensor], str], Encoding]] = {
    "fp8": lambda tensors, name: encodings.fp8(measured(tensors, name, "weight_scale", 448)),
    "fp8_rowwise": lambda tensors, name: encodings.fp8_rowwise(),
    "w8a16": lambda tensors, name: encodings.int8(),
    "nvfp4": lambda tensors, name: encodings.nvfp4(measured(tensors, name, "weight_scale_2", 448 * 6)),
    "int4_awq": lambda tensors, name: encodings.awq(
        Measured(1.0, 1.0, tensors[f"{name}.pre_quant_scale"].float().numpy()),
        64,
        kept=True,
        activations=False,
        searched=True,
    ),
    "w4a8_awq": lambda tensors, name: encodings.awq(
        measured(tensors, name, "weight_scale_2", 448), 64, kept=True, activations=True, searched=True
    ),
}


@pytest.mark.parametrize("recipe", FROM_FIGURES)
def test_the_same_figures_give_modelopts_bytes(recipe: str) -> None:
    """Fed the largest input and weight that modelopt found, o_proj and its scales are its bytes."""
    name, prefix = f"{LAYER}.o_proj", f"{recipe}/"
    golden = load_file(GOLDEN / "tensors.safetensors")
    tensors = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    encoding = FROM_FIGURES[recipe](tensors, name)
    weight = source(f"{name}.weight")

    made = encoded(encoding, weight)

    specs = encoding.tensors(f"{name}.weight", tuple(weight.shape), BF16)
    assert {spec.name for spec in specs} == {key for key in tensors if key.startswith(name)}
    for spec, array in zip(specs, made, strict=True):
        wanted = tensors[spec.name]
        assert spec.shape == tuple(wanted.shape)
        if spec.dtype == FP32:
            rounded = spec.name.endswith("weight_scale") and "awq" in recipe
            np.testing.assert_allclose(array.reshape(-1), wanted.reshape(-1).numpy(), rtol=2**-7 if rounded else 2e-7)
        elif spec.name.endswith("o_proj.weight") and recipe in ("fp8", "int4_awq", "w4a8_awq"):
            # modelopt divides weights in bfloat16 and rounds them again: some fall on the other side.
            found, there = (steps(torch.from_numpy(values), recipe) for values in (array.view(np.uint8), of(wanted)))
            off = (found.reshape(-1) - there.reshape(-1)).abs()
            assert int(off.max()) <= 1
            assert float((off > 0).float().mean()) < 0.05
        else:
            assert np.ascontiguousarray(array).tobytes() == as_bytes(wanted), spec.name


def test_a_norm_takes_the_factors_of_the_layers_behind_it_as_modelopt_has_it() -> None:
    """Its weight is multiplied by the factors in float32 and rounded once."""
    golden = load_file(GOLDEN / "tensors.safetensors")["int4_awq/model.layers.0.input_layernorm.weight"]
    own = source("model.layers.0.input_layernorm.weight")
    factors = torch.linspace(0.5, 2.0, 64).to(torch.bfloat16).float()

    (made,) = encoded(encodings.scaled(Measured(1.0, 1.0, factors.numpy())), own)

    wanted = (own.float() * factors).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(made.view(np.int16)).view(torch.bfloat16), wanted)
    assert golden.shape == own.shape
    assert bool((golden.float() / own.float() > 0).all())
