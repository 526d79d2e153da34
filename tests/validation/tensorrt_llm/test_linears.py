"""Packed linears, laid out here step by step as the vendor's preprocessor does, read back as the floats they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmcompile.errors import MismatchError
from llmcompile.validation.tensorrt_llm.linears import Quantization, fake_quantized, load_linear, read_quantization
from llmcompile.validation.tensorrt_llm.rank_files import RankFile

INP, OUT = 128, 64
ROWS = {
    8: [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15],
    4: [8 * c + 2 * a + r for a in range(4) for c in range(4) for r in range(2)],
}
WORDS = {8: [0, 2, 1, 3], 4: [0, 2, 4, 6, 1, 3, 5, 7]}


def integers(bits: int) -> np.ndarray[Any, Any]:
    """Signed values (in, out)."""
    bound = 2 ** (bits - 1)
    return np.random.default_rng(0).integers(-bound, bound, (INP, OUT))


def laid_out(values: np.ndarray[Any, Any], bits: int) -> torch.Tensor:
    """The five steps for SM 80: rows permuted, transposed, columns interleaved, words reordered, nibbles packed."""
    block = np.array(ROWS[bits])
    rows = np.concatenate([start + block for start in range(0, INP, len(block))])
    columns = values[rows].T
    group = 16 // bits
    tiles = columns.reshape(OUT // group, group, INP // 64, 64).swapaxes(1, 2).reshape(-1)
    offset = (tiles + 2 ** (bits - 1)).astype(np.uint8).reshape(-1, 32 // bits)[:, WORDS[bits]].reshape(-1)
    packed = offset if bits == 8 else offset[0::2] | offset[1::2] << 4
    return torch.from_numpy(packed.view(np.int8).reshape(INP, OUT * bits // 8).copy())


@pytest.mark.parametrize("bits", [8, 4])
def test_written_integers_are_read_back(bits: int, tmp_path: Path) -> None:
    """Integer times the scale of its output."""
    values, scales = integers(bits), torch.rand(OUT).half()
    tensors = {"mlp.fc.weight": laid_out(values, bits), "mlp.fc.per_channel_scale": scales}
    save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "rank0.safetensors")

    found = load_linear(
        RankFile(tmp_path / "rank0.safetensors"),
        "transformer.mlp.fc",
        out=OUT,
        inp=INP,
        dtype=torch.float16,
        quantization=Quantization(algo=f"W{bits}A16"),
        bias=False,
        activations=False,
        quantize=False,
    )

    assert torch.equal(found.weight, torch.from_numpy(values.T.copy()).float() * scales.float()[:, None])


@pytest.mark.parametrize(("algo", "bits"), [("W8A16", 8), ("W4A16", 4)])
def test_rounding_has_a_scale_for_each_output(algo: str, bits: int) -> None:
    """Integers come from the float32 scale, halves away from zero; the scale is rounded to the type."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).half()
    bound = 2 ** (bits - 1)

    found = fake_quantized(weight, algo, group_size=0, column_parts=1)

    for row, values in enumerate(weight.float().numpy()):
        scale = np.float32(np.abs(values).max() / bound)
        whole = np.clip(np.sign(values) * np.floor(np.abs(values / scale) + 0.5), -bound, bound - 1)
        np.testing.assert_array_equal(found[row].numpy(), (whole * np.float32(np.float16(scale))).astype(np.float32))


def test_parts_of_a_row_parallel_linear_have_scales_of_their_own() -> None:
    """Each rank quantizes its own columns."""
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(2)).half()

    found = fake_quantized(weight, "W8A16", group_size=0, column_parts=2)

    halves = [fake_quantized(half, "W8A16", group_size=0, column_parts=1) for half in weight.chunk(2, 1)]
    assert torch.equal(found, torch.cat(halves, 1))
    assert not torch.equal(found, fake_quantized(weight, "W8A16", group_size=0, column_parts=1))


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"quant_algo": "W5A16"}, "W5A16"),
        ({"quant_algo": "W8A16", "bits": 8}, "bits"),
        ({"quant_algo": "W4A16_GPTQ", "group_size": 0}, "group_size"),
        ({"quant_algo": None, "clamp_val": [1]}, "clamp_val"),
    ],
)
def test_a_quantization_block_nobody_knows_is_refused(block: dict[str, Any], word: str) -> None:
    """Unknown recipes and keys, and values of the wrong type."""
    with pytest.raises(MismatchError, match=word):
        read_quantization({"quantization": block})


# NVFP4

E2M1 = ml_dtypes.float4_e2m1fn


def test_nvfp4_is_read_as_ml_dtypes_means_it(tmp_path: Path) -> None:
    """All 256 bytes: the value of each nibble, the low one first, times the block's scale, times the second one."""
    packed = np.random.default_rng(3).permutation(np.arange(128 * 32) % 256).astype(np.uint8).reshape(128, 32)
    scales = np.random.default_rng(4).integers(0, 127, (128, 4)).astype(np.uint8)
    save_file(
        {
            "fc.weight": torch.from_numpy(packed),
            "fc.weights_scaling_factor": torch.from_numpy(scales).view(torch.float8_e4m3fn),
            "fc.weights_scaling_factor_2": torch.tensor([0.25]),
            "fc.activation_scaling_factor": torch.tensor([1.0]),
        },
        tmp_path / "rank0.safetensors",
    )

    found = load_linear(
        RankFile(tmp_path / "rank0.safetensors"),
        "fc",
        out=128,
        inp=64,
        dtype=torch.float16,
        quantization=Quantization(algo="NVFP4"),
        bias=False,
        activations=False,
        quantize=False,
    )

    nibbles = np.stack((packed & 15, packed >> 4), -1).reshape(128, 4, 16)
    steps = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.25)
    expected = nibbles.view(E2M1).astype(np.float32) * steps[..., None]
    np.testing.assert_array_equal(found.weight.numpy(), expected.reshape(128, 64))


def test_nvfp4_weights_are_rounded_as_ml_dtypes_does() -> None:
    """Ties, zeros, and blocks beyond both ends of float8, in blocks of 16 with the largest weight's second scale."""
    values = np.random.default_rng(5).integers(-24, 25, (8, 64)) / 4 * 2.0 ** np.arange(-14, 10, 3)[:, None]
    values[0, :16] = 0
    largest = np.float32(np.abs(values).max())

    found = fake_quantized(
        torch.from_numpy(values).bfloat16(), "NVFP4", group_size=16, column_parts=2, largest=float(largest)
    )

    second = largest / np.float32(6 * 448)
    blocks = values.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(8, 4, 16)
    steps = np.abs(blocks).max(-1, keepdims=True) / (6 * second)
    steps = np.clip(np.where(steps == 0, 1, steps), 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    rounded = np.clip(blocks / (steps * second), -6, 6).astype(E2M1).astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), (rounded * (steps * second)).reshape(8, 64))


def test_nvfp4_activations_have_a_scale_for_each_block(tmp_path: Path) -> None:
    """Max / 6 of 16 inputs in multiples of the stored scale, as float8; where that is 0, the block is zeros."""
    scale = 2.0**-4
    x = np.random.default_rng(6).normal(size=(3, 128)).astype(np.float32)
    x[0, :16] *= 2.0**-14
    x[1, :16] *= 1000
    identity = np.zeros((128, 64), np.uint8)
    identity[np.arange(128), np.arange(128) // 2] = np.where(np.arange(128) % 2 == 0, 0x02, 0x20)
    save_file(
        {
            "fc.weight": torch.from_numpy(identity),
            "fc.weights_scaling_factor": torch.ones(128, 8).to(torch.float8_e4m3fn),
            "fc.weights_scaling_factor_2": torch.tensor([1.0]),
            "fc.activation_scaling_factor": torch.tensor([scale]),
        },
        tmp_path / "rank0.safetensors",
    )

    linear = load_linear(
        RankFile(tmp_path / "rank0.safetensors"),
        "fc",
        out=128,
        inp=128,
        dtype=torch.float16,
        quantization=Quantization(algo="NVFP4"),
        bias=False,
        activations=True,
        quantize=False,
    )

    blocks = x.reshape(3, 8, 16)
    steps = np.clip(np.abs(blocks).max(-1, keepdims=True) / np.float32(6) / np.float32(scale), 0, 448)
    steps = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
    quotients = np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)
    expected = np.clip(quotients, -6, 6).astype(E2M1).astype(np.float32) * steps
    np.testing.assert_array_equal(linear(torch.from_numpy(x)).numpy(), expected.reshape(3, 128))
    assert expected[0, 0].tolist() == [0.0] * 16
    assert np.abs(expected[1, 0]).max() == 6 * 448 * scale


@pytest.mark.parametrize(("out", "inp"), [(48, 64), (32, 80)])
def test_nvfp4_of_sizes_no_kernel_takes_is_refused(out: int, inp: int, tmp_path: Path) -> None:
    """32 outputs by 32 inputs are the least, whatever the release."""
    save_file(
        {
            "fc.weight": torch.zeros(out, inp // 2, dtype=torch.uint8),
            "fc.weights_scaling_factor": torch.ones(out, inp // 16).to(torch.float8_e4m3fn),
            "fc.weights_scaling_factor_2": torch.tensor([1.0]),
            "fc.activation_scaling_factor": torch.tensor([1.0]),
        },
        tmp_path / "rank0.safetensors",
    )

    with pytest.raises(MismatchError, match="multiples of 32 and 32 for NVFP4"):
        load_linear(
            RankFile(tmp_path / "rank0.safetensors"),
            "fc",
            out=out,
            inp=inp,
            dtype=torch.float16,
            quantization=Quantization(algo="NVFP4"),
            bias=False,
            activations=False,
            quantize=False,
        )
