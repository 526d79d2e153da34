"""The streaming reference equals `from_pretrained`, for every family and every way a checkpoint is saved."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmcompile.errors import CheckpointError, UnsupportedError
from llmcompile.validation.reference import (
    describe,
    embedding_tables,
    fixed_tokens,
    lean_attention,
    parameter_sources,
    prompt_tokens,
    run_reference,
    run_task,
)

VOCAB = 44
TEN = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {**TEN, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 20}
OPT = {
    **TEN,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 28,
    "max_position_embeddings": 20,
    "word_embed_proj_dim": 24,
}
LLAMA = {
    **TEN,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 28,
    "max_position_embeddings": 20,
}
NEOX = {
    **TEN,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "max_position_embeddings": 20,
    "rotary_pct": 0.25,
}
BERT = {
    **TEN,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "max_position_embeddings": 20,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 28,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class _Model:
    """A config class, its arguments, and the auto class that `from_pretrained` is asked of."""

    config: type[Any]
    arguments: Mapping[str, Any]
    auto: type[Any]


CAUSAL = {
    "gpt2": _Model(transformers.GPT2Config, GPT2, transformers.AutoModelForCausalLM),
    "gpt2-untied": _Model(
        transformers.GPT2Config, {**GPT2, "tie_word_embeddings": False}, transformers.AutoModelForCausalLM
    ),
    "opt": _Model(transformers.OPTConfig, OPT, transformers.AutoModelForCausalLM),
    "opt-350m": _Model(
        transformers.OPTConfig,
        {**OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False},
        transformers.AutoModelForCausalLM,
    ),
    "bloom": _Model(
        transformers.BloomConfig,
        {**TEN, "hidden_size": 24, "n_layer": 2, "n_head": 4},
        transformers.AutoModelForCausalLM,
    ),
    "gptj": _Model(
        transformers.GPTJConfig,
        {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False},
        transformers.AutoModelForCausalLM,
    ),
    "gptneox": _Model(transformers.GPTNeoXConfig, NEOX, transformers.AutoModelForCausalLM),
    "gptneox-sequential": _Model(
        transformers.GPTNeoXConfig,
        {**NEOX, "use_parallel_residual": False, "tie_word_embeddings": True},
        transformers.AutoModelForCausalLM,
    ),
    "llama": _Model(transformers.LlamaConfig, LLAMA, transformers.AutoModelForCausalLM),
    "llama-tied": _Model(
        transformers.LlamaConfig, {**LLAMA, "tie_word_embeddings": True}, transformers.AutoModelForCausalLM
    ),
    "mistral": _Model(transformers.MistralConfig, {**LLAMA, "sliding_window": 4}, transformers.AutoModelForCausalLM),
    "qwen2": _Model(transformers.Qwen2Config, LLAMA, transformers.AutoModelForCausalLM),
    "gemma": _Model(transformers.GemmaConfig, {**LLAMA, "head_dim": 8}, transformers.AutoModelForCausalLM),
    "phi": _Model(transformers.PhiConfig, {**LLAMA, "partial_rotary_factor": 0.67}, transformers.AutoModelForCausalLM),
    "falcon": _Model(
        transformers.FalconConfig,
        {**TEN, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
        transformers.AutoModelForCausalLM,
    ),
}
SEQ2SEQ = {
    "t5": _Model(transformers.T5Config, T5, transformers.AutoModelForSeq2SeqLM),
    "t5-v1.1": _Model(
        transformers.T5Config,
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        transformers.AutoModelForSeq2SeqLM,
    ),
    "mt5": _Model(
        transformers.MT5Config,
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        transformers.AutoModelForSeq2SeqLM,
    ),
}
ENCODER = _Model(transformers.BertConfig, BERT, transformers.AutoModel)


class _Files:
    """`model.safetensors` of a directory, read one tensor at a time."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "model.safetensors"

    def names(self) -> Collection[str]:
        with safe_open(self._path, framework="pt") as file:
            return set(file.keys())

    def read(self, name: str) -> Tensor:
        with safe_open(self._path, framework="pt") as file:
            return file.get_tensor(name).clone()


class _Copies:
    """All of a checkpoint, each read a copy: only the copies are new memory."""

    def __init__(self, directory: Path) -> None:
        files = _Files(directory)
        self._tensors = {name: files.read(name) for name in files.names()}

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        return self._tensors[name].clone()


def built(model: _Model, auto: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    """Build the model with every parameter drawn from N(0, 0.3), so that one left unread cannot go unnoticed."""
    torch.manual_seed(7)
    made = (model.auto if auto is None else auto).from_config(model.config(**model.arguments))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3)
    return made.to(dtype)


def loaded(directory: Path, auto: Any, **arguments: Any) -> Any:
    """Load the files as transformers itself does, in float32 and eval mode."""
    model = auto.from_pretrained(directory, local_files_only=True, attn_implementation="eager", **arguments)
    return model.float().eval()


def logits(directory: Path, tokens: Tensor) -> Tensor:
    """Compute the oracle's logits, from the whole model in memory."""
    with torch.inference_mode():
        mask = torch.ones_like(tokens)
        return loaded(directory, transformers.AutoModelForCausalLM)(input_ids=tokens, attention_mask=mask).logits


def streamed(directory: Path, tokens: Tensor, **arguments: Any) -> Tensor:
    """Compute the streaming logits of a causal model."""
    found = run_reference(
        directory, _Files(directory), tokens=tokens, decoder_tokens=None, encoder_only=False, **arguments
    )
    assert set(found.outputs) == {"logits"}
    assert found.hidden is None
    return found.outputs["logits"]


def rewritten(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors in the checkpoint's file by what `change` makes of them."""
    files = _Files(directory)
    tensors = change({name: files.read(name) for name in files.names()})
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.fixture
def tokens() -> Tensor:
    """Two rows of seven ids that include the first and the last of the vocabulary."""
    ids = fixed_tokens(VOCAB, batch=2, sequence=7)
    ids[1, 2] = 0
    return ids


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_logits_equal_from_pretrained(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """A causal model streamed gives the very logits of the whole model, saved as transformers saves it."""
    built(CAUSAL[name]).save_pretrained(tmp_path)

    found = streamed(tmp_path, tokens)

    assert torch.equal(found, logits(tmp_path, tokens))
    assert found.shape == (2, 7, VOCAB)
    assert found.std() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "opt", "opt-350m", "bloom", "llama-tied", "gptneox-sequential", "falcon"])
def test_causal_logits_of_a_headless_checkpoint(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """A tied model saved as its base model, without prefix and without head, gives the same logits."""
    built(CAUSAL[name]).base_model.save_pretrained(tmp_path)
    prefix = f"{built(CAUSAL[name]).base_model_prefix}."
    assert not any(stored.startswith(prefix) for stored in _Files(tmp_path).names())

    found = streamed(tmp_path, tokens)

    assert torch.equal(found, logits(tmp_path, tokens))


@pytest.mark.parametrize("name", ["gpt2-untied", "gptj", "llama"])
def test_untied_head_beside_a_base_without_prefix(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """An untied head is read under its own name although the base model's tensors have lost their prefix."""
    model = built(CAUSAL[name])
    model.save_pretrained(tmp_path)
    expected = logits(tmp_path, tokens)
    prefix = f"{model.base_model_prefix}."
    rewritten(tmp_path, lambda tensors: {stored.removeprefix(prefix): tensor for stored, tensor in tensors.items()})

    found = streamed(tmp_path, tokens)

    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt", "llama-tied"])
def test_tied_head_that_is_stored_as_well_is_ignored(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """The input embedding is the head of a tied model, whatever lm_head the file holds."""
    built(CAUSAL[name]).save_pretrained(tmp_path)
    expected = logits(tmp_path, tokens)
    head = torch.ones(VOCAB, CAUSAL[name].arguments.get("hidden_size", 24))
    rewritten(tmp_path, lambda tensors: {**tensors, "lm_head.weight": head})

    found = streamed(tmp_path, tokens)

    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "gptneox", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_checkpoints_are_computed_in_float32(
    name: str, dtype: torch.dtype, tmp_path: Path, tokens: Tensor
) -> None:
    """Weights stored in 16 bits are widened, and rotary tables are not narrowed with them."""
    built(CAUSAL[name], dtype=dtype).save_pretrained(tmp_path)

    found = streamed(tmp_path, tokens)

    whole = built(CAUSAL[name]).eval()
    whole.load_state_dict({key: value.to(dtype).float() for key, value in whole.state_dict().items()})
    whole.config._attn_implementation = "eager"
    with torch.inference_mode():
        assert torch.allclose(found, whole(input_ids=tokens).logits, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "llama"])
def test_rounding_is_what_an_artifact_in_half_precision_stores(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """`rounded_to` gives the logits of a checkpoint whose tensors were rounded, and other ones than without."""
    built(CAUSAL[name]).save_pretrained(tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "half")
    rewritten(tmp_path / "half", lambda tensors: {key: value.bfloat16().float() for key, value in tensors.items()})

    found = streamed(tmp_path / "full", tokens, rounded_to=torch.bfloat16)

    assert torch.equal(found, logits(tmp_path / "half", tokens))
    assert not torch.equal(found, logits(tmp_path / "full", tokens))


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "llama", "opt-350m", "gptj"])
def test_blocks_of_a_linear_layer_change_only_the_last_bits(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """Linear layers, the head among them, computed five rows at a time agree to 1e-6 of the largest logit."""
    built(CAUSAL[name]).save_pretrained(tmp_path)

    found = streamed(tmp_path, tokens, block_bytes=5 * 4 * 24)

    expected = logits(tmp_path, tokens)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_and_decoder_equal_from_pretrained(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """T5 and mT5, tied or not, give the whole model's normed encoder states and logits."""
    built(SEQ2SEQ[name]).save_pretrained(tmp_path)
    decoder_tokens = fixed_tokens(VOCAB, batch=2, sequence=5, seed=1)

    found = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=decoder_tokens, encoder_only=False)

    with torch.inference_mode():
        whole = loaded(tmp_path, transformers.AutoModelForSeq2SeqLM)
        expected = whole(input_ids=tokens, decoder_input_ids=decoder_tokens)
        normed = whole.encoder(input_ids=tokens).last_hidden_state
    assert set(found.outputs) == {"encoder_hidden_states", "logits"}
    assert torch.equal(found.outputs["logits"], expected.logits)
    assert torch.equal(found.outputs["encoder_hidden_states"], normed)
    assert found.outputs["logits"].shape == (2, 5, VOCAB)


@pytest.mark.parametrize("name", SEQ2SEQ)
@pytest.mark.parametrize("saved", ["whole", "encoder"])
def test_encoder_alone_equals_from_pretrained(name: str, saved: str, tmp_path: Path, tokens: Tensor) -> None:
    """The encoder alone runs from a checkpoint of the whole model and from one of the encoder."""
    auto = transformers.AutoModelForTextEncoding
    built(SEQ2SEQ[name], auto if saved == "encoder" else None).save_pretrained(tmp_path)

    found = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=True)

    with torch.inference_mode():
        expected = loaded(tmp_path, auto)(input_ids=tokens).last_hidden_state
    assert set(found.outputs) == {"encoder_hidden_states"}
    assert torch.equal(found.outputs["encoder_hidden_states"], expected)


def test_embedding_stored_only_as_the_encoders(tmp_path: Path, tokens: Tensor) -> None:
    """A T5 encoder whose shared embedding is stored as encoder.embed_tokens is read from there."""
    built(SEQ2SEQ["t5"], transformers.AutoModelForTextEncoding).save_pretrained(tmp_path)
    whole = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=True)
    rewritten(
        tmp_path,
        lambda tensors: {key.replace("shared.", "encoder.embed_tokens."): value for key, value in tensors.items()},
    )
    assert "encoder.embed_tokens.weight" in _Files(tmp_path).names()

    found = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=True)

    assert torch.equal(found.outputs["encoder_hidden_states"], whole.outputs["encoder_hidden_states"])


@pytest.mark.parametrize(
    "auto",
    [
        transformers.AutoModel,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForQuestionAnswering,
        transformers.AutoModelForPreTraining,
    ],
)
def test_bert_of_any_head_gives_its_bare_states(auto: Any, tmp_path: Path, tokens: Tensor) -> None:
    """BERT saved with any head gives the base model's states and its embedding output."""
    built(ENCODER, auto).save_pretrained(tmp_path)

    found = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=False)

    whole = loaded(tmp_path, transformers.AutoModel, add_pooling_layer=False)
    with torch.inference_mode():
        expected = whole(input_ids=tokens).last_hidden_state
        embedded = whole.embeddings(input_ids=tokens)
    assert set(found.outputs) == {"last_hidden_state"}
    assert torch.equal(found.outputs["last_hidden_state"], expected)
    assert found.hidden is not None
    assert torch.equal(found.hidden, embedded)


def test_legacy_layer_norm_names(tmp_path: Path, tokens: Tensor) -> None:
    """A BERT whose LayerNorms are stored as gamma and beta is read like any other."""
    built(ENCODER, transformers.AutoModelForMaskedLM).save_pretrained(tmp_path)
    before = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=True)
    rewritten(
        tmp_path,
        lambda tensors: {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for key, value in tensors.items()
        },
    )
    assert "bert.embeddings.LayerNorm.gamma" in _Files(tmp_path).names()

    found = run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=False)

    assert torch.equal(found.outputs["last_hidden_state"], before.outputs["last_hidden_state"])


def test_all_missing_parameters_are_named(tmp_path: Path, tokens: Tensor) -> None:
    """Parameters the checkpoint lacks are one error that names each of them, before anything is read."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)
    gone = {"transformer.h.1.attn.c_attn.weight", "transformer.ln_f.bias"}
    rewritten(tmp_path, lambda tensors: {key: value for key, value in tensors.items() if key not in gone})

    with pytest.raises(CheckpointError) as caught:
        streamed(tmp_path, tokens)

    assert {problem.subject for problem in caught.value.problems} == gone
    assert "ln_f.bias" in caught.value.problems[1].expected


def test_absent_untied_head_is_missing(tmp_path: Path, tokens: Tensor) -> None:
    """A checkpoint without the head of an untied model is an error, not a guess at the embedding."""
    built(CAUSAL["llama"]).base_model.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"lm_head\.weight: not in the checkpoint"):
        streamed(tmp_path, tokens)


def test_shape_other_than_the_configs_is_named(tmp_path: Path, tokens: Tensor) -> None:
    """A tensor of another shape than config.json says is an error with both shapes."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    rewritten(tmp_path, lambda tensors: {**tensors, name: tensors[name][:, :95]})

    with pytest.raises(CheckpointError, match=r"c_fc\.weight: shape \(24, 95\); expected \(24, 96\)"):
        streamed(tmp_path, tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON list"),
        ("{}", "no model_type"),
    ],
)
def test_config_that_describes_nothing(text: str | None, message: str, tmp_path: Path, tokens: Tensor) -> None:
    """A config.json that is absent or malformed is an error of the checkpoint."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=message):
        streamed(tmp_path, tokens)


@pytest.mark.parametrize("value", [[1, 2], "linear", {"rope_type": "yarn"}])
def test_config_that_transformers_cannot_read(value: object, tmp_path: Path, tokens: Tensor) -> None:
    """Whatever transformers raises for it, the file is named."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rope_scaling": value}))

    with pytest.raises(CheckpointError, match=r"config\.json: transformers cannot read it \(\w+Error: "):
        streamed(tmp_path, tokens)


def test_unknown_kind_of_model_is_unsupported(tmp_path: Path, tokens: Tensor) -> None:
    """A model_type that transformers does not know is unsupported, with and without code of its own."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt97"}))
    with pytest.raises(UnsupportedError, match="unknown to transformers"):
        streamed(tmp_path, tokens)

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt97", "auto_map": {"AutoConfig": "a.B"}}))
    with pytest.raises(UnsupportedError, match="leave to run it"):
        streamed(tmp_path, tokens)


REMOTE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, hidden=6, **rest):
        self.hidden = hidden
        super().__init__(**rest)

class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig
    _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(44, config.hidden)
        self.head = torch.nn.Linear(config.hidden, 44)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return CausalLMOutput(logits=self.head(self.embed(input_ids)))
"""


def test_remote_code_runs_when_allowed(tmp_path: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is Python code beside its checkpoint runs once the user trusts it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    source = tmp_path / "own_model"
    source.mkdir()
    (source / "modeling_own.py").write_text(REMOTE)
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (source / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map, "hidden": 5}))
    embed, head, bias = torch.randn(44, 5), torch.randn(44, 5), torch.randn(44)
    save_file({"embed.weight": embed, "head.weight": head, "head.bias": bias}, source / "model.safetensors")

    found = streamed(source, tokens, trust_remote_code=True)

    assert torch.allclose(found, embed[tokens] @ head.T + bias, atol=1e-5)


def test_tokens_must_fit_the_model(tmp_path: Path, tokens: Tensor) -> None:
    """Tokens of another dtype, beyond the vocabulary, the positions or the model's halves are refused by name."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="tokens must be int64"):
        streamed(tmp_path, tokens.float())
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight has 44 rows, but the tokens look up 44"):
        streamed(tmp_path, torch.full_like(tokens, VOCAB))
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight has 44 rows, but the tokens look up -1"):
        streamed(tmp_path, torch.full_like(tokens, -1))
    with pytest.raises(ValueError, match=r"transformer\.wpe\.weight has 20 rows, but the tokens look up 20"):
        streamed(tmp_path, tokens.repeat(1, 3))
    with pytest.raises(ValueError, match="decoder_tokens belong"):
        run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=tokens, encoder_only=False)
    with pytest.raises(ValueError, match="describes no encoder"):
        run_reference(tmp_path, _Files(tmp_path), tokens=tokens, decoder_tokens=None, encoder_only=True)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators have written and that are still alive.

    Memory that nothing has written yet, as of a parameter that is about to go to the meta device, takes no pages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **({} if kwargs is None else kwargs))
        if func is torch.ops.aten.empty.memory_format:
            return result
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_memory_is_that_of_one_module(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of twelve layers only about one module's weights are alive at once, activations and tables included."""
    layers = {"n_layer": 12, "num_hidden_layers": 12, "vocab_size": 512}
    wide = {"n_embd": 96, "hidden_size": 96, "intermediate_size": 384, "ffn_dim": 384, "word_embed_proj_dim": 96}
    model = CAUSAL[name]
    arguments = {key: {**layers, **wide}.get(key, value) for key, value in model.arguments.items()}
    whole = built(_Model(model.config, arguments, model.auto), dtype=dtype)
    total = sum(4 * parameter.numel() for parameter in whole.parameters())
    largest = max(4 * parameter.numel() for parameter in whole.parameters())
    whole.save_pretrained(tmp_path)
    del whole
    gc.collect()

    ids = torch.tensor([[1, 2, 3]])
    copies = _Copies(tmp_path)

    with _LiveBytes() as counted:
        run_reference(tmp_path, copies, tokens=ids, decoder_tokens=None, encoder_only=False)

    assert largest <= counted.peak <= 3 * largest
    assert counted.peak < total / 6


def test_only_looked_up_rows_are_widened(tmp_path: Path) -> None:
    """Of a bfloat16 embedding and head, neither is ever whole in float32."""
    rows = 20_000
    model = _Model(transformers.LlamaConfig, {**LLAMA, "vocab_size": rows}, transformers.AutoModelForCausalLM)
    built(model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    stored = rows * 24 * 2

    ids = torch.tensor([[1, 2]])
    copies = _Copies(tmp_path)

    with _LiveBytes() as counted:
        run_reference(tmp_path, copies, tokens=ids, decoder_tokens=None, encoder_only=False, block_bytes=stored // 10)

    logits_bytes = 2 * rows * 4
    assert stored < counted.peak < stored + stored // 4 + 3 * logits_bytes


def test_nothing_is_printed_and_settings_are_restored(
    tmp_path: Path, tokens: Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reference is silent, and leaves transformers' verbosity and torch's dtype as they were."""
    built(CAUSAL["opt"]).save_pretrained(tmp_path)
    transformers.utils.logging.set_verbosity(logging.INFO)
    capfd.readouterr()
    try:
        streamed(tmp_path, tokens)

        assert transformers.utils.logging.get_verbosity() == logging.INFO
    finally:
        transformers.utils.logging.set_verbosity(logging.WARNING)
    assert capfd.readouterr() == ("", "")
    assert torch.get_default_dtype() == torch.float32
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_outputs_are_ordinary_tensors(tmp_path: Path, tokens: Tensor) -> None:
    """The outputs can be changed and differentiated, although inference mode made them."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)

    found = streamed(tmp_path, tokens)

    assert not found.is_inference()


def test_fixed_tokens_are_fixed() -> None:
    """The ids are these on every machine; another seed gives others."""
    assert fixed_tokens(50257, batch=2, sequence=4).tolist() == [[50256, 26, 30421, 102], [19279, 143, 3975, 91]]
    assert fixed_tokens(50257, batch=2, sequence=4, seed=1).tolist()[1] == [39976, 128, 27839, 16]


@pytest.mark.parametrize("vocab", [1, 2, 300, 50257, 250880])
def test_fixed_tokens_cover_small_and_large_ids(vocab: int) -> None:
    """The ids lie in the vocabulary, include its last one, and both ends of it are drawn from."""
    ids = fixed_tokens(vocab, batch=2, sequence=64)

    assert ids.shape == (2, 64)
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0
    assert int(ids.max()) == vocab - 1
    assert int((ids < 256).sum()) >= 64
    assert int((ids[:, 2:] >= vocab // 2).sum()) >= 16
    if vocab > 2:
        assert not torch.equal(ids[0], ids[1])


def test_fixed_tokens_of_nothing_are_refused() -> None:
    """A vocabulary, batch or sequence of zero is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least 1"):
        fixed_tokens(0, batch=1, sequence=1)


def word_tokenizer(directory: Path, words: int) -> None:
    """Save a tokenizer of the words w0, w1 and so on beside a config of ten ids."""
    vocabulary = {f"w{index}": index for index in range(words)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))


def test_prompt_is_encoded_and_cut(tmp_path: Path) -> None:
    """A prompt becomes at most so many ids of the tokenizer beside the checkpoint."""
    word_tokenizer(tmp_path, 10)

    found = prompt_tokens(tmp_path, "w3 w1 w4 w1 w5", 4)

    assert found.tokens is not None
    assert found.tokens.tolist() == [[3, 1, 4, 1]]
    assert found.reason == ""


def test_prompt_without_tokenizer_says_so(tmp_path: Path) -> None:
    """Without tokenizer files there are no tokens, and the reason names the directory."""
    found = prompt_tokens(tmp_path, "hello", 4)

    assert found.tokens is None
    assert found.reason == "there are no tokenizer files beside config.json"


def test_prompt_with_a_broken_tokenizer_says_so(tmp_path: Path) -> None:
    """A tokenizer that does not load is a reason with the library's own words."""
    word_tokenizer(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')

    found = prompt_tokens(tmp_path, "hello", 4)

    assert found.tokens is None
    assert "does not load (" in found.reason


def test_prompt_beyond_the_models_vocabulary_says_so(tmp_path: Path) -> None:
    """A tokenizer that gives ids the model has no embedding for is a reason, as is one that gives none."""
    word_tokenizer(tmp_path, 20)

    assert prompt_tokens(tmp_path, "w3 w12", 4).reason.endswith("gives id 12, but vocab_size is 10")
    assert prompt_tokens(tmp_path, "", 4).reason.endswith("gives no tokens for the prompt")


def test_stored_as_is_told_each_parameter_with_its_module(tmp_path: Path, tokens: Tensor) -> None:
    """It gets the name in the model, the values and the module that owns them, and what it returns is used."""
    built(CAUSAL["llama"]).save_pretrained(tmp_path)
    told: dict[str, str] = {}

    def doubled(name: str, tensor: Tensor, module: torch.nn.Module) -> Tensor:
        told[name] = type(module).__name__
        return tensor * 2

    found = streamed(tmp_path, tokens, stored_as=doubled)

    assert set(told) == {name for name, _ in built(CAUSAL["llama"]).named_parameters()}
    assert told["model.layers.1.mlp.up_proj.weight"] == "Linear"
    assert told["model.embed_tokens.weight"] == "Embedding"
    assert told["model.norm.weight"] == "LlamaRMSNorm"
    rewritten(tmp_path, lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    assert torch.equal(found, logits(tmp_path, tokens))


def test_stored_as_is_told_rows_of_a_large_linear(tmp_path: Path, tokens: Tensor) -> None:
    """Blocks of five rows are told one after the other, and give what whole matrices give."""
    built(CAUSAL["llama"]).save_pretrained(tmp_path)
    rows: list[int] = []

    def rounded(name: str, tensor: Tensor, module: torch.nn.Module) -> Tensor:
        if name == "lm_head.weight":
            rows.append(len(tensor))
        return tensor.half().float()

    whole = streamed(tmp_path, tokens, stored_as=rounded)
    blocks = streamed(tmp_path, tokens, stored_as=rounded, block_bytes=5 * 4 * 24)

    assert rows == [VOCAB, *[5] * 8, 4]
    assert torch.allclose(blocks, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


def test_stored_as_follows_rounding(tmp_path: Path, tokens: Tensor) -> None:
    """What it is told was rounded already."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)
    types = set()

    def noted(name: str, tensor: Tensor, module: torch.nn.Module) -> Tensor:
        types.add(tensor.dtype)
        return tensor

    found = streamed(tmp_path, tokens, stored_as=noted, rounded_to=torch.float16)

    assert types == {torch.float16}
    assert torch.equal(found, streamed(tmp_path, tokens, rounded_to=torch.float16))


def test_prepare_changes_the_model_before_it_runs(tmp_path: Path, tokens: Tensor) -> None:
    """Another epsilon in every norm, as if config.json had it."""
    built(CAUSAL["llama"]).save_pretrained(tmp_path)

    def coarser(model: torch.nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.5

    found = streamed(tmp_path, tokens, prepare=coarser)

    assert torch.equal(found, streamed(tmp_path, tokens, overrides={"rms_norm_eps": 0.5}))
    assert not torch.equal(found, streamed(tmp_path, tokens))


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon"])
def test_sdpa_gives_what_eager_gives(name: str, tmp_path: Path, tokens: Tensor) -> None:
    """The other attention of transformers differs in the last bits at most."""
    built(CAUSAL[name]).save_pretrained(tmp_path)

    found, expected = streamed(tmp_path, tokens, attention="sdpa"), streamed(tmp_path, tokens)

    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_tables_of_two_stacks_share_the_tokens(name: str, tmp_path: Path) -> None:
    """T5 has one table of tokens and none of positions; BART one of tokens, and of positions one for each stack."""
    built(SEQ2SEQ[name]).save_pretrained(tmp_path)

    tables = embedding_tables(tmp_path, _Files(tmp_path), encoder_only=False)

    assert [(table.kind, table.stack) for table in tables] == [("tokens", "")]


def test_positions_of_two_stacks_are_told_apart(tmp_path: Path) -> None:
    """BART's tables of positions, each without its first two rows."""
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 20}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCAB}
    widths = {"encoder_ffn_dim": 28, "decoder_ffn_dim": 28}
    config = transformers.BartConfig(**sizes, **heads, **widths)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)

    tables = embedding_tables(tmp_path, _Files(tmp_path), encoder_only=False)

    positions = {table.stack: (table.stored, table.skip) for table in tables if table.kind == "positions"}
    assert positions == {
        "encoder": ("model.encoder.embed_positions.weight", 2),
        "decoder": ("model.decoder.embed_positions.weight", 2),
    }


def test_logits_are_given_at_the_positions_asked_for(tmp_path: Path, tokens: Tensor) -> None:
    """Others for each row, in any order, and the same as where everything is given."""
    built(CAUSAL["llama"]).save_pretrained(tmp_path)
    positions = torch.tensor([[4, 0], [2, 2]])[: len(tokens)]

    found = streamed(tmp_path, tokens, positions=positions)

    whole = streamed(tmp_path, tokens)
    expected = torch.stack([row[at] for row, at in zip(whole, positions, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_positions_are_for_models_with_next_token_logits(tmp_path: Path, tokens: Tensor) -> None:
    """An encoder has none."""
    built(ENCODER).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="no model with next-token logits"):
        run_reference(
            tmp_path,
            _Files(tmp_path),
            tokens=tokens,
            decoder_tokens=None,
            encoder_only=False,
            positions=torch.zeros((len(tokens), 1), dtype=torch.int64),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_arithmetic_of_16_bits_is_that_of_transformers(
    name: str, dtype: torch.dtype, tmp_path: Path, tokens: Tensor
) -> None:
    """The same as the model that was loaded in that type."""
    built(CAUSAL[name]).save_pretrained(tmp_path)

    found = streamed(tmp_path, tokens, rounded_to=dtype, arithmetic=dtype)

    model = CAUSAL[name].auto.from_pretrained(tmp_path, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        expected = model(input_ids=tokens).logits.float()
    assert torch.equal(found, expected)


TASK_CLASSES = {
    "feature-extraction": transformers.AutoModel,
    "fill-mask": transformers.AutoModelForMaskedLM,
    "text-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "multiple-choice": transformers.AutoModelForMultipleChoice,
}


def task_inputs(task: str) -> dict[str, Tensor]:
    """Two rows, the second padded, of two types; three choices each for multiple-choice."""
    shape = (2, 3, 6) if task == "multiple-choice" else (2, 6)
    ids = fixed_tokens(VOCAB, batch=6 if task == "multiple-choice" else 2, sequence=6).reshape(shape)
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, ..., 4:], types[..., 3:] = 0, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@pytest.mark.parametrize("task", TASK_CLASSES)
def test_a_task_gives_what_its_class_gives(task: str, tmp_path: Path) -> None:
    """Every output by its name, of an encoder that was saved with the task's head, for padded rows too."""
    built(ENCODER, TASK_CLASSES[task]).save_pretrained(tmp_path)
    made = loaded(tmp_path, TASK_CLASSES[task])
    inputs = task_inputs(task)

    found = run_task(tmp_path, _Files(tmp_path), task=task, inputs=inputs, hidden_states=True, attentions=True)

    with torch.no_grad():
        whole = made(**inputs, output_hidden_states=True, output_attentions=True, return_dict=True)
    expected = {name: value for name, value in whole.items() if isinstance(value, Tensor)}
    for name in ("hidden_states", "attentions"):
        expected |= {f"{name}.{number}": value for number, value in enumerate(whole[name])}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name


def test_a_model_whose_modules_look_into_one_another_is_read_whole(tmp_path: Path) -> None:
    """DeBERTa's encoder reads the weights of an embedding that it never calls."""
    sizes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    config = transformers.DebertaV2Config(**BERT, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its module compiles functions with torch.jit.script when it is imported
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    made = loaded(tmp_path, transformers.AutoModel)
    inputs = {name: value for name, value in task_inputs("feature-extraction").items() if name != "token_type_ids"}

    found = run_task(tmp_path, _Files(tmp_path), task="feature-extraction", inputs=inputs)

    with torch.no_grad():
        expected = made(**inputs).last_hidden_state
    assert torch.allclose(found["last_hidden_state"], expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_the_heads_weights_is_refused(tmp_path: Path) -> None:
    """Naming them; a pooling layer that is not there is left out instead."""
    built(ENCODER).save_pretrained(tmp_path)
    inputs = task_inputs("text-classification")

    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        run_task(tmp_path, _Files(tmp_path), task="text-classification", inputs=inputs)


def test_a_model_without_the_head_of_a_task_is_refused(tmp_path: Path) -> None:
    """By the name of its kind."""
    built(CAUSAL["opt"]).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedError, match="opt: transformers has no class for fill-mask"):
        run_task(tmp_path, _Files(tmp_path), task="fill-mask", inputs=task_inputs("fill-mask"))


def test_a_model_is_described_by_its_config(tmp_path: Path) -> None:
    """By the names transformers has for sizes that a config calls otherwise."""
    config = {**GPT2, "pad_token_id": 3}
    transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**config)).save_pretrained(tmp_path)

    facts = describe(tmp_path)

    assert (facts.kind, facts.layers, facts.vocab, facts.heads, facts.pad, facts.types) == ("gpt2", 2, VOCAB, 4, 3, 0)
    assert (facts.rotary_switch, facts.attention, facts.routed) == (None, "eager", False)
    assert lean_attention(tmp_path) == "sdpa"


def test_parameters_of_a_tied_head_come_from_one_tensor(tmp_path: Path) -> None:
    """Each by its own name."""
    built(CAUSAL["gpt2"]).save_pretrained(tmp_path)

    sources = parameter_sources(tmp_path, _Files(tmp_path))

    assert sources["lm_head.weight"] == sources["transformer.wte.weight"] == "transformer.wte.weight"
    assert sources["transformer.h.1.mlp.c_fc.bias"] == "transformer.h.1.mlp.c_fc.bias"
