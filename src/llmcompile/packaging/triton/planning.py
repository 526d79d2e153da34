"""Makes a model repository for Triton of an artifact."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError, OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact, read_object
from llmcompile.packaging.documents import section, whole
from llmcompile.packaging.target import KINDS, Foreseen, Kind, Package, Request, flags
from llmcompile.packaging.triton import engine, ensemble, fastertransformer, llmapi
from llmcompile.packaging.triton.generations import GENERATIONS, generation_of, has
from llmcompile.packaging.triton.pbtxt import Message, render

if TYPE_CHECKING:
    from llmcompile.packaging.triton import TritonOptions

_ENGINE: tuple[Kind, ...] = ("trtllm-engine",)
_CHECKPOINT: tuple[Kind, ...] = ("hf",)
_APPLIES: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "ensemble": _ENGINE,
        "bls": _ENGINE,
        "model_py": (*_ENGINE, *_CHECKPOINT),
        "max_batch_size": (*_ENGINE, *_CHECKPOINT, "ft"),
        "max_beam_width": _ENGINE,
        "kv_cache_free_gpu_mem_fraction": (*_ENGINE, *_CHECKPOINT),
        "enable_kv_cache_reuse": _ENGINE,
        "batch_scheduler_policy": _ENGINE,
        "exclude_input_in_output": _ENGINE,
        "max_queue_delay_microseconds": _ENGINE,
        "max_queue_size": _ENGINE,
        "gpu_ids": (*_ENGINE, *_CHECKPOINT),
        "tensor_parallel": _CHECKPOINT,
        "pipeline_parallel": _CHECKPOINT,
    }
)
"""Option -> the kinds it says something of, for those that do not fit every kind."""
_GPUS = re.compile(r"[0-9]+(,[0-9]+)*(;[0-9]+(,[0-9]+)*)*")
_VERSION = "1"
_TOKENIZER = f"{ensemble.BEFORE}/{_VERSION}/tokenizer"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_SOURCES = MappingProxyType(
    {
        "inflight_batcher_llm": ("", "inflight_batcher_llm", "all_models/inflight_batcher_llm"),
        "llmapi": ("", "llmapi", "all_models/llmapi"),
    }
)
"""Folder of all_models/ -> where it may be below what --model-py names, before triton_backend/ is tried."""
_MAX_PY_BYTES = 4 << 20


def plan(artifact: Artifact, options: TritonOptions, request: Request) -> Package:
    """Make the repository.

    Raises:
        OptionsError: An option contradicts the artifact, or says nothing of its kind.
        UnsupportedError: This release cannot serve it.
        CheckpointError: Files of it, or of --model-py, are missing.
    """
    mount = _mount(options.mount_path)
    _check_use(artifact.kind, options)
    planners = {"trtllm-engine": _engine, "ft": _fastertransformer, "hf": _llmapi}
    return planners[artifact.kind](artifact, options, request, mount)


def foresee(foreseen: Foreseen, options: TritonOptions) -> None:
    """Raise what `plan` would, as far as it is known before the artifact is built.

    Raises:
        OptionsError: An option says nothing of this kind, or --model-py is missing.
        CheckpointError: --model-py has no such code.
    """
    _mount(options.mount_path)
    _check_use(foreseen.kind, options)
    if foreseen.kind == "hf":
        _model_py(options, [llmapi.NAME], "llmapi", str(foreseen.runtime))
    elif options.ensemble or options.bls:
        _model_py(options, [ensemble.BEFORE, ensemble.AFTER], "inflight_batcher_llm", str(foreseen.runtime))


def _check_use(kind: Kind, options: TritonOptions) -> None:
    for field in fields(options):
        kinds = _APPLIES.get(field.name)
        if kinds is not None and kind not in kinds and getattr(options, field.name) != field.default:
            given = _flag(options, field.name)
            what = f"of no use for {KINDS[kind]}"
            raise OptionsError(given, what, " or ".join(KINDS[kind] for kind in kinds), f"leave out {given}")


def _flag(options: TritonOptions, name: str) -> str:
    return flags(type(options))[name].names[0]


def _mount(path: str) -> str:
    """The folder of the repository on the server.

    Raises:
        OptionsError: It is not absolute, or would not stand in a configuration as it is.
    """
    plain = path.rstrip("/")
    if not plain.startswith("/") or not path.isprintable() or ".." in plain.split("/") or "//" in plain:
        raise OptionsError("--mount-path", repr(path), "an absolute path below /", "add --mount-path /models")
    return plain


def _engine(artifact: Artifact, options: TritonOptions, request: Request, mount: str) -> Package:
    generation = _generation(artifact, request)
    folders = {folder: f"{engine.NAME}/{_VERSION}{folder.removeprefix('engine')}" for folder in artifact.engine_folders}
    configs = {folder: read_object(artifact.tree, f"{folder}/config.json") for folder in folders}
    links = dict(_engine_files(artifact, folders))
    encoder = next((to for folder, to in folders.items() if folder.endswith("/encoder")), None)
    decoder = next((to for folder, to in folders.items() if not folder.endswith("/encoder")), None)
    batch = _at_most("--max-batch-size", options.max_batch_size, _built(configs, "max_batch_size", artifact.batch_size))
    logits = _logits_dtype(artifact, generation)
    instances = _instances(options, artifact.tp * artifact.pp)
    main = engine.engine_config(
        generation=generation,
        max_batch_size=batch,
        gpt_model_path=None if decoder is None else f"{mount}/{decoder}",
        encoder_model_path=None if encoder is None else f"{mount}/{encoder}",
        decoupled=options.streaming,
        logits_dtype=logits,
        instances=instances,
        max_queue_delay_microseconds=options.max_queue_delay_microseconds,
        max_queue_size=options.max_queue_size,
        parameters=_parameters(artifact, options, generation, both=encoder is not None and decoder is not None),
    )
    models = {engine.NAME: main}
    if options.ensemble or options.bls:
        if decoder is None:
            found = "an encoder without its decoder, which makes no text"
            raise OptionsError(
                "--ensemble" if options.ensemble else "--bls", found, "an engine that does", "leave it out"
            )
        models |= _around(artifact, options, generation, batch, logits, mount, f"{mount}/{decoder}")
        links |= _tokenizer_files(artifact)
    texts = {f"{name}/config.pbtxt": render(message) for name, message in models.items()}
    if options.ensemble or options.bls:
        needed = [name for name in models if name not in (engine.NAME, ensemble.ENSEMBLE)]
        texts |= _model_py(options, needed, "inflight_batcher_llm", str(artifact.compiler))
    return Package(
        texts=texts,
        links=links,
        # Triton wants a version of the ensemble too, though nothing is in it.
        folders=(f"{ensemble.ENSEMBLE}/{_VERSION}",) if options.ensemble else (),
        runtime=artifact.compiler,
        notes=tuple(_engine_notes(artifact, options, generation)),
        next=(_start(mount, artifact.tp * artifact.pp * instances),),
    )


def _generation(artifact: Artifact, request: Request) -> str:
    """The generation of the templates, which must be that of the engine.

    Raises:
        UnsupportedError: The engine's version has no backend for Triton that is known here.
        OptionsError: The server would have another version.
    """
    built = artifact.compiler if artifact.compiler is not None else "of no known version"
    own = generation_of(built)
    if request.runtime_version is not None and generation_of(request.runtime_version) != own:
        expected = f"{built}, by which the engine was built: it loads in that alone"
        raise OptionsError(
            "--runtime-version", request.runtime_version, expected, "serve with that version, or build the engine again"
        )
    if own is None:
        raise UnsupportedError(
            str(artifact.path),
            f"an engine of TensorRT-LLM {built}",
            f"one of {GENERATIONS[-1]} to {GENERATIONS[0]}",
            "build the engine again: llmcompile build trtllm",
        )
    if request.version != own and request.runtime_version is None:
        raise OptionsError(
            "--target-version",
            f"{request.version}, whose image has TensorRT-LLM {request.version}",
            f"{own}: the engine was built by TensorRT-LLM {built} and loads in that alone",
            f"leave out --target-version, or add --runtime-version {built} if the image has it",
        )
    return request.version


def _engine_files(artifact: Artifact, folders: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Path in the package, path in the artifact.

    Raises:
        CheckpointError: A rank is missing.
    """
    ranks = artifact.tp * artifact.pp
    for folder, to in folders.items():
        for name in ("config.json", *(f"rank{rank}.engine" for rank in range(ranks))):
            source = f"{folder}/{name}"
            if source not in artifact.tree.files:
                raise CheckpointError(
                    f"{artifact.path}/{source}",
                    "no such file",
                    f"tp {artifact.tp} x pp {artifact.pp} = {ranks} engines",
                    "build the engine again: llmcompile build trtllm",
                )
            yield f"{to}/{name}", source


def _built(configs: Mapping[str, Mapping[str, Any]], key: str, otherwise: int | None) -> int | None:
    """The least of what the encoder and the decoder were built for."""
    found = [whole(section(config, "build_config").get(key)) for config in configs.values()]
    return min((number for number in found if number is not None), default=otherwise)


def _at_most(given: str, asked: int | None, built: int | None) -> int:
    """What was asked for, or all that was built.

    Raises:
        OptionsError: More is asked for than was built.
    """
    if asked is not None and built is not None and asked > built:
        raise OptionsError(
            given, str(asked), f"at most {built}, for which the engine was built", f"add {given} {built}"
        )
    return asked if asked is not None else built if built is not None else 1


def _logits_dtype(artifact: Artifact, generation: str) -> str:
    """Type of the engine's logits.

    Raises:
        UnsupportedError: The backend cannot return them, and they were built in to be returned.
    """
    stored = str(artifact.engine.get("pretrained_config", {}).get("logits_dtype", "float32"))
    named = {"float32": "fp32", "float16": "fp16"}.get(stored)
    gathered = _gathered(artifact)
    if gathered != [] and (named is None or (named == "fp16" and not has(generation, "0.17"))):
        raise UnsupportedError(
            str(artifact.path),
            f"an engine with {gathered[0]} and logits of {stored}",
            "logits of float32, all that the backend returns" + ("" if named is None else " before 0.17"),
            "build the engine with --logits-dtype float32, or without gathering logits",
        )
    return "fp32" if named is None or not has(generation, "0.17") else named


def _gathered(artifact: Artifact) -> list[str]:
    build = artifact.engine.get("build_config", {})
    return [key for key in ("gather_context_logits", "gather_generation_logits") if build.get(key) is True]


def _parameters(artifact: Artifact, options: TritonOptions, generation: str, *, both: bool) -> dict[str, str]:
    """Parameters of the backend that are not its defaults.

    Raises:
        OptionsError: An option contradicts the engine.
    """
    beams = _at_most("--max-beam-width", options.max_beam_width, artifact.beam_width)
    made = {"max_beam_width": str(beams)}
    paged = artifact.engine.get("build_config", {}).get("plugin_config", {}).get("use_paged_context_fmha") is True
    if options.enable_kv_cache_reuse and not paged:
        raise OptionsError(
            "--enable-kv-cache-reuse",
            "the engine was built without use_paged_context_fmha",
            "an engine that finds the blocks of another request's prompt",
            "build it with --use-paged-context-fmha enable, or leave the flag out",
        )
    if options.enable_kv_cache_reuse:
        made["enable_kv_cache_reuse"] = "true"
    elif has(generation, "0.19") and not paged:
        # Since 0.19 reuse is the default, which such an engine cannot do.
        made["enable_kv_cache_reuse"] = "false"
    if options.kv_cache_free_gpu_mem_fraction is not None:
        made["kv_cache_free_gpu_mem_fraction"] = _fraction(options.kv_cache_free_gpu_mem_fraction)
    if both and has(generation, "0.14"):
        made["cross_kv_cache_fraction"] = "0.5"
    if options.batch_scheduler_policy is not None:
        made["batch_scheduler_policy"] = options.batch_scheduler_policy
    if options.exclude_input_in_output:
        made["exclude_input_in_output"] = "true"
    if options.gpu_ids is not None:
        made["gpu_device_ids"] = options.gpu_ids
    return made


def _fraction(value: float) -> str:
    if not 0 < value <= 1:
        given = "--kv-cache-free-gpu-mem-fraction"
        raise OptionsError(given, str(value), "more than 0 and at most 1", f"add {given} 0.9")
    return repr(value)


def _instances(options: TritonOptions, ranks: int) -> int:
    """How many times the model is loaded: as many as --gpu-ids has groups.

    Raises:
        OptionsError: --gpu-ids does not give each instance a GPU for each rank, or is missing.
    """
    if options.gpu_ids is None:
        if options.instances not in (None, 1):
            words = ";".join(",".join(str(n * ranks + rank) for rank in range(ranks)) for n in range(options.instances))
            found = f"{options.instances} instances and no --gpu-ids"
            raise OptionsError("--instances", found, "the GPUs of each instance", f'add --gpu-ids "{words}"')
        return 1
    if _GPUS.fullmatch(options.gpu_ids) is None:
        raise OptionsError("--gpu-ids", options.gpu_ids, 'numbers like "0,1;2,3"', "commas in an instance, ; between")
    groups = [group.split(",") for group in options.gpu_ids.split(";")]
    count = len(groups) if options.instances is None else options.instances
    wrong = [",".join(group) for group in groups if len(group) != ranks]
    every = [number for group in groups for number in group]
    if wrong != [] or len(groups) != count or len(set(every)) != len(every):
        found = f"{options.gpu_ids}: {len(groups)} groups of {', '.join(str(len(group)) for group in groups)}"
        expected = f"{count} groups of tp x pp = {ranks} GPUs, each GPU once"
        raise OptionsError("--gpu-ids", found, expected, "correct --gpu-ids or --instances")
    return count


def _around(
    artifact: Artifact, options: TritonOptions, generation: str, batch: int, logits: str, mount: str, path: str
) -> dict[str, Message]:
    """The models around the engine."""
    tokenizer = f"{mount}/{_TOKENIZER}"
    models = {
        ensemble.BEFORE: ensemble.preprocessing_config(
            generation=generation, max_batch_size=batch, tokenizer=tokenizer, engine=path
        ),
        ensemble.AFTER: ensemble.postprocessing_config(
            generation=generation, max_batch_size=batch, tokenizer=tokenizer, logits_dtype=logits
        ),
    }
    if options.ensemble:
        models[ensemble.ENSEMBLE] = ensemble.ensemble_config(
            generation=generation, max_batch_size=batch, logits_dtype=logits
        )
    if options.bls:
        models[ensemble.BLS] = ensemble.bls_config(
            generation=generation, max_batch_size=batch, decoupled=options.streaming, logits_dtype=logits
        )
    return models


def _tokenizer_files(artifact: Artifact) -> dict[str, str]:
    """The tokenizer, beside preprocessing's model.py.

    Raises:
        CheckpointError: The artifact has none.
    """
    if not any(name in _TOKENIZERS for name in artifact.model_files):
        raise CheckpointError(
            str(artifact.path),
            f"no tokenizer among {', '.join(artifact.model_files)}",
            f"one of {', '.join(_TOKENIZERS)}",
            "copy the model's tokenizer before the artifact is built, or leave out --ensemble and --bls",
        )
    return {f"{_TOKENIZER}/{name}": name for name in artifact.model_files}


def _model_py(options: TritonOptions, models: list[str], family: str, version: str) -> dict[str, str]:
    """Code of the models that run in Python, from the folder the user names: it is NVIDIA's, and under its licence.

    Raises:
        OptionsError: --model-py is missing.
        CheckpointError: It has no such code.
    """
    moved = family == "llmapi" or has(generation_of(version) or "1.2", "0.20")
    home = "NVIDIA/TensorRT-LLM" if moved else "triton-inference-server/tensorrtllm_backend"
    clone = f"git clone --depth 1 --branch v{version} https://github.com/{home}"
    if options.model_py is None:
        raise OptionsError(
            "--model-py",
            f"not given, and the code of {', '.join(models)} is NVIDIA's, not ours to give",
            f"the folder all_models/{family} of {home}, which is /app/all_models/{family} in its image",
            f"{clone}\nThen add --model-py {home.rpartition('/')[2]}",
        )
    root = Path(options.model_py)
    if not root.exists():
        hint = f"{clone} {shlex.quote(options.model_py)}"
        raise CheckpointError(options.model_py, "no such folder", f"all_models/{family} of {home}", hint)
    bases = [root / prefix / base for prefix in ("", "triton_backend") for base in _SOURCES[family]]
    base = next((base for base in bases if (base / models[0] / _VERSION / "model.py").is_file()), None)
    if base is None:
        raise CheckpointError(
            options.model_py, f"no {models[0]}/1/model.py", f"all_models/{family} of the backend", "check --model-py"
        )
    return dict(item for model in models for item in _python_files(base, model))


def _python_files(base: Path, model: str) -> Iterator[tuple[str, str]]:
    home = base / model / _VERSION
    paths = sorted(home.rglob("*.py"))
    if home / "model.py" not in paths:
        raise CheckpointError(str(home / "model.py"), "no such file", "the model's code", "check --model-py")
    for path in paths:
        try:
            content = path.read_bytes() if path.stat().st_size <= _MAX_PY_BYTES else b"\xff"
            yield path.relative_to(base).as_posix(), content.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(str(path), f"cannot be read: {error}", "Python code", "check --model-py") from error


def _engine_notes(artifact: Artifact, options: TritonOptions, generation: str) -> Iterator[str]:
    yield f"The engine loads in TensorRT-LLM {artifact.compiler} alone: take the image that has it."
    if not (options.ensemble or options.bls):
        yield "It takes and gives token ids: the client has the tokenizer."
    else:
        yield "The code of the Python models is NVIDIA's, as --model-py had it."
    if generation != generation_of(str(artifact.compiler)):
        yield f"The configuration is that of {generation}, as asked, and not of the engine's version."


def _start(mount: str, processes: int) -> str:
    return (
        f'docker run --rm --gpus all --shm-size 2g -v "$(realpath {{output}})":{mount} '
        "nvcr.io/nvidia/tritonserver:YY.MM-trtllm-python-py3 "
        f"python3 /app/scripts/launch_triton_server.py --world_size {processes} --model_repo {mount}"
    )


def _fastertransformer(artifact: Artifact, options: TritonOptions, request: Request, mount: str) -> Package:
    weights = f"{artifact.tp}-gpu"
    stored = {path: size for path, size in artifact.tree.files.items() if path.startswith(f"{weights}/")}
    if f"{weights}/config.ini" not in stored:
        raise CheckpointError(
            f"{artifact.path}/{weights}/config.ini", "no such file", "the weights", "llmcompile partition ft"
        )
    model_type = fastertransformer.MODEL_TYPES.get(artifact.model_type)
    given = {} if artifact.manifest is None else artifact.manifest.options
    if given.get("encoder_only") is True and model_type == "T5":
        model_type = "T5-Encoder"
    dtype = artifact.dtype
    if model_type is None or dtype is None or (model_type == "GPT-NeoX" and dtype == "bf16"):
        raise UnsupportedError(
            str(artifact.path),
            f"model type {artifact.model_type!r} in {dtype}",
            f"one of {', '.join(fastertransformer.MODEL_TYPES)}, GPT-NeoX in fp16 or fp32",
            "llmcompile package lmi, or another dtype",
        )
    config = fastertransformer.fastertransformer_config(
        model_type=model_type,
        path=f"{mount}/{fastertransformer.NAME}/{_VERSION}/{weights}",
        tp=artifact.tp,
        pp=artifact.pp,
        dtype=dtype,
        int8_mode=0 if given.get("act_scales") is None else 2,
        max_batch_size=fastertransformer.MAX_BATCH_SIZE if options.max_batch_size is None else options.max_batch_size,
        instances=1 if options.instances is None else options.instances,
        decoupled=options.streaming,
    )
    fork = (f"LLaMA is known to {fastertransformer.FORK} alone: build the server with it.",)
    ranks = artifact.tp * artifact.pp
    return Package(
        texts={f"{fastertransformer.NAME}/config.pbtxt": render(config)},
        links={f"{fastertransformer.NAME}/{_VERSION}/{path}": path for path in stored},
        notes=(
            "It takes and gives token ids: the client has the tokenizer.",
            f"The server must see no GPUs that it does not use: {ranks} for each instance.",
            *(fork if model_type == "Llama" else ()),
        ),
        next=(f"tritonserver --model-repository {mount}",),
    )


def _server(artifact: Artifact, request: Request) -> str:
    """TensorRT-LLM that serves a Hugging Face folder: as asked, as built for, or the first of the release."""
    built = None if artifact.manifest is None else artifact.manifest.options.get("trtllm_version")
    return request.runtime_version or str(built or f"{request.version}.0")


_ARGUMENTS = "model.yaml"
"""Arguments of tensorrt_llm.LLM, in an artifact that was built for it."""


def _stated(artifact: Artifact) -> dict[str, Any]:
    """What an artifact says of arguments, but for its degrees, which options may change."""
    if artifact.manifest is None or _ARGUMENTS not in artifact.tree.files:
        return {}
    import yaml

    content = yaml.safe_load(artifact.tree.read(_ARGUMENTS))
    decided = ("backend", "tensor_parallel_size", "pipeline_parallel_size")
    return {name: value for name, value in content.items() if name not in decided}


def _llmapi(artifact: Artifact, options: TritonOptions, request: Request, mount: str) -> Package:
    tp = artifact.tp if options.tensor_parallel is None else options.tensor_parallel
    pp = artifact.pp if options.pipeline_parallel is None else options.pipeline_parallel
    heads = artifact.config.get("num_attention_heads")
    if isinstance(heads, int) and heads % tp != 0:
        raise OptionsError("--tensor-parallel", f"{heads} heads / {tp} ranks", "whole heads", "take a divisor")
    instances = _instances(options, tp * pp)
    home = f"{llmapi.NAME}/{_VERSION}"
    further = _stated(artifact)
    if options.max_batch_size is not None:
        further["max_batch_size"] = options.max_batch_size
    if options.kv_cache_free_gpu_mem_fraction is not None:
        _fraction(options.kv_cache_free_gpu_mem_fraction)
        cache = {"free_gpu_memory_fraction": options.kv_cache_free_gpu_mem_fraction}
        further["kv_cache_config"] = {**further.get("kv_cache_config", {}), **cache}
    model = f"{mount}/{home}/model"
    texts = {
        f"{llmapi.NAME}/config.pbtxt": render(llmapi.llmapi_config(instances=instances, gpu_ids=options.gpu_ids)),
        f"{home}/model.yaml": llmapi.model_yaml(
            model=model, tp=tp, pp=pp, decoupled=options.streaming, further=further
        ),
    }
    return Package(
        texts={**_model_py(options, [llmapi.NAME], "llmapi", _server(artifact, request)), **texts},
        links={f"{home}/model/{path}": path for path in artifact.tree.files if path != _ARGUMENTS},
        runtime=request.runtime_version,
        notes=("The code of the model is NVIDIA's, as --model-py had it: take the image that it is of.",),
        next=(_start(mount, tp * pp),),
    )
