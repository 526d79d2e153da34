"""Neuron artifacts: those the exporter writes pass, and those that are broken are caught by their numbers or files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode

import models
import neuron_artifacts as artifacts
import tiny_encoders
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BF16
from llmcompile.errors import MismatchError, Problem
from llmcompile.exporters.neuron.split import write_split
from llmcompile.validation import neuron, xla
from llmcompile.validation.checks import Check, problems_of
from llmcompile.validation.compare import compare
from llmcompile.validation.neuron import Subject, check_split, predict, validate
from llmcompile.validation.neuron_artifact.decoder import Answers
from llmcompile.validation.tolerances import Tolerance
from llmcompile.writing import WorkDirectory

Break = Callable[[Subject], Any]
SLOTS, BUCKET = 8, 4
CONTEXT, GENERATION = f"context_encoding_{BUCKET}", "token_generation"
QKV, OUTPUT = "layers.{}.self_attn.qkv_proj.Wqkv.weight", "layers.{}.self_attn.o_proj.o_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    """Compile equal graphs once: most of what is broken here is one of several."""
    compile, programs = xla._compiled, dict[tuple[bytes, int], Any]()

    def remembered(library: Any, module: bytes, ranks: int, name: str) -> Any:
        if (module, ranks) not in programs:
            programs[module, ranks] = compile(library, module, ranks, name)
        return programs[module, ranks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "_compiled", remembered)
        yield


def found(subject: Subject, *, atol: float | None = None) -> tuple[list[Check], list[Problem]]:
    """Every check of a validation, and what disagrees."""
    checks: list[Check] = []
    raised: tuple[Problem, ...] = ()
    try:
        for item in validate(subject, atol=atol, rtol=None, trust_remote_code=False):
            checks += [item] if isinstance(item, Check) else []
    except MismatchError as error:
        raised = error.problems
    return checks, [*problems_of(checks), *raised]


def said(subject: Subject) -> str:
    """What disagrees, as one text."""
    return "\n".join(map(str, found(subject)[1]))


def worst(checks: list[Check]) -> float:
    """Largest error of a decisive check, as a fraction of its limit."""
    verdicts = [verdict for check in checks if check.decisive for verdict in check.comparison.verdicts]
    return max(verdict.max_abs / verdict.atol for verdict in verdicts if verdict.max_abs is not None)


# Decoders


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A decoder of two ranks in float32; not to be changed."""
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = models.save("llama_gqa", folder / "model")
    models.add_tokenizer(checkpoint)
    return artifacts.decoder(checkpoint, folder / "artifact", ranks=2, slots=SLOTS, buckets=(BUCKET,))


@pytest.fixture
def broken(made: Subject, tmp_path: Path) -> Subject:
    """A copy to break."""
    return artifacts.copied(made, tmp_path / "artifact")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A decoder of one rank and one row in bfloat16, from float32 weights; not to be changed."""
    folder = tmp_path_factory.mktemp("narrow")
    checkpoint = models.save("gemma", folder / "model", config={"num_hidden_layers": 1})
    return artifacts.decoder(
        checkpoint, folder / "artifact", ranks=1, slots=SLOTS, buckets=(BUCKET,), dtype="bfloat16", batch=1
    )


@pytest.fixture(scope="module")
def heard(narrow: Subject) -> tuple[list[Check], list[str]]:
    """What a validation of it yields: checks, and sentences."""
    items = list(validate(narrow, atol=None, rtol=None, trust_remote_code=False))
    return [item for item in items if isinstance(item, Check)], [item for item in items if isinstance(item, str)]


def test_a_decoder_passes_on_every_graph(made: Subject) -> None:
    """Prompts of every telling length, the tokens after them, greedy tokens, and agreement of the ranks."""
    checks, problems = found(made)

    assert problems == []
    assert [check.input for check in checks] == [
        "context_encoding_8, prompts of 7 and 1 token, then 1 token more",
        "context_encoding_8, prompts of 8 and 7 tokens",
        "context_encoding_4, prompts of 4 and 3 tokens, then 2 tokens more",
        "context_encoding_4, prompts of 1 and 4 tokens, then 2 tokens more",
        "5 greedy tokens after prompts of 4 and 2 tokens, the first a text",
        "5 greedy tokens after prompts of 4 and 2 tokens, the first a text",
        "every run",
    ]
    assert [check.comparison.names_expected for check in checks[-2:]] == [
        ("tokens chosen",),
        ("logits of the other rank",),
    ]
    assert worst(checks) < 0.3


def test_without_a_tokenizer_the_prompt_is_left_out_aloud(heard: tuple[list[Check], list[str]]) -> None:
    """And the rest is compared all the same."""
    assert heard[1] == ["no prompt was tried: there are no tokenizer files beside config.json"]


def test_a_16_bit_decoder_is_proven_in_both_arithmetics(heard: tuple[list[Check], list[str]]) -> None:
    """As it is within what 16 bits cost the model, in float32 tightly, and beside the float32 model for information."""
    checks = heard[0]

    assert problems_of(checks) == []
    informs = [check for check in checks if not check.decisive]
    tight = [check for check in checks if "float32 arithmetic" in check.input]
    assert {check.reference for check in informs} == {"the model in float32"}
    assert {check.reference for check in tight} == {"the model with weights rounded to bf16"}
    assert [check.input.split(",")[0] for check in tight] == [*["context_encoding_8"] * 3, *["context_encoding_4"] * 4]
    assert worst(tight) < 0.5
    assert max(check.comparison.verdicts[0].atol for check in tight) < 1e-3


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gpt2"])
def test_other_families_pass(family: str, tmp_path: Path) -> None:
    """Experts, whose router 16 bits may sway; a rotary embedding that changes with the length; learned positions."""
    changed = {
        "type": "longrope",
        "short_factor": [1.0, 1.2, 1.4, 1.6],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    }
    config: dict[str, Any] = {"num_hidden_layers": 1, "n_layer": 1}
    if family == "phi3":
        config |= {"rope_scaling": changed, "original_max_position_embeddings": 5}
    checkpoint = models.save(family, tmp_path / "model", config=config)
    dtype = "bfloat16" if family == "mixtral" else "float32"
    subject = artifacts.decoder(checkpoint, tmp_path / "out", ranks=2, slots=SLOTS, buckets=(SLOTS,), dtype=dtype)

    checks, problems = found(subject)

    assert problems == []
    assert any("beyond the limit" in check.comparison.names_expected[0] for check in checks) == (family == "mixtral")


def swapped(subject: Subject, one: tuple[int, str], other: tuple[int, str]) -> None:
    """Exchange two tensors, each told by its rank and name."""
    first, second = (artifacts.tensors(subject, rank)[name] for rank, name in (one, other))
    artifacts.put(subject, one[0], {one[1]: second})
    artifacts.put(subject, other[0], {other[1]: first})


def shifted_split(subject: Subject) -> None:
    """Cut the inputs of an output projection by odd and even columns instead of into halves."""
    whole = torch.cat([artifacts.tensors(subject, rank)[OUTPUT.format(0)] for rank in range(2)], dim=1)
    for rank in range(2):
        artifacts.put(subject, rank, {OUTPUT.format(0): whole[:, rank::2]})


def swapped_query_and_key(subject: Subject) -> None:
    """Exchange the first query head of a rank's fused matrix and its key head."""
    fused = artifacts.tensors(subject, 0)[QKV.format(1)]
    parts = list(fused.split(8))
    parts[0], parts[2] = parts[2], parts[0]
    artifacts.put(subject, 0, {QKV.format(1): torch.cat(parts)})


def scaled_norm(subject: Subject) -> None:
    """Let one number of a norm be one part in a thousand larger."""
    norm = artifacts.tensors(subject, 1)["layers.1.post_attention_layernorm.weight"].clone()
    norm[3] *= 1.001
    artifacts.put(subject, 1, {"layers.1.post_attention_layernorm.weight": norm})


def both_layers(name: str) -> Break:
    """Exchange a tensor of one layer and of the other, on both ranks."""

    def change(subject: Subject) -> None:
        for rank in range(2):
            swapped(subject, (rank, name.format(0)), (rank, name.format(1)))

    return change


def graph(name: str, change: Any) -> Break:
    """Change a graph."""
    return lambda subject: artifacts.rewrite(subject, name, change)


WRONG_NUMBERS: dict[str, tuple[Break, str]] = {
    "the other rank's share": (lambda s: swapped(s, (0, OUTPUT.format(0)), (1, OUTPUT.format(0))), "logits"),
    "a wrong split": (shifted_split, "logits"),
    "swapped layers": (both_layers("layers.{}.mlp.down_proj.weight"), "logits"),
    "swapped query and key": (swapped_query_and_key, "logits"),
    "a norm that is a little off": (scaled_norm, "logits"),
    "no all-reduce": (graph(CONTEXT, artifacts.without("all-reduce", 1)), f"{CONTEXT}, prompts"),
    "no all-reduce in generation": (graph(GENERATION, artifacts.without("all-reduce", 3)), "greedy tokens"),
    "keys in wrong slots": (graph(CONTEXT, artifacts.in_result(1, artifacts.reversed_along(2))), "then 2 tokens more"),
    "rows that leak": (graph(CONTEXT, artifacts.in_result(4, artifacts.reversed_along(0))), "then 2 tokens more"),
    "values that are not kept": (graph(GENERATION, artifacts.result_is(2, "v_cache_0")), "greedy tokens"),
    "keys that are not written": (graph("context_encoding_8", artifacts.result_is(3, "k_cache_1")), "1 token more"),
    "a wrong position": (
        graph(GENERATION, artifacts.behind_parameter("position_ids", artifacts.later_in_later_rows)),
        "greedy tokens",
    ),
    "another last token": (
        graph(CONTEXT, artifacts.behind_parameter("position_ids", artifacts.later_in_later_rows)),
        f"{CONTEXT}, prompts",
    ),
    "ranks that disagree": (
        graph(GENERATION, artifacts.in_result(0, artifacts.more_on_later_ranks)),
        "logits of the other rank",
    ),
}


@pytest.mark.parametrize(("change", "where"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_numbers_are_caught(broken: Subject, change: Break, where: str) -> None:
    """Whatever of weights, collectives, caches and positions is wrong shows in logits, and the message says where."""
    change(broken)

    problems = found(broken)[1]

    assert problems != []
    assert any(where in problem.subject for problem in problems)


def test_only_what_reads_the_wrong_cache_fails(broken: Subject) -> None:
    """A graph that leaves out a cache gives right logits itself; the tokens after it do not."""
    artifacts.rewrite(broken, CONTEXT, artifacts.result_is(3, "k_cache_1"))

    failed = {check.input for check in found(broken)[0] if not check.comparison.passed}

    assert failed == {
        "context_encoding_4, prompts of 4 and 3 tokens, then 2 tokens more",
        "context_encoding_4, prompts of 1 and 4 tokens, then 2 tokens more",
        "5 greedy tokens after prompts of 4 and 2 tokens, the first a text",
    }


def test_graphs_that_take_minutes_run_once_each_aloud(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most telling prompts of each, and greedy tokens as ever."""
    monkeypatch.setattr(neuron, "_MULTIPLICATIONS", 0)

    items = list(validate(made, atol=None, rtol=None, trust_remote_code=False))

    assert items[0] == "graphs of 4 tokens and more ran on one batch each, since a run takes minutes here"
    assert [item.input for item in items if isinstance(item, Check)][:3] == [
        "context_encoding_8, prompts of 7 and 1 token, then 1 token more",
        "context_encoding_4, prompts of 4 and 3 tokens, then 2 tokens more",
        "5 greedy tokens after prompts of 4 and 2 tokens, the first a text",
    ]


@pytest.mark.parametrize(("behind", "passed"), [(0.19, True), (0.21, False)])
def test_a_chosen_token_may_be_behind_by_twice_the_limit(behind: float, passed: bool) -> None:
    """Of a logit, in the model's own eyes: two that are nearly equal may change places."""
    model = torch.tensor([[[1.0, 1.0 - behind, -3.0]]])
    graph = torch.tensor([[[0.9, 1.0, -3.0]]])
    limit = Tolerance(atol=0.1, rtol=0.0, reason="r")
    logits = Check(
        input="i",
        reference="r",
        comparison=compare({"logits": model}, {"logits": graph}, {"logits": limit}),
        decisive=True,
    )
    answers = Answers(sequences=torch.zeros(1, 2), positions=torch.ones(1, 1), logits=graph, disagreement=0.0)

    found = neuron._favourites(logits, model, answers)

    assert found.decisive
    assert found.comparison.passed == passed


def test_a_row_of_the_embedding_that_no_prompt_has_is_compared(broken: Subject) -> None:
    """Any of its bits, since only the rows of some tokens are fed to a graph."""
    table = artifacts.tensors(broken, 1)["embed_tokens.weight"].clone()
    table[20, 2] = torch.nextafter(table[20, 2], torch.tensor(9.0))
    artifacts.put(broken, 1, {"embed_tokens.weight": table})

    checks, problems = found(broken)

    assert problems_of(checks) == []
    assert "tp0_sharded_checkpoint.safetensors: embed_tokens.weight: row 20 is not row 20 of" in str(problems[0])


def test_a_wrong_cast_is_caught(narrow: Subject, tmp_path: Path) -> None:
    """Weights whose last bits were cut off instead of rounded."""
    broken = artifacts.copied(narrow, tmp_path / "artifact")
    stored = transformers.AutoModelForCausalLM.from_pretrained(broken.checkpoint).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    cut = (stored[name].view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
    artifacts.put(broken, 0, {name.removeprefix("model."): cut})

    checks, problems = found(broken)

    assert problems != []
    failed = [check for check in checks if check.decisive and not check.comparison.passed]
    assert all("float32 arithmetic" in check.input for check in failed)


def test_a_limit_that_was_given_is_the_only_one(broken: Subject) -> None:
    """A wide one accepts what ours would not; a narrow one refuses what ours accepts, against the model itself."""
    accepted = found(broken, atol=1e-9)[1]
    artifacts.rewrite(broken, CONTEXT, artifacts.without("all-reduce", 1))
    refused = found(broken, atol=1e3)[1]

    assert "within atol 1e-09" in accepted[0].expected
    assert "against the model in float32" in accepted[0].subject
    assert refused == []


# Files


def missing(subject: Subject) -> None:
    """Take a program away."""
    (subject.folder / f"graphs/{CONTEXT}.hlo.pb").unlink()


def truncated_graph(subject: Subject) -> None:
    """Cut off the end of a program."""
    path = subject.folder / f"graphs/{CONTEXT}.hlo.pb"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_weights(subject: Subject) -> None:
    """Cut off the end of a rank's file."""
    path = artifacts.rank_file(subject, 1)
    path.write_bytes(path.read_bytes()[:-8])


def changed_border(name: str, key: str, change: Callable[[Any], Any]) -> Break:
    """Change one entry of the file beside a graph."""

    def apply(subject: Subject) -> None:
        content = artifacts.border(subject, name)
        content[key] = change(content[key])
        artifacts.put_border(subject, name, content)

    return apply


def other_shape(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first value, of three rows."""
    return [{**values[0], "shape": [3, *values[0]["shape"][1:]]}, *values[1:]]


def without_aliases(subject: Subject) -> None:
    """Let no state be written over its parameter."""
    artifacts.rewrite(subject, GENERATION, lambda module: module.with_aliases(()))


def crossed_aliases(subject: Subject) -> None:
    """Let two states be written over each other's parameters."""

    def change(module: Any) -> Any:
        first, second, *rest = module.aliases
        crossed = (replace(first, parameter=second.parameter), replace(second, parameter=first.parameter))
        return module.with_aliases((*crossed, *rest))

    artifacts.rewrite(subject, GENERATION, change)


NORM = "layers.0.input_layernorm.weight"
WRONG_FILES: dict[str, tuple[Break, str]] = {
    "no graphs": (lambda s: [path.unlink() for path in (s.folder / "graphs").iterdir()], "no graphs; expected"),
    "a graph without program": (missing, r"context_encoding_4\.hlo\.pb: unreadable \(No such file"),
    "a graph without border": (lambda s: (s.folder / f"graphs/{CONTEXT}.json").unlink(), r"_4\.json: unreadable"),
    "a truncated graph": (truncated_graph, r"context_encoding_4\.hlo\.pb: .* bytes at byte"),
    "a border that is no JSON": (
        lambda s: (s.folder / f"graphs/{CONTEXT}.json").write_text("{"),
        r"_4\.json: not JSON",
    ),
    "a border of another format": (changed_border(CONTEXT, "format", lambda _: 2), "format 2"),
    "a border without names": (changed_border(CONTEXT, "name", lambda _: 3), "3 for a name"),
    "the border of another graph": (
        lambda s: artifacts.put_border(s, CONTEXT, artifacts.border(s, GENERATION)),
        "the border of token_generation; expected that of context_encoding_4",
    ),
    "another input shape": (changed_border(CONTEXT, "inputs", other_shape), r"parameter 0: s32\[2,4\]; expected"),
    "another output type": (
        changed_border(CONTEXT, "outputs", lambda values: [{**values[0], "dtype": "bf16"}]),
        r"result 0: f32\[2,1,44\]; expected logits bf16",
    ),
    "one weight too few": (
        changed_border(CONTEXT, "weights", lambda values: values[1:]),
        "parameters; expected .* by context_encoding_4.json",
    ),
    "another number of ranks": (changed_border(CONTEXT, "ranks", lambda _: 1), "1 ranks, .*; expected those of"),
    "states that are not donated": (without_aliases, "written over parameters: none; expected each state"),
    "states over one another": (crossed_aliases, "written over parameters: 1 over 3, 2 over 2"),
    "no generation": (
        lambda s: [(s.folder / f"graphs/{GENERATION}{end}").unlink() for end in (".json", ".hlo.pb")],
        "expected one token_generation",
    ),
    "a missing tensor": (lambda s: artifacts.put(s, 1, {}, gone=NORM), rf"tp1_.*{NORM}: missing; expected f32\[32\]"),
    "a surplus tensor": (
        lambda s: artifacts.put(s, 0, {"extra": torch.zeros(2)}),
        "tp0_.*extra: a tensor that no graph takes",
    ),
    "a misshapen tensor": (
        lambda s: artifacts.put(s, 0, {NORM: torch.zeros(31)}),
        rf"{NORM}: f32\[31\]; expected f32\[32\], which the graphs take",
    ),
    "a tensor of another type": (
        lambda s: artifacts.put(s, 0, {NORM: torch.zeros(32, dtype=torch.bfloat16)}),
        rf"{NORM}: bf16\[32\]; expected f32\[32\]",
    ),
    "another rank's number": (
        lambda s: artifacts.put(s, 1, {"rank_util.rank": torch.zeros(1, dtype=torch.int32)}),
        r"rank_util\.rank: .*the rank 1",
    ),
    "truncated weights": (truncated_weights, r"tp1_.*: \d+ bytes; expected \d+, by its header"),
    "no weights": (lambda s: artifacts.rank_file(s, 1).unlink(), "tp1_.*unreadable"),
    "weights that are none": (lambda s: artifacts.rank_file(s, 0).write_bytes(b"{}"), "no safetensors file"),
    "a rank too many": (
        lambda s: artifacts.rank_file(s, 2).write_bytes(b""),
        "tp2_.*: a file that no rank opens; expected 2 files",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_files_that_do_not_fit_are_named(broken: Subject, change: Break, message: str) -> None:
    """Before anything runs, with what was found and expected."""
    change(broken)

    with pytest.raises(MismatchError, match=message):
        list(validate(broken, atol=None, rtol=None, trust_remote_code=False))


def test_every_file_that_does_not_fit_is_named_at_once(broken: Subject) -> None:
    """A missing tensor of one rank, a surplus one of the other."""
    artifacts.put(broken, 0, {}, gone=NORM)
    artifacts.put(broken, 1, {"extra": torch.zeros(2)})

    assert said(broken).count("\n") == 1


def test_weights_in_another_order_than_the_graphs_are_caught(broken: Subject) -> None:
    """Two norms of one shape, exchanged in the border alone."""

    def exchange(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
        norms = [place for place, value in enumerate(values) if value["name"].endswith("layernorm.weight")]
        values[norms[0]], values[norms[1]] = values[norms[1]], values[norms[0]]
        return values

    changed_border(CONTEXT, "weights", exchange)(broken)

    assert f"{CONTEXT}, prompts" in said(broken)


# Encoders


def saved(task: str, folder: Path) -> Path:
    """A tiny encoder saved with the head of a task."""
    return tiny_encoders.save("roberta" if task == "multiple-choice" else "bert", task, folder)


def encoded(task: str, folder: Path, **asked: Any) -> Subject:
    """A tiny encoder's artifact for a task."""
    choices = 3 if task == "multiple-choice" else None
    return artifacts.encoder(
        saved(task, folder / "model"),
        folder / "artifact",
        task,
        batch=2,
        sequence=tiny_encoders.SEQUENCE,
        choices=choices,
        **asked,
    )


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """An encoder for feature extraction; not to be changed."""
    return encoded("feature-extraction", tmp_path_factory.mktemp("embedder"))


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("feature-extraction", ("last_hidden_state", "pooler_output")),
        ("fill-mask", ("logits",)),
        ("text-classification", ("logits",)),
        ("token-classification", ("logits",)),
        ("question-answering", ("start_logits", "end_logits")),
        ("multiple-choice", ("logits",)),
    ],
)
def test_an_encoder_passes_for_every_task(task: str, outputs: tuple[str, ...], tmp_path: Path) -> None:
    """Every output of transformers' class for the task, for full rows and padded ones."""
    checks, problems = found(encoded(task, tmp_path))

    decisive = [check for check in checks if check.decisive]
    assert problems == []
    assert [check.comparison.names_expected for check in decisive] == [outputs] * 2
    assert [check.input for check in decisive] == ["fixed tokens, full rows", "fixed tokens, padded rows"]
    assert worst(checks) < 0.3


def test_hidden_states_and_attentions_are_compared_if_asked_for(tmp_path: Path) -> None:
    """By the names of their layers."""
    subject = encoded("feature-extraction", tmp_path, states=True)

    checks, problems = found(subject)
    left_out = said(replace(subject, output_attentions=False))

    assert problems == []
    assert checks[0].comparison.names_expected == (
        *("last_hidden_state", "pooler_output"),
        *("hidden_states.0", "hidden_states.1", "attentions.0"),
    )
    assert "outputs: last_hidden_state" in left_out


def test_a_16_bit_encoder_passes(tmp_path: Path) -> None:
    """In both kinds of arithmetic, as a decoder; its own within what that costs the model."""
    checks, problems = found(encoded("token-classification", tmp_path, dtype="bfloat16"))

    assert problems == []
    assert sum("float32 arithmetic" in check.input for check in checks) == 2
    proofs = [check for check in checks if check.decisive and "float32 arithmetic" not in check.input]
    assert [check.comparison.verdicts[0].reason for check in proofs] == [
        "8 times what bf16 arithmetic does to this output of the model in transformers"
    ] * 2


def test_a_dynamic_batch_is_run_in_chunks(embedder: Subject) -> None:
    """Twice the rows of the graph."""
    checks, problems = found(replace(embedder, dynamic_batch_size=True))

    assert problems == []
    assert checks[0].input == "fixed tokens, full 2 x 2 rows"
    assert checks[0].comparison.verdicts[0].shape_found == (4, tiny_encoders.SEQUENCE, 16)


def test_embeddings_of_texts_are_compared_by_their_cosine(embedder: Subject) -> None:
    """The mean over a row's own tokens; it informs, and rejects nothing."""
    checks = [check for check in found(embedder)[0] if "cosine" in check.comparison.names_expected[0]]

    assert [check.decisive for check in checks] == [False, False]
    assert all(check.comparison.verdicts[0].max_abs < 1e-6 for check in checks)


def swapped_in_encoder(one: str, other: str) -> Break:
    """Exchange two tensors of an encoder."""

    def change(subject: Subject) -> None:
        names = artifacts.tensors(subject, 0)
        first, second = (next(name for name in names if name.endswith(end)) for end in (one, other))
        swapped(subject, (0, first), (0, second))

    return change


def padding_seen(value: Any, ids: Iterator[int]) -> list[Any]:
    """A mask that holds where it holds in the row read backwards, too."""
    back = artifacts.operation("reverse", value.shape, next(ids), value, dimensions=(1,))
    return [back, artifacts.operation("maximum", value.shape, next(ids), value, back)]


def without_types(value: Any, ids: Iterator[int]) -> list[Any]:
    """Zeros."""
    return [artifacts.operation("subtract", value.shape, next(ids), value, value)]


WRONG_ENCODERS: dict[str, Break] = {
    "swapped query and key": swapped_in_encoder("query.weight", "key.weight"),
    "swapped biases": swapped_in_encoder("query.bias", "value.bias"),
    "a mask that hides nothing": graph("model", artifacts.behind_parameter("attention_mask", padding_seen)),
    "token types left out": graph("model", artifacts.behind_parameter("token_type_ids", without_types)),
    "rows exchanged": graph("model", artifacts.in_result(0, artifacts.reversed_along(0))),
    "swapped outputs": changed_border("model", "outputs", lambda values: [{**values[0], "name": "x"}, values[1]]),
}


@pytest.mark.parametrize("change", WRONG_ENCODERS.values(), ids=WRONG_ENCODERS)
def test_a_wrong_encoder_is_caught(embedder: Subject, tmp_path: Path, change: Break) -> None:
    """Weights, masks, types, rows and names."""
    broken = artifacts.copied(embedder, tmp_path / "artifact")
    change(broken)

    assert said(broken) != ""


def test_an_encoder_of_two_graphs_is_none(embedder: Subject, tmp_path: Path) -> None:
    """Nor is a decoder's artifact one."""
    broken = artifacts.copied(embedder, tmp_path / "artifact")
    content = artifacts.border(broken, "model")
    artifacts.put_border(broken, "other", {**content, "name": "other"})
    (broken.folder / "graphs/other.hlo.pb").write_bytes((broken.folder / "graphs/model.hlo.pb").read_bytes())

    assert "expected one graph, an encoder of one rank" in said(broken)


# --auto-cast


class Rounded(TorchFunctionMode):
    """Rounds the operands of every matrix product to bfloat16; sums are float32."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        products = (torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
        if function in products:
            left, right, *rest = arguments
            arguments = (left.bfloat16().float(), right.bfloat16().float(), *rest)
        return function(*arguments, **({} if named is None else named))


def test_a_prediction_is_the_model_with_rounded_operands(embedder: Subject) -> None:
    """The model of transformers, its products intercepted, gives what the rewritten graph gave."""
    subject = replace(embedder, auto_cast="matmul", auto_cast_type="bf16")
    (check, *_) = [
        item
        for item in predict(subject, "matmul", "bf16", atol=None, rtol=None, trust_remote_code=False)
        if isinstance(item, Check)
    ]
    model = transformers.AutoModel.from_pretrained(subject.checkpoint, attn_implementation="eager")
    ids = neuron.fixed_tokens(model.config.vocab_size, batch=2, sequence=tiny_encoders.SEQUENCE)
    types = (torch.arange(tiny_encoders.SEQUENCE) >= tiny_encoders.SEQUENCE // 2).long().expand(2, -1)

    with torch.no_grad(), Rounded():
        expected = model(input_ids=ids, token_type_ids=types).last_hidden_state

    verdict = check.comparison.verdicts[0]
    assert "as --auto-cast matmul --auto-cast-type bf16 will compute it" in check.input
    assert not check.decisive
    assert verdict.max_abs > 1e-4
    assert verdict.worst_found == pytest.approx(float(expected[verdict.worst]), abs=verdict.max_abs / 20)


def test_a_validation_says_what_the_cast_will_cost(embedder: Subject) -> None:
    """Beside the proof, and without rejecting anything."""
    checks, problems = found(replace(embedder, auto_cast="all", auto_cast_type="fp16"))

    predicted = [check for check in checks if "--auto-cast all --auto-cast-type fp16" in check.input]
    assert problems == []
    assert len(predicted) == 4
    assert not any(check.decisive for check in predicted)


def test_a_prediction_beyond_a_given_limit_rejects(embedder: Subject) -> None:
    """Whoever gives --atol learns before the compile that the cast breaks it."""
    checks = [
        item
        for item in predict(embedder, "matmul", "bf16", atol=1e-5, rtol=None, trust_remote_code=False)
        if isinstance(item, Check)
    ]

    assert "within atol 1e-05" in problems_of(checks)[0].expected


def test_decoders_are_predicted_on_the_tokens_they_chose(made: Subject) -> None:
    """All ranks with rounded operands; the same top-1 token is in the report."""
    items = list(predict(made, "matmul", "tf32", atol=None, rtol=None, trust_remote_code=False))

    (check,) = [item for item in items if isinstance(item, Check)]
    verdict = check.comparison.verdicts[0]
    assert check.input.startswith(
        "5 greedy tokens after prompts of 4 and 2 tokens, the first a text, as --auto-cast matmul"
    )
    assert verdict.top1 is not None
    assert 1e-5 < verdict.max_abs < 0.1


def test_a_cast_that_changes_nothing_is_said(narrow: Subject) -> None:
    """A bfloat16 graph has no float32 products."""
    items = list(predict(narrow, "matmul", "bf16", atol=None, rtol=None, trust_remote_code=False))

    assert "--auto-cast matmul --auto-cast-type bf16 changes nothing" in str(items[0])


# Split weights


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """Writes the split checkpoint of a model with a tied head in bfloat16; gives what to check it with."""
    checkpoint = models.save("gpt2", tmp_path_factory.mktemp("split") / "model")

    def write(folder: Path) -> dict[str, Any]:
        with WorkDirectory(folder, job={}, resume=False, force=False) as work:
            write_split(open_checkpoint(checkpoint), work, "", BF16)
            work.publish()
        return {
            "folder": folder,
            "checkpoint": checkpoint,
            "weight_files": sorted(checkpoint.glob("*.safetensors")),
            "dtype": torch.bfloat16,
            "with_head": True,
            "trust_remote_code": False,
        }

    return write


def file_of(folder: Path, key: str) -> Path:
    """The file of a key."""
    files = json.loads((folder / "pytorch_model.bin/key_to_filename.json").read_text())
    return folder / "pytorch_model.bin" / files[key]


def changed_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    """Change key_to_filename.json."""

    def apply(folder: Path) -> None:
        path = folder / "pytorch_model.bin/key_to_filename.json"
        files = json.loads(path.read_text())
        result = change(files)
        path.write_text(json.dumps(files if result is None else result))

    return apply


def exchanged(files: dict[str, str]) -> None:
    """Let two keys name the file of the other."""
    first, second = WEIGHT, WEIGHT.replace("h.0", "h.1")
    files[first], files[second] = files[second], files[first]


def truncated(folder: Path) -> None:
    """Cut off the end of a file."""
    path = file_of(folder, WEIGHT)
    path.write_bytes(path.read_bytes()[:-60])


def last_bit(folder: Path) -> None:
    """Flip the last bit of the last number."""
    path = file_of(folder, WEIGHT)
    tensor = torch.load(path, weights_only=True)
    tensor.view(torch.int16)[-1, -1] ^= 1
    torch.save(tensor, path)


WEIGHT = "transformer.h.0.mlp.c_fc.weight"
WRONG_SPLITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no table": (lambda f: (f / "pytorch_model.bin/key_to_filename.json").unlink(), "key_to_filename.json: unreadable"),
    "a table that is none": (changed_index(lambda _: []), "no map of tensors to files"),
    "a table out of the folder": (changed_index(lambda files: {"a": "../a"}), "no map of tensors to files"),
    "one file twice": (changed_index(lambda files: files.update(a=files[WEIGHT])), "two tensors in one file"),
    "a missing key": (changed_index(lambda files: files.pop(WEIGHT) and None), f"{WEIGHT}: missing"),
    "no tied head": (changed_index(lambda files: files.pop("lm_head.weight") and None), r"lm_head\.weight: missing"),
    "a surplus key": (changed_index(lambda files: files.update(a="a")), "a: not in the checkpoint"),
    "a surplus file": (lambda f: (f / "pytorch_model.bin/a").write_text(""), "a file that .* does not name"),
    "swapped files": (changed_index(exchanged), f"another value at byte .*; expected {WEIGHT}"),
    "a truncated file": (truncated, "unreadable"),
    "a missing file": (lambda f: file_of(f, WEIGHT).unlink(), "unreadable"),
    "another type": (
        lambda f: torch.save(torch.load(file_of(f, WEIGHT), weights_only=True).half(), file_of(f, WEIGHT)),
        r"float16\[32, 36\]; expected bfloat16\[32, 36\]",
    ),
    "no tensor": (lambda f: torch.save([1], file_of(f, WEIGHT)), "a list; expected the tensor"),
    "one bit": (last_bit, "another value at byte 2302"),
}


def test_a_split_checkpoint_passes(split: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    """Every tensor, cast, and the tied head under its own key."""
    check_split(**split(tmp_path / "out"))


@pytest.mark.parametrize(("change", "message"), WRONG_SPLITS.values(), ids=WRONG_SPLITS)
def test_a_broken_split_checkpoint_is_caught(
    split: Callable[[Path], dict[str, Any]], tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    """Bit for bit, by the file's name."""
    given = split(tmp_path / "out")
    change(given["folder"])

    with pytest.raises(MismatchError, match=message):
        check_split(**given)


def test_a_validation_looks_into_the_split_weights_too(
    narrow: Subject, split: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    """Those of another model are not this one's."""
    given = split(tmp_path / "out")

    problems = found(replace(narrow, split=given["folder"]))[1]

    assert any("pytorch_model.bin" in problem.subject for problem in problems)
