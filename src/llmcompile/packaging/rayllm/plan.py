"""Makes the package: entry, serve config and mirror."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from llmcompile.errors import CheckpointError, OptionsError, Problem, UnsupportedError, collected
from llmcompile.packaging import prompt_format
from llmcompile.packaging.artifact import ENGINE
from llmcompile.packaging.documents import json_value, whole
from llmcompile.packaging.rayllm import facts
from llmcompile.packaging.rayllm.schema import ENGINES, flaws, parse
from llmcompile.packaging.target import Package, Request
from llmcompile.packaging.tree import READ_BYTES

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.rayllm import RayLLMOptions

MIRROR = "mirror"
HASH = f"{MIRROR}/hash"
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.]*(?:-[\w.]+)*/[A-Za-z0-9][\w.]*(?:-[\w.]+)*", re.ASCII)
_BUCKET = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^\s?#]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZE_IN_NAME = re.compile(r"(^|[-_.])\d+(\.\d+)?[bm]($|[-_.])", re.IGNORECASE)
_DTYPE_BYTES = MappingProxyType({"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2})
# What the registry has for every model: ray-project/ray-llm@891ccd7:models/continuous_batching/*.yaml.
_REQUESTS = MappingProxyType(
    {
        "target_num_ongoing_requests_per_replica": 24,
        "metrics_interval_s": 10.0,
        "look_back_period_s": 30.0,
        "smoothing_factor": 0.6,
        "downscale_delay_s": 300.0,
        "upscale_delay_s": 15.0,
    }
)
_CONCURRENT = 64
_CPUS = 8
_SHARE = 0.01
"""Of Ray's accelerator resource: enough to bind a worker to a kind of node."""


class _Quoted(str):
    """A text that is written in double quotes, with its line breaks as escapes."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


@dataclass(frozen=True)
class _Engine:
    """What one of RayLLM's engines is given.

    Attributes:
        settings: Keys of engine_config that only it has.
        workers: GPUs of a replica.
        links: Path in the package -> path in the artifact.
        notes: What a person must know.
    """

    settings: Mapping[str, Any]
    workers: int
    links: Mapping[str, str]
    notes: tuple[str, ...]


def plan(artifact: Artifact, options: RayLLMOptions, request: Request) -> Package:
    """The package of an artifact.

    Raises:
        OptionsError: Options contradict each other or the artifact.
        UnsupportedError: RayLLM's engines cannot load it, or its chat template cannot be expressed.
        CheckpointError: Weights are missing.
    """
    name = _engine_name(artifact, options, request)
    _check(artifact, options, name)
    engine = {"TRTLLMEngine": _trtllm, "VLLMEngine": _vllm, "EmbeddingEngine": _embedding}[name](
        artifact, options, request
    )
    model_id = _model_id(artifact, options)
    location, location_notes = _location(options, name, model_id)
    generation, notes = ({}, ()) if name == "EmbeddingEngine" else _generation(artifact, options, request)
    resources = {} if options.accelerator_type is None else {f"accelerator_type_{options.accelerator_type}": _SHARE}
    entry = {
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "initial_replicas": max(1, options.min_replicas),
                "max_replicas": options.max_replicas,
                **_REQUESTS,
            },
            "max_concurrent_queries": _CONCURRENT,
            "ray_actor_options": {"resources": resources} if resources != {} else {},
        },
        "engine_config": {"model_id": model_id, "type": name, **location, **engine.settings, **generation},
        "scaling_config": {
            "num_workers": engine.workers,
            "num_gpus_per_worker": 1,
            "num_cpus_per_worker": _CPUS,
            "placement_strategy": "STRICT_PACK",
            **({"resources_per_worker": resources} if resources != {} else {}),
        },
    }
    file = _file_name(artifact, model_id, engine)
    serve = {
        "applications": [
            {
                "name": "ray-llm",
                "route_prefix": "/",
                "import_path": "rayllm.backend:router_application",
                "args": {ENGINES[name]: [f"./{file}"]},
            }
        ]
    }
    digest = _commit(artifact, options, engine.links)
    if digest is None:
        digest = _derived(artifact, engine.links)
        notes = (*notes, "hash is made of the mirror's files; --commit HASH writes the checkpoint's commit on the hub")
    return Package(
        texts={file: _dumped(entry), "serve.yaml": _dumped(serve), HASH: f"{digest}\n"},
        links=engine.links,
        last=(HASH,),
        runtime={"TRTLLMEngine": artifact.compiler, "VLLMEngine": facts.VLLM[request.version]}.get(name),
        notes=(*engine.notes, *location_notes, *notes),
        next=_next(options),
    )


def _engine_name(artifact: Artifact, options: RayLLMOptions, request: Request) -> str:
    if artifact.kind == "trtllm-engine":
        fitting: tuple[str, ...] = ("TRTLLMEngine",)
    elif request.version == "0.4.0":
        fitting = ("VLLMEngine",)
    else:
        fitting = ("VLLMEngine", "EmbeddingEngine")
    if options.engine is not None and options.engine not in fitting:
        raise OptionsError(
            "--engine",
            f"{options.engine} for {artifact.kind}",
            f"{' or '.join(fitting)} of RayLLM {request.version}",
            f"--engine {fitting[0]}, or leave it out",
        )
    if options.engine is not None:
        return options.engine
    if len(fitting) == 1 or facts.decodes(artifact.config):
        return fitting[0]
    return "EmbeddingEngine"


def _check(artifact: Artifact, options: RayLLMOptions, engine: str) -> None:
    """Refuse options that contradict each other.

    Raises:
        OptionsError: With every one of them.
    """
    problems = []
    places = [place for place in (options.bucket_uri, options.model_local_path) if place is not None]
    if len(places) != 1:
        found = "neither is given" if len(places) == 0 else "both are given"
        hint = "--bucket-uri s3://BUCKET/FOLDER/, or --model-local-path /PATH/ON/EVERY/NODE"
        problems.append(Problem("--bucket-uri and --model-local-path", found, "one of them", hint))
    if options.bucket_uri is not None and _BUCKET.fullmatch(options.bucket_uri) is None:
        expected = (
            "s3://BUCKET/FOLDER/ or gs://BUCKET/FOLDER/; a bucket's name has 3 to 63 characters: lower-case letters,"
            " digits, '.', '_' and '-', the first and the last a letter or a digit"
        )
        problems.append(Problem("--bucket-uri", repr(options.bucket_uri), expected, "--bucket-uri s3://BUCKET/FOLDER/"))
    elif engine == "TRTLLMEngine" and str(options.bucket_uri).startswith("gs://"):
        hint = "--bucket-uri s3://..., or --model-local-path /PATH/ON/EVERY/NODE"
        problems.append(Problem("--bucket-uri", str(options.bucket_uri), "s3://..., all that TRTLLMEngine reads", hint))
    if options.model_local_path is not None and not options.model_local_path.startswith("/"):
        hint = "--model-local-path /PATH/ON/EVERY/NODE"
        problems.append(Problem("--model-local-path", options.model_local_path, "an absolute path", hint))
    if options.max_replicas < max(1, options.min_replicas):
        found = f"{options.max_replicas}, and --min-replicas {options.min_replicas}"
        problems.append(Problem("--max-replicas", found, "at least as many", f"--max-replicas {options.min_replicas}"))
    if options.prompt_format is not None and (options.no_chat or options.prepend_system):
        other = "--no-chat" if options.no_chat else "--prepend-system"
        problems.append(Problem("--prompt-format", f"with {other}", "one of them", f"leave {other} out"))
    if options.commit is not None and _COMMIT.fullmatch(options.commit) is None:
        hint = "--commit HASH, as the hub shows it"
        problems.append(Problem("--commit", repr(options.commit), "40 hexadecimal digits", hint))
    if options.accelerator_type is not None and re.fullmatch(r"\w+", options.accelerator_type) is None:
        hint = "--accelerator-type a10, or a100_80g"
        problems.append(Problem("--accelerator-type", repr(options.accelerator_type), "letters, digits and _", hint))
    if len(problems) > 0:
        raise collected(OptionsError, problems)


def _trtllm(artifact: Artifact, options: RayLLMOptions, request: Request) -> _Engine:
    if artifact.engine_folders != (ENGINE,):
        raise UnsupportedError(
            "RayLLM TRTLLMEngine",
            f"{' and '.join(artifact.engine_folders)}, an encoder and a decoder",
            "one engine, of a decoder",
            "type: llmcompile package triton ARTIFACT OUTPUT",
        )
    built = artifact.compiler
    if request.runtime_version != built:
        why = "the image has none" if request.runtime_version is None else f"the image has {request.runtime_version}"
        raise UnsupportedError(
            "RayLLM TRTLLMEngine",
            f"an engine of TensorRT-LLM {built}, and {why}",
            "the version the engine was built by, and its module tensorrt_llm.libs.trt_llm_engine_py",
            f"if yours has them, add --runtime-version {built}; RayLLM's own Dockerfile leaves TensorRT-LLM out",
        )
    workers = artifact.tp * artifact.pp
    if options.num_workers not in (None, workers):
        raise OptionsError(
            "--num-workers",
            str(options.num_workers),
            f"tp {artifact.tp} x pp {artifact.pp} = {workers}",
            f"--num-workers {workers}, or leave it out",
        )
    _at_most("--max-batch-size", options.max_batch_size, artifact.batch_size, "the engine's max_batch_size")
    _at_most("--max-total-tokens", options.max_total_tokens, artifact.sequence_length, "the engine's max_seq_len")
    answer = artifact.sequence_length
    if answer is not None and artifact.input_length is not None and artifact.input_length < answer:
        answer -= artifact.input_length
    tokens = options.max_total_tokens if options.max_total_tokens is not None else answer
    batch = options.max_batch_size if options.max_batch_size is not None else artifact.batch_size
    settings = {
        "scheduler_policy": options.scheduler_policy,
        "logger_level": "INFO",
        "model_type": "InflightFusedBatching",
        **({} if batch is None else {"max_num_sequences": batch}),
        **({} if tokens is None else {"max_total_tokens": tokens}),
    }
    ranks = [f"{ENGINE}/rank{rank}.engine" for rank in range(workers)]
    missing = [path for path in ranks if path not in artifact.tree.files]
    if len(missing) > 0:
        hint = "build the engine again"
        raise CheckpointError(f"{artifact.path}/{ENGINE}", f"no {', '.join(missing)}", f"{workers} engines", hint)
    links = {f"{MIRROR}/{Path(path).name}": path for path in (f"{ENGINE}/config.json", *ranks)}
    notes = (
        "The image needs tensorrt_llm.libs.trt_llm_engine_py, which no public TensorRT-LLM has; RayLLM's is 0.6.1.",
        "The tokenizer is loaded from the hub by model_id, not from the mirror.",
    )
    return _Engine(settings, workers, links, notes)


def _vllm(artifact: Artifact, options: RayLLMOptions, request: Request) -> _Engine:
    config, release = artifact.config, facts.VLLM[request.version]
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if facts.ARCHITECTURES[release].isdisjoint(architectures):
        raise UnsupportedError(
            f"RayLLM {request.version} VLLMEngine",
            f"{', '.join(architectures) or 'no architectures in config.json'}, unknown to its vLLM {release}",
            f"one of {', '.join(sorted(facts.ARCHITECTURES[release]))}",
            "type: llmcompile package ray-serve ARTIFACT OUTPUT, for today's vLLM",
        )
    workers = 1 if options.num_workers is None else options.num_workers
    heads = whole(config.get("num_attention_heads", config.get("n_head")))
    if heads is not None and heads % workers != 0:
        found = f"{workers}: {heads} attention heads / {workers} = {heads / workers:.2f}"
        raise OptionsError("--num-workers", found, "a divisor of the heads", "choose another --num-workers")
    longest = facts.context_length(config)
    _at_most("--max-total-tokens", options.max_total_tokens, longest, "the model's context")
    tokens = options.max_total_tokens if options.max_total_tokens is not None else longest
    extra: dict[str, Any] = {}
    if options.trust_remote_code:
        extra["trust_remote_code"] = True
    if options.max_batch_size is not None:
        extra["max_num_seqs"] = options.max_batch_size
    # Written by transformers since 4.56; older ones know torch_dtype alone, and would take float32.
    if "torch_dtype" not in config and isinstance(config.get("dtype"), str):
        extra["dtype"] = config["dtype"]
    settings = {
        **({} if extra == {} else {"engine_kwargs": extra}),
        **({} if tokens is None else {"max_total_tokens": tokens}),
    }
    return _Engine(settings, workers, _snapshot(artifact), _stops(artifact))


def _embedding(artifact: Artifact, options: RayLLMOptions, request: Request) -> _Engine:
    if options.num_workers not in (None, 1):
        found = f"{options.num_workers} for EmbeddingEngine"
        raise OptionsError("--num-workers", found, "1: it has one process", "leave --num-workers out")
    longest = facts.context_length(artifact.config)
    _at_most("--max-total-tokens", options.max_total_tokens, longest, "the model's context")
    tokens = options.max_total_tokens if options.max_total_tokens is not None else longest
    settings = {
        "max_total_tokens": 512 if tokens is None else tokens,
        "max_batch_size": 1 if options.max_batch_size is None else options.max_batch_size,
    }
    return _Engine(settings, 1, _snapshot(artifact), ())


def _at_most(flag: str, asked: int | None, limit: int | None, what: str) -> None:
    if asked is not None and limit is not None and asked > limit:
        raise OptionsError(flag, str(asked), f"at most {limit}, {what}", f"{flag} {limit}, or leave it out")


def _snapshot(artifact: Artifact) -> Mapping[str, str]:
    """Files of a checkpoint as vLLM reads a folder of them: one format of the weights, and no others of it."""
    files = artifact.tree.files
    weights: tuple[str, ...] = ()
    for index, single, pattern in (
        ("model.safetensors.index.json", "model.safetensors", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        if index in files:
            weights = (index, *_indexed(artifact, index))
        elif single in files:
            weights = (single,)
        else:
            weights = artifact.tree.matching(pattern)
        if len(weights) > 0:
            break
    missing = [name for name in weights if name not in files]
    if len(weights) == 0 or len(missing) > 0:
        found = "no weights" if len(weights) == 0 else f"no {', '.join(missing)}"
        raise CheckpointError(str(artifact.path), found, "all files of the checkpoint", "download it again")
    return {f"{MIRROR}/{name}": name for name in sorted({*artifact.model_files, *weights})}


def _indexed(artifact: Artifact, index: str) -> tuple[str, ...]:
    try:
        content = json_value(artifact.tree.read(index))
        named = set(content["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{artifact.path}/{index}", "no weight_map of tensors to files", "an index", "download it again"
        ) from error
    return tuple(sorted(str(name) for name in named))


def _model_id(artifact: Artifact, options: RayLLMOptions) -> str:
    """The id asked for; the hub's, where the artifact knows it; that of a folder called org--name."""
    given = options.model_id
    if given is None:
        given = artifact.model
        if artifact.kind == "hf":
            cached = artifact.path.resolve().parts
            stem = cached[-3].removeprefix("models--") if cached[-2:-1] == ("snapshots",) else cached[-1]
            given = stem.replace("--", "/", 1)
        elif artifact.commit is None:
            given = Path(given).name.replace("--", "/", 1)
    if _MODEL_ID.fullmatch(given) is None:
        subject = "--model-id" if options.model_id is not None else "the model's id"
        raise OptionsError(subject, repr(given), "ORG/NAME, with single dashes", "--model-id ORG/NAME")
    return given


def _location(options: RayLLMOptions, engine: str, model_id: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    if options.model_local_path is not None:
        key = "model_local_path" if engine == "TRTLLMEngine" else "hf_model_id"
        return {key: options.model_local_path.rstrip("/") or "/"}, ()
    assert options.bucket_uri is not None
    # TRTLLMEngine takes every key that begins like it: without the slash, also those of a neighbour with a longer name.
    uri = options.bucket_uri.rstrip("/") + "/"
    kind = "s3_mirror_config" if uri.startswith("s3://") else "gcs_mirror_config"
    stale = "RayLLM keeps a file called hash in its working directory: where a download of it fails, an old one counts."
    notes = () if engine == "TRTLLMEngine" else (stale,)
    return {kind: {"bucket_uri": uri}}, notes


def _generation(
    artifact: Artifact, options: RayLLMOptions, request: Request
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """`generation` of engine_config, and what its prompt_format does otherwise than the chat template."""
    notes: tuple[str, ...] = ()
    made: Mapping[str, Any] | None = None
    if options.prompt_format is not None:
        made = _given_format(options.prompt_format)
    elif not options.no_chat:
        template = prompt_format.read_template(artifact.tree)
        if template is None:
            raise UnsupportedError(
                "chat template",
                f"{artifact.path} has none",
                "one in tokenizer_config.json or chat_template.jinja, to derive prompt_format from",
                "--no-chat for a base model, or --prompt-format FILE.yaml",
            )
        derived = prompt_format.derive(template, prepend_system=options.prepend_system)
        made, notes = asdict(derived.format), derived.notes
    elif request.version == "0.4.0":
        raise OptionsError(
            "--no-chat",
            "for RayLLM 0.4.0",
            "0.5.0, the first that serves completions only",
            "leave --target-version out",
        )
    shown = (
        None if made is None else {key: _Quoted(text) if isinstance(text, str) else text for key, text in made.items()}
    )
    return {"generation": {"prompt_format": shown, "stopping_sequences": []}}, notes


def _given_format(file: str) -> Mapping[str, Any]:
    """The prompt_format of a file, which may be that of a whole entry."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(
            "--prompt-format", f"{file} cannot be read: {error}", "a YAML file", "check the path"
        ) from error
    content = parse(text, file)
    for key in ("engine_config", "generation", "prompt_format"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    generation = {"prompt_format": content}
    probe = {
        "engine_config": {"model_id": "m", "type": "VLLMEngine", "generation": generation},
        "scaling_config": {"num_workers": 1},
    }
    found = [] if isinstance(content, dict) and content != {} else [Problem(file, repr(content), "a prompt_format")]
    found += [Problem(f"{file}: {flaw.key.rpartition('.')[2]}", flaw.found, flaw.expected) for flaw in flaws(probe)]
    if len(found) > 0:
        hint = "keys: system, assistant, trailing_assistant, user; see docs/formats/rayllm.md"
        raise collected(OptionsError, [Problem(item.subject, item.found, item.expected, hint) for item in found])
    assert isinstance(content, dict)
    return content


def _stops(artifact: Artifact) -> tuple[str, ...]:
    """A note for a model that ends its answers by more tokens than the tokenizer's one."""
    try:
        ends = json_value(artifact.tree.read("generation_config.json"))["eos_token_id"]
    except (CheckpointError, ValueError, KeyError, TypeError):
        return ()
    if not isinstance(ends, list) or len(ends) < 2:
        return ()
    return (f"vLLM stops at the tokenizer's eos_token alone; generation_config.json names {ends}.",)


def _file_name(artifact: Artifact, model_id: str, engine: _Engine) -> str:
    name = model_id.rpartition("/")[2]
    words = [model_id.replace("/", "--")]
    parameters = None if _SIZE_IN_NAME.search(name) is not None else _parameters(artifact, engine)
    words += [] if parameters is None else [parameters]
    if artifact.kind == "trtllm-engine":
        words.append(f"tp{artifact.tp}")
        words += [f"pp{artifact.pp}"] if artifact.pp > 1 else []
    elif engine.workers > 1:
        words.append(f"tp{engine.workers}")
    words += [word.lower() for word in (artifact.dtype, artifact.quantization) if word is not None]
    return re.sub(r"[^\w.-]", "_", "-".join(words)) + ".yaml"


def _parameters(artifact: Artifact, engine: _Engine) -> str | None:
    """The model's parameters in a word, "7b" or "124m", from the bytes of its weights; None where that says nothing."""
    if artifact.manifest is not None:
        sizes = {record.path: record.bytes for record in artifact.manifest.source.files}
    else:
        sizes = {source: artifact.tree.files[source] for source in engine.links.values()}
    width = _DTYPE_BYTES.get(str(artifact.config.get("torch_dtype", artifact.config.get("dtype"))))
    total = sum(size for path, size in sizes.items() if path.endswith((".safetensors", ".bin", ".pth", ".pt")))
    if width is None or total < width or "quantization_config" in artifact.config:
        return None
    count, unit = next(
        (total / width / size, unit)
        for size, unit in ((1e9, "b"), (1e6, "m"), (1e3, "k"), (1, ""))
        if total >= size * width
    )
    # Models are called by whole numbers where these are near: 6.74 billion is 7b, 2.7 billion is not 3b.
    near = round(count)
    return f"{near}{unit}" if near > 0 and abs(count - near) <= 0.05 * count else f"{count:.1f}{unit}"


def _commit(artifact: Artifact, options: RayLLMOptions, links: Mapping[str, str]) -> str | None:
    """The checkpoint's commit: as asked, as recorded, or as the hub's cache calls the folder."""
    known = artifact.commit
    folder = artifact.path.resolve().name
    if artifact.kind == "hf" and _COMMIT.fullmatch(folder) is not None:
        known = folder
    if None not in (options.commit, known) and options.commit != known:
        raise OptionsError("--commit", str(options.commit), f"{known}, which the artifact was made of", "leave it out")
    return known if options.commit is None else options.commit


def _derived(artifact: Artifact, links: Mapping[str, str]) -> str:
    """40 hexadecimal digits that change with the mirror's files; of a file too large to read, its bytes are counted."""
    digest = hashlib.sha256()
    for path, source in sorted(links.items()):
        size = artifact.tree.files[source]
        content = artifact.sha256.get(source)
        if content is None:
            content = hashlib.sha256(artifact.tree.read(source)).hexdigest() if size <= READ_BYTES else ""
        digest.update(f"{path} {size} {content}\n".encode())
    return digest.hexdigest()[:40]


def _dumped(content: object) -> str:
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text


def _next(options: RayLLMOptions) -> tuple[str, ...]:
    start = "cd {output} && serve run serve.yaml"
    if options.bucket_uri is None:
        return (f"cp -r {{output}}/{MIRROR} to {options.model_local_path} on every node", start)
    uri = options.bucket_uri.rstrip("/")
    if uri.startswith("s3://"):
        copy = (f"aws s3 sync --exclude hash {{output}}/{MIRROR} {uri}", f"aws s3 cp {{output}}/{HASH} {uri}/hash")
    else:
        copy = (f"gsutil -m rsync -x hash {{output}}/{MIRROR} {uri}", f"gsutil cp {{output}}/{HASH} {uri}/hash")
    return (*copy, start)
