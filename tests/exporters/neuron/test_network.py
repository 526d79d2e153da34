"""The network of every family on any number of ranks gives transformers' logits, eagerly and as a graph on XLA."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import models
from llmcompile import hlo
from llmcompile.exporters.neuron.families import FAMILIES
from llmcompile.exporters.neuron.layout import buckets
from llmcompile.exporters.neuron.lowering.program import Lowered
from llmcompile.exporters.neuron.network import Decoder, export_graphs
from llmcompile.exporters.neuron.rows import RANK
from llmcompile.validation.xla import Executable, place
from neuron_decoders import (
    SLOTS,
    Runner,
    Written,
    decoders_of,
    expected,
    followed,
    options_for,
    padded,
    simulated,
    texts,
    write,
)

LENGTHS, STEPS, BUCKET = (5, 1, 9), 4, 10
ATOL = 5e-5
"""On logits up to 19 in float32; the largest error seen is 2e-5, of Gemma, most are 5e-6."""
DECODERS = [name for name in models.FAMILIES if name not in ("bert", "bart", "t5", "t5_v11", "mt5")]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}


def reference(family: str, config: Mapping[str, Any], folder: Path) -> transformers.PreTrainedModel:
    """A model, saved to a folder; eager attention, since Gemma 2's soft cap is left out by the other kinds."""
    model = models.build(family, config=config)
    model.set_attn_implementation("eager")
    model.save_pretrained(folder)
    return model


def eager(monkeypatch: pytest.MonkeyPatch, written: Written) -> Callable[..., Tensor]:
    """What follows texts on all ranks in lockstep: `neuron_decoders.followed` with its runner."""

    def follow(*arguments: Any, **named: Any) -> Tensor:
        decoders = decoders_of(written)
        with simulated(monkeypatch, len(decoders)) as together:

            def run(ids: Tensor, positions: Tensor) -> list[Tensor]:
                return together.run([lambda decoder=decoder: decoder(ids, positions) for decoder in decoders])

            return followed(run, *arguments, **named)

    return follow


def logits_of(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, ranks: int, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Ours, and those of transformers, for three rows with prompts of different lengths and some tokens behind each."""
    model = reference(family, config, folder / "hf")
    rows = texts(LENGTHS, STEPS, vocab=models.VOCAB)
    written = write(folder / "hf", folder / "out", options_for(ranks=ranks, batch=len(LENGTHS)))
    found = eager(monkeypatch, written)(rows, LENGTHS, STEPS, bucket=BUCKET)
    return found, expected(model, rows, LENGTHS, STEPS)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_those_of_transformers(
    family: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind prompts of 5, 1 and 9 tokens in one batch, and behind four more tokens each."""
    found, wanted = logits_of(family, tmp_path, monkeypatch, ranks=ranks, config={})

    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": 4}),
        ("mixtral", {"sliding_window": 4, "num_experts_per_tok": 3}),
        ("phi3", {"sliding_window": 4}),
        ("starcoder2", {"sliding_window": 4, "use_bias": False}),
        ("gemma2", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "attention_bias": True}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4, "norm_topk_prob": True}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": LLAMA3, "hidden_act": "gelu"}),
        ("qwen3", {"rope_scaling": YARN}),
        ("qwen3", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8, "truncate": False, "beta_fast": 8}}),
        ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "activation_function": "quick_gelu"}),
        ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("bloom", {"n_head": 6, "hidden_size": 48}),
        ("falcon_rw", {"num_attention_heads": 6, "hidden_size": 48}),
        ("falcon_40b", {"num_ln_in_parallel_attn": 1, "bias": True}),
        ("falcon_7b", {"parallel_attn": False}),
        ("gptneox", {"tie_word_embeddings": True, "rotary_pct": 1.0}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("phi", {"num_key_value_heads": 2, "partial_rotary_factor": 0.25}),
        ("qwen2_moe", {"norm_topk_prob": True, "num_experts": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_options_of_a_family_are_computed(
    family: str, config: dict[str, Any], ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, scaled rotary embeddings, biases, caps and orders of norms that its config.json may ask for."""
    found, wanted = logits_of(family, tmp_path, monkeypatch, ranks=ranks, config=config)

    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("family", "ranks"),
    [
        ("llama_gqa", 3),
        ("llama_gqa", 8),
        ("bloom", 3),
        ("falcon_40b", 8),
        ("mpt", 6),
        ("gpt_bigcode", 8),
        ("gemma2", 3),
    ],
)
def test_heads_need_not_divide(family: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four heads on three, six and eight ranks: padded, repeated, and with their own ALiBi slopes."""
    found, wanted = logits_of(family, tmp_path, monkeypatch, ranks=ranks, config={})

    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=0)


def test_mpt_has_the_options_of_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped q, k and v, and a scale of the scores."""
    config = {"attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.3, "alibi_bias_max": 8}}
    found, wanted = logits_of("mpt", tmp_path, monkeypatch, ranks=2, config=config)

    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=0)


def test_longrope_changes_for_rows_that_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two prompts in one batch, the one past the original positions has the long factors from its first token on."""
    config = {"rope_scaling": LONGROPE, "original_max_position_embeddings": 8}
    model = reference("phi3", config, tmp_path / "hf")
    lengths = (5, 11)
    rows = texts(lengths, 0, vocab=models.VOCAB)
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=1))

    found = eager(monkeypatch, written)(rows, lengths, 0, bucket=12)

    torch.testing.assert_close(found, expected(model, rows, lengths, 0), atol=ATOL, rtol=0)


def test_qwen_1_is_qwen_2_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code does what Qwen2's does with a head of k and v for each of q; its checkpoint fuses q, k and v."""
    model = models.build("qwen2", config={"num_key_value_heads": 4})
    state = model.state_dict()
    made = {"transformer.wte.weight": state["model.embed_tokens.weight"]}
    made |= {"transformer.ln_f.weight": state["model.norm.weight"], "lm_head.weight": state["lm_head.weight"]}
    for layer in range(2):
        old, new = f"model.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            made[f"{new}.attn.c_attn.{kind}"] = torch.cat(parts)
        names = {
            "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.w1",
            "mlp.gate_proj": "mlp.w2",
            "mlp.down_proj": "mlp.c_proj",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
        }
        made |= {f"{new}.{now}.weight": state[f"{old}.{then}.weight"] for then, now in names.items()}
    config = {
        "architectures": ["QWenLMHeadModel"],
        "vocab_size": models.VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "intermediate_size": 72,
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, tmp_path / "hf" / "model.safetensors")
    rows = texts(LENGTHS, STEPS, vocab=models.VOCAB)
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=2, batch=3))

    found = eager(monkeypatch, written)(rows, LENGTHS, STEPS, bucket=BUCKET)

    torch.testing.assert_close(found, expected(model, rows, LENGTHS, STEPS), atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gemma2", "mixtral", "bloom"])
def test_sixteen_bits_cost_little(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, whose steps are 1/128, logits of up to 19 are off by less than 0.3, and are float32 all the same."""
    model = models.build(family, dtype="bfloat16").float()
    model.set_attn_implementation("eager")
    model.bfloat16().save_pretrained(tmp_path / "hf")
    rows = texts(LENGTHS, STEPS, vocab=models.VOCAB)
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=2, batch=3))

    found = eager(monkeypatch, written)(rows, LENGTHS, STEPS, bucket=BUCKET)

    assert written.layout.dtype.name == "bf16"
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(model.float(), rows, LENGTHS, STEPS), atol=0.3, rtol=0)


def test_padding_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bucket a prompt is put into."""
    reference("llama_gqa", {"sliding_window": 4}, tmp_path / "hf")
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=1))
    rows = texts((3, 7), STEPS, vocab=models.VOCAB)
    follow = eager(monkeypatch, written)

    small, large = (follow(rows, (3, 7), STEPS, bucket=bucket) for bucket in (7, SLOTS))

    torch.testing.assert_close(small, large, atol=5e-6, rtol=0)


def test_a_prompt_may_fill_the_cache_and_a_new_one_begin(tmp_path: Path) -> None:
    """What an earlier prompt left in the cache is never seen."""
    model = reference("llama", {}, tmp_path / "hf")
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=1, batch=1))
    (decoder,) = decoders_of(written)
    first, second = texts((SLOTS, 4), 1, vocab=models.VOCAB)

    with torch.no_grad():
        decoder(*padded([first[:SLOTS]], SLOTS))
        found = [decoder(*padded([second[:4]], 5)), decoder(*padded_at(second[4], 4))]

    torch.testing.assert_close(torch.cat(found, 1), expected(model, [second], [4], 1), atol=ATOL, rtol=0)


def padded_at(token: int, position: int) -> tuple[Tensor, Tensor]:
    """One token where it goes."""
    return torch.tensor([[token]], dtype=torch.int32), torch.tensor([[position]], dtype=torch.int32)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("family", DECODERS)
def test_parameters_are_the_tensors_of_the_ranks_file(family: str, ranks: int, tmp_path: Path) -> None:
    """By name, shape and type; only the number of the rank may be left over."""
    models.save(family, tmp_path / "hf", dtype="float16")
    if family in ("qwen2_moe", "qwen3_moe") and ranks == 3:
        pytest.skip("their experts do not divide by three")
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=ranks))

    (decoder, *_) = decoders_of(written, device="meta")

    parameters = {name: (tensor.shape, tensor.dtype) for name, tensor in decoder.named_parameters()}
    stored = {name: (tensor.shape, tensor.dtype) for name, tensor in written.ranks[0].items()}
    assert parameters.items() <= stored.items()
    assert all(name.endswith(RANK) for name in stored.keys() - parameters.keys())
    assert all(tensor.is_meta for tensor in (*decoder.parameters(), *decoder.buffers()))


def test_caches_are_in_order_and_not_saved(tmp_path: Path) -> None:
    """Keys and values of each layer, (batch, heads of the rank, tokens, head); no part of the state dict."""
    models.save("llama_gqa", tmp_path / "hf")
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=4, batch=3))

    (decoder, *_) = decoders_of(written, device="meta")

    assert decoder.states == ("k_cache_0", "v_cache_0", "k_cache_1", "v_cache_1")
    assert {decoder.get_buffer(name).shape for name in decoder.states} == {torch.Size((3, 1, SLOTS, 8))}
    assert not set(decoder.states) & set(decoder.state_dict())


def test_a_large_model_is_built_without_memory() -> None:
    """Nothing of it but names and shapes."""
    from llmcompile.architectures import lookup

    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
    }
    architecture = lookup(config)
    decoder = Decoder(
        architecture, architecture.dims(config), batch=1, sequence_length=4096, ranks=32, dtype=torch.bfloat16
    )

    assert sum(parameter.numel() for parameter in decoder.parameters()) * 32 > 70e9
    assert sum(tensor.nbytes for tensor in decoder.constants.values()) < 1000


# The same as graphs


def graphs_of(written: Written) -> dict[str, Lowered]:
    """Every graph by name."""
    made = export_graphs(written.architecture, written.dims, written.options, dtype=written.layout.dtype)
    return {graph.signature.name: graph for graph in made}


def on_xla(written: Written, graphs: Mapping[str, Lowered]) -> Runner:
    """Runs graphs on all ranks by XLA's CPU client, going on from the caches of the last call."""
    ranks = len(written.ranks)
    compiled = {name: Executable(graph.module, ranks) for name, graph in graphs.items()}
    weights = {
        name: [
            place([weight_of(graph, tensors, value.name) for tensors in written.ranks])
            for value in graph.signature.weights
        ]
        for name, graph in graphs.items()
    }
    first = graphs["token_generation"].signature
    states = [place([np.zeros(value.shape, np.float32) for _ in range(ranks)]) for value in first.states]

    def run(ids: Tensor, positions: Tensor) -> list[Tensor]:
        name = "token_generation" if ids.shape[1] == 1 else f"context_encoding_{ids.shape[1]}"
        inputs = [place([tensor.numpy().copy() for _ in range(ranks)]) for tensor in (ids, positions)]
        results = compiled[name].run([*inputs, *states, *weights[name]])
        states[:] = results[1:]
        return [torch.from_numpy(np.array(rank)) for rank in results[0].fetch()]

    return run


def weight_of(graph: Lowered, weights: Mapping[str, Tensor], name: str) -> Any:
    """A parameter's value."""
    return (graph.constants[name] if name in graph.constants else weights[name]).numpy()


@pytest.mark.parametrize(
    ("family", "ranks"),
    [("gpt2", 1), ("gptneox", 2), ("qwen3_moe", 2), ("gemma2", 2), ("bloom", 3), ("llama_gqa", 4)],
)
def test_graphs_give_transformers_logits(family: str, ranks: int, tmp_path: Path) -> None:
    """Lowered to HLO and run by XLA on as many replicas as there are ranks, with real collectives."""
    config = {"gemma2": {"sliding_window": 4}, "gpt2": {"n_layer": 1}, "bloom": {"n_layer": 1}}
    model = reference(family, config.get(family, {"num_hidden_layers": 1}), tmp_path / "hf")
    rows = texts((5, 9), STEPS, vocab=models.VOCAB)
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=ranks))
    graphs = graphs_of(written)

    found = followed(on_xla(written, graphs), rows, (5, 9), STEPS, bucket=SLOTS)

    assert list(graphs) == [f"context_encoding_{SLOTS}", "token_generation"]
    torch.testing.assert_close(found, expected(model, rows, (5, 9), STEPS), atol=ATOL, rtol=0)


def test_there_is_a_graph_for_every_bucket(tmp_path: Path) -> None:
    """Their borders have the bucket's tokens; states are the caches, and weights the rank's file without its number."""
    models.save("llama_gqa", tmp_path / "hf", dtype="bfloat16", config={"num_hidden_layers": 1})
    options = options_for(ranks=2, buckets=(4,))
    written = write(tmp_path / "hf", tmp_path / "out", options)

    graphs = graphs_of(written)

    assert buckets(options) == (4, SLOTS)
    assert list(graphs) == ["context_encoding_4", f"context_encoding_{SLOTS}", "token_generation"]
    for tokens, graph in zip((4, SLOTS, 1), graphs.values(), strict=True):
        border = graph.signature
        assert [(value.name, value.dtype, value.shape) for value in border.inputs] == [
            ("input_ids", "s32", (2, tokens)),
            ("position_ids", "s32", (2, tokens)),
        ]
        assert [(value.name, value.dtype, value.shape) for value in border.outputs] == [
            ("logits", "f32", (2, 1, models.VOCAB))
        ]
        assert {(value.dtype, value.shape) for value in border.states} == {("bf16", (2, 1, SLOTS, 8))}
        assert [value.name for value in border.states] == ["k_cache_0", "v_cache_0"]
        stored = {name: tuple(tensor.shape) for name, tensor in written.ranks[0].items() if not name.endswith(RANK)}
        assert {value.name: value.shape for value in border.weights} == stored
        assert graph.constants == {}


def test_a_large_table_is_in_the_graph(tmp_path: Path) -> None:
    """Falcon's rounded ALiBi biases of 10000 positions: every rank's, of which each takes its own; no file has them."""
    models.save("falcon_rw", tmp_path / "hf", config={"num_hidden_layers": 1})
    written = write(tmp_path / "hf", tmp_path / "out", options_for(ranks=2, slots=10000, buckets=(4,)))

    graph = next(export_graphs(written.architecture, written.dims, written.options, dtype=written.layout.dtype))

    shapes = [one.shape for one in hlo.parse(graph.module).instructions if one.opcode == "constant"]
    assert ("bf16", (2, 2, 10000)) in [(shape.dtype, shape.dims) for shape in shapes]
    assert graph.constants == {}
    assert RANK in {value.name for value in graph.signature.weights}


def test_every_family_has_a_network_that_can_be_tested() -> None:
    """A new one needs a tiny checkpoint here; Meta's LLaMA and Qwen 1 have none in transformers."""
    covered = {name.removesuffix("_gqa").split("_rw")[0].split("_7b")[0].split("_40b")[0] for name in DECODERS}

    assert set(FAMILIES) - covered == {"meta_llama", "qwen"}
