"""Validates a FasterTransformer artifact: the model, as it is and as the runtime must see it, against the files.

Two references are run. The *model* is what transformers computes in float32. The *model as stored* differs from it only
by what the artifact cannot help: weights rounded to its element type, and constants that FasterTransformer has compiled
in. The artifact must agree with the latter to float32 accuracy, which no wrong, swapped or missing number survives; its
distance from the former is that of the two references, measured here, and is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation.checks import Check, StoredWeights
from llmcompile.validation.compare import compare, scale, without_overflow
from llmcompile.validation.fastertransformer import (
    Inputs,
    check_files,
    check_int8,
    embedding_blocks,
    execute,
    execute_int8,
)
from llmcompile.validation.fastertransformer.ini import read_ini
from llmcompile.validation.reference import (
    Reference,
    embedding_tables,
    fixed_tokens,
    prompt_tokens,
    run_reference,
)
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

PROMPT = "The quick brown fox jumps over the lazy dog, and then the engine starts."
ARTIFACT = "FasterTransformer artifact"
EXECUTOR = "FasterTransformer's context path, all ranks, in float32 on CPU"
_BATCH, _SEQUENCE, _DECODER_SEQUENCE = 2, 16, 8
_TORCH: Mapping[str, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})
_GELU = {"gelu": "gelu_new", "gelu_fast": "gelu_new", "gelu_python": "gelu_new"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        folder: The artifact's `<ranks>-gpu` folder.
        ranks: Tensor parallel ranks.
        dtype: Element type of its files.
        stored_dtype: Element type most of the checkpoint's bytes have; the same one means that nothing was rounded.
        checkpoint: Folder of the Hugging Face model.
        weight_files: Its files of weights.
        family: Name of the architecture.
        sizes: Its axes: vocab, layers, positions where it has them.
        activation: The model's activation function.
        norm_eps: The model's normalisation epsilon.
        encoder_only: Whether the artifact holds only an encoder.
        int8: Whether the SmoothQuant set is there.
        overflow_accepted: Whether infinities made by the cast were accepted.
    """

    folder: Path
    ranks: int
    dtype: str
    stored_dtype: str
    checkpoint: Path
    weight_files: tuple[Path, ...]
    family: str
    sizes: Mapping[str, int]
    activation: str
    norm_eps: float
    encoder_only: bool
    int8: bool
    overflow_accepted: bool


def validate(
    subject: Subject, *, atol: float | None, rtol: float | None, trust_remote_code: bool
) -> Iterator[Check | str]:
    """Compare the artifact with the model, one check at a time.

    Args:
        subject: What to validate.
        atol: The user's absolute tolerance against the model as it is; None for one that is measured.
        rtol: The user's relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Yields:
        A `Check` for each comparison, and a sentence for each thing left out.

    Raises:
        MismatchError: A file is missing, has the wrong size, or is one the runtime never opens; config.ini is about
            another model; an embedding is not the checkpoint's.
        CheckpointError: The checkpoint's weights do not fit its config.json.
    """
    problems = check_files(subject.folder, subject.ranks)
    if len(problems) > 0:
        raise collected(MismatchError, problems)
    if subject.int8:
        problems = check_int8(subject.folder, subject.ranks)
        if len(problems) > 0:
            raise collected(MismatchError, problems)
    contradictions = list(_contradictions(subject))
    if len(contradictions) > 0:
        raise collected(MismatchError, contradictions)
    prompt = prompt_tokens(subject.checkpoint, PROMPT, 32, trust_remote_code=trust_remote_code)
    inputs = [("fixed tokens", _fixed(subject, subject.sizes["vocab"]))]
    if prompt.tokens is None:
        yield f"no prompt was tried: {prompt.reason}"
    else:
        inputs.append(("a prompt", prompt.tokens[:, : _longest(subject)]))
    weights = StoredWeights(subject.weight_files)
    passed = True
    for name, tokens in inputs:
        for item in _checks(subject, weights, name, tokens, atol, rtol, trust_remote_code):
            passed &= isinstance(item, str) or not item.decisive or item.comparison.passed
            yield item
    problems = tuple(_table_differences(subject, weights, trust_remote_code)) if passed else ()
    if len(problems) > 0:
        raise collected(MismatchError, problems)


def _contradictions(subject: Subject) -> Iterator[Problem]:
    """Where config.ini speaks of another model, so that nothing can be compared, or numbers are too coarse to tell.

    An epsilon ten times too large moves the outputs of a model with lively weights by less than float32 arithmetic may.
    """
    ini = read_ini(subject.folder / "config.ini")
    section = _SECTIONS.get(subject.family, subject.family)
    if not ini.has_section(section):
        yield Problem(str(ini.path), f"no section [{section}]", f"that of a {subject.family} model", _OTHER_MODEL)
        return
    sizes = {"vocab_size": "vocab", "max_pos_seq_len": "positions", "d_model": "hidden"}
    for key, axis in sizes.items():
        if ini.has(section, key) and axis in subject.sizes and ini.integer(section, key) != subject.sizes[axis]:
            found, expected = ini.text(section, key), f"{subject.sizes[axis]}, as in the model's config.json"
            yield Problem(f"{ini.path}: [{section}] {key}", found, expected, _OTHER_MODEL)
    if ini.has(section, "head_num") and ini.has(section, "size_per_head"):
        width = ini.integer(section, "head_num") * ini.integer(section, "size_per_head")
        if width != subject.sizes["hidden"]:
            expected = f"{subject.sizes['hidden']}, as in the model's config.json"
            yield Problem(f"{ini.path}: [{section}] head_num x size_per_head", str(width), expected, _OTHER_MODEL)
    if ini.has(section, "layernorm_eps") and ini.real(section, "layernorm_eps") != subject.norm_eps:
        found, expected = ini.text(section, "layernorm_eps"), f"{subject.norm_eps:g}, as in the model's config.json"
        yield Problem(f"{ini.path}: [{section}] layernorm_eps", found, expected, "write the model's own epsilon")


_SECTIONS: Mapping[str, str] = MappingProxyType({"gpt2": "gpt", "opt": "gpt", "bloom": "gpt", "t5": "encoder"})
_OTHER_MODEL = "check --model: the artifact seems to be made from another one"


def _table_differences(subject: Subject, weights: StoredWeights, trust_remote_code: bool) -> Iterator[Problem]:
    """Where an embedding file is not the checkpoint's table, cast: the rows of tokens that no run is fed."""
    tables = embedding_tables(
        subject.checkpoint, weights, encoder_only=subject.encoder_only, trust_remote_code=trust_remote_code
    )
    for table in tables:
        found = embedding_blocks(subject.folder, subject.ranks, table.kind)
        if found is None or (table.kind == "tokens" and _projected(subject)):
            continue
        path, blocks = found
        expected = weights.read(table.stored)
        row = table.skip
        for block in blocks:
            wanted = expected[row : row + len(block)].float().to(_TORCH.get(subject.dtype, torch.float32)).float()
            same = (block == wanted) | (block.isnan() & wanted.isnan())
            if not bool(same.all()):
                at = int((~same).any(dim=1).nonzero()[0])
                text = f"row {row + at - table.skip} is not row {row + at} of {table.stored}"
                yield Problem(str(path), text, "the checkpoint's, cast", "partition the model again")
                break
            row += len(block)


def _projected(subject: Subject) -> bool:
    """Whether the embedding is stored as its product with a projection (OPT-350m)."""
    return subject.sizes.get("width", subject.sizes["hidden"]) != subject.sizes["hidden"]


def _longest(subject: Subject) -> int:
    return min(subject.sizes.get("positions", 32), 32)


def _fixed(subject: Subject, vocab: int) -> Tensor:
    return fixed_tokens(vocab, batch=_BATCH, sequence=min(_SEQUENCE, _longest(subject)))


def _checks(
    subject: Subject,
    weights: StoredWeights,
    name: str,
    tokens: Tensor,
    atol: float | None,
    rtol: float | None,
    trust_remote_code: bool,
) -> Iterator[Check | str]:
    decoder = _decoder_tokens(subject, tokens.shape[0])

    def reference(rounded_to: torch.dtype | None, overrides: Mapping[str, object]) -> Reference:
        return run_reference(
            subject.checkpoint,
            weights,
            tokens=tokens,
            decoder_tokens=decoder,
            encoder_only=subject.encoder_only,
            rounded_to=rounded_to,
            overrides=overrides,
            trust_remote_code=trust_remote_code,
        )

    given = atol is not None or rtol is not None
    model = reference(None, {})
    rounded_to = None if subject.dtype == subject.stored_dtype else _TORCH.get(subject.dtype)
    overrides, changes = _compiled_in(subject)
    if rounded_to is not None:
        changes = [f"weights rounded to {subject.dtype}", *changes]
    stored = model if len(changes) == 0 else reference(rounded_to, overrides)
    inputs = Inputs(tokens=tokens, decoder_tokens=decoder, hidden=stored.hidden)
    found = execute(subject.folder, inputs, ranks=subject.ranks)
    if subject.overflow_accepted:
        outputs, found, masked = without_overflow(stored.outputs, found)
        stored = replace(stored, outputs=outputs)
        yield from masked
    tight = {output: _tight(subject, values) for output, values in stored.outputs.items()}
    if len(changes) > 0:
        limits = {
            output: _measured(model.outputs[output], values, tight[output], changes, atol, rtol)
            for output, values in stored.outputs.items()
        }
        yield Check(
            input=name,
            reference="the model in float32",
            comparison=compare(model.outputs, found, limits),
            decisive=given,
        )
        reference_name = f"the model with {' and '.join(changes)}"
    else:
        reference_name = "the model in float32"
        if given:
            tight = {output: _given(limit, atol, rtol) for output, limit in tight.items()}
    yield Check(
        input=name,
        reference=reference_name,
        comparison=compare(stored.outputs, found, tight),
        decisive=len(changes) == 0 or not given,
    )
    if subject.int8:
        yield _int8_check(subject, name, inputs, found)


def _decoder_tokens(subject: Subject, batch: int) -> Tensor | None:
    if subject.family != "t5" or subject.encoder_only:
        return None
    return fixed_tokens(subject.sizes["vocab"], batch=batch, sequence=_DECODER_SEQUENCE, seed=1)


def _compiled_in(subject: Subject) -> tuple[dict[str, object], list[str]]:
    """Config values that FasterTransformer has compiled in, where they differ from the model's, and a phrase for each.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptj/GptJ.h:42, gptneox/GptNeoX.h:43,
    bert/Bert.h:42, t5/T5Encoder.h:57 (epsilons) and kernels/activation_kernels.cu:48-57 (GELU by its tanh formula).
    """
    epsilons = {
        "gptj": ("layer_norm_epsilon", 1e-6),
        "gptneox": ("layer_norm_eps", 1e-5),
        "bert": ("layer_norm_eps", 1e-6),
        "t5": ("layer_norm_epsilon", 1e-6),
    }
    activations = {
        "gpt2": "activation_function",
        "opt": "activation_function",
        "gptj": "activation_function",
        "gptneox": "hidden_act",
        "bert": "hidden_act",
        "t5": "dense_act_fn",
    }
    overrides: dict[str, object] = {}
    changes: list[str] = []
    if subject.family in epsilons:
        key, epsilon = epsilons[subject.family]
        if subject.norm_eps != epsilon:
            overrides[key] = epsilon
            changes.append(f"the runtime's norm epsilon {epsilon:g} instead of {subject.norm_eps:g}")
    if subject.family in activations and subject.activation in _GELU:
        overrides[activations[subject.family]] = _GELU[subject.activation]
        changes.append("the runtime's tanh formula for GELU")
    return overrides, changes


def _tight(subject: Subject, expected: Tensor) -> Tolerance:
    layers = subject.sizes["layers"] + (0 if subject.encoder_only else subject.sizes.get("decoder_layers", 0))
    dtype: Dtype = "fp16" if subject.dtype == "fp16" else "bf16" if subject.dtype == "bf16" else "fp32"
    # A projected embedding (OPT-350m) is stored as one rounded product, which rounding its factors does not reproduce.
    product = dtype != "fp32" and _projected(subject)
    return tolerance(dtype, layers=layers, scale=scale(expected), approximate=False, reference_rounded=not product)


def _measured(
    model: Tensor, stored: Tensor, tight: Tolerance, changes: Sequence[str], atol: float | None, rtol: float | None
) -> Tolerance:
    """What the changes alone do to the model's outputs, and the tight tolerance on top."""
    moved = scale(stored - model)
    reason = f"{' and '.join(changes)} alone move this output of the model by up to {moved:.3g}"
    return _given(Tolerance(atol=moved + tight.atol, rtol=tight.rtol, reason=reason), atol, rtol)


def _given(limit: Tolerance, atol: float | None, rtol: float | None) -> Tolerance:
    if atol is None and rtol is None:
        return limit
    flags = " and ".join(flag for flag, value in (("--atol", atol), ("--rtol", rtol)) if value is not None)
    return Tolerance(atol=0.0 if atol is None else atol, rtol=0.0 if rtol is None else rtol, reason=f"given by {flags}")


def _int8_check(subject: Subject, name: str, inputs: Inputs, expected: Mapping[str, Tensor]) -> Check:
    """The int8 files against the float files: quantization noise is expected, a wrong scale is not."""
    found = execute_int8(subject.folder, inputs, ranks=subject.ranks)
    limits = {
        output: Tolerance(
            atol=_INT8_NOISE * scale(values), rtol=0.0, reason="8-bit weights and activations, by the given scales"
        )
        for output, values in expected.items()
    }
    return Check(
        input=name,
        reference="the artifact's own float files",
        comparison=compare(expected, found, limits),
        decisive=True,
    )


_INT8_NOISE = 0.5
"""Largest error of the int8 run, as a fraction of the largest output. Calibrated scales give 0.02 to 0.1; scales that
clip give more without being wrong, so that this only catches files that are not what they say."""
