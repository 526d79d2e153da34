"""The lint of a Ray Serve package: read as Ray Serve and vLLM read it, apart from how packages are made."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeGuard

from llmcompile.packaging.ray_serve import RULES
from llmcompile.packaging.ray_serve.documents import (
    Document,
    is_llm_config,
    other_serve_paths,
    read,
    serve_path,
    yaml_paths,
)
from llmcompile.packaging.ray_serve.engine_args import (
    ARCHITECTURES,
    DTYPES,
    ENGINE,
    FAMILIES,
    FRONTEND,
    LENGTH_KEYS,
    LOAD_FORMATS,
    PLUGINS,
    QUANTIZATIONS,
    REMOVED,
    RESERVED,
    STREAMING,
    UNSCALED,
)
from llmcompile.packaging.ray_serve.engine_args import VERSION as KNOWN_VLLM
from llmcompile.packaging.ray_serve.releases import (
    ALIASES,
    DEPRECATED,
    UNLABELLED,
    URI_AS_SOURCE,
    VLLM,
    accelerators,
    azure_form,
    minor,
    release_of,
    satisfies,
    schemes,
)
from llmcompile.packaging.ray_serve.schema import EFFECTS, Flaw, file_flaws, flaws
from llmcompile.packaging.target import Finding, Serving
from llmcompile.packaging.tree import READ_BYTES, Tree
from llmcompile.writing import MANIFEST

_BUILDERS = ("build_openai_app", "build_pd_openai_app", "build_dp_openai_app", "build_llm_deployment")
_VERSION_HINT = "say --target-version, like 2.60"
_ANY_SCHEME = re.compile(r"(?:s3|gs|abfss|azure)://|pyarrow-")
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_TOKENIZERS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("tekken.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("*.tiktoken",),
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
_SHARDED = "model-rank-*.safetensors"


@dataclass(frozen=True)
class _Config:
    """An LLMConfig: where it stands, and what it holds."""

    where: str
    content: Mapping[str, Any]

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def source(self) -> object:
        return self.mapping("model_loading_config").get("model_source")

    @property
    def bucket(self) -> object:
        """The bucket's URI; None where the model comes from elsewhere."""
        source = self.source
        if isinstance(source, dict):
            return source.get("bucket_uri")
        return source if isinstance(source, str) and _ANY_SCHEME.match(source) is not None else None

    def degree(self, key: str) -> int:
        value = self.mapping("engine_kwargs").get(key, 1)
        return value if _is_count(value) else 1

    @property
    def workers(self) -> int:
        return self.degree("tensor_parallel_size") * self.degree("pipeline_parallel_size")


@dataclass(frozen=True)
class _Package:
    """What the rules look at.

    Attributes:
        tree: All files.
        documents: YAML files of the root.
        serve: The Serve config file's name; None where there is none.
        configs: Every LLMConfig of the Serve config file; of the other files where there is none.
        release: Of Ray; None where it is not known.
        runtime: Version of vLLM in the image; None where it is not known.
        model: Files of the model, where they are in the package and it is clear whose they are.
        folder: Where those are: model or mirror.
    """

    tree: Tree
    documents: Mapping[str, Document]
    serve: str | None
    configs: tuple[_Config, ...]
    release: str | None
    runtime: str | None
    model: Tree | None
    folder: str


def findings(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings, in the order of `RULES`."""
    package = _open(tree, serving)
    for rule in RULES:
        found = list(_CHECKS[rule](package))
        wrong = {finding.subject for finding in found if finding.status == "failed"}
        whole = len(wrong) > 0 and rule in ("serve-yaml", "llm-configs")
        told = [finding for finding in found if finding.status != "ok" or not (whole or finding.subject in wrong)]
        yield from told if len(told) > 0 else [_ok(rule, "LLMConfig", "nothing to object to")]


def _open(tree: Tree, serving: Serving) -> _Package:
    documents = {path: read(tree, path) for path in yaml_paths(tree)}
    recorded = _recorded(tree)
    configs = _inline(documents)
    if len(configs) == 0:
        configs = [
            _Config(path, document.content) for path, document in documents.items() if is_llm_config(document.content)
        ]
    folder = "mirror" if len(configs) == 1 and configs[0].bucket is not None else "model"
    local = len(configs) == 1 and (folder == "mirror" or str(configs[0].source).startswith("/"))
    return _Package(
        tree=tree,
        documents=documents,
        serve=serve_path(documents),
        configs=tuple(configs),
        release=release_of(serving.version if serving.version is not None else recorded.get("version")),
        runtime=serving.runtime_version if serving.runtime_version is not None else recorded.get("runtime"),
        model=tree.under(folder) if local and folder in tree.folders else None,
        folder=folder,
    )


def _recorded(tree: Tree) -> Mapping[str, str]:
    """`package` of llmcompile.json: the release and the runtime it was made for."""
    content = _json(tree, MANIFEST)
    package = content.get("package") if isinstance(content, dict) else None
    if not isinstance(package, dict):
        return {}
    return {key: package[key] for key in ("version", "runtime") if isinstance(package.get(key), str)}


def _applications(documents: Mapping[str, Document]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    serve = serve_path(documents)
    content = documents[serve].content if serve is not None else None
    listed = content.get("applications") if isinstance(content, dict) else None
    for number, application in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(application, dict):
            yield number, application


def _listed(application: Mapping[str, Any]) -> list[object]:
    """What stands in llm_configs of an application: mappings and paths."""
    arguments = application.get("args")
    listed = arguments.get("llm_configs") if isinstance(arguments, dict) else None
    return listed if isinstance(listed, list) else []


def _entries(documents: Mapping[str, Document]) -> list[tuple[str, object]]:
    """All of them, and where they stand: the file's name is enough where there is one."""
    serve = serve_path(documents)
    entries = [
        (f"{serve}: applications.{number}.args.llm_configs.{index}", entry)
        for number, application in _applications(documents)
        for index, entry in enumerate(_listed(application))
    ]
    return [(str(serve), entries[0][1])] if len(entries) == 1 else entries


def _inline(documents: Mapping[str, Document]) -> list[_Config]:
    configs = []
    for where, entry in _entries(documents):
        if isinstance(entry, str):
            path = entry.removeprefix("./")
            content = documents[path].content if path in documents else None
            where, entry = path, content
        if isinstance(entry, dict):
            configs.append(_Config(where, entry))
    return configs


def _ok(rule: str, subject: str, found: str) -> Finding:
    return Finding(rule, "ok", subject, found)


def _failed(rule: str, subject: str, found: str, expected: str = "", hint: str = "") -> Finding:
    return Finding(rule, "failed", subject, found, expected, hint)


def _note(rule: str, subject: str, found: str, expected: str = "", hint: str = "") -> Finding:
    return Finding(rule, "note", subject, found, expected, hint)


def _skipped(rule: str, subject: str, found: str, hint: str = "") -> Finding:
    return Finding(rule, "skipped", subject, found, hint=hint)


def _serve_yaml(package: _Package) -> Iterator[Finding]:
    rule = "serve-yaml"
    for path, document in package.documents.items():
        if document.problem != "":
            yield _failed(rule, path, document.problem, "YAML", "correct the file, or package again")
        for name in document.repeated:
            yield _note(rule, f"{path}: {name}", "stands twice; the last one counts", "once", "drop one of them")
    serve = package.serve
    if serve is None:
        found = "no file with applications: LLMConfigs alone"
        yield _skipped(rule, "Serve config file", found, "serve run needs a Serve config file")
        return
    for path in other_serve_paths(package.documents):
        hint = "lint it in a folder of its own"
        yield _note(rule, path, f"a further Serve config file, not looked at: {serve} was", "one", hint)
    document = package.documents[serve]
    if document.problem != "":
        return
    for flaw in file_flaws(document.content):
        yield _failed(rule, f"{serve}: {flaw.key}", flaw.found, flaw.expected, EFFECTS[flaw.effect])
    applications = list(_applications(package.documents))
    for number, application in applications:
        yield from _environment(f"{serve}: applications.{number}.runtime_env", application.get("runtime_env"))
    names = [str(application.get("name", "default")) for _, application in applications]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield _failed(rule, serve, f"{names.count(name)} applications named {name}", "a name for each", "rename one")
    if len(applications) == 0:
        yield _failed(rule, f"{serve}: applications", "none", "at least one", "package again")
    else:
        yield _ok(rule, serve, f"{len(applications)} application{'s' if len(applications) > 1 else ''}")


def _environment(where: str, environment: object) -> Iterator[Finding]:
    """Folders of this machine, which Ray Serve refuses in a file, in the runtime environment of an application."""
    if not isinstance(environment, dict):
        return
    modules = environment.get("py_modules")
    for key, value in (
        ("working_dir", environment.get("working_dir")),
        *(("py_modules", module) for module in (modules if isinstance(modules, list) else [])),
    ):
        if value is not None and re.match(r"[a-z][a-z0-9+.-]*://", str(value)) is None:
            hint = "Ray Serve refuses the file; serve run has --working-dir"
            yield _failed("serve-yaml", f"{where}.{key}", reprlib.repr(value), "a URI, like s3://bucket/code.zip", hint)


def _import_path(package: _Package) -> Iterator[Finding]:
    rule = "import-path"
    serve = package.serve
    if serve is None:
        yield _skipped(rule, "Serve config file", "none here")
        return
    for number, application in _applications(package.documents):
        subject = f"{serve}: applications.{number}.import_path"
        found = application.get("import_path")
        expected = "ray.serve.llm:build_openai_app"
        module, _, builder = str(found).replace(":", ".").rpartition(".")
        if found == expected:
            yield _ok(rule, subject, expected)
        elif module == "ray.serve.llm" and builder in _BUILDERS:
            yield _note(rule, subject, str(found), expected, "these rules know build_openai_app's arguments alone")
        elif module == "ray.serve.llm":
            yield _failed(rule, subject, str(found), expected, "ray.serve.llm has no such builder")
        elif module.startswith("rayllm"):
            hint = "convert the entries: llmcompile package ray-serve --from-rayllm FILE OUTPUT"
            yield _failed(rule, subject, str(found), expected, hint)
        else:
            yield _note(rule, subject, reprlib.repr(found), expected, "an application of another kind")


def _llm_configs(package: _Package) -> Iterator[Finding]:
    rule = "llm-configs"
    if len(package.configs) == 0:
        yield _failed(rule, "LLMConfig", "none", "one in a Serve config file, or in a file of its own", "package again")
        return
    for number, application in _applications(package.documents):
        ours = str(application.get("import_path")).startswith("ray.serve.llm")
        if ours and len(_listed(application)) == 0:
            where = f"{package.serve}: applications.{number}.args.llm_configs"
            yield _failed(rule, where, "none", "a list of LLMConfigs", "package again")
    for where, entry in _entries(package.documents):
        yield from _entry(package, where, entry)
    ids = [str(config.mapping("model_loading_config").get("model_id")) for config in package.configs]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield _failed(rule, f"model_id {name}", f"{ids.count(name)} LLMConfigs", "one of a model_id", "rename one")
    yield from _twins(package)
    yield _ok(rule, "LLMConfig", ", ".join(ids))


def _entry(package: _Package, where: str, entry: object) -> Iterator[Finding]:
    rule = "llm-configs"
    if isinstance(entry, dict):
        return
    if not isinstance(entry, str):
        yield _failed(rule, where, reprlib.repr(entry), "an LLMConfig, or the path of its file", "package again")
    elif entry.startswith("/"):
        yield _skipped(rule, where, f"{entry}, on the nodes", "lint the file there")
    elif entry.removeprefix("./") not in package.documents:
        yield _failed(
            rule, where, f"{entry}: no such file", "a file of the package", "write the LLMConfig in its place"
        )
    else:
        hint = "it is looked for where ray start was typed, not here: write the LLMConfig in its place"
        yield _note(rule, where, entry, "an LLMConfig, or an absolute path", hint)


def _twins(package: _Package) -> Iterator[Finding]:
    """LLMConfigs in files of their own that differ from the one of the same model in the Serve config file."""
    inline = {
        str(config.mapping("model_loading_config").get("model_id")): config
        for config in package.configs
        if package.serve is not None and config.where.startswith(package.serve)
    }
    for path, document in package.documents.items():
        if path == package.serve or not is_llm_config(document.content):
            continue
        loading = document.content["model_loading_config"]
        config = inline.get(str(loading.get("model_id"))) if isinstance(loading, dict) else None
        if config is not None and config.content != document.content:
            differing = sorted(
                str(key)
                for key in {*config.content, *document.content}
                if config.content.get(key) != document.content.get(key)
            )
            hint = f"serve run reads {package.serve}; make both alike, or remove the file"
            yield _failed("llm-configs", path, f"other {', '.join(differing)} than {config.where}", "the same", hint)


def _schema(package: _Package) -> Iterator[Finding]:
    rule = "schema"
    yield from _flaws(package, rule, lambda flaw: not flaw.key.startswith("deployment_config"))
    for config in package.configs:
        variables = config.mapping("runtime_env").get("env_vars")
        for name, value in (variables if isinstance(variables, dict) else {}).items():
            if _SECRET.search(str(name)) is not None and value not in (None, ""):
                hint = "set it on the nodes; Ray passes HF_TOKEN on by itself"
                yield _note(rule, f"{config.where}: runtime_env.env_vars.{name}", "looks like a secret", "none", hint)


def _deployment(package: _Package) -> Iterator[Finding]:
    rule = "deployment"
    yield from _flaws(package, rule, lambda flaw: flaw.key.startswith("deployment_config"))
    for config in package.configs:
        scaling = config.mapping("deployment_config").get("autoscaling_config")
        for old, new in DEPRECATED.items():
            if isinstance(scaling, dict) and old in scaling:
                where = f"{config.where}: deployment_config.autoscaling_config.{old}"
                yield _note(rule, where, "deprecated; it still counts", new, f"write {new}")


def _flaws(package: _Package, rule: str, wanted: Callable[[Flaw], bool]) -> Iterator[Finding]:
    if package.release is None:
        yield _skipped(rule, "LLMConfig", "the release of Ray is not known", _VERSION_HINT)
        return
    for config in package.configs:
        found = [flaw for flaw in flaws(config.content, package.release) if wanted(flaw)]
        for flaw in found:
            yield _failed(rule, f"{config.where}: {flaw.key}", flaw.found, flaw.expected, EFFECTS[flaw.effect])
        if len(found) == 0:
            yield _ok(rule, config.where, f"every key is one of Ray {package.release}")


def _replicas(package: _Package) -> Iterator[Finding]:
    rule = "replicas"
    for config in package.configs:
        deployment = config.mapping("deployment_config")
        where = f"{config.where}: deployment_config"
        scaling = deployment.get("autoscaling_config")
        number = deployment.get("num_replicas")
        if not isinstance(scaling, dict):
            yield _ok(rule, where, f"num_replicas {number}" if _is_count(number) else "the builder's own range")
            continue
        if number is not None and number != "auto":
            hint = "drop num_replicas; Ray Serve fails when it builds the application"
            yield _failed(rule, where, f"num_replicas {number} and autoscaling_config", "one of them", hint)
        yield from _range(rule, f"{where}.autoscaling_config", scaling, deployment.get("max_ongoing_requests"))


def _range(rule: str, where: str, scaling: Mapping[str, Any], limit: object) -> Iterator[Finding]:
    keys = ("min_replicas", "initial_replicas", "max_replicas")
    given = [scaling[key] for key in keys if scaling.get(key) is not None]
    if any(_whole(value) is None for value in given):
        yield _skipped(rule, where, "not numbers; see the rule deployment")
        return
    least, first, most = (_whole(scaling.get(key)) for key in keys)
    least, most = (1 if value is None else value for value in (least, most))
    values = (least, most) if first is None else (least, first, most)
    shown = " <= ".join(str(value) for value in values)
    if list(values) != sorted(values):
        names = "min_replicas <= initial_replicas <= max_replicas"
        yield _failed(rule, where, f"not {shown}", names, "raise max_replicas, or lower the others")
        return
    yield _ok(rule, where, f"{shown} replicas")
    target = scaling.get("target_ongoing_requests")
    if least < most and target is None:
        expected = "target_ongoing_requests; since 2.49 the builder's own is 1000000000, so that none is ever added"
        yield _failed(rule, where, f"{shown} replicas and no target", expected, "write target_ongoing_requests: 24")
    elif _is_count(limit) and isinstance(target, (int, float)) and target > limit:
        hint = "a replica is full before another is started: raise max_ongoing_requests"
        yield _note(rule, where, f"target_ongoing_requests {target} > max_ongoing_requests {limit}", "less", hint)


def _engine(package: _Package) -> Iterator[Finding]:
    rule = "engine"
    for config in package.configs:
        found = config.content.get("llm_engine", "vLLM")
        if found == "vLLM":
            yield _ok(rule, f"{config.where}: llm_engine", "vLLM")
        else:
            hint = "Ray Serve's LLM module runs vLLM alone; Ray Serve refuses the file"
            yield _failed(rule, f"{config.where}: llm_engine", reprlib.repr(found), "vLLM", hint)


def _engine_args(package: _Package) -> Iterator[Finding]:
    rule = "engine-args"
    for config in package.configs:
        arguments = config.mapping("engine_kwargs")
        known = sorted(ENGINE | FRONTEND)
        exact = package.release is not None and VLLM[package.release] == f"=={KNOWN_VLLM}"
        wrong = 0
        for key, value in arguments.items():
            where = f"{config.where}: engine_kwargs.{key}"
            if key in RESERVED:
                wrong += 1
                yield _failed(
                    rule, where, "set by Ray Serve itself", RESERVED[key], "drop it; the engine does not start"
                )
            elif key == "distributed_executor_backend" and value != "ray" and not _on_cpu(config):
                wrong += 1
                yield _failed(rule, where, reprlib.repr(value), "ray", "drop it; the engine fails")
            elif key == "disable_log_stats" and value is True and _measures(config, package.release):
                wrong += 1
                yield _failed(rule, where, "true beside log_engine_metrics", "one of them", "log_engine_metrics: false")
            elif key not in ENGINE and key not in FRONTEND:
                wrong += 1
                near = get_close_matches(str(key), known, 1)
                expected = near[0] if len(near) > 0 else f"an argument of vLLM {KNOWN_VLLM}"
                if exact:
                    yield _failed(rule, where, "unknown argument", expected, "the engine does not start with it")
                else:
                    hint = "look whether your vLLM has it"
                    yield _note(rule, where, f"no argument of vLLM {KNOWN_VLLM}", expected, hint)
        if wrong == 0:
            yield _ok(rule, f"{config.where}: engine_kwargs", ", ".join(str(key) for key in arguments) or "none")


def _measures(config: _Config, release: str | None) -> bool:
    """Whether the engine's metrics are on; since 2.51 they are by default."""
    default = release is None or minor(release) >= 51
    return bool(config.content.get("log_engine_metrics", default))


def _on_cpu(config: _Config) -> bool:
    return config.mapping("accelerator_config").get("kind") == "cpu" or config.content.get("use_cpu") is True


def _accelerator(package: _Package) -> Iterator[Finding]:
    rule = "accelerator"
    for config in package.configs:
        name = config.content.get("accelerator_type")
        where = f"{config.where}: accelerator_type"
        if name is None:
            yield _ok(rule, where, "any")
        elif package.release is None:
            yield _skipped(rule, where, "the release of Ray is not known", _VERSION_HINT)
        else:
            yield from _named(rule, where, name, config, package.release)


def _named(rule: str, where: str, name: object, config: _Config, release: str) -> Iterator[Finding]:
    known = accelerators(release)
    if not isinstance(name, str) or (name not in known and name not in ALIASES):
        near = get_close_matches(str(name), known, 3, 0.5)
        expected = " or ".join(near) if len(near) > 0 else f"one of {', '.join(known)}"
        yield _failed(rule, where, reprlib.repr(name), expected, "Ray Serve refuses the file")
        return
    kind = "tpu" if name.startswith("TPU-") else "gpu"
    asked = _kind_of_bundles(config)
    if asked is not None and asked != kind and minor(release) >= 56:
        yield _failed(rule, where, f"{name} and bundles for {asked.upper()}s", kind.upper(), "make them agree")
    elif name in UNLABELLED:
        hint = f"start these nodes with the resource accelerator_type:{name}"
        yield _note(rule, where, f"{name}, which Ray does not label nodes with by itself", "A100", hint)
    elif name == "aws-neuron-core":
        yield _note(
            rule, where, "vLLM on Neuron was not verified with Ray Serve", "a GPU", "try it before you rely on it"
        )
    else:
        yield _ok(rule, where, name)


def _kind_of_bundles(config: _Config) -> str | None:
    """As Ray 2.60 infers it; None where nothing says so."""
    kind = config.mapping("accelerator_config").get("kind")
    if isinstance(kind, str):
        return kind
    placement = config.mapping("placement_group_config")
    bundles = _bundles(config)
    if len(placement) == 0 or len(bundles) == 0:
        return None
    for resource, found in (("TPU", "tpu"), ("GPU", "gpu")):
        if any(_amount(bundle.get(resource)) > 0 for bundle in bundles):
            return found
    return "cpu"


def _bundles(config: _Config) -> list[Mapping[str, Any]]:
    placement = config.mapping("placement_group_config")
    each = placement.get("bundle_per_worker")
    if isinstance(each, dict):
        return [each] * config.workers
    listed = placement.get("bundles")
    return [bundle for bundle in listed if isinstance(bundle, dict)] if isinstance(listed, list) else []


def _amount(value: object) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _model_source(package: _Package) -> Iterator[Finding]:
    rule = "model-source"
    for config in package.configs:
        where = f"{config.where}: model_loading_config"
        if "tokenizer_source" in config.mapping("model_loading_config"):
            hint = "write engine_kwargs.tokenizer"
            yield _note(
                rule, f"{where}.tokenizer_source", "no release of Ray reads it", "engine_kwargs.tokenizer", hint
            )
        source = config.source
        where = f"{where}.model_source"
        if source is None:
            yield _ok(rule, where, "the hub, by model_id")
        elif config.bucket is not None or isinstance(source, dict):
            yield from _bucket(package, where, config)
        elif str(source).startswith("/"):
            yield _ok(rule, where, str(source))
        elif _HUB_ID.fullmatch(str(source)) is not None:
            yield _ok(rule, where, f"the hub, {source}")
        else:
            yield _failed(rule, where, reprlib.repr(source), "an absolute path, a hub id or a bucket", "package again")


def _bucket(package: _Package, where: str, config: _Config) -> Iterator[Finding]:
    rule = "model-source"
    uri, source, release = config.bucket, config.source, package.release
    if not isinstance(uri, str):
        expected = "bucket_uri: s3://bucket/folder"
        yield _failed(rule, where, reprlib.repr(source), expected, "without it the model comes from the hub")
    elif release is None:
        yield _skipped(rule, where, "the release of Ray is not known", _VERSION_HINT)
    elif not uri.startswith(schemes(release)):
        expected = f"{', '.join(schemes(release))} in Ray {release}"
        yield _failed(rule, where, uri, expected, "Ray Serve refuses the file")
    elif azure_form(uri) is not None:
        yield _failed(rule, where, uri, str(azure_form(uri)), "Ray Serve takes the account from the host's name")
    elif isinstance(source, str) and minor(release) < URI_AS_SOURCE:
        hint = f"Ray {release} takes it for the id of a hub model"
        yield _failed(rule, where, uri, f"{{bucket_uri: {uri}}}", hint)
    else:
        yield _ok(rule, where, uri)


def _placement(package: _Package) -> Iterator[Finding]:
    rule = "placement"
    for config in package.configs:
        placement = config.content.get("placement_group_config")
        where = f"{config.where}: placement_group_config"
        workers = config.workers
        if not isinstance(placement, dict):
            yield _ok(rule, where, f"a bundle of the builder's own for each of {workers} workers")
            continue
        each, listed = placement.get("bundle_per_worker"), placement.get("bundles")
        if (each is None) == (listed is None):
            found = "neither bundle_per_worker nor bundles" if each is None else "bundle_per_worker and bundles"
            yield _failed(rule, where, found, "one of them", "the engine does not start")
            continue
        kind = "TPU" if config.mapping("accelerator_config").get("kind") == "tpu" else "GPU"
        bundles = _bundles(config)
        devices = [bundle for bundle in bundles if _amount(bundle.get(kind)) > 0]
        shown = f"{len(devices)} of {len(bundles)} bundles with a {kind} for {workers} workers"
        if _on_cpu(config) or _kind_of_bundles(config) in ("cpu", "tpu"):
            yield _ok(rule, where, f"{len(bundles)} bundles for {workers} workers")
        elif len(devices) != workers:
            expected = f"{workers}: tensor_parallel_size x pipeline_parallel_size"
            yield _failed(rule, where, shown, expected, "write as many bundles, or bundle_per_worker")
        else:
            yield _ok(rule, where, shown)


def _model_config(package: _Package) -> Mapping[str, Any] | None:
    """config.json of the model in the package, of its text part where it has several."""
    content = None if package.model is None else _json(package.model, "config.json")
    if not isinstance(content, dict):
        return None
    text = content.get("text_config")
    return text if isinstance(text, dict) else content


def _with_model(package: _Package, rule: str) -> Iterator[Finding]:
    """Why a rule that reads the model is skipped; nothing where it can be read."""
    if package.model is None:
        if len(package.configs) == 1:
            source = package.configs[0].source
            shown = "the hub" if source is None else reprlib.repr(source)
            yield _skipped(rule, "the model", f"not in the package; it comes from {shown}", "")
        else:
            yield _skipped(rule, "the model", f"{len(package.configs)} LLMConfigs; whose files these are is not said")
    elif _model_config(package) is None:
        yield _skipped(rule, f"{package.folder}/config.json", "not read; see the rule weights")


def _architecture(package: _Package) -> Iterator[Finding]:
    rule = "architecture"
    yield from _with_model(package, rule)
    whole = None if package.model is None else _json(package.model, "config.json")
    named = whole.get("architectures") if isinstance(whole, dict) else None
    if not isinstance(named, list) or len(named) == 0:
        return
    where = f"{package.folder}/config.json: architectures"
    names = [str(name) for name in named]
    exact = package.release is not None and VLLM[package.release] == f"=={KNOWN_VLLM}"
    gone = [f"{name}, last in vLLM {REMOVED[name]}" for name in names if name in REMOVED]
    if any(name in ARCHITECTURES for name in names):
        yield _ok(rule, where, ", ".join(names))
    elif len(gone) > 0:
        made = _failed if exact else _note
        yield made(rule, where, ", ".join(gone), "a class that vLLM still has", "serve it with that version of vLLM")
    elif any(name in PLUGINS for name in names):
        yield _note(rule, where, ", ".join(names), "a class of vLLM's own", "the image needs vLLM's plug-in for it")
    else:
        hint = "vLLM falls back on Transformers' code where that allows it: try it before you rely on it"
        yield _note(rule, where, reprlib.repr(names), f"a class that vLLM {KNOWN_VLLM} has code for", hint)


def _parallel(package: _Package) -> Iterator[Finding]:
    rule = "parallel"
    yield from _with_model(package, rule)
    model = _model_config(package)
    if model is None:
        return
    config = package.configs[0]
    where = f"{config.where}: engine_kwargs"
    tp, pp = config.degree("tensor_parallel_size"), config.degree("pipeline_parallel_size")
    heads = _number(model, ("num_attention_heads", "n_head", "num_heads"))
    layers = _number(model, ("num_hidden_layers", "n_layer", "num_layers"))
    if heads is not None and heads % tp != 0:
        found = f"tensor_parallel_size {tp}; {heads} heads / {tp} = {heads / tp:.3g}"
        fitting = ", ".join(str(size) for size in range(1, min(heads, 1024) + 1) if heads % size == 0)
        yield _failed(rule, where, found, "a whole number", f"one of {fitting}")
    if layers is not None and pp > layers:
        found = f"pipeline_parallel_size {pp} for {layers} layers"
        yield _failed(rule, where, found, f"at most {layers}", "lower pipeline_parallel_size")
    shared = "" if heads is None else f" of {heads} heads"
    yield _ok(rule, where, f"tensor_parallel_size {tp}{shared}, pipeline_parallel_size {pp}")


def _number(model: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((model[key] for key in keys if _is_count(model.get(key))), None)


def _max_model_len(package: _Package) -> Iterator[Finding]:
    rule = "max-model-len"
    lengths = [(config, config.mapping("engine_kwargs").get("max_model_len")) for config in package.configs]
    for config, length in lengths:
        where = f"{config.where}: engine_kwargs.max_model_len"
        if length is not None and length not in ("auto", -1) and not _is_count(length):
            yield _failed(rule, where, reprlib.repr(length), "a number of tokens", "leave it out for the model's own")
    yield from _with_model(package, rule)
    model = _model_config(package)
    if model is None:
        return
    config, length = lengths[0]
    where = f"{config.where}: engine_kwargs.max_model_len"
    longest = _longest(package, model)
    if not _is_count(length) or longest is None:
        own = "not said" if longest is None else str(longest)
        yield _ok(rule, where, f"{'not said' if length is None else length}; the model's: {own}")
    elif length > longest:
        hint = f"write {longest} or less; vLLM refuses to start"
        yield _failed(rule, where, str(length), f"at most {longest}, the model's", hint)
    else:
        yield _ok(rule, where, f"{length} of {longest}")


def _longest(package: _Package, model: Mapping[str, Any]) -> int | None:
    """The length vLLM derives: the least of config.json and the tokenizer, times the factor of the rotary embedding."""
    said = [float(model[key]) for key in LENGTH_KEYS if _is_count(model.get(key))]
    if len(said) == 0:
        return None
    least = float(model["model_max_length"]) if _is_count(model.get("model_max_length")) else min(said)
    assert package.model is not None
    tokenizer = _json(package.model, "tokenizer_config.json")
    own = tokenizer.get("model_max_length") if isinstance(tokenizer, dict) else None
    if _amount(own) > 0 and math.isfinite(_amount(own)):
        least = min(least, _amount(own))
    for rope in (model.get("rope_parameters"), model.get("rope_scaling")):
        if not isinstance(rope, dict) or "gemma3" in str(model.get("model_type")):
            continue
        kind = str(rope.get("rope_type", rope.get("type", "default")))
        factor = _amount(rope.get("factor"))
        if kind not in UNSCALED and 0 < factor < 1e6:
            trained = rope.get("original_max_position_embeddings")
            least = (float(trained) if kind == "yarn" and _is_count(trained) else least) * factor
            break
    return int(least) if math.isfinite(least) else None


def _dtype(package: _Package) -> Iterator[Finding]:
    rule = "dtype"
    spelled = {"fp16": "float16", "f16": "float16", "bf16": "bfloat16", "fp32": "float32", "f32": "float32"}
    for config in package.configs:
        found = config.mapping("engine_kwargs").get("dtype", "auto")
        where = f"{config.where}: engine_kwargs.dtype"
        if isinstance(found, str) and found in DTYPES:
            yield _ok(rule, where, found)
        else:
            expected = spelled.get(str(found).lower().removeprefix("torch."), f"one of {', '.join(DTYPES)}")
            yield _failed(rule, where, reprlib.repr(found), expected, f"write {expected}")


def _load_format(package: _Package) -> Iterator[Finding]:
    rule = "load-format"
    for config in package.configs:
        found = config.mapping("engine_kwargs").get("load_format", "auto")
        where = f"{config.where}: engine_kwargs.load_format"
        exact = package.release is not None and VLLM[package.release] == f"=={KNOWN_VLLM}"
        if not isinstance(found, str) or found not in LOAD_FORMATS:
            near = get_close_matches(str(found), LOAD_FORMATS, 1)
            expected = near[0] if len(near) > 0 else f"one of {', '.join(LOAD_FORMATS)}"
            made = _failed if exact else _note
            yield made(rule, where, reprlib.repr(found), f"{expected} in vLLM {KNOWN_VLLM}", "leave it out for auto")
        elif found in STREAMING and config.bucket is None:
            yield _note(rule, where, f"{found}, and no bucket", "a bucket", "vLLM streams from the folder")
        elif package.model is not None and not _has_format(package.model, found):
            names = _SHARDED if found == "sharded_state" else "weights of this format"
            yield _failed(rule, where, f"{found}, and no {names} in {package.folder}", names, "write auto")
        else:
            yield _ok(rule, where, found)


def _has_format(model: Tree, load_format: str) -> bool:
    patterns = {
        "sharded_state": (_SHARDED,),
        "safetensors": ("*.safetensors",),
        "runai_streamer": ("*.safetensors",),
        "runai_streamer_sharded": (_SHARDED,),
        "mistral": ("consolidated*.safetensors",),
        "pt": ("*.pt", "*.bin"),
        "npcache": ("*.bin",),
        "tensorizer": ("*.tensors",),
    }
    return load_format not in patterns or any(len(model.matching(pattern)) > 0 for pattern in patterns[load_format])


def _quantization(package: _Package) -> Iterator[Finding]:
    rule = "quantization"
    stored = None
    if package.model is not None:
        whole = _json(package.model, "config.json")
        recipe = whole.get("quantization_config") if isinstance(whole, dict) else None
        stored = recipe.get("quant_method") if isinstance(recipe, dict) else None
    exact = package.release is not None and VLLM[package.release] == f"=={KNOWN_VLLM}"
    for config in package.configs:
        asked = config.mapping("engine_kwargs").get("quantization")
        where = f"{config.where}: engine_kwargs.quantization"
        if asked is not None and str(asked).lower() not in QUANTIZATIONS:
            near = get_close_matches(str(asked).lower(), sorted(QUANTIZATIONS), 1)
            expected = near[0] if len(near) > 0 else f"a method of vLLM {KNOWN_VLLM}"
            made = _failed if exact or asked == "squeezellm" else _note
            yield made(rule, where, reprlib.repr(asked), expected, "leave it out: config.json says how it is quantized")
        elif asked is not None and stored is not None and not _alike(str(asked).lower(), str(stored).lower()):
            hint = "leave it out: vLLM reads config.json, and refuses another method"
            yield _failed(rule, where, f"{asked}; {stored} in {package.folder}/config.json", str(stored), hint)
        elif asked is not None and package.model is None:
            yield _skipped(rule, where, f"{asked}; the model's config.json is not in the package")
        else:
            yield _ok(rule, where, str(asked or stored or "none"))


def _alike(asked: str, stored: str) -> bool:
    return asked == stored or any({asked, stored} <= family for family in FAMILIES)


def _weights(package: _Package) -> Iterator[Finding]:
    rule = "weights"
    if package.model is None:
        yield from _absent(package, rule)
        return
    folder, model = package.folder, package.model
    content = _json(model, "config.json")
    if not isinstance(content, dict):
        found = "no such file" if "config.json" not in model.files else "not a JSON object"
        yield _failed(rule, f"{folder}/config.json", found, "the model's configuration", "package again")
    elif not isinstance(content.get("architectures"), list):
        found = "no architectures"
        yield _failed(rule, f"{folder}/config.json", found, "the model's class", "save it with save_pretrained")
    yield from _shards(rule, folder, model)
    for path, size in model.files.items():
        if size == 0 and path.endswith((".safetensors", ".bin", ".json")):
            yield _failed(rule, f"{folder}/{path}", "0 bytes", "its content", "package again")


def _absent(package: _Package, rule: str) -> Iterator[Finding]:
    """The model is not in the package; that is wrong where the LLMConfig says it should be."""
    made = MANIFEST in package.tree.files and _recorded_kind(package.tree) == "hf"
    if made and len(package.configs) == 1:
        yield _failed(rule, f"{package.folder}/", "no such folder", "the model's files", "package again")
    else:
        yield from _with_model(package, rule)


def _recorded_kind(tree: Tree) -> object:
    content = _json(tree, MANIFEST)
    package = content.get("package") if isinstance(content, dict) else None
    return package.get("kind") if isinstance(package, dict) else None


def _shards(rule: str, folder: str, model: Tree) -> Iterator[Finding]:
    indexes = [path for path in model.matching("*.index.json") if "/" not in path]
    for index in indexes:
        content = _json(model, index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            yield _failed(rule, f"{folder}/{index}", "no weight_map", "tensor -> file", "package again")
            continue
        names = sorted({str(name) for name in shards.values()})
        missing = [name for name in names if name not in model.files]
        for name in missing:
            yield _failed(rule, f"{folder}/{name}", "no such file", f"a shard of {index}", "package again")
        if len(missing) == 0:
            yield _ok(rule, f"{folder}/{index}", f"{len(names)} files")
    if len(indexes) == 0:
        weights = [path for pattern in ("*.safetensors", "*.bin", "*.pt") for path in model.matching(pattern)]
        numbered = [re.fullmatch(r".*-(\d{5})-of-(\d{5})\.\w+", path) for path in weights]
        if len(weights) == 0:
            yield _failed(rule, f"{folder}/", "no weights", "*.safetensors or *.bin", "package again")
        elif any(match is not None and int(match[2]) > len(weights) for match in numbered):
            yield _failed(rule, f"{folder}/", f"{len(weights)} of the shards, no index", "all of them", "package again")
        else:
            yield _ok(rule, f"{folder}/", ", ".join(weights[:4]))


def _tokenizer(package: _Package) -> Iterator[Finding]:
    rule = "tokenizer"
    arguments = package.configs[0].mapping("engine_kwargs") if len(package.configs) == 1 else {}
    if package.model is None:
        yield from _with_model(package, rule)
        return
    if isinstance(arguments.get("tokenizer"), str) or arguments.get("skip_tokenizer_init") is True:
        yield _skipped(rule, f"{package.folder}/", "engine_kwargs names another tokenizer, or none")
        return
    found = next((names for names in _TOKENIZERS if all(package.model.matching(name) != () for name in names)), None)
    if found is None:
        expected = "tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        yield _failed(rule, f"{package.folder}/", "no tokenizer", expected, "save the tokenizer into the checkpoint")
    else:
        yield _ok(rule, f"{package.folder}/", " and ".join(found))
    streamed = arguments.get("load_format") in STREAMING
    if found is not None and streamed and not any("tokenizer" in name for name in found):
        hint = "save tokenizer.json"
        found_files = " and ".join(found)
        yield _note(
            rule, f"{package.folder}/", f"{found_files}, which Ray does not fetch alone", "tokenizer.json", hint
        )


def _hash(package: _Package) -> Iterator[Finding]:
    rule = "hash"
    if package.folder != "mirror":
        yield _skipped(rule, "hash", "no bucket")
        return
    if package.model is None:
        yield from _with_model(package, rule)
        return
    where = "mirror/hash"
    if "hash" not in package.model.files:
        hint = "add one line of 40 hexadecimal digits, uploaded last"
        yield _failed(rule, where, "no such file; every mirror would be cached under forty zeros", "a hash", hint)
        return
    small = package.model.files["hash"] <= 4096
    text = package.model.text("hash") if small else ""
    if re.fullmatch(r"[0-9a-f]{40}\n?", text) is None:
        found = reprlib.repr(text) if small else f"{package.model.files['hash']} bytes"
        hint = "it becomes the name of a folder on the nodes"
        yield _failed(rule, where, found, "40 hexadecimal digits", hint)
    else:
        yield _ok(rule, where, text.strip())


def _vllm_version(package: _Package) -> Iterator[Finding]:
    rule = "vllm-version"
    if package.release is None:
        yield _skipped(rule, "vLLM", "the release of Ray is not known", _VERSION_HINT)
        return
    wanted = VLLM[package.release]
    if package.runtime is None:
        yield _skipped(rule, "vLLM", f"Ray {package.release} asks for {wanted}", "say --runtime-version")
        return
    fits = satisfies(package.runtime, wanted)
    if fits is None:
        yield _failed(rule, "vLLM", reprlib.repr(package.runtime), "a version like 0.29.0", "correct --runtime-version")
    elif fits:
        yield _ok(rule, "vLLM", f"{package.runtime}; Ray {package.release} asks for {wanted}")
    else:
        hint = f'pip install "ray[llm]=={package.release}.*" brings it'
        yield _failed(rule, "vLLM", package.runtime, f"{wanted}, which Ray {package.release} asks for", hint)


def _json(tree: Tree, path: str) -> object:
    """A JSON file; None where it is absent or damaged."""
    if path not in tree.files or tree.files[path] > READ_BYTES:
        return None
    try:
        return json.loads(tree.read(path))
    except (ValueError, RecursionError):
        return None


def _whole(value: object) -> int | None:
    """A whole number as pydantic reads one: 2, 2.0, "2"; None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?\d{1,9}", value.strip(), re.ASCII) is not None else None
    return value if isinstance(value, int) else None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_CHECKS: Mapping[str, Callable[[_Package], Iterator[Finding]]] = MappingProxyType(
    {
        "serve-yaml": _serve_yaml,
        "import-path": _import_path,
        "llm-configs": _llm_configs,
        "schema": _schema,
        "deployment": _deployment,
        "replicas": _replicas,
        "engine": _engine,
        "engine-args": _engine_args,
        "accelerator": _accelerator,
        "model-source": _model_source,
        "placement": _placement,
        "architecture": _architecture,
        "parallel": _parallel,
        "max-model-len": _max_model_len,
        "dtype": _dtype,
        "load-format": _load_format,
        "quantization": _quantization,
        "weights": _weights,
        "tokenizer": _tokenizer,
        "hash": _hash,
        "vllm-version": _vllm_version,
    }
)
