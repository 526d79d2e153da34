"""A model repository as Triton finds it: its models' configurations, the folders they point to, the engines in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError, LlmCompileError
from llmcompile.packaging.documents import count, packaged, section
from llmcompile.packaging.triton.generations import generation_of
from llmcompile.packaging.triton.pbtxt import Message, parse

if TYPE_CHECKING:
    from llmcompile.packaging.target import Serving
    from llmcompile.packaging.tree import Tree

CONFIG = "config.pbtxt"
_MAX_PATH = 4096
_VERSION = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class Engine:
    """An engine that a model points to.

    Attributes:
        folder: Its folder in the repository.
        config: Its config.json; empty where that is none.
    """

    folder: str
    config: Mapping[str, Any]

    @property
    def built(self) -> Mapping[str, Any]:
        """What it was built for: build_config, or builder_config of the first releases."""
        return section(self.config, "build_config" if "build_config" in self.config else "builder_config")

    @property
    def ranks(self) -> int | None:
        """Processes that run it, tp x pp; None where it does not say."""
        degrees = section(section(self.config, "pretrained_config"), "mapping")
        tp = count(degrees.get("tp_size", self.built.get("tensor_parallel")))
        pp = count(degrees.get("pp_size", self.built.get("pipeline_parallel", 1)))
        return None if tp is None or pp is None else tp * pp

    @property
    def version(self) -> str | None:
        """TensorRT-LLM's that built it; None where it does not say."""
        version = self.config.get("version")
        return version if isinstance(version, str) else None


@dataclass(frozen=True)
class Repository:
    """A repository that was read.

    Attributes:
        tree: Its files.
        serving: What is known of the server.
        version: Release it is for, as asked or as recorded; None for neither.
        models: Name of a folder -> its configuration, for those that could be read.
        broken: Name of a folder -> why not.
    """

    tree: Tree
    serving: Serving
    version: str | None
    models: Mapping[str, Message]
    broken: Mapping[str, LlmCompileError]

    @property
    def generation(self) -> str | None:
        """The release among those that load engines; None where it is another, or not known."""
        return None if self.version is None else generation_of(self.version)

    def of(self, backend: str) -> Iterator[tuple[str, Message]]:
        """The models of a backend."""
        for name, message in self.models.items():
            if message.get("backend", "") == backend:
                yield name, message

    def ensembles(self) -> Iterator[tuple[str, Message]]:
        """The models that are steps of others."""
        for name, message in self.models.items():
            if "ensemble_scheduling" in message:
                yield name, message

    def versions(self, model: str) -> list[str]:
        """Names of a model's version folders, the one that is loaded by default first."""
        inside = f"{model}/"
        names = {path[len(inside) :].partition("/")[0] for path in self.tree.folders if path.startswith(inside)}
        return sorted((name for name in names if _VERSION.fullmatch(name)), key=int, reverse=True)

    def home(self, model: str) -> str:
        """The version folder that is loaded by default; its path where there is none."""
        versions = self.versions(model)
        return f"{model}/{versions[0] if versions != [] else 1}"

    def located(self, path: str) -> tuple[str, str] | None:
        """A folder on the server -> the folder here that it is, and what the repository is called there.

        It is the longest end of the path that is a folder here; None where none is.
        """
        if len(path) > _MAX_PATH:
            return None
        parts = [part for part in path.split("/") if part != ""]
        for start in range(len(parts)):
            here = "/".join(parts[start:])
            if here in self.tree.folders:
                return here, "/" + "/".join(parts[:start])
        return None

    def engines(self, message: Message) -> list[Engine]:
        """The engines that a model points to and that are here: the decoder's, or only one, first."""
        made = []
        for key in ("gpt_model_path", "encoder_model_path"):
            path = parameter(message, key)
            place = None if path in (None, "") else self.located(str(path))
            if place is not None:
                content = self.json(f"{place[0]}/config.json")
                made.append(Engine(place[0], content if isinstance(content, dict) else {}))
        return made

    def json(self, path: str) -> Any:
        """A JSON file; None where there is none that can be read."""
        if path not in self.tree.files:
            return None
        try:
            return json.loads(self.tree.read(path))
        except (LlmCompileError, OSError, ValueError, RecursionError):
            return None


def read(tree: Tree, serving: Serving) -> Repository:
    """Read every configuration; what is wrong with one is kept, not raised."""
    models: dict[str, Message] = {}
    broken: dict[str, LlmCompileError] = {}
    for folder in tree.parts():
        path = f"{folder}/{CONFIG}"
        if path not in tree.files:
            hint = "write it, or move the folder out of the repository: Triton takes every folder for a model"
            broken[folder] = CheckpointError(path, "no such file", "the model's configuration", hint)
            continue
        try:
            models[folder] = parse(tree.text(path), path)
        except LlmCompileError as error:
            broken[folder] = error
        except OSError as error:
            broken[folder] = CheckpointError(path, f"cannot be read: {error.strerror}", "a text file", "check the file")
    version = serving.version if serving.version is not None else _recorded(tree)
    return Repository(tree, serving, version, models, broken)


def _recorded(tree: Tree) -> str | None:
    """The release that a package of ours was made for."""
    package = packaged(tree)
    version = package.get("version") if package.get("target") == "triton" else None
    return version if isinstance(version, str) else None


def parameter(message: Message, key: str) -> str | None:
    """A parameter that was filled in; None for one that is absent or still a placeholder."""
    value = message.get("parameters", {}).get(key)
    text = None if value is None else str(value.get("string_value", ""))
    return None if text is not None and "${" in text else text


def tensors(message: Message, side: str) -> dict[str, Message]:
    """Name -> declaration of a model's "input" or "output"."""
    return {str(tensor.get("name", "")): tensor for tensor in message.get(side, [])}
