"""Lays an artifact out for a release of LMI, with its serving.properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.errors import CheckpointError, OptionsError, Problem, UnsupportedError, collected
from llmcompile.packaging import properties
from llmcompile.packaging.lmi import SERVES, LmiOptions
from llmcompile.packaging.lmi.keys import is_credential, meant
from llmcompile.packaging.lmi.releases import (
    BROKEN_HANDLERS,
    FT,
    FT_MODELS,
    FT_THROUGH_TRITON,
    MODEL_LOADING_SECONDS,
    MOUNT,
    NEURON,
    NEURON_MODELS,
    RELEASES,
    TRT_ASYNC,
    TRT_ROLLING,
    VLLM,
    major,
    without_build,
)
from llmcompile.packaging.target import Package, Request

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact

_ARCHIVE = "model.tar.gz"
_FILE = "serving.properties"
_NOT_LEFT = ("engine", "option.model_id", "option.s3url")
"""Keys that have flags of their own, or that decide which program reads the file at all."""
_LEFT = ("option.entryPoint", "option.dtype", "option.model_loading_timeout")
"""Keys that --option may set otherwise; the lint says what does not fit."""


@dataclass(frozen=True)
class _Laid:
    """How a kind of artifact lies in a package."""

    entries: Mapping[str, str]
    texts: Mapping[str, str]
    links: Mapping[str, str]
    runtime: str | None
    notes: tuple[str, ...]


def plan(artifact: Artifact, options: LmiOptions, request: Request) -> Package:
    """Lay an artifact out for a release of LMI.

    Raises:
        OptionsError: An option contradicts the artifact.
        UnsupportedError: The release would not load it.
        CheckpointError: Files that it needs are missing.
    """
    _check_options(artifact, options)
    laid = _LAYOUTS[artifact.kind](artifact, options, request)
    entries = dict(laid.entries)
    if options.model_id is not None:
        entries["option.model_id"] = options.model_id
    entries = _added(entries, options.option)
    _refuse_broken(request.version, entries, artifact)
    ordered = {"engine": entries.pop("engine"), **dict(sorted(entries.items()))}
    notes = list(laid.notes)
    if artifact.compiler is not None and _image(artifact, request.version) is None:
        notes.append(f"no image of LMI {request.version} with this runtime is documented: bring your own")
    texts = {_FILE: properties.text(ordered)}
    links: Mapping[str, str] = {}
    if options.model_id is None:
        texts |= laid.texts
        links = laid.links
    else:
        there = f" and with --mount-path {options.model_id.rstrip('/')}" if options.model_id.startswith("/") else ""
        notes.append(
            f"{options.model_id} must hold the other files of a package that is made without --model-id{there}"
        )
    return Package(
        texts=texts,
        links=links,
        archive=_ARCHIVE if options.tar else None,
        runtime=laid.runtime,
        notes=tuple(notes),
        next=_next(options),
    )


def prefer(artifact: Artifact, releases: Sequence[str]) -> str | None:
    """The release whose image has the very runtime the artifact was compiled by, else the newest that has an image."""
    if artifact.compiler is None:
        return None
    own = without_build(artifact.compiler)
    with_image = [release for release in releases if _image(artifact, release) is not None]
    for release in (*with_image, *releases):
        facts = RELEASES[release]
        if own == (facts.tensorrt_llm if artifact.kind == "trtllm-engine" else facts.neuronx_cc):
            return release
    return with_image[0]


def _image(artifact: Artifact, release: str) -> str | None:
    """Tag of the release's image for this kind; None where none is documented."""
    facts = RELEASES[release]
    return facts.engine_image if artifact.kind == "trtllm-engine" else facts.neuron_image


def _check_options(artifact: Artifact, options: LmiOptions) -> None:
    problems = []
    if options.model_id is not None and not options.model_id.startswith(("s3://", "/")):
        found = f"{options.model_id!r}, which LMI looks for on the Hugging Face hub"
        problems.append(Problem("--model-id", found, "s3://BUCKET/PREFIX/ or an absolute path", "give the whole place"))
    if not options.mount_path.startswith("/") or options.mount_path.endswith("/"):
        expected = f"an absolute path without a slash at its end, like {MOUNT}"
        problems.append(Problem("--mount-path", repr(options.mount_path), expected, f"add --mount-path {MOUNT}"))
    degree = options.tensor_parallel_degree
    if degree is not None and artifact.kind != "hf" and degree != artifact.tp:
        hint = "leave --tensor-parallel-degree out, or build the artifact again with another --tp"
        problems.append(Problem("--tensor-parallel-degree", str(degree), f"{artifact.tp}, as it was built", hint))
    if options.load_compiled and artifact.kind not in ("neuron-lmi-split", "neuron-sdk-2.16"):
        found = "given for an artifact without compiled graphs of that sort"
        hint = "leave --load-compiled out"
        problems.append(Problem("--load-compiled", found, "a Neuron export in lmi-split or sdk-2.16", hint))
    limit = artifact.batch_size
    if options.max_batch_size is not None and limit is not None and options.max_batch_size > limit:
        hint = f"add --max-batch-size {limit}, or build the artifact again with a larger batch"
        problems.append(Problem("--max-batch-size", str(options.max_batch_size), f"at most {limit}, as built", hint))
    if problems != []:
        raise collected(OptionsError, problems)


def _batch(artifact: Artifact, options: LmiOptions) -> int | None:
    return artifact.batch_size if options.max_batch_size is None else options.max_batch_size


def _added(entries: dict[str, str], given: Sequence[str]) -> dict[str, str]:
    """The entries with those of --option, each checked for its spelling and for what is decided already."""
    problems = []
    made = dict(entries)
    for item in given:
        key, sign, value = item.partition("=")
        subject = f"--option {item[:60]!r}"
        near = meant(key)
        if sign == "" or key == "":
            problems.append(Problem(subject, "no equals sign", "KEY=VALUE", "write --option KEY=VALUE"))
        elif key in _NOT_LEFT or (key not in _LEFT and entries.get(key, value) != value):
            held = entries.get(key)
            expected = "a key that is not decided already" if held is None else f"{held}, from the artifact"
            problems.append(Problem(subject, f"{key} is decided already", expected, f"leave --option {key} out"))
        elif is_credential(key, value):
            hint = "set it in the container's environment, like HF_TOKEN"
            problems.append(Problem(f"--option {key[:60]}", "what looks like a credential", "none in a file", hint))
        elif near is not None:
            problems.append(Problem(subject, f"LMI has no key {key}", near, f"write --option {near}={value}"))
        elif properties.why_not(key, value) is not None:
            wrong = properties.why_not(key, value)
            assert wrong is not None
            problems.append(Problem(subject, *wrong))
        else:
            made[key] = value
    if problems != []:
        raise collected(OptionsError, problems)
    return made


def _refuse_broken(version: str, entries: Mapping[str, str], artifact: Artifact) -> None:
    handler = entries.get("option.entryPoint", "")
    if version in BROKEN_HANDLERS.get(handler, ()):
        serving = [release for release in SERVES[artifact.kind] if RELEASES[release].engine_image is not None]
        hint = (
            f"build the engine with TensorRT-LLM {RELEASES[serving[0]].tensorrt_llm} and add --lmi-version {serving[0]}"
            ", or add --option option.entryPoint=MODULE for a handler of your own image"
        )
        found = f"its handler {handler} gives LLM() the same argument twice, and stops with a TypeError"
        raise UnsupportedError(f"LMI {version}", found, f"one of {', '.join(serving)}", hint)


def _next(options: LmiOptions) -> tuple[str, ...]:
    if options.tar:
        return (f"llmcompile lint {{output}}/{_ARCHIVE}", f"aws s3 cp {{output}}/{_ARCHIVE} s3://BUCKET/PREFIX/")
    return ("aws s3 sync {output}/ s3://BUCKET/PREFIX/",)


def _common(engine: str, handler: str, degree: int | str) -> dict[str, str]:
    return {"engine": engine, "option.entryPoint": handler, "option.tensor_parallel_degree": str(degree)}


def _runtime(artifact: Artifact, request: Request, shipped: str | None, vendor: str, rebuild: str) -> str:
    """The runtime's version in the image, which must be the compiler's.

    Raises:
        UnsupportedError: It is another.
    """
    runtime = request.runtime_version if request.runtime_version is not None else shipped
    assert artifact.compiler is not None
    assert runtime is not None
    if without_build(runtime) != without_build(artifact.compiler):
        where = "--runtime-version" if request.runtime_version is not None else f"LMI {request.version}"
        raise UnsupportedError(
            f"{artifact.path}",
            f"compiled by {vendor} {artifact.compiler}",
            f"{runtime}, which {where} has; a compiled model loads in the version that made it",
            f"{rebuild}; or add --runtime-version {artifact.compiler} if your image has that",
        )
    return runtime


def _model_files(artifact: Artifact, *required: str) -> dict[str, str]:
    """Path -> path of the model's own files at the root.

    Raises:
        CheckpointError: A file that LMI insists on is missing.
    """
    missing = [name for name in required if name not in artifact.model_files]
    if missing != []:
        raise collected(
            CheckpointError,
            [
                Problem(
                    f"{artifact.path}/{name}",
                    "no such file",
                    "the tokenizer and configuration of the model",
                    "copy it from the model into the checkpoint's folder, and build the artifact again",
                )
                for name in missing
            ],
        )
    return {name: name for name in artifact.model_files}


def _ft(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    releases = FT_MODELS.get(artifact.model_type, ())
    if releases == ():
        found = f"LMI's loader does not know model type {artifact.model_type!r}"
        hint = "llmcompile package triton, whose FasterTransformer backend is not bound to such a list"
        raise UnsupportedError(str(artifact.path), found, f"one of {', '.join(FT_MODELS)}", hint)
    if request.version not in releases:
        found = f"does not load {artifact.model_type}"
        raise UnsupportedError(
            f"LMI {request.version}", found, f"one of {', '.join(releases)}", f"add --lmi-version {releases[0]}"
        )
    if artifact.pp > 1:
        raise UnsupportedError(
            str(artifact.path),
            f"{artifact.pp} pipeline stages; LMI starts a process for each tensor parallel rank alone",
            "1 stage",
            "build it again with --pp 1: the files are the same",
        )
    if artifact.dtype not in ("fp16", "fp32"):
        raise UnsupportedError(
            str(artifact.path),
            f"weights of {artifact.dtype}",
            "fp16 or fp32, which is all that LMI's loader reads",
            "build it again with --dtype fp32, and package it with --option option.dtype=bf16 to compute in bf16",
        )
    source = f"{artifact.tp}-gpu"
    _refuse_by_config_ini(artifact, f"{source}/config.ini")
    through_triton = artifact.model_type in FT_THROUGH_TRITON
    links = _model_files(artifact, "config.json", "tokenizer_config.json")
    links |= {path: path for path in artifact.tree.matching(f"{source}/*")}
    # Not the model's name, which may be a path of this machine: the loader compares the file with itself.
    verify = f"{options.mount_path}-{artifact.dtype}-{artifact.tp}-1"
    notes = ["FasterTransformer and the images that have it are at their end: newer LMI loads Hugging Face checkpoints"]
    if artifact.model_type == "llama":
        notes.append("LLaMA: the loader of LMI 0.24 is not public; its layout is taken to be that of the others")
    return _Laid(
        {
            **_common("Python" if through_triton else "FasterTransformer", FT, artifact.tp),
            "option.dtype": artifact.dtype,
            "option.pipeline_parallel_degree": "1",
        },
        {f"{source}/verify": verify},
        links,
        None,
        tuple(notes),
    )


def _refuse_by_config_ini(artifact: Artifact, path: str) -> None:
    """Stop what LMI's loader would read wrongly, or not find."""
    import configparser

    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read_string(artifact.tree.text(path))
    except configparser.Error as error:
        hint = "build the artifact again"
        raise CheckpointError(f"{artifact.path}/{path}", f"cannot be read: {error}", "an INI file", hint) from error
    subject, itself = f"{artifact.path}/{path}", "llmcompile package lmi MODEL OUTPUT, of the Hugging Face model itself"
    if config.has_option("llama", "kv_head_num"):
        found = f"kv_head_num = {config.get('llama', 'kv_head_num')}"
        expected = "as many KV heads as heads: the FasterTransformer in LMI's image does not read the key"
        raise UnsupportedError(subject, found, expected, itself)
    if artifact.model_type == "t5" and not config.has_option("decoder", "num_layers"):
        raise UnsupportedError(subject, "an encoder alone", "encoder and decoder, both of which LMI loads", itself)


def _engine(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    facts = RELEASES[request.version]
    if len(artifact.engine_folders) != 1 or artifact.engine_folders[0] != "engine":
        raise UnsupportedError(
            str(artifact.path),
            f"{len(artifact.engine_folders)} engines: {', '.join(artifact.engine_folders)}",
            "one engine; LMI documents no layout for an encoder and a decoder",
            "llmcompile package triton ARTIFACT OUTPUT",
        )
    rebuild = f"build it again with TensorRT-LLM {facts.tensorrt_llm}"
    if request.runtime_version is None and request.version in BROKEN_HANDLERS[TRT_ASYNC]:
        rebuild = f"build it again with TensorRT-LLM {RELEASES['0.33'].tensorrt_llm} for --lmi-version 0.33"
    runtime = _runtime(artifact, request, facts.tensorrt_llm, "TensorRT-LLM", rebuild)
    if facts.engine_layout == "flat":
        return _flat(artifact, options, runtime)
    return _repository(artifact, options, request, runtime)


def _flat(artifact: Artifact, options: LmiOptions, runtime: str) -> _Laid:
    if "build_config" not in artifact.engine:
        found = "no build_config: LMI would take it for a Hugging Face checkpoint and build an engine of its own"
        hint = "build the engine with TensorRT-LLM 0.9 or later"
        raise UnsupportedError(f"{artifact.path}/engine/config.json", found, "build_config", hint)
    entries = {
        **_common("Python", TRT_ASYNC, artifact.tp),
        "option.async_mode": "true",
        "option.rolling_batch": "disable",
        "option.model_loading_timeout": str(MODEL_LOADING_SECONDS["engine"]),
    }
    batch = _batch(artifact, options)
    if batch is not None:
        entries["option.max_rolling_batch_size"] = str(batch)
    if artifact.pp > 1:
        # Java counts devices by the one, Python gives the other to TensorRT-LLM.
        entries["option.pipeline_parallel_degree"] = str(artifact.pp)
        entries["option.pipeline_parallel_size"] = str(artifact.pp)
    links = _model_files(artifact, "tokenizer_config.json")
    links["config.json"] = "engine/config.json"
    links |= _engine_files(artifact, "")
    return _Laid(entries, {}, links, runtime, ())


def _repository(artifact: Artifact, options: LmiOptions, request: Request, runtime: str) -> _Laid:
    if artifact.pp > 1 and major(request.version) < (0, 29):
        found = f"{artifact.pp} pipeline stages; LMI {request.version} starts a process for each of tp alone"
        raise UnsupportedError(str(artifact.path), found, "1 stage, or LMI 0.29", "build it again with --pp 1")
    entries = {
        **_common("MPI", TRT_ROLLING, artifact.tp),
        "option.rolling_batch": "trtllm",
        "option.model_loading_timeout": str(MODEL_LOADING_SECONDS["engine"]),
    }
    batch = _batch(artifact, options)
    if batch is not None:
        entries["option.max_rolling_batch_size"] = str(batch)
    if artifact.pp > 1:
        entries["option.pipeline_parallel_degree"] = str(artifact.pp)
    files = _model_files(artifact, "config.json", "tokenizer_config.json")
    links = {f"tensorrt_llm/{path}": source for path, source in files.items()}
    links["tensorrt_llm/1/config.json"] = "engine/config.json"
    links |= _engine_files(artifact, "tensorrt_llm/1/")
    notes = []
    if options.model_id is not None and options.model_id.startswith("s3://"):
        notes.append(
            "gpt_model_path in tensorrt_llm/config.pbtxt must be where LMI downloads the prefix to, which it chooses:"
            " mount the prefix, or untar model.tar.gz, at --mount-path instead"
        )
    place = options.mount_path
    if options.model_id is not None and options.model_id.startswith("/"):
        place = options.model_id.rstrip("/")
    text = _model_config(artifact, f"{place}/tensorrt_llm/1", batch, runtime)
    return _Laid(entries, {"tensorrt_llm/config.pbtxt": text}, links, runtime, tuple(notes))


def _engine_files(artifact: Artifact, folder: str) -> dict[str, str]:
    """Path in the package -> path of every rank's engine, and of the timing cache if there is one.

    Raises:
        CheckpointError: A rank's engine is missing.
    """
    ranks = artifact.tp * artifact.pp
    wanted = {f"{folder}rank{rank}.engine": f"engine/rank{rank}.engine" for rank in range(ranks)}
    missing = [source for source in wanted.values() if source not in artifact.tree.files]
    if missing != []:
        raise CheckpointError(
            f"{artifact.path}/{missing[0]}",
            f"{len(missing)} of {ranks} ranks' engines are missing",
            f"tp {artifact.tp} x pp {artifact.pp} = {ranks} files",
            "build the artifact again",
        )
    if "model.cache" in artifact.tree.files:
        wanted[f"{folder}model.cache"] = "model.cache"
    return wanted


def _model_config(artifact: Artifact, path: str, batch: int | None, runtime: str) -> str:
    """config.pbtxt of the engine alone; LMI's handler streams, so it is decoupled.

    Raises:
        UnsupportedError: The backend of this TensorRT-LLM is not known here.
    """
    from llmcompile.packaging.triton.engine import engine_config
    from llmcompile.packaging.triton.generations import GENERATIONS, generation_of
    from llmcompile.packaging.triton.pbtxt import render

    generation = generation_of(runtime)
    if generation is None:
        expected = f"one of {', '.join(GENERATIONS)}"
        hint = "build the engine again with one of them"
        raise UnsupportedError(f"TensorRT-LLM {runtime}", "no known backend of Triton's", expected, hint)
    pretrained = artifact.engine.get("pretrained_config")
    said = pretrained.get("logits_dtype") if isinstance(pretrained, dict) else None
    logits = {"float16": "fp16"}.get(str(said), "fp32")
    config = engine_config(
        generation=generation,
        max_batch_size=1 if batch is None else batch,
        gpt_model_path=path,
        decoupled=True,
        logits_dtype=logits,
    )
    return render(config)


def _neuron(artifact: Artifact, options: LmiOptions, request: Request) -> dict[str, str]:
    """What all Neuron layouts say.

    Raises:
        UnsupportedError: LMI's loader does not know the model.
        OptionsError: Another batch than the compiled one is asked for.
    """
    if artifact.task != "text-generation" or artifact.model_type not in NEURON_MODELS:
        raise UnsupportedError(
            str(artifact.path),
            f"{artifact.task} of model type {artifact.model_type!r}",
            f"text-generation of one of {', '.join(NEURON_MODELS)}",
            "llmcompile package tgi, or a server of your own on the Neuron runtime",
        )
    if options.max_batch_size not in (None, artifact.batch_size):
        raise OptionsError(
            "--max-batch-size",
            str(options.max_batch_size),
            f"{artifact.batch_size}: a Neuron graph has one batch size, and LMI makes its graphs by this number",
            f"add --max-batch-size {artifact.batch_size}, or leave it out",
        )
    entries = {
        **_common("Python", NEURON, artifact.tp),
        "option.model_loading_timeout": str(MODEL_LOADING_SECONDS["neuron"]),
        "option.rolling_batch": "auto" if major(request.version) < (0, 28) else "tnx",
    }
    if major(request.version) >= (0, 27):
        entries["option.model_loader"] = "tnx"
    for key, value in (
        ("option.dtype", artifact.dtype),
        ("option.max_rolling_batch_size", artifact.batch_size),
        ("option.n_positions", artifact.sequence_length),
    ):
        if value is not None:
            entries[key] = str(value)
    return entries


_COMPILES = (
    "LMI's runtime, transformers-neuronx, makes graphs of its own from these weights and compiles them when it starts:"
    " it takes a compiled graph only by the hash of its own, which these are not"
)


def _split(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    entries = _neuron(artifact, options, request) | {"option.load_split_model": "true"}
    links = _model_files(artifact, "config.json", "tokenizer_config.json")
    links |= {path: path for path in artifact.tree.matching("pytorch_model.bin/*")}
    if not options.load_compiled:
        note = f"{_COMPILES}, so compiled/ is left out; --load-compiled takes it along and has it loaded"
        return _Laid(entries, {}, links, RELEASES[request.version].neuronx_cc, (note,))
    runtime = _neuron_runtime(artifact, request)
    entries["option.compiled_graph_path"] = f"{_place(options)}/compiled"
    links |= {path: path for path in artifact.tree.matching("compiled/*")}
    return _Laid(entries, {}, links, runtime, (f"{_COMPILES}; where none fits it stops with FileNotFoundError",))


def _place(options: LmiOptions) -> str:
    """Where the model's files are in the container, as far as it can be told."""
    if options.model_id is not None:
        return options.model_id.rstrip("/")
    return options.mount_path


def _neuron_runtime(artifact: Artifact, request: Request) -> str:
    shipped = RELEASES[request.version].neuronx_cc
    rebuild = f"export it again with neuronx-cc {shipped}"
    return _runtime(artifact, request, shipped, "neuronx-cc", rebuild)


def _cache(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    entries = _neuron(artifact, options, request) | {"option.load_split_model": "true"}
    # Not compiled_graph_path: with it LMI insists on <hash>.neff in that very folder, and a miss stops it.
    entries["option.env"] = f"NEURON_COMPILE_CACHE_URL={_place(options)}/compiled"
    links = _model_files(artifact, "config.json", "tokenizer_config.json")
    links |= {path: path for path in artifact.tree.matching("pytorch_model.bin/*")}
    links |= {path: path for path in artifact.tree.matching("compiled/*")}
    shipped = RELEASES[request.version].neuronx_cc
    if request.runtime_version is not None:
        shipped = request.runtime_version
    notes = [f"{_COMPILES}. The cache in compiled/ is looked into first, and added to"]
    if artifact.compiler is not None and without_build(artifact.compiler) != without_build(str(shipped)):
        notes.append(
            f"compiled/ is a cache of neuronx-cc {artifact.compiler}, which {shipped} of LMI {request.version} does not"
            " look into"
        )
    return _Laid(entries, {}, links, shipped, tuple(notes))


def _sdk(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    entries = _neuron(artifact, options, request)
    links = _model_files(artifact, "config.json", "tokenizer_config.json")
    links |= {path: path for path in artifact.tree.matching("checkpoint/*")}
    if not options.load_compiled:
        note = f"{_COMPILES}, so compiled/ is left out; --load-compiled takes it along, and LMI then loads it"
        return _Laid(entries, {}, links, RELEASES[request.version].neuronx_cc, (note,))
    runtime = _neuron_runtime(artifact, request)
    links |= {path: path for path in artifact.tree.matching("compiled/*")}
    return _Laid(entries, {}, links, runtime, (f"{_COMPILES}; where none fits it stops with FileNotFoundError",))


def _hugging_face(artifact: Artifact, options: LmiOptions, request: Request) -> _Laid:
    from llmcompile.packaging.artifact import refuse_in_vllm

    refuse_in_vllm(artifact)
    degree = options.tensor_parallel_degree
    entries = {
        **_common("Python", VLLM, "max" if degree is None else degree),
        "option.async_mode": "true",
        "option.rolling_batch": "disable",
    }
    if options.max_batch_size is not None:
        entries["option.max_rolling_batch_size"] = str(options.max_batch_size)
    notes = []
    if "auto_map" in artifact.config:
        notes.append("the model has code of its own: --option option.trust_remote_code=true has LMI run it")
    return _Laid(entries, {}, {path: path for path in artifact.tree.files}, None, tuple(notes))


_LAYOUTS = MappingProxyType(
    {
        "ft": _ft,
        "trtllm-engine": _engine,
        "neuron-lmi-split": _split,
        "neuron-lmi-cache": _cache,
        "neuron-sdk-2.16": _sdk,
        "hf": _hugging_face,
    }
)
