"""The lint of packages for SageMaker: requests as the API reads them, and the model as the image in them does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError
from llmcompile.packaging import compose, dotenv, neuron_env, neuron_rules
from llmcompile.packaging.lmi import TARGET as LMI
from llmcompile.packaging.neuron_env import IMAGES, Image
from llmcompile.packaging.sagemaker import api, toolkit
from llmcompile.packaging.sagemaker.hosts import INSTANCES, SAME_CODE
from llmcompile.packaging.sagemaker.names import (
    COMPOSE,
    CONFIG,
    DJL,
    ENCODERS,
    ENDPOINT,
    ENV,
    ENVIRONMENT,
    FOLDER,
    JOB,
    MODEL,
    MOUNT,
    NAME_BYTES,
    OPTIMUM,
    PROPERTIES,
    TRANSFORMERS,
)
from llmcompile.packaging.target import Finding, Serving

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree


@dataclass
class Seen:
    """A package as it was read.

    Attributes:
        tree: All of it.
        serving: What was said of the place.
        requests: File -> the object in it, for those that are JSON objects.
        faults: What is wrong with files as files.
        environment: The variables of the container.
        where: The file they are from.
    """

    tree: Tree
    serving: Serving
    requests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    where: str = ENVIRONMENT

    @property
    def containers(self) -> Mapping[str, Mapping[str, Any]]:
        """Containers of create_model.json by their path in it: PrimaryContainer, or those of Containers."""
        model = self.requests.get(MODEL, {})
        listed = model.get("Containers")
        paths = {
            f"Containers[{number}]": made for number, made in enumerate(listed if isinstance(listed, list) else [])
        }
        made = {"PrimaryContainer": model["PrimaryContainer"]} if "PrimaryContainer" in model else paths
        return {path: container for path, container in made.items() if isinstance(container, dict)}

    @property
    def path(self) -> str:
        """Path of the container that is looked at: the first."""
        return next(iter(self.containers), "PrimaryContainer")

    @property
    def container(self) -> Mapping[str, Any]:
        """The container that is looked at; empty where there is none."""
        return self.containers.get(self.path, {})

    @property
    def hub(self) -> str | None:
        """The variable that names a model on the hub, with its value."""
        names = ("HF_MODEL_ID", "MODEL_ID", "SM_ON_MODEL", "OPTION_MODEL_ID")
        said = ((name, self.environment.get(name, "")) for name in names)
        return next((f"{name}={value}" for name, value in said if neuron_env.HUB_ID.fullmatch(value)), None)

    @property
    def away(self) -> str | None:
        """Where the model is, if the package has none and need not have one."""
        if any(path.startswith(f"{FOLDER}/") for path in self.tree.files):
            return None
        if self.hub is not None:
            return f"{self.hub}, on the hub"
        source = self.container.get("ModelDataSource")
        inner = source.get("S3DataSource") if isinstance(source, dict) else None
        uri = inner.get("S3Uri") if isinstance(inner, dict) else self.container.get("ModelDataUrl")
        return f"{uri[:120]}, in S3" if isinstance(uri, str) else None

    @property
    def image_uri(self) -> str | None:
        """The image of the container."""
        found = self.container.get("Image")
        return found if isinstance(found, str) else None

    @property
    def variant(self) -> Mapping[str, Any]:
        """The first variant of the endpoint's configuration; empty where there is none."""
        variants = self.requests.get(CONFIG, {}).get("ProductionVariants")
        first = variants[0] if isinstance(variants, list) and variants != [] else None
        return first if isinstance(first, dict) else {}

    @property
    def release(self) -> str | None:
        """What serves: optimum-V or lmi-V; None where nothing says so."""
        recorded = neuron_rules.packaged_version(self.tree)
        for said in (self.serving.version, recorded):
            if said is not None and said.startswith((OPTIMUM, DJL, ENCODERS)):
                return said
        image = None if self.image_uri is None else neuron_env.image_of(self.image_uri)
        if image is not None:
            return f"{OPTIMUM}{image.release}"
        if (self.image_uri or "").endswith(toolkit.REPOSITORY):
            return f"{ENCODERS}{TRANSFORMERS}"
        djl = re.search(r"/djl-inference:(\d{1,3}\.\d{1,3})\.", self.image_uri or "")
        return None if djl is None else f"{DJL}{djl.group(1)}"

    @property
    def runtime(self) -> str | None:
        """The vendor's runtime in the image, as it was said now or when the package was made."""
        return neuron_rules.packaged_runtime(self.tree, self.serving)

    @property
    def lmi(self) -> bool:
        """Whether LMI serves it."""
        release = self.release
        return f"{FOLDER}/{PROPERTIES}" in self.tree.files if release is None else release.startswith(DJL)

    @property
    def encoder(self) -> bool:
        """Whether Hugging Face's inference image serves it."""
        release = self.release
        return toolkit.is_encoder(self.tree.under(FOLDER)) if release is None else release.startswith(ENCODERS)

    @property
    def image(self) -> Image | None:
        """The image with optimum-neuron, where one serves."""
        release = self.release
        return None if release is None else IMAGES.get(release.removeprefix(OPTIMUM))


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    seen = _see(tree, serving)
    yield from _requests(seen)
    yield from _environment(seen)
    yield from _dotenv(seen)
    yield from _image(seen)
    yield from _role(seen)
    yield from _model_data(seen)
    yield from _file_names(seen)
    yield from _names(seen)
    look = neuron_rules.served(
        seen.where,
        seen.environment,
        tree,
        folder=FOLDER,
        mount=MOUNT,
        image=seen.image,
        runtime=seen.runtime,
        sagemaker=True,
        away=seen.away,
    )
    yield from _instance(seen, look)
    yield from _timeouts(seen)
    yield from _compose(seen, look)
    yield from neuron_rules.secrets(_variables(seen))
    if seen.lmi:
        for rule in neuron_env.RULES:
            if rule != "secrets":
                yield Finding(rule, "skipped", FOLDER, "an image of LMI: see the rule lmi")
        yield from _precedence(seen)
        yield from _lmi(seen)
        return
    if seen.encoder and seen.away is not None:
        for rule in neuron_env.RULES:
            if rule != "secrets":
                yield Finding(rule, "skipped", FOLDER, f"not in the package: {seen.away}")
    elif seen.encoder:
        yield from toolkit.lint(tree, seen.environment, seen.where, FOLDER, seen.runtime)
    else:
        yield from neuron_rules.lint(look)
    for rule in ("precedence", "lmi"):
        yield Finding(rule, "skipped", FOLDER, "no image of LMI")


def _see(tree: Tree, serving: Serving) -> Seen:
    seen = Seen(tree, serving)
    for name in (*api.REQUESTS, ENVIRONMENT):
        if name not in tree.files:
            continue
        try:
            content = json.loads(tree.read(name), object_pairs_hook=_unique)
        except (ValueError, RecursionError, CheckpointError) as error:
            found = str(error).splitlines()[0][:120] if str(error) != "" else type(error).__name__
            seen.faults.append(Finding("requests", "failed", name, found, "a JSON object", "write it again"))
            continue
        if not isinstance(content, dict):
            found = f"a JSON {type(content).__name__}"
            seen.faults.append(Finding("requests", "failed", name, found, "a JSON object", "write it again"))
            continue
        seen.requests[name] = content
    in_request = seen.container.get("Environment")
    listed = seen.requests.get(ENVIRONMENT)
    chosen = in_request if isinstance(in_request, dict) else listed
    seen.where = ENVIRONMENT if not isinstance(in_request, dict) and ENVIRONMENT in tree.files else MODEL
    seen.environment = {
        name: value for name, value in ({} if chosen is None else chosen).items() if isinstance(value, str)
    }
    return seen


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(name for name, _ in pairs if sum(other == name for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r:.60} is there twice")
    return made


def _requests(seen: Seen) -> Iterator[Finding]:
    yield from seen.faults
    for name, shape in api.REQUESTS.items():
        if name not in seen.requests:
            continue
        faults = list(api.check(seen.requests[name], shape))
        for fault in faults:
            yield Finding("requests", "failed", f"{name}: {fault.path}", fault.found, fault.expected, "correct it")
        if faults == []:
            yield Finding("requests", "ok", name, shape)
    if MODEL not in seen.tree.files:
        yield Finding("requests", "note", MODEL, "no such file: the model is created otherwise")


def _environment(seen: Seen) -> Iterator[Finding]:
    """The rules that the API's shapes do not hold: all bytes together, and the files beside the request."""
    wrong = 0
    listed = seen.requests.get(ENVIRONMENT)
    for name, value in {} if listed is None else listed.items():
        if not isinstance(value, str):
            wrong += 1
            subject, found = f"{ENVIRONMENT}: {name[:60]}", f"{type(value).__name__} {value!r}"[:80]
            yield Finding("environment", "failed", subject, found, "a text", f'"{name[:60]}": "..."')
    if listed is not None:
        for fault in api.check({k: v for k, v in listed.items() if isinstance(v, str)}, "EnvironmentMap"):
            wrong += 1
            subject = f"{ENVIRONMENT}: {fault.path}"
            yield Finding("environment", "failed", subject, fault.found, fault.expected, "shorten or rename it")
    total = sum(len(name.encode()) + len(value.encode("utf-8", "replace")) for name, value in seen.environment.items())
    if total > api.ENVIRONMENT_BYTES:
        wrong += 1
        yield Finding(
            "environment", "failed", seen.where, f"{total} bytes", f"at most {api.ENVIRONMENT_BYTES}", "shorten it"
        )
    others = {name: variables for name, variables in _variables(seen).items() if name != seen.where}
    for name, variables in others.items():
        if ":" in name or variables == seen.environment:
            continue
        wrong += 1
        differing = sorted(
            key for key in {*variables, *seen.environment} if variables.get(key) != seen.environment.get(key)
        )
        found = f"{', '.join(differing[:4])} differ from {seen.where}"
        yield Finding("environment", "failed", name, found, "the same variables", f"take those of {seen.where}")
    if wrong == 0:
        files = ", ".join([seen.where, *(name for name in others if ":" not in name)])
        yield Finding("environment", "ok", files, f"{len(seen.environment)} variables, {total} bytes")


def _variables(seen: Seen) -> dict[str, Mapping[str, str]]:
    """The variables of each file that has some."""
    found: dict[str, Mapping[str, str]] = {seen.where: seen.environment}
    listed = seen.requests.get(ENVIRONMENT)
    if listed is not None and seen.where != ENVIRONMENT:
        found[ENVIRONMENT] = {name: value for name, value in listed.items() if isinstance(value, str)}
    if ENV in seen.tree.files:
        try:
            found[ENV] = dotenv.pairs(dotenv.read(seen.tree.text(ENV)))
        except CheckpointError:
            found[ENV] = {}
    for service in _services(seen)[0]:
        found[f"{COMPOSE}: {service.name}"] = service.written
    for path, container in seen.containers.items():
        given = container.get("Environment")
        if path != seen.path and isinstance(given, dict):
            found[f"{MODEL}: {path}"] = {name: value for name, value in given.items() if isinstance(value, str)}
    configs = seen.requests.get(JOB, {}).get("OptimizationConfigs")
    for number, config in enumerate(configs if isinstance(configs, list) else []):
        for part in config.values() if isinstance(config, dict) else ():
            override = part.get("OverrideEnvironment") if isinstance(part, dict) else None
            if isinstance(override, dict):
                texts = {name: value for name, value in override.items() if isinstance(value, str)}
                found[f"{JOB}: OptimizationConfigs[{number}]"] = texts
    return found


def _dotenv(seen: Seen) -> Iterator[Finding]:
    if ENV not in seen.tree.files:
        yield Finding("dotenv", "skipped", ENV, "no such file")
        return
    try:
        lines = dotenv.read(seen.tree.text(ENV))
    except CheckpointError as error:
        yield Finding("dotenv", "failed", ENV, error.problems[0].found, "a text file", "write it again")
        return
    services = _services(seen)[0]
    if services != () and not any(service.takes(ENV) for service in services):
        yield Finding("dotenv", "ok", ENV, f"{len(lines)} variables, for compose alone")
    else:
        yield from dotenv.lint(lines, ENV)


def _image(seen: Seen) -> Iterator[Finding]:
    uri = seen.image_uri
    if len(seen.containers) > 1:
        found = f"{len(seen.containers)} containers: {seen.path} alone is looked at"
        yield Finding("image", "note", f"{MODEL}: Containers", found)
    if uri is None:
        yield Finding(
            "image", "note", MODEL, "no image", "one", "--region or --image-uri when packaging; or write it in"
        )
        return
    named, release = neuron_env.image_of(uri), seen.release
    if named is not None and release is not None and release != f"{OPTIMUM}{named.release}":
        found = f"{uri}, with optimum-neuron {named.release}"
        hint = f"--target-version {OPTIMUM}{named.release}, or the image of {release}"
        yield Finding("image", "failed", f"{MODEL}: Image", found, release, hint)
        return
    djl = re.search(r"/djl-inference:(\d{1,3}\.\d{1,3})\.", uri)
    if djl is not None and release is not None and release != f"{DJL}{djl.group(1)}":
        hint = f"--target-version {DJL}{djl.group(1)}, or the image of {release}"
        yield Finding("image", "failed", f"{MODEL}: Image", uri, release, hint)
        return
    yield Finding("image", "ok", f"{MODEL}: Image", uri, "" if release is None else release)


def _role(seen: Seen) -> Iterator[Finding]:
    role = seen.requests.get(MODEL, {}).get("ExecutionRoleArn")
    if role is None:
        yield Finding("role", "note", MODEL, "no role", "ExecutionRoleArn", "--role-arn when packaging; or write it in")
    else:
        yield Finding("role", "ok", f"{MODEL}: ExecutionRoleArn", str(role)[:120])


def _model_data(seen: Seen) -> Iterator[Finding]:
    subject, url = f"{MODEL}: {seen.path}", seen.container.get("ModelDataUrl")
    source = seen.container.get("ModelDataSource")
    found = source.get("S3DataSource") if isinstance(source, dict) else None
    if url is not None and source is not None:
        yield Finding(
            "model-data", "failed", subject, "ModelDataUrl and ModelDataSource", "one of them", "take one out"
        )
    elif url is not None:
        fits = str(url).endswith(".tar.gz")
        hint = "" if fits else "ModelDataSource takes a prefix"
        yield Finding(
            "model-data", "ok" if fits else "failed", f"{subject}.ModelDataUrl", str(url)[:120], "*.tar.gz", hint
        )
    elif not isinstance(found, dict) and seen.hub is not None:
        yield Finding("model-data", "ok", subject, f"{seen.hub}, from the hub")
    elif not isinstance(found, dict):
        hint = "--s3-uri when packaging; or write it in"
        yield Finding("model-data", "note", subject, "nothing says where the model is", "ModelDataSource", hint)
    else:
        uri, kind, packed = (str(found.get(name)) for name in ("S3Uri", "S3DataType", "CompressionType"))
        if (kind, packed) == ("S3Prefix", "None") and not uri.endswith("/"):
            yield Finding("model-data", "failed", f"{subject}: S3Uri", uri[:120], "a / at its end", "add it")
        elif (kind, packed) == ("S3Prefix", "Gzip"):
            found_words = "S3Prefix of CompressionType Gzip"
            yield Finding("model-data", "failed", subject, found_words, "S3Object for an archive", "set S3Object")
        else:
            yield Finding("model-data", "ok", f"{subject}: S3Uri", uri[:120], f"{kind}, CompressionType {packed}")


def _file_names(seen: Seen) -> Iterator[Finding]:
    wrong = 0
    folder = seen.tree.under(FOLDER)
    for path in folder.files:
        bad = [
            part for part in path.split("/") if part.strip() == "" or len(part.encode("utf-8", "replace")) > NAME_BYTES
        ]
        if bad != [] or "\x00" in path:
            wrong += 1
            expected = f"no blank name, at most {NAME_BYTES} bytes"
            yield Finding("file-names", "failed", f"{FOLDER}/{path}"[:120], repr(bad)[:60], expected, "rename it")
    if seen.away is not None:
        yield Finding("file-names", "skipped", FOLDER, f"not in the package: {seen.away}")
    elif folder.files == {}:
        yield Finding("file-names", "failed", FOLDER, "no files", "the model", "package the artifact again")
    elif wrong == 0:
        yield Finding("file-names", "ok", FOLDER, f"{len(folder.files)} files")


def _names(seen: Seen) -> Iterator[Finding]:
    model, config = seen.requests.get(MODEL, {}), seen.requests.get(CONFIG, {})
    endpoint, wrong = seen.requests.get(ENDPOINT, {}), 0
    for subject, found, expected in (
        (f"{CONFIG}: ModelName", seen.variant.get("ModelName"), model.get("ModelName")),
        (f"{ENDPOINT}: EndpointConfigName", endpoint.get("EndpointConfigName"), config.get("EndpointConfigName")),
    ):
        if found is not None and expected is not None and found != expected:
            wrong += 1
            yield Finding("names", "failed", subject, str(found)[:80], str(expected)[:80], "use one name")
    if wrong == 0:
        yield Finding("names", "ok", ", ".join(name for name in api.REQUESTS if name in seen.requests), "agree")


def _instance(seen: Seen, look: neuron_rules.Served) -> Iterator[Finding]:
    name = seen.variant.get("InstanceType")
    if name is None:
        yield Finding("instance", "skipped", CONFIG, "no instance type")
        return
    subject = f"{CONFIG}: InstanceType"
    instance = INSTANCES.get(name) if isinstance(name, str) else None
    if instance is None:
        yield Finding("instance", "note", subject, str(name)[:80], "one with accelerators that are known here")
        return
    ranks, family = _needs(seen, look)
    if ranks is None:
        yield Finding("instance", "skipped", subject, instance.name, "", "the model does not say its ranks")
    elif (family == "gpu") != (instance.family == "gpu") or (
        family != instance.family and not (family in SAME_CODE and instance.family in SAME_CODE)
    ):
        yield Finding(
            "instance", "failed", subject, instance.name, f"one of {family}", "--instance-type when packaging"
        )
    elif instance.accelerators < ranks:
        found = f"{instance.name}: {instance.accelerators}"
        yield Finding("instance", "failed", subject, found, f"at least {ranks} accelerators", "choose a larger one")
    else:
        yield Finding("instance", "ok", subject, f"{instance.name}: {instance.accelerators}", f"{ranks} needed")


def _needs(seen: Seen, look: neuron_rules.Served) -> tuple[int | None, str]:
    """Accelerators that the model was built for, and whose."""
    if seen.encoder:
        return 1, "inf2"
    if look.record is not None and look.record.cores is not None:
        target = look.record.target
        return look.record.cores, "trn2" if target == "trn2" else "inf2"
    said = _properties(seen).get("option.tensor_parallel_degree", "")
    stages = _properties(seen).get("option.pipeline_parallel_degree", "1")
    handler = _properties(seen).get("option.entryPoint", "")
    neuron = "neuronx" in handler or "neuronx" in (seen.image_uri or "")
    ranks = int(said) * int(stages) if re.fullmatch(r"\d{1,4}", said) and re.fullmatch(r"\d{1,4}", stages) else None
    return ranks, "inf2" if neuron else "gpu"


def _properties(seen: Seen) -> Mapping[str, str]:
    from llmcompile.packaging import properties

    path = f"{FOLDER}/{PROPERTIES}"
    if path not in seen.tree.files:
        return {}
    try:
        return properties.java(seen.tree.read(path))
    except (ValueError, CheckpointError):
        return {}


def _timeouts(seen: Seen) -> Iterator[Finding]:
    wanted = ("ContainerStartupHealthCheckTimeoutInSeconds", "ModelDataDownloadTimeoutInSeconds")
    missing = [name for name in wanted if name not in seen.variant]
    if CONFIG not in seen.requests:
        yield Finding("timeouts", "skipped", CONFIG, "no such file")
    elif missing != []:
        found = f"no {' and no '.join(missing)}"
        yield Finding("timeouts", "note", CONFIG, found, "seconds", "a large model needs more than SageMaker's default")
    else:
        yield Finding("timeouts", "ok", CONFIG, ", ".join(f"{seen.variant[name]} s" for name in wanted))


def _services(seen: Seen) -> tuple[tuple[compose.Service, ...], str | None]:
    file = compose.find(seen.tree)
    if file is None:
        return (), None
    try:
        known = dotenv.compose_pairs(seen.tree.text(ENV)) if ENV in seen.tree.files else {}
        return compose.read(seen.tree.text(file), known), None
    except (ValueError, CheckpointError) as error:
        return (), str(error)


def _compose(seen: Seen, look: neuron_rules.Served) -> Iterator[Finding]:
    file = compose.find(seen.tree)
    services, problem = _services(seen)
    if file is None:
        yield Finding("compose", "skipped", COMPOSE, "no such file")
        yield Finding("devices", "skipped", COMPOSE, "no such file")
        return
    servers = [made for made in services if made.takes(ENV)]
    mounted = [
        made
        for made in servers
        if any(volume.split(":")[1:2] == [MOUNT] and FOLDER in volume for volume in made.volumes)
    ]
    if problem is not None:
        yield Finding("compose", "failed", file, problem, "services", "write it again")
    elif mounted == []:
        found = ", ".join(service.name for service in services)
        expected = f"env_file {ENV}, volume ./{FOLDER}:{MOUNT}"
        yield Finding("compose", "failed", file, found, expected, "package the artifact again")
    else:
        yield Finding("compose", "ok", file, ", ".join(made.name for made in mounted))
    if seen.lmi and look.record is None:
        yield Finding("devices", "skipped", file, "an image of LMI")
    else:
        yield from neuron_rules.devices([(made, look) for made in servers], file)


def _precedence(seen: Seen) -> Iterator[Finding]:
    """Compare the environment with serving.properties: the server lets the file win, LMI's compiler the environment."""
    from llmcompile.packaging.lmi.keys import key_of

    entries, wrong = _properties(seen), 0
    for name, value in seen.environment.items():
        key = key_of(name)
        if key is not None and key in entries and entries[key] != value:
            wrong += 1
            found = f"{value!r:.60}, where {PROPERTIES} has {key}={entries[key]}"
            hint = f"take {name} out: the server does not read it"
            yield Finding("precedence", "failed", f"{seen.where}: {name}", found, "one value", hint)
    if wrong == 0:
        yield Finding("precedence", "ok", seen.where, f"{len(seen.environment)} variables, {len(entries)} properties")


def _lmi(seen: Seen) -> Iterator[Finding]:
    release = seen.release
    version = None if release is None or not release.startswith(DJL) else release.removeprefix(DJL)
    inner = seen.tree.under(FOLDER)
    failed = 0
    if seen.away is not None:
        yield Finding("lmi", "skipped", FOLDER, f"not in the package: {seen.away}")
        return
    for found in LMI.lint(inner, Serving(version, seen.runtime, MOUNT)):
        if found.status == "failed":
            failed += 1
            below = found.subject.removeprefix(inner.name)
            subject = f"{FOLDER}{below}" if below != found.subject else f"{FOLDER}/{found.subject}"
            yield Finding("lmi", "failed", subject, f"{found.rule}: {found.found}", found.expected, found.hint)
    if failed == 0:
        yield Finding("lmi", "ok", FOLDER, f"{len(LMI.rules)} rules of {LMI.title}")
