"""Rules about the model's own files, against one another and against serving.properties."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.errors import CheckpointError
from llmcompile.packaging.documents import section, whole
from llmcompile.packaging.lmi.releases import FT_WEIGHTS, TRT_ASYNC, without_build
from llmcompile.packaging.lmi.seen import (
    ASK_VERSION,
    FILE,
    SHOWN,
    Seen,
    failed,
    note,
    ok,
    skipped,
)
from llmcompile.packaging.target import Finding
from llmcompile.packaging.weights import are_all, missing_weights, ranked_tensors

_DTYPES = ("fp32", "fp16", "bf16")
_SPELLED = MappingProxyType(
    {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "f32": "fp32", "f16": "fp16", "half": "fp16"}
)
_CACHE = re.compile(r"compiled/neuronxcc-([^/]+)/.*")
_NONE = "no such model here"
_LISTED = 4


def archive_root(seen: Seen) -> Iterator[Finding]:
    """SageMaker unpacks to the mount path, and the server looks there alone."""
    flaws = list(_archive_flaws(seen))
    yield from flaws
    if seen.lead != "":
        hint = f"tar -C {seen.lead[:SHOWN]} -czf model.tar.gz ."
        yield failed(f"{seen.lead[:SHOWN]}/{FILE}", "below a folder", f"{FILE} at the root", hint)
    elif FILE in seen.tree.files:
        if flaws == []:
            yield ok(FILE, "at the root")
    else:
        yield failed(FILE, "no such file", f"{FILE} at the root", "llmcompile package lmi ARTIFACT OUTPUT")


def _archive_flaws(seen: Seen) -> Iterator[Finding]:
    """What an archive has that a folder cannot have."""
    tree, hint = seen.tree, "tar -C FOLDER -czf model.tar.gz ."
    if tree.gzipped is None:
        return
    name = tree.name.rpartition("/")[2] if seen.lead == "" else "the archive"
    if not tree.gzipped and tree.name.removesuffix(f"/{seen.lead}").endswith((".gz", ".tgz")):
        yield failed(name[:SHOWN], "a tar archive that is not compressed by gzip, as its name says", "gzip", hint)
    for odd in tree.odd[:_LISTED]:
        found = f"{odd[:SHOWN]!r} leads out of the folder that the archive is unpacked to"
        yield failed(name[:SHOWN], found, "names below the root, without '..'", hint)
    if FILE in tree.repeated:
        yield failed(FILE, "more than one in the archive; the last counts", "one", hint)
    others = [path for path in tree.files if path.endswith(f"/{FILE}")]
    if others != [] and seen.lead == "":
        found = f"also {', '.join(path[:SHOWN] for path in others[:_LISTED])}"
        yield failed(FILE, found, "one in an archive: the server reads that at the root", f"remove {others[0][:SHOWN]}")


def build_config(seen: Seen) -> Iterator[Finding]:
    """Without it LMI builds an engine of its own, which takes long, or fails."""
    if seen.layout != "flat":
        yield skipped(FILE, "no engine beside serving.properties")
    elif "build_config" in seen.json("config.json"):
        yield ok("config.json", "build_config")
    else:
        found = "no build_config: the server takes the folder for a Hugging Face checkpoint and builds an engine"
        yield failed("config.json", found, "the engine's own config.json", "copy the engine's over the model's")


def model_files(seen: Seen) -> Iterator[Finding]:
    """What the server and the handler open by name."""
    layout = seen.layout
    if layout is None or seen.away:
        yield skipped(FILE, _NONE)
        return
    where = f"{seen.repository}/" if layout == "repository" else ""
    wanted = [f"{where}{name}" for name in ("config.json", "tokenizer_config.json")]
    missing = [path for path in wanted if path not in seen.tree.files]
    for path in missing:
        strict = layout == "repository" and path.endswith("tokenizer_config.json")
        found = "no such file" + (": the server does not take the folder for an engine without it" if strict else "")
        yield failed(path, found, "the model's own", "copy it from the model")
    lacking = missing_weights(seen.tree) if layout == "hf" and seen.model_id is None else None
    if lacking is not None:
        yield failed(seen.tree.name, lacking, "every file of the weights", "copy them from the model")
    if missing == [] and lacking is None:
        yield ok(", ".join(wanted), "there")


def rank_files(seen: Seen) -> Iterator[Finding]:
    """A rank without its file stops, or reads what is in memory."""
    if seen.away or seen.layout not in ("ft", "repository", "flat"):
        yield skipped(FILE, "no files of ranks here")
    elif seen.layout == "ft":
        yield from _ft_ranks(seen)
    else:
        folder = seen.engine_folder if seen.engine_folder is not None else ""
        degree, stages = _engine_degrees(seen)
        ranks = seen.engine_ranks(folder)
        subject = f"{folder}rank*.engine"
        if degree is None:
            yield skipped(subject, f"{len(ranks)} engines; how many there should be is not said", "set the degree")
            return
        expected = f"rank 0 to {degree * stages - 1}: tp {degree} x pp {stages}"
        if are_all(ranks, degree * stages):
            yield ok(subject, f"{len(ranks)}, tp {degree} x pp {stages}")
        else:
            listed = ", ".join(str(rank) for rank in ranks[:_LISTED]) or "none"
            hint = "copy the missing ranks, or package the artifact again"
            yield failed(subject, f"{len(ranks)} engines, of ranks {listed}", expected, hint)


def _engine_degrees(seen: Seen) -> tuple[int | None, int]:
    """Degree and stages as the engine itself says, or else serving.properties."""
    folder = seen.engine_folder if seen.engine_folder is not None else ""
    mapping = section(section(seen.json(f"{folder}config.json"), "pretrained_config"), "mapping")
    degree, stages = whole(mapping.get("tp_size")), whole(mapping.get("pp_size"))
    return degree if degree is not None else seen.degree, stages if stages is not None else seen.stages


def _ft_ranks(seen: Seen) -> Iterator[Finding]:
    degree = seen.degree if seen.degree is not None else 1
    wanted = f"{degree * seen.stages}-gpu"
    if f"{wanted}/config.ini" not in seen.tree.files:
        there = ", ".join(seen.ft_folders) or "none"
        expected = f"{wanted}/config.ini: tp {degree} x pp {seen.stages}"
        yield failed(wanted, f"folders: {there[:SHOWN]}", expected, "set the degree that the files were made for")
        return
    ranks = ranked_tensors(seen.tree.under(wanted).files)
    torn = [name for name, held in ranks.items() if not are_all(held, degree)]
    for name in torn[:_LISTED]:
        found_ranks = ", ".join(str(rank) for rank in sorted(ranks[name])[:_LISTED])
        hint = "set the degree that the files were made for, or copy them again"
        yield failed(f"{wanted}/{name}.*.bin", f"ranks {found_ranks}", f"ranks 0 to {degree - 1}", hint)
    if ranks == {}:
        yield failed(wanted, "no tensor of a rank", "<tensor>.<rank>.bin", "copy the files again")
    elif torn == []:
        yield ok(wanted, f"{len(ranks)} tensors, each for {degree} ranks")


def split_weights(seen: Seen) -> Iterator[Finding]:
    """The loader goes by the table, and opens each file of it."""
    folder = seen.split_folder
    if folder is None:
        if seen.layout == "neuron" and not seen.away:
            expected = "pytorch_model.bin/key_to_filename.json"
            yield failed("pytorch_model.bin", "no such folder", expected, "package the artifact again")
        else:
            yield skipped(FILE, "no split checkpoint here")
        return
    table = seen.json(f"{folder}/key_to_filename.json")
    missing = [name for name in table.values() if f"{folder}/{name}" not in seen.tree.files]
    if table == {}:
        expected = "a JSON object, name of a tensor -> file"
        yield failed(f"{folder}/key_to_filename.json", "absent, empty or no JSON", expected, "package it again")
    elif missing != []:
        found = f"{len(missing)} of {len(table)} files are missing, like {str(missing[0])[:SHOWN]}"
        yield failed(folder, found, "every file of key_to_filename.json", "copy them, or package the artifact again")
    else:
        yield ok(folder, f"{len(table)} tensors, each with its file")


def tensor_parallel(seen: Seen) -> Iterator[Finding]:
    """An engine or a graph is for one number of devices."""
    subject = f"{FILE}: option.tensor_parallel_degree"
    said = seen.option("tensor_parallel_degree")
    if seen.layout in ("repository", "flat"):
        own, stages = _engine_degrees(seen)
        if not _has_mapping(seen):
            own = None
    elif seen.layout == "neuron":
        own, stages = whole(seen.compiled.get("num_cores")), 1
    else:
        own, stages = None, 1
    if own is None:
        if said is None or said == "max" or seen.degree is not None:
            yield skipped(subject, f"{said}; the model does not say its own")
        else:
            yield failed(subject, said[:SHOWN], "a whole number, or max", "write the number")
    elif said is None or said == "max":
        found = f"{said}: as many as the machine has"
        yield failed(subject, found, f"{own}, the model's own", f"write option.tensor_parallel_degree={own}")
    elif seen.degree != own:
        yield failed(subject, said[:SHOWN], f"{own}, the model's own", f"write option.tensor_parallel_degree={own}")
    elif seen.stages != stages:
        key = "option.pipeline_parallel_degree"
        yield failed(f"{FILE}: {key}", str(seen.stages), f"{stages}, the model's own", f"write {key}={stages}")
    elif stages > 1 and seen.handler == TRT_ASYNC and seen.number("pipeline_parallel_size") != stages:
        key = "option.pipeline_parallel_size"
        found = str(seen.option("pipeline_parallel_size"))
        yield failed(f"{FILE}: {key}", found, f"{stages}: the handler reads this key", f"write {key}={stages}")
    else:
        yield ok(subject, f"{own}, as the model")


def _has_mapping(seen: Seen) -> bool:
    folder = seen.engine_folder if seen.engine_folder is not None else ""
    pretrained = section(seen.json(f"{folder}config.json"), "pretrained_config")
    return whole(section(pretrained, "mapping").get("tp_size")) is not None


def batch_size(seen: Seen) -> Iterator[Finding]:
    """More than compiled stops the worker, or the request."""
    subject = f"{FILE}: option.max_rolling_batch_size"
    said = seen.number("max_rolling_batch_size")
    neuron = seen.layout == "neuron"
    limit = whole(seen.compiled.get("batch_size")) if neuron else whole(seen.built.get("max_batch_size"))
    if limit is None:
        yield skipped(subject, "what the model was built for is not said here")
        return
    if said is None:
        # LmiConfigRecommender.java (setRollingBatchSize).
        said = 256 if seen.option("rolling_batch") == "trtllm" else 32
        subject = f"{FILE}: option.max_rolling_batch_size is absent"
    hint = f"write option.max_rolling_batch_size={limit}"
    wrong = said != limit if neuron else said > limit
    if wrong:
        expected = f"{limit}, as compiled" if neuron else f"at most {limit}, as built"
        yield failed(subject, f"{said} sequences", expected, hint)
    else:
        yield ok(subject, f"{said} of {limit}")
    if seen.repository is not None:
        of_server = whole(_config(seen).get("max_batch_size"))
        if of_server is not None and of_server > limit:
            subject = f"{seen.repository}/config.pbtxt: max_batch_size"
            yield failed(subject, str(of_server), f"at most {limit}, as built", f"write max_batch_size: {limit}")


def sequence_length(seen: Seen) -> Iterator[Finding]:
    """Neuron's graphs have one length; an engine has a largest one."""
    if seen.layout == "neuron":
        own, text = whole(seen.compiled.get("sequence_length")), seen.option("n_positions")
        subject = f"{FILE}: option.n_positions"
        if own is None:
            yield skipped(subject, "what it was compiled for is not said here")
        elif seen.number("n_positions") != own:
            found = "absent" if text is None else text[:SHOWN]
            yield failed(subject, found, f"{own}, as compiled", f"write option.n_positions={own}")
        else:
            yield ok(subject, f"{own}, as compiled")
        return
    limits = {
        "max_num_tokens": whole(seen.built.get("max_num_tokens")),
        "max_seq_len": whole(seen.built.get("max_seq_len")),
        "max_input_len": whole(seen.built.get("max_input_len")),
    }
    above = [
        (name, said, limit)
        for name, limit in limits.items()
        if (said := seen.number(name)) is not None and limit is not None and said > limit
    ]
    for name, said, limit in above:
        key = f"option.{name}"
        yield failed(f"{FILE}: {key}", f"{said} tokens", f"at most {limit}, as built", f"write {key}={limit}")
    if seen.built == {}:
        yield skipped(FILE, "no limit on tokens is known here")
    elif above == []:
        yield ok(FILE, "no more tokens than the engine was built for")


def dtype(seen: Seen) -> Iterator[Finding]:
    """LMI's own spelling; of FasterTransformer's files, their type too."""
    subject = f"{FILE}: option.dtype"
    said = seen.option("dtype")
    if said is None:
        if seen.layout == "ft":
            said = "fp32"
        elif seen.layout == "neuron":
            said = "fp16"
        else:
            yield ok(FILE, "no dtype: the model's own")
            return
        subject += " is absent"
    allowed = (*_DTYPES, "int8") if seen.layout == "ft" else _DTYPES if seen.layout == "neuron" else (*_DTYPES, "auto")
    if said not in allowed:
        right = _SPELLED.get(said.lower(), "fp16")
        yield failed(subject, said[:SHOWN], f"one of {', '.join(allowed)}", f"write option.dtype={right}")
        return
    if (
        seen.layout == "ft"
        and seen.json("config.json").get("model_type") == "gpt_neox"
        and said not in ("fp32", "fp16")
    ):
        # rohithkrn/FasterTransformer@8622699:python/fastertransformer/gptneoxmodel.py (initialize).
        yield failed(
            subject, f"{said}, of GPT-NeoX", "fp32 or fp16, which is all it runs in", "write option.dtype=fp32"
        )
        return
    stored = _ft_config(seen).get("weight_data_type") if seen.layout == "ft" else None
    own = seen.compiled.get("auto_cast_type") if seen.layout == "neuron" else None
    if stored is not None and FT_WEIGHTS[said] != stored:
        fitting = [name for name, of_files in FT_WEIGHTS.items() if of_files == stored]
        expected = f"a type for files of {stored}: {', '.join(fitting)}"
        yield failed(subject, said, expected, f"write option.dtype={stored}")
    elif isinstance(own, str) and own in _DTYPES and own != said:
        yield failed(subject, said, f"{own}, as compiled", f"write option.dtype={own}")
    else:
        yield ok(subject, said)


def _ft_config(seen: Seen) -> Mapping[str, str]:
    """Every key of config.ini, of whichever section; empty where it cannot be read."""
    import configparser

    paths = [f"{folder}/config.ini" for folder in seen.ft_folders if f"{folder}/config.ini" in seen.tree.files]
    if paths == []:
        return {}
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read_string(seen.tree.text(paths[0]))
        return {key: value for name in config.sections() for key, value in config.items(name)}
    except (CheckpointError, configparser.Error):
        return {}


def _config(seen: Seen) -> Mapping[str, Any]:
    """config.pbtxt; empty where there is none, or it cannot be read."""
    from llmcompile.packaging.triton.pbtxt import parse

    path = f"{seen.repository}/config.pbtxt"
    try:
        return parse(seen.tree.text(path), path) if path in seen.tree.files else {}
    except (CheckpointError, RecursionError):
        return {}


def gpt_model_path(seen: Seen) -> Iterator[Finding]:
    """The backend opens this path, not the folder it was started from."""
    if seen.repository is None:
        yield skipped(FILE, "no config.pbtxt here")
        return
    path = f"{seen.repository}/config.pbtxt"
    problem = _unreadable(seen, path)
    if problem is not None:
        yield problem
        return
    parameters = _config(seen).get("parameters", {})
    value = section(parameters, "gpt_model_path").get("string_value", section(parameters, "gpt_model_path").get("s"))
    expected = f"{seen.mount}/{seen.repository}/1"
    hint = f"write {expected}, or lint with --mount-path FOLDER"
    if not isinstance(value, str):
        yield failed(f"{path}: gpt_model_path", "no such parameter", expected, hint)
    elif value.rstrip("/") != expected:
        yield failed(f"{path}: gpt_model_path", value[:SHOWN], expected, hint)
    elif (seen.model_id or "").startswith("s3://"):
        found = f"{value}, while the model is downloaded from {str(seen.model_id)[:SHOWN]} to another folder"
        yield note(f"{path}: gpt_model_path", found, "mount the files instead")
    else:
        yield ok(f"{path}: gpt_model_path", value)


def _unreadable(seen: Seen, path: str) -> Finding | None:
    from llmcompile.packaging.triton.pbtxt import parse

    try:
        parse(seen.tree.text(path), path)
    except CheckpointError as error:
        problem = error.problems[0]
        return failed(problem.subject, problem.found, problem.expected, problem.hint)
    except RecursionError:
        return failed(path, "nested too deeply", "a model configuration", "write it again")
    return None


def decoupled(seen: Seen) -> Iterator[Finding]:
    """LMI's handler streams every request."""
    if seen.repository is None:
        yield skipped(FILE, "no config.pbtxt here")
        return
    path = f"{seen.repository}/config.pbtxt"
    if _unreadable(seen, path) is not None:
        yield skipped(path, "it cannot be read")
        return
    if section(_config(seen), "model_transaction_policy").get("decoupled") is True:
        yield ok(f"{path}: decoupled", "true")
    else:
        hint = "write model_transaction_policy { decoupled: true }"
        yield failed(f"{path}: model_transaction_policy", "not decoupled", "decoupled: true", hint)


def verify_file(seen: Seen) -> Iterator[Finding]:
    """The loader compares the line as it is with the line without blanks; a difference deletes the folder."""
    if seen.layout != "ft" or seen.away:
        yield skipped(FILE, "no FasterTransformer files here")
        return
    for folder in seen.ft_folders:
        path = f"{folder}/verify"
        hint = f"printf %s MODEL-DTYPE-TP-PP > {path}"
        if path not in seen.tree.files:
            found = "no such file: LMI converts the model again, for which its weights are not here"
            yield failed(path, found, "MODEL-DTYPE-TP-PP", hint)
            continue
        text = seen.tree.text(path) if seen.tree.files[path] <= 1 << 16 else ""
        said = FT_WEIGHTS.get(seen.entries.get("option.dtype", "fp32"), "")
        ending = f"-{said}-{seen.degree if seen.degree is not None else 1}-{seen.stages}"
        if text.strip() == "":
            yield failed(path, "empty, or too large", "MODEL-DTYPE-TP-PP", hint)
        elif text != text.strip() or len(re.split("\r\n|\r|\n", text)) > 1:
            found = f"{text[:SHOWN]!r}: with a blank or newline at an end LMI deletes the folder and converts again"
            yield failed(path, found, repr(text.strip()[:SHOWN]), hint)
        elif not text.endswith(ending):
            yield failed(path, text[:SHOWN], f"...{ending}, by {FILE}", hint)
        else:
            yield ok(path, f"{text[:SHOWN]}, {len(text)} characters")
    if seen.ft_folders == ():
        yield failed(seen.tree.name, "no <N>-gpu folder", "<N>-gpu/verify", "package the artifact again")


def runtime_version(seen: Seen) -> Iterator[Finding]:
    """A compiled model loads in the version that made it."""
    if seen.away or seen.layout not in ("repository", "flat", "neuron"):
        yield skipped(FILE, "nothing compiled here")
        return
    neuron = seen.layout == "neuron"
    vendor = "neuronx-cc" if neuron else "TensorRT-LLM"
    if neuron:
        own, subject = seen.compiled.get("compiler_version"), "config.json: neuron.compiler_version"
    else:
        folder = seen.engine_folder if seen.engine_folder is not None else ""
        own, subject = seen.json(f"{folder}config.json").get("version"), f"{folder}config.json: version"
    shipped = None
    if seen.release is not None:
        shipped = seen.release.neuronx_cc if neuron else seen.release.tensorrt_llm
    runtime = seen.runtime_version if seen.runtime_version is not None else shipped
    if not isinstance(own, str):
        yield skipped(subject, f"which {vendor} made it is not said here")
    elif runtime is None:
        yield skipped(subject, f"{vendor} {own[:SHOWN]}", f"{ASK_VERSION}, or --runtime-version V")
    elif without_build(own) == without_build(runtime):
        yield ok(subject, f"{vendor} {own[:SHOWN]}, as in the image")
    elif neuron and not seen.tree.matching("compiled/*.neff"):
        found = f"{vendor} {own[:SHOWN]}, while the image has {runtime}; no compiled graph is taken from here"
        yield note(subject, found, "it is compiled when the server starts")
    elif neuron and any(_CACHE.fullmatch(path) is not None for path in seen.tree.files):
        found = f"{vendor} {own[:SHOWN]}, while the image has {runtime}: the cache is not looked into"
        yield note(subject, found, "it is compiled when the server starts")
    else:
        hint = f"build it again with {vendor} {runtime}, or lint with --runtime-version {own[:SHOWN]}"
        yield failed(subject, f"{vendor} {own[:SHOWN]}", f"{runtime}, which the image has", hint)


def compiled_graphs(seen: Seen) -> Iterator[Finding]:
    """compiled_graph_path wants <hash>.neff in that very folder; a compile cache wants to be named as one."""
    if seen.layout != "neuron" or seen.away:
        yield skipped(FILE, "no Neuron graphs here")
        return
    path = seen.option("compiled_graph_path")
    subject = f"{FILE}: option.compiled_graph_path"
    named = (_CACHE.fullmatch(name) for name in seen.tree.files)
    caches = sorted({match[1] for match in named if match is not None})
    direct = [name for name in seen.tree.matching("compiled/*.neff") if name.count("/") == 1]
    environment = dict(
        part.strip().split("=", 1) for part in seen.entries.get("option.env", "").split(",") if "=" in part.strip()
    )
    cache = environment.get("NEURON_COMPILE_CACHE_URL")
    expected = f"{seen.mount}/compiled"
    if path is not None and not path.startswith(("/", "s3://")):
        yield failed(subject, path[:SHOWN], f"an absolute path, {expected}", f"write {expected}")
    elif path is not None and path.rstrip("/") == expected and direct == []:
        found = "a folder without <hash>.neff: the runtime stops with FileNotFoundError"
        hint = f"write option.env=NEURON_COMPILE_CACHE_URL={expected} for a compile cache, or remove the line"
        yield failed(subject, found, "compiled/<hash>.neff", hint)
    elif path is not None:
        found = f"{path[:SHOWN]}, {len(direct)} graphs here; the runtime stops unless they are those it makes itself"
        yield note(subject, found, "remove the line to have it compile its own")
    elif caches != [] and cache is None:
        found = f"a compile cache of neuronx-cc {', '.join(caches)[:SHOWN]}, which nothing names"
        hint = f"write option.env=NEURON_COMPILE_CACHE_URL={expected}"
        yield failed("compiled", found, "its folder in NEURON_COMPILE_CACHE_URL", hint)
    elif caches != []:
        yield _of_cache(seen, caches)
    elif direct != [] and seen.split_folder != "checkpoint/pytorch_model.bin":
        yield note("compiled", f"{len(direct)} graphs that nothing names", "remove them")
    elif direct != []:
        found = f"{len(direct)} graphs; the runtime stops unless they are those it makes itself"
        yield note("compiled", found, "remove the folder to have it compile its own")
    else:
        yield ok(FILE, "no compiled graphs: the runtime makes its own when it starts")


def _of_cache(seen: Seen, caches: list[str]) -> Finding:
    """Whether the cache is one that the image's compiler looks into."""
    runtime = seen.runtime_version
    if runtime is None and seen.release is not None:
        runtime = seen.release.neuronx_cc
    listed = ", ".join(caches)[:SHOWN]
    if runtime is None:
        return skipped("compiled", f"a compile cache of neuronx-cc {listed}", ASK_VERSION)
    if without_build(runtime) in [without_build(name) for name in caches]:
        return ok("compiled", f"a compile cache of neuronx-cc {listed}, as in the image")
    return note("compiled", f"a compile cache of neuronx-cc {listed}, while the image has {runtime}", "compile again")
