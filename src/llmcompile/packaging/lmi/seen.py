"""A package for LMI as its programs find it: what they read, before any rule is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError
from llmcompile.packaging import properties
from llmcompile.packaging.documents import json_object, section
from llmcompile.packaging.lmi.releases import FT, MOUNT, NEURON, RELEASES, VLLM, Release
from llmcompile.packaging.target import Finding, Serving, Status, release_of
from llmcompile.writing import MANIFEST

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

FILE = "serving.properties"
_ENGINE_FILE = re.compile(r"(?:.*[^0-9])?rank([0-9]{1,6})\.engine")
_FT_FOLDER = re.compile(r"([0-9]{1,6})-gpu")
SHOWN = 80


@dataclass(frozen=True)
class Seen:
    """A package and the place it is for.

    Attributes:
        tree: Its files, from the folder that has serving.properties.
        lead: Folders above serving.properties, which should not be; empty for none.
        content: Bytes of serving.properties.
        entries: As the model server reads it; empty where it cannot.
        version: Release of LMI; None where nothing says.
        runtime_version: Version of the vendor's runtime in the image, where the user said so.
        mount: Folder of the package in the container.
        record: llmcompile.json; empty where there is none.
    """

    tree: Tree
    lead: str
    content: bytes
    entries: Mapping[str, str]
    version: str | None
    runtime_version: str | None
    mount: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def release(self) -> Release | None:
        """Facts of the release."""
        return None if self.version is None else RELEASES[self.version]

    @property
    def engine(self) -> str:
        """The value of `engine`; empty for none."""
        return self.entries.get("engine", "")

    @property
    def handler(self) -> str:
        """The value of `option.entryPoint`; empty for none."""
        return self.entries.get("option.entryPoint", "")

    @property
    def model_id(self) -> str | None:
        """Where the model is said to lie; None for the folder itself, however that is said."""
        place = self.entries.get("option.model_id", self.entries.get("option.s3url"))
        return None if place is None or place.rstrip("/") == self.mount else place

    def option(self, name: str) -> str | None:
        """The value of `option.<name>`."""
        return self.entries.get(f"option.{name}")

    def number(self, name: str) -> int | None:
        """The value of `option.<name>` if it is a whole number."""
        text = self.option(name)
        return int(text) if text is not None and re.fullmatch("[0-9]{1,9}", text) is not None else None

    @property
    def degree(self) -> int | None:
        """Tensor parallel degree; None for `max`, and where it is not said."""
        return self.number("tensor_parallel_degree")

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        for name in ("pipeline_parallel_degree", "pipeline_parallel_size"):
            said = self.number(name)
            if said is not None:
                return said
        return 1

    @property
    def repository(self) -> str | None:
        """Folder with a config.pbtxt, which makes the server take the model for built; None for none."""
        return next((folder for folder in self.tree.parts() if f"{folder}/config.pbtxt" in self.tree.files), None)

    @property
    def engine_folder(self) -> str | None:
        """Folder of the engine, with a slash at its end; empty for the root, None where there is no engine."""
        if self.repository is not None:
            return f"{self.repository}/1/"
        flat = any("/" not in path and _ENGINE_FILE.fullmatch(path) is not None for path in self.tree.files)
        return "" if flat else None

    def engine_ranks(self, folder: str) -> list[int]:
        """Ranks whose engine is in a folder."""
        names = (path.removeprefix(folder) for path in self.tree.files if path.startswith(folder))
        found = (_ENGINE_FILE.fullmatch(name) for name in names if "/" not in name)
        return sorted(int(match[1]) for match in found if match is not None)

    @property
    def ft_folders(self) -> tuple[str, ...]:
        """Folders of FasterTransformer's files."""
        return tuple(folder for folder in self.tree.parts() if _FT_FOLDER.fullmatch(folder) is not None)

    @property
    def split_folder(self) -> str | None:
        """Folder of a split Neuron checkpoint; None for none."""
        folders = ("pytorch_model.bin", "checkpoint/pytorch_model.bin")
        return next((folder for folder in folders if folder in self.tree.folders), None)

    @property
    def layout(self) -> str | None:
        """What the model is: ft, repository, flat, neuron or hf; None where there is none."""
        if self.ft_folders != () or self.engine == "FasterTransformer" or self.handler == FT:
            return "ft"
        if self.repository is not None:
            return "repository"
        if self.engine_folder == "" or "build_config" in self.json("config.json"):
            return "flat"
        if self.split_folder is not None or self.handler == NEURON:
            return "neuron"
        weights = (*self.tree.matching("*.safetensors"), *self.tree.matching("*.bin"))
        if any("/" not in path for path in weights) or self.handler == VLLM:
            return "hf"
        return None

    @property
    def away(self) -> bool:
        """Whether the model is said to lie elsewhere, and nothing of it is here."""
        return self.model_id is not None and len(self.tree.files.keys() - {FILE, MANIFEST}) == 0

    def json(self, path: str) -> Mapping[str, Any]:
        """A JSON object; empty where there is none that can be read."""
        content = json_object(self.tree, path)
        return {} if content is None else content

    @property
    def built(self) -> Mapping[str, Any]:
        """The engine's build_config, or builder_config as it was called; empty where there is none."""
        if self.engine_folder is None:
            return {}
        config = self.json(f"{self.engine_folder}config.json")
        return section(config, "build_config") if "build_config" in config else section(config, "builder_config")

    @property
    def compiled(self) -> Mapping[str, Any]:
        """What the graphs of a Neuron export were compiled for, by its own files: keys of `neuron` in config.json."""
        found = dict(section(self.json("config.json"), "neuron"))
        made = section(self.record, "artifact")
        options, neuron = section(made, "options"), section(made, "neuron")
        for name, value in (
            ("batch_size", options.get("batch_size")),
            ("sequence_length", options.get("sequence_length")),
            ("num_cores", neuron.get("ranks")),
            ("compiler_version", neuron.get("compiler")),
        ):
            if value is not None:
                found.setdefault(name, value)
        return found


def see(tree: Tree, serving: Serving) -> Seen:
    """Read a package; files that cannot be read count as absent, and the rules say so."""
    lead = ""
    if FILE not in tree.files:
        above = [path for path in tree.files if path.endswith(f"/{FILE}")]
        lead = min(above, key=lambda path: (path.count("/"), path)).rpartition("/")[0] if above != [] else ""
    inner = tree if lead == "" else tree.under(lead)
    content, entries = b"", {}
    if FILE in inner.files:
        try:
            content = inner.read(FILE)
            entries = properties.java(content)
        except CheckpointError:
            pass
    bare = Seen(inner, lead, content, entries, None, None, MOUNT)
    record = bare.json(MANIFEST)
    packaged = section(record, "package")
    asked = serving.version if serving.version is not None else packaged.get("version")
    mount = serving.mount_path
    if mount is None:
        mount = section(packaged, "options").get("mount_path")
    return Seen(
        inner,
        lead,
        content,
        entries,
        release_of(asked, RELEASES) if isinstance(asked, str) else None,
        serving.runtime_version if serving.runtime_version is not None else _runtime(packaged),
        mount.rstrip("/") if isinstance(mount, str) else MOUNT,
        record,
    )


def _runtime(packaged: Mapping[str, Any]) -> str | None:
    runtime = packaged.get("runtime")
    return runtime if isinstance(runtime, str) else None


def finding(status: Status, subject: str, found: str, expected: str = "", hint: str = "") -> Finding:
    """A finding whose rule is filled in by `checks.lint`."""
    return Finding("", status, subject, found, expected, hint)


def ok(subject: str, found: str) -> Finding:
    """What is right."""
    return finding("ok", subject, found)


def failed(subject: str, found: str, expected: str, hint: str) -> Finding:
    """What will not load, or not as it looks."""
    return finding("failed", subject, found, expected, hint)


def note(subject: str, found: str, hint: str = "") -> Finding:
    """What loads, but wants a look."""
    return finding("note", subject, found, "", hint)


def skipped(subject: str, found: str, hint: str = "") -> Finding:
    """What cannot be told from here."""
    return finding("skipped", subject, found, "", hint)


ASK_VERSION = "add --target-version V"
