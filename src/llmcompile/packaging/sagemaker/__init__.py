"""The serving target SageMaker: requests of its API, a container's environment, and the model as its image takes it.

An image of Hugging Face serves Neuron decoders (`neuron_env`); LMI serves the rest, and its own target lays that out.
Every fact, with its source, and what was not verified: docs/formats/sagemaker.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.lmi import TARGET as LMI
from llmcompile.packaging.lmi import LmiOptions
from llmcompile.packaging.neuron_env import DECODERS, IMAGES
from llmcompile.packaging.sagemaker.names import CONFIG, DJL, ENCODERS, ENVIRONMENT, MODEL, OPTIMUM, RULES, TRANSFORMERS
from llmcompile.packaging.target import KINDS, Finding, Foreseen, Kind, Package, Request, Serving, Target, flag

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

PORT = 8080
"""Where SageMaker asks a container. Source: awslabs/llm-hosting-container@421a60a, start scripts: --port 8080."""
FAMILIES: Mapping[Kind, str] = MappingProxyType(
    {
        "ft": "fastertransformer",
        "trtllm-engine": "tensorrtllm",
        "hf": "lmi",
        "neuron-optimum": "neuronx",
        "neuron-sdk-2.16": "neuronx",
        "neuron-lmi-split": "neuronx",
        "neuron-lmi-cache": "neuronx",
    }
)
"""Kind -> LMI's image for it."""


@dataclass(frozen=True, kw_only=True)
class SageMakerOptions:
    """What may be asked of a package for SageMaker."""

    model_name: str | None = flag(
        None, "--model-name", help="Name of model, endpoint and its configuration; default: the model's."
    )
    s3_uri: str | None = flag(
        None,
        "--s3-uri",
        help="Where the model will be uploaded; left out of the request unless given.",
        metavar="S3URI",
    )
    role_arn: str | None = flag(
        None, "--role-arn", help="Role that SageMaker takes; left out of the request unless given.", metavar="ARN"
    )
    region: str | None = flag(None, "--region", help="Region, which decides where the image is.")
    image_uri: str | None = flag(
        None, "--image-uri", "--image", help="Image; default: AWS's own in the region, where it has one.", metavar="URI"
    )
    instance_type: str | None = flag(
        None, "--instance-type", help="Like ml.inf2.xlarge; default: the smallest with enough accelerators."
    )
    max_batch_size: int | None = flag(
        None, "--max-batch-size", help="Sequences at once; default: those compiled for.", minimum=1
    )
    max_total_tokens: int | None = flag(
        None, "--max-total-tokens", help="Tokens of a sequence; default: those compiled for.", minimum=2
    )
    max_input_tokens: int | None = flag(
        None, "--max-input-tokens", help="Tokens of a prompt; default: half of a sequence's.", minimum=1
    )
    port: int = flag(PORT, "--port", help="Port on the host, to try the container.", minimum=1)
    tar: bool = flag(False, "--tar", help="The request is for model.tar.gz; default: for the files as they are.")
    source_s3_uri: str | None = flag(
        None,
        "--source-s3-uri",
        help="The model before it was compiled: also writes a request for an optimization job that compiles it there.",
        metavar="S3URI",
    )


def plan(artifact: Artifact, options: SageMakerOptions, request: Request) -> Package:
    """As `planning.plan`."""
    from llmcompile.packaging.sagemaker import planning

    return planning.plan(artifact, options, request)


def prefer(artifact: Artifact, serving: Sequence[str]) -> str | None:
    """As `planning.prefer`."""
    from llmcompile.packaging.sagemaker import planning

    return planning.prefer(artifact, serving)


def _serves() -> Mapping[Kind, tuple[str, ...]]:
    decoders = tuple(f"{OPTIMUM}{release}" for release in DECODERS)
    made: dict[Kind, tuple[str, ...]] = {"neuron-optimum": (*decoders, f"{ENCODERS}{TRANSFORMERS}")}
    for kind, releases in LMI.serves.items():
        if kind in FAMILIES:
            made[kind] = (*made.get(kind, ()), *(f"{DJL}{release}" for release in releases))
    return made


SERVES = _serves()
_NOT_SERVED: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        kind: LMI.refusals.get(kind, ("no image on SageMaker reads it", "llmcompile package --help lists the others"))
        for kind in KINDS
        if kind not in SERVES
    }
)


def foresee(foreseen: Foreseen, options: SageMakerOptions) -> None:
    """As LMI's own, which serves what has a recipe."""
    LMI.foresee(foreseen, LmiOptions())


def detect(tree: Tree) -> bool:
    """Whether there is a request to create a model, or an environment for one."""
    return MODEL in tree.files or (ENVIRONMENT in tree.files and CONFIG in tree.files)


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    from llmcompile.packaging.sagemaker import rules

    return rules.lint(tree, serving)


TARGET = Target(
    name="sagemaker",
    title="SageMaker",
    help="Package an artifact for SageMaker: requests of its API, the container's environment, and the model.",
    options=SageMakerOptions,
    releases=(
        *(f"{OPTIMUM}{release}" for release in IMAGES),
        f"{ENCODERS}{TRANSFORMERS}",
        *(f"{DJL}{release}" for release in LMI.releases),
    ),
    version_flag=None,
    serves=SERVES,
    refusals=_NOT_SERVED,
    plan=plan,
    foresee=foresee,
    rules=RULES,
    detect=detect,
    lint=lint,
    prefer=prefer,
)
