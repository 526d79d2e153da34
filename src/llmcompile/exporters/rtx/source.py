"""The model as transformers loads it, from local files alone, with the class of a task."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from llmcompile.checkpoint.folder import read_object
from llmcompile.errors import CheckpointError, Problem, UnsupportedError, collected

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "feature-extraction": "AutoModel",
        "fill-mask": "AutoModelForMaskedLM",
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "multiple-choice": "AutoModelForMultipleChoice",
        "text-generation": "AutoModelForCausalLM",
        "text2text-generation": "AutoModelForSeq2SeqLM",
    }
)
"""The class of transformers for each task."""
TORCH: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded model.

    Attributes:
        model: In eval mode, weights of the type asked for.
        pooler: Whether the pooling layer, if the class has one, was in the checkpoint.
        float32: Weights that transformers keeps in float32 whatever is asked for, by the model's names.
        overflowed: Weight -> elements that are infinite in the type asked for.
        linear: Linear layers but the head: name -> whether the first axis of their weight is that of the outputs.
    """

    model: Any
    pooler: bool
    float32: tuple[str, ...]
    overflowed: Mapping[str, int]
    linear: Mapping[str, bool]


def load(root: Path, task: str, dtype: str, *, trust_remote_code: bool = False) -> Source:
    """Load a model with transformers.

    Args:
        root: The checkpoint.
        task: A key of `CLASSES`.
        dtype: A key of `TORCH`.
        trust_remote_code: Run Python code found in the checkpoint.

    Raises:
        CheckpointError: config.json is malformed, or weights are absent or of another shape; naming all of them.
        UnsupportedError: transformers does not know the model, or has no such class for it.
    """
    with quiet():
        config = _config(root, trust_remote_code)
        auto_class = _auto_class(config, task)
        model, missing = _model(root, auto_class, config, dtype, trust_remote_code)
    lost = [name for name in missing if "pooler." not in name]
    if len(lost) > 0:
        expected, hint = f"a weight of {type(model).__name__}", "give the --task it was saved for, or check --model"
        raise collected(CheckpointError, [Problem(name, "not in the checkpoint", expected, hint) for name in lost])
    named = dict(model.named_parameters())
    wanted = TORCH[dtype]
    return Source(
        model=model,
        pooler=len(missing) == 0,
        float32=tuple(
            name for name, value in named.items() if value.dtype == torch.float32 and wanted != torch.float32
        ),
        overflowed={name: count for name, value in named.items() if (count := int(torch.isinf(value).sum())) > 0},
        linear=_linear(model),
    )


def _linear(model: Any) -> dict[str, bool]:
    """Linear layers whose weights may be quantized: not the head, and none that is tied to an embedding."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    shared = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    found = {}
    for name, module in model.named_modules():
        convolution = type(module).__name__ == "Conv1D"  # GPT-2's, which is a linear layer with a transposed weight
        linear = isinstance(module, torch.nn.Linear) or convolution
        if linear and module is not head and id(module.weight) not in shared:
            found[name] = not convolution
    return found


def _config(root: Path, trust_remote_code: bool) -> Any:
    kind = read_object(root, "config.json").get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(str(root / "config.json"), "no model_type", 'one such as "bert"', "check --model")
    if kind not in transformers.CONFIG_MAPPING and not trust_remote_code:
        found = f"unknown to transformers {transformers.__version__}"
        raise UnsupportedError(kind, found, hint="install a newer transformers")
    try:
        return transformers.AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # a value of another type than it expects breaks wherever it is first used
        raise CheckpointError(
            str(root / "config.json"),
            f"transformers cannot read it ({first_line(error)})",
            f"a config of {kind}",
            "compare it with the published one",
        ) from error


def _auto_class(config: Any, task: str) -> Any:
    auto_class = getattr(transformers, CLASSES[task])
    if type(config) not in auto_class._model_mapping and CLASSES[task] not in getattr(config, "auto_map", {}):
        found = f"{task} of a {config.model_type}"
        raise UnsupportedError("--task", found, "a task that transformers has a class for", "check --task")
    return auto_class


def _model(
    root: Path, auto_class: Any, config: Any, dtype: str, trust_remote_code: bool
) -> tuple[Any, tuple[str, ...]]:
    """The model, and names of weights that the checkpoint lacks."""
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # ModernBERT calls torch.compile where it can
    if auto_class not in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        config.use_cache = False
    settings: dict[str, Any] = {
        "config": config,
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below, by name
        "dtype" if hasattr(config, "dtype") else "torch_dtype": TORCH[dtype],  # torch_dtype before 4.56
    }
    if getattr(config, "attn_logit_softcapping", None) is not None:
        settings["attn_implementation"] = (
            "eager"  # the fused kind has no place for a cap of the scores, and leaves it out
        )
    try:
        model, found = auto_class.from_pretrained(root, **settings)
    except Exception as error:  # a bad size, a damaged file and a faulty class each raise what they like
        raise CheckpointError(
            str(root), f"transformers cannot load it ({first_line(error)})", "", "check --model"
        ) from error
    # Names in transformers 4.50 and later, tuples of a name and two shapes before.
    mismatched = sorted(item if isinstance(item, str) else item[0] for item in found["mismatched_keys"])
    if len(mismatched) > 0:
        expected, hint = "that of config.json", "check config.json's revision"
        problems = [Problem(name, "of another shape in the checkpoint", expected, hint) for name in mismatched]
        raise collected(CheckpointError, problems)
    return model.eval().requires_grad_(False), tuple(sorted(found["missing_keys"]))


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward has an argument of that name."""
    return name in inspect.signature(model.forward).parameters


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ if lines == [] else f"{type(error).__name__}: {lines[0]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and torch from printing; settings and Python's warning filters are as before afterwards."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
