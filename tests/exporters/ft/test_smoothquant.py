"""The int8 set is the vendor's arithmetic, and its scales are float32 whatever the weights are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BY_NAME
from llmcompile.errors import CheckpointError
from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.ft.smoothquant import ActivationRange, read_scales
from llmcompile.exporters.options import BuildOptions
from llmcompile.plan import make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

FOLDER = Path(__file__).parents[2] / "golden" / "ft" / "opt-int8" / "hf"
KINDS = {"fp32": np.float32, "fp16": np.float16}
SINGLE = {
    "attention.dense": ("self_attn.out_proj", 0),
    "mlp.dense_h_to_4h": ("fc1", 1),
    "mlp.dense_4h_to_h": ("fc2", 0),
}
"""File group -> its module, and the axis of the (in, out) matrix that is divided among the ranks."""
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")


def converted(*, tp: int, dtype: str) -> dict[str, bytes]:
    """Files of the golden OPT with its int8 set."""
    checkpoint = open_checkpoint(FOLDER)
    architecture = lookup(checkpoint.config)
    dims = architecture.dims(checkpoint.config)
    options = FtOptions(
        build=BuildOptions(model="hf", output=Path("out")), tp=tp, dtype=dtype, act_scales=FOLDER / "act_scales.json"
    )
    layout = make_layout(architecture, dims, options, source_dtype=BY_NAME[dtype], model_label="hf")
    plan = make_plan(
        architecture, dims, checkpoint.tensors, layout.rows, ranks=tp, dtype=layout.dtype, unused=layout.unused
    )
    with tempfile.TemporaryDirectory() as place:
        with WorkDirectory(Path(place) / "out", job={}, resume=False, force=False) as work:
            stream(
                plan,
                checkpoint.files,
                work,
                prefix="",
                budget_bytes=1 << 30,
                workers=2,
                advance=lambda size_bytes, tensor: None,
            )
        return {path.name: path.read_bytes() for path in work.path.iterdir()}


@pytest.fixture(scope="module", params=[("fp32", 1), ("fp32", 2), ("fp16", 1), ("fp16", 4)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[str, int, dict[str, bytes]]:
    """An element type, a number of ranks, and the files."""
    dtype, tp = request.param
    return dtype, tp, converted(tp=tp, dtype=dtype)


def weight(module: str, dtype: str) -> NDArray[Any]:
    """A module's weight, (in, out), cast to the artifact's type."""
    stored = load_file(FOLDER / "model.safetensors")
    name = next(name for name in stored if name.endswith(f"layers.0.{module}.weight"))
    return stored[name].float().numpy().T.astype(KINDS[dtype])


def ranges(module: str) -> tuple[float, float]:
    """Activation range of a module: input and output."""
    entry = json.loads((FOLDER / "act_scales.json").read_bytes())[f"model.decoder.layers.0.{module}"]
    return entry["input"], entry["output"]


def weight_scale(matrix: NDArray[Any]) -> Any:
    """127 over the largest absolute weight, in the weight's type."""
    return matrix.dtype.type(127) / np.abs(matrix).max()


def quantized(matrix: NDArray[Any]) -> NDArray[np.int8]:
    """Nearest of 255 steps, ties to even, in the weight's type."""
    return np.rint(matrix * weight_scale(matrix)).astype(np.int8)


@pytest.mark.parametrize("group", SINGLE)
def test_an_int8_weight_is_the_scaled_weight_rounded(group: str, case: tuple[str, int, dict[str, bytes]]) -> None:
    """Each rank has its block of round(W * 127 / max|W|), laid out as the float weight."""
    dtype, tp, files = case
    module, axis = SINGLE[group]
    blocks = np.split(quantized(weight(module, dtype)), tp, axis=axis)

    for rank, block in enumerate(blocks):
        assert files[f"model.layers.0.{group}.weight.int8.{rank}.bin"] == np.ascontiguousarray(block).tobytes()


def test_fused_weights_are_scaled_each_on_its_own(case: tuple[str, int, dict[str, bytes]]) -> None:
    """q, k and v have their own maximum and lie side by side as in the float file."""
    dtype, tp, files = case
    parts = np.stack([quantized(weight(module, dtype)) for module in MODULES[:3]], axis=1)

    for rank, block in enumerate(np.split(parts, tp, axis=2)):
        name = f"model.layers.0.attention.query_key_value.weight.int8.{rank}.bin"
        assert files[name] == np.ascontiguousarray(block).tobytes()


@pytest.mark.parametrize("group", SINGLE)
def test_scales_are_float32(group: str, case: tuple[str, int, dict[str, bytes]]) -> None:
    """Input, output and product scale are one float32 each, computed in float64 and cast at the end."""
    dtype, _, files = case
    module, _ = SINGLE[group]
    act_in, act_out = ranges(module)
    inter = (127 / act_out) / ((127 / act_in) * float(weight_scale(weight(module, dtype))))

    name = f"model.layers.0.{group}"
    assert np.frombuffer(files[f"{name}.scale.bin"], np.float32).tolist() == [np.float32(127 / act_in)]
    assert np.frombuffer(files[f"{name}.scale_out.bin"], np.float32) == pytest.approx([act_out / 127], rel=1e-7)
    assert np.frombuffer(files[f"{name}.scale_inter.bin"], np.float32) == pytest.approx([inter], rel=1e-7)


def test_fused_scales_are_one_float32_each_for_q_k_and_v(case: tuple[str, int, dict[str, bytes]]) -> None:
    """The fused input and output scales are three values, in the order q, k, v."""
    _, _, files = case
    inputs = [127 / ranges(module)[0] for module in MODULES[:3]]
    outputs = [ranges(module)[1] / 127 for module in MODULES[:3]]

    name = "model.layers.0.attention.query_key_value"
    assert np.frombuffer(files[f"{name}.scale.bin"], np.float32) == pytest.approx(inputs, rel=2e-7)
    assert np.frombuffer(files[f"{name}.scale_out.bin"], np.float32) == pytest.approx(outputs, rel=2e-7)


def test_the_fused_product_scale_is_repeated_over_a_ranks_columns(case: tuple[str, int, dict[str, bytes]]) -> None:
    """All ranks share one file of three constant rows, as wide as one rank's share of the hidden size."""
    dtype, tp, files = case
    expected = []
    for module in MODULES[:3]:
        act_in, act_out = ranges(module)
        expected.append((127 / act_out) / ((127 / act_in) * float(weight_scale(weight(module, dtype)))))

    found = np.frombuffer(files["model.layers.0.attention.query_key_value.scale_inter.bin"], np.float32)

    rows = found.reshape(3, 32 // tp)
    assert (rows == rows[:, :1]).all()
    assert rows[:, 0] == pytest.approx(expected, rel=2e-7)


def test_float_files_are_the_same_with_and_without_the_int8_set() -> None:
    """The int8 set is added beside the float files, which have the type that was asked."""
    files = converted(tp=2, dtype="fp16")

    assert files["model.layers.0.mlp.dense_4h_to_h.weight.1.bin"] == weight("fc2", "fp16")[32:].tobytes()


# Reading the scales


def scales_file(folder: Path, content: Any, suffix: str = "json") -> Path:
    """A file of activation scales."""
    path = folder / f"scales.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    return path


def entries(prefix: str = "model.decoder.", **changes: Any) -> dict[str, Any]:
    """Scales of one layer's modules."""
    table = {f"{prefix}layers.0.{module}": {"input": 1.5, "output": 2} for module in MODULES}
    return table | changes


@pytest.mark.parametrize("suffix", ["json", "pt"])
@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder.", ""])
def test_scales_are_read_from_json_and_pickles(prefix: str, suffix: str, tmp_path: Path) -> None:
    """Module names may have either of transformers' prefixes or none, and numbers may be whole."""
    found = read_scales(scales_file(tmp_path, entries(prefix), suffix), 1)

    assert dict(found) == {f"0.{module}": ActivationRange(1.5, 2.0) for module in MODULES}


def test_the_vendors_pickle_and_its_json_are_the_same_scales() -> None:
    """The file the vendor's converter was given reads as its JSON twin."""
    assert read_scales(FOLDER / "act_scales.pt", 1) == read_scales(FOLDER / "act_scales.json", 1)


def test_a_missing_module_is_a_checkpoint_error(tmp_path: Path) -> None:
    """Scales of a smaller model lack a layer, which is named."""
    path = scales_file(tmp_path, entries())

    with pytest.raises(CheckpointError, match=r"model\.decoder\.layers\.1\.self_attn\.q_proj in .*: absent"):
        read_scales(path, 2)


@pytest.mark.parametrize(
    "entry",
    [
        {"input": 0.0, "output": 1.0},
        {"input": -1.0, "output": 1.0},
        {"input": 1.0},
        {"input": "1", "output": 1.0},
        {"input": float("inf"), "output": 1.0},
        {"input": float("nan"), "output": 1.0},
    ],
)
def test_a_range_that_is_no_positive_number_is_a_checkpoint_error(entry: dict[str, Any], tmp_path: Path) -> None:
    """Zero, negative, absent, textual, infinite and undefined ranges are refused by module."""
    path = scales_file(tmp_path, entries() | {"model.decoder.layers.0.fc1": entry}, "pt")

    with pytest.raises(CheckpointError, match=r"layers\.0\.fc1 in .*: .*; expected positive input and output"):
        read_scales(path, 1)


@pytest.mark.parametrize("name", ["absent.json", "absent.pt", "damaged.json", "damaged.pt", "empty.pt"])
def test_a_file_that_cannot_be_read_is_a_checkpoint_error(name: str, tmp_path: Path) -> None:
    """Whatever is wrong with the file, it is named with the flag it came by."""
    if name.startswith("damaged"):
        (tmp_path / name).write_bytes(b"{not a file of scales")
    if name.startswith("empty"):
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(CheckpointError, match=name) as caught:
        read_scales(tmp_path / name, 1)

    assert caught.value.problems[0].hint == "check --act-scales"


def test_scales_that_are_no_dict_are_a_checkpoint_error(tmp_path: Path) -> None:
    """A list is told by its type."""
    with pytest.raises(CheckpointError, match="a list; expected a dict"):
        read_scales(scales_file(tmp_path, [1, 2]), 1)


def test_a_pickle_that_would_run_code_is_a_checkpoint_error(tmp_path: Path) -> None:
    """Nothing but plain data is unpickled."""
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pt"
    torch.save(Evil(marker), path)

    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        read_scales(path, 1)
    assert not marker.exists()


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)
