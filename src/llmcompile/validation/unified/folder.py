"""Reads a unified checkpoint: what its two configurations say, which tensors its files hold, and what is amiss.

Source: nvidia-modelopt 0.47.0: modelopt/torch/export/unified_export_hf.py (export_hf_checkpoint);
NVIDIA/TensorRT-LLM@008e0af8:tensorrt_llm/_torch/model_config.py (_build_modelopt_quant_config).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmcompile.errors import MismatchError, Problem
from llmcompile.validation.checks import StoredWeights

AGAIN = "build the checkpoint again"
_INDEX, _QUANTIZED = "model.safetensors.index.json", "hf_quant_config.json"
_TYPES = ("float16", "bfloat16", "float32")
_YAML_CHARACTERS = 1 << 16
"""More than any list of arguments has."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a checkpoint says of its linear layers and of its cache.

    Attributes:
        algorithm: `quant_algo`; None for plain weights.
        cache: `kv_cache_quant_algo`, or None.
        group_size: Inputs that share a scale; None where none do.
        excluded: Modules that are not quantized.
        has_zero_point: As it is written; None where nothing is.
        pre_quant_scale: Likewise: whether inputs are multiplied by factors.
    """

    algorithm: str | None = None
    cache: str | None = None
    group_size: int | None = None
    excluded: frozenset[str] = frozenset()
    has_zero_point: object = None
    pre_quant_scale: object = None


@dataclass(frozen=True)
class Folder:
    """An opened checkpoint: headers and texts.

    Attributes:
        path: Its folder.
        config: config.json.
        quantization: What hf_quant_config.json says; the default without one.
        files: Its weight files.
    """

    path: Path
    config: Mapping[str, Any]
    quantization: Quantization
    files: tuple[Path, ...]

    @cached_property
    def weights(self) -> StoredWeights:
        """Its tensors, by name."""
        return StoredWeights(self.files)

    @property
    def dtype(self) -> str:
        """Element type of what is not quantized: float16, bfloat16 or float32."""
        return str(self.config.get("torch_dtype", self.config.get("dtype")))


def open_folder(path: Path) -> Folder:
    """Read the texts, and find the weight files and their headers.

    Raises:
        MismatchError: A text is not what it should be, or a file of weights is missing or none.
    """
    config = read_object(path / "config.json")
    quantized = path / _QUANTIZED
    quantization = _quantization(read_object(quantized)) if quantized.exists() else Quantization()
    files = tuple(_files(path))
    for file in files:
        _names(file)
    return Folder(path, config, quantization, files)


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        MismatchError: It is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MismatchError(str(path), f"unreadable: {error}", "a JSON object", AGAIN) from error
    if not isinstance(content, dict):
        raise MismatchError(str(path), f"a JSON {type(content).__name__}", "an object", AGAIN)
    return content


def _quantization(content: Mapping[str, Any]) -> Quantization:
    block = content.get("quantization")
    if not isinstance(block, dict):
        raise MismatchError("hf_quant_config.json: quantization", repr(block)[:60], "an object", AGAIN)
    excluded = block.get("exclude_modules", [])
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise MismatchError("hf_quant_config.json: exclude_modules", repr(excluded)[:60], "a list of names", AGAIN)
    for key, kind in (("quant_algo", str), ("kv_cache_quant_algo", str), ("group_size", int)):
        if block.get(key) is not None and not isinstance(block[key], kind):
            raise MismatchError(f"hf_quant_config.json: {key}", repr(block[key])[:60], f"a {kind.__name__}", AGAIN)
    size = block.get("group_size")
    if isinstance(size, bool) or (size is not None and size < 1):
        raise MismatchError("hf_quant_config.json: group_size", repr(size), "a whole number >= 1", AGAIN)
    return Quantization(
        algorithm=block.get("quant_algo"),
        cache=block.get("kv_cache_quant_algo"),
        group_size=block.get("group_size"),
        excluded=frozenset(excluded),
        has_zero_point=block.get("has_zero_point"),
        pre_quant_scale=block.get("pre_quant_scale"),
    )


def _files(path: Path) -> Iterator[Path]:
    index = path / _INDEX
    if not index.exists():
        single = path / "model.safetensors"
        if not single.is_file():
            raise MismatchError(str(single), "no such file", f"weights, or {_INDEX}", AGAIN)
        yield single
        return
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or len(weight_map) == 0:
        raise MismatchError(f"{_INDEX}: weight_map", repr(weight_map)[:60], "tensor -> file", AGAIN)
    for name in sorted({str(file) for file in weight_map.values()}):
        if "/" in name or not (path / name).is_file():
            raise MismatchError(f"{_INDEX}: {name}", "no such file", "a file beside it", AGAIN)
        yield path / name


def contradictions(folder: Folder, model_config: Mapping[str, Any]) -> Iterator[Problem]:
    """What the texts say that is not so, or that is about another model.

    Args:
        folder: The checkpoint.
        model_config: config.json of the model it was made from.
    """
    if folder.dtype not in _TYPES:
        yield Problem("config.json: torch_dtype", folder.dtype, " or ".join(_TYPES), AGAIN)
    own = {"torch_dtype", "dtype", "quantization_config", "architectures", "transformers_version"}
    for key in sorted({*folder.config, *model_config} - own):
        found, wanted = folder.config.get(key), model_config.get(key)
        if found != wanted:
            yield Problem(f"config.json: {key}", repr(found)[:60], f"{wanted!r:.60}, the model's", AGAIN)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(model_config.get("model_type")))
    classes = model_config.get("architectures") if kind is None else [kind]
    if folder.config.get("architectures") != classes:
        found = repr(folder.config.get("architectures"))[:60]
        yield Problem("config.json: architectures", found, f"{classes!r:.60}, which has the head", AGAIN)
    yield from _stated(folder)
    yield from _inline(folder)
    yield from _index(folder)
    yield from _arguments(folder)


_FLOATS = {"FP8": 8, "NVFP4": 4}
"""Recipe -> bits of its weights and inputs, both floats."""
_GROUPS = {"NVFP4": 16}
"""Recipe -> inputs that share a scale, where that is no choice."""


def _stated(folder: Folder) -> Iterator[Problem]:
    """Where hf_quant_config.json does not say what its recipe is: readers that go by the words lay weights out so."""
    path = folder.path / _QUANTIZED
    if not path.exists():
        return
    stated, grouped = folder.quantization, str(folder.quantization.algorithm).endswith("_AWQ")
    sized = stated.group_size is not None if grouped else stated.group_size == _GROUPS.get(str(stated.algorithm))
    if not sized:
        wanted = "inputs that share a scale" if grouped else str(_GROUPS.get(str(stated.algorithm)))
        yield Problem(f"{_QUANTIZED}: group_size", str(stated.group_size), wanted, AGAIN)
    for key, found, expected in (
        ("has_zero_point", stated.has_zero_point, False if grouped else None),
        ("pre_quant_scale", stated.pre_quant_scale, True if grouped else None),
        ("producer: name", _producer(read_object(path)), "modelopt"),
    ):
        if found is not expected and found != expected:
            yield Problem(f"{_QUANTIZED}: {key}", repr(found)[:60], repr(expected), AGAIN)


def _producer(content: Mapping[str, Any]) -> object:
    """Whose format it says it is: TensorRT-LLM takes any other name for another format."""
    producer = content.get("producer")
    return producer.get("name") if isinstance(producer, dict) else producer


def _groups(stated: Quantization) -> object:
    """`config_groups` in the words of compressed-tensors; None for a recipe that they have no words for."""
    bits = _FLOATS.get(str(stated.algorithm))
    if bits is None:
        return None
    of: dict[str, object] = {"dynamic": False, "num_bits": bits, "type": "float"}
    of |= {} if stated.group_size is None else {"group_size": stated.group_size}
    return {"group_0": {"input_activations": of, "weights": of, "targets": ["Linear"]}}


_DEGREES = {
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "moe_tensor_parallel_size": "moe_tp",
    "moe_expert_parallel_size": "moe_ep",
}
"""Arguments of the runtime -> options in the manifest."""


def _yaml(path: Path) -> object:
    """The value of a small YAML file without aliases, which could make it a large one."""
    expected = "arguments of tensorrt_llm.LLM"
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _YAML_CHARACTERS:
            raise MismatchError(path.name, f"{len(text)} characters", f"at most {_YAML_CHARACTERS}", AGAIN)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise MismatchError(path.name, "an alias", expected, AGAIN)
        return yaml.safe_load(text)
    # PyYAML's constructors of tagged scalars raise ValueError and its kin as they are.
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MismatchError(path.name, f"unreadable: {reason}", expected, AGAIN) from error


def _arguments(folder: Folder) -> Iterator[Problem]:
    """Where model.yaml, with which the folder is served, is about another: backend, degrees, type of the cache."""
    path, manifest = folder.path / "model.yaml", folder.path / "llmcompile.json"
    if not path.exists():
        return
    content = _yaml(path)
    if not isinstance(content, dict):
        raise MismatchError(path.name, f"a {type(content).__name__}", "arguments of tensorrt_llm.LLM", AGAIN)
    if content.get("backend") != "pytorch":
        yield Problem("model.yaml: backend", repr(content.get("backend"))[:60], "'pytorch'", AGAIN)
    options = read_object(manifest).get("options") if manifest.exists() else None
    known = options if isinstance(options, dict) else {}
    for key, option in _DEGREES.items():
        found, wanted = content.get(key), known.get(option)
        if key in content and wanted is not None and found != wanted:
            yield Problem(f"model.yaml: {key}", repr(found)[:60], f"{wanted!r:.60}, as in llmcompile.json", AGAIN)
        elif key in content and (not isinstance(found, int) or isinstance(found, bool) or found < 1):
            yield Problem(f"model.yaml: {key}", repr(found)[:60], "a whole number >= 1", AGAIN)
    cache = content.get("kv_cache_config")
    dtype = cache.get("dtype", "auto") if isinstance(cache, dict) else "auto" if cache is None else cache
    allowed = ["auto"] if folder.quantization.cache is None else ["auto", folder.quantization.cache.lower()]
    if dtype not in allowed:
        yield Problem("model.yaml: kv_cache_config: dtype", repr(dtype)[:60], " or ".join(allowed), AGAIN)


def _inline(folder: Folder) -> Iterator[Problem]:
    """Where config.json and hf_quant_config.json disagree: servers read the one or the other."""
    inline, stated = folder.config.get("quantization_config"), folder.quantization
    if inline is None and stated == Quantization():
        return
    subject = "config.json: quantization_config"
    if not isinstance(inline, dict):
        yield Problem(subject, repr(inline)[:60], "what hf_quant_config.json says", AGAIN)
        return
    ignored = inline.get("ignore", [])
    if not isinstance(ignored, list):
        yield Problem(f"{subject}: ignore", repr(ignored)[:60], "a list of names", AGAIN)
        return
    cache = inline.get("kv_cache_scheme")
    words = {"float8": "FP8"}.get(f"{cache.get('type')}{cache.get('num_bits')}") if isinstance(cache, dict) else None
    for key, found, wanted in (
        ("quant_method", inline.get("quant_method"), "modelopt"),
        ("producer: name", _producer(inline), "modelopt"),
        ("config_groups", inline.get("config_groups"), _groups(stated)),
        ("quant_algo", inline.get("quant_algo"), stated.algorithm),
        ("kv_cache_scheme", words, stated.cache),
        ("ignore", sorted(str(name) for name in ignored), sorted(stated.excluded)),
    ):
        if found != wanted:
            yield Problem(f"{subject}: {key}", f"{found!r:.80}", f"{wanted!r:.80}", AGAIN)


def _index(folder: Folder) -> Iterator[Problem]:
    """Where the index is not what the files hold."""
    index = folder.path / _INDEX
    if not index.exists():
        return
    listed = read_object(index)["weight_map"]
    held = {name: path.name for path in folder.files for name in _names(path)}
    for name in sorted({*listed, *held}):
        if listed.get(name) != held.get(name):
            found = "in no file" if name not in held else f"in {held[name]}"
            yield Problem(f"{_INDEX}: {name}", found, str(listed.get(name, "not there at all")), AGAIN)


def _names(path: Path) -> Sequence[str]:
    try:
        return list(StoredWeights([path]).names())
    except (SafetensorError, OSError) as error:
        raise MismatchError(path.name, str(error), "a safetensors file", AGAIN) from error
