"""The serving target Triton: a model repository with a config.pbtxt for each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.target import (
    Finding,
    Foreseen,
    Package,
    Request,
    Serving,
    Target,
    flag,
    without_neuron,
    without_rtx,
)
from llmcompile.packaging.triton.generations import GENERATIONS, generation_of

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

LLMAPI = "1.3"
"""First release of TensorRT-LLM that loads no engines: its backend for Triton loads Hugging Face checkpoints."""
FASTERTRANSFORMER = "fastertransformer-1.4"
"""Last release of the FasterTransformer backend."""

RULES: Mapping[str, str] = MappingProxyType(
    {
        "config": "Every model has a config.pbtxt that Triton reads: known fields, their types, nothing twice.",
        "placeholder": "No value of a template is left unfilled.",
        "name": "A model's name is that of its folder, or left out.",
        "version-folder": "Every model has a folder with a number for its version.",
        "instance-group": "The backends that hold GPUs themselves are in one group of KIND_CPU.",
        "backend": "Every model has a backend that is known, and what that backend loads.",
        "gpt-model-type": "The engine's batching is one that the backend knows.",
        "engine-path": "gpt_model_path, or encoder_model_path, is a folder of the repository with an engine in it.",
        "mount-path": "All paths are in one folder, the one the repository will have on the server.",
        "rank-files": "Each engine has as many rank files as tp x pp, none of them empty.",
        "batch": "max_batch_size is at least 1, at most what the engine was built for, and the same in an ensemble.",
        "beam": "max_beam_width is at most what the engine was built for.",
        "logits": "Logits are declared with the engine's type.",
        "tensors": "The tensors that the backend insists on are declared, with their types.",
        "keys": "Parameters that this release reads without a default are there.",
        "parameters": "Parameters have values that the backend understands and the engine can follow.",
        "decoupled": "Streaming is on or off in all models that answer a request.",
        "gpus": "gpu_device_ids gives each instance tp x pp GPUs, each GPU once.",
        "ensemble": "Each step's model exists, each mapped tensor exists in it, none is missing, and types agree.",
        "model-py": "Models that run in Python have their code.",
        "tokenizer": "tokenizer_dir is a folder of the repository with a tokenizer in it.",
        "runtime": "The server has the version of TensorRT-LLM that built the engine.",
        "fastertransformer": "The FasterTransformer backend's parameters are those of the weights.",
        "model-yaml": "model.yaml names a checkpoint of the repository, its degrees, and what config.pbtxt leaves out.",
    }
)


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """What can be asked of a model repository."""

    ensemble: bool = flag(False, "--ensemble", help="Text in, text out: models for the tokenizer, and an ensemble.")
    bls: bool = flag(False, "--bls", help="The same by a model that calls the others itself.")
    model_py: str | None = flag(
        None,
        "--model-py",
        help="Folder with the code of NVIDIA's Python models: all_models, or a clone.",
        metavar="DIR",
    )
    mount_path: str = flag("/models", "--mount-path", help="Folder of the repository on the server.", metavar="PATH")
    streaming: bool = flag(False, "--streaming", help="Answer token by token: decoupled.")
    max_batch_size: int | None = flag(
        None, "--max-batch-size", help="Requests in a batch; what was built if not given.", minimum=1
    )
    max_beam_width: int | None = flag(None, "--max-beam-width", help="Beams; what was built if not given.", minimum=1)
    instances: int | None = flag(None, "--instances", help="How many times the model is loaded.", minimum=1)
    gpu_ids: str | None = flag(
        None, "--gpu-ids", help='GPUs of each instance, "0,1;2,3" for two of two.', metavar="IDS"
    )
    kv_cache_free_gpu_mem_fraction: float | None = flag(
        None, "--kv-cache-free-gpu-mem-fraction", help="Part of the free GPU memory that the KV cache takes."
    )
    enable_kv_cache_reuse: bool = flag(
        False, "--enable-kv-cache-reuse", help="Share the KV cache between requests that begin alike."
    )
    batch_scheduler_policy: str | None = flag(
        None,
        "--batch-scheduler-policy",
        help="When a request is begun.",
        choices=("guaranteed_no_evict", "max_utilization"),
    )
    exclude_input_in_output: bool = flag(
        False, "--exclude-input-in-output", help="Answer without the prompt, where no answer is streamed."
    )
    max_queue_delay_microseconds: int = flag(
        0, "--max-queue-delay-microseconds", help="How long a request may wait for others.", minimum=0
    )
    max_queue_size: int = flag(0, "--max-queue-size", help="How many requests may wait; 0 for any number.", minimum=0)
    tensor_parallel: int | None = flag(
        None, "--tensor-parallel", "--tp", help="GPUs each layer of a Hugging Face checkpoint is split over.", minimum=1
    )
    pipeline_parallel: int | None = flag(
        None, "--pipeline-parallel", "--pp", help="Pipeline stages of a Hugging Face checkpoint.", minimum=1
    )


def plan(artifact: Artifact, options: TritonOptions, request: Request) -> Package:
    """As `planning.plan`."""
    from llmcompile.packaging.triton import planning

    return planning.plan(artifact, options, request)


def foresee(foreseen: Foreseen, options: TritonOptions) -> None:
    """As `planning.foresee`."""
    from llmcompile.packaging.triton import planning

    planning.foresee(foreseen, options)


def detect(tree: Tree) -> bool:
    """Whether a folder looks like a model repository: folders with config.pbtxt, and nothing of LMI's."""
    configs = [path for path in tree.files if path.endswith("/config.pbtxt") and path.count("/") == 1]
    return configs != [] and "serving.properties" not in tree.files


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """As `checks.lint`."""
    from llmcompile.packaging.triton.checks import lint as check

    return check(tree, serving)


def prefer(artifact: Artifact, serving: Sequence[str]) -> str | None:
    """The engine's own generation."""
    own = None if artifact.compiler is None else generation_of(artifact.compiler)
    return own if own in serving else None


TARGET: Target[TritonOptions] = Target(
    name="triton",
    title="Triton",
    help="A model repository for Triton Inference Server; its releases are those of TensorRT-LLM.",
    options=TritonOptions,
    releases=(LLMAPI, *GENERATIONS, FASTERTRANSFORMER),
    version_flag=None,
    serves=MappingProxyType({"trtllm-engine": GENERATIONS, "ft": (FASTERTRANSFORMER,), "hf": (LLMAPI,)}),
    refusals=MappingProxyType(
        {
            "trtllm-checkpoint": (
                "it loads engines",
                "llmcompile build trtllm --from-checkpoint ARTIFACT ENGINE, then package ENGINE",
            ),
            **without_neuron("Triton's backends are for GPUs and CPUs"),
            **without_rtx("it has no backend for TensorRT for RTX"),
            "onnx": (
                "a package of it is not made; its onnxruntime backend loads one from a folder that you make",
                'copy ARTIFACT/onnx/* to REPOSITORY/NAME/1/model.onnx/ and write backend: "onnxruntime" into '
                "REPOSITORY/NAME/config.pbtxt; llmcompile package triton takes the checkpoint it was made of",
            ),
        }
    ),
    plan=plan,
    foresee=foresee,
    rules=RULES,
    detect=detect,
    lint=lint,
    prefer=prefer,
)
