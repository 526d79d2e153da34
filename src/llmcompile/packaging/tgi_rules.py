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
    lines, findings = _lines(tree)
    yield from findings
    services, findings = _containers(tree)
    servers = [service for service in services if _serves(service)]
    image = _image(tree, serving, servers)
    others = list(_other_images(image, servers))
    yield from others if others != [] and all(found.status == "ok" for found in findings) else [*findings, *others]
    variables = dict(dotenv.pairs(lines))
    for service in servers[:1]:
        variables |= service.environment
    files = {ENV: dotenv.pairs(lines), **{f"{COMPOSE}: {made.name}": made.environment for made in services}}
    yield from neuron_rules.secrets(files)
    folder, mount = _mounted(servers, variables)
    look = neuron_rules.served(
        ENV,
        variables,
        tree,
        folder=folder,
        mount=mount,
        image=image,
        runtime=neuron_rules.packaged_runtime(tree, serving),
    )
    yield from neuron_rules.lint(look)
    yield from neuron_rules.devices(look, servers, COMPOSE)
    yield from _ports(look, services, servers)
    yield from _replicas(tree, look, services, servers)


def _lines(tree: Tree) -> tuple[tuple[dotenv.Line, ...], list[Finding]]:
    try:
        lines = dotenv.read(tree.text(ENV))
    except CheckpointError as error:
        return (), [Finding("dotenv", "failed", ENV, error.problems[0].found, "a text file", "write it again")]
    return lines, list(dotenv.lint(lines, ENV))


def _containers(tree: Tree) -> tuple[tuple[compose.Service, ...], list[Finding]]:
    file = compose.find(tree)
    if file is None:
        return (), [Finding("compose", "failed", COMPOSE, "no such file", "", "package the artifact again")]
    try:
        services = compose.read(tree.text(file))
    except (ValueError, CheckpointError) as error:
        return (), [Finding("compose", "failed", file, str(error), "services", "write it again")]
    servers = [service for service in services if _serves(service)]
    findings = []
    if servers == []:
        found = ", ".join(service.name for service in services)
        findings.append(Finding("compose", "failed", file, found, f"a container with env_file {ENV}", "add env_file"))
    for service in servers:
        if service.image is None:
            findings.append(Finding("compose", "failed", f"{file}: {service.name}", "no image", "", "add image"))
        if not any(volume.count(":") >= 1 for volume in service.volumes):
            hint = f"add the volume ./{FOLDER}:{MOUNT}"
            findings.append(Finding("compose", "failed", f"{file}: {service.name}", "no volume", "", hint))
    names = ", ".join(f"{service.name} ({service.image})" for service in servers)
    return services, findings or [Finding("compose", "ok", file, names)]


def _other_images(image: Image | None, servers: list[compose.Service]) -> Iterator[Finding]:
    """Images that are known to have another release than the package is for."""
    for service in servers:
        named = None if service.image is None else neuron_env.image_of(service.image)
        if image is not None and named is not None and named.release != image.release:
            found = f"{service.image}, with optimum-neuron {named.release}"
            hint = f"image: {image.docker}"
            yield Finding("compose", "failed", f"{COMPOSE}: {service.name}", found, image.release, hint)


def _serves(service: compose.Service) -> bool:
    return any(file.removeprefix("./") == ENV for file in service.env_files)


def _mounted(servers: list[compose.Service], variables: Mapping[str, str]) -> tuple[str, str]:
    """The folder of the package that the containers see as the model's, and its path there.

    A model may also be a folder below the mounted one.
    """
    wanted = next((variables[name] for name in ("MODEL_ID", "SM_ON_MODEL", "HF_MODEL_ID") if name in variables), None)
    for volume in servers[0].volumes if servers != [] else ():
        host, _, rest = volume.partition(":")
        mount = rest.partition(":")[0].rstrip("/")
        host = host.removeprefix("./").rstrip("/")
        if wanted is not None and mount != "" and wanted.startswith(f"{mount}/") and wanted.rstrip("/") != mount:
            below = wanted.rstrip("/").removeprefix(f"{mount}/")
            return f"{host}/{below}", f"{mount}/{below}"
        if mount != "":
            return host, mount
    return FOLDER, MOUNT


def _image(tree: Tree, serving: Serving, servers: list[compose.Service]) -> Image | None:
    """The image: by the release that was said, by the manifest's, by the reference in docker-compose.yaml."""
    if serving.version is not None:
        return IMAGES.get(serving.version)
    recorded = neuron_rules.packaged_version(tree)
    if recorded is not None and recorded in IMAGES:
        return IMAGES[recorded]
    return None if servers == [] or servers[0].image is None else neuron_env.image_of(servers[0].image)


def _ports(
    look: neuron_rules.Served, services: tuple[compose.Service, ...], servers: list[compose.Service]
) -> Iterator[Finding]:
    if look.image is None or servers == []:
        yield Finding("ports", "skipped", COMPOSE, "the image is not known", "", "--target-version V says which image")
        return
    said = neuron_rules.value(look, "port")
    listens = str(look.image.port) if said is None else said[1]
    wrong = 0
    for service in servers:
        for port in service.ports:
            inside = port.rpartition(":")[2].partition("/")[0]
            if inside != listens:
                wrong += 1
                hint = f'"{port.partition(":")[0]}:{listens}"'
                expected = f"{listens}, where the image listens"
                yield Finding("ports", "failed", f"{COMPOSE}: {service.name}", port, expected, hint)
    if all(service.ports == () for service in services):
        wrong += 1
        found = "no port is published"
        yield Finding("ports", "failed", COMPOSE, found, "one", f'add ports: ["8080:{listens}"]')
    if wrong == 0:
        yield Finding("ports", "ok", COMPOSE, listens, "where the image listens")


def _replicas(
    tree: Tree, look: neuron_rules.Served, services: tuple[compose.Service, ...], servers: list[compose.Service]
) -> Iterator[Finding]:
    if NGINX not in tree.files:
        count = len(servers)
        if count > 1 and all(service.ports == () for service in servers):
            yield Finding("replicas", "failed", NGINX, "no such file", f"one for {count} containers", "package again")
        else:
            yield Finding("replicas", "ok", COMPOSE, f"{count} container{'' if count == 1 else 's'}, no nginx")
        return
    said = neuron_rules.value(look, "port")
    port = str(look.image.port) if said is None and look.image is not None else "" if said is None else said[1]
    try:
        text = tree.text(NGINX)
    except CheckpointError as error:
        yield Finding("replicas", "failed", NGINX, error.problems[0].found, "a text file", "write it again")
        return
    upstream = re.findall(r"^[ \t]*server[ \t]+([A-Za-z0-9_.\-]+)(?::(\d+))?[^;{\n]*;", text, re.MULTILINE)
    expected = {(service.name, port) for service in servers}
    found = {(name, number or "80") for name, number in upstream}
    if port == "":
        found, expected = {(name, "") for name, _ in found}, {(name, "") for name, _ in expected}
    if found == expected:
        yield Finding("replicas", "ok", NGINX, f"{len(found)} containers")
        return
    listed = ", ".join(sorted(f"{name}:{number}" for name, number in found)) or "no server"
    wanted = ", ".join(sorted(f"{name}:{number}" for name, number in expected))
    yield Finding("replicas", "failed", NGINX, listed, wanted, "list each container once")
