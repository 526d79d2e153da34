"""The limits hold for what they allow for, and not for what they are meant to catch."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llmcompile.validation.compare import compare, scale
from llmcompile.validation.reference import Reference, fixed_tokens, run_reference
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

LAYERS = 6
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=128, n_layer=LAYERS, n_head=4, n_positions=32),
    "llama": transformers.LlamaConfig(
        vocab_size=300, hidden_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=352
    ),
    "bert": transformers.BertConfig(
        vocab_size=300, hidden_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=512
    ),
}
AUTO = {
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModel,
}


class _Tensors:
    """A model's parameters, as a checkpoint."""

    def __init__(self, model: Any) -> None:
        self.tensors: dict[str, Tensor] = dict(model.state_dict())

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def made(name: str, directory: Path) -> _Tensors:
    """Make a model with its default initialisation; its config is in `directory`."""
    torch.manual_seed(0)
    model = AUTO[name].from_config(CONFIGS[name])
    model.config.save_pretrained(directory)
    return _Tensors(model)


def ran(directory: Path, weights: _Tensors, rounded_to: torch.dtype | None = None) -> Reference:
    """Run the reference on two rows of sixteen tokens."""
    tokens = fixed_tokens(300, batch=2, sequence=16)
    return run_reference(
        directory, weights, tokens=tokens, decoder_tokens=None, encoder_only=False, rounded_to=rounded_to
    )


def passes(expected: Reference, found: Reference, dtype: Dtype, **arguments: Any) -> bool:
    """Whether the outputs are within the limits of an artifact of this dtype."""
    limits = {
        name: tolerance(dtype, layers=LAYERS, scale=scale(output), approximate=False, **arguments)
        for name, output in expected.outputs.items()
    }
    return compare(expected.outputs, found.outputs, limits).passed


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "rounded_to"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounded_weights_are_within_the_limit_of_their_dtype_only(
    name: str, dtype: Dtype, rounded_to: torch.dtype, tmp_path: Path
) -> None:
    """What rounding to 16 bits does is allowed for at that dtype, with a factor to spare, and not at fp32."""
    weights = made(name, tmp_path)
    full = ran(tmp_path, weights)

    rounded = ran(tmp_path, weights, rounded_to)

    assert passes(full, rounded, dtype)
    assert not passes(full, rounded, "fp32")
    assert not passes(full, rounded, dtype, reference_rounded=True)
    limit = tolerance(dtype, layers=LAYERS, scale=1.0, approximate=False).atol
    for key, output in full.outputs.items():
        error = float((output - rounded.outputs[key]).abs().max()) / scale(output)
        assert 3 * error < limit < 80 * error


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_exchanged_projections_are_beyond_every_limit(dtype: Dtype, tmp_path: Path) -> None:
    """An artifact with query and value of one layer out of six exchanged fails at each dtype."""
    weights = made("llama", tmp_path)
    weights.tensors["model.embed_tokens.weight"].mul_(50)  # so that attention has something to tell apart
    full = ran(tmp_path, weights)
    query, value = (f"model.layers.0.self_attn.{part}_proj.weight" for part in ("q", "v"))
    weights.tensors[query], weights.tensors[value] = weights.tensors[value], weights.tensors[query]

    assert not passes(full, ran(tmp_path, weights), dtype)


def test_tanh_gelu_is_allowed_for_only_when_said(tmp_path: Path) -> None:
    """GELU by its tanh formula is within the limit of an approximating fp32 runtime, beyond a faithful one's."""
    weights = made("bert", tmp_path)
    for name, tensor in weights.tensors.items():
        if "intermediate" in name:
            tensor.mul_(6)  # so that GELU sees inputs of about 1.5, as in a trained model
    full = ran(tmp_path, weights)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu_new"}))
    found = ran(tmp_path, weights)
    name = "last_hidden_state"

    faithful, approximating = (
        tolerance("fp32", layers=LAYERS, scale=scale(full.outputs[name]), approximate=approximate)
        for approximate in (False, True)
    )

    assert not compare(full.outputs, found.outputs, {name: faithful}).passed
    assert compare(full.outputs, found.outputs, {name: approximating}).passed


def test_the_formula_by_hand() -> None:
    """The limit of a 16-layer fp16 artifact is the sum of its sources, times the scale."""
    found = tolerance("fp16", layers=16, scale=10.0, approximate=True)

    assert found.atol == pytest.approx(10.0 * (256 * 4 * 2**-24 + 12 * 2**-11 + 4e-3), rel=1e-12)
    assert found.rtol == 2 * 2**-11
    assert found.reason == (
        "allows for fp32 arithmetic (23 mantissa bits) through 16 layers, weights rounded to fp16 (10 mantissa bits), "
        "GELU by its tanh formula instead of erf, in outputs as large as 10"
    )


def test_half_arithmetic_by_hand() -> None:
    """A runtime that computes in bf16 has the limit of bf16 arithmetic, rounded reference or not."""
    rounded = tolerance("bf16", layers=4, scale=1.0, approximate=False, arithmetic="bf16", reference_rounded=True)
    full = tolerance("bf16", layers=4, scale=1.0, approximate=False, arithmetic="bf16")

    assert rounded.atol == pytest.approx(14 * 2**-8)
    assert full.atol == pytest.approx(24 * 2**-8)
    assert "weights rounded" not in rounded.reason


def test_fewer_bits_more_layers_and_larger_outputs_widen_the_limit() -> None:
    """The limit grows from fp32 to fp16 to bf16, with depth, and in proportion to the scale."""
    by_dtype = [tolerance(dtype, layers=12, scale=1.0, approximate=False).atol for dtype in ("fp32", "fp16", "bf16")]

    assert by_dtype == sorted(by_dtype)
    assert by_dtype[0] < 1e-4
    assert by_dtype[2] < 0.05
    deep = tolerance("fp16", layers=96, scale=1.0, approximate=False).atol
    assert by_dtype[1] < deep < 2 * by_dtype[1]
    assert tolerance("fp16", layers=12, scale=8.0, approximate=False).atol == pytest.approx(8 * by_dtype[1])


def test_limits_given_by_the_user() -> None:
    """A given limit replaces the derived one exactly, zero included, and the reason says whose it is."""
    both = tolerance("bf16", layers=12, scale=5.0, approximate=True, atol=0.0, rtol=0.5)
    one = tolerance("bf16", layers=12, scale=5.0, approximate=False, atol=0.25)
    derived = tolerance("bf16", layers=12, scale=5.0, approximate=False)

    assert both == Tolerance(atol=0.0, rtol=0.5, reason="given by --atol and --rtol")
    assert (one.atol, one.rtol) == (0.25, derived.rtol)
    assert one.reason.startswith("given by --atol; the rest allows for")
    relative = tolerance("bf16", layers=12, scale=5.0, approximate=False, rtol=0.0)
    assert (relative.atol, relative.rtol) == (derived.atol, 0.0)
    assert relative.reason.startswith("given by --rtol")


@pytest.mark.parametrize(
    ("layers", "size", "atol"), [(0, 1.0, None), (1, -1.0, None), (1, float("inf"), None), (1, 1.0, -1.0)]
)
def test_senseless_arguments_are_refused(layers: int, size: float, atol: float | None) -> None:
    """No layers, a scale that is negative or infinite, and a negative limit are mistakes of the caller."""
    with pytest.raises(ValueError, match="at least"):
        tolerance("fp32", layers=layers, scale=size, approximate=False, atol=atol)
