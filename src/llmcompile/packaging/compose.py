"""docker-compose.yaml, as far as a model server needs it: written, and read back from anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompile.packaging.documents import yaml_value

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""Names that docker compose looks for, in its order. Source: compose-spec/compose-go@e70e961:cli/options.go."""


@dataclass(frozen=True)
class Service:
    """A container.

    Attributes:
        name: In the file.
        image: Reference; None where there is none.
        devices: Paths of devices on the host.
        env_files: Files with variables.
        environment: Variables in the file itself; a name without a value has "".
        ports: As written, like "8080:80".
        volumes: As written, like "./data:/data".
    """

    name: str
    image: str | None
    devices: tuple[str, ...]
    env_files: tuple[str, ...]
    environment: Mapping[str, str]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]


def write(services: Mapping[str, Mapping[str, Any]]) -> str:
    """Text of a file with these services."""
    import yaml

    text: str = yaml.safe_dump({"services": dict(services)}, sort_keys=False, width=1000)
    return text


def find(tree: Tree) -> str | None:
    """The file that docker compose takes, at the root."""
    return next((name for name in FILES if name in tree.files), None)


def read(text: str) -> tuple[Service, ...]:
    """Every service of a file.

    Raises:
        ValueError: It is not YAML, or has no services.
    """
    content = yaml_value(text)
    services = content.get("services") if isinstance(content, dict) else None
    if not isinstance(services, dict) or services == {}:
        raise ValueError("no services")
    return tuple(_service(str(name), made if isinstance(made, dict) else {}) for name, made in services.items())


def _service(name: str, made: Mapping[Any, Any]) -> Service:
    image = made.get("image")
    return Service(
        name=name,
        image=image if isinstance(image, str) else None,
        devices=tuple(device.partition(":")[0] for device in _texts(made.get("devices"))),
        env_files=_texts(made.get("env_file")),
        environment=_variables(made.get("environment")),
        ports=_texts(made.get("ports")),
        volumes=_texts(made.get("volumes")),
    )


def _texts(value: object) -> tuple[str, ...]:
    """Texts of a list, or the one text; entries of the long form by their path, source or target."""
    listed: Sequence[object] = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for entry in listed:
        if isinstance(entry, dict):
            entry = next((entry[key] for key in ("path", "source", "target") if key in entry), "")
        if isinstance(entry, str | int):
            found.append(str(entry))
    return tuple(found)


def _variables(value: object) -> Mapping[str, str]:
    if isinstance(value, dict):
        return {str(name): "" if said is None else str(said) for name, said in value.items()}
    return {name: said for name, _, said in (text.partition("=") for text in _texts(value))}
