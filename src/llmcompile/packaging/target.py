"""What a serving target is: which artifacts its releases serve, how a package of it looks, and what must be true of it.

A target is one file in this package that ends in a `Target`, and one line in `targets.py`. It knows the artifact from
`Artifact` alone, writes nothing, and is imported by every `--help`: pydantic and yaml are imported in its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from llmcompile.errors import UnsupportedError

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

Kind = Literal[
    "ft",
    "trtllm-engine",
    "trtllm-checkpoint",
    "neuron-optimum",
    "neuron-sdk-2.16",
    "neuron-lmi-split",
    "neuron-lmi-cache",
    "neuron-nxd",
    "neuron-lowered",
    "rtx-engine",
    "onnx",
    "hf",
]
"""What can be packaged. neuron-lowered: graphs that are not compiled yet, in any layout; rtx-engine: engines of
TensorRT for RTX, with or without their ONNX model; hf: a Hugging Face folder."""
KINDS: Mapping[Kind, str] = MappingProxyType(
    {
        "ft": "FasterTransformer files",
        "trtllm-engine": "a TensorRT-LLM engine",
        "trtllm-checkpoint": "a TensorRT-LLM checkpoint without its engine",
        "neuron-optimum": "a Neuron export of optimum-neuron",
        "neuron-sdk-2.16": "a Neuron export in the layout sdk-2.16",
        "neuron-lmi-split": "a Neuron export in the layout lmi-split",
        "neuron-lmi-cache": "a Neuron export in the layout lmi-cache",
        "neuron-nxd": "a Neuron export in the layout nxd",
        "neuron-lowered": "a Neuron export that is not compiled yet",
        "rtx-engine": "an engine of TensorRT for RTX",
        "onnx": "an ONNX model",
        "hf": "a Hugging Face checkpoint",
    }
)
_LMI = "llmcompile package lmi ARTIFACT OUTPUT"
_NEURON_ELSEWHERE: Mapping[Kind, str] = MappingProxyType(
    {
        "neuron-optimum": "llmcompile package tgi ARTIFACT OUTPUT, or package sagemaker",
        "neuron-sdk-2.16": _LMI,
        "neuron-lmi-split": _LMI,
        "neuron-lmi-cache": _LMI,
        "neuron-nxd": "llmcompile export neuron --model MODEL --layout lmi-split COMPILED, then llmcompile package lmi",
        "neuron-lowered": (
            "llmcompile export neuron --from-lowered ARTIFACT COMPILED, then package that for another server"
        ),
    }
)
Status = Literal["ok", "failed", "note", "skipped"]


@dataclass(frozen=True)
class Flag:
    """How an option of a target is given on the command line.

    Attributes:
        names: Every spelling; the first is the one that messages use.
        help: One sentence.
        metavar: What stands for the value.
        minimum: The least number.
        choices: The only values; empty when there is no such list.
    """

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    minimum: int | None = None
    choices: tuple[str, ...] = ()


T = TypeVar("T")
O = TypeVar("O")  # noqa: E741  # options


def flag(
    default: T,
    *names: str,
    help: str,
    metavar: str | None = None,
    minimum: int | None = None,
    choices: tuple[str, ...] = (),
) -> T:
    """A field of a target's options, annotated bool, int, float, str, one of these | None, or tuple[str, ...]."""
    made: T = field(default=default, metadata={"flag": Flag(names, help, metavar, minimum, choices)})
    return made


def flags(options: type[Any]) -> Mapping[str, Flag]:
    """Field -> its flag, in the order of the fields."""
    return {made.name: made.metadata["flag"] for made in fields(options)}


@dataclass(frozen=True)
class Request:
    """What every target is asked.

    Attributes:
        version: Release of the serving system, one of those that serve the artifact's kind.
        runtime_version: Version of the vendor's runtime (TensorRT-LLM, neuronx-cc, vLLM) in the image that will serve,
            where the user said so; None for what the release ships.
    """

    version: str
    runtime_version: str | None = None


@dataclass(frozen=True)
class Foreseen:
    """What is known of an artifact before it is built.

    Attributes:
        kind: What it will be.
        runtime: Version of TensorRT-LLM it is for; None where it is for another runtime.
        quantization: `quantization_config` of its config.json, as far as servers choose by it; empty for none.
    """

    kind: Kind
    runtime: str | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package before it is written.

    Attributes:
        texts: Path -> content of the generated files.
        links: Path -> path in the artifact of the files that are taken over, unchanged.
        folders: Folders that must exist, even when empty.
        archive: Name of the one tar.gz that all of it goes into; None for plain files.
        last: Paths to be written after all others, in order: commit markers.
        runtime: Version of the vendor's runtime it is for; None where there is none to match.
        notes: What a person must know that the files do not say.
        next: Commands to type next; {output} stands for the package's folder.
    """

    texts: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archive: str | None = None
    last: tuple[str, ...] = ()
    runtime: str | None = None
    notes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


def runtime_of(package: Package, request: Request) -> str | None:
    """The version of the vendor's runtime a package is for: what the user said, else what it says itself."""
    return package.runtime if request.runtime_version is None else request.runtime_version


@dataclass(frozen=True)
class Finding:
    """What a rule found: "ok", "failed", "note" (it will load, but look) or "skipped" (cannot be told from here).

    Attributes:
        rule: The rule's name.
        status: The outcome.
        subject: File, key or tensor it is about.
        found: What is there, also when it is right.
        expected: What should be there.
        hint: What to type or change.
    """

    rule: str
    status: Status
    subject: str
    found: str
    expected: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Serving:
    """What a lint is told of the place the package is for; None where it was not said.

    Attributes:
        version: Release of the serving system.
        runtime_version: Version of the vendor's runtime in the image.
        mount_path: Folder the package will have there.
    """

    version: str | None = None
    runtime_version: str | None = None
    mount_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target(Generic[O]):
    """A serving system.

    Attributes:
        name: The command's word.
        title: What people call it.
        help: The command's help, one sentence.
        options: Frozen dataclass, each field made by `flag`.
        releases: Every release it is known for, newest first.
        version_flag: Another name of --target-version; None for none.
        serves: Kind -> the releases that serve it, newest first; kinds no release serves are absent.
        refusals: Kind -> (why no release serves it, what to do instead), for all kinds absent from `serves`.
        plan: Makes a package. Raises OptionsError for options that contradict the artifact.
        rules: Name of each rule -> what it demands, one sentence.
        detect: Whether a tree is a package of this target.
        lint: Every rule's findings for a tree that `detect` knows.
        prefer: Of the releases that serve an artifact's kind, the one to package for when none is asked for; None for
            the newest.
        converts: Flag that stands in ARTIFACT's place, like "--from-rayllm" -> what makes a package of a file's text,
            its name, the options and the request.
        needs: Fields of the options, of each group of which one must be given; no artifact knows them.
        foresee: Raises what `plan` or `lint` would refuse, as far as it is known before the artifact is built.
    """

    name: str
    title: str
    help: str
    options: type[O]
    releases: tuple[str, ...]
    version_flag: str | None
    serves: Mapping[Kind, tuple[str, ...]]
    refusals: Mapping[Kind, tuple[str, str]]
    plan: Callable[[Artifact, O, Request], Package]
    rules: Mapping[str, str]
    detect: Callable[[Tree], bool]
    lint: Callable[[Tree, Serving], Iterator[Finding]]
    prefer: Callable[[Artifact, Sequence[str]], str | None] | None = None
    converts: Mapping[str, Callable[[str, str, O, Request], Package]] = field(default_factory=dict)
    needs: tuple[tuple[str, ...], ...] = ()
    foresee: Callable[[Foreseen, O], None] = lambda foreseen, options: None

    def choose(self, kind: Kind, asked: str | None, artifact: Artifact | None = None) -> str:
        """The release a package is for: the one asked for, the one preferred, or the newest that serves the kind.

        Args:
            kind: What is to be packaged.
            asked: --target-version.
            artifact: What is to be packaged; None before it is built.

        Raises:
            UnsupportedError: No release serves this kind, this one does not, or there is no such release.
        """
        serving = self.serves.get(kind, ())
        if serving == ():
            why, instead = self.refusals[kind]
            raise UnsupportedError(self.title, f"does not serve {KINDS[kind]}: {why}", hint=instead)
        if asked is None:
            preferred = None if self.prefer is None or artifact is None else self.prefer(artifact, serving)
            return serving[0] if preferred is None else preferred
        chosen = release_of(asked, self.releases)
        if chosen in serving:
            assert chosen is not None
            return chosen
        known = f"{asked} is none of the releases known" if chosen is None else f"{asked} does not serve {KINDS[kind]}"
        flag = "--target-version" if self.version_flag is None else self.version_flag
        raise UnsupportedError(
            f"{self.title} {flag}", known, f"one of {', '.join(serving)}", f"add {flag} {serving[0]}, or leave it out"
        )


def without_neuron(why: str) -> dict[Kind, tuple[str, str]]:
    """The refusals of a server that knows no Neuron: for each such kind, why, and the server that takes it."""
    return {kind: (why, instead) for kind, instead in _NEURON_ELSEWHERE.items()}


def without_rtx(why: str) -> dict[Kind, tuple[str, str]]:
    """The refusals of a server that runs neither engines of TensorRT for RTX nor ONNX models: why, and what does."""
    return {
        "rtx-engine": (
            why,
            "load ARTIFACT/engine with tensorrt_rtx in a program of yours, by llmcompile.json; for GPUs of servers: "
            "llmcompile build trtllm",
        ),
        "onnx": (
            why,
            'onnxruntime.InferenceSession("ARTIFACT/onnx/model.onnx") in a program of yours; or the checkpoint it was '
            "made of: llmcompile package --help says who serves those",
        ),
    }


def release_of(asked: str, releases: Iterable[str]) -> str | None:
    """The release a version is of: "0.33.0" and "0.33" are both of "0.33"; None for one of none of them."""
    for release in releases:
        if asked == release or asked.startswith(f"{release}."):
            return release
    return None
