"""Proves a Neuron artifact before it is compiled: its lowered graphs executed with its weights, beside the model.

What is executed are the bytes that neuronx-cc compiles, by XLA on CPU, all ranks with their own files and caches and
with real collectives. The model is transformers', a module in memory at a time, run after the graphs' weights were let
go. Nothing is shared with the exporter but the format of HLO.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from llmcompile.errors import MismatchError, collected
from llmcompile.hlo import Module
from llmcompile.validation import casts, reference, xla
from llmcompile.validation.checks import Check, StoredWeights
from llmcompile.validation.compare import compare, scale
from llmcompile.validation.neuron_artifact import decoder, encoder, judging, split, tables
from llmcompile.validation.neuron_artifact.decoder import Answers, Batch, Ranks
from llmcompile.validation.neuron_artifact.encoder import Encoder, Feed
from llmcompile.validation.neuron_artifact.graphs import Graph, read_graphs
from llmcompile.validation.neuron_artifact.judging import Expected, Judge
from llmcompile.validation.neuron_artifact.weights import RankFile, Weights, open_weights
from llmcompile.validation.reference import Facts, fixed_tokens, prompt_tokens
from llmcompile.validation.sources import MetaWeights
from llmcompile.validation.tolerances import Dtype, Tolerance

ARTIFACT: Final = "Neuron model"
EXECUTOR: Final = "the lowered HLO itself, all ranks, by XLA on CPU"
PROMPT: Final = "The quick brown fox jumps over the lazy dog, and then the engine starts."
DECODER_TASK: Final = "text-generation"
_LONGEST_PROMPT: Final = 32
_MULTIPLICATIONS: Final = 2 * 10**12
"""What a graph may cost to be run more than once: about a minute on two cores."""
_EAGER_BYTES: Final = 256 << 20
"""What transformers may need for the attention scores of one layer."""
_MANTISSA: Final[Mapping[str, Dtype]] = MappingProxyType({"bf16": "bf16", "fp16": "fp16", "tf32": "fp16"})
"""What --auto-cast rounds to -> a type with as many bits of mantissa."""
_Given = TypeVar("_Given")
_COSINE: Final = 1e-3
"""How far from 1 the cosine of an embedding and the model's may be before it is pointed out."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        folder: The artifact: graphs/ and weights/.
        checkpoint: Folder of the model it was made from.
        weight_files: Its files of weights.
        task: "text-generation", or one of `reference.TASKS`.
        dtype: Element type of weights and arithmetic: fp32, fp16 or bf16.
        stored_dtype: Element type most of the checkpoint's bytes have; the same one means that nothing was rounded.
        family: Name of the architecture; "meta_llama" has Meta's own files.
        dynamic_batch_size: Whether the runtime may be given a multiple of the batch.
        output_hidden_states: Whether every layer's states are outputs.
        output_attentions: Whether attention weights are outputs.
        auto_cast: What the compiler will cast: "none", "matmul" or "all".
        auto_cast_type: To what: "bf16", "fp16" or "tf32".
        split: Folder that holds pytorch_model.bin/; None for a layout without.
    """

    folder: Path
    checkpoint: Path
    weight_files: tuple[Path, ...]
    task: str
    dtype: Dtype
    stored_dtype: str
    family: str = ""
    dynamic_batch_size: bool = False
    output_hidden_states: bool = False
    output_attentions: bool = False
    auto_cast: Literal["none", "matmul", "all"] = "none"
    auto_cast_type: casts.Kind = "bf16"
    split: Path | None = None

    @property
    def decodes(self) -> bool:
        """Whether there are context and generation graphs."""
        return self.task == DECODER_TASK


def validate(
    subject: Subject, *, atol: float | None, rtol: float | None, trust_remote_code: bool
) -> Iterator[Check | str]:
    """Compare the artifact with the model, one check at a time, and say what --auto-cast will cost.

    Args:
        subject: What to validate.
        atol: The user's absolute tolerance against the model as it is; None for one that is measured.
        rtol: The user's relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Yields:
        A `Check` for each comparison, and a sentence for each thing left out.

    Raises:
        MismatchError: A file is missing, truncated or surplus; a graph is another than the file beside it says, or does
            not run; an embedding or a split file is not the checkpoint's tensor.
        CheckpointError: The checkpoint's weights do not fit its config.json.
        ToolchainError: JAX is absent, too old or too new.
    """
    with _opened(subject, atol, rtol, trust_remote_code) as opened:
        passed = True
        for item in _checks(opened, prove=True):
            passed &= isinstance(item, str) or not item.decisive or item.comparison.passed
            yield item
        if passed:
            _check_tables(opened)
    if subject.split is not None:
        check_split(
            subject.split,
            checkpoint=subject.checkpoint,
            weight_files=subject.weight_files,
            dtype=_TORCH[subject.dtype] if subject.decodes else None,
            with_head=subject.decodes,
            trust_remote_code=trust_remote_code,
        )


def predict(
    subject: Subject,
    mode: casts.Mode,
    kind: casts.Kind,
    *,
    atol: float | None,
    rtol: float | None,
    trust_remote_code: bool,
) -> Iterator[Check | str]:
    """Say what --auto-cast will cost and validate nothing: the same graphs, with operands or all values rounded.

    Args:
        subject: What to predict for.
        mode: "matmul" or "all".
        kind: "bf16", "fp16" or "tf32".
        atol: The user's absolute tolerance against the model as it is; with one, a failed check is decisive.
        rtol: The user's relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Yields:
        A `Check` for each set of inputs.

    Raises:
        MismatchError, CheckpointError, ToolchainError: As for `validate`.
    """
    asked = replace(subject, auto_cast=mode, auto_cast_type=kind)
    with _opened(asked, atol, rtol, trust_remote_code) as opened:
        yield from _checks(opened, prove=False)


def check_split(
    folder: Path,
    *,
    checkpoint: Path,
    weight_files: Sequence[Path],
    dtype: torch.dtype | None,
    with_head: bool,
    trust_remote_code: bool,
) -> None:
    """Compare a folder of one file for each tensor with the checkpoint, bit for bit.

    Args:
        folder: Holds pytorch_model.bin/.
        checkpoint: Folder of the model.
        weight_files: Its files of weights.
        dtype: What float tensors were cast to; None for nothing.
        with_head: Whether keys are those of transformers' model with next-token logits, rather than as stored.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Raises:
        MismatchError: A tensor is missing, surplus, truncated, or another.
    """
    weights = StoredWeights(weight_files)
    required = {name: name for name in weights.names()}
    if with_head:
        required = reference.parameter_sources(checkpoint, weights, trust_remote_code=trust_remote_code)
    problems = list(split.differences(folder / split.FOLDER, weights, required, dtype))
    if len(problems) > 0:
        raise collected(MismatchError, problems)


# The artifact and the model


_TORCH: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An artifact whose files fit each other, and the model beside it."""

    subject: Subject
    graphs: tuple[Graph, ...]
    files: tuple[RankFile, ...]
    config: Path
    weights: reference.Weights
    facts: Facts
    judge: Judge
    trust_remote_code: bool

    def prompt(self) -> tuple[Tensor | None, str]:
        """A text as tokens, or why there is none."""
        found = prompt_tokens(self.config, PROMPT, _LONGEST_PROMPT, trust_remote_code=self.trust_remote_code)
        return found.tokens, "" if found.tokens is not None else f"no prompt was tried: {found.reason}"

    def logits(
        self, tokens: Tensor, positions: Tensor, *, rounded: bool, arithmetic: torch.dtype = torch.float32
    ) -> Tensor:
        """The decoder's logits at some positions, (batch, kept, vocab).

        A rotary embedding that changes with the length of a sequence is that of a sequence which ends at the position.
        """
        switch = self.facts.rotary_switch
        if switch is None or tokens.shape[1] <= switch:
            return self._logits(tokens, positions, rounded, arithmetic)
        early = self._logits(tokens[:, :switch], positions.clamp(max=switch - 1), rounded, arithmetic)
        late = self._logits(tokens, positions, rounded, arithmetic)
        return torch.where((positions < switch)[:, :, None], early, late)

    def _logits(self, tokens: Tensor, positions: Tensor, rounded: bool, arithmetic: torch.dtype) -> Tensor:
        attention = self.facts.attention
        if 4 * tokens.shape[0] * self.facts.heads * tokens.shape[1] ** 2 > _EAGER_BYTES and attention == "eager":
            attention = reference.lean_attention(self.config, trust_remote_code=self.trust_remote_code)
        return reference.run_reference(
            self.config,
            self.weights,
            tokens=tokens,
            decoder_tokens=None,
            encoder_only=False,
            rounded_to=self.judge.narrow if rounded else None,
            prepare=partial(_round_scale, self.judge.narrow) if rounded and self.judge.constants else None,
            attention=attention,
            arithmetic=arithmetic,
            positions=positions,
            trust_remote_code=self.trust_remote_code,
        ).outputs["logits"]

    def outputs(self, feed: Feed, *, rounded: bool, arithmetic: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
        """What the encoder gives, a batch at a time as the graph does: some models look across the rows of one."""
        batch, rows = self.graphs[0].shape[0], feed.inputs["input_ids"].shape[0]
        parts = [
            reference.run_task(
                self.config,
                self.weights,
                task=self.subject.task,
                inputs={name: values[start : start + batch] for name, values in feed.inputs.items()},
                hidden_states=self.subject.output_hidden_states,
                attentions=self.subject.output_attentions,
                rounded_to=self.judge.narrow if rounded else None,
                arithmetic=arithmetic,
                trust_remote_code=self.trust_remote_code,
            )
            for start in range(0, rows, batch)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def cast(self, graph: Graph) -> Module:
        """A graph as the compiler will cast it."""
        mode, kind = self.subject.auto_cast, self.subject.auto_cast_type
        assert mode != "none"
        return casts.rounded(graph.module, mode, kind)

    @cached_property
    def casting(self) -> bool:
        """Whether --auto-cast changes a graph."""
        if self.subject.auto_cast == "none":
            return False
        return any(self.cast(graph) is not graph.module for graph in self.graphs)

    @property
    def flags(self) -> str:
        """The casts as the user asked for them."""
        return f"--auto-cast {self.subject.auto_cast} --auto-cast-type {self.subject.auto_cast_type}"


@contextmanager
def _opened(subject: Subject, atol: float | None, rtol: float | None, trust_remote_code: bool) -> Iterator[_Opened]:
    xla.check_toolchain()
    graphs = read_graphs(subject.folder, decoder=subject.decodes)
    files = open_weights(subject.folder, graphs)
    with _model(subject) as (config, weights):
        facts = reference.describe(config, trust_remote_code=trust_remote_code)
        judge = Judge(
            dtype=subject.dtype,
            stored_dtype=subject.stored_dtype,
            layers=facts.layers,
            routed=facts.routed,
            constants=facts.kind in _SCALED,
            atol=atol,
            rtol=rtol,
        )
        yield _Opened(
            subject=subject,
            graphs=graphs,
            files=files,
            config=config,
            weights=weights,
            facts=facts,
            judge=judge,
            trust_remote_code=trust_remote_code,
        )


_SCALED: Final = ("gemma", "gemma2", "gemma3_text")
"""Models whose code multiplies embeddings by the root of the hidden size, rounded to their weights' type."""


def _round_scale(dtype: torch.dtype | None, model: Any) -> None:
    """Let a model in float32 multiply its embeddings by what one of 16 bits does."""
    root = torch.tensor(model.config.hidden_size**0.5)

    def rounded(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        # In 16-bit arithmetic the model's own code rounds.
        return output * (root.to(dtype).float() / root) if output.dtype == torch.float32 else output

    model.get_input_embeddings().register_forward_hook(rounded)


@contextmanager
def _model(subject: Subject) -> Iterator[tuple[Path, reference.Weights]]:
    """Folder of config.json, and the weights by the names transformers has for them."""
    if subject.family != "meta_llama":
        yield subject.checkpoint, StoredWeights(subject.weight_files)
        return
    meta = MetaWeights(subject.weight_files, subject.checkpoint / "params.json")
    with tempfile.TemporaryDirectory(prefix="llmcompile-") as folder:
        meta.write_config(Path(folder))
        yield Path(folder), meta


def _checks(opened: _Opened, *, prove: bool) -> Iterator[Check | str]:
    """Every check; without `prove`, those of --auto-cast alone."""
    if opened.subject.auto_cast != "none" and not opened.casting:
        yield f"{opened.flags} changes nothing: no graph has float32 values that it casts"
    yield from _decoder(opened, prove) if opened.subject.decodes else _encoder(opened, prove)


def _check_tables(opened: _Opened) -> None:
    found = reference.embedding_tables(
        opened.config,
        opened.weights,
        encoder_only=False,
        task=None if opened.subject.decodes else opened.subject.task,
        trust_remote_code=opened.trust_remote_code,
    )
    problems = [
        problem
        for table in found
        for problem in tables.differences(
            opened.files,
            table,
            opened.weights.read(table.stored),
            _TORCH[opened.subject.dtype],
            decoder=opened.subject.decodes,
        )
    ]
    if len(problems) > 0:
        raise collected(MismatchError, problems)


def _runnable(run: Callable[[], _Given]) -> _Given | None:
    """What transformers gives in 16-bit arithmetic; None where it, or PyTorch on CPU, lacks the code."""
    try:
        return run()
    except RuntimeError:
        return None


# Decoders


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """What the graphs gave to all batches.

    Attributes:
        fixed: Batches of known tokens, and the answers; in 16 bits one for each context graph.
        greedy: The batch whose tokens the graphs chose, and the answers.
        wide: All these batches, the greedy one last, by the graphs in float32 arithmetic; empty for a float32 artifact.
        cast: Answers to the greedy batch as --auto-cast will compute them; None without.
    """

    fixed: list[tuple[Batch, Answers]]
    greedy: tuple[Batch, Answers]
    wide: list[tuple[Batch, Answers]]
    cast: Answers | None


def _decoder(opened: _Opened, prove: bool) -> Iterator[Check | str]:
    generation = opened.graphs[-1]
    batch, sequence = generation.shape[0], generation.states[0].shape[2]
    rows = fixed_tokens(opened.facts.vocab, batch=batch, sequence=sequence)
    prompt, reason = opened.prompt()
    if reason != "":
        yield reason
    dear = [graph.shape[1] for graph in opened.graphs if not _affordable(opened, graph.shape[1])]
    if prove and len(dear) > 0:
        yield f"graphs of {dear[0]} tokens and more ran on one batch each, since a run takes minutes here"
    heard = _listen(opened, rows, prompt, prove)
    xla.release()
    model = _Rows(opened, heard.greedy[1].sequences, heard.greedy[1].positions, narrow=True)
    if prove:
        yield from _fixed_checks(opened, rows, heard, model.worst)
        yield from _greedy_checks(opened, heard, model)
        yield from _agreement(opened, heard, model)
    if heard.cast is not None:
        found = {"logits": heard.cast.logits}
        kind = _MANTISSA[opened.subject.auto_cast_type]
        expected = model.expected(heard.cast.positions)
        yield judging.predicted(opened.judge, _greedy_name(heard.greedy), kind, opened.flags, expected, found)


def _affordable(opened: _Opened, tokens: int) -> bool:
    elements = sum(stored.size_bytes for file in opened.files for stored in file.tensors.values())
    elements //= _TORCH[opened.subject.dtype].itemsize
    return elements * opened.graphs[-1].shape[0] * tokens <= _MULTIPLICATIONS


def _listen(opened: _Opened, rows: Tensor, prompt: Tensor | None, prove: bool) -> _Heard:
    """Run everything on the graphs; the weights are let go when this returns."""
    weights = Weights(opened.files)
    switch = opened.facts.rotary_switch
    known = list(decoder.batches(opened.graphs, rows, partial(_affordable, opened), switch)) if prove else []
    narrow = opened.judge.narrow is not None
    first = list({batch.graph.name: batch for batch in reversed(known)}.values())[::-1]
    ranks = Ranks(opened.graphs, weights)
    fixed = [(batch, ranks.answer(batch)) for batch in (first if narrow else known)]
    others = fixed_tokens(opened.facts.vocab, batch=len(rows), sequence=rows.shape[1], seed=1)
    batch = decoder.greedy_batch(opened.graphs, others, prompt, switch)
    answers = ranks.answer(batch)
    forced = _forced(batch, answers)
    wide, cast = [], None
    if prove and narrow:
        ranks = Ranks(opened.graphs, weights, _widened)
        wide = [(again, ranks.answer(again)) for again in (*known, forced)]
    if opened.casting:
        ranks = Ranks(opened.graphs, weights, opened.cast)
        cast = ranks.answer(forced)
    return _Heard(fixed=fixed, greedy=(batch, answers), wide=wide, cast=cast)


def _widened(graph: Graph) -> Module:
    first = len(graph.inputs)
    return casts.widened(graph.module, range(first, first + len(graph.states)))


def _forced(batch: Batch, answers: Answers) -> Batch:
    """The same prompts, followed by the tokens that were chosen."""
    fed = answers.positions.shape[1] - 1
    forced = tuple(
        tuple(row[length : length + fed].tolist()) for row, length in zip(answers.sequences, batch.lengths, strict=True)
    )
    return Batch(graph=batch.graph, prompts=batch.prompts, forced=forced)


class _Rows:
    """The model's logits in some rows of tokens, at some positions of each."""

    def __init__(self, opened: _Opened, tokens: Tensor, positions: Tensor, *, narrow: bool) -> None:
        judge = opened.judge
        self._positions = positions
        self._model = opened.logits(tokens, positions, rounded=False)
        self._stored = opened.logits(tokens, positions, rounded=True) if judge.rounds else self._model
        self._narrow: Tensor | None = None
        if narrow and judge.narrow is not None:
            self._narrow = _runnable(partial(opened.logits, tokens, positions, rounded=True, arithmetic=judge.narrow))

    @property
    def worst(self) -> float | None:
        """What 16-bit arithmetic does to the model, as a fraction of its largest logit; None in float32."""
        if self._narrow is None:
            return None
        return scale(self._narrow - self._stored) / max(scale(self._stored), torch.finfo(torch.float32).tiny)

    def expected(self, positions: Tensor) -> Expected:
        """At some of the positions, shape (batch, kept)."""
        places = (self._positions[:, None, :] == positions[:, :, None]).int().argmax(2)

        def at(logits: Tensor) -> Mapping[str, Tensor]:
            return {"logits": logits.gather(1, places[:, :, None].expand(-1, -1, logits.shape[2]))}

        narrow = None if self._narrow is None else at(self._narrow)
        return Expected(model=at(self._model), stored=at(self._stored), narrow=narrow)


def _fixed_checks(opened: _Opened, rows: Tensor, heard: _Heard, moved: float | None) -> Iterator[Check]:
    """One or two checks of every batch of known tokens, from one run of the model over all of them."""
    heard_all = [answers for _, answers in (*heard.fixed, *heard.wide[:-1])]
    each = [torch.cat([answers.positions[row] for answers in heard_all]) for row in range(len(rows))]
    wanted = [torch.tensor(sorted(set(positions.tolist()))) for positions in each]
    most = max(len(positions) for positions in wanted)
    positions = torch.stack([torch.cat([known, known[-1:].expand(most - len(known))]) for known in wanted])
    model = _Rows(opened, rows, positions, narrow=False)
    for batch, answers in heard.fixed:
        expected = replace(model.expected(answers.positions), moved=moved)
        yield from judging.as_it_is(opened.judge, _name(batch), expected, {"logits": answers.logits})
    for batch, answers in heard.wide[:-1]:
        expected = model.expected(answers.positions)
        yield judging.in_float32(opened.judge, _name(batch), expected, {"logits": answers.logits})


def _name(batch: Batch) -> str:
    name = f"{batch.graph.name}, prompts of {_listed(batch.lengths)}"
    fed = len(batch.forced[0])
    return f"{name}, then {_tokens(fed)} more" if fed > 0 else name


def _greedy_checks(opened: _Opened, heard: _Heard, model: _Rows) -> Iterator[Check]:
    answers = heard.greedy[1]
    name, found = _greedy_name(heard.greedy), {"logits": answers.logits}
    expected = model.expected(answers.positions)
    checks = list(judging.as_it_is(opened.judge, name, expected, found))
    yield from checks
    logits = next(check for check in reversed(checks) if "logits" in check.comparison.names_expected)
    yield _favourites(logits, expected.stored["logits"], answers)
    for batch, wide in heard.wide[-1:]:
        expected = model.expected(wide.positions)
        yield judging.in_float32(opened.judge, _name(batch), expected, {"logits": wide.logits})


def _favourites(check: Check, expected: Tensor, answers: Answers) -> Check:
    """Whether each token the graphs chose is the model's favourite, or as good within twice the limit of a logit."""
    chosen = answers.logits.argmax(2, keepdim=True)
    behind = expected.amax(2) - expected.gather(2, chosen)[:, :, 0]
    limit = check.comparison.verdicts[0]
    atol = 2 * (limit.atol + limit.rtol * scale(expected))
    reason = "how far the model's own logit of a chosen token may be behind its favourite's; twice the limit of logits"
    name = "tokens chosen"
    return replace(
        check,
        comparison=compare(
            {name: torch.zeros_like(behind)}, {name: behind}, {name: Tolerance(atol=atol, rtol=0.0, reason=reason)}
        ),
    )


def _agreement(opened: _Opened, heard: _Heard, model: _Rows) -> Iterator[Check]:
    ranks = opened.graphs[0].ranks
    if ranks == 1:
        return
    name = f"logits of the other {ranks - 1} ranks" if ranks > 2 else "logits of the other rank"
    apart = torch.tensor([answers.disagreement for _, answers in (*heard.fixed, heard.greedy, *heard.wide)])
    limit = opened.judge.tight(model.expected(heard.greedy[1].positions).stored["logits"])
    yield Check(
        input="every run",
        reference="rank 0",
        comparison=compare({name: torch.zeros_like(apart)}, {name: apart}, {name: limit}),
        decisive=True,
    )


def _greedy_name(greedy: tuple[Batch, Answers]) -> str:
    batch, answers = greedy
    count = answers.positions.shape[1]
    text = ", the first a text" if batch.text else ""
    return f"{count} greedy {'token' if count == 1 else 'tokens'} after prompts of {_listed(batch.lengths)}{text}"


def _listed(lengths: Sequence[int]) -> str:
    unique = list(dict.fromkeys(lengths))
    text = ", ".join(map(str, unique[:-1]))
    return f"{text} and {_tokens(unique[-1])}" if len(unique) > 1 else _tokens(unique[0])


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


# Encoders


def _encoder(opened: _Opened, prove: bool) -> Iterator[Check | str]:
    graph = opened.graphs[0]
    prompt, reason = opened.prompt()
    if reason != "":
        yield reason
    times = 2 if opened.subject.dynamic_batch_size else 1
    feeds = list(encoder.feeds(graph, opened.facts, prompt, times=times))
    found = _run_encoder(opened, feeds, prove)
    xla.release()
    for number, feed in enumerate(feeds):
        judge, narrow = opened.judge, opened.judge.narrow
        model = opened.outputs(feed, rounded=False)
        stored = opened.outputs(feed, rounded=True) if judge.rounds else model
        in_narrow = None
        if narrow is not None and prove:
            in_narrow = _runnable(partial(opened.outputs, feed, rounded=True, arithmetic=narrow))
        expected = Expected(model=model, stored=stored, narrow=in_narrow)
        for variant, outputs in ((variant, each[number]) for variant, each in found.items()):
            if variant == "as it is":
                yield from judging.as_it_is(judge, feed.name, expected, outputs)
            elif variant == "wide":
                yield judging.in_float32(judge, feed.name, expected, outputs)
            else:
                kind = _MANTISSA[opened.subject.auto_cast_type]
                yield judging.predicted(judge, feed.name, kind, opened.flags, expected, outputs)
            yield from _cosine(opened, feed, variant, model, outputs)


def _run_encoder(opened: _Opened, feeds: Sequence[Feed], prove: bool) -> dict[str, list[dict[str, Tensor]]]:
    """What the graph gives to every feed, as it is, in float32 arithmetic, and cast; weights are let go afterwards."""
    graph, weights = opened.graphs[0], Weights(opened.files)
    modules = {"as it is": graph.module} if prove else {}
    if prove and opened.judge.narrow is not None:
        modules["wide"] = casts.widened(graph.module, ())
    if opened.casting:
        modules["cast"] = opened.cast(graph)
    return {
        variant: [runner.run(feed) for feed in feeds]
        for variant, runner in ((variant, Encoder(graph, weights, module)) for variant, module in modules.items())
    }


def _cosine(
    opened: _Opened, feed: Feed, variant: str, model: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> Iterator[Check]:
    """How alike embeddings of texts are, which is what most encoders without a head are for."""
    states = "last_hidden_state"
    if variant == "wide" or states not in model or states not in found or model[states].shape != found[states].shape:
        return
    mask = feed.inputs["attention_mask"]
    cosine = (encoder.pooled(model[states], mask) * encoder.pooled(found[states], mask)).sum(1)
    name = "cosine of mean-pooled embeddings"
    limit = Tolerance(atol=_COSINE, rtol=0.0, reason="below this, rankings of texts hardly change")
    yield Check(
        input=f"{feed.name}, as {opened.flags} will compute it" if variant == "cast" else feed.name,
        reference=judging.MODEL,
        comparison=compare({name: torch.ones_like(cosine)}, {name: cosine}, {name: limit}),
        decisive=False,
    )
