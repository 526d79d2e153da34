"""Images of Hugging Face that serve Neuron exports: which variable says what in each, and what each of them demands.

Sources: huggingface/optimum-neuron at the tag of each release: text-generation-inference/ (tgi_env.py, Dockerfile,
server/text_generation_server/model.py) up to 0.0.28, docker/vllm/Dockerfile and optimum/commands/neuron/serve.py from
0.4.0 on; huggingface/text-generation-inference: Dockerfile.neuron and backends/neuron at v3.3.2, v3.3.4 and v3.3.7;
awslabs/llm-hosting-container@421a60a: huggingface/pytorch/optimum/docker; aws/sagemaker-python-sdk@a248126:
sagemaker-core/src/sagemaker/core/image_uri_config/huggingface-{llm,vllm}-neuronx.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from llmcompile.errors import CheckpointError, OptionsError, UnsupportedError
from llmcompile.packaging.documents import json_object, whole

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

Fact = Literal[
    "model", "name", "batch", "sequence", "input", "prefill", "cores", "dtype", "requests", "port", "revision", "code"
]
Column = Literal["0.0.20", "0.0.23", "0.0.24", "0.2.0", "0.4.0", "0.4.1"]
"""Generations of variables, each by the first release that has it."""
COLUMNS: tuple[Column, ...] = ("0.0.20", "0.0.23", "0.0.24", "0.2.0", "0.4.0", "0.4.1")
_NONE: tuple[str, ...] = ()
_BATCH, _LENGTH = ("HF_BATCH_SIZE", "MAX_BATCH_SIZE"), ("HF_SEQUENCE_LENGTH", "MAX_TOTAL_TOKENS")
_ROWS: Mapping[Fact, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "model": (*(("MODEL_ID",),) * 4, *(("SM_ON_MODEL",),) * 2),
        "name": (*(_NONE,) * 5, ("SM_ON_SERVED_MODEL_NAME",)),
        "batch": (_BATCH, *(("MAX_BATCH_SIZE",),) * 3, *(("SM_ON_BATCH_SIZE",),) * 2),
        "sequence": (_LENGTH, *(("MAX_TOTAL_TOKENS",),) * 3, *(("SM_ON_SEQUENCE_LENGTH",),) * 2),
        "input": (*(("MAX_INPUT_LENGTH",),) * 2, *(("MAX_INPUT_TOKENS",),) * 2, *(_NONE,) * 2),
        "prefill": (*(("MAX_BATCH_PREFILL_TOKENS",),) * 4, *(_NONE,) * 2),
        "cores": (*(("HF_NUM_CORES",),) * 4, *(("SM_ON_TENSOR_PARALLEL_SIZE",),) * 2),
        "dtype": (*(("HF_AUTO_CAST_TYPE",),) * 4, ("SM_ON_DTYPE",), _NONE),
        "requests": (*(("MAX_CONCURRENT_REQUESTS",),) * 4, *(_NONE,) * 2),
        "port": (*(("PORT",),) * 4, *(("SM_ON_PORT",),) * 2),
        "revision": (*(("REVISION",),) * 4, *(_NONE,) * 2),
        "code": (*(("TRUST_REMOTE_CODE",),) * 4, *(_NONE,) * 2),
    }
)
TABLE: Mapping[Fact, Mapping[Column, tuple[str, ...]]] = MappingProxyType(
    {fact: dict(zip(COLUMNS, names, strict=True)) for fact, names in _ROWS.items()}
)
"""What an image is told -> generation -> its variables, all of which must be set alike; empty where it takes none."""
SAGEMAKER: Mapping[str, Fact] = MappingProxyType(
    {
        "HF_MODEL_ID": "model",
        "HF_MODEL_REVISION": "revision",
        "HF_MODEL_TRUST_REMOTE_CODE": "code",
    }
)
"""Names that SageMaker's start script of Text Generation Inference turns into others; that of 0.3.0 has them no more.

Source: awslabs/llm-hosting-container@421a60a:huggingface/pytorch/optimum/docker/3.3.4/Dockerfile, 3.3.6/Dockerfile.
"""
PREFIX = "SM_ON_"
"""Of every variable of the vLLM images: the rest, in lower case, is an argument of `optimum-cli neuron serve`."""
EMBEDS = "0.4.5"
"""The release whose command has --task. Source: huggingface/optimum-neuron@v0.4.5:optimum/commands/neuron/serve.py."""
SECRETS = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)(_|$)")
"""Names whose value is nobody's business: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, AWS_SECRET_ACCESS_KEY, ..."""
SECRET_VALUES = re.compile(r"(hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})")
"""Tokens of Hugging Face's hub, and names of AWS's keys."""
REFERENCES = re.compile(r"\$(\w+|\{\w+(:?-|:?\?[^{}]*)?\})")
"""What docker compose replaces by a variable, and by nothing else."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
"""A model on the hub: org/name."""


def devices_for(cores: int, target: str | None) -> int:
    """Devices with so many NeuronCores: two on one, on Trainium2 four of two physical ones each.

    Source: huggingface/optimum-neuron@v0.4.5:optimum/neuron/utils/system.py (cores_per_device).
    """
    return -(-cores // (4 if target == "trn2" else 2))


@dataclass(frozen=True)
class Image:
    """An image, by the release of optimum-neuron in it.

    Attributes:
        release: Of optimum-neuron.
        column: Which variables it takes.
        compiler: Version of neuronx-cc in it.
        docker: Where it is for any host.
        sagemaker: Repository and tag in SageMaker's registries; None where the SDK lists none.
        model_variable: Variable of the model's folder on SageMaker.
    """

    release: str
    column: Column
    compiler: str
    docker: str
    sagemaker: str | None
    model_variable: str = "HF_MODEL_ID"

    @property
    def vllm(self) -> bool:
        """Whether it is optimum-neuron's vLLM, and not Text Generation Inference."""
        return self.column.startswith("0.4")

    @property
    def equal(self) -> bool:
        """Whether batch and sequence must be those that were compiled for; else they may be less.

        Sources: optimum-neuron@v0.0.28:text-generation-inference/tgi_env.py compares texts;
        text-generation-inference@v3.3.4:backends/neuron/server/text_generation_server/tgi_env.py takes less;
        optimum-neuron@v0.4.5:optimum/commands/neuron/serve.py raises where they differ.
        """
        return self.column != "0.2.0"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Further variables that the command of a vLLM image knows."""
        return ("SM_ON_ALLOW_NON_CACHED_MODEL", *(("SM_ON_TASK",) if self.release == EMBEDS else ()))

    @property
    def strict(self) -> bool:
        """Whether the command stops at an argument that it does not know; later it passes those on to vLLM.

        Source: optimum-neuron@v0.4.1, v0.4.2:optimum/commands/neuron/serve.py (parse_args).
        """
        return self.release in ("0.4.0", "0.4.1")

    def names(self, fact: Fact, *, sagemaker: bool) -> tuple[str, ...]:
        """The variables that say a fact, all of which must be set alike."""
        return (self.model_variable,) if sagemaker and fact == "model" else TABLE[fact][self.column]

    def derives(self, *, sagemaker: bool) -> bool:
        """Whether it takes what is not set from the model's own files.

        SageMaker's start script up to 0.2.0, and the images before 0.0.22, start the launcher at once.
        """
        return self.release not in ("0.0.20", "0.0.21") and not (sagemaker and self.model_variable in SAGEMAKER)

    @property
    def layout(self) -> Literal["split", "traced"]:
        """What it loads: a split checkpoint and NEFFs (transformers-neuronx), or model.pt and ranks' weights."""
        return "split" if self.column.startswith("0.0") else "traced"

    @property
    def port(self) -> int:
        """Where it listens unless told otherwise; on SageMaker all of them are told 8080."""
        return 8080 if self.vllm else 80


_HF = "ghcr.io/huggingface/"
_TGI, _VLLM = "huggingface-pytorch-tgi-inference", "huggingface-vllm-inference-neuronx"


def _old(release: str, column: Column, compiler: str, torch: str | None) -> Image:
    tag = None if torch is None else f"{_TGI}:{torch}-optimum{release}-neuronx-py310-ubuntu22.04"
    return Image(release, column, compiler, f"{_HF}neuronx-tgi:{release}", tag)


def _tgi(release: str, column: Column, compiler: str, tgi: str, tag: str | None, variable: str) -> Image:
    full = None if tag is None else f"{_TGI}:{tag}-neuronx-py310-ubuntu22.04"
    return Image(release, column, compiler, f"{_HF}text-generation-inference:{tgi}-neuron", full, variable)


def _vllm(release: str, column: Column, compiler: str, tag: str | None) -> Image:
    full = None if tag is None else f"{_VLLM}:{tag}-ubuntu22.04"
    return Image(release, column, compiler, f"{_HF}optimum-neuron-vllm:{release}", full, "SM_ON_MODEL")


IMAGES: Mapping[str, Image] = MappingProxyType(
    {
        image.release: image
        for image in (
            _vllm("0.4.5", "0.4.1", "2.21.33363.0", None),
            _vllm("0.4.4", "0.4.1", "2.21.33363.0", "0.11.0-optimum0.4.4-neuronx-py310-sdk2.26.1"),
            _vllm("0.4.3", "0.4.1", "2.21.33363.0", None),
            _vllm("0.4.2", "0.4.1", "2.21.18209.0", "0.11.0-optimum0.4.2-neuronx-py310-sdk2.26.0"),
            _vllm("0.4.1", "0.4.1", "2.21.18209.0", "0.10.2-neuronx-py310-sdk2.26.0"),
            _vllm("0.4.0", "0.4.0", "2.21.18209.0", None),
            _tgi("0.3.0", "0.2.0", "2.19.8089.0", "3.3.7", "2.7.0-optimum3.3.6", "MODEL_ID"),
            _tgi("0.2.0", "0.2.0", "2.17.194.0", "3.3.4", "2.5.1-optimum3.3.4", "HF_MODEL_ID"),
            _tgi("0.1.0", "0.0.24", "2.16.372.0", "3.3.2", None, "HF_MODEL_ID"),
            _old("0.0.28", "0.0.24", "2.15.143.0", "2.1.2"),
            _old("0.0.27", "0.0.24", "2.15.143.0", "2.1.2"),
            _old("0.0.26", "0.0.24", "2.15.128.0", None),
            _old("0.0.25", "0.0.24", "2.15.128.0", "2.1.2"),
            _old("0.0.24", "0.0.24", "2.14.227.0", "2.1.2"),
            _old("0.0.23", "0.0.23", "2.13.66.0", "2.1.2"),
            _old("0.0.22", "0.0.20", "2.13.66.0", "2.1.2"),
            _old("0.0.21", "0.0.20", "2.13.66.0", "1.13.1"),
            _old("0.0.20", "0.0.20", "2.12.68.0", "1.13.1"),
        )
    }
)
"""Release of optimum-neuron -> the image, newest first."""
DECODERS = tuple(release for release in IMAGES if release.startswith(("0.4", "0.3")))
"""Releases whose exports have neuron_config.json and are made by `export neuron --via optimum`."""
_TGI_RELEASES = {"3.3.5": "0.3.0", "3.3.6": "0.3.0", "3.3.7": "0.3.0", "3.3.3": "0.2.0", "3.3.4": "0.2.0"} | {
    f"3.{tag}": "0.1.0" for tag in ("2.0", "2.1", "2.2", "2.3", "3.0", "3.1", "3.2")
}
_TGI_RELEASES["3.1.1"] = "0.0.28"
"""Release of Text Generation Inference -> of optimum-neuron in its image with -neuron. Source: its Dockerfile.neuron at
each tag."""
FIXES = (
    "export again with optimum-neuron {release}: llmcompile export neuron --model MODEL --via optimum "
    "--toolchain-python PYTHON OUTPUT"
)


@dataclass(frozen=True)
class Record:
    """What a model was compiled for, as its own files say; None for what they do not say.

    Attributes:
        path: The file that says it.
        kind: split (transformers-neuronx), traced (neuron_config.json), or encoder.
        batch: Sequences at once.
        sequence: Tokens of a sequence.
        cores: NeuronCores.
        dtype: fp32, fp16 or bf16.
        compiler: Version of neuronx-cc.
        release: Of optimum-neuron.
        target: Instance family.
        weights: Hub id of the weights where they are not in the folder.
    """

    path: str
    kind: Literal["split", "traced", "encoder"]
    batch: int | None
    sequence: int | None
    cores: int | None
    dtype: str | None
    compiler: str | None
    release: str | None
    target: str | None
    weights: str | None


DTYPES = MappingProxyType(
    {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
)


def read_record(tree: Tree) -> Record | None:
    """What a folder's neuron_config.json, or the section "neuron" of its config.json, says; None where neither does."""
    section = json_object(tree, "neuron_config.json")
    if section is not None:
        return _record("neuron_config.json", "traced", section, section.get("tp_degree"), "neuronxcc_version")
    config = json_object(tree, "config.json")
    section = None if config is None else config.get("neuron")
    if not isinstance(section, dict):
        return None
    kind: Literal["split", "encoder"] = "split" if "num_cores" in section else "encoder"
    return _record("config.json", kind, section, section.get("num_cores"), "compiler_version")


def _record(
    path: str, kind: Literal["split", "traced", "encoder"], section: Mapping[str, Any], cores: object, compiler: str
) -> Record:
    dtype = str(section.get("torch_dtype", section.get("auto_cast_type"))).removeprefix("torch.")
    return Record(
        path=path,
        kind=kind,
        batch=whole(section.get("batch_size")),
        sequence=whole(section.get("sequence_length")),
        cores=whole(cores),
        dtype=DTYPES.get(dtype),
        compiler=text_of(section.get(compiler)),
        release=text_of(section.get("optimum_neuron_version")),
        target=text_of(section.get("target")),
        weights=text_of(section.get("checkpoint_id")),
    )


def text_of(value: object) -> str | None:
    """A value of a JSON file, where it is a text."""
    return value if isinstance(value, str) else None


def prefer(artifact: Artifact, serving: Sequence[str]) -> str | None:
    """The image with the release of optimum-neuron that made the artifact."""
    made = made_by(artifact)
    return made if made in serving else None


def made_by(artifact: Artifact) -> str | None:
    """Release of optimum-neuron that made an artifact; None where nothing says so."""
    record = read_record(artifact.tree)
    if record is not None and record.release is not None:
        return record.release
    return None if artifact.manifest is None else artifact.manifest.versions.get("optimum-neuron")


def servable(artifact: Artifact, image: Image, runtime: str | None) -> Record:
    """What the artifact was compiled for, if the image will load it.

    Args:
        artifact: Of kind neuron-optimum.
        image: That will serve.
        runtime: Version of neuronx-cc in the image, where the user said so.

    Raises:
        UnsupportedError: No decoder, or made by another release or compiler than the image has.
        CheckpointError: It does not say what it was compiled for.
    """
    record = read_record(artifact.tree)
    embeds = artifact.task == "feature-extraction" and image.release == EMBEDS
    if record is None or record.kind != "traced" or (artifact.task not in (None, "text-generation") and not embeds):
        what = "no decoder" if record is None or record.kind != "traced" else f"a decoder for {artifact.task}"
        raise UnsupportedError(
            f"{artifact.path}",
            f"{artifact.task or 'a model'}: {what}",
            f"a decoder: these images generate text, and that of {EMBEDS} also embeds",
            "llmcompile package sagemaker, whose inference image serves encoders of texts",
        )
    made = made_by(artifact)
    if made != image.release:
        hint = f"add --target-version {made}" if made in IMAGES else FIXES.format(release=image.release)
        raise UnsupportedError(
            f"the image with optimum-neuron {image.release}",
            f"loads what optimum-neuron {image.release} made; {artifact.path} is of {made or 'an unknown release'}",
            "the same release: optimum-neuron refuses any other",
            hint,
        )
    has = image.compiler if runtime is None else runtime
    if record.compiler is not None and not same_version(record.compiler, has):
        raise UnsupportedError(
            f"neuronx-cc {has} of the image",
            f"{artifact.path} was compiled by {record.compiler}",
            "the same version: optimum-neuron refuses any other",
            f"export again in an environment with neuronx-cc {has}, or choose an image with {record.compiler}",
        )
    if None in (record.batch, record.sequence, record.cores):
        raise CheckpointError(
            f"{artifact.path}/{record.path}",
            "batch_size, sequence_length or tp_degree missing",
            "all three",
            "copy the artifact again from where it was built",
        )
    return record


def same_version(one: str, other: str) -> bool:
    """Whether two versions of neuronx-cc are the same; what stands behind "+" counts only where both have it."""
    (first, mark, build), (second, other_mark, other_build) = one.partition("+"), other.partition("+")
    return first == second and (mark == "" or other_mark == "" or build == other_build)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user asks of a server; None for what the model was compiled for."""

    batch: int | None = None
    sequence: int | None = None
    input: int | None = None


def environment(
    record: Record,
    image: Image,
    limits: Limits,
    *,
    model: str,
    name: str | None = None,
    task: str | None = None,
    sagemaker: bool = False,
) -> dict[str, str]:
    """The variables of an image for a model, in the order of the table.

    Args:
        record: What the model was compiled for.
        image: That will serve.
        limits: What is asked.
        model: Folder in the container.
        name: Under which it is served; None for the folder's.
        task: Of the model; None where nothing says so.
        sagemaker: Whether the image is started by SageMaker's script.

    Raises:
        OptionsError: A limit contradicts what was compiled, or the image has no variable for it.
    """
    assert record.batch is not None
    assert record.sequence is not None
    batch = _limited("--max-batch-size", limits.batch, record.batch, image)
    sequence = _limited("--max-total-tokens", limits.sequence, record.sequence, image)
    if image.vllm and limits.input is not None:
        raise OptionsError("--max-input-tokens", "vLLM has no such limit", "", "leave it out")
    longest = sequence // 2 if limits.input is None else limits.input
    if not image.vllm and not 0 < longest < sequence:
        raise OptionsError(
            "--max-input-tokens", str(longest), f"from 1 to {sequence - 1}, one less than all tokens", "lower it"
        )
    if name is not None and TABLE["name"][image.column] == ():
        raise OptionsError(
            "--served-model-name", f"{image.docker} does not take a name", "", "leave it out: it is not read"
        )
    said: Mapping[Fact, str | None] = {
        "model": model,
        "name": name,
        "batch": str(batch),
        "sequence": str(sequence),
        "input": str(longest),
        "prefill": str(batch * longest),
        "cores": str(record.cores),
        "dtype": None if image.vllm else record.dtype,
    }
    made = {
        variable: value
        for fact, value in said.items()
        for variable in image.names(fact, sagemaker=sagemaker)
        if value is not None
    }
    return made | ({"SM_ON_TASK": "embed"} if task == "feature-extraction" else {})


def _limited(flag: str, asked: int | None, compiled: int, image: Image) -> int:
    if asked is None or asked == compiled:
        return compiled
    if asked > compiled:
        raise OptionsError(
            flag, str(asked), f"at most {compiled}, what was compiled", f"add {flag} {compiled}, or export again"
        )
    if image.equal:
        raise OptionsError(
            flag, str(asked), f"{compiled}, what was compiled: this image takes nothing less", f"leave {flag} out"
        )
    return asked


def fetched(record: Record) -> str:
    """A note on what the container fetches when it starts."""
    if record.weights is None:
        return "no token is written: the model is here, and nothing is fetched"
    return f"the weights are not here: the container fetches {record.weights} when it starts, which may need HF_TOKEN"


def image_of(reference: str) -> Image | None:
    """The image that a reference names, by its repository and tag."""
    name, _, tag = reference.rpartition(":")
    repository = name.rpartition("/")[2]
    for image in IMAGES.values():
        if image.sagemaker == f"{repository}:{tag}":
            return image
    if repository in ("neuronx-tgi", "optimum-neuron-vllm"):
        return IMAGES.get(tag)
    if repository == "text-generation-inference" and tag.endswith("-neuron"):
        return IMAGES.get(_TGI_RELEASES.get(tag.removesuffix("-neuron"), ""))
    return None


def serves_neuron(reference: str) -> bool:
    """Whether a reference is of one of these images, of whatever release."""
    repository, _, tag = reference.rpartition("/")[2].partition(":")
    if repository in ("neuronx-tgi", "optimum-neuron-vllm", _VLLM) or image_of(reference) is not None:
        return True
    return repository in ("text-generation-inference", _TGI) and "neuron" in tag


def known(name: str) -> Fact | None:
    """The fact a variable says in any generation."""
    if name in SAGEMAKER:
        return SAGEMAKER[name]
    return next((fact for fact, names in TABLE.items() if any(name in column for column in names.values())), None)


RULES: Mapping[str, str] = MappingProxyType(
    {
        "secrets": "No file holds a token or a key.",
        "variables": (
            "Every variable is one that the image reads; one of another generation is named with its successor."
        ),
        "model": "The model's variable names the folder that is there.",
        "files": "The files that the image loads are there: of the model, of every rank, and of the tokenizer.",
        "release": "The image has the release of optimum-neuron that made the model.",
        "compiler": "The image has the version of neuronx-cc that compiled the model.",
        "batch": "The batch size is at most what was compiled; for images that compare it, the same.",
        "sequence": "The tokens of a sequence are at most what was compiled; for images that compare them, the same.",
        "input": "The tokens of a prompt are fewer than those of a sequence, and are said once.",
        "prefill": "The tokens of a prefill are those of a batch of the longest prompts.",
        "cores": "The NeuronCores are those that were compiled for.",
        "dtype": "The element type is the one that was compiled.",
    }
)
"""Rules of an image's environment, common to its targets."""
DEVICES = "Each container has a device for every two NeuronCores, four on Trainium2, and shares none."
