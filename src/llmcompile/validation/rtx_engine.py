"""Compares engines that ran on a GPU with the ONNX files they were built of, on the same inputs.

ONNX Runtime runs what `validation.rtx` fed the graphs, as far as it fits an optimization profile, and every call is
noted: which graph, with what, and which of its inputs are outputs of earlier calls, as caches are. The engines are run
on those calls, whatever they would have chosen themselves: if they prefer the same token at every step, they would have
chosen the same ones.

Expected is what the graph gives in float32 arithmetic. The limit is that of the engine's arithmetic, or several times
what the same arithmetic does in ONNX Runtime. A GPU may multiply float32 as TF32, which has fp16's mantissa.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch
from torch import Tensor

from llmcompile import onnx_model
from llmcompile.validation import reference, rtx
from llmcompile.validation.checks import Check, StoredWeights
from llmcompile.validation.compare import compare, scale
from llmcompile.validation.reference import fixed_tokens
from llmcompile.validation.rtx import DECODER_TASK, SEQ2SEQ_TASK, Dialogue, Opened, Subject, Talk
from llmcompile.validation.tolerances import Tolerance, tolerance

REFERENCE: Final = "the ONNX model, by ONNX Runtime"
TOKENS: Final = "tokens chosen"
_MASKED: Final = "encoder_hidden_states"
"""Of no meaning where a text is padded."""

Profile: TypeAlias = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Input -> its least, best and most shape."""


@dataclass(frozen=True)
class Step:
    """One call of an engine.

    Attributes:
        graph: Its name.
        profile: Index of the optimization profile that the shapes fit.
        given: Inputs that are sent.
        carried: Input -> the output of an earlier call that it is.
        kept: Outputs that are compared.
        first: Whether nothing is carried from before.
    """

    graph: str
    profile: int
    given: Mapping[str, Tensor]
    carried: Mapping[str, str]
    kept: tuple[str, ...]
    first: bool


Run: TypeAlias = Callable[[Sequence[Step]], Sequence[Mapping[str, Tensor]]]
"""Runs calls on a GPU: for each what was kept."""


@dataclass
class _Tape:
    """Calls as they are made: `held` are outputs of earlier ones; `fits` is False once one fits no profile."""

    profiles: Mapping[str, Sequence[Profile]]
    steps: list[Step] = field(default_factory=list)
    held: dict[str, Tensor] = field(default_factory=dict)
    fits: bool = True

    def note(self, graph: str, given: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """Note a call and what it gave."""
        carried = {
            name: output for name, values in given.items() for output, held in self.held.items() if held is values
        }
        shapes = {name: tuple(values.shape) for name, values in given.items()}
        profile = next((index for index, each in enumerate(self.profiles[graph]) if _within(shapes, each)), None)
        self.fits = self.fits and profile is not None
        self.steps.append(
            Step(
                graph=graph,
                profile=-1 if profile is None else profile,
                given={name: values for name, values in given.items() if name not in carried},
                carried=carried,
                kept=tuple(name for name in found if not name.startswith(("present.", "cross."))),
                first=len(self.steps) == 0,
            )
        )
        self.held |= found


def _within(shapes: Mapping[str, tuple[int, ...]], profile: Profile) -> bool:
    return all(
        least <= size <= most
        for name, shape in shapes.items()
        for least, size, most in zip(profile[name][0], shape, profile[name][2], strict=True)
    )


class _Noted:
    """A session whose calls are noted."""

    def __init__(self, graph: str, session: rtx.Runs, tape: _Tape) -> None:
        self._graph, self._session, self._tape = graph, session, tape

    @property
    def inputs(self) -> Sequence[onnx_model.Value]:
        """What it takes."""
        return self._session.inputs

    def run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it gives."""
        found = self._session.run(given)
        self._tape.note(self._graph, {value.name: given[value.name] for value in self.inputs}, found)
        return dict(found)


@dataclass(frozen=True)
class _Asked:
    """What engines are asked, and what ONNX Runtime answers: exactly, and in the engine's arithmetic.

    Attributes:
        name: In words.
        steps: The calls.
        decoder: Whether logits are those of one call after the other.
        mask: Which positions of the encoder's states mean something; None without an encoder before a decoder.
        greedy: Whether ONNX Runtime was fed what it chose.
        exact: Outputs in float32 arithmetic, those of several calls one after the other in axis 1.
        rounded: Outputs in the engine's own.
    """

    name: str
    steps: tuple[Step, ...]
    decoder: bool
    mask: Tensor | None
    greedy: bool
    exact: Mapping[str, Tensor]
    rounded: Mapping[str, Tensor]


def checks(
    subject: Subject,
    profiles: Mapping[str, Sequence[Profile]],
    run: Run,
    *,
    gpu: str,
    atol: float | None,
    rtol: float | None,
    trust_remote_code: bool,
) -> Iterator[Check]:
    """Run engines on a GPU and compare what they give.

    Args:
        subject: The ONNX model they were built of, and the model it was made from.
        profiles: Of each graph, in the builder's order.
        run: Runs calls.
        gpu: Its name.
        atol: The user's absolute tolerance; None for one that is measured.
        rtol: The user's relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Raises:
        MismatchError: A graph does not run in ONNX Runtime.
        ToolchainError: An engine does not run; raised by `run`.
    """
    facts = reference.describe(subject.checkpoint, trust_remote_code=trust_remote_code)
    opened = Opened(subject, facts, StoredWeights(subject.weight_files), atol, rtol, trust_remote_code)
    asked = list(_asked(opened, profiles))
    given = iter(run([step for each in asked for step in each.steps]))
    for each in asked:
        found = _joined([next(given) for _ in each.steps], each)
        where = f"{each.name}, on {gpu}"
        limits = {output: _limit(opened, each, output) for output in each.exact}
        comparison = compare(each.exact, found, limits)
        yield Check(input=where, reference=REFERENCE, comparison=comparison, decisive=True)
        if each.greedy:
            yield _favourites(each, found["logits"], limits["logits"], where)


def _asked(opened: Opened, profiles: Mapping[str, Sequence[Profile]]) -> Iterator[_Asked]:
    """What the graphs were validated with, as far as it fits a profile; where nothing does, something that does."""
    kinds = {DECODER_TASK: _of_decoder, SEQ2SEQ_TASK: _of_encoder_decoder}
    made = kinds.get(opened.subject.task, _of_encoder)
    prompt, _ = opened.prompt(rtx.PROMPT_TOKENS)
    fitting = [each for each, fits in made(opened, profiles, prompt, False) if fits]
    if len(fitting) == 0:
        fitting = [each for each, fits in made(opened, profiles, prompt, True) if fits]
    yield from fitting


def _joined(found: Sequence[Mapping[str, Tensor]], asked: _Asked) -> dict[str, Tensor]:
    """Outputs of calls: a decoder's logits at the last position of each one after the other, others as they are."""
    joined: dict[str, Tensor] = {}
    for each in found:
        for name, values in each.items():
            if name == "logits" and asked.decoder:
                last = values[:, -1:]
                joined[name] = torch.cat([joined[name], last], 1) if name in joined else last
            elif name == _MASKED and asked.mask is not None:
                joined[name] = values * asked.mask[:, :, None]
            else:
                joined[name] = values
    return joined


def _limit(opened: Opened, asked: _Asked, output: str) -> Tolerance:
    if opened.given:
        return opened.asked()
    values, dtype = asked.exact[output], opened.subject.dtype
    arithmetic = "fp16" if dtype == "fp32" else dtype
    derived = tolerance(
        "fp32", layers=opened.facts.layers, scale=scale(values), approximate=False, arithmetic=arithmetic
    )
    moved = rtx.MARGIN * scale(asked.rounded[output] - values)
    if dtype == "fp32" or moved <= derived.atol:
        return derived
    reason = f"{rtx.MARGIN:g} times what {dtype} arithmetic does to this output in ONNX Runtime"
    return Tolerance(atol=moved, rtol=derived.rtol, reason=reason)


def _favourites(asked: _Asked, found: Tensor, limit: Tolerance, where: str) -> Check:
    """Whether each token the engine prefers is ONNX Runtime's favourite, or as good within twice the limit."""
    exact = asked.exact["logits"]
    if found.shape == exact.shape:
        behind = exact.amax(2) - exact.gather(2, found.nan_to_num().argmax(2, keepdim=True))[:, :, 0]
    else:
        behind = torch.full(exact.shape[:2], torch.inf)
    atol = 2 * (limit.atol + limit.rtol * scale(exact))
    reason = "how far the logit of a token the engine prefers may be behind the favourite's; twice the limit of logits"
    comparison = compare(
        {TOKENS: torch.zeros_like(behind)}, {TOKENS: behind}, {TOKENS: Tolerance(atol=atol, rtol=0.0, reason=reason)}
    )
    return Check(input=where, reference=REFERENCE, comparison=comparison, decisive=True)


_Made: TypeAlias = Iterator[tuple[_Asked, bool]]


def _of_encoder(
    opened: Opened, profiles: Mapping[str, Sequence[Profile]], prompt: Tensor | None, fitted: bool
) -> _Made:
    sessions = opened.variants("model")
    shapes: list[tuple[int, int]] = []
    if fitted:
        batch, *_, length = _near(profiles["model"][0]["input_ids"], (2, 16))
        shapes, prompt = [(batch, length)], None
    for name, inputs in rtx.feeds(opened, sessions["as it is"], prompt, shapes):
        tape = _Tape(profiles)
        found = {
            variant: (_Noted("model", session, tape) if variant == "as it is" else session).run(inputs)
            for variant, session in sessions.items()
        }
        exact = found.get("wide", found["as it is"])
        yield _Asked(name, tuple(tape.steps), False, None, False, exact, found["as it is"]), tape.fits


def _of_decoder(
    opened: Opened, profiles: Mapping[str, Sequence[Profile]], prompt: Tensor | None, fitted: bool
) -> _Made:
    sessions = opened.variants("model")
    vocab, longest = opened.facts.vocab, min(opened.subject.longest, 44)
    asked = rtx.dialogues(vocab, longest, prompt, start=False)
    for dialogue in [_fitted(vocab, profiles["model"], "input_ids", 9)] if fitted else asked:
        tape = _Tape(profiles)
        noted: dict[str, rtx.Runs] = {**sessions, "as it is": _Noted("model", sessions["as it is"], tape)}
        found, _ = rtx.all_held({each: Talk(noted[each], len(dialogue.rows)) for each in noted}, dialogue)
        exact = found.get("wide", found["as it is"])
        yield (
            _Asked(dialogue.name, tuple(tape.steps), True, None, dialogue.greedy, exact, found["as it is"]),
            tape.fits,
        )


def _of_encoder_decoder(
    opened: Opened, profiles: Mapping[str, Sequence[Profile]], prompt: Tensor | None, fitted: bool
) -> _Made:
    encoders, decoders = opened.variants("encoder"), opened.variants("decoder")
    for name, dialogue, texts in [_exchange(opened, profiles)] if fitted else rtx.exchanges(opened, prompt):
        tape = _Tape(profiles)
        heard = {
            variant: rtx.encoded(_Noted("encoder", session, tape) if variant == "as it is" else session, texts)
            for variant, session in encoders.items()
        }
        noted: dict[str, rtx.Runs] = {**decoders, "as it is": _Noted("decoder", decoders["as it is"], tape)}
        talks = {
            variant: Talk(noted[variant], len(texts), ids="decoder_input_ids", fixed=states)
            for variant, (states, _) in heard.items()
        }
        found, _ = rtx.all_held(talks, dialogue)
        both = {variant: {_MASKED: heard[variant][1], **logits} for variant, logits in found.items()}
        mask = heard["as it is"][0]["encoder_attention_mask"]
        exact = both.get("wide", both["as it is"])
        yield _Asked(name, tuple(tape.steps), True, mask, dialogue.greedy, exact, both["as it is"]), tape.fits


def _near(shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], wanted: tuple[int, ...]) -> list[int]:
    """Sizes as near to `wanted` as a profile allows; of more axes the first and the last."""
    least, _, most = shapes
    first = min(max(wanted[0], least[0]), most[0])
    return [first, min(max(wanted[1], least[-1]), most[-1])]


def _fitted(vocab: int, profiles: Sequence[Profile], ids: str, prompt: int) -> Dialogue:
    """A greedy dialogue that a decoder's profiles have room for: a prompt, and tokens as long as caches have room."""
    rows, length = _near(profiles[0][ids], (2, prompt))
    room = max(most[2] for name, (_, _, most) in profiles[-1].items() if name.startswith("past_key_values."))
    steps = 1 + max(0, min(rtx.GREEDY - 1, room + 1 - length))
    tokens = fixed_tokens(vocab, batch=rows, sequence=length, seed=1)
    name = f"{steps} greedy tokens after {rows} prompts of {length} tokens"
    return Dialogue(name, tuple(tokens), (length, *[1] * (steps - 1)), greedy=True)


def _exchange(opened: Opened, profiles: Mapping[str, Sequence[Profile]]) -> tuple[str, Dialogue, list[Tensor]]:
    """The same with texts that the encoder's profile has room for."""
    dialogue = _fitted(opened.facts.vocab, profiles["decoder"], "decoder_input_ids", 1)
    _, length = _near(profiles["encoder"][0]["input_ids"], (2, 12))
    texts = list(fixed_tokens(opened.facts.vocab, batch=len(dialogue.rows), sequence=length, seed=2))
    return rtx.told(dialogue, texts), dialogue, texts
