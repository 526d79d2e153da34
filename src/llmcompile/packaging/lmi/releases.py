"""What each release of LMI runs: handlers, the versions of the vendors' runtimes in its images, its layouts.

Source: deepjavalibrary/djl-serving, branch <release>-dlc at the commit named: serving/docker/*.Dockerfile and
requirements for versions, engines/python/setup/djl_python for handlers, MpiEngineProvider.java (before 0.23
DsEngineProvider.java) for engines, LmiUtils.java (isValidTrtLlmModelRepo) for the layout of engines, and serving/docs
of every branch for tags of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FT = "djl_python.fastertransformer"
TRT_ROLLING = "djl_python.tensorrt_llm"
TRT_ASYNC = "djl_python.lmi_trtllm.trtllm_async_service"
NEURON = "djl_python.transformers_neuronx"
VLLM = "djl_python.lmi_vllm.vllm_async_service"
HUGGING_FACE = "djl_python.huggingface"
DEEPSPEED = "djl_python.deepspeed"
MOUNT = "/opt/ml/model"
"""Where SageMaker puts model.tar.gz or an S3 prefix, and LMI's containers look."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of LMI.

    Attributes:
        commit: Of its -dlc branch, as it was read.
        engines: Values of `engine`.
        handlers: Values of `option.entryPoint` that are part of the image and can start.
        tensorrt_llm: Version in its TensorRT-LLM image; None without one.
        engine_layout: How an engine lies: in a folder with config.pbtxt, or flat beside serving.properties.
        neuronx_cc: Version in its Neuron image; None without one.
        vllm: Version in its image; None where this project does not package for it.
        engine_image: Tag of its TensorRT-LLM image; None where djl-serving's documentation names none.
        neuron_image: Tag of its Neuron image, likewise.
    """

    commit: str
    engines: tuple[str, ...]
    handlers: tuple[str, ...]
    tensorrt_llm: str | None = None
    engine_layout: Literal["repository", "flat"] | None = None
    neuronx_cc: str | None = None
    vllm: str | None = None
    engine_image: str | None = None
    neuron_image: str | None = None


_MPI = ("Python", "MPI")
_OLD = ("Python", "MPI", "DeepSpeed")
_SERVED = (HUGGING_FACE, TRT_ROLLING, NEURON)
RELEASES: Mapping[str, Release] = MappingProxyType(
    {
        "0.36": Release(
            commit="7e13b081",
            engines=_MPI,
            handlers=(HUGGING_FACE, VLLM),
            tensorrt_llm="1.0.0",
            engine_layout="flat",
            vllm="0.12.0 to 0.23.1",
        ),
        "0.35": Release(
            commit="25cab8ab",
            engines=_MPI,
            handlers=(HUGGING_FACE, VLLM),
            tensorrt_llm="1.0.0",
            engine_layout="flat",
            vllm="0.11.1",
        ),
        "0.34": Release(
            commit="63a6dcf3",
            engines=_MPI,
            handlers=(*_SERVED, VLLM),
            tensorrt_llm="0.12.0",
            engine_layout="repository",
            neuronx_cc="2.16.372.0",
            vllm="0.10.2",
        ),
        "0.33": Release(
            commit="8b3b685b",
            engines=_MPI,
            handlers=(HUGGING_FACE, TRT_ASYNC, NEURON, VLLM),
            tensorrt_llm="0.21.0rc1",
            engine_layout="flat",
            neuronx_cc="2.16.372.0",
            vllm="0.8.4",
            engine_image="0.33.0-tensorrtllm0.21.0-cu128",
        ),
        "0.32": Release(
            commit="3d6ad832",
            engines=_MPI,
            handlers=_SERVED,
            tensorrt_llm="0.12.0",
            engine_layout="repository",
            neuronx_cc="2.16.372.0",
            engine_image="0.32.0-tensorrtllm0.12.0-cu125",
        ),
        "0.31": Release(
            commit="2389a1bb",
            engines=_MPI,
            handlers=_SERVED,
            tensorrt_llm="0.12.0",
            engine_layout="repository",
            neuronx_cc="2.15.141.0",
        ),
        "0.30": Release(
            commit="fefd40ec",
            engines=_MPI,
            handlers=_SERVED,
            tensorrt_llm="0.12.0",
            engine_layout="repository",
            neuronx_cc="2.15.141.0",
            engine_image="0.30.0-tensorrtllm0.12.0-cu125",
            neuron_image="0.30.0-neuronx-sdk2.20.1",
        ),
        "0.29": Release(
            commit="58eb48b6",
            engines=_MPI,
            handlers=_SERVED,
            tensorrt_llm="0.11.0",
            engine_layout="repository",
            neuronx_cc="2.14.227.0",
            engine_image="0.29.0-tensorrtllm0.11.0-cu124",
            neuron_image="0.29.0-neuronx-sdk2.19.1",
        ),
        "0.28": Release(
            commit="7805e155",
            engines=_MPI,
            handlers=_SERVED,
            tensorrt_llm="0.9.0",
            engine_layout="repository",
            neuronx_cc="2.13.72.0",
            engine_image="0.28.0-tensorrtllm0.9.0-cu122",
            neuron_image="0.28.0-neuronx-sdk2.18.2",
        ),
        "0.27": Release(
            commit="049a929b",
            engines=_OLD,
            handlers=(*_SERVED, DEEPSPEED),
            tensorrt_llm="0.8.0",
            engine_layout="repository",
            neuronx_cc="2.13.68.0",
            engine_image="0.27.0-tensorrtllm0.8.0-cu122",
            neuron_image="0.27.0-neuronx-sdk2.18.0",
        ),
        "0.26": Release(
            commit="1635512c",
            engines=_OLD,
            handlers=(*_SERVED, DEEPSPEED),
            tensorrt_llm="0.7.1",
            engine_layout="repository",
            neuronx_cc="2.12.54.0",
            engine_image="0.26.0-tensorrtllm0.7.1-cu122",
        ),
        "0.25": Release(
            commit="7734dc58",
            engines=_OLD,
            handlers=(*_SERVED, DEEPSPEED),
            tensorrt_llm="0.5.0",
            engine_layout="repository",
            neuronx_cc="2.11.0.35",
            engine_image="0.25.0-tensorrtllm0.5.0-cu122",
        ),
        "0.24": Release(
            commit="7fa3694c",
            engines=(*_OLD, "FasterTransformer"),
            handlers=(HUGGING_FACE, FT, NEURON, DEEPSPEED),
            neuronx_cc="2.11.0.34",
        ),
        "0.23": Release(
            commit="07673c54",
            engines=(*_OLD, "FasterTransformer"),
            handlers=(HUGGING_FACE, FT, DEEPSPEED),
        ),
        "0.22": Release(
            commit="72eed0f1",
            engines=("Python", "DeepSpeed", "FasterTransformer"),
            handlers=(HUGGING_FACE, FT, DEEPSPEED),
        ),
    }
)
"""Newest first."""
BROKEN_HANDLERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {TRT_ASYNC: ("0.36", "0.35"), TRT_ROLLING: ("0.36", "0.35", "0.33")}
)
"""In these releases the file is there and cannot start. trtllm_async_service.py@7e13b081:122-128 and @63786613 passes
tensor_parallel_size and three more arguments of LLM() twice, which is a TypeError; tensorrt_llm.py needs
tensorrt_llm_toolkit, which these images do not install."""

FT_MODELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "t5": ("0.24", "0.23", "0.22"),
        "gpt2": ("0.24", "0.23", "0.22"),
        "opt": ("0.24", "0.23", "0.22"),
        "gpt_neox": ("0.24", "0.23", "0.22"),
        "bloom": ("0.24", "0.23", "0.22"),
        "gptj": ("0.24", "0.23"),
        "llama": ("0.24",),
    }
)
"""Model type -> releases. Source: rohithkrn/FasterTransformer@8622699:python/fastertransformer/__init__.py; GPT-J
refuses to work but through Triton (gptjmodel.py), which the handler has from 0.23; LLaMA is in djl-serving@7fa3694c:
tests/integration/llm/prepare.py (ft_handler_list) alone, through Triton; that release's loader is not public."""
FT_THROUGH_TRITON = ("gptj", "llama")
"""These load with engine=Python, with which the handler asks for Triton (fastertransformer.py: use_triton)."""
FT_WEIGHTS: Mapping[str, str] = MappingProxyType({"fp16": "fp16", "int8": "fp16", "fp32": "fp32", "bf16": "fp32"})
"""option.dtype -> element type of the files. Source: rohithkrn/FasterTransformer@8622699:python/fastertransformer/
ftmodel.py (set_data_type)."""
NEURON_MODELS = ("opt", "gpt2", "gptj", "gpt_neox", "llama", "mistral", "mixtral", "bloom")
"""Source: djl-serving@3d6ad832:engines/python/setup/djl_python/neuron_utils/model_loader.py
(TNXModelLoader.MODEL_TYPE_TO_CLS_LOADER)."""
MODEL_LOADING_SECONDS: Mapping[str, int] = MappingProxyType({"engine": 1800, "neuron": 3600})
"""LMI stops a worker that is not ready by then: 240 or 1800 unless it is told; Neuron compiles in this time."""


def major(version: str) -> tuple[int, ...]:
    """The numbers of a release, to compare two."""
    return tuple(int(part) for part in version.split("."))


def without_build(version: str) -> str:
    """neuronx-cc's version without the build behind a plus sign, which images do not state."""
    return version.partition("+")[0]
