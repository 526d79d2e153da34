"""docker-compose.yaml, as far as a model server needs it: written, and read back from anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompile.packaging import dotenv
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
        environment: Variables in the file itself; a name without a value has the one of .env, or "".
        written: The same, as written.
        ports: As written, like "8080:80".
        volumes: As written, like "./data:/data".
    """

    name: str
    image: str | None
    devices: tuple[str, ...]
    env_files: tuple[str, ...]
    environment: Mapping[str, str]
    written: Mapping[str, str]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]

    def takes(self, file: str) -> bool:
        """Whether a file at the root is one of its env_file."""
        return any(name.removeprefix("./") == file for name in self.env_files)


def write(services: Mapping[str, Mapping[str, Any]]) -> str:
    """Text of a file with these services."""
    import yaml

    text: str = yaml.safe_dump({"services": dict(services)}, sort_keys=False, width=1000)
    return text


def find(tree: Tree) -> str | None:
    """The file that docker compose takes, at the root."""
    return next((name for name in FILES if name in tree.files), None)


def read(text: str, variables: Mapping[str, str] | None = None) -> tuple[Service, ...]:
    """Every service of a file, with the variables of .env where it names them.

    Raises:
        ValueError: It is not YAML, or has no services.
    """
    content = yaml_value(text)
    services = content.get("services") if isinstance(content, dict) else None
    if not isinstance(services, dict) or services == {}:
        raise ValueError("no services")
    known = {} if variables is None else variables
    return tuple(_service(str(name), made if isinstance(made, dict) else {}, known) for name, made in services.items())


def _service(name: str, made: Mapping[Any, Any], known: Mapping[str, str]) -> Service:
    image, written = made.get("image"), _variables(made.get("environment"))

    def texts(key: str) -> tuple[str, ...]:
        return tuple(dotenv.interpolate(text, known) for text in _texts(made.get(key)))

    return Service(
        name=name,
        image=dotenv.interpolate(image, known) if isinstance(image, str) else None,
        devices=tuple(device.partition(":")[0] for device in texts("devices")),
        env_files=texts("env_file"),
        environment={
            name: known.get(name, "") if value is None else dotenv.interpolate(value, known)
            for name, value in written.items()
        },
        written={name: "" if value is None else value for name, value in written.items()},
        ports=texts("ports"),
        volumes=texts("volumes"),
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


def _variables(value: object) -> Mapping[str, str | None]:
    """Name -> value; None for a name alone, which compose takes from its own environment."""
    if isinstance(value, dict):
        return {str(name): None if said is None else str(said) for name, said in value.items()}
    listed = (text.partition("=") for text in _texts(value))
    return {name: said if separator else None for name, separator, said in listed}
