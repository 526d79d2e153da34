"""Ray Serve's LLM module: a Serve config file with an LLMConfig, and the model's files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.ray_serve.engine_args import DTYPES
from llmcompile.packaging.ray_serve.releases import RELEASES
from llmcompile.packaging.target import (
    Finding,
    Foreseen,
    Kind,
    Package,
    Request,
    Serving,
    Target,
    flag,
    without_neuron,
    without_rtx,
)

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree


@dataclass(frozen=True, kw_only=True)
class RayServeOptions:
    """What may be asked of a package for Ray Serve."""

    model_id: str | None = flag(
        None,
        "--model-id",
        help='What clients call the model, like "org/name"; by default from the name of the folder.',
        metavar="ID",
    )
    model_source: str | None = flag(
        None,
        "--model-source",
        help="Absolute path of the model's folder on every node; /models/<org>--<name>, by default.",
        metavar="PATH",
    )
    bucket_uri: str | None = flag(
        None,
        "--bucket-uri",
        help="Bucket that the nodes download the model from: s3://, gs://, abfss:// or azure://.",
        metavar="URI",
    )
    accelerator_type: str | None = flag(
        None, "--accelerator-type", help="Accelerator as Ray labels nodes: L4, A10G, A100, H100, ...", metavar="NAME"
    )
    tp: int | None = flag(
        None, "--tp", "--tensor-parallel-size", help="GPUs that each layer is split over; 1, by default.", minimum=1
    )
    pp: int | None = flag(None, "--pp", "--pipeline-parallel-size", help="Stages of layers; 1, by default.", minimum=1)
    max_model_len: int | None = flag(
        None, "--max-model-len", help="Tokens of a sequence, prompt and answer; the model's own, by default.", minimum=1
    )
    min_replicas: int | None = flag(None, "--min-replicas", help="Fewest replicas; 1, by default.", minimum=0)
    max_replicas: int | None = flag(
        None, "--max-replicas", help="Most replicas; as --min-replicas, by default.", minimum=1
    )
    target_ongoing_requests: float | None = flag(
        None, "--target-ongoing-requests", help="Requests per replica at which another one is started."
    )
    max_ongoing_requests: int | None = flag(
        None, "--max-ongoing-requests", help="Requests that a replica takes at once; the release's own, by default."
    )
    dtype: str | None = flag(None, "--dtype", help="Element type, as vLLM calls it.", choices=DTYPES)
    load_format: str | None = flag(
        None, "--load-format", help="How vLLM reads the weights: auto, safetensors, sharded_state, runai_streamer, ..."
    )
    trust_remote_code: bool = flag(False, "--trust-remote-code", help="Let vLLM run code that lies with the model.")


def plan(artifact: Artifact, options: RayServeOptions, request: Request) -> Package:
    """A package of a Hugging Face folder.

    Raises:
        OptionsError: Options contradict each other, the model, or the release.
        CheckpointError: The folder's files lie about each other.
        UnsupportedError: The release cannot say what is asked.
    """
    from llmcompile.packaging.ray_serve.folder import package

    return package(artifact, options, request)


def convert(text: str, name: str, options: RayServeOptions, request: Request) -> Package:
    """A package of a RayLLM registry entry: the LLMConfig that serves the same model alike.

    Raises:
        CheckpointError: The entry cannot be read.
        UnsupportedError: Ray Serve has nothing like it.
        OptionsError: Options contradict each other, or the release.
    """
    from llmcompile.packaging.ray_serve.entry import package

    return package(text, name, options, request)


def foresee(foreseen: Foreseen, options: RayServeOptions) -> None:
    """As `refuse_recipe_in_vllm`, which is the engine of a Hugging Face folder."""
    from llmcompile.packaging.artifact import refuse_recipe_in_vllm

    refuse_recipe_in_vllm(foreseen.quantization)


def detect(tree: Tree) -> bool:
    """Whether there is a Serve config file for ray.serve.llm, or an LLMConfig, at the root."""
    from llmcompile.packaging.ray_serve.documents import is_ours

    return is_ours(tree)


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    from llmcompile.packaging.ray_serve.rules import findings

    return findings(tree, serving)


RULES: Mapping[str, str] = MappingProxyType(
    {
        "serve-yaml": "Every key of the Serve config file is one that Serve reads.",
        "import-path": "The application is built by ray.serve.llm:build_openai_app.",
        "llm-configs": "Every LLMConfig is there, under its own model_id, and the same wherever it is written.",
        "schema": "Every key of an LLMConfig is one the release reads, with a value of its type.",
        "deployment": "Every key of deployment_config is one the release reads, none of RayLLM's names.",
        "replicas": "min_replicas <= initial_replicas <= max_replicas, and a target where the number may change.",
        "engine": "llm_engine is vLLM.",
        "engine-args": "Every key of engine_kwargs is one of vLLM's that Ray Serve does not set itself.",
        "accelerator": "accelerator_type is one the release knows, and of the kind that the bundles ask for.",
        "model-source": "The model comes from a path, a hub id, or a bucket the release can read.",
        "placement": "There is a bundle with a GPU for each of tensor_parallel_size x pipeline_parallel_size workers.",
        "architecture": "The model's class is one that vLLM has code for.",
        "parallel": "tensor_parallel_size divides the model's attention heads; no stage is without a layer.",
        "max-model-len": "max_model_len is no longer than the model.",
        "dtype": "dtype is spelled as vLLM spells it.",
        "load-format": "load_format is one of vLLM's, and its files are there.",
        "quantization": "quantization is a method vLLM has, and the one in config.json.",
        "weights": "config.json, and every file of weights that its index names, are with the model.",
        "tokenizer": "The tokenizer is with the model.",
        "hash": "A mirror's hash file is one line of 40 hexadecimal digits.",
        "vllm-version": "The vLLM of the image is the one the release of Ray asks for.",
    }
)
_BUILD = "llmcompile package ray-serve CHECKPOINT OUTPUT serves the Hugging Face checkpoint it was made from"
_TRTLLM = (
    "its engine is vLLM, and RayLLM's TensorRT-LLM engine has no successor there",
    f"llmcompile package triton ARTIFACT OUTPUT; or {_BUILD}",
)
_NO_NEURON = "its engine is vLLM, which does not read Neuron graphs; optimum-neuron's plug-in was not verified with it"
_REFUSALS: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        "ft": (
            "its engine is vLLM, which does not read FasterTransformer's files",
            f"llmcompile package triton ARTIFACT OUTPUT, or package lmi; or {_BUILD}",
        ),
        "trtllm-engine": _TRTLLM,
        "trtllm-checkpoint": (
            _TRTLLM[0],
            f"llmcompile build trtllm --from-checkpoint ARTIFACT ENGINE, then package triton; or {_BUILD}",
        ),
        **without_rtx("its engine is vLLM, which reads checkpoints"),
        **without_neuron(_NO_NEURON),
    }
)

TARGET: Target[RayServeOptions] = Target(
    name="ray-serve",
    title="Ray Serve",
    help="For Ray Serve's LLM module: a Serve config file with an LLMConfig, and the model's files.",
    options=RayServeOptions,
    releases=RELEASES,
    version_flag="--ray-version",
    serves={"hf": RELEASES},
    refusals=_REFUSALS,
    plan=plan,
    foresee=foresee,
    rules=RULES,
    detect=detect,
    lint=lint,
    converts={"--from-rayllm": convert},
)
