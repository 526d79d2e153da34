"""Encoders: a model of transformers with the head of a task, as a static graph whose weights are its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.export import ExportedProgram

from llmcompile.checkpoint.folder import contained, read_object
from llmcompile.checkpoint.headers import strict_json
from llmcompile.errors import CheckpointError, PlanError, Problem, UnsupportedError, collected
from llmcompile.exporters.neuron.lowering.program import Lowered, lower, weights_behind
from llmcompile.exporters.neuron.options import Shapes
from llmcompile.exporters.neuron.signature import ENCODER
from llmcompile.exporters.neuron.tasks import ENCODERS, TOKEN_TYPES, infer_task, positions

NAME = "model"
"""Of an encoder's only graph."""
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "feature-extraction": "AutoModel",
        "fill-mask": "AutoModelForMaskedLM",
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "multiple-choice": "AutoModelForMultipleChoice",
    }
)
"""The class of transformers for each task."""
_MODE = "pooling_mode_"
_OPTIMUM = "add --via optimum, if optimum-neuron supports the model"
_TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"s32": torch.int32, "s16": torch.int16, "s8": torch.int8, "u8": torch.uint8, "pred": torch.bool}
)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model in eval mode and its graph.

    Attributes:
        program: The graph; its parameters and buffers are the model's, by the model's names.
        input_names: Of its inputs, in order; each int32, (batch, sequence) or (batch, choices, sequence).
        output_names: Of its outputs, as transformers calls them, those of a tuple "hidden_states.0" and so on; None for
            one that is left out.
        notes: Sentences worth knowing before deploying.
    """

    program: ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str | None, ...]
    notes: tuple[str, ...]


def build(
    root: Path,
    task: str,
    shapes: Shapes,
    dtype: str,
    *,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a model with transformers, from local files alone, and export its graph.

    An output that depends on weights the checkpoint lacks, which transformers would make up, is left out with a note:
    the pooler of a model that was saved without one.

    Args:
        root: The checkpoint.
        task: One of `ENCODER_TASKS`.
        shapes: With batch_size and sequence_length, and num_choices for multiple-choice.
        dtype: "float32", "float16" or "bfloat16": of weights and arithmetic.
        output_hidden_states: Whether the states after the embeddings and every layer are outputs.
        output_attentions: Whether every layer's attention weights are outputs.
        trust_remote_code: Run Python code found in the checkpoint.

    Raises:
        CheckpointError: config.json is malformed, or weights that the first output needs are absent or of another
            shape; naming all of them.
        UnsupportedError: transformers does not know the model or has no such head for it, or it cannot be traced.
        PlanError: The model has fewer positions than the sequence.
    """
    with _quiet():
        config = _config(root, read_object(root, "config.json"), trust_remote_code)
        _check_positions(config, shapes)
        config.return_dict = True
        config.output_hidden_states = output_hidden_states
        if hasattr(config, "reference_compile"):
            config.reference_compile = False  # ModernBERT calls torch.compile where it can
        model, missing = _model(root, config, task, dtype, output_attentions, trust_remote_code)
        inputs = _inputs(config, task, shapes)
        program, names = _exported(model, inputs)
    behind = weights_behind(program)
    lost = [missing & behind[place] for place in range(len(names))]
    if len(lost[0]) > 0:
        raise collected(CheckpointError, _missing_problems(sorted(lost[0]), model, task, config))
    notes = [
        f"{name} is left out: the checkpoint has no {', '.join(sorted(gone))}"
        for name, gone in zip(names, lost, strict=True)
        if len(gone) > 0
    ]
    if config.model_type not in ENCODERS:
        notes.append(f"{config.model_type} is not among the model types this was tried on: {', '.join(ENCODERS)}")
    if task == "feature-extraction":
        notes += _later_modules(root)
    return Encoder(
        program=program,
        input_names=tuple(inputs),
        output_names=tuple(name if len(gone) == 0 else None for name, gone in zip(names, lost, strict=True)),
        notes=tuple(notes),
    )


def export_encoder(encoder: Encoder) -> Lowered:
    """Lower the graph; for one core.

    Raises:
        UnsupportedError: An operator of it has no lowering.
    """
    return lower(
        encoder.program,
        name=NAME,
        kind=ENCODER,
        ranks=1,
        input_names=encoder.input_names,
        output_names=encoder.output_names,
        states=(),
    )


def weights(encoder: Encoder, lowered: Lowered) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file of weights, in the order of the graph's parameters and in their element types.

    They share memory with the model where the type is its own.
    """
    for value in lowered.signature.weights:
        stored = encoder.program.state_dict.get(value.name)
        tensor = lowered.constants[value.name] if stored is None else stored
        wanted = torch.float32 if tensor.dtype == torch.float64 else _TORCH_DTYPES.get(value.dtype, tensor.dtype)
        yield value.name, tensor.detach().to(wanted).contiguous()


def _config(root: Path, settings: Mapping[str, Any], trust_remote_code: bool) -> Any:
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(str(root / "config.json"), "no model_type", 'one such as "bert"', "check --model")
    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" not in settings:
            found = f"unknown to transformers {transformers.__version__}"
            raise UnsupportedError(kind, found, hint="install a newer transformers")
        if not trust_remote_code:
            hint = "read the code, then allow it with --trust-remote-code"
            raise UnsupportedError(kind, "the model is Python code beside the checkpoint", "leave to run it", hint)
    try:
        return transformers.AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # a value of another type than it expects breaks wherever it is first used
        raise CheckpointError(
            str(root / "config.json"),
            f"transformers cannot read it ({_first_line(error)})",
            f"a config of {kind}",
            "compare it with the published one",
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ if lines == [] else f"{type(error).__name__}: {lines[0]}"


def _check_positions(config: Any, shapes: Shapes) -> None:
    limit, length = positions(config.to_dict()), shapes.sequence_length
    if limit is not None and length is not None and length > limit:
        raise PlanError(
            "--sequence-length", str(length), f"at most {limit}, the model's positions", f"--sequence-length {limit}"
        )


def _model(
    root: Path, config: Any, task: str, dtype: str, output_attentions: bool, trust_remote_code: bool
) -> tuple[Any, frozenset[str]]:
    """The model with its weights, and the names of those that the checkpoint lacks."""
    settings: dict[str, Any] = {
        "config": config,
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below, by name
        "dtype" if hasattr(config, "dtype") else "torch_dtype": getattr(torch, dtype),  # torch_dtype before 4.56
    }
    if output_attentions:
        config.output_attentions = True
        settings["attn_implementation"] = "eager"  # the other kinds never have the weights
    auto_class = _auto_class(config, task)
    try:
        model, found = auto_class.from_pretrained(root, **settings)
    except Exception as error:  # a bad size, a damaged file and a faulty class each raise what they like
        raise CheckpointError(
            str(root), f"transformers cannot load it ({_first_line(error)})", f"a model for {task}", "check --model"
        ) from error
    # Names in transformers 4.50 and later, tuples of a name and two shapes before.
    mismatched = sorted(item if isinstance(item, str) else item[0] for item in found["mismatched_keys"])
    if len(mismatched) > 0:
        state = model.state_dict()
        raise collected(CheckpointError, [_mismatch(name, state.get(name)) for name in mismatched])
    return model.eval().requires_grad_(False), _with_tied(model, found["missing_keys"])


def _with_tied(model: Any, names: Collection[str]) -> frozenset[str]:
    """Parameters of those names, under every name that they have."""
    named = list(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in named if name in names}
    return frozenset(names) | {name for name, parameter in named if id(parameter) in chosen}


def _mismatch(name: str, built: Tensor | None) -> Problem:
    expected = "" if built is None else f"{tuple(built.shape)}, by config.json"
    return Problem(name, "of another shape in the checkpoint", expected, "check config.json's revision")


def _auto_class(config: Any, task: str) -> Any:
    auto_class = getattr(transformers, CLASSES[task])
    if task == "feature-extraction" and getattr(config, "is_encoder_decoder", False):
        auto_class = transformers.AutoModelForTextEncoding
    known = type(config) in auto_class._model_mapping or CLASSES[task] in getattr(config, "auto_map", {})
    if not known:
        raise UnsupportedError(
            "--task",
            f"{task} of a {config.model_type}",
            "a task that transformers has a class for",
            "llmcompile export neuron --list-tasks MODEL lists them",
        )
    return auto_class


def _inputs(config: Any, task: str, shapes: Shapes) -> dict[str, Tensor]:
    assert shapes.batch_size is not None
    assert shapes.sequence_length is not None
    size = [shapes.batch_size, shapes.sequence_length]
    if task == "multiple-choice":
        assert shapes.num_choices is not None
        size.insert(1, shapes.num_choices)
    ones = torch.ones(size, dtype=torch.int32)
    inputs = {"input_ids": ones, "attention_mask": ones.clone()}
    unknown = config.model_type not in ENCODERS
    if config.model_type in TOKEN_TYPES or (unknown and getattr(config, "type_vocab_size", 0) > 1):
        inputs["token_type_ids"] = torch.zeros_like(ones)
    return inputs


def _exported(model: Any, inputs: Mapping[str, Tensor]) -> tuple[ExportedProgram, Sequence[str]]:
    """The graph of `model`, and the names of its outputs."""
    names: list[str] = []
    forward = model.forward

    def flat(**given: Tensor) -> tuple[Tensor, ...]:
        named = dict(_flat(forward(**given)))
        names[:] = named
        return tuple(named.values())

    # On the model itself rather than on a module around it, so that weights keep their names.
    model.forward = flat
    try:
        with torch.no_grad():
            return torch.export.export(model, (), dict(inputs), strict=False), names
    except Exception as error:  # whatever a model's own code raises when it is traced
        found = f"torch.export cannot trace it ({_first_line(error)})"
        raise UnsupportedError(type(model).__name__, found, f"a model of {', '.join(ENCODERS)}", _OPTIMUM) from error
    finally:
        model.forward = forward


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in found.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{index}", each) for index, each in enumerate(value))


def _missing_problems(names: Sequence[str], model: Any, task: str, config: Any) -> list[Problem]:
    saved_for = infer_task(config.to_dict())
    hint = f"--task {saved_for}, which it was saved for" if saved_for not in (None, task) else "check --model"
    return [Problem(name, "not in the checkpoint", f"a weight of {type(model).__name__}", hint) for name in names]


def _later_modules(root: Path) -> Iterator[str]:
    """What a sentence-transformers model does with the states of its transformer, as a note."""
    try:
        modules = strict_json(contained(root, "modules.json").read_bytes(), "modules.json")
        later = [_module(root, str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]
    except (OSError, CheckpointError, TypeError, KeyError):
        return  # not a sentence-transformers model, or none that we could say something about
    if len(later) > 1:
        yield f"modules.json goes on with {', '.join(later[1:])}: not in the graph, apply it to last_hidden_state"


def _module(root: Path, name: str, path: str) -> str:
    if name != "Pooling":
        return name
    settings = read_object(root, f"{path}/config.json")
    modes = [key.removeprefix(_MODE) for key, on in settings.items() if key.startswith(_MODE) and on is True]
    return f"{name} ({', '.join(modes)})"


@contextmanager
def _quiet() -> Iterator[None]:
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
