"""What a serving package is derived from: an artifact, by its own manifest and files, or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from llmcompile.checkpoint.folder import auxiliary_files, contained
from llmcompile.errors import CheckpointError, Problem, UnsupportedError, collected
from llmcompile.packaging import manifest as records
from llmcompile.packaging.documents import json_value, section, whole
from llmcompile.packaging.target import Kind
from llmcompile.packaging.tree import Tree, from_folder
from llmcompile.writing import MANIFEST

ENGINE = "engine"
"""Folder of an engine; below it the engine itself, or encoder/ and decoder/."""
_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "float32": "fp32",
        "float16": "fp16",
        "bfloat16": "bf16",
        "fp32": "fp32",
        "fp16": "fp16",
        "bf16": "bf16",
        "f32": "fp32",
        "f16": "fp16",
    }
)
_REBUILD = "copy the artifact again from where it was built, or rebuild it"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact, as packages see it.

    Attributes:
        path: Its folder.
        kind: What it is.
        manifest: Its record; None for a Hugging Face folder.
        tree: Its files, all that it should have.
        sha256: Path -> hash, as recorded; empty for a Hugging Face folder.
        config: The model's config.json; empty where it carries none.
        model: Hub id or folder the model came from.
        commit: Commit of a hub id.
        tp: Tensor parallel degree; NeuronCores for Neuron; 1 for a Hugging Face folder that says nothing of it.
        pp: Pipeline stages.
        dtype: Element type it computes in: fp32, fp16 or bf16; None where nothing says so.
        task: What the model does, "text-generation" or a task of Neuron exports; None where nothing says so.
        batch_size: Sequences at once it was built for; None where it is not limited.
        sequence_length: Tokens of a sequence, prompt and answer, it was built for; None where it is not limited.
        input_length: Tokens of a prompt it was built for; None where only the sequence is limited.
        beam_width: Beams it was built for; None where there is no such limit.
        compiler: Version of TensorRT-LLM or neuronx-cc that made it; None where none did.
        quantization: Recipe, as the artifact names it; None for none.
        engine: config.json of a TensorRT-LLM engine, of the decoder where there are two; empty for others.
    """

    path: Path
    kind: Kind
    manifest: records.Manifest | None
    tree: Tree
    sha256: Mapping[str, str]
    config: Mapping[str, Any]
    model: str
    commit: str | None
    tp: int
    pp: int
    dtype: str | None
    task: str | None
    batch_size: int | None
    sequence_length: int | None
    input_length: int | None
    beam_width: int | None
    compiler: str | None
    quantization: str | None
    engine: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """`model_type` of config.json; empty where it says none."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def model_files(self) -> tuple[str, ...]:
        """Tokenizer, configuration and generation files at the root, which a server reads beside the weights."""
        return auxiliary_files([path for path in self.tree.files if "/" not in path and path != MANIFEST])

    @cached_property
    def engine_folders(self) -> tuple[str, ...]:
        """Folders with engines: engine, or engine/encoder and engine/decoder."""
        return tuple(
            str(PurePosixPath(path).parent)
            for path in self.tree.files
            if path.startswith(f"{ENGINE}/") and PurePosixPath(path).name == "config.json"
        )


def open_artifact(path: Path) -> Artifact:
    """Read what an artifact is: its manifest and small files, no weights.

    Raises:
        CheckpointError: It is neither an artifact nor a Hugging Face folder, or files are missing or of another size.
    """
    if not path.exists():
        hint = (
            "check the path; a model of the hub is downloaded first: huggingface-cli download ORG/NAME --local-dir DIR"
        )
        raise CheckpointError(str(path), "no such folder", "an artifact, or a Hugging Face folder", hint)
    tree = from_folder(path)
    if MANIFEST in tree.files:
        manifest = records.read_any(path / MANIFEST)
        if isinstance(manifest, records.PackageManifest):
            found = f"a package already, for {manifest.package.target}"
            raise CheckpointError(str(path), found, "an artifact", "package the artifact it was made from")
        if isinstance(manifest, records.ReportManifest):
            found = f"what llmcompile {manifest.report} found out"
            raise CheckpointError(
                str(path), found, "an artifact", "build the recipe you choose: llmcompile build trtllm"
            )
        return _of_ours(path, manifest, tree)
    if "config.json" not in tree.files:
        raise CheckpointError(
            str(path),
            f"neither {MANIFEST} nor config.json",
            "an artifact of llmcompile, or a Hugging Face folder",
            "check the path",
        )
    return _of_folder(path, tree)


_VLLM_ALGORITHMS = ("FP8", "NVFP4")
"""Of modelopt's recipes, those that every vLLM here loads.
Source: vllm-project/vllm@v0.9.0:vllm/model_executor/layers/quantization/modelopt.py (ModelOptFp8Config and its
neighbours)."""


def refuse_in_vllm(artifact: Artifact) -> None:
    """Refuse a recipe of modelopt's that vLLM does not load.

    Raises:
        UnsupportedError: It is such a one.
    """
    refuse_recipe_in_vllm(section(artifact.config, "quantization_config"), f"{artifact.path}/config.json: ")


def refuse_recipe_in_vllm(block: Mapping[str, Any], where: str = "") -> None:
    """The same of `quantization_config` alone.

    Args:
        block: The section.
        where: What to say before its name.

    Raises:
        UnsupportedError: It is such a one.
    """
    algorithm = block.get("quant_algo")
    if block.get("quant_method") == "modelopt" and algorithm not in (None, *_VLLM_ALGORITHMS):
        raise UnsupportedError(
            f"{where}quantization_config",
            f"{algorithm}, which vLLM does not load",
            " or ".join(_VLLM_ALGORITHMS),
            "llmcompile package triton, for TensorRT-LLM; or build it with --quantization fp8",
        )


def _of_ours(path: Path, manifest: records.Manifest, tree: Tree) -> Artifact:
    problems = []
    for record in manifest.files:
        size = tree.files.get(record.path)
        if size != record.bytes:
            found = "missing" if size is None else f"{size} bytes"
            problems.append(Problem(f"{path}/{record.path}", found, f"{record.bytes} bytes", _REBUILD))
    if len(problems) > 0:
        raise collected(CheckpointError, problems)
    for record in manifest.files:
        contained(path, record.path)
    listed = {record.path: record.sha256 for record in manifest.files}
    tree = Tree(tree.name, {name: size for name, size in tree.files.items() if name in listed}, tree.folders, tree.load)
    options = manifest.options
    engine = _engine(tree) if manifest.engine is not None else {}
    built = section(engine, "build_config") if "build_config" in engine else section(engine, "builder_config")
    pretrained = section(engine, "pretrained_config")
    neuron = manifest.neuron
    ranks = 1 if neuron is None else neuron.ranks
    dtype = pretrained.get("dtype", options.get("dtype"))
    if neuron is not None and neuron.via == "optimum":
        dtype = _optimum_dtype(tree, options)
    sequence = built.get("max_seq_len", options.get("longest" if manifest.rtx is not None else "sequence_length"))
    batch = built.get("max_batch_size", options.get("batch_size"))
    if manifest.rtx is not None:
        batch = int(str(batch).rpartition(",")[2])  # "1,4,16": the most
    parts = [whole(built.get(key)) for key in ("max_input_len", "max_output_len")]
    if sequence is None and None not in parts:
        sequence = sum(part for part in parts if part is not None)
    quantized = section(pretrained, "quantization").get("quant_algo", options.get("quantization"))
    kind = _kind(manifest)
    config = read_object(tree, "config.json") if "config.json" in tree.files else {}
    if kind == "hf":
        sequence = config.get("max_position_embeddings")
        quantized = section(config, "quantization_config").get("quant_method")
    return Artifact(
        path=path,
        kind=kind,
        manifest=manifest,
        tree=tree,
        sha256=listed,
        config=config,
        model=manifest.source.model,
        commit=manifest.source.commit,
        tp=_degree(pretrained, "tp_size", options.get("tp"), ranks),
        pp=_degree(pretrained, "pp_size", options.get("pp"), 1),
        dtype=_DTYPES.get(str(dtype).removeprefix("torch.")),
        task=_task(manifest),
        batch_size=whole(batch),
        sequence_length=whole(sequence),
        input_length=whole(built.get("max_input_len")),
        beam_width=whole(built.get("max_beam_width", options.get("num_beams"))),
        compiler=_compiler(manifest),
        quantization=None if quantized in (None, "none") else str(quantized),
        engine=engine,
    )


def _of_folder(path: Path, tree: Tree) -> Artifact:
    config = read_object(tree, "config.json")
    if tree.matching("*.safetensors") == () and tree.matching("*.bin") == ():
        raise CheckpointError(str(path), "config.json, and no weights", "*.safetensors or *.bin", "check the path")
    # Of what lies deeper only the modules of a sentence-transformers model: the rest are other formats of the weights.
    folders = {"", *_modules(tree)}
    own = {
        name: size
        for name, size in tree.files.items()
        if name.rpartition("/")[0] in folders and not name.startswith(".") and name != MANIFEST
    }
    for name in own:
        contained(path, name)
    dtype = config.get("torch_dtype", config.get("dtype"))
    method = section(config, "quantization_config").get("quant_method")
    return Artifact(
        path=path,
        kind="hf",
        manifest=None,
        tree=Tree(tree.name, own, frozenset(folders - {""}), tree.load),
        sha256={},
        config=config,
        model=path.resolve().name,
        commit=None,
        tp=1,
        pp=1,
        dtype=_DTYPES.get(str(dtype)),
        task=None,
        batch_size=None,
        sequence_length=whole(config.get("max_position_embeddings", config.get("n_positions"))),
        input_length=None,
        beam_width=None,
        compiler=None,
        quantization=None if method is None else str(method),
        engine={},
    )


def _modules(tree: Tree) -> tuple[str, ...]:
    """Folders that modules.json of a sentence-transformers model names, such as 1_Pooling."""
    if "modules.json" not in tree.files:
        return ()
    try:
        modules = json_value(tree.read("modules.json"))
        return tuple(str(module["path"]) for module in modules if module["path"] in tree.folders)
    except (ValueError, KeyError, TypeError):
        return ()


def _kind(manifest: records.Manifest) -> Kind:
    if manifest.backend == "ft":
        return "ft"
    if manifest.backend == "trtllm":
        if manifest.options.get("target") == "llmapi":
            return "hf"
        return "trtllm-checkpoint" if manifest.engine is None else "trtllm-engine"
    if manifest.rtx is not None:
        return "onnx" if manifest.rtx.status == "onnx" else "rtx-engine"
    assert manifest.neuron is not None
    if manifest.neuron.status == "lowered":
        return "neuron-lowered"
    layouts: Mapping[str, Kind] = {
        "optimum": "neuron-optimum",
        "sdk-2.16": "neuron-sdk-2.16",
        "lmi-split": "neuron-lmi-split",
        "lmi-cache": "neuron-lmi-cache",
        "nxd": "neuron-nxd",
    }
    return layouts[manifest.neuron.layout]


def _task(manifest: records.Manifest) -> str:
    if manifest.rtx is not None:
        return manifest.rtx.task
    return "text-generation" if manifest.neuron is None else manifest.neuron.task


def _optimum_dtype(tree: Tree, options: Mapping[str, Any]) -> object:
    """What optimum-neuron says it computes in: neuron_config.json of a decoder, config.json of the others."""
    if "neuron_config.json" in tree.files:
        stated = read_object(tree, "neuron_config.json").get("torch_dtype")
        if stated is not None:
            return stated
    if "config.json" in tree.files:
        stated = section(read_object(tree, "config.json"), "neuron").get("auto_cast_type")
        if stated is not None:
            return stated
    cast = options.get("auto_cast_type")
    return options.get("dtype") if cast is None else cast


def _compiler(manifest: records.Manifest) -> str | None:
    if manifest.engine is not None:
        return manifest.engine.tensorrt_llm
    if manifest.rtx is not None:
        return manifest.rtx.tensorrt_rtx
    return None if manifest.neuron is None else manifest.neuron.compiler


def _engine(tree: Tree) -> Mapping[str, Any]:
    """The engine's configuration; the decoder's where there is an encoder besides."""
    for path in (f"{ENGINE}/config.json", f"{ENGINE}/decoder/config.json", f"{ENGINE}/encoder/config.json"):
        if path in tree.files:
            return read_object(tree, path)
    raise CheckpointError(f"{tree.name}/{ENGINE}/config.json", "no such file", "an engine's config.json", _REBUILD)


def read_object(tree: Tree, path: str) -> Mapping[str, Any]:
    """The object in a JSON file that an artifact must have.

    Raises:
        CheckpointError: It holds none.
    """
    try:
        content = json_value(tree.read(path))
    except ValueError as error:
        raise CheckpointError(f"{tree.name}/{path}", f"not JSON: {error}", "a JSON object", _REBUILD) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{tree.name}/{path}", f"a JSON {type(content).__name__}", "a JSON object", _REBUILD)
    return content


def _degree(pretrained: Mapping[str, Any], key: str, option: object, otherwise: int) -> int:
    for value in (section(pretrained, "mapping").get(key), option):
        found = whole(value)
        if found is not None:
            return found
    return otherwise
