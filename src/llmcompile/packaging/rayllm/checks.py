"""The lint: entries, serve configs and mirrors as RayLLM reads them, in any folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from llmcompile.errors import CheckpointError, ToolchainError, UnsupportedError
from llmcompile.packaging import prompt_format
from llmcompile.packaging.documents import YAML_CHARACTERS, json_object, packaged, whole
from llmcompile.packaging.rayllm import facts
from llmcompile.packaging.rayllm.schema import ENGINES, Flaw, PromptFormat, flaws, parse
from llmcompile.packaging.target import Finding, Serving, Status, release_of
from llmcompile.packaging.tree import Tree
from llmcompile.packaging.weights import are_all, missing_weights
from llmcompile.writing import MANIFEST

_YAML = (".yaml", ".yml", ".json")
_ENTRY = re.compile(r"""^["' \t{]*engine_config["']?\s*:""", re.MULTILINE)
_APPLICATION = "rayllm.backend:router_application"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANK = re.compile(r"rank(\d+)\.engine")
_MIRROR = "mirror"
_EFFECTS: Mapping[str, str] = MappingProxyType(
    {
        "refused": "RayLLM refuses the entry",
        "ignored": "RayLLM ignores it",
        "start": "the model does not start",
        "request": "every chat fails",
        "guessed": "RayLLM goes by the list the entry is in",
    }
)
_NAME_IT = "add --target-version 0.5.0"
_NO_MIRROR = "the weights are not in this folder"


class _Found(NamedTuple):
    """A finding without its rule."""

    status: Status
    subject: str
    found: str
    expected: str = ""
    hint: str = ""


@dataclass(frozen=True)
class _Entry:
    """A registry entry, whatever is wrong with it.

    Attributes:
        path: Its file.
        content: What is in it.
        flaws: What the schema says.
    """

    path: str
    content: object
    flaws: tuple[Flaw, ...]

    def at(self, *keys: str) -> Any:
        """A value by its keys; None where there is none."""
        value: Any = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def engine(self) -> str:
        """The engine's name; empty for none that RayLLM has."""
        name = self.at("engine_config", "type")
        return name if isinstance(name, str) and name in ENGINES else ""


@dataclass(frozen=True)
class _View:
    """A folder as the rules see it.

    Attributes:
        entries: Registry entries.
        serves: Serve config -> its content.
        broken: File -> why it cannot be parsed.
        mirror: What goes into the bucket; None where it is not here.
        config: The mirror's config.json; None where there is none to read.
        record: llmcompile.json; empty where there is none.
        version: Release of RayLLM; None where nothing says it.
        runtime: Version of TensorRT-LLM or vLLM in the image; None where nothing says it.
    """

    entries: tuple[_Entry, ...]
    serves: Mapping[str, Any]
    broken: Mapping[str, str]
    mirror: Tree | None
    config: Mapping[str, Any] | None
    record: Mapping[str, Any]
    version: str | None
    runtime: str | None

    @property
    def built(self) -> Mapping[str, Any]:
        """What the mirror's engine was built with; empty for no engine."""
        config = {} if self.config is None else self.config
        built = config.get("build_config", config.get("builder_config"))
        return built if isinstance(built, dict) else {}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks whose files are in the mirror, in order."""
        names = () if self.mirror is None else (PurePosixPath(path).name for path in self.mirror.files)
        return tuple(sorted(int(match[1]) for name in names if (match := _RANK.fullmatch(name)) is not None))


def detect(tree: Tree) -> bool:
    """Whether a tree has a registry entry, or a serve config of RayLLM's."""
    return any(_looks(text) for _, text in _texts(tree))


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    view = _view(tree, serving)
    for rule, check in _RULES.items():
        found = list(check(view))
        if len(found) == 0:
            why = "no registry entry" if view.entries == () else _NO_MIRROR
            found = [_Found("skipped", tree.name, why)]
        yield from (Finding(rule, *item) for item in found)


def _texts(tree: Tree) -> Iterator[tuple[str, str]]:
    for path, size in tree.files.items():
        outside = not path.startswith(f"{_MIRROR}/") and path != MANIFEST
        if path.endswith(_YAML) and outside and size <= YAML_CHARACTERS:
            yield path, tree.text(path)


def _looks(text: str) -> bool:
    return _ENTRY.search(text) is not None or "rayllm.backend" in text


def _view(tree: Tree, serving: Serving) -> _View:
    entries, serves, broken = [], {}, {}
    for path, text in _texts(tree):
        if not _looks(text):
            continue
        try:
            content = parse(text, path)
        except CheckpointError as error:
            broken[path] = error.problems[0].found
            continue
        if isinstance(content, dict) and "applications" in content:
            serves[path] = content
        else:
            entries.append(_Entry(path, content, flaws(content)))
    record = json_object(tree, MANIFEST)
    package = packaged(tree)
    package = package if package.get("target") == "rayllm" else {}
    asked = serving.version if serving.version is not None else package.get("version")
    runtime = serving.runtime_version if serving.runtime_version is not None else package.get("runtime")
    mirror = tree.under(_MIRROR) if _MIRROR in tree.folders else None
    return _View(
        entries=tuple(entries),
        serves=serves,
        broken=broken,
        mirror=mirror,
        config=None if mirror is None else json_object(mirror, "config.json"),
        record={} if record is None else record,
        version=release_of(asked, facts.RELEASES) if isinstance(asked, str) else None,
        runtime=runtime if isinstance(runtime, str) else None,
    )


def _yaml(view: _View) -> Iterator[_Found]:
    for path, why in view.broken.items():
        yield _Found("failed", path, why, "YAML that yaml.safe_load reads", "correct the file")
    for path in (*(entry.path for entry in view.entries), *view.serves):
        yield _Found("ok", path, "parses")


def _flawed(rule: str) -> Callable[[_View], Iterator[_Found]]:
    """A rule of the schema: its own flaws, of every entry."""

    def check(view: _View) -> Iterator[_Found]:
        for entry in view.entries:
            own = [flaw for flaw in entry.flaws if _rule(flaw) == rule]
            for flaw in own:
                status: Status = "note" if flaw.effect == "guessed" else "failed"
                found = f"{flaw.found}; {_EFFECTS[flaw.effect]}"
                yield _Found(status, f"{entry.path}: {flaw.key or 'entry'}", found, flaw.expected, "correct the entry")
            if len(own) == 0:
                yield _Found(
                    "ok", entry.path, "nothing of the kind" if rule == "ignored-keys" else "as RayLLM needs it"
                )

    return check


def _rule(flaw: Flaw) -> str:
    """The rule a flaw belongs to."""
    key = f"{flaw.key}."
    if flaw.effect == "ignored":
        return "ignored-keys"
    if key.startswith("engine_config.generation.prompt_format."):
        return "prompt-format"
    mirrors = ("engine_config.s3_mirror_config.bucket_uri.", "engine_config.gcs_mirror_config.bucket_uri.")
    if key in mirrors or (key == "engine_config." and "mirror_config" in flaw.expected):
        return "bucket"
    return "choices" if flaw.effect == "start" else "schema"


def _file_name(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        name = PurePosixPath(entry.path).name
        model = str(entry.at("engine_config", "model_id")).replace("/", "--")
        if name.removeprefix("trtllm-").startswith(model) and "--" in name:
            yield _Found("ok", entry.path, "as RayLLM's registry calls its files")
        else:
            hint = "rename it if you like: RayLLM does not look at names"
            yield _Found("note", entry.path, name, f"{model}-<params>-<extra>.yaml", hint)


def _serve_config(view: _View) -> Iterator[_Found]:
    entries = {entry.path: entry for entry in view.entries}
    for path, content in view.serves.items():
        found = list(_applications(path, content, entries))
        yield from found if len(found) > 0 else [_Found("ok", path, "names entries that are here")]
    if len(view.serves) == 0 and len(view.entries) > 0:
        yield _Found("skipped", view.entries[0].path, "no serve config names it", "", "")


def _applications(path: str, content: Any, entries: Mapping[str, _Entry]) -> Iterator[_Found]:
    applications = content["applications"] if isinstance(content["applications"], list) else [content["applications"]]
    named: list[str] = []
    for application in applications:
        application = application if isinstance(application, dict) else {}
        target = application.get("import_path")
        if target != _APPLICATION:
            yield _Found("failed", f"{path}: import_path", repr(target), _APPLICATION, f"write {_APPLICATION}")
        args = application.get("args")
        for key, value in (args if isinstance(args, dict) else {}).items():
            if key not in ENGINES.values():
                expected = f"one of {', '.join(ENGINES.values())}"
                yield _Found("failed", f"{path}: args.{key}", "ignored", expected, "move what it names to one of them")
                continue
            for model in value if isinstance(value, list) else [value]:
                if isinstance(model, str):
                    yield from _named(path, key, model, entries)
                    named.append(_relative(path, model, entries))
    ids = Counter(str(entries[name].at("engine_config", "model_id")) for name in named if name in entries)
    for model_id, count in ids.items():
        if count > 1:
            yield _Found("failed", path, f"{count} entries of {model_id}", "each model_id once", "leave one out")


def _relative(path: str, model: str, entries: Mapping[str, _Entry]) -> str:
    """The entry a name means: from the folder of the serve config, or from the root, where `serve run` may be typed."""
    plain = PurePosixPath(model).as_posix()
    beside = (PurePosixPath(path).parent / plain).as_posix()
    return beside if beside in entries else plain


def _named(path: str, key: str, model: str, entries: Mapping[str, _Entry]) -> Iterator[_Found]:
    entry = entries.get(_relative(path, model, entries))
    if entry is None and ("\n" in model or model.startswith("/")):
        yield _Found(
            "note", f"{path}: args.{key}", f"{model[:60]!r} is not in this folder", "a file, where it is served"
        )
    elif entry is None:
        yield _Found("failed", f"{path}: args.{key}", f"{model[:200]}: no such entry", "a file", "correct the path")
    elif entry.engine != "" and ENGINES[entry.engine] != key:
        hint = f"move it to {ENGINES[entry.engine]}"
        yield _Found("failed", f"{path}: args.{key}", f"{model}: {entry.engine}", f"args.{ENGINES[entry.engine]}", hint)


def _engine(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        subject = f"{entry.path}: engine_config.type"
        if entry.engine == "":
            continue
        if view.version == "0.4.0" and entry.engine != "VLLMEngine":
            yield _Found("failed", subject, entry.engine, "VLLMEngine, all that RayLLM 0.4.0 has", "serve with 0.5.0")
            continue
        mirror = _mirror_of(view, entry)
        if mirror is None:
            yield _Found("ok", subject, f"{entry.engine}; {_NO_MIRROR}")
        elif (len(view.ranks) > 0) != (entry.engine == "TRTLLMEngine"):
            holds = "a TensorRT-LLM engine" if len(view.ranks) > 0 else "no rank<N>.engine"
            expected = "TRTLLMEngine" if len(view.ranks) > 0 else "VLLMEngine or EmbeddingEngine"
            yield _Found(
                "failed", subject, f"{entry.engine}, and the mirror holds {holds}", expected, "change the type"
            )
        else:
            yield _Found("ok", subject, entry.engine)


def _mirror_of(view: _View, entry: _Entry) -> Tree | None:
    """The mirror, where it can only be this entry's."""
    return view.mirror if len(view.entries) == 1 and entry is view.entries[0] else None


def _deployment(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        subject = f"{entry.path}: deployment_config"
        if entry.at("deployment_config") is None and entry.engine == "TRTLLMEngine":
            yield _Found("ok", subject, "absent, which TRTLLMEngine allows")
        elif entry.at("deployment_config", "ray_actor_options") is None:
            hint = "add ray_actor_options: {}"
            yield _Found("failed", subject, "no ray_actor_options", "a mapping, if only an empty one", hint)
        else:
            yield _Found("ok", subject, "has ray_actor_options")


def _workers(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        subject = f"{entry.path}: scaling_config.num_workers"
        asked = whole(entry.at("scaling_config", "num_workers"))
        if asked is None or _mirror_of(view, entry) is None:
            continue
        if entry.engine == "TRTLLMEngine":
            yield from _ranks(view, subject, asked)
        elif entry.engine == "EmbeddingEngine":
            more = _Found("failed", subject, str(asked), "1: EmbeddingEngine has one process", "write 1")
            yield _Found("ok", subject, "1") if asked == 1 else more
        elif entry.engine == "VLLMEngine":
            config = {} if view.config is None else view.config
            heads = whole(config.get("num_attention_heads", config.get("n_head")))
            if entry.at("scaling_config", "num_gpus_per_worker") == 0:
                yield _Found("failed", subject, "num_gpus_per_worker 0", "more: vLLM needs GPUs", "write 1")
            elif heads is not None and asked > 0 and heads % asked != 0:
                yield _Found("failed", subject, str(asked), f"a divisor of {heads} attention heads", "choose another")
            else:
                yield _Found("ok", subject, str(asked))


def _ranks(view: _View, subject: str, asked: int) -> Iterator[_Found]:
    config = {} if view.config is None else view.config
    pretrained = config.get("pretrained_config")
    mapping = pretrained.get("mapping") if isinstance(pretrained, dict) else None
    if isinstance(mapping, dict):
        sizes = (mapping.get("tp_size", 1), mapping.get("pp_size", 1))
    else:
        sizes = (view.built.get("tensor_parallel", 1), view.built.get("pipeline_parallel", 1))
    tp, pp = (1 if whole(size) is None else size for size in sizes)
    if not are_all(view.ranks, tp * pp):
        found = f"rank files {', '.join(map(str, view.ranks)) or 'none'}"
        yield _Found("failed", _MIRROR, found, f"0 to {tp * pp - 1}: tp {tp} x pp {pp}", "copy the whole engine")
    elif asked != tp * pp:
        yield _Found("failed", subject, str(asked), f"tp {tp} x pp {pp} = {tp * pp}", f"write {tp * pp}")
    else:
        yield _Found("ok", subject, f"tp {tp} x pp {pp} = {asked}")


def _mirror_names(view: _View) -> Iterator[_Found]:
    if view.mirror is None:
        return
    nested = [path for path in view.mirror.files if "/" in path]
    names = Counter(PurePosixPath(path).name for path in view.mirror.files)
    twice = [name for name, count in names.items() if count > 1]
    if len(twice) > 0:
        found = f"{', '.join(twice[:4])} more than once"
        yield _Found("failed", _MIRROR, found, "unique names: RayLLM drops the folders", "leave the folders out")
    elif len(nested) > 0 and any(entry.engine == "TRTLLMEngine" for entry in view.entries):
        yield _Found("failed", _MIRROR, f"{nested[0]} in a folder", "files alone", "move the files up")
    elif len(nested) > 0:
        yield _Found("note", _MIRROR, f"{nested[0]} in a folder", "files alone: vLLM does not look into folders", "")
    else:
        yield _Found("ok", _MIRROR, f"{len(names)} files, no folders")


def _hash(view: _View) -> Iterator[_Found]:
    if view.mirror is None:
        return
    subject = f"{_MIRROR}/hash"
    if "hash" not in view.mirror.files:
        needless = all(entry.engine == "TRTLLMEngine" for entry in view.entries)
        hint = "write the checkpoint's commit into it, and upload it last"
        expected = "40 hexadecimal digits" + ("; TRTLLMEngine does not read it" if needless else "")
        yield _Found("note" if needless else "failed", subject, "no such file", expected, hint)
        return
    digest = view.mirror.text("hash").strip() if view.mirror.files["hash"] <= 128 else "a longer text"
    source = view.record.get("artifact")
    source = source.get("source") if isinstance(source, dict) else None
    commit = source.get("commit") if isinstance(source, dict) else None
    if _COMMIT.fullmatch(digest) is None:
        yield _Found("failed", subject, repr(digest), "40 hexadecimal digits", "write the checkpoint's commit")
    elif isinstance(commit, str) and commit != digest:
        yield _Found("failed", subject, digest, f"{commit}, by {MANIFEST}", f"write {commit}")
    else:
        yield _Found("ok", subject, digest)


def _config(view: _View) -> Iterator[_Found]:
    if view.mirror is None:
        return
    subject = f"{_MIRROR}/config.json"
    if view.config is None:
        found = "not a JSON object" if "config.json" in view.mirror.files else "no such file"
        yield _Found("failed", subject, found, "without it RayLLM does not find the model", "copy it")
    elif any(entry.engine == "TRTLLMEngine" for entry in view.entries) and view.built == {}:
        yield _Found(
            "failed", subject, "no build_config", "the engine's config.json, not the model's", "copy the engine's"
        )
    else:
        yield _Found("ok", subject, "of the engine" if view.built != {} else "of the model")


def _bucket(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        own = [flaw for flaw in entry.flaws if _rule(flaw) == "bucket"]
        for flaw in own:
            yield _Found("failed", f"{entry.path}: {flaw.key}", flaw.found, flaw.expected, "correct the entry")
        if len(own) == 0:
            yield _place(entry)


def _place(entry: _Entry) -> _Found:
    """Where an entry's model is loaded from."""
    trtllm = entry.engine == "TRTLLMEngine"
    key = "model_local_path" if trtllm else "hf_model_id"
    local, subject = entry.at("engine_config", key), f"{entry.path}: engine_config.{key}"
    s3 = entry.at("engine_config", "s3_mirror_config", "bucket_uri")
    gcs = entry.at("engine_config", "gcs_mirror_config", "bucket_uri")
    if trtllm and isinstance(local, str) and local != "":
        relative = _Found("failed", subject, local, "an absolute path", "write where it is on every node")
        return _Found("ok", subject, local) if local.startswith("/") else relative
    if trtllm and not isinstance(s3, str):
        found = f"{gcs} alone, which TRTLLMEngine does not read" if isinstance(gcs, str) else "no place to load from"
        return _Found(
            "failed", f"{entry.path}: engine_config", found, "model_local_path or s3_mirror_config", "add one"
        )
    uri = s3 if isinstance(s3, str) else gcs
    if not isinstance(uri, str):
        place = local if isinstance(local, str) else entry.at("engine_config", "model_id")
        return _Found("ok", subject, f"{place}, on the node or on the hub")
    subject = f"{entry.path}: bucket_uri"
    if trtllm and "/" not in uri.removeprefix("s3://"):
        return _Found("failed", subject, uri, "a slash after the bucket: TRTLLMEngine splits there", f"write {uri}/")
    if trtllm and not uri.endswith("/"):
        expected = "a slash at the end: without it keys of a folder whose name goes on count too"
        return _Found("note", subject, uri, expected, f"write {uri}/")
    return _Found("ok", subject, uri)


def _prompt_format(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        subject = f"{entry.path}: engine_config.generation.prompt_format"
        own = [flaw for flaw in entry.flaws if _rule(flaw) == "prompt-format"]
        for flaw in own:
            hint = "null is no chat" if flaw.found == "missing" else "correct the text"
            yield _Found("failed", f"{entry.path}: {flaw.key}", flaw.found, flaw.expected, hint)
        if len(own) > 0 or entry.engine in ("", "EmbeddingEngine"):
            continue
        none = entry.at("engine_config", "generation", "prompt_format") in (None, {})
        if none and view.version == "0.4.0":
            yield _Found("failed", subject, "none", "one: RayLLM 0.4.0 has no entries without", "serve with 0.5.0")
        else:
            yield _Found("ok", subject, "none: completions only" if none else "placeholders are filled")


def _chat_template(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        mirror, made = _mirror_of(view, entry), _format(entry)
        if mirror is None:
            continue
        if made is None:
            yield _Found("skipped", entry.path, "no prompt_format to compare")
            continue
        subject = f"{entry.path}: engine_config.generation.prompt_format"
        try:
            template = prompt_format.read_template(mirror)
            wrong = None if template is None else prompt_format.disagreement(template, made)
        except (CheckpointError, ToolchainError) as error:
            problem = error.problems[0]
            yield _Found("skipped", problem.subject, problem.found, problem.expected, problem.hint)
            continue
        if template is None:
            yield _Found("skipped", _MIRROR, "no chat template here; RayLLM takes the tokenizer from the hub")
        elif wrong is None:
            yield _Found("ok", subject, "renders what the chat template does")
        else:
            yield _differs(template, subject, wrong)


def _format(entry: _Entry) -> prompt_format.Format | None:
    """An entry's prompt_format; None where it has none, or none that can be filled."""
    written = entry.at("engine_config", "generation", "prompt_format")
    if not isinstance(written, dict) or written == {} or any(_rule(flaw) == "prompt-format" for flaw in entry.flaws):
        return None
    return prompt_format.Format(**PromptFormat.model_validate(written).model_dump())


def _differs(template: prompt_format.Template, subject: str, wrong: str) -> _Found:
    """A difference from a chat template: wrong where the template could be expressed, a compromise where it cannot."""
    try:
        right = prompt_format.derive(template, prepend_system=True).format
    except UnsupportedError as error:
        return _Found("note", subject, wrong, f"no prompt_format can do better: {error.problems[0].found}")
    expected = f"user {right.user!r}, assistant {right.assistant!r}, system {right.system!r}"
    return _Found("failed", subject, wrong, expected, "type: llmcompile package rayllm, which derives it")


def _max_total_tokens(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        if _mirror_of(view, entry) is None or view.config is None or entry.engine == "":
            continue
        subject = f"{entry.path}: engine_config.max_total_tokens"
        written = whole(entry.at("engine_config", "max_total_tokens"))
        asked = (512 if entry.engine == "EmbeddingEngine" else 2048) if written is None else written
        limit = _engine_length(view.built) if entry.engine == "TRTLLMEngine" else facts.context_length(view.config)
        shown = f"{asked}, the default" if written is None else str(asked)
        if limit is None:
            yield _Found("skipped", subject, f"{shown}; {_MIRROR}/config.json sets no limit")
        elif asked > limit:
            yield _Found("failed", subject, shown, f"at most {limit}, by {_MIRROR}/config.json", f"write {limit}")
        else:
            yield _Found("ok", subject, f"{shown} of {limit}")


def _engine_length(built: Mapping[str, Any]) -> int | None:
    length = whole(built.get("max_seq_len"))
    parts = [whole(built.get(key)) for key in ("max_input_len", "max_output_len")]
    if length is None and None not in parts:
        return sum(part for part in parts if part is not None)
    return length


def _batch(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        if _mirror_of(view, entry) is None:
            continue
        if entry.engine != "TRTLLMEngine":
            yield _Found("skipped", entry.path, "a checkpoint is built for no batch")
            continue
        subject = f"{entry.path}: engine_config.max_num_sequences"
        asked = whole(entry.at("engine_config", "max_num_sequences"))
        limit = whole(view.built.get("max_batch_size"))
        if limit is None:
            yield _Found("skipped", subject, f"{_MIRROR}/config.json does not say what the engine was built for")
        elif asked is not None and asked > limit:
            yield _Found(
                "failed", subject, str(asked), f"at most {limit}, the engine's max_batch_size", f"write {limit}"
            )
        else:
            yield _Found("ok", subject, f"{'the default' if asked is None else asked} of {limit}")


def _runtime(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        if entry.engine == "TRTLLMEngine":
            yield _tensorrt(view, entry)
        elif entry.engine == "VLLMEngine" and view.version is not None:
            newest = facts.VLLM[view.version]
            if view.runtime is None or _fits(view.runtime, view.version):
                found = f"vLLM {newest if view.runtime is None else view.runtime}"
                yield _Found("ok", entry.path, f"{found} of RayLLM {view.version}")
            else:
                found = f"vLLM {view.runtime}"
                expected = ">=0.2.0,<0.2.6" if view.version == "0.5.0" else ">=0.2.0"
                yield _Found("failed", entry.path, found, expected, f"RayLLM {view.version} is made for {newest}")
        elif entry.engine == "VLLMEngine":
            yield _Found("skipped", entry.path, "no release named", "", _NAME_IT)


def _fits(runtime: str, release: str) -> bool:
    """Whether a vLLM is among those a release asks for; of 0.4.0, which sets no end, those of its time."""
    return re.fullmatch(rf"0\.2\.[0-{facts.VLLM[release][-1]}]", runtime) is not None


def _tensorrt(view: _View, entry: _Entry) -> _Found:
    built = None if view.config is None else view.config.get("version")
    if _mirror_of(view, entry) is None or not isinstance(built, str):
        return _Found("skipped", entry.path, "the engine's version is not here")
    subject = f"{_MIRROR}/config.json: version"
    hint = f"add --runtime-version {built} if the image has it; RayLLM's own Dockerfile leaves TensorRT-LLM out"
    if view.runtime is None:
        return _Found("skipped", subject, f"built by TensorRT-LLM {built}", "the version in the image", hint)
    if view.runtime != built:
        hint = f"build the engine with {view.runtime}, or serve with {built}"
        return _Found("failed", subject, f"built by TensorRT-LLM {built}", f"{view.runtime}, of the image", hint)
    return _Found("ok", subject, f"built by TensorRT-LLM {built}, as the image has")


def _loads(view: _View) -> Iterator[_Found]:
    for entry in view.entries:
        mirror, config = _mirror_of(view, entry), view.config
        if mirror is None or config is None or entry.engine == "":
            continue
        if entry.engine == "TRTLLMEngine":
            yield _Found("skipped", entry.path, "an engine loads where it was built; see runtime")
            continue
        lacking = missing_weights(mirror)
        if lacking is not None:
            yield _Found("failed", _MIRROR, lacking, "every file of the weights", "copy them from the checkpoint")
            continue
        if view.version is None:
            yield _Found("skipped", entry.path, "no release named", "", _NAME_IT)
            continue
        newest = facts.VLLM[view.version] if view.runtime is None else view.runtime
        found = [*_tokenizer(mirror), *_rope(config)]
        if entry.engine == "EmbeddingEngine":
            found += _averaging(config)
        else:
            found += _vllm(mirror, config, "0.2.1" if newest in ("0.2.0", "0.2.1") else "0.2.5")
        if len(found) > 0:
            yield from found
        else:
            yield _Found("ok", entry.path, "EmbeddingEngine" if entry.engine == "EmbeddingEngine" else f"vLLM {newest}")


def _vllm(mirror: Tree, config: Mapping[str, Any], vllm: str) -> Iterator[_Found]:
    subject, hint = f"{_MIRROR}/config.json", "serve it with ray.serve.llm: llmcompile package ray-serve"
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if facts.ARCHITECTURES[vllm].isdisjoint(architectures):
        known = f"one that vLLM {vllm} knows"
        yield _Found("failed", f"{subject}: architectures", ", ".join(architectures) or "none", known, hint)
    size = facts.head_size(config)
    if size is not None and size not in facts.HEAD_SIZES:
        known = f"one of {', '.join(map(str, facts.HEAD_SIZES))}, which vLLM {vllm} has kernels for"
        yield _Found("failed", f"{subject}: hidden_size / num_attention_heads", str(size), known, hint)
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if method is not None and str(method).lower() not in facts.QUANTIZATIONS:
        known = f"one of {', '.join(facts.QUANTIZATIONS)}"
        yield _Found("failed", f"{subject}: quantization_config.quant_method", repr(method), known, hint)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and not {"type", "factor"} <= scaling.keys():
        found = f"keys {', '.join(sorted(map(str, scaling)))}"
        yield _Found("failed", f"{subject}: rope_scaling", found, f"type and factor, which vLLM {vllm} reads", hint)
    index = json_object(mirror, "model.safetensors.index.json")
    listed = index.get("weight_map") if index is not None else None
    if isinstance(listed, dict):
        stray = sorted({*mirror.matching("*.safetensors")} - {str(file) for file in listed.values()})
        if len(stray) > 0:
            expected = "the files of the index alone: vLLM loads every one"
            yield _Found("failed", f"{_MIRROR}/{stray[0]}", "not in the index", expected, "leave it out of the mirror")


def _rope(config: Mapping[str, Any]) -> Iterator[_Found]:
    if "rope_parameters" in config and "rope_theta" not in config:
        hint = "add rope_theta, of rope_parameters, to config.json"
        expected = "rope_theta, all that transformers of that time reads: it would take 10000"
        yield _Found("failed", f"{_MIRROR}/config.json", "rope_parameters alone", expected, hint)


def _tokenizer(mirror: Tree) -> Iterator[_Found]:
    content = json_object(mirror, "tokenizer.json")
    model = content.get("model") if content is not None else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if isinstance(merges, list) and any(isinstance(pair, list) for pair in merges[:1]):
        expected = 'merges like "a b": tokenizers before 0.20, as in the image, reads no pairs'
        hint = "save the tokenizer again with tokenizers<0.20"
        yield _Found("failed", f"{_MIRROR}/tokenizer.json", "merges as pairs", expected, hint)


def _averaging(config: Mapping[str, Any]) -> Iterator[_Found]:
    subject = f"{_MIRROR}/config.json"
    hint = "EmbeddingEngine cannot serve this model"
    hidden, types = config.get("hidden_size"), whole(config.get("type_vocab_size"))
    if hidden != facts.EMBEDDING_HIDDEN:
        expected = f"{facts.EMBEDDING_HIDDEN}, which EmbeddingEngine asserts"
        yield _Found("failed", f"{subject}: hidden_size", repr(hidden), expected, hint)
    if types is None or types < 2:
        expected = "at least 2: EmbeddingEngine warms up with token type 1"
        yield _Found("failed", f"{subject}: type_vocab_size", repr(types), expected, hint)


_RULES: Mapping[str, Callable[[_View], Iterator[_Found]]] = MappingProxyType(
    {
        "yaml": _yaml,
        "schema": _flawed("schema"),
        "ignored-keys": _flawed("ignored-keys"),
        "choices": _flawed("choices"),
        "file-name": _file_name,
        "serve-config": _serve_config,
        "engine": _engine,
        "deployment": _deployment,
        "workers": _workers,
        "mirror-names": _mirror_names,
        "hash": _hash,
        "config": _config,
        "bucket": _bucket,
        "prompt-format": _prompt_format,
        "chat-template": _chat_template,
        "max-total-tokens": _max_total_tokens,
        "batch": _batch,
        "runtime": _runtime,
        "loads": _loads,
    }
)
