"""What must be true of a model repository for Triton to load it, written from the side that reads.

Source of what may be joined in an ensemble: triton-inference-server/core@05295b70:src/ensemble_scheduler/
ensemble_utils.cc; of each backend's demands, what the module that writes its configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from llmcompile.errors import LlmCompileError
from llmcompile.packaging.documents import count, section, yaml_value
from llmcompile.packaging.target import Finding, Serving, Status
from llmcompile.packaging.triton.generations import generation_of, has
from llmcompile.packaging.triton.repository import (
    CONFIG,
    Engine,
    Repository,
    parameter,
    read,
    tensors,
)
from llmcompile.packaging.weights import are_all, missing_weights, ranked_tensors

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree
    from llmcompile.packaging.triton.pbtxt import Message

Said: TypeAlias = tuple[Status, str, str, str, str]
"""Status, subject, found, expected, hint."""
Seen: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Type, dimensions, dimensions with the batch's."""

_BACKENDS = ("tensorrtllm", "python", "fastertransformer")
_OWN_GPUS = ("tensorrtllm", "fastertransformer")
_NEEDED = ("gpt_model_type", "gpt_model_path", "model_checkpoint_path", "model_type", "data_type")
"""Parameters whose placeholder is not taken for a default."""
_BATCHING = ("inflight_fused_batching", "inflight_batching")
_STATIC = ("V1", "v1")
_GUIDED = ("guided_decoding_backend", "tokenizer_dir", "xgrammar_tokenizer_info_path")
_LOGITS = ("context_logits", "generation_logits")
_LOGITS_TYPES = MappingProxyType({"float32": "TYPE_FP32", "float16": "TYPE_FP16"})
_ENGINE_TENSORS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "input": {"input_ids": "TYPE_INT32", "input_lengths": "TYPE_INT32", "request_output_len": "TYPE_INT32"},
        "output": {"output_ids": "TYPE_INT32", "sequence_length": "TYPE_INT32"},
    }
)
_DECODER_TENSORS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "input": {"input_ids": "TYPE_UINT32", "input_lengths": "TYPE_UINT32", "request_output_len": "TYPE_UINT32"},
        "output": {"output_ids": "TYPE_UINT32", "sequence_length": "TYPE_UINT32"},
    }
)
_FT_TENSORS: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "GPT": _DECODER_TENSORS,
        "GPT-J": _DECODER_TENSORS,
        "GPT-NeoX": _DECODER_TENSORS,
        "Llama": _DECODER_TENSORS,
        "T5": {
            "input": {"input_ids": "TYPE_UINT32", "sequence_length": "TYPE_UINT32", "max_output_len": "TYPE_UINT32"},
            "output": {"output_ids": "TYPE_INT32", "sequence_length": "TYPE_INT32"},
        },
        "T5-Encoder": {"input": {"input_ids": "TYPE_UINT32", "sequence_length": "TYPE_UINT32"}, "output": {}},
        "bert": {"input": {"sequence_lengths": "TYPE_INT32"}, "output": {}},
    }
)
_LLAMA = "Llama"
_FLAGS = ("enable_kv_cache_reuse", "exclude_input_in_output", "enable_chunked_context", "normalize_log_probs")
_TRUE, _FALSE = ("True", "true", "TRUE", "1"), ("False", "false", "FALSE", "0")
_FRACTIONS = ("kv_cache_free_gpu_mem_fraction", "cross_kv_cache_fraction", "lora_cache_gpu_memory_fraction")
_POLICIES = ("guaranteed_no_evict", "max_utilization")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_FT_TYPES = ("fp16", "fp32", "bf16")
_MODEL_YAML = "model.yaml"


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings, at least one for each."""
    repository = read(tree, serving)
    for rule, check in _CHECKS.items():
        said = list(check(repository))
        if said == []:
            said = [("skipped", tree.name, "nothing here that the rule is about", "", "")]
        for finding in said:
            yield Finding(rule, *finding)


def _ok(subject: str, found: str) -> Said:
    return "ok", subject, found, "", ""


def _failed(subject: str, found: str, expected: str, hint: str) -> Said:
    return "failed", subject, found, expected, hint


def _note(subject: str, found: str, expected: str = "", hint: str = "") -> Said:
    return "note", subject, found, expected, hint


def _untold(subject: str) -> Said:
    return "skipped", subject, "the release is not known", "", "add --target-version, the server's TensorRT-LLM"


def _subject(model: str, key: str = "") -> str:
    return f"{model}/{CONFIG}" if key == "" else f"{model}/{CONFIG}: {key}"


def _config(repository: Repository) -> Iterator[Said]:
    for name in repository.tree.parts():
        error = repository.broken.get(name)
        if error is None:
            yield _ok(_subject(name), "read")
            continue
        problem = error.problems[0]
        yield _failed(problem.subject, problem.found, problem.expected, problem.hint)
    if repository.tree.parts() == ():
        yield _failed(repository.tree.name, "no folder", "a folder for each model", "pass the repository's folder")


def _placeholder(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        left = {key for key, value in _strings(message) if "${" in value}
        needed = sorted(key for key in left if key.rpartition(".")[2] in _NEEDED or not key.startswith("parameters."))
        for key in needed:
            hint = f"tools/fill_template.py -i {_subject(name)} NAME:VALUE"
            yield _failed(_subject(name, key), "a placeholder that was not filled", "a value", hint)
        for key in sorted(left - set(needed)):
            yield _note(_subject(name, key), "a placeholder, which is taken for the default", "", "fill or remove it")
        if left == set():
            yield _ok(_subject(name), "every value is filled")


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path -> each string in a message; messages are as deep as the schema and no deeper."""
    if isinstance(value, str):
        yield path.removesuffix(".string_value"), value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, key if path == "" else f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}[{index}]")


def _name(repository: Repository) -> Iterator[Said]:
    for folder, message in repository.models.items():
        name = message.get("name", "")
        if name in ("", folder):
            yield _ok(_subject(folder), f"name {folder}" if name != "" else "named by its folder")
        else:
            yield _failed(_subject(folder, "name"), repr(name), f'"{folder}", the folder', f'write name: "{folder}"')


def _version_folder(repository: Repository) -> Iterator[Said]:
    for name in repository.models:
        versions = repository.versions(name)
        if versions == []:
            yield _failed(name, "no folder for a version", f"{name}/1", f"mkdir {name}/1")
        else:
            yield _ok(name, f"version {versions[0]}")


def _instance_group(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        groups = message.get("instance_group", [])
        kinds = [group.get("kind", "KIND_AUTO") for group in groups]
        if message.get("backend", "") not in _OWN_GPUS:
            continue
        if kinds == ["KIND_CPU"] and groups[0].get("count", 1) > 0 and groups[0].get("gpus", []) == []:
            yield _ok(_subject(name), f"{groups[0].get('count', 1)} of KIND_CPU")
            continue
        yield _failed(
            _subject(name, "instance_group"),
            ", ".join(kinds) if kinds != [] else "not given, which is one for each GPU",
            "one group of KIND_CPU, without gpus: the backend takes the GPUs itself",
            "write instance_group [ { count: 1 kind: KIND_CPU } ]",
        )


def _backend(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        backend, platform = message.get("backend", ""), message.get("platform", "")
        joined = "ensemble_scheduling" in message
        if joined != (platform == "ensemble"):
            found = f"platform {platform!r} {'with' if joined else 'without'} ensemble_scheduling"
            yield _failed(_subject(name), found, "both for an ensemble, neither for others", 'platform: "ensemble"')
        elif backend == "" and platform == "":
            yield _failed(
                _subject(name), "no backend", f"one of {', '.join(_BACKENDS)}", 'write backend: "tensorrtllm"'
            )
        elif joined or backend in _BACKENDS:
            yield _ok(_subject(name), platform if joined else backend)
        else:
            known = f"{', '.join(_BACKENDS)} and ensembles"
            yield _note(_subject(name), f"{backend or platform}, of which nothing is known here", known)


def _gpt_model_type(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("tensorrtllm"):
        found = _raw(message, "gpt_model_type")
        subject = _subject(name, "gpt_model_type")
        if found in _BATCHING:
            yield _ok(subject, str(found))
        elif found in _STATIC:
            yield _note(subject, f"{found}: one batch at a time", _BATCHING[0], "requests then wait for each other")
        elif found is None or "${" not in found:
            shown = "not given" if found is None else repr(found)
            yield _failed(subject, shown, f"one of {', '.join((*_BATCHING, *_STATIC))}", f"write {_BATCHING[0]}")


def _raw(message: Message, key: str) -> str | None:
    """A parameter as it is written, a placeholder too."""
    value = message.get("parameters", {}).get(key)
    return None if value is None else str(value.get("string_value", ""))


def _engine_path(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("tensorrtllm"):
        paths = {key: _raw(message, key) for key in ("gpt_model_path", "encoder_model_path")}
        given = {key: path for key, path in paths.items() if path not in (None, "")}
        if given == {}:
            expected = "the folder of an engine, as the server sees it"
            yield _failed(_subject(name, "gpt_model_path"), "not given", expected, f"/models/{name}/1")
        for key, path in given.items():
            if "${" not in str(path):
                yield from _engine_folder(repository, name, key, str(path))


def _engine_folder(repository: Repository, model: str, key: str, path: str) -> Iterator[Said]:
    place = repository.located(path)
    subject = _subject(model, key)
    if place is None:
        expected = f"a folder of the repository, like {repository.home(model)}"
        yield _failed(subject, path[:200], expected, "correct the path, or copy the engine there")
        return
    files = repository.tree.under(place[0]).files
    engines = [file for file in files if "/" not in file and file.endswith(".engine")]
    config = repository.json(f"{place[0]}/config.json")
    if engines == [] or not isinstance(config, dict):
        found = f"{place[0]} with {len(engines)} engines and {'no' if config is None else 'a'} config.json"
        yield _failed(subject, found, "rank0.engine and config.json, an object", "copy the engine's whole folder")
    else:
        yield _ok(subject, f"{path}, here {place[0]}")


def _mount_path(repository: Repository) -> Iterator[Said]:
    places: dict[str, str] = {}
    for subject, path in _paths(repository):
        if not path.startswith("/"):
            expected = "an absolute path: the server's working directory is another"
            yield _failed(subject, path[:200], expected, "begin it with the folder of the repository")
            continue
        place = repository.located(path)
        if place is not None:
            places[subject] = place[1]
    asked = repository.serving.mount_path
    wanted = next(iter(places.values()), None) if asked is None else "/" + asked.strip("/")
    for subject, mount in places.items():
        if mount == wanted:
            yield _ok(subject, f"in {mount}")
        else:
            yield _failed(subject, f"in {mount}", f"in {wanted}", "mount the repository where all paths point to")


def _paths(repository: Repository) -> Iterator[tuple[str, str]]:
    """Where a path stands -> the path, of all that are in the repository."""
    for name, message in repository.models.items():
        for key in ("gpt_model_path", "encoder_model_path", "model_checkpoint_path", "tokenizer_dir"):
            path = parameter(message, key)
            hub = key == "tokenizer_dir" and path is not None and not path.startswith(("/", "."))
            if path not in (None, "") and not hub:
                yield _subject(name, key), str(path)
        model = _yaml(repository, name).get("model")
        if isinstance(model, str) and model.startswith("/"):
            yield f"{repository.home(name)}/{_MODEL_YAML}: model", model


def _rank_files(repository: Repository) -> Iterator[Said]:
    for engine in _engines(repository):
        if engine.ranks is None:
            yield _note(f"{engine.folder}/config.json", "no tp_size in pretrained_config.mapping", "the degrees")
            continue
        files = repository.tree.under(engine.folder).files
        wanted = [f"rank{rank}.engine" for rank in range(min(engine.ranks, 4096))]
        bad = [name for name in wanted if files.get(name, 0) == 0]
        more = sorted(name for name in files if name.endswith(".engine") and "/" not in name and name not in wanted)
        if bad != []:
            found = f"{len(bad)} missing or empty: {', '.join(bad[:4])}"
            expected = f"tp x pp = {engine.ranks} rank files"
            yield _failed(engine.folder, found, expected, "copy the engine's whole folder, or build it again")
        elif more != []:
            yield _note(engine.folder, f"{', '.join(more[:4])} besides", f"{engine.ranks} rank files", "remove them")
        else:
            yield _ok(engine.folder, f"{engine.ranks} rank files")


def _engines(repository: Repository) -> Iterator[Engine]:
    """The engines of all models, each once."""
    seen = set()
    for _, message in repository.of("tensorrtllm"):
        for engine in repository.engines(message):
            if engine.folder not in seen:
                seen.add(engine.folder)
                yield engine


def _batch(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        subject, batch = _subject(name, "max_batch_size"), message.get("max_batch_size", 0)
        built = _built_batch(repository, message)
        sizes = message.get("dynamic_batching", {}).get("preferred_batch_size", [])
        wrong = [size for size in sizes if not 0 < size <= batch]
        if batch < (1 if message.get("backend", "") in _OWN_GPUS else 0):
            yield _failed(subject, str(batch), "at least 1: the tensors have a dimension for the batch", "raise it")
        elif built is not None and batch > built:
            yield _failed(subject, str(batch), f"at most {built}, for which the engine was built", f"write {built}")
        elif wrong != []:
            found = f"preferred_batch_size {wrong[0]} of max_batch_size {batch}"
            yield _failed(_subject(name, "dynamic_batching"), found, f"1 to {batch}", f"write {batch}")
        elif built is not None:
            yield _ok(subject, f"{batch} of {built}")
    for name, message in repository.ensembles():
        yield from _ensemble_batch(repository, name, message)


def _built_batch(repository: Repository, message: Message) -> int | None:
    """The least of what a model's engines were built for."""
    engines = repository.engines(message) if message.get("backend", "") == "tensorrtllm" else []
    limits = [count(engine.built.get("max_batch_size")) for engine in engines]
    return min((limit for limit in limits if limit is not None), default=None)


def _ensemble_batch(repository: Repository, name: str, message: Message) -> Iterator[Said]:
    whole = message.get("max_batch_size", 0)
    for step in message.get("ensemble_scheduling", {}).get("step", []):
        part = repository.models.get(step.get("model_name", ""))
        if part is None:
            continue
        batch = part.get("max_batch_size", 0)
        subject = _subject(name, "max_batch_size")
        if batch == 0:
            continue
        if whole > batch:
            found = f"{whole}, and {batch} in {step['model_name']}"
            yield _failed(subject, found, "one number in all of them", f"write {batch}")
        elif whole < batch:
            yield _note(subject, f"{whole}, and {batch} in {step['model_name']}", "one number in all of them")


def _beam(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("tensorrtllm"):
        width = _number(parameter(message, "max_beam_width"))
        for engine in repository.engines(message)[:1]:
            built = count(engine.built.get("max_beam_width"))
            subject = _subject(name, "max_beam_width")
            if built is None:
                yield "skipped", subject, "config.json of the engine does not say", "", ""
            elif width is None:
                yield _ok(subject, f"1, the default, of {built}")
            elif width > built:
                yield _failed(subject, str(int(width)), f"at most {built}, for which it was built", f"write {built}")
            else:
                yield _ok(subject, f"{int(width)} of {built}")


def _number(text: str | None) -> float | None:
    """A number in a parameter; None where there is none."""
    try:
        value = float("" if text is None else text)
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None


def _logits(repository: Repository) -> Iterator[Said]:
    for engine in list(_engines(repository))[:1]:
        stored = str(section(engine.config, "pretrained_config").get("logits_dtype", "float32"))
        generation = generation_of(str(engine.version)) if repository.generation is None else repository.generation
        if generation is None:
            yield _untold(engine.folder)
            continue
        typed = has(generation, "0.17")
        expected = _LOGITS_TYPES.get(stored, "TYPE_FP32") if typed else "TYPE_FP32"
        why = f"{expected}, the engine's" if typed else f"{expected}, all that is returned before 0.17"
        for name, message in repository.models.items():
            answers = message.get("backend", "") == "tensorrtllm" or _calls_engine(message)
            declared = [item for key, item in tensors(message, "output").items() if key in _LOGITS and answers]
            for item in declared:
                subject, kind = _subject(name, item["name"]), _typed(item)
                same = kind == expected
                yield _ok(subject, kind) if same else _failed(subject, kind, why, f"write {expected}")
        gathered = [
            key for key in ("gather_context_logits", "gather_generation_logits") if engine.built.get(key) is True
        ]
        if gathered != [] and not typed and stored != "float32":
            found = f"{gathered[0]}, and logits of {stored}, which are read as float32 before 0.17"
            yield _failed(engine.folder, found, "float32", "build the engine with --logits-dtype float32")


def _calls_engine(message: Message) -> bool:
    return "tensorrt_llm_model_name" in message.get("parameters", {})


def _tensors(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        backend = message.get("backend", "")
        wanted: Mapping[str, Mapping[str, str]] | None = None
        if backend == "tensorrtllm":
            wanted = _ENGINE_TENSORS
        elif backend == "fastertransformer":
            wanted = _FT_TENSORS.get(parameter(message, "model_type") or "GPT")
        if wanted is None:
            continue
        wrong = False
        for side, needed in wanted.items():
            there = tensors(message, side)
            for tensor, kind in needed.items():
                found = there.get(tensor, {}).get("data_type", "TYPE_INVALID") if tensor in there else "not declared"
                if found != kind:
                    wrong = True
                    yield _failed(_subject(name, f"{side} {tensor}"), found, kind, f"declare {side} {tensor}")
        if not wrong:
            yield _ok(_subject(name), "every tensor that the backend insists on")


def _keys(repository: Repository) -> Iterator[Said]:
    generation = repository.generation
    for name, message in repository.models.items():
        backend, given = message.get("backend", ""), message.get("parameters", {})
        needed: tuple[str, ...] = ()
        if backend == "tensorrtllm" or name == "preprocessing":
            if generation is None:
                yield _untold(_subject(name))
                continue
            needed = _keys_of(backend, generation)
        else:
            continue
        missing = [key for key in needed if key not in given]
        for key in missing:
            found = f"not given, and {generation} reads it without a default"
            yield _failed(_subject(name, key), found, 'a value, "" for none', f'add parameter {key} with ""')
        if "worker_path" in given and has(generation, "0.10"):
            hint = "remove it, or call it executor_worker_path"
            yield _note(_subject(name, "worker_path"), "read no longer, since 0.10", "executor_worker_path", hint)
        if missing == []:
            yield _ok(_subject(name), f"{len(needed)} parameters that {generation} insists on")


def _keys_of(backend: str, generation: str) -> tuple[str, ...]:
    if backend == "tensorrtllm":
        return _GUIDED if has(generation, "0.19") else ()
    if not has(generation, "0.12"):
        return ()
    return ("gpt_model_path", "multimodal_model_path" if has(generation, "0.19") else "visual_model_path")


def _parameters(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("tensorrtllm"):
        said = [*_misread(name, message), *_beyond(repository, name, message)]
        yield from said if said != [] else [_ok(_subject(name), "every value is understood")]


def _misread(name: str, message: Message) -> Iterator[Said]:
    """Values that the backend takes for its default without more than a warning, or cannot keep."""
    for key in _FLAGS:
        value = parameter(message, key)
        if value not in (None, "", *_TRUE, *_FALSE):
            yield _failed(_subject(name, key), repr(value), "true or false", "it would be the default: correct it")
    for key in _FRACTIONS:
        value = parameter(message, key)
        number = _number(value)
        if value not in (None, "") and (number is None or not 0 < number <= 1):
            yield _failed(_subject(name, key), repr(value), "more than 0 and at most 1", "correct it")
    policy = parameter(message, "batch_scheduler_policy")
    if policy not in (None, "", *_POLICIES):
        found = f"{policy!r}, taken for {_POLICIES[0]}"
        yield _failed(_subject(name, "batch_scheduler_policy"), found, " or ".join(_POLICIES), "correct it")
    width = parameter(message, "max_beam_width")
    if width not in (None, "") and ((number := _number(width)) is None or number < 1 or number != int(number)):
        yield _failed(_subject(name, "max_beam_width"), repr(width), "a whole number from 1", "correct it")


def _beyond(repository: Repository, name: str, message: Message) -> Iterator[Said]:
    """What is asked of an engine that it cannot do."""
    engines = repository.engines(message)
    generation = repository.generation
    reuse = parameter(message, "enable_kv_cache_reuse")
    default = generation is not None and has(generation, "0.19")
    asked = reuse in _TRUE or (reuse in (None, "") and default)
    plugins = section(engines[0].built, "plugin_config") if engines != [] else {}
    if asked and plugins.get("use_paged_context_fmha") is False:
        found = "on, and the engine was built without use_paged_context_fmha"
        hint = 'write "false", or build with --use-paged-context-fmha enable'
        yield _failed(_subject(name, "enable_kv_cache_reuse"), found, "off for this engine", hint)
    crossed = parameter(message, "cross_kv_cache_fraction") in (None, "")
    if len(engines) == 2 and crossed and generation is not None and has(generation, "0.14"):
        found = "not given, and there are an encoder and a decoder"
        yield _failed(_subject(name, "cross_kv_cache_fraction"), found, "their shares of the KV cache", "write 0.5")


def _decoupled(repository: Repository) -> Iterator[Said]:
    engines = {name: _is_decoupled(message) for name, message in repository.of("tensorrtllm")}
    for name, streaming in engines.items():
        yield _ok(_subject(name), "streaming" if streaming else "one answer to a request")
    for name, message in repository.models.items():
        engine = _raw(message, "tensorrt_llm_model_name")
        if engine not in engines:
            continue
        if _is_decoupled(message) == engines[engine]:
            yield _ok(_subject(name), f"as {engine}")
        else:
            found = f"decoupled is {_is_decoupled(message)}, and {engines[engine]} in {engine}"
            yield _failed(_subject(name), found, "the same in both", "write it alike in both")
    for name, message in repository.models.items():
        if _is_decoupled(message) and message.get("response_cache", {}).get("enable", False) is True:
            found = "response_cache beside decoupled, which Triton refuses"
            yield _failed(_subject(name), found, "one of the two", "remove response_cache")
    for name, message in repository.ensembles():
        if "model_transaction_policy" in message:
            yield _note(_subject(name), "decoupled is given, and Triton sets it by the steps", "left out")


def _is_decoupled(message: Message) -> bool:
    return message.get("model_transaction_policy", {}).get("decoupled", False) is True


def _gpus(repository: Repository) -> Iterator[Said]:
    for name, message in repository.models.items():
        text = parameter(message, "gpu_device_ids")
        instances = sum(group.get("count", 1) for group in message.get("instance_group", []))
        subject = _subject(name, "gpu_device_ids")
        if text is not None and text != "":
            yield _gpu_groups(subject, text, instances, _ranks(repository, name, message))
        elif instances > 1 and _has_yaml(repository, name):
            yield _failed(subject, f"not given, and {instances} instances", "GPUs of each", 'like "0,1;2,3"')
        elif instances > 1 and message.get("backend", "") == "tensorrtllm":
            yield _note(subject, f"not given, and {instances} instances, all on the first GPUs", 'like "0,1;2,3"')


def _gpu_groups(subject: str, text: str, instances: int, ranks: int | None) -> Said:
    groups = [[number.strip() for number in group.split(",")] for group in text.split(";")]
    every = [number for group in groups for number in group]
    numbers = all(number.isascii() and number.isdigit() for number in every)
    fits = ranks is None or all(len(group) == ranks for group in groups)
    if numbers and fits and len(groups) == instances and len(set(every)) == len(every):
        return _ok(subject, f"{len(groups)} instances of {len(groups[0])} GPUs")
    expected = f"{instances} groups of {'tp x pp' if ranks is None else ranks} GPUs, each GPU once"
    return _failed(subject, text[:200], expected, "commas in an instance, semicolons between")


def _ranks(repository: Repository, name: str, message: Message) -> int | None:
    engines = repository.engines(message)
    if engines != []:
        return engines[0].ranks
    content = _yaml(repository, name)
    tp, pp = count(content.get("tensor_parallel_size", 1)), count(content.get("pipeline_parallel_size", 1))
    return None if not _has_yaml(repository, name) or tp is None or pp is None else tp * pp


def _ensemble(repository: Repository) -> Iterator[Said]:
    for name, message in repository.ensembles():
        said = list(_wiring(repository, name, message))
        yield from said if said != [] else [_ok(_subject(name), "every tensor arrives, with its type")]


def _wiring(repository: Repository, name: str, message: Message) -> Iterator[Said]:
    """What is wrong with the steps: tensors flow from the ensemble's inputs, by names of its own, to its outputs."""
    batched = message.get("max_batch_size", 0) > 0
    flowing = {tensor: _seen(item, batched) for tensor, item in tensors(message, "input").items()}
    steps, made = message["ensemble_scheduling"].get("step", []), set[str]()
    if steps == []:
        yield _failed(_subject(name, "ensemble_scheduling"), "no step", "a step for each model", "add the steps")
    for step in steps:
        model = step.get("model_name", "")
        part = repository.models.get(model)
        if part is None:
            if model not in repository.broken:
                found = f"{model!r}, which is not in the repository"
                yield _failed(_subject(name, "model_name"), found, "a folder of it", "copy the model, or correct it")
            continue
        given, mapped = tensors(part, "output"), step.get("output_map", {})
        for tensor in sorted(made & set(mapped.values())):
            yield _failed(_subject(name, f"step {model} output_map"), f"{tensor} again", "one maker", "remove one")
        made |= set(mapped.values())
        inside = part.get("max_batch_size", 0) > 0
        flowing |= {mapped[key]: _seen(item, inside) for key, item in given.items() if key in mapped}
    for step in steps:
        yield from _step(repository, name, step, flowing)
    for tensor, item in tensors(message, "output").items():
        arriving, declared = flowing.get(tensor), _seen(item, batched)
        if arriving is None:
            yield _failed(_subject(name, f"output {tensor}"), "made by no step", "an output_map to it", "map it")
        elif not _agree(arriving, declared):
            yield _failed(_subject(name, f"output {tensor}"), _said(declared), _said(arriving), "declare both alike")


def _step(repository: Repository, name: str, step: Mapping[str, Any], flowing: Mapping[str, Seen]) -> Iterator[Said]:
    model = step.get("model_name", "")
    part = repository.models.get(model)
    if part is None:
        return
    taken, subject = tensors(part, "input"), _subject(name, f"step {model}")
    for side, mapped in (("input", step.get("input_map", {})), ("output", step.get("output_map", {}))):
        for key in sorted(set(mapped) - set(tensors(part, side))):
            yield _failed(f"{subject} {side}_map {key}", "not in the model", f"an {side} of {model}", "correct it")
    mapped, inside = step.get("input_map", {}), part.get("max_batch_size", 0) > 0
    for key, item in taken.items():
        if key not in mapped:
            if item.get("optional", False) is not True:
                yield _failed(f"{subject} input_map {key}", "not mapped, and not optional", "a tensor", "map it")
            continue
        arriving, declared = flowing.get(mapped[key]), _seen(item, inside)
        if arriving is None:
            found = f"{mapped[key]}, which is no input of the ensemble and no step's output"
            yield _failed(f"{subject} input_map {key}", found, "a tensor that there is", "correct it")
        elif not _agree(arriving, declared):
            found = f"{mapped[key]} of {_said(arriving)}"
            yield _failed(f"{subject} input_map {key}", found, _said(declared), "declare both alike")


def _typed(item: Message) -> str:
    return str(item.get("data_type", "TYPE_INVALID"))


def _seen(item: Message, batched: bool) -> Seen:
    """A tensor as an ensemble sees it: its type, and its dimensions without and with the batch's."""
    dims = tuple(item.get("dims", ()))
    return _typed(item), dims, (-1, *dims) if batched else dims


def _agree(one: Seen, other: Seen) -> bool:
    """Whether two tensors may be one, as Triton compares them: -1 fits every size."""
    return one[0] == other[0] and (_fit(one[1], other[1]) or _fit(one[2], other[2]))


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _said(tensor: Seen) -> str:
    return f"{tensor[0]} {list(tensor[1])}"


def _model_py(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("python"):
        home = repository.home(name)
        code = message.get("default_model_filename", "") or "model.py"
        wanted = [code]
        if name == "tensorrt_llm_bls":
            wanted += ["lib/decode.py", "lib/triton_decoder.py"]
        if _has_yaml(repository, name):
            wanted += ["helpers.py"]
        family = "llmapi" if _has_yaml(repository, name) else "inflight_batcher_llm"
        missing = [file for file in wanted if repository.tree.files.get(f"{home}/{file}", 0) == 0]
        if missing == []:
            yield _ok(home, ", ".join(wanted))
        for file in missing:
            hint = f"cp /app/all_models/{family}/{name}/1/{file} {home}/{file}, in the image of the same release"
            yield _failed(f"{home}/{file}", "missing or empty", "NVIDIA's code of this model", hint)


def _tokenizer(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("python"):
        path = _raw(message, "tokenizer_dir")
        subject = _subject(name, "tokenizer_dir")
        if path is None or path == "":
            if name in ("preprocessing", "postprocessing"):
                yield _failed(subject, "not given", "the tokenizer's folder on the server", "add it")
            continue
        if "${" in path:
            yield _failed(subject, "a placeholder that was not filled", "the tokenizer's folder", "fill it")
            continue
        place = repository.located(path)
        if place is None and not path.startswith(("/", ".")):
            yield _note(subject, f"{path[:200]}, fetched from the hub when the server starts", "a folder")
            continue
        files = {} if place is None else repository.tree.under(place[0]).files
        if any(file in files for file in _TOKENIZER):
            yield _ok(subject, path)
        else:
            found = path[:200] if place is None else f"{place[0]}, without a tokenizer"
            yield _failed(subject, found, "a folder of the repository with a tokenizer", "copy the tokenizer there")


def _runtime(repository: Repository) -> Iterator[Said]:
    asked = repository.serving.runtime_version
    served = generation_of(asked) if asked is not None else repository.generation
    for engine in _engines(repository):
        subject, built = f"{engine.folder}/config.json: version", engine.version
        if built is None:
            yield "skipped", subject, "the engine does not say what built it", "", ""
        elif served is None and asked is None:
            yield _untold(subject)
        elif generation_of(built) != served:
            where = asked if asked is not None else repository.version
            yield _failed(subject, built, f"{where}, which the server has", "take the engine's image, or build again")
        elif asked is not None and asked != built:
            yield _note(subject, f"built by {built}, served by {asked}", "the same version")
        else:
            yield _ok(subject, built)


def _fastertransformer(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("fastertransformer"):
        said = list(_ft_model(repository, name, message))
        yield from (
            said if any(finding[0] == "failed" for finding in said) else [*said, _ok(_subject(name), "as stored")]
        )


def _ft_model(repository: Repository, name: str, message: Message) -> Iterator[Said]:
    model_type = parameter(message, "model_type") or "GPT"
    if model_type not in _FT_TENSORS:
        yield _failed(_subject(name, "model_type"), model_type, f"one of {', '.join(_FT_TENSORS)}", "correct it")
    if model_type == _LLAMA:
        yield _note(_subject(name, "model_type"), "Llama, which NVIDIA's backend does not know", "a fork's backend")
    kind = parameter(message, "data_type")
    if kind not in _FT_TYPES or (model_type == "GPT-NeoX" and kind == "bf16"):
        known = "fp16 or fp32" if model_type == "GPT-NeoX" else ", ".join(_FT_TYPES)
        yield _failed(_subject(name, "data_type"), repr(kind), known, "correct it")
    degrees = {key: _number(parameter(message, key)) for key in ("tensor_para_size", "pipeline_para_size")}
    for key, value in degrees.items():
        if value is None or value < 1 or value != int(value):
            yield _failed(_subject(name, key), repr(_raw(message, key)), "a whole number from 1", "correct it")
    path = parameter(message, "model_checkpoint_path")
    tp = degrees["tensor_para_size"]
    folder = f"{int(tp)}-gpu" if tp is not None else "1-gpu"
    path = f"/{repository.home(name)}/{message.get('default_model_filename', '') or folder}" if path is None else path
    yield from _weights(repository, _subject(name, "model_checkpoint_path"), path, tp, model_type)


def _weights(repository: Repository, subject: str, path: str, tp: float | None, model_type: str) -> Iterator[Said]:
    place = repository.located(path)
    files = {} if place is None else repository.tree.under(place[0]).files
    weights = {file: size for file, size in files.items() if file.endswith(".bin")}
    if place is None or "config.ini" not in files or weights == {} or 0 in weights.values():
        found = path[:200] if place is None else f"{place[0]} without config.ini, without weights, or with empty ones"
        yield _failed(subject, found, "a folder of the repository with config.ini and weights", "correct it")
        return
    if model_type == "bert" and not path.endswith("/"):
        found = f"{path[:200]}, to which file names are joined without a slash"
        yield _failed(subject, found, "a path that ends in /", "end it with /")
    for tensor, ranks in ranked_tensors(weights).items():
        if tp is not None and not are_all(ranks, int(tp)):
            found = f"{tensor} of ranks {', '.join(map(str, sorted(ranks)[:8]))} in {place[0]}"
            expected = f"a file for each of tensor_para_size {tp:g}"
            yield _failed(subject, found, expected, "partition the model again, or correct the size")
            return


def _has_yaml(repository: Repository, name: str) -> bool:
    return f"{repository.home(name)}/{_MODEL_YAML}" in repository.tree.files


def _yaml(repository: Repository, name: str) -> Mapping[str, Any]:
    """A model's model.yaml; empty where there is none that can be read."""
    path = f"{repository.home(name)}/{_MODEL_YAML}"
    if path not in repository.tree.files:
        return {}
    try:
        content = yaml_value(repository.tree.text(path))
    except (LlmCompileError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _model_yaml(repository: Repository) -> Iterator[Said]:
    for name, message in repository.of("python"):
        if _has_yaml(repository, name):
            said = list(_llmapi(repository, name, message))
            yield from said if said != [] else [_ok(f"{repository.home(name)}/{_MODEL_YAML}", "read")]


def _llmapi(repository: Repository, name: str, message: Message) -> Iterator[Said]:
    subject, content = f"{repository.home(name)}/{_MODEL_YAML}", _yaml(repository, name)
    triton = section(content, "triton_config")
    if content == {}:
        yield _failed(subject, "no mapping that can be read", "model, tensor_parallel_size, ...", "correct it")
        return
    for key in ("decoupled", "max_batch_size"):
        if key not in triton:
            yield _failed(f"{subject}: triton_config.{key}", "not given", "read without a default", "add it")
    if triton.get("max_batch_size", 0) != 0:
        found = str(triton.get("max_batch_size"))[:50]
        yield _failed(f"{subject}: triton_config.max_batch_size", found, "0: the backend does not batch", "write 0")
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        if count(content.get(key, 1)) is None:
            yield _failed(f"{subject}: {key}", str(content.get(key))[:50], "a whole number from 1", "correct it")
    for key in ("max_batch_size", "model_transaction_policy"):
        if key in message:
            found = "given, so that model.yaml's triton_config does not count"
            yield _failed(_subject(name, key), found, "left out", f"remove {key}")
    model = content.get("model")
    if not isinstance(model, str) or model == "":
        yield _failed(f"{subject}: model", str(model)[:50], "a folder on the server, or a hub id", "add it")
    elif not model.startswith("/"):
        yield _note(f"{subject}: model", f"{model[:200]}, fetched from the hub when the server starts", "a folder")
    else:
        place = repository.located(model)
        here = None if place is None else repository.tree.under(place[0])
        if here is None or "config.json" not in here.files:
            yield _failed(f"{subject}: model", model[:200], "a checkpoint in the repository", "copy it there")
        elif (lacking := missing_weights(here)) is not None:
            yield _failed(f"{subject}: model", lacking, "every file of the weights", "copy them there")


_CHECKS: Mapping[str, Callable[[Repository], Iterator[Said]]] = MappingProxyType(
    {
        "config": _config,
        "placeholder": _placeholder,
        "name": _name,
        "version-folder": _version_folder,
        "instance-group": _instance_group,
        "backend": _backend,
        "gpt-model-type": _gpt_model_type,
        "engine-path": _engine_path,
        "mount-path": _mount_path,
        "rank-files": _rank_files,
        "batch": _batch,
        "beam": _beam,
        "logits": _logits,
        "tensors": _tensors,
        "keys": _keys,
        "parameters": _parameters,
        "decoupled": _decoupled,
        "gpus": _gpus,
        "ensemble": _ensemble,
        "model-py": _model_py,
        "tokenizer": _tokenizer,
        "runtime": _runtime,
        "fastertransformer": _fastertransformer,
        "model-yaml": _model_yaml,
    }
)
