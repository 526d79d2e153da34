"""What a package knows of an artifact: its manifest and small files, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import serving_artifacts
from llmcompile.errors import CheckpointError
from llmcompile.packaging.artifact import open_artifact

Of = Callable[[str], Path]
TESTED_LIMITS = {
    "ft": ("fp16", 2, None, None),
    "trtllm-engine": ("fp16", 2, 4, 20),
    "trtllm-checkpoint": ("fp16", 2, None, None),
    "neuron-optimum": ("bf16", 2, 2, 16),
    "neuron-sdk-2.16": ("bf16", 2, 2, 16),
    "neuron-lmi-split": ("bf16", 2, 2, 16),
    "neuron-lmi-cache": ("bf16", 2, 2, 16),
    "neuron-nxd": ("bf16", 2, 2, 16),
    "neuron-lowered": ("fp32", 2, 2, 16),
    "rtx-engine": ("fp16", 1, 8, 16),
    "onnx": ("fp16", 1, 8, 16),
    "hf": ("fp32", 1, None, 20),
}
"""Kind -> element type, degree, sequences at once and tokens that serving_artifacts asks for."""


@pytest.mark.parametrize("kind", serving_artifacts.KINDS)
def test_every_kind_is_known_with_its_limits(artifact: Of, kind: str) -> None:
    """The kind, element type, degree, batch and sequence length are those it was made with."""
    found = open_artifact(artifact(kind))

    assert found.kind == kind
    assert (found.dtype, found.tp, found.batch_size, found.sequence_length) == TESTED_LIMITS[kind]


def test_an_engine_says_what_built_it_and_its_limits(artifact: Of) -> None:
    """TensorRT-LLM's version, prompt length and beams, from the engine's own config.json."""
    found = open_artifact(artifact("trtllm-engine"))

    assert (found.compiler, found.input_length, found.beam_width) == ("1.2.1", 12, 1)
    assert found.engine_folders == ("engine",)
    assert found.engine["pretrained_config"]["mapping"] == {"world_size": 2, "tp_size": 2, "pp_size": 1}


@pytest.mark.parametrize("kind", serving_artifacts.KINDS)
def test_the_models_own_files_are_carried(artifact: Of, kind: str) -> None:
    """Tokenizer and configuration, and never our manifest."""
    files = open_artifact(artifact(kind)).model_files

    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {*files}
    assert "llmcompile.json" not in files


@pytest.fixture
def copied(artifact: Of, tmp_path: Path) -> Path:
    """A FasterTransformer artifact that may be damaged."""
    return Path(shutil.copytree(artifact("ft"), tmp_path / "ft"))


def test_a_missing_file_is_named(copied: Path) -> None:
    """With the bytes it should have."""
    (copied / "2-gpu" / "config.ini").unlink()

    with pytest.raises(CheckpointError, match=r"config\.ini: missing; expected \d+ bytes"):
        open_artifact(copied)


def test_a_truncated_file_is_named(copied: Path) -> None:
    """Its size, and the size it should have."""
    path = copied / "2-gpu" / "model.wte.weight.bin"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match=r"model\.wte\.weight\.bin: 22527 bytes; expected 22528 bytes"):
        open_artifact(copied)


def test_files_that_are_not_of_the_artifact_are_not_packaged(copied: Path) -> None:
    """Only what the manifest lists is seen."""
    (copied / "notes.txt").write_text("mine")

    assert "notes.txt" not in open_artifact(copied).tree.files


def test_a_link_in_an_artifact_may_not_lead_out(copied: Path, tmp_path: Path) -> None:
    """A file exchanged for a link to something else is refused, whatever its size."""
    path = copied / "2-gpu" / "config.ini"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match="leaves"):
        open_artifact(copied)


def test_a_config_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    """100 000 brackets are JSON that no parser here follows to its end."""
    (tmp_path / "config.json").write_text("[" * 100_000)

    with pytest.raises(CheckpointError, match="nested too deeply"):
        open_artifact(tmp_path)


def test_modules_that_are_nested_too_deeply_are_none(tmp_path: Path) -> None:
    """What sentence-transformers would read is not needed by any server here."""
    for name, text in (("config.json", "{}"), ("model.safetensors", "0"), ("modules.json", "[" * 100_000)):
        (tmp_path / name).write_text(text)

    assert open_artifact(tmp_path).tree.folders == frozenset()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """config.json alone is no checkpoint."""
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match="no weights"):
        open_artifact(tmp_path)


def test_a_hub_id_is_no_folder() -> None:
    """Packages are made of folders: the hint says how to have one."""
    with pytest.raises(CheckpointError, match="org/name: no such folder") as raised:
        open_artifact(Path("org/name"))

    assert "--local-dir" in raised.value.problems[0].hint


def test_a_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    """Neither a manifest nor config.json."""
    with pytest.raises(CheckpointError, match=r"neither llmcompile\.json nor config\.json"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    """Nothing, a list, and half an object."""
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"config\.json: "):
        open_artifact(tmp_path)


def test_half_of_a_limit_is_no_limit(artifact: Of, tmp_path: Path) -> None:
    """An engine that says how long an answer may be, and not how long a prompt."""
    root = Path(shutil.copytree(artifact("trtllm-engine"), tmp_path / "engine"))
    path = root / "engine" / "config.json"
    path.write_text(json.dumps({"build_config": {"max_output_len": 4}}).ljust(path.stat().st_size))

    assert open_artifact(root).sequence_length is None


def test_a_hugging_face_folder_has_only_its_own_files(artifact: Of, tmp_path: Path) -> None:
    """What lies deeper, such as other formats of the same weights, is left out."""
    root = Path(shutil.copytree(artifact("hf"), tmp_path / "hf"))
    (root / "onnx").mkdir()
    (root / "onnx" / "model.onnx").write_bytes(b"x")

    assert not any("/" in path for path in open_artifact(root).tree.files)


def test_the_modules_of_a_sentence_transformer_belong_to_it(artifact: Of, tmp_path: Path) -> None:
    """Folders that modules.json names, and no others; one that is not there is not made up."""
    root = Path(shutil.copytree(artifact("hf"), tmp_path / "hf"))
    for folder in ("1_Pooling", "onnx"):
        (root / folder).mkdir()
        (root / folder / "config.json").write_text("{}")
    (root / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Absent"}]))

    assert [path for path in open_artifact(root).tree.files if "/" in path] == ["1_Pooling/config.json"]


@pytest.mark.parametrize("content", ["", "[{}]", '[{"path": {}}]', '{"path": "onnx"}', '[{"path": "../.."}]'])
def test_modules_that_say_nothing_add_nothing(content: str, artifact: Of, tmp_path: Path) -> None:
    """Not JSON, no path, a path that is none, no list, and one that leads out."""
    root = Path(shutil.copytree(artifact("hf"), tmp_path / "hf"))
    (root / "modules.json").write_text(content)

    assert not any("/" in path for path in open_artifact(root).tree.files)


def test_a_quantized_folder_says_by_what(artifact: Of, tmp_path: Path) -> None:
    """quant_method of config.json's quantization_config."""
    root = Path(shutil.copytree(artifact("hf"), tmp_path / "hf"))
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))

    assert open_artifact(root).quantization == "awq"
