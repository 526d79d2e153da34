"""Proves an ONNX model before an engine is built of it: the very file, by ONNX Runtime on CPU, beside the model.

What is proved apart:

    the graph and its weights    in float32 arithmetic, against the model with its weights as the artifact keeps them:
                                 rounded to 16 bits, and quantized by code that is not the exporter's; tight
    the graph's own arithmetic   as it is, against the same; the limit is what 16-bit arithmetic does to the model in
                                 transformers
    rounding and quantization    against the model in float32; informs, unless the user gave a limit

ONNX Runtime has no bf16 arithmetic on CPU. A bf16 graph is computed in float32, and every value of it is rounded to
bf16 right after it was computed, which is what an engine does, but for sums inside one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from llmcompile import onnx_model
from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation import ort, reference
from llmcompile.validation.checks import Check, StoredWeights
from llmcompile.validation.compare import compare, scale
from llmcompile.validation.reference import Facts, fixed_tokens, prompt_tokens
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

ARTIFACT: Final = "ONNX model"
EXECUTOR: Final = "the ONNX files themselves, by ONNX Runtime on CPU"
MODEL: Final = "the model in float32"
PROMPT: Final = "The quick brown fox jumps over the lazy dog, and then the engine starts."
DECODER_TASK: Final = "text-generation"
SEQ2SEQ_TASK: Final = "text2text-generation"
GREEDY: Final = 32
"""Tokens a decoder chooses by itself."""
PROMPT_TOKENS: Final = 12
MARGIN: Final = 8.0
"""How many times farther than transformers' own 16-bit arithmetic the graph's may be from exact arithmetic."""
_COSINE: Final = 1e-3
_BLOCK: Final = 128
_TORCH: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)
_RUN: Final = "in float32 arithmetic"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        graphs: Name -> file: "model", or "encoder" and "decoder".
        checkpoint: Folder of the model it was made from.
        weight_files: Its files of weights.
        task: "text-generation", "text2text-generation" or one of `reference.TASKS`.
        dtype: Element type of weights and arithmetic: fp32, fp16 or bf16.
        stored_dtype: Element type most of the checkpoint's bytes have.
        quantization: "int8", "int4", "fp8" or None.
        quantized: Weights that are, by the model's names.
        float32: Weights that transformers keeps in float32.
        longest: Most tokens of a sequence the artifact is for; of a decoder, prompt and answer together.
        choices: Answers of multiple-choice.
    """

    graphs: Mapping[str, Path]
    checkpoint: Path
    weight_files: tuple[Path, ...]
    task: str
    dtype: Dtype
    stored_dtype: str
    quantization: str | None = None
    quantized: frozenset[str] = frozenset()
    float32: frozenset[str] = frozenset()
    longest: int = 64
    choices: int = 4

    @property
    def narrow(self) -> torch.dtype | None:
        """The type of the arithmetic if it has 16 bits."""
        return None if self.dtype == "fp32" else _TORCH[self.dtype]

    @property
    def changed(self) -> bool:
        """Whether weights are kept as something else than the checkpoint has."""
        return self.quantization is not None or (self.narrow is not None and self.dtype != self.stored_dtype)

    @property
    def kept(self) -> str:
        """The model that is proved to be in the artifact."""
        if not self.changed:
            return MODEL
        rounded = [] if self.dtype in ("fp32", self.stored_dtype) else [f"rounded to {self.dtype}"]
        quantized = [] if self.quantization is None else [f"quantized to {self.quantization}"]
        return f"the model with weights {' and '.join([*rounded, *quantized])}"


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
        MismatchError: A graph does not run, or an embedding is not the checkpoint's.
        CheckpointError: The checkpoint's weights do not fit its config.json.
    """
    facts = reference.describe(subject.checkpoint, trust_remote_code=trust_remote_code)
    weights = StoredWeights(subject.weight_files)
    opened = Opened(subject, facts, weights, atol, rtol, trust_remote_code)
    if subject.dtype == "bf16":
        yield "ONNX Runtime has no bf16 arithmetic: the graph ran in float32, each value rounded to bf16 as it was made"
    if subject.task == DECODER_TASK:
        yield from _decoder(opened)
    elif subject.task == SEQ2SEQ_TASK:
        yield from _encoder_decoder(opened)
    else:
        yield from _encoder(opened)
    _check_weights(opened)


@dataclass(frozen=True)
class Opened:
    """An artifact and the model beside it."""

    subject: Subject
    facts: Facts
    weights: StoredWeights
    atol: float | None
    rtol: float | None
    trust_remote_code: bool

    @property
    def given(self) -> bool:
        """Whether the user gave a tolerance."""
        return self.atol is not None or self.rtol is not None

    def prompt(self, most: int) -> tuple[Tensor | None, str]:
        """A text as tokens, or why there is none."""
        found = prompt_tokens(self.subject.checkpoint, PROMPT, most, trust_remote_code=self.trust_remote_code)
        return found.tokens, "" if found.tokens is not None else f"no prompt was tried: {found.reason}"

    def variants(self, graph: str) -> dict[str, ort.Session]:
        """The graph as it is and, of 16 bits, in float32 arithmetic."""
        path = self.subject.graphs[graph]
        if self.subject.narrow is None:
            return {"as it is": ort.Session(path)}
        model = onnx_model.load(path)
        scales = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        # A quantized weight is rounded where it is multiplied with its scale, whatever the arithmetic.
        wide = ort.Session(path, wide=True, rounding=scales)
        if self.subject.dtype == "fp16":
            return {"as it is": ort.Session(path), "wide": wide}
        every = {name for node in model.graph.node for name in node.output}
        return {"as it is": ort.Session(path, wide=True, rounding=every), "wide": wide}

    def stored_as(self, name: str, values: Tensor, module: nn.Module) -> Tensor:
        """A parameter as the artifact keeps it, by the format's rules."""
        subject = self.subject
        if not values.is_floating_point():
            return values
        rounded = values.to(torch.float32 if name in subject.float32 else _TORCH[subject.dtype])
        if subject.quantization is None or name not in subject.quantized:
            return rounded
        # GPT-2's layers have (inputs, outputs), all others (outputs, inputs).
        axis = 0 if type(module).__name__ == "Conv1D" else 1
        return _requantized(rounded, subject.quantization, axis)

    def expected(self, run: Callable[..., Mapping[str, Tensor]]) -> _Expected:
        """What the model gives, as it is, with the artifact's weights and, of 16 bits, in that arithmetic."""
        model = run()
        stored = run(stored_as=self.stored_as) if self.subject.changed else model
        narrow = None
        if self.subject.narrow is not None:
            try:
                narrow = run(stored_as=self.stored_as, arithmetic=self.subject.narrow)
            except RuntimeError:
                narrow = None  # transformers, or PyTorch on CPU, lacks the code
        return _Expected(model, stored, narrow)

    def judge(self, name: str, expected: _Expected, found: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Check]:
        """Compare what all variants of the graph gave."""
        subject, outputs = self.subject, found["as it is"]
        limits = {output: self._limit(expected, output) for output in expected.stored}
        if subject.changed:
            moved = {
                output: self.asked() if self.given else self._moved(expected, output, limits[output])
                for output in expected.stored
            }
            yield Check(
                input=name, reference=MODEL, comparison=compare(expected.model, outputs, moved), decisive=self.given
            )
        elif self.given:
            limits = {output: self.asked() for output in limits}
        yield Check(
            input=name,
            reference=subject.kept,
            comparison=compare(expected.stored, outputs, limits),
            decisive=not (subject.changed and self.given),
        )
        if "wide" in found:
            tight = {output: self._constants(values) for output, values in expected.stored.items()}
            yield Check(
                input=f"{name}, {_RUN}",
                reference=subject.kept,
                comparison=compare(expected.stored, found["wide"], tight),
                decisive=not self.given,
            )

    def _tight(self, values: Tensor) -> Tolerance:
        return tolerance("fp32", layers=self.facts.layers, scale=scale(values), approximate=False)

    def _constants(self, values: Tensor) -> Tolerance:
        """For float32 arithmetic with constants of 16 bits, as the scale of attention is."""
        dtype, layers = self.subject.dtype, self.facts.layers
        found = tolerance(dtype, layers=layers, scale=scale(values), approximate=False)
        return replace(found, reason=found.reason.replace("weights rounded", "constants of the graph rounded"))

    def _limit(self, expected: _Expected, output: str) -> Tolerance:
        values, dtype = expected.stored[output], self.subject.dtype
        if self.subject.narrow is None:
            return self._tight(values)
        derived = tolerance("fp32", layers=self.facts.layers, scale=scale(values), approximate=False, arithmetic=dtype)
        if expected.narrow is None:
            return derived
        moved = MARGIN * scale(expected.narrow[output] - values)
        if moved <= derived.atol:
            return derived
        reason = f"{MARGIN:g} times what {dtype} arithmetic does to this output of the model in transformers"
        return Tolerance(atol=moved, rtol=derived.rtol, reason=reason)

    def _moved(self, expected: _Expected, output: str, limit: Tolerance) -> Tolerance:
        moved = scale(expected.stored[output] - expected.model[output])
        reason = f"{self.subject.kept.removeprefix('the model with ')} alone move this output by up to {moved:.3g}"
        return Tolerance(atol=moved + limit.atol, rtol=limit.rtol, reason=reason)

    def asked(self) -> Tolerance:
        """The user's tolerance."""
        flags = [flag for flag, value in (("--atol", self.atol), ("--rtol", self.rtol)) if value is not None]
        atol, rtol = (0.0 if value is None else value for value in (self.atol, self.rtol))
        return Tolerance(atol=atol, rtol=rtol, reason=f"given by {' and '.join(flags)}")


@dataclass(frozen=True)
class _Expected:
    """What the model gives, output by output; `narrow` is None in float32, or where it could not be run."""

    model: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    narrow: Mapping[str, Tensor] | None


def _requantized(weight: Tensor, recipe: str, inputs: int) -> Tensor:
    """What is left of a weight in few bits: the nearest multiple of its scale, in the weight's own type.

    Written against ONNX's DequantizeLinear, not against the exporter: scale = largest magnitude / largest value.

    Args:
        weight: Shape (outputs, inputs) with `inputs` 1, or the reverse with 0.
        recipe: "int8", "int4" or "fp8".
        inputs: Axis of the inputs.
    """
    rows = weight.float() if inputs == 1 else weight.float().T
    groups = rows.reshape(rows.shape[0], -1, _BLOCK if recipe == "int4" else rows.shape[1])
    most = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}[recipe]
    peaks = groups.abs().amax(-1, keepdim=True)
    steps = torch.where(peaks > 0, peaks / most, torch.ones_like(peaks)).to(weight.dtype).float()
    steps = steps.clamp(min=2.0**-24)
    units = (groups / steps).clamp(-most, most)
    units = units.to(torch.float8_e4m3fn).float() if recipe == "fp8" else units.round()
    back = (units * steps).to(weight.dtype).reshape(rows.shape)
    return back if inputs == 1 else back.T.contiguous()


# Encoders


def _encoder(opened: Opened) -> Iterator[Check | str]:
    sessions = opened.variants("model")
    prompt, reason = opened.prompt(PROMPT_TOKENS)
    if reason != "":
        yield reason
    for name, inputs in feeds(opened, next(iter(sessions.values())), prompt):
        run = partial(
            reference.run_task,
            opened.subject.checkpoint,
            opened.weights,
            task=opened.subject.task,
            inputs=inputs,
            trust_remote_code=opened.trust_remote_code,
        )
        expected = opened.expected(run)
        found = {variant: session.run(inputs) for variant, session in sessions.items()}
        yield from opened.judge(name, expected, found)
        yield from _cosine(name, inputs["attention_mask"], expected.model, found["as it is"])


def feeds(
    opened: Opened, session: Runs, prompt: Tensor | None, shapes: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """A single token, a batch of which one row is padded, and a text; or `shapes` of (batch, sequence)."""
    facts, longest = opened.facts, min(16, opened.subject.longest)
    names = [value.name for value in session.inputs]
    several = opened.subject.choices if opened.subject.task == "multiple-choice" else 0

    def fed(tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        rows = {"input_ids": tokens, "attention_mask": mask}
        if "token_type_ids" in names:
            half = torch.arange(tokens.shape[1]) >= tokens.shape[1] // 2
            rows["token_type_ids"] = half.long().expand_as(tokens) % max(facts.types, 1)
        if several == 0:
            return rows
        return {name: values.reshape(-1, several, values.shape[1]) for name, values in rows.items()}

    times = max(several, 1)
    for batch, length in shapes if len(shapes) > 0 else ((1, 1), (2, longest)):
        tokens = fixed_tokens(facts.vocab, batch=batch * times, sequence=length)
        mask = torch.ones_like(tokens)
        padded = ""
        if batch > 1 and length > 2:
            mask[-1, length // 2 :] = 0
            tokens[-1, length // 2 :] = facts.pad
            padded = ", one row padded"
        yield f"{batch} x {length} fixed tokens{padded}", fed(tokens, mask)
    if prompt is not None:
        text = prompt[:, : opened.subject.longest].expand(times, -1).contiguous()
        yield f"a text of {text.shape[1]} tokens", fed(text, torch.ones_like(text))


def _cosine(name: str, mask: Tensor, model: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[Check]:
    """How alike embeddings of texts are, which is what most encoders without a head are for."""
    states = "last_hidden_state"
    if states not in model or states not in found or model[states].shape != found[states].shape:
        return

    def pooled(values: Tensor) -> Tensor:
        kept = mask[:, :, None].float()
        return nn.functional.normalize((values * kept).sum(1) / kept.sum(1), dim=1)

    cosine = (pooled(model[states]) * pooled(found[states])).sum(1)
    output = "cosine of mean-pooled embeddings"
    limit = Tolerance(atol=_COSINE, rtol=0.0, reason="below this, rankings of texts hardly change")
    comparison = compare({output: torch.ones_like(cosine)}, {output: cosine}, {output: limit})
    yield Check(input=name, reference=MODEL, comparison=comparison, decisive=False)


# Decoders


class Runs(Protocol):
    """A graph that can be run: `ort.Session`, or one whose calls are noted."""

    @property
    def inputs(self) -> Sequence[onnx_model.Value]:
        """What it takes."""

    def run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it gives."""


@dataclass
class Talk:
    """A decoder's session with its caches: rows of tokens, each padded on the left.

    Attributes:
        session: The graph.
        fixed: Inputs that stay: those of an encoder.
        batch: Rows.
        ids: Name of the input of tokens.
        mask: Which tokens of the past are real.
        caches: Keys and values so far.
    """

    session: Runs
    batch: int
    ids: str = "input_ids"
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor = field(default_factory=lambda: torch.zeros(0))
    caches: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mask = torch.zeros((self.batch, 0), dtype=torch.int64)
        for value in self.session.inputs:
            if value.name.startswith("past_key_values."):
                _, heads, _, size = value.shape
                self.caches[value.name] = torch.zeros((self.batch, int(heads), 0, int(size)))

    def say(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Feed tokens, (batch, n), of which `real` are no padding; the logits at the last position, (batch, vocab)."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens) if real is None else real], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        given = {self.ids: tokens, "attention_mask": self.mask, "position_ids": positions, **self.caches, **self.fixed}
        found = self.session.run(given)
        for name in self.caches:
            self.caches[name] = found[name.replace("past_key_values", "present")]
        return found["logits"][:, -1]


@dataclass(frozen=True)
class Dialogue:
    """Rows of tokens and how they are fed: a prompt, then pieces. A greedy one is fed what it chose.

    Attributes:
        name: For people.
        rows: Tokens of each row, padding left out.
        pieces: Lengths of the pieces, the first that of the longest prompt.
    """

    name: str
    rows: tuple[Tensor, ...]
    pieces: tuple[int, ...]
    greedy: bool = False


def dialogues(vocab: int, room: int, prompt: Tensor | None, *, start: bool) -> Iterator[Dialogue]:
    """What a decoder is asked, in at most `room` tokens a row; with `start`, it begins to choose after one token."""
    tokens = fixed_tokens(vocab, batch=3, sequence=room)
    first = min(4, room - 1)
    yield Dialogue(f"1 token, then {first} one by one", (tokens[0, : first + 1],), (1, *[1] * first))
    if room >= 6:
        long = min(room, 12) - 4
        name = f"3 prompts of {long} tokens, then 3 at once, then 1"
        yield Dialogue(name, tuple(row[: long + 4] for row in tokens), (long, 3, 1))
    others = fixed_tokens(vocab, batch=2, sequence=room, seed=1)
    if start:
        steps = min(GREEDY, room - 1)
        yield Dialogue(f"{steps} greedy tokens", (others[0, :1], others[1, :1]), (1,) * steps, greedy=True)
        return
    half = max(1, min(9, room // 2))
    rows = (others[0, :half] if prompt is None else prompt[0, :half], others[1, : max(1, half // 2)])
    steps = min(GREEDY, room - half)
    text = ", the first a text" if prompt is not None else ""
    name = f"{steps} greedy tokens after prompts of {len(rows[0])} and {len(rows[1])} tokens, the shorter padded{text}"
    yield Dialogue(name, rows, (max(len(row) for row in rows), *[1] * (steps - 1)), greedy=True)


def _held(talk: Talk, dialogue: Dialogue, chosen: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """Feed a dialogue: logits after each piece, (batch, pieces, vocab), and every row as it was in the end.

    A greedy one goes on with what it chooses itself, or with `chosen`, which another variant chose.
    """
    rows = list(dialogue.rows if chosen is None else chosen)
    first = dialogue.pieces[0]
    lengths = [min(len(row), first) if not dialogue.greedy else len(row) for row in dialogue.rows]
    start = torch.zeros((len(rows), first), dtype=torch.int64)
    real = torch.zeros_like(start)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start[index, first - length :] = row[:length]
        real[index, first - length :] = 1
    answers = [talk.say(start, real)]
    at = 0
    for piece in dialogue.pieces[1:]:
        if dialogue.greedy and chosen is None:
            rows = [torch.cat([row, best[None]]) for row, best in zip(rows, answers[-1].argmax(-1), strict=True)]
        fed = torch.stack([row[length + at : length + at + piece] for row, length in zip(rows, lengths, strict=True)])
        answers.append(talk.say(fed))
        at += piece
    return torch.stack(answers, 1), rows


def _positions(dialogue: Dialogue) -> Iterator[Tensor]:
    """For each row, where in it the logits after each piece are."""
    ends = torch.tensor(dialogue.pieces).cumsum(0) - dialogue.pieces[0]
    for row in dialogue.rows:
        yield ends + (len(row) if dialogue.greedy else dialogue.pieces[0]) - 1


def _decoder(opened: Opened) -> Iterator[Check | str]:
    sessions = opened.variants("model")
    prompt, reason = opened.prompt(PROMPT_TOKENS)
    if reason != "":
        yield reason
    for dialogue in dialogues(opened.facts.vocab, min(opened.subject.longest, 44), prompt, start=False):
        talks = {variant: Talk(session, len(dialogue.rows)) for variant, session in sessions.items()}
        found, rows = all_held(talks, dialogue)
        expected = opened.expected(partial(_logits, opened, rows, tuple(_positions(dialogue))))
        yield from opened.judge(dialogue.name, expected, found)
        if dialogue.greedy:
            yield _favourites(opened, dialogue.name, expected, found["as it is"]["logits"])


def all_held(talks: Mapping[str, Talk], dialogue: Dialogue) -> tuple[dict[str, dict[str, Tensor]], list[Tensor]]:
    """What every variant of a graph answers; the others are fed what the first one chose."""
    found: dict[str, dict[str, Tensor]] = {}
    rows: list[Tensor] | None = None
    for variant, talk in talks.items():
        logits, ended = _held(talk, dialogue, rows)
        rows = ended if rows is None else rows
        found[variant] = {"logits": logits}
    assert rows is not None
    return found, rows


def _logits(opened: Opened, rows: Sequence[Tensor], positions: Sequence[Tensor], **how: Any) -> dict[str, Tensor]:
    """The model's logits in each row by itself, without padding."""
    found = [
        reference.run_reference(
            opened.subject.checkpoint,
            opened.weights,
            tokens=row[None],
            decoder_tokens=None,
            encoder_only=False,
            attention=opened.facts.attention,
            positions=wanted[None],
            trust_remote_code=opened.trust_remote_code,
            **how,
        ).outputs["logits"]
        for row, wanted in zip(rows, positions, strict=True)
    ]
    return {"logits": torch.cat(found)}


def _favourites(opened: Opened, name: str, expected: _Expected, found: Tensor) -> Check:
    """Whether each token the graph chose is the model's favourite, or as good within twice the limit of a logit."""
    stored = expected.stored["logits"]
    chosen = found.argmax(2, keepdim=True)
    behind = stored.amax(2) - stored.gather(2, chosen)[:, :, 0]
    limit = opened._limit(expected, "logits")
    atol = 2 * (limit.atol + limit.rtol * scale(stored))
    reason = "how far the model's own logit of a chosen token may be behind its favourite's; twice the limit of logits"
    output = "tokens chosen"
    most = {output: Tolerance(atol=atol, rtol=0.0, reason=reason)}
    return Check(
        input=name,
        reference=opened.subject.kept,
        comparison=compare({output: torch.zeros_like(behind)}, {output: behind}, most),
        decisive=not opened.given,
    )


# Models with encoder and decoder


def _encoder_decoder(opened: Opened) -> Iterator[Check | str]:
    encoders, decoders = opened.variants("encoder"), opened.variants("decoder")
    prompt, reason = opened.prompt(PROMPT_TOKENS)
    if reason != "":
        yield reason
    for name, dialogue, texts in exchanges(opened, prompt):
        heard = {variant: encoded(session, texts) for variant, session in encoders.items()}
        talks = {
            variant: Talk(decoders[variant], len(texts), ids="decoder_input_ids", fixed=states)
            for variant, (states, _) in heard.items()
        }
        found, rows = all_held(talks, dialogue)
        for variant, (_, states) in heard.items():
            found[variant]["encoder_hidden_states"] = states
        run = partial(_both, opened, texts, rows, tuple(_positions(dialogue)), padded=max(len(text) for text in texts))
        expected = opened.expected(run)
        yield from opened.judge(name, expected, found)
        if dialogue.greedy:
            yield _favourites(opened, name, expected, found["as it is"]["logits"])


def exchanges(opened: Opened, prompt: Tensor | None) -> Iterator[tuple[str, Dialogue, list[Tensor]]]:
    """What an encoder-decoder is asked: in words, what its decoder is fed, and the encoder's texts, each row's."""
    vocab, longest = opened.facts.vocab, min(opened.subject.longest, 44)
    fixed = fixed_tokens(vocab, batch=3, sequence=longest, seed=2)
    for dialogue in dialogues(vocab, longest, None, start=True):
        texts = [row[: max(1, (longest - 2 * index) // 2)] for index, row in enumerate(fixed[: len(dialogue.rows)])]
        if dialogue.greedy and prompt is not None:
            texts[0] = prompt[0, :longest]
        yield told(dialogue, texts), dialogue, texts


def told(dialogue: Dialogue, texts: Sequence[Tensor]) -> str:
    """An exchange in words."""
    return f"{', '.join(str(len(text)) for text in texts)} tokens in; {dialogue.name}"


def encoded(session: Runs, texts: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What a decoder is given of texts, padded on the right, and the encoder's states, 0 where there is padding."""
    longest = max(len(text) for text in texts)
    tokens = torch.stack([torch.cat([text, text.new_zeros(longest - len(text))]) for text in texts])
    mask = torch.stack([(torch.arange(longest) < len(text)).long() for text in texts])
    found = session.run({"input_ids": tokens, "attention_mask": mask})
    states = found.pop("encoder_hidden_states")
    return {**found, "encoder_attention_mask": mask}, states * mask[:, :, None]


def _both(
    opened: Opened,
    texts: Sequence[Tensor],
    rows: Sequence[Tensor],
    positions: Sequence[Tensor],
    *,
    padded: int,
    **how: Any,
) -> dict[str, Tensor]:
    """The model's logits and its encoder's states for each text by itself, the latter filled up with zeros."""
    logits, states = [], []
    for text, row, wanted in zip(texts, rows, positions, strict=True):
        found = reference.run_reference(
            opened.subject.checkpoint,
            opened.weights,
            tokens=text[None],
            decoder_tokens=row[None],
            encoder_only=False,
            trust_remote_code=opened.trust_remote_code,
            **how,
        ).outputs
        logits.append(found["logits"][:, wanted])
        states.append(nn.functional.pad(found["encoder_hidden_states"], (0, 0, 0, padded - len(text))))
    return {"logits": torch.cat(logits), "encoder_hidden_states": torch.cat(states)}


# What few tokens cannot show


def _check_weights(opened: Opened) -> None:
    """Every weight that has its name in a graph, bit for bit: a run sees only the rows of the tokens it is fed."""
    subject = opened.subject
    task = subject.task if subject.task in reference.TASKS else None
    sources = reference.parameter_sources(
        subject.checkpoint, opened.weights, task=task, trust_remote_code=opened.trust_remote_code
    )
    problems = []
    for path in subject.graphs.values():
        constants = onnx_model.tensors(onnx_model.load(path), path.parent)
        for name, stored in sources.items():
            plain, packed = constants.get(name), constants.get(f"{name}::{subject.quantization}")
            if plain is not None:
                found = torch.from_numpy(plain.values().astype("float32"))
                same = _is(found, opened.weights.read(stored).to(_TORCH[plain.dtype]).float())
            elif packed is not None and name in subject.quantized:
                same = _is_requantized(opened, packed, constants[f"{name}::scale"], opened.weights.read(stored))
            else:
                continue  # folded into another constant by the exporter, or not in this graph
            if not same:
                problems.append(Problem(f"{path.name}: {name}", "another tensor", f"{stored} of the checkpoint"))
    if len(problems) > 0:
        raise collected(MismatchError, problems)


def _is(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same, or one is the other transposed."""
    transposed = found.dim() == 2 and found.shape == wanted.T.shape and torch.equal(found, wanted.T)
    return transposed or (found.shape == wanted.shape and torch.equal(found, wanted))


def _is_requantized(opened: Opened, packed: onnx_model.Tensor, scales: onnx_model.Tensor, stored: Tensor) -> bool:
    """Whether a quantized weight, multiplied with its scales as DequantizeLinear does, is the checkpoint's nearest."""
    recipe = opened.subject.quantization
    assert recipe is not None
    steps = torch.from_numpy(scales.values().astype("float32"))
    units = torch.from_numpy(onnx_model.elements(packed).astype("float32"))
    kept = _TORCH[scales.dtype]
    for axis in (0, 1):  # of the inputs
        outputs = units.shape[1 - axis]
        if recipe == "int4":
            spread = steps.repeat_interleave(_BLOCK, axis) if steps.shape[1 - axis] == outputs else None
        else:
            spread = steps.unsqueeze(axis) if steps.numel() == outputs else None
        if spread is None or (recipe == "int4" and spread.shape != units.shape):
            continue
        back = (units * spread).to(kept).float()
        for weight, inputs in ((stored, axis), (stored.T, axis)):
            if weight.shape == units.shape and torch.equal(back, _requantized(weight.to(kept), recipe, inputs).float()):
                return True
    return False
