"""The lint of packages for Text Generation Inference and optimum-neuron's vLLM: containers, variables, the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llmcompile.errors import CheckpointError
from llmcompile.packaging import compose, dotenv, neuron_env, neuron_rules
from llmcompile.packaging.neuron_env import IMAGES, Image
from llmcompile.packaging.target import Finding, Serving
from llmcompile.packaging.tgi import COMPOSE, ENV, FOLDER, MOUNT, NGINX

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    text, problem = _text(tree)
    known = dotenv.compose_pairs(text)
    services, found = _containers(tree, known)
    servers = [service for service in services if _serves(tree, service)]
    yield from _dotenv(tree, text, problem, servers)
    lines = dotenv.pairs(dotenv.read(text))
    runs = [(service, _look(tree, serving, service, lines)) for service in servers]
    findings = [*found, *_servers(tree, compose.find(tree) or COMPOSE, runs)] if services != () else found
    others = [finding for service, look in runs for finding in _other_images(look.image, service)]
    yield from others if others != [] and all(finding.status == "ok" for finding in findings) else [*findings, *others]
    given = {ENV: lines} if ENV in tree.files or services == () else {}
    yield from neuron_rules.secrets({**given, **{f"{COMPOSE}: {made.name}": made.written for made in services}})
    seen: list[neuron_rules.Served] = []
    for look in [look for _, look in runs] or [_look(tree, serving, None, lines)]:
        if not any((look.variables, look.folder, look.image) == (at.variables, at.folder, at.image) for at in seen):
            seen.append(look)
            yield from neuron_rules.lint(look)
    yield from neuron_rules.devices(runs, COMPOSE)
    yield from _ports(services, runs)
    yield from _replicas(tree, runs)


def _text(tree: Tree) -> tuple[str, str | None]:
    """The text of .env, empty where it cannot be read, and why it cannot."""
    try:
        return tree.text(ENV), None
    except CheckpointError as error:
        return "", error.problems[0].found


def _dotenv(tree: Tree, text: str, problem: str | None, servers: list[compose.Service]) -> Iterator[Finding]:
    """The dialect counts where a container is given the file: compose itself reads more."""
    lines = dotenv.read(text)
    if (
        servers != []
        and not any(service.takes(ENV) for service in servers)
        and any(_told(tree, made) for made in servers)
    ):
        found = (
            f"{len(lines)} variables, which compose alone reads" if ENV in tree.files else "no such file, none needed"
        )
        yield Finding("dotenv", "ok", ENV, found)
    elif problem is not None:
        yield Finding("dotenv", "failed", ENV, problem, "a text file", "write it again")
    else:
        yield from dotenv.lint(lines, ENV)


def _containers(tree: Tree, known: Mapping[str, str]) -> tuple[tuple[compose.Service, ...], list[Finding]]:
    file = compose.find(tree)
    if file is None and neuron_rules.packaged_version(tree) is not None:
        return (), [Finding("compose", "failed", COMPOSE, "no such file", "", "package the artifact again")]
    if file is None:
        hint = f"docker run --env-file {ENV} -v $PWD/{FOLDER}:{MOUNT} IMAGE needs none"
        return (), [Finding("compose", "skipped", COMPOSE, "no such file", "", hint)]
    try:
        return compose.read(tree.text(file), known), []
    except (ValueError, CheckpointError) as error:
        return (), [Finding("compose", "failed", file, str(error), "services", "write it again")]


def _servers(tree: Tree, file: str, runs: list[tuple[compose.Service, neuron_rules.Served]]) -> Iterator[Finding]:
    wrong = 0
    if runs == []:
        wrong += 1
        expected = f"a container of the model: env_file {ENV}, or environment"
        yield Finding("compose", "failed", file, "no container with the model's variables", expected, "add env_file")
    for service, look in runs:
        subject = f"{file}: {service.name}"
        if not service.takes(ENV) and not _told(tree, service):
            wrong += 1
            expected = f"env_file {ENV}, or environment"
            yield Finding("compose", "failed", subject, "the model's variables are not given", expected, "add env_file")
        if service.image is None:
            wrong += 1
            yield Finding("compose", "failed", subject, "no image", "", "add image")
        if neuron_rules.hub(look) is None and not any(volume.count(":") >= 1 for volume in service.volumes):
            wrong += 1
            yield Finding("compose", "failed", subject, "no volume", "", f"add the volume ./{FOLDER}:{MOUNT}")
    if wrong == 0:
        names = ", ".join(f"{service.name} ({service.image})" for service, _ in runs)
        yield Finding("compose", "ok", file, names)


def _other_images(image: Image | None, service: compose.Service) -> Iterator[Finding]:
    """An image that is known to have another release than the package is for."""
    named = None if service.image is None else neuron_env.image_of(service.image)
    if image is not None and named is not None and named.release != image.release:
        found = f"{service.image}, with optimum-neuron {named.release}"
        hint = f"image: {image.docker}"
        yield Finding("compose", "failed", f"{COMPOSE}: {service.name}", found, image.release, hint)


def _serves(tree: Tree, service: compose.Service) -> bool:
    """Whether a container runs the model: by its image, or by the variables it is given."""
    image = service.image or ""
    if neuron_env.serves_neuron(image) or _told(tree, service):
        return True
    return service.takes(ENV) and (image == "" or "nginx" not in image)


def _told(tree: Tree, service: compose.Service) -> bool:
    """Whether a container is told of its model otherwise than by .env."""
    return any(neuron_env.known(name) == "model" for name in _own(tree, service))


def _own(tree: Tree, service: compose.Service) -> Mapping[str, str]:
    """A container's variables but for those of .env."""
    made: dict[str, str] = {}
    for name in (file.removeprefix("./") for file in service.env_files):
        if name != ENV and name in tree.files:
            made |= _given(tree, name)
    return made | dict(service.environment)


def _look(
    tree: Tree, serving: Serving, service: compose.Service | None, lines: Mapping[str, str]
) -> neuron_rules.Served:
    """What a container serves; without one, what .env says."""
    variables, where = dict(lines), ENV
    if service is not None:
        if _told(tree, service) and not service.takes(ENV):
            variables = {}
        variables |= _own(tree, service)
        if any(neuron_env.known(name) is not None for name in _own(tree, service)):
            where = f"{compose.find(tree)}: {service.name}"
    host, folder, mount = _mounted(service, variables)
    away = None
    if service is None and not any(path.startswith(f"{folder}/") for path in tree.files):
        away = "it is mounted when the container starts"
    elif host.startswith(("/", "~", "..")):
        away = f"{host} of the host"
    return neuron_rules.served(
        where,
        variables,
        tree,
        folder=folder,
        mount=mount,
        image=_image(tree, serving, service),
        runtime=neuron_rules.packaged_runtime(tree, serving),
        away=away,
    )


def _given(tree: Tree, name: str) -> Mapping[str, str]:
    try:
        return dotenv.compose_pairs(tree.text(name))
    except CheckpointError:
        return {}


def _mounted(service: compose.Service | None, variables: Mapping[str, str]) -> tuple[str, str, str]:
    """The volume of the model as written, the folder of the package that it is, and its path in the container.

    A model may also be a folder below the mounted one.
    """
    wanted = next((variables[name] for name in ("MODEL_ID", "SM_ON_MODEL", "HF_MODEL_ID") if name in variables), None)
    found = (FOLDER, FOLDER, MOUNT)
    for number, volume in enumerate(() if service is None else service.volumes):
        written, _, rest = volume.partition(":")
        mount = rest.partition(":")[0].rstrip("/")
        host = written.removeprefix("./").rstrip("/")
        if wanted is not None and mount != "" and wanted.startswith(f"{mount}/") and wanted.rstrip("/") != mount:
            below = wanted.rstrip("/").removeprefix(f"{mount}/")
            return written, below if host in ("", ".") else f"{host}/{below}", f"{mount}/{below}"
        if mount != "" and (number == 0 or found == (FOLDER, FOLDER, MOUNT) or mount == (wanted or "").rstrip("/")):
            found = (written, host, mount)
    return found


def _image(tree: Tree, serving: Serving, service: compose.Service | None) -> Image | None:
    """The image: by the release that was said, by the manifest's, by the reference in docker-compose.yaml."""
    if serving.version is not None:
        return IMAGES.get(serving.version)
    recorded = neuron_rules.packaged_version(tree)
    if recorded is not None and recorded in IMAGES:
        return IMAGES[recorded]
    return None if service is None or service.image is None else neuron_env.image_of(service.image)


def _port(look: neuron_rules.Served) -> str:
    """Where a container listens; empty where its image is not known and nothing says so."""
    said = neuron_rules.value(look, "port")
    return said[1] if said is not None else "" if look.image is None else str(look.image.port)


def _ports(
    services: tuple[compose.Service, ...], runs: list[tuple[compose.Service, neuron_rules.Served]]
) -> Iterator[Finding]:
    if runs == [] or all(look.image is None for _, look in runs):
        why = "no container" if runs == [] else "the image is not known"
        yield Finding("ports", "skipped", COMPOSE, why, "", "--target-version V says which image")
        return
    wrong = 0
    listens = _port(next(look for _, look in runs if look.image is not None))
    for service, look in runs:
        for port in service.ports if look.image is not None else ():
            inside, own = port.rpartition(":")[2].partition("/")[0], _port(look)
            if inside != own:
                wrong += 1
                hint = f'"{port.partition(":")[0]}:{own}"'
                expected = f"{own}, where the image listens"
                yield Finding("ports", "failed", f"{COMPOSE}: {service.name}", port, expected, hint)
    if all(service.ports == () for service in services):
        wrong += 1
        found = "no port is published"
        yield Finding("ports", "failed", COMPOSE, found, "one", f'add ports: ["8080:{listens}"]')
    if wrong == 0:
        yield Finding("ports", "ok", COMPOSE, listens, "where the image listens")


def _replicas(tree: Tree, runs: list[tuple[compose.Service, neuron_rules.Served]]) -> Iterator[Finding]:
    if NGINX not in tree.files:
        count = len(runs)
        if count == 0:
            yield Finding("replicas", "skipped", COMPOSE, "no container of the model")
        elif count > 1 and all(service.ports == () for service, _ in runs):
            yield Finding("replicas", "failed", NGINX, "no such file", f"one for {count} containers", "package again")
        else:
            yield Finding("replicas", "ok", COMPOSE, f"{count} container{'' if count == 1 else 's'}, no nginx")
        return
    try:
        text = tree.text(NGINX)
    except CheckpointError as error:
        yield Finding("replicas", "failed", NGINX, error.problems[0].found, "a text file", "write it again")
        return
    upstream = re.findall(r"^[ \t]*server[ \t]+([A-Za-z0-9_.\-]+)(?::(\d+))?[^;{\n]*;", text, re.MULTILINE)
    expected = {(service.name, _port(look)) for service, look in runs}
    found = {(name, number or "80") for name, number in upstream}
    if any(port == "" for _, port in expected):
        found, expected = {(name, "") for name, _ in found}, {(name, "") for name, _ in expected}
    if found == expected:
        yield Finding("replicas", "ok", NGINX, f"{len(found)} containers")
        return
    listed = ", ".join(sorted(f"{name}:{number}" for name, number in found)) or "no server"
    wanted = ", ".join(sorted(f"{name}:{number}" for name, number in expected))
    yield Finding("replicas", "failed", NGINX, listed, wanted, "list each container once")
