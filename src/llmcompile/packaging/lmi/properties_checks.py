"""Rules about serving.properties itself, and about what else decides an entry's value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import MappingProxyType

from llmcompile.errors import CheckpointError
from llmcompile.packaging import properties
from llmcompile.packaging.lmi.keys import KEYS, is_credential, key_of, meant
from llmcompile.packaging.lmi.releases import (
    BROKEN_HANDLERS,
    MOUNT,
    RELEASES,
    TRT_ASYNC,
    TRT_ROLLING,
    VLLM,
    major,
)
from llmcompile.packaging.lmi.seen import ASK_VERSION, FILE, SHOWN, Seen, failed, note, ok, skipped
from llmcompile.packaging.target import Finding

_ENVIRONMENT_FILE = re.compile(r"(?:.*/)?(?:[^/]*\.env|\.env[^/]*|env|environment)(?:\.json|\.txt)?", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_JAVA_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{%[^{}]*%\}|\$\{[^{}]*\}|<[A-Za-z_][A-Za-z0-9_ .-]*>")
"""What examples have where a value is to be filled in: {{s3url}}, {% ... %}, ${BUCKET}, <bucket>."""
_RENDERED = frozenset({"option.chat_template"})
_PLACES = frozenset({"option.model_id", "option.s3url"})
_COMPARED = 100
"""Unknown keys that are compared with those that are known, a millisecond each; further ones are counted."""
_HIDDEN_WEIGHTS = (".safetensors", ".bin", ".engine", ".pt")


def dialect(seen: Seen) -> Iterator[Finding]:
    """Java and the Python tools read the same."""
    if FILE not in seen.tree.files:
        yield failed(FILE, "no such file", "the file", "llmcompile package lmi ARTIFACT OUTPUT")
        return
    try:
        java = properties.java(seen.content)
        tools = properties.naive(seen.content)
    except CheckpointError as error:
        problem = error.problems[0]
        yield failed(problem.subject, problem.found, problem.expected, problem.hint)
        return
    if java == {}:
        yield failed(FILE, "no entry, or it could not be read", "key=value lines", "write the file again")
        return
    differing = [key for key in {**java, **tools} if java.get(key) != tools.get(key)]
    for key in differing[:5]:
        found = f"Java reads {_shown(java.get(key))}, LMI's Python tools {_shown(tools.get(key))}"
        hint = "write key=value without blanks around the sign, backslashes, or other than ASCII"
        yield failed(f"{FILE}: {key[:SHOWN]}", found, "the same value", hint)
    unfilled = [key for key in java if key not in _RENDERED | _PLACES and template(java[key]) is not None]
    for key in unfilled[:5]:
        yield _unfilled(key, java[key])
    if differing == [] and unfilled == []:
        yield ok(FILE, f"{len(java)} entries, read alike by both")


def template(value: str) -> str | None:
    """The part of a value that was to be filled in; None for none.

    Angle brackets count where they are the value, or a part of a place: tokens of a model look like them.
    """
    found = _TEMPLATE.search(value)
    if found is None or (found[0].startswith("<") and found[0] != value and "://" not in value):
        return None
    return found[0]


def _unfilled(key: str, value: str) -> Finding:
    found = f"{str(template(value))[:SHOWN]!r} was not filled in; LMI takes it as it is"
    return failed(f"{FILE}: {key[:SHOWN]}", found, "the value itself", "write the value in its place")


def _shown(value: str | None) -> str:
    return "nothing" if value is None else repr(value[:SHOWN])


def known_keys(seen: Seen) -> Iterator[Finding]:
    """Misspelled keys are ignored by LMI without a word."""
    unknown = [key for key in seen.entries if key not in KEYS]
    for key in unknown[:_COMPARED]:
        near = meant(key)
        if near is not None:
            found = "no key of LMI's; it is ignored"
            yield failed(f"{FILE}: {key[:SHOWN]}", found, near, f"rename it to {near}")
        elif key.startswith("option."):
            yield note(f"{FILE}: {key[:SHOWN]}", "no key known here; the handler gets it", "check its spelling")
        else:
            yield note(f"{FILE}: {key[:SHOWN]}", "no key known here, and not an option of the handler", "remove it")
    if len(unknown) > _COMPARED:
        yield note(FILE, f"{len(unknown) - _COMPARED} further keys that are not known here", "check their spelling")
    if unknown == []:
        yield ok(FILE, f"all of {len(seen.entries)} keys are known")


def credentials(seen: Seen) -> Iterator[Finding]:
    """A package is uploaded and copied; what is found is not repeated."""
    held = [key for key, value in seen.entries.items() if is_credential(key, value)]
    for key in held:
        hint = "remove the line, revoke what was in it, and set it in the container's environment"
        yield failed(f"{FILE}: {key[:SHOWN]}", "what looks like a credential", "none in a file", hint)
    if held == []:
        yield ok(FILE, "nothing that looks like a credential")


def engine(seen: Seen) -> Iterator[Finding]:
    """The release has the engine."""
    if seen.engine == "":
        yield note(FILE, "no engine; the server guesses one by the files", "add engine=Python")
        return
    having = [name for name, release in RELEASES.items() if seen.engine in release.engines]
    if having == []:
        hint = "write engine=Python, or MPI for a TensorRT-LLM engine in the layout with config.pbtxt"
        yield failed(f"{FILE}: engine", seen.engine[:SHOWN], "Python or MPI", hint)
    elif seen.version is None:
        yield skipped(f"{FILE}: engine", f"{seen.engine}, which LMI {having[-1]} to {having[0]} have", ASK_VERSION)
    elif seen.version not in having:
        expected = f"one that LMI {seen.version} has: {', '.join(RELEASES[seen.version].engines)}"
        hint = f"package for one of LMI {', '.join(having)}: --lmi-version {having[0]}"
        yield failed(f"{FILE}: engine", seen.engine, expected, hint)
    else:
        yield ok(f"{FILE}: engine", f"{seen.engine}, which LMI {seen.version} has")


def entry_point(seen: Seen) -> Iterator[Finding]:
    """The release has the handler, and it starts."""
    subject = f"{FILE}: option.entryPoint"
    handler = seen.handler
    if handler == "":
        if "model.py" in seen.tree.files:
            yield ok("model.py", "the handler, by its name")
        else:
            yield note(FILE, "no option.entryPoint; the server chooses a handler by image and files", "name it")
        return
    if handler.endswith(".py"):
        if handler in seen.tree.files:
            yield ok(subject, f"{handler}, in the package")
        elif handler.lower().startswith("http") or seen.away:
            yield skipped(subject, f"{handler[:SHOWN]}, which is not in the package")
        else:
            hint = "add the file, or name a handler of djl_python"
            yield failed(subject, f"{handler[:SHOWN]}, which is not in the package", "a file of the package", hint)
        return
    broken = BROKEN_HANDLERS.get(handler, ())
    having = [name for name, release in RELEASES.items() if handler in release.handlers]
    if seen.version in broken:
        found = f"{handler}, which is in LMI {seen.version} and cannot start"
        hint = "give a handler of your own image, or package for --lmi-version " + (having[0] if having != [] else "")
        yield failed(subject, found, f"a handler that starts: LMI {', '.join(having)} have this one", hint)
    elif having == []:
        if _JAVA_MODULE.fullmatch(handler) is None or handler.startswith("djl_python"):
            yield failed(subject, f"{handler[:SHOWN]!r}", "a handler of djl_python, or a module", "correct the name")
        else:
            yield note(subject, f"{handler[:SHOWN]}, a module of your own image")
    elif seen.version is None:
        yield skipped(subject, f"{handler}, which LMI {', '.join(having)} have", ASK_VERSION)
    elif seen.version not in having:
        hint = f"package for --lmi-version {having[0]}"
        yield failed(subject, f"{handler}, which LMI {seen.version} has not", f"LMI {', '.join(having)}", hint)
    else:
        yield ok(subject, f"{handler}, which LMI {seen.version} has")


def handler_mode(seen: Seen) -> Iterator[Finding]:
    """TensorRT-LLM's rolling batch needs MPI; asynchronous handlers need async_mode and no rolling batch."""
    rolling, asynchronous = seen.option("rolling_batch"), seen.option("async_mode")
    if seen.handler == TRT_ROLLING or (seen.handler == "" and rolling == "trtllm"):
        if seen.engine == "MPI" or seen.option("mpi_mode") == "true":
            yield ok(f"{FILE}: engine", "MPI, which the rolling batch of TensorRT-LLM insists on")
        else:
            hint = "write engine=MPI"
            yield failed(f"{FILE}: engine", f"{seen.engine} without mpi_mode", "MPI, or option.mpi_mode=true", hint)
    elif seen.handler in (TRT_ASYNC, VLLM):
        wrong = False
        if asynchronous != "true":
            wrong = True
            expected = "true: a handler that is named gets it from nowhere else"
            yield failed(f"{FILE}: option.async_mode", str(asynchronous), expected, "write option.async_mode=true")
        if rolling != "disable":
            wrong = True
            hint = "write option.rolling_batch=disable"
            yield failed(f"{FILE}: option.rolling_batch", str(rolling), "disable with an asynchronous handler", hint)
        if not wrong:
            yield ok(FILE, "async_mode without a rolling batch")
    elif asynchronous == "true" and seen.handler != "":
        yield note(f"{FILE}: option.async_mode", f"true, with {seen.handler[:SHOWN]}", "is the handler asynchronous?")
    else:
        yield ok(FILE, "the handler has no mode of its own")


def dynamic_batch(seen: Seen) -> Iterator[Finding]:
    """Each silently switches off, or refuses, the other."""
    sizes = {key: seen.entries.get(key) for key in ("batch_size", "max_dynamic_batch_size", "option.batch_size")}
    large = {key: size for key, size in sizes.items() if size is not None and re.fullmatch("0*1?", size) is None}
    rolling = seen.option("rolling_batch")
    if large == {} or rolling == "disable":
        yield ok(FILE, "no dynamic batch" if large == {} else "a dynamic batch, without a rolling batch")
        return
    for key, size in large.items():
        found = f"{size[:SHOWN]}, with option.rolling_batch={rolling if rolling is not None else 'auto, by default'}"
        expected = "1: the server would switch the rolling batch off, and Neuron's handler stops"
        yield failed(f"{FILE}: {key}", found, expected, f"remove {key}, and use option.max_rolling_batch_size")


def model_id(seen: Seen) -> Iterator[Finding]:
    """A place that LMI takes for what it is, and no weights that nobody opens."""
    place = seen.entries.get("option.model_id")
    subject = f"{FILE}: option.model_id"
    if place is None:
        yield ok(FILE, f"no model_id: the model is beside the file, at {seen.mount}")
        return
    if template(place) is not None:
        yield _unfilled("option.model_id", place)
        return
    if place.startswith((".", "~")) or ("://" in place and not place.startswith(("s3://", "djl://"))):
        found = f"{place[:SHOWN]!r}, which is resolved in the folder of the worker, or not at all"
        expected = "absent, an absolute path, s3://BUCKET/PREFIX/ or a hub id"
        yield failed(subject, found, expected, "remove the line where the model is beside the file")
        return
    hidden = [path for path in seen.tree.files if path.endswith(_HIDDEN_WEIGHTS)]
    if seen.model_id is None:
        yield ok(subject, f"{place}, the folder of the package itself")
    elif hidden != []:
        found = f"{place[:SHOWN]}, while {len(hidden)} files of weights are here, like {hidden[0][:SHOWN]}"
        hint = "remove option.model_id, or the files"
        yield failed(subject, found, "one place for the model: the server reads model_id and ignores these", hint)
    else:
        yield ok(subject, f"{place[:SHOWN]}, and no weights beside the file")


def s3url(seen: Seen) -> Iterator[Finding]:
    """The old name of model_id."""
    if seen.option("s3url") is None:
        yield ok(FILE, "no s3url")
        return
    subject, hint = f"{FILE}: option.s3url", "rename it to option.model_id"
    place = seen.option("s3url")
    if place is not None and template(place) is not None:
        yield _unfilled("option.s3url", place)
    elif seen.option("model_id") is not None:
        yield failed(subject, "set together with option.model_id", "one of the two: the server stops", hint)
    elif seen.version is not None and major(seen.version) > (0, 24):
        yield failed(subject, f"set; LMI {seen.version} does not read it", "option.model_id", hint)
    else:
        yield note(subject, "the old name of option.model_id; LMI reads it up to 0.24", hint)


def environment(seen: Seen) -> Iterator[Finding]:
    """The server lets the file win over the environment, partition.py the environment over the file."""
    checked, conflicts = [], 0
    for path in seen.tree.files:
        if _ENVIRONMENT_FILE.fullmatch(path) is None or seen.tree.files[path] > 1 << 20:
            continue
        checked.append(path)
        for variable, value in _variables(seen, path):
            key = key_of(variable)
            held = None if key is None else seen.entries.get(key)
            if held is not None and held != value:
                conflicts += 1
                found = f"{value[:SHOWN]!r}, while {FILE} says {held[:SHOWN]!r} for {key}"
                expected = "the same: the server takes the file's, LMI's partition.py the environment's"
                yield failed(f"{path}: {variable}", found, expected, f"remove {variable}, or make them equal")
    if conflicts == 0:
        found = "no environment file beside it" if checked == [] else f"{', '.join(checked)[:SHOWN]}: nothing otherwise"
        yield ok(FILE, found)


def _variables(seen: Seen, path: str) -> Iterator[tuple[str, str]]:
    text = seen.tree.text(path)
    if path.endswith(".json"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(content, dict):
            yield from ((name, value) for name, value in content.items() if isinstance(value, str))
        return
    for line in text.splitlines():
        found = _VARIABLE.fullmatch(line.strip())
        if found is not None:
            yield found[1], found[2].strip().strip("'\"")


def layout(seen: Seen) -> Iterator[Finding]:
    """A model in another release's layout is taken for a Hugging Face checkpoint, and an engine built of it."""
    found = seen.layout
    if seen.away:
        yield skipped(FILE, f"the model is at {str(seen.model_id)[:SHOWN]}", "lint that folder too")
        return
    if found is None:
        if seen.model_id is not None:
            yield skipped(FILE, f"the model is at {seen.model_id[:SHOWN]}", "lint that folder too")
            return
        expected = "engines, FasterTransformer's files, a split checkpoint or a Hugging Face checkpoint"
        yield failed(seen.tree.name, "no model", expected, f"package it again, or set model_id; it goes to {MOUNT}")
        return
    serving = [name for name, release in RELEASES.items() if _serves(found, name, release.engine_layout)]
    title = _TITLES[found]
    if seen.version is None:
        yield skipped(seen.tree.name, f"{title}, for LMI {serving[-1]} to {serving[0]}", ASK_VERSION)
    elif seen.version not in serving:
        expected = f"{_TITLES[other]}" if (other := RELEASES[seen.version].engine_layout) is not None else "another"
        hint = f"package it again with --lmi-version {seen.version}, or for one of {', '.join(serving)}"
        yield failed(seen.tree.name, f"{title}, which LMI {seen.version} does not look for", expected, hint)
    else:
        yield ok(seen.tree.name, f"{title}, as LMI {seen.version} looks for it")


_TITLES = MappingProxyType(
    {
        "ft": "FasterTransformer's files",
        "repository": "an engine in a folder with config.pbtxt",
        "flat": "an engine beside serving.properties",
        "neuron": "a split Neuron checkpoint",
        "hf": "a Hugging Face checkpoint",
    }
)


def _serves(layout: str, name: str, engines: str | None) -> bool:
    if layout == "ft":
        return "FasterTransformer" in RELEASES[name].engines
    if layout in ("repository", "flat"):
        return engines == layout
    return layout == "hf" or RELEASES[name].neuronx_cc is not None
