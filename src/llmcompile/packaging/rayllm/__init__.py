"""RayLLM: a registry entry, the serve config that names it, and the mirror that goes into the bucket.

Archived in May 2024 at release 0.5.0. Ray's successor is `ray.serve.llm`, the target ray-serve.
Source: ray-project/ray-llm@891ccd7; see docs/formats/rayllm.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.errors import UnsupportedError
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
class RayLLMOptions:
    """What may be asked of a RayLLM package."""

    model_id: str | None = flag(
        None, "--model-id", metavar="ORG/NAME", help="The model's id in the API, and of its tokenizer on the hub."
    )
    bucket_uri: str | None = flag(
        None, "--bucket-uri", metavar="URI", help="Where mirror/ will be copied to: s3://... or gs://..."
    )
    model_local_path: str | None = flag(
        None, "--model-local-path", metavar="PATH", help="Where mirror/ will be on every node, instead of a bucket."
    )
    engine: str | None = flag(
        None,
        "--engine",
        choices=("VLLMEngine", "TRTLLMEngine", "EmbeddingEngine"),
        help="RayLLM's engine; told from the artifact by default.",
    )
    num_workers: int | None = flag(
        None, "--num-workers", minimum=1, help="GPUs of a replica; tp x pp of an engine, 1 for a checkpoint by default."
    )
    accelerator_type: str | None = flag(
        None,
        "--accelerator-type",
        metavar="NAME",
        help="Ray's resource accelerator_type_NAME, like a10; none by default.",
    )
    min_replicas: int = flag(1, "--min-replicas", minimum=0, help="Replicas at least.")
    max_replicas: int = flag(8, "--max-replicas", minimum=1, help="Replicas at most.")
    max_total_tokens: int | None = flag(
        None,
        "--max-total-tokens",
        minimum=1,
        help="Tokens of a sequence, of an answer for a TensorRT-LLM engine; as many as there can be by default.",
    )
    max_batch_size: int | None = flag(
        None, "--max-batch-size", minimum=1, help="Sequences at once; what an engine was built for by default."
    )
    scheduler_policy: str = flag(
        "MAX_UTILIZATION",
        "--scheduler-policy",
        choices=("MAX_UTILIZATION", "GUARANTEED_NO_EVICT"),
        help="How TensorRT-LLM fills a batch.",
    )
    prompt_format: str | None = flag(
        None,
        "--prompt-format",
        metavar="FILE.yaml",
        help="The prompt_format to write, instead of one derived from the chat template.",
    )
    prepend_system: bool = flag(
        False,
        "--prepend-system",
        help="Where the chat template refuses system messages, put them before the first user's text.",
    )
    no_chat: bool = flag(False, "--no-chat", help="Serve completions only: for base models.")
    trust_remote_code: bool = flag(False, "--trust-remote-code", help="Let vLLM run the checkpoint's own code.")
    commit: str | None = flag(
        None, "--commit", metavar="HASH", help="The checkpoint's commit on the hub, for the mirror's hash file."
    )


def _plan(artifact: Artifact, options: RayLLMOptions, request: Request) -> Package:
    from llmcompile.packaging.rayllm.plan import plan

    return plan(artifact, options, request)


def _foresee(foreseen: Foreseen, options: RayLLMOptions) -> None:
    """Refuse what the rule "loads" would.

    Raises:
        UnsupportedError: It is quantized in a way that RayLLM's vLLM does not know.
    """
    from llmcompile.packaging.rayllm.facts import QUANTIZATIONS

    method = foreseen.quantization.get("quant_method")
    if method is not None and method not in QUANTIZATIONS:
        raise UnsupportedError(
            "quantization_config.quant_method",
            f"{method!r}, which RayLLM's vLLM does not load",
            f"one of {', '.join(QUANTIZATIONS)}",
            "serve it with ray.serve.llm: llmcompile package ray-serve",
        )


def _detect(tree: Tree) -> bool:
    from llmcompile.packaging.rayllm.checks import detect

    return detect(tree)


def _lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    from llmcompile.packaging.rayllm.checks import lint

    return lint(tree, serving)


_CONVERTED = "its engines read Hugging Face checkpoints and TensorRT-LLM engines"
_REFUSALS: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        "ft": (_CONVERTED, "type: llmcompile package rayllm MODEL OUTPUT with the checkpoint it was made of"),
        "trtllm-checkpoint": (
            "servers load engines",
            "on the GPU host, type: llmcompile build trtllm --from-checkpoint ARTIFACT ENGINE",
        ),
        **without_rtx(_CONVERTED),
        **without_neuron("it knows no Neuron"),
    }
)

TARGET: Target[RayLLMOptions] = Target(
    name="rayllm",
    title="RayLLM",
    help="A RayLLM registry entry, its serve config, and the mirror for the bucket.",
    options=RayLLMOptions,
    releases=("0.5.0", "0.4.0"),
    version_flag="--rayllm-version",
    serves=MappingProxyType({"hf": ("0.5.0", "0.4.0"), "trtllm-engine": ("0.5.0",)}),
    refusals=_REFUSALS,
    needs=(("bucket_uri", "model_local_path"),),
    plan=_plan,
    foresee=_foresee,
    rules=MappingProxyType(
        {
            "yaml": "Entries and serve configs are YAML that a safe loader reads.",
            "schema": "An entry has every key RayLLM needs, of the right type, and none that it refuses.",
            "ignored-keys": "No key is one that RayLLM silently leaves out.",
            "choices": "Words that are looked up when an engine starts are among those it knows.",
            "file-name": "An entry's file is called <org>--<model>-<params>-<extra>.yaml.",
            "serve-config": "serve.yaml names RayLLM's application, and entries that exist, each in its engine's list.",
            "engine": "The engine is one that the release has and that reads what is in the mirror.",
            "deployment": "deployment_config has ray_actor_options, without which no replica starts.",
            "workers": "num_workers is tp x pp and the number of rank files, and divides the attention heads.",
            "mirror-names": "The mirror has no folders, in which files of the same name would fall together.",
            "hash": "The mirror's hash file holds the checkpoint's commit.",
            "config": "The mirror has config.json, of the model or of the engine.",
            "bucket": "There is one place to load from, of a scheme that the engine reads.",
            "prompt-format": "Texts of prompt_format hold the placeholders that RayLLM fills, and no others.",
            "chat-template": "prompt_format renders what the chat template in the mirror does.",
            "max-total-tokens": "max_total_tokens is not more than the model or engine has room for.",
            "batch": "max_num_sequences is not more than the engine was built for.",
            "runtime": "The engine was built by the TensorRT-LLM, and the entry is for the vLLM, of the image.",
            "loads": "The image's vLLM, or EmbeddingEngine, can load the checkpoint.",
        }
    ),
    detect=_detect,
    lint=_lint,
)
