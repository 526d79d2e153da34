"""The serving target LMI: DJLServing's containers, serving.properties beside a model laid out as the release wants it.

Every fact, with its source, and what was not verified: docs/formats/lmi.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.target import Finding, Foreseen, Kind, Package, Request, Serving, Target, flag, without_rtx

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree


@dataclass(frozen=True, kw_only=True)
class LmiOptions:
    """What a package for LMI may be asked to be.

    Attributes:
        max_batch_size: Sequences at once; None for as many as the artifact was built for.
        tensor_parallel_degree: Devices of a Hugging Face checkpoint; None for all there are.
        mount_path: Folder the package has in the container.
        model_id: Where the model's files lie, if not beside serving.properties.
        load_compiled: Whether LMI is to load the compiled graphs of a Neuron export, and fail where they are not its
            own.
        option: Further entries, KEY=VALUE.
        tar: Whether to write model.tar.gz.
    """

    max_batch_size: int | None = flag(
        None,
        "--max-batch-size",
        help="Sequences at once, at most as many as the artifact was built for.",
        metavar="N",
        minimum=1,
    )
    tensor_parallel_degree: int | None = flag(
        None,
        "--tensor-parallel-degree",
        help="Devices to split a Hugging Face checkpoint over; all there are, by default.",
        metavar="N",
        minimum=1,
    )
    mount_path: str = flag(
        "/opt/ml/model", "--mount-path", help="Folder of the package in the container.", metavar="FOLDER"
    )
    model_id: str | None = flag(
        None,
        "--model-id",
        help="Where the model lies, s3://.../ or an absolute path; the package is serving.properties alone then.",
        metavar="PLACE",
    )
    load_compiled: bool = flag(
        False,
        "--load-compiled",
        help="Have a Neuron export's own compiled graphs loaded; LMI stops where it would make other graphs.",
    )
    option: tuple[str, ...] = flag(
        (), "--option", help="A further entry of serving.properties; may be repeated.", metavar="KEY=VALUE"
    )
    tar: bool = flag(False, "--tar", help="Write model.tar.gz, with its members at the root, as SageMaker takes it.")


SERVES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "ft": ("0.24", "0.23", "0.22"),
        "trtllm-engine": ("0.36", "0.35", "0.34", "0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27"),
        "neuron-lmi-split": ("0.34", "0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27", "0.26"),
        "neuron-lmi-cache": ("0.34", "0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27", "0.26"),
        "neuron-sdk-2.16": ("0.29", "0.28"),
        "hf": ("0.36", "0.35", "0.34", "0.33"),
    }
)
_REFUSALS: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        "trtllm-checkpoint": (
            "it loads engines, or builds one of a Hugging Face checkpoint",
            "llmcompile build trtllm --from-checkpoint ARTIFACT ENGINE",
        ),
        "neuron-lowered": (
            "its graphs are not compiled",
            "llmcompile export neuron --from-lowered ARTIFACT COMPILED",
        ),
        "neuron-nxd": (
            "its Neuron images have transformers-neuronx, which reads split checkpoints",
            "llmcompile export neuron --layout lmi-split",
        ),
        "neuron-optimum": (
            "its Neuron images have optimum-neuron 0.0.16 to 0.0.27, whose decoders are other files, and its handler "
            "reads neuron.batch_size of config.json, which an encoder's has not",
            "llmcompile export neuron --layout lmi-split, or llmcompile package tgi",
        ),
        **without_rtx("none of its engines that packages are made for runs one"),
    }
)

RULES: Mapping[str, str] = MappingProxyType(
    {
        "archive-root": "serving.properties is at the root, not in a folder of the archive",
        "properties-dialect": "Java and LMI's Python tools read the same entries",
        "known-keys": "no key is a misspelled one of LMI's",
        "credentials": "no entry looks like a token or a password",
        "engine": "the release has the engine",
        "entry-point": "the release has the handler, and it starts there",
        "handler-mode": "the handler runs in the mode it insists on",
        "dynamic-batch": "batch_size above 1 and a rolling batch do not meet",
        "model-id": "model_id is absent, absolute or s3://, and does not hide files",
        "s3url": "s3url is not beside model_id, and the release still reads it",
        "environment": "no environment file beside it says otherwise",
        "layout": "the model lies as the release looks for it",
        "build-config": "a flat engine's config.json has build_config",
        "model-files": "configuration, tokenizer and weights are where the handler opens them",
        "rank-files": "every rank of tp x pp has its files",
        "split-weights": "every file of a split Neuron checkpoint is there",
        "tensor-parallel": "tensor_parallel_degree is the model's own",
        "batch-size": "no more sequences at once than it was built for",
        "sequence-length": "positions and tokens are those it was built for",
        "dtype": "dtype is spelled as the handler does, and fits the weights",
        "gpt-model-path": "config.pbtxt names the engine's folder in the container",
        "decoupled": "config.pbtxt is decoupled",
        "verify-file": "FasterTransformer's verify is one line without a blank or newline",
        "runtime-version": "the image's runtime is the one it was compiled by",
        "compiled-graphs": "compiled graphs are where LMI looks, in the form it takes",
    }
)
_FILE = "serving.properties"


def plan(artifact: Artifact, options: LmiOptions, request: Request) -> Package:
    """As `planning.plan`."""
    from llmcompile.packaging.lmi import planning

    return planning.plan(artifact, options, request)


def prefer(artifact: Artifact, releases: Sequence[str]) -> str | None:
    """As `planning.prefer`."""
    from llmcompile.packaging.lmi import planning

    return planning.prefer(artifact, releases)


def foresee(foreseen: Foreseen, options: LmiOptions) -> None:
    """As `refuse_recipe_in_vllm`, which is the engine of a Hugging Face folder."""
    from llmcompile.packaging.artifact import refuse_recipe_in_vllm

    refuse_recipe_in_vllm(foreseen.quantization)


def detect(tree: Tree) -> bool:
    """Whether there is a serving.properties, at the root or in a folder above which nothing is."""
    tops = {path.split("/")[0] for path in tree.files}
    return _FILE in tree.files or (len(tops) == 1 and any(path.endswith(f"/{_FILE}") for path in tree.files))


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """As `checks.lint`."""
    from llmcompile.packaging.lmi import checks

    return checks.lint(tree, serving)


TARGET: Target[LmiOptions] = Target(
    name="lmi",
    title="LMI",
    help="LMI (DJLServing): serving.properties beside the model, as a folder, an S3 prefix or model.tar.gz.",
    options=LmiOptions,
    releases=tuple(f"0.{minor}" for minor in range(36, 21, -1)),
    version_flag="--lmi-version",
    serves=SERVES,
    refusals=_REFUSALS,
    plan=plan,
    foresee=foresee,
    rules=RULES,
    detect=detect,
    lint=lint,
    prefer=prefer,
)
