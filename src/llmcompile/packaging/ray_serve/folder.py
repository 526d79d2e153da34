"""A Hugging Face folder as a package: what vLLM reads of it, and the LLMConfig that serves it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from llmcompile.errors import CheckpointError, OptionsError, Problem, collected
from llmcompile.packaging.artifact import Artifact, refuse_in_vllm
from llmcompile.packaging.ray_serve import RayServeOptions
from llmcompile.packaging.ray_serve import config as configs
from llmcompile.packaging.ray_serve.engine_args import LENGTH_KEYS, LOAD_FORMATS, STREAMING, UNSCALED
from llmcompile.packaging.ray_serve.engine_args import VERSION as KNOWN_VLLM
from llmcompile.packaging.ray_serve.releases import VLLM
from llmcompile.packaging.target import Package, Request

_SMALL_BYTES = 1 << 20


def package(artifact: Artifact, options: RayServeOptions, request: Request) -> Package:
    """The files and what to say about them; see `llmcompile.packaging.ray_serve.plan`."""
    release = request.version
    if "architectures" not in artifact.config:
        raise CheckpointError(
            f"{artifact.path}/config.json", "no architectures", "the model's class", "save it with save_pretrained"
        )
    refuse_in_vllm(artifact)
    configs.check_sources(options)
    model_id = configs.check_model_id(options.model_id or _model_id(artifact.path), "--model-id")
    bucket = None if options.bucket_uri is None else configs.checked_bucket(options.bucket_uri, release)
    accelerator = None
    if options.accelerator_type is not None:
        accelerator = configs.checked_accelerator(options.accelerator_type, release)
    source: object = {"bucket_uri": bucket}
    if bucket is None:
        default = f"/models/{configs.file_name(model_id)}"
        source = default if options.model_source is None else configs.checked_path(options.model_source)
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": model_id, "model_source": source},
        "llm_engine": "vLLM",
        "engine_kwargs": _engine_kwargs(artifact, options, release, bucket),
    }
    if accelerator is not None:
        config["accelerator_type"] = accelerator
    config["deployment_config"] = {"autoscaling_config": configs.replicas(options, 1, 1, release, None)}
    if options.max_ongoing_requests is not None:
        config["deployment_config"]["max_ongoing_requests"] = options.max_ongoing_requests
    folder = "model" if bucket is None else "mirror"
    texts = configs.files(config, release)
    if bucket is not None:
        texts[f"{folder}/hash"] = f"{_hash(artifact)}\n"
    return Package(
        texts=texts,
        links={f"{folder}/{path}": path for path in _files(artifact, options)},
        last=() if bucket is None else (f"{folder}/hash",),
        runtime=request.runtime_version or VLLM[release][2:],
        notes=(
            *configs.accelerator_notes(accelerator),
            *(() if bucket is None else configs.bucket_notes(bucket, release)),
            *configs.request_notes(config, release),
            *_notes(artifact, options, source),
        ),
        next=configs.commands(release, bucket),
    )


def _model_id(path: Path) -> str:
    """org/name, where the folder is called org--name, or is a snapshot of the hub's cache."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return path.name.replace("--", "/", 1)


def _engine_kwargs(artifact: Artifact, options: RayServeOptions, release: str, bucket: str | None) -> dict[str, Any]:
    tp = 1 if options.tp is None else options.tp
    pp = 1 if options.pp is None else options.pp
    made: dict[str, Any] = {"tensor_parallel_size": tp}
    _check_split(artifact.config, tp, pp)
    if pp > 1:
        made["pipeline_parallel_size"] = pp
    if options.max_model_len is not None:
        longest = model_length(artifact.config, _tokenizer_config(artifact))
        if longest is not None and options.max_model_len > longest:
            hint = f"add --max-model-len {longest}, or leave it out"
            raise OptionsError("--max-model-len", str(options.max_model_len), f"at most {longest} of the model", hint)
        made["max_model_len"] = options.max_model_len
    if options.dtype is not None:
        made["dtype"] = options.dtype
    if options.load_format is not None:
        made["load_format"] = _load_format(artifact, options.load_format, release, bucket)
    if options.trust_remote_code:
        made["trust_remote_code"] = True
    return made


def _check_split(config: Mapping[str, Any], tp: int, pp: int) -> None:
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    heads = _first(text, ("num_attention_heads", "n_head", "num_heads"))
    if heads is not None and heads % tp != 0:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise OptionsError("--tp", f"{heads} heads / {tp} = {heads / tp:.3g}", "a whole number", f"one of {fitting}")
    layers = _first(text, ("num_hidden_layers", "n_layer", "num_layers"))
    if layers is not None and pp > layers:
        raise OptionsError("--pp", f"{pp} stages for {layers} layers", "at least one layer each", f"--pp {layers}")


def _load_format(artifact: Artifact, asked: str, release: str, bucket: str | None) -> str:
    if VLLM[release] == f"=={KNOWN_VLLM}" and asked not in LOAD_FORMATS:
        hint = "leave --load-format out for auto"
        raise OptionsError("--load-format", asked, f"one of {', '.join(LOAD_FORMATS)} in vLLM {KNOWN_VLLM}", hint)
    if asked == "sharded_state" and artifact.tree.matching("model-rank-*.safetensors") == ():
        found = f"no model-rank-*.safetensors in {artifact.path}"
        raise OptionsError("--load-format sharded_state", found, "a shard per rank", "save it with vLLM's own script")
    if asked in STREAMING and bucket is None:
        found = "the model comes from a path"
        raise OptionsError(f"--load-format {asked}", found, "a bucket to stream from", "add --bucket-uri, or drop it")
    return asked


def model_length(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    """Tokens a sequence of the model may have, as vLLM derives it; None where nothing says so.

    Source: `_get_and_verify_max_len` of vllm-project/vllm@v0.29.0:vllm/config/model.py.
    """
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    lengths = [text[key] for key in LENGTH_KEYS if _is_count(text.get(key))]
    if _is_count(text.get("model_max_length")):
        lengths = [text["model_max_length"]]
    if len(lengths) == 0:
        return None
    longest: float = min(lengths)
    limit = tokenizer.get("model_max_length")
    if isinstance(limit, (int, float)) and 0 < limit < math.inf:
        longest = min(longest, limit)
    scaling = text.get("rope_parameters") or text.get("rope_scaling")
    if isinstance(scaling, dict) and "gemma3" not in str(text.get("model_type", "")):
        kind = scaling.get("rope_type", scaling.get("type"))
        factor = scaling.get("factor")
        if kind not in UNSCALED and isinstance(factor, (int, float)) and math.isfinite(factor):
            original = scaling.get("original_max_position_embeddings")
            longest = (original if kind == "yarn" and _is_count(original) else longest) * factor
    return int(longest)


def _tokenizer_config(artifact: Artifact) -> Mapping[str, Any]:
    path = "tokenizer_config.json"
    if path not in artifact.tree.files:
        return {}
    content = _json(artifact, path)
    return content if isinstance(content, dict) else {}


def _json(artifact: Artifact, path: str) -> object:
    try:
        return json.loads(artifact.tree.read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{artifact.path}/{path}", "not JSON", "a JSON object", "download it again") from error


def _files(artifact: Artifact, options: RayServeOptions) -> tuple[str, ...]:
    """Configuration, tokenizer and the one set of weights that vLLM would choose."""
    weights, indexes = _weights(artifact, options)
    return tuple(sorted({*artifact.model_files, *weights, *indexes}))


def _weights(artifact: Artifact, options: RayServeOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    tree = artifact.tree
    for suffix, index in (("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")):
        found = tree.matching(f"*.{suffix}")
        if suffix == "safetensors" and options.load_format in ("pt", "npcache"):
            continue
        if options.load_format in ("mistral", "sharded_state"):
            first = "consolidated" if options.load_format == "mistral" else "model-rank-"
            found, index = tree.matching(f"{first}*.safetensors"), "consolidated.safetensors.index.json"
        elif index in tree.files:
            _check_index(artifact, index)
            found = tuple(sorted(set(_weight_map(artifact, index).values())))
        else:
            kept = tuple(path for path in found if not path.startswith(("consolidated", "training_args")))
            found = found if len(kept) == 0 else kept
        if len(found) > 0:
            return found, (index,) if index in tree.files else ()
    hint = "leave --load-format out, or download the rest of the checkpoint"
    raise CheckpointError(str(artifact.path), f"no weights for --load-format {options.load_format}", hint=hint)


def _weight_map(artifact: Artifact, index: str) -> Mapping[str, str]:
    content = _json(artifact, index)
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{artifact.path}/{index}", "no weight_map", "tensor -> file", "download it again")
    return found


def _check_index(artifact: Artifact, index: str) -> None:
    missing = sorted(set(_weight_map(artifact, index).values()) - set(artifact.tree.files))
    if len(missing) > 0:
        hint = "download the rest of the checkpoint"
        problems = [Problem(f"{artifact.path}/{name}", "no such file", f"a shard of {index}", hint) for name in missing]
        raise collected(CheckpointError, problems)


def _hash(artifact: Artifact) -> str:
    """The commit of a snapshot, or 40 digits that change with the small files and the sizes of the large ones."""
    for name in (artifact.commit or "", artifact.path.resolve().name):
        if re.fullmatch(r"[0-9a-f]{40}", name) is not None:
            return name
    digest = hashlib.sha256()
    for path, size in sorted(artifact.tree.files.items()):
        content = hashlib.sha256(artifact.tree.read(path)).hexdigest() if size <= _SMALL_BYTES else ""
        digest.update(f"{path}\0{size}\0{content}\n".encode())
    return digest.hexdigest()[:40]


def _notes(artifact: Artifact, options: RayServeOptions, source: object) -> tuple[str, ...]:
    notes = []
    if isinstance(source, str):
        notes.append(f"The folder model/ must be at {source} on every node; --model-source says where else.")
    if artifact.dtype == "fp32" and options.dtype is None:
        notes.append("vLLM serves a float32 model in float16 unless it is told --dtype float32.")
    if "auto_map" in artifact.config and not options.trust_remote_code:
        notes.append("config.json names code of its own, which vLLM runs only with --trust-remote-code.")
    return tuple(notes)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    found = (config.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)
