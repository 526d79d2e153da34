"""Broken TensorRT-LLM checkpoints must be caught by what they hold alone: no manifest is asked."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from llmcompile import pipeline
from llmcompile.errors import LlmCompileError, MismatchError, OptionsError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.exporters.trtllm.rows import ENCODER_DECODER, FAMILIES
from llmcompile.pipeline import validating
from llmcompile.validation import trtllm
from llmcompile.validation.checks import Check, Finding, Quality, problems_of

if TYPE_CHECKING:
    from conftest import Run

# What is built


@dataclass(frozen=True)
class Case:
    """A family of tests/models.py: changes to its config, and whether its layers can be dealt to stages."""

    family: str
    config: tuple[tuple[str, Any], ...] = ()
    stages: bool = True


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 10,
}
CASES = {
    "llama": Case("llama"),
    "llama-gqa": Case("llama_gqa", (("attention_bias", True), ("mlp_bias", True), ("rope_scaling", LLAMA3))),
    "mistral": Case("mistral"),
    "mixtral": Case("mixtral"),
    "qwen2": Case("qwen2", (("tie_word_embeddings", True),)),
    "qwen2-moe": Case("qwen2_moe"),
    "qwen3": Case("qwen3"),
    "qwen3-moe": Case("qwen3_moe"),
    "gpt2": Case("gpt2"),
    "bigcode": Case("gpt_bigcode"),
    "bigcode-mha": Case("gpt_bigcode_mha"),
    "starcoder2": Case("starcoder2"),
    "gptj": Case("gptj"),
    "gptneox": Case("gptneox", stages=False),
    "opt": Case("opt", stages=False),
    "opt-post-norm": Case("opt", (("do_layer_norm_before", False),), stages=False),
    "bloom": Case("bloom", stages=False),
    "falcon-7b": Case("falcon_7b", (("bias", True),)),
    "falcon-40b": Case("falcon_40b"),
    "falcon-rw": Case("falcon_rw"),
    "mpt": Case("mpt", stages=False),
    "phi": Case("phi", (("num_key_value_heads", 4),), stages=False),
    "phi3": Case("phi3", stages=False),
    "gemma": Case("gemma", stages=False),
    "gemma2": Case("gemma2", stages=False),
    "t5": Case("t5", stages=False),
    "t5-v1.1": Case("t5_v11", stages=False),
    "mt5": Case("mt5", stages=False),
    "bart": Case("bart", stages=False),
}
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")
TWO_STACKS = ("t5", "t5-v1.1", "mt5", "bart")
WIDE = {
    "n_embd": 128,
    "n_inner": 128,
    "hidden_size": 128,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "ffn_hidden_size": 128,
    "word_embed_proj_dim": 128,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "head_dim": 32,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 128,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
"""Sizes that two ranks can hold in every packed layout."""
PACKED = {
    "w8a16": {"quantization": "w8a16", "wo_layout": "sm80"},
    "w4a16": {"quantization": "w4a16", "wo_layout": "sm80"},
    "awq": {"quantization": "w4a16_awq", "group_size": 64},
}


class Silent:
    """Shows nothing."""

    def planned(self, job: pipeline.Job) -> None:
        """Show nothing."""

    @contextmanager
    def writing(self, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
        """Show nothing."""
        yield lambda size_bytes, tensor: None

    @contextmanager
    def calibrating(self, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Show nothing."""
        yield lambda layer: None

    def validating(self, subject: str, ranks: int) -> None:
        """Show nothing."""

    def checked(self, check: Finding) -> None:
        """Show nothing."""

    def building(self, line: Any) -> None:
        """Show nothing."""


def convert(model: Path, output: Path, **options: Any) -> trtllm.Subject:
    """Run the real converter, and give what it wrote to the validation."""
    asked = TrtllmOptions(
        build=BuildOptions(model=str(model), output=output, validate=False), stop_after="checkpoint", **options
    )
    report = pipeline.begin()
    job = pipeline.prepare(asked, report)
    pipeline.build(job, Silent(), report)
    return validating.trtllm_subject(
        job.checkpoint,
        job.architecture,
        job.dims,
        folder=output / "checkpoint",
        eval_text=None,
        overflow_accepted=False,
    )


def items_of(subject: trtllm.Subject, **limits: float | None) -> list[Finding]:
    """Everything the validation says."""
    return list(trtllm.validate(subject, **{"atol": None, "rtol": None, **limits}, trust_remote_code=False))


def complaints(subject: trtllm.Subject) -> list[str]:
    """What is wrong with a checkpoint, as text; nothing more is computed once something is."""
    try:
        for item in trtllm.validate(replace(subject), atol=None, rtol=None, trust_remote_code=False):
            found = problems_of([item]) if isinstance(item, Check) else []
            if len(found) > 0:
                return [str(problem) for problem in found]
    except LlmCompileError as error:
        return [str(problem) for problem in error.problems]
    return []


Changes = Mapping[tuple[str, str], Tensor | None]
"""(rank file, tensor) -> what it becomes; None removes it."""


@dataclass(frozen=True)
class Artifact:
    """A checkpoint to break."""

    subject: trtllm.Subject

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.subject.folder

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Rank file -> tensor -> values, before anything was broken."""
        files = sorted(self.folder.glob("**/rank*.safetensors"))
        return {str(path.relative_to(self.folder)): load_file(path) for path in files}

    def ranks(self, name: str) -> list[tuple[str, Tensor]]:
        """The files that hold a tensor, and their parts of it."""
        return [(file, tensors[name]) for file, tensors in self.tensors.items() if name in tensors]

    def names(self) -> list[str]:
        """Every tensor of the first rank of each stack."""
        return sorted({name for tensors in self.tensors.values() for name in tensors})

    def after(self, changes: Changes) -> list[str]:
        """What validation says with `changes`, which are undone."""
        files = {file for file, _ in changes}
        before = {file: (self.folder / file).read_bytes() for file in files}
        for file in files:
            mine = {name: tensor for (changed, name), tensor in changes.items() if changed == file}
            kept = {name: t for name, t in {**self.tensors[file], **mine}.items() if t is not None}
            save_file({name: t.contiguous().clone() for name, t in kept.items()}, self.folder / file)
        try:
            return complaints(self.subject)
        finally:
            for file, content in before.items():
                (self.folder / file).write_bytes(content)

    def configured(self, changes: Mapping[str, Any], part: str = "") -> list[str]:
        """What validation says after keys of config.json were changed, which is undone."""
        path = self.folder / part / "config.json"
        before = path.read_bytes()
        path.write_text(json.dumps(_merged(json.loads(before), changes)))
        try:
            return complaints(self.subject)
        finally:
            path.write_bytes(before)


def _merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = _merged(config[key], value) if nested else value
    return config


def remembered(patch: pytest.MonkeyPatch) -> None:
    """Run each model once: what it gives does not depend on the bytes that are broken."""
    run, known = trtllm.run_reference, {}

    def once(config_dir: Path, weights: Any, **arguments: Any) -> Any:
        tokens = [arguments[name] for name in ("tokens", "decoder_tokens") if arguments[name] is not None]
        key = (config_dir, arguments["stored_as"] is None, *(str(ids.tolist()) for ids in tokens))
        if key not in known:
            known[key] = run(config_dir, weights, **arguments)
        return known[key]

    patch.setattr(trtllm, "run_reference", once)


def survivors(artifact: Artifact, mutations: Mapping[str, Changes]) -> list[str]:
    """Names of the mutations after which the checkpoint still passes."""
    assert len(mutations) > 0
    with pytest.MonkeyPatch.context() as patch:
        remembered(patch)
        return [name for name, changes in mutations.items() if artifact.after(changes) == []]


Build = Callable[..., Artifact]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`model(case, wide=False)` is a checkpoint of Hugging Face, made once."""
    made: dict[tuple[str, bool], Path] = {}

    def make(name: str, *, wide: bool = False) -> Path:
        if (name, wide) not in made:
            case, folder = CASES[name], tmp_path_factory.mktemp("model")
            known = models.FAMILIES[case.family].config
            sizes = {key: value for key, value in WIDE.items() if key in known} if wide else {}
            if wide and case.family == "opt":
                sizes["activation_function"] = "gelu"  # ReLU leaves outputs that no input turns on
            built = models.build(case.family, config={**dict(case.config), **sizes})
            if wide:
                _calm(built)
            if case.family == "bart":
                _enliven(built)
            built.save_pretrained(folder)
            made[name, wide] = folder
        return made[name, wide]

    return make


def _calm(built: transformers.PreTrainedModel) -> None:
    """Make matrices smaller, so that softmaxes of wide layers do not pick one key."""
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.3)


def _enliven(built: transformers.PreTrainedModel) -> None:
    """Let norms after the sum pass on what they are given: with weights of 0.5 nine of them leave a constant."""
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


@pytest.fixture(scope="session")
def built(model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`built(case, **options)` is a whole checkpoint, made once; who breaks it restores it."""
    made: dict[str, Artifact] = {}

    def make(name: str, *, wide: bool = False, **options: Any) -> Artifact:
        key = f"{name} {wide} {sorted(options.items())}"
        if key not in made:
            output = tmp_path_factory.mktemp("out") / "artifact"
            made[key] = Artifact(convert(model(name, wide=wide), output, **{"dtype": "float32", **options}))
        return made[key]

    return make


# Ways to break a checkpoint


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def exchanged_ranks(artifact: Artifact) -> dict[str, Changes]:
    """Each tensor of which two ranks hold different parts, exchanged between the first of them and another."""
    found: dict[str, Changes] = {}
    for name in artifact.names():
        parts = artifact.ranks(name)
        for stack in ("encoder/", "decoder/", ""):
            mine = [(file, tensor) for file, tensor in parts if file.startswith(stack or "rank")]
            for (file, first), (other, second) in itertools.pairwise(mine):
                if first.shape == second.shape and not same(first, second):
                    found[f"{stack}{name} of {file} and {other}"] = {(file, name): second, (other, name): first}
    return found


def exchanged_layers(artifact: Artifact) -> dict[str, Changes]:
    """Each tensor of layer 0 and its like of layer 1, exchanged in all files."""
    found: dict[str, dict[tuple[str, str], Tensor | None]] = {}
    for file, tensors in artifact.tensors.items():
        for name, first in tensors.items():
            other = name.replace("layers.0.", "layers.1.", 1)
            second = tensors.get(other)
            if other == name or second is None or second.shape != first.shape or same(first, second):
                continue
            key = f"{file.rpartition('/')[0]} {name}"
            found.setdefault(key, {}).update({(file, name): second, (file, other): first})
    return dict(found)


def doubled(artifact: Artifact, *, rank: int = -1) -> dict[str, Changes]:
    """Each float tensor of one rank, twice as large and other than zero where it is zero."""
    found: dict[str, Changes] = {}
    for stack in ("encoder/", "decoder/", ""):
        files = [file for file in artifact.tensors if file.startswith(stack or "rank")]
        if files == []:
            continue
        file = files[rank]
        for name, tensor in artifact.tensors[file].items():
            if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
                ramp = torch.arange(1, tensor.numel() + 1).view(tensor.shape) / tensor.numel()
                found[f"{stack}{name}"] = {(file, name): torch.where(tensor == 0, ramp, 2 * tensor).to(tensor.dtype)}
    return found


def rolled(artifact: Artifact, pattern: str, rows: int, axis: int = 0) -> dict[str, Changes]:
    """Each tensor whose name ends with `pattern`, its rows moved, on the first rank that has it."""
    found: dict[str, Changes] = {}
    for name in artifact.names():
        if name.endswith(pattern):
            file, tensor = artifact.ranks(name)[0]
            found[name] = {(file, name): tensor.roll(rows, axis)}
    return found


def swapped_parts(artifact: Artifact, name: str, sizes: Sequence[int], first: int, second: int) -> Changes:
    """Runs of rows of `name` exchanged on all ranks; the two may differ in size."""
    changes: dict[tuple[str, str], Tensor | None] = {}
    for file, tensor in artifact.ranks(name):
        parts = list(torch.split(tensor, list(sizes), -2 if tensor.dim() == 3 else 0))
        parts[first], parts[second] = parts[second], parts[first]
        changes[file, name] = torch.cat(parts, -2 if tensor.dim() == 3 else 0)
    return changes


def qkv_sizes(artifact: Artifact, file_rows: int) -> tuple[int, int, int]:
    """Rows of queries, keys and values in a fused matrix of that many rows."""
    config = artifact.subject.config
    heads, tp = config["num_attention_heads"], config["mapping"]["tp_size"]
    keys = max(1, config.get("num_key_value_heads", heads) // tp)
    head = file_rows // (heads // tp + 2 * keys)
    return heads // tp * head, keys * head, keys * head


def attention_mutations(artifact: Artifact) -> dict[str, Changes]:
    """Queries, keys and values of each attention's weight exchanged, and heads moved by one and by a half."""
    found: dict[str, Changes] = {}
    for name in artifact.names():
        if not name.endswith("qkv.weight"):
            continue
        parts = artifact.ranks(name)
        sizes = qkv_sizes(artifact, parts[0][1].shape[0])
        head = sizes[1] // max(1, artifact.subject.config.get("num_key_value_heads", 1) // 2)
        found[f"{name}: q and k"] = swapped_parts(artifact, name, sizes, 0, 1)
        found[f"{name}: k and v"] = swapped_parts(artifact, name, sizes, 1, 2)
        moved = {(file, name): tensor.roll(head // 2, 0) for file, tensor in parts}
        found[f"{name}: half a head"] = moved
    return found


def feed_forward_mutations(artifact: Artifact) -> dict[str, Changes]:
    """`fc` and `gate` exchanged, the halves of a fused matrix exchanged, and two experts exchanged."""
    found: dict[str, Changes] = {}
    for name in artifact.names():
        gate = name.replace("mlp.fc.weight", "mlp.gate.weight")
        parts = artifact.ranks(name)
        if name.endswith("mlp.fc.weight") and artifact.ranks(gate) != []:
            pairs = zip(parts, artifact.ranks(gate), strict=True)
            found[f"{name}: gate"] = {
                key: tensor
                for (file, fc), (_, other) in pairs
                for key, tensor in {(file, name): other, (file, gate): fc}.items()
            }
        fused = "shared_expert.fc" in name or (artifact.subject.family == "phi3" and "mlp.fc" in name)
        experts = parts[0][1].dim() == 3
        if fused or (experts and name.endswith("fc.weight")):
            half = parts[0][1].shape[-2] // 2
            found[f"{name}: halves"] = swapped_parts(artifact, name, (half, half), 0, 1)
        if experts:
            found[f"{name}: experts"] = {(file, name): tensor.roll(1, 0) for file, tensor in parts}
        if name.endswith("router.weight"):
            found[f"{name}: experts"] = {(file, name): tensor.roll(1, 0) for file, tensor in parts}
    return found


def table_mutations(artifact: Artifact) -> dict[str, Changes]:
    """In each table and head: the last row, the last before padding, and one that no run is fed, with other values."""
    found: dict[str, Changes] = {}
    for name in artifact.names():
        if "embedding.weight" not in name and name != "lm_head.weight":
            continue
        for file, tensor in artifact.ranks(name):
            for row in (*range(0, len(tensor), 21), len(tensor) - 1):
                if bool((tensor[row] != 0).any()):
                    changed = tensor.clone()
                    changed[row] = tensor[row] * 2
                    found[f"{file}: {name}[{row}]"] = {(file, name): changed}
    return found


def structure_mutations(artifact: Artifact) -> dict[str, Changes]:
    """One tensor missing, one too many, one of another shape, one of another type, one with a NaN; of each file."""
    found: dict[str, Changes] = {}
    for file, tensors in artifact.tensors.items():
        for name in (min(tensors),):
            tensor = tensors[name]
            other = torch.bfloat16 if tensor.dtype != torch.bfloat16 else torch.float16
            found[f"{file}: {name} missing"] = {(file, name): None}
            found[f"{file}: {name} shorter"] = {(file, name): tensor[:-1]}
            found[f"{file}: {name} flat"] = {(file, name): tensor[None]}
            found[f"{file}: {name} cast"] = {(file, name): tensor.to(other)}
        found[f"{file}: surplus"] = {(file, "transformer.rotary_inv_freq"): torch.ones(4)}
    return found


def packed_mutations(artifact: Artifact, layer: int = 0) -> dict[str, Changes]:
    """In each packed matrix of a layer of the last rank: two runs of bytes, all neighbours, or nibbles exchanged."""
    found: dict[str, Changes] = {}
    for name, tensor in _last(artifact).items():
        if tensor.dtype != torch.int8 or f"layers.{layer}." not in name:
            continue
        key, flat = (_last_file(artifact), name), tensor.flatten()
        runs = torch.cat([flat[64:128], flat[:64], flat[128:]])
        found[f"{name}: runs"] = {key: runs.view(tensor.shape)}
        if artifact.subject.algorithm == "W8A16":
            found[f"{name}: neighbours"] = {key: flat.view(-1, 2).flip(1).reshape(tensor.shape)}
        else:
            unsigned = flat.view(torch.uint8)
            found[f"{name}: nibbles"] = {key: (unsigned << 4 | unsigned >> 4).view(torch.int8).view(tensor.shape)}
    return found


def scale_mutations(artifact: Artifact, layer: int = 0) -> dict[str, Changes]:
    """Of each tensor of scales, zeros or input factors of a layer: the largest doubled, and put for the smallest."""
    found: dict[str, Changes] = {}
    for name, tensor in _last(artifact).items():
        if not name.endswith(("scale", "scaling_factor", "zero")) or f"layers.{layer}." not in name:
            continue
        key, flat = (_last_file(artifact), name), tensor.flatten()
        low, high = int(flat.argmin()), int(flat.argmax())
        one = flat.clone()
        one[high] *= 2
        found[f"{name}: doubled"] = {key: one.view(tensor.shape)}
        if flat[low] != flat[high]:
            two = flat.clone()
            two[low], two[high] = flat[high], flat[low]
            found[f"{name}: exchanged"] = {key: two.view(tensor.shape)}
    return found


def _last_file(artifact: Artifact) -> str:
    return list(artifact.tensors)[-1]


def _last(artifact: Artifact) -> Mapping[str, Tensor]:
    return artifact.tensors[_last_file(artifact)]


# What nobody broke


every_family = pytest.mark.parametrize("name", CASES)


def test_every_family_of_the_exporter_is_here() -> None:
    """All that the exporter knows, but Qwen's first, whose code is not in transformers, and Meta's files."""
    here = {models.FAMILIES[case.family].config_class for case in CASES.values()}

    assert len(here) == len({*FAMILIES, *ENCODER_DECODER} - {"qwen", "meta_llama"}) + 1  # mT5 is a T5


@every_family
def test_one_rank_passes_in_every_type(name: str, built: Build) -> None:
    """One rank is the model, rounded to each of the three types."""
    for dtype in ("float32", "float16", "bfloat16"):
        assert complaints(built(name, tp=1, dtype=dtype).subject) == [], dtype


@every_family
def test_ranks_pass(name: str, built: Build) -> None:
    """Two ranks, four, of which two share a head of keys, and two stages are the model."""
    for tp in (2, 4):
        assert complaints(built(name, tp=tp).subject) == [], tp
    if CASES[name].stages:
        assert complaints(built(name, tp=2, pp=2, dtype="float16").subject) == []


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_ranks_pass(name: str, built: Build) -> None:
    """Experts dealt to ranks, and dealt and split, are the model."""
    assert complaints(built(name, tp=2, moe_ep=2).subject) == []
    assert complaints(built(name, tp=4, moe_ep=2, moe_tp=2).subject) == []


@pytest.mark.parametrize("version", ["0.13.0", "0.15.0", "1.0.0"])
def test_shared_expert_passes_under_either_name(version: str, built: Build) -> None:
    """Beside `mlp` before 0.16, inside it since."""
    artifact = built("qwen2-moe", tp=2, trtllm_version=version)

    inside = any(".mlp.shared_expert.fc" in name for name in artifact.names())

    assert inside == (version == "1.0.0")
    assert complaints(artifact.subject) == []


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
def test_split_embeddings_pass(name: str, axis: int, built: Build) -> None:
    """Tables cut by rows and by columns are the model's."""
    artifact = built(name, tp=2, use_parallel_embedding=True, embedding_sharding_dim=axis)

    assert complaints(artifact.subject) == []


@every_family
@pytest.mark.parametrize("recipe", PACKED)
def test_packed_ranks_pass(name: str, recipe: str, built: Build) -> None:
    """Weights in a vendor's layout are the model's, quantized."""
    if recipe == "awq" and name in (*EXPERTS, *TWO_STACKS):
        pytest.skip("the exporter refuses it")

    artifact = built(name, wide=True, tp=2, dtype="bfloat16", **PACKED[recipe])

    assert complaints(artifact.subject) == []


@pytest.mark.parametrize("recipe", ["w8a16", "w4a16"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "t5"])
def test_deferred_ranks_pass(name: str, recipe: str, built: Build) -> None:
    """Plain weights that the builder will quantize are the model's."""
    artifact = built(name, wide=True, tp=2, dtype="float16", quantization=recipe)

    assert artifact.subject.algorithm == recipe.upper()
    assert complaints(artifact.subject) == []


# Every tensor


@every_family
def test_each_exchange_of_ranks_is_caught(name: str, built: Build) -> None:
    """What one rank holds of a split tensor, where another rank's part belongs."""
    artifact = built(name, tp=2)

    left = survivors(artifact, exchanged_ranks(artifact))

    # A parallel block of Falcon sums the biases of all ranks, wherever they are.
    summed = ("attention.dense.bias", "mlp.proj.bias") if name == "falcon-7b" else ()
    assert [key for key in left if not any(part in key for part in summed)] == []
    assert len(left) == 2 * len(summed)


@every_family
def test_each_exchange_of_layers_is_caught(name: str, built: Build) -> None:
    """Each tensor of layer 0, norms and biases too, where layer 1's belongs."""
    artifact = built(name, tp=2)

    assert survivors(artifact, exchanged_layers(artifact)) == []


@every_family
def test_each_wrong_copy_on_one_rank_is_caught(name: str, built: Build) -> None:
    """Each tensor of the second rank, replicated ones too, with other values."""
    artifact = built(name, tp=2)

    left = survivors(artifact, doubled(artifact))

    # The loader replaces GPT-J's biases behind a sum by zeros on all ranks but the first.
    ignored = [f"transformer.layers.{layer}.mlp.proj.bias" for layer in (0, 1)]
    assert left == (ignored if name == "gptj" else [])


@every_family
def test_exchanged_parts_of_attention_are_caught(name: str, built: Build) -> None:
    """Keys for queries, values for keys, and heads that are cut in half."""
    artifact = built(name, tp=2)

    assert survivors(artifact, attention_mutations(artifact)) == []


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "qwen2", "qwen3", "starcoder2", "falcon-40b", "gemma2"])
def test_heads_of_a_neighbour_are_caught(name: str, built: Build) -> None:
    """Of four ranks and two heads of keys and values, ranks 1 and 2 with each other's head."""
    artifact = built(name, tp=4)
    first, second = (f"rank{rank}.safetensors" for rank in (1, 2))
    found: dict[str, Changes] = {}
    for tensor in (key for key in artifact.names() if "attention.qkv." in key):
        mine, other = artifact.tensors[first][tensor], artifact.tensors[second][tensor]
        queries = qkv_sizes(artifact, len(mine))[0]
        assert not same(mine[queries:], other[queries:])
        assert same(mine[queries:], artifact.tensors["rank0.safetensors"][tensor][queries:])
        found[tensor] = {(first, tensor): torch.cat([mine[:queries], other[queries:]])}

    # Keys' and values' biases are changed at once: those of keys alone no softmax tells.
    assert survivors(artifact, found) == []


GATED = ("llama", "llama-gqa", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "t5-v1.1", "phi3", *EXPERTS)


@pytest.mark.parametrize("name", GATED)
def test_exchanged_parts_of_feed_forwards_are_caught(name: str, built: Build) -> None:
    """Gate for up, in two tensors or in one, and experts in another order."""
    artifact = built(name, tp=2)

    assert survivors(artifact, feed_forward_mutations(artifact)) == []


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_of_another_rank_are_caught(name: str, built: Build) -> None:
    """Experts dealt to two ranks, exchanged between them."""
    artifact = built(name, tp=2, moe_ep=2)
    ours = {key: change for key, change in exchanged_ranks(artifact).items() if " of rank0" in key and ".mlp." in key}

    assert len(ours) >= 4
    assert survivors(artifact, ours) == []


@pytest.fixture(scope="session")
def shy_experts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """`shy_experts(**options)` is a Mixtral of six experts, of which no token is ever routed to the last two.

    Their rows of the router are zeros; of the other four two are the opposites of two, so that two logits are above 0.
    """
    root = tmp_path_factory.mktemp("experts")
    sizes = {key: WIDE[key] for key in ("hidden_size", "intermediate_size")}
    mixtral = models.build("mixtral", config={**sizes, "num_local_experts": 6})
    _calm(mixtral)
    with torch.no_grad():
        for name, parameter in mixtral.named_parameters():
            if name.endswith("block_sparse_moe.gate.weight"):
                parameter[2:4] = -parameter[:2]
                parameter[4:] = 0.0
    mixtral.save_pretrained(root / "hf")
    made: dict[str, Artifact] = {}

    def make(**options: Any) -> Artifact:
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = Artifact(convert(root / "hf", root / f"out{len(made)}", **options))
        return made[key]

    return make


def expert_mutations(artifact: Artifact) -> dict[str, Changes]:
    """In each tensor of experts of the last file: its last two exchanged, and one value of the last one changed."""
    found: dict[str, Changes] = {}
    for name, tensor in _last(artifact).items():
        if ".mlp.fc." not in name and ".mlp.proj." not in name:
            continue
        key, size = (_last_file(artifact), name), len(tensor)
        found[f"{name}: exchanged"] = {key: tensor[[*range(size - 2), size - 1, size - 2]]}
        changed = tensor.clone()
        changed[-1].view(-1)[5] = 77 if tensor.dtype == torch.int8 else 2 * changed[-1].view(-1)[5]
        assert not same(changed, tensor)
        found[f"{name}: one"] = {key: changed}
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32", "tp": 1},
        {"dtype": "float16", "tp": 2},
        {"dtype": "float16", "tp": 2, "moe_ep": 2},
        {"dtype": "float16", "tp": 2, "pp": 2},
        {"dtype": "float16", "tp": 2, "quantization": "w8a16"},
        {"dtype": "bfloat16", "tp": 2, **PACKED["w8a16"]},
        {"dtype": "bfloat16", "tp": 2, **PACKED["w4a16"]},
    ],
)
def test_an_expert_that_no_token_visits_is_compared(
    options: dict[str, Any], shy_experts: Callable[..., Artifact]
) -> None:
    """Exchanged with another, or with one weight or one scale changed, in every recipe and distribution."""
    artifact = shy_experts(**options)
    mutations = expert_mutations(artifact)

    assert complaints(artifact.subject) == []
    assert len(mutations) >= 4
    assert survivors(artifact, mutations) == []


def test_only_the_comparison_of_experts_feels_those_that_no_token_visits(
    shy_experts: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it every such mutation would pass; with it the message names layer, expert and part."""
    artifact = shy_experts(dtype="float16", tp=2)
    mutations = expert_mutations(artifact)
    name, change = next((key, value) for key, value in mutations.items() if "layers.1.mlp.proj.weight: one" in key)

    found = artifact.after(change)
    monkeypatch.setattr(trtllm, "_expert_differences", lambda subject, oracle: iter(()))

    assert "layer 1, expert 5, down" in found[0], name
    assert survivors(artifact, mutations) == list(mutations)


# Layers that stages do not divide


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A LLaMA of three layers on two stages."""
    root = tmp_path_factory.mktemp("uneven")
    models.save("llama_gqa", root / "hf", config={"num_hidden_layers": 3})
    return Artifact(convert(root / "hf", root / "out", dtype="float16", pp=2))


def test_stages_that_do_not_divide_the_layers_pass(uneven: Artifact) -> None:
    """The first stage has two layers, the second one."""
    assert any("layers.1." in name for name in uneven.tensors["rank0.safetensors"])
    assert not any("layers.1." in name for name in uneven.tensors["rank1.safetensors"])
    assert complaints(uneven.subject) == []


def test_a_wrong_order_of_uneven_layers_is_caught(uneven: Artifact) -> None:
    """Layers of one stage exchanged, and the last of the first stage with the first of the second."""
    found: dict[str, Changes] = {}
    for title, (first, here), (second, there) in (
        ("within", ("rank0.safetensors", 0), ("rank0.safetensors", 1)),
        ("across", ("rank0.safetensors", 1), ("rank1.safetensors", 0)),
    ):
        changes: dict[tuple[str, str], Tensor | None] = {}
        for name, tensor in uneven.tensors[first].items():
            if f"layers.{here}." in name:
                other = name.replace(f"layers.{here}.", f"layers.{there}.")
                changes |= {(first, name): uneven.tensors[second][other], (second, other): tensor}
        found[title] = changes

    assert survivors(uneven, found) == []


def test_a_last_stage_with_one_more_layer_is_caught(uneven: Artifact) -> None:
    """One layer and then two is not what the runtime loads."""
    changes: dict[tuple[str, str], Tensor | None] = {}
    for name, tensor in uneven.tensors["rank0.safetensors"].items():
        if "layers.1." in name:
            changes |= {("rank0.safetensors", name): None, ("rank1.safetensors", name): tensor}

    assert uneven.after(changes) != []


# Attention in a window

WINDOWED = {
    "mistral": {"sliding_window": 4},
    "mixtral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4},
    "phi3": {"sliding_window": 4},
    "starcoder2": {"sliding_window": 4},
    "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0},
}


def fed(patch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences that are executed from now on."""
    lengths: list[int] = []
    run = trtllm.execute

    def recorded(folder: Path, inputs: Any, **arguments: Any) -> Any:
        lengths.append(inputs.tokens.shape[1])
        return run(folder, inputs, **arguments)

    patch.setattr(trtllm, "execute", recorded)
    return lengths


@pytest.mark.parametrize("name", WINDOWED)
def test_no_sequence_is_longer_than_the_window(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint does not hold the window, so only what fits in it can be compared; a note says so."""
    models.save(name, tmp_path / "hf", config=WINDOWED[name])
    models.add_tokenizer(tmp_path / "hf")
    subject = convert(tmp_path / "hf", tmp_path / "out", dtype="float16")
    lengths = fed(monkeypatch)

    items = items_of(subject)

    assert problems_of([item for item in items if isinstance(item, Check)]) == []
    assert set(lengths) == {4}
    assert any("attends to 4 tokens at most" in item for item in items if isinstance(item, str))
    assert {len(prompt) for prompt in trtllm.engine_prompts(subject)} == {4}


@pytest.mark.parametrize("window", [4, 1])
def test_windows_of_a_text_fit_in_that_of_the_model(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexity too; nothing follows in a window of one token, which a note says."""
    config = {"sliding_window": window, "hidden_size": 128, "intermediate_size": 128}
    models.save("mistral", tmp_path / "hf", config=config)
    models.add_tokenizer(tmp_path / "hf")
    subject = convert(tmp_path / "hf", tmp_path / "out", dtype="float16", quantization="w8a16")
    lengths = fed(monkeypatch)

    items = items_of(subject)

    assert max(lengths) == window
    assert any(isinstance(item, Quality) for item in items)
    assert any("no token follows another" in item for item in items if isinstance(item, str)) == (window == 1)


@pytest.mark.parametrize("change", [{"use_sliding_window": False}, {"sliding_window": None}])
def test_a_window_that_is_off_limits_nothing(change: dict[str, Any], built: Build) -> None:
    """Qwen's configs name one and switch it off."""
    subject = replace(built("qwen2", tp=1).subject)
    config = {**subject.model_config, "sliding_window": 4, "use_sliding_window": True, **change}
    vars(subject)["model_config"] = config

    assert subject.window is None


def test_a_bart_of_few_positions_passes(tmp_path: Path) -> None:
    """The decoder is fed no more than the model has positions for."""
    models.save("bart", tmp_path / "hf", config={"max_position_embeddings": 4})

    assert complaints(convert(tmp_path / "hf", tmp_path / "out", dtype="float32")) == []


@every_family
def test_each_row_of_a_table_is_caught(name: str, built: Build) -> None:
    """Rows of tokens and positions that no run is fed, the last ones, and rows of a head, on both ranks."""
    artifact = built(name, tp=2)

    assert survivors(artifact, table_mutations(artifact)) == []


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_row_of_a_split_table_is_caught(name: str, axis: int, built: Build) -> None:
    """The same, of tables cut by rows and by columns."""
    artifact = built(name, tp=2, use_parallel_embedding=True, embedding_sharding_dim=axis)

    assert survivors(artifact, table_mutations(artifact)) == []


@pytest.mark.parametrize("name", ["t5", "t5-v1.1", "mt5"])
def test_each_relative_bias_is_caught(name: str, built: Build) -> None:
    """Heads exchanged, and a bias of a distance that no run has."""
    artifact = built(name, tp=2)
    found = {f"{key}: heads": change for key, change in rolled(artifact, "rel_attn_table", 1).items()}
    for tensor in (key for key in artifact.names() if key.endswith("rel_attn_table")):
        file, values = artifact.ranks(tensor)[-1]
        far = values.clone()
        far[0, -1] += 1
        found[f"{tensor}: far"] = {(file, tensor): far}
    for file in ("decoder/rank0.safetensors",):  # in all of its places
        tensors = [key for key in artifact.tensors[file] if key.endswith("rel_attn_table")]
        moved = {(file, key): artifact.tensors[file][key].roll(1, 1) for key in tensors}
        found["decoder: everywhere"] = moved

    assert survivors(artifact, found) == []


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-moe", "gpt2", "bart", "t5"])
def test_wrong_structure_is_caught(name: str, built: Build) -> None:
    """A tensor that is missing, too many, of another shape or type, in each file."""
    artifact = built(name, tp=2)

    assert survivors(artifact, structure_mutations(artifact)) == []


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "t5"])
def test_a_nan_is_caught(name: str, built: Build) -> None:
    """One NaN in any tensor, in the last element."""
    artifact = built(name, tp=2)
    found: dict[str, Changes] = {}
    for file, tensors in [(file, artifact.tensors[file]) for file in artifact.tensors if "rank1" in file]:
        for tensor, values in tensors.items():
            broken = values.clone()
            broken.view(-1)[-1] = float("nan")
            padding = "embedding" in tensor and not bool(values[-1].any())
            if not padding:
                found[f"{file}: {tensor}"] = {(file, tensor): broken}

    assert survivors(artifact, found) == []


def test_a_missing_rank_is_caught(built: Build) -> None:
    """No rank file, and one too many."""
    artifact = built("llama", tp=2)
    first, second = (artifact.folder / f"rank{rank}.safetensors" for rank in (1, 2))

    shutil.copy(first, second)
    surplus = complaints(artifact.subject)
    second.unlink()
    content = first.read_bytes()
    first.unlink()
    missing = complaints(artifact.subject)
    first.write_bytes(content)

    assert "rank2.safetensors: a rank that is not in the mapping" in surplus[0]
    assert "rank1.safetensors: missing" in missing[0]
    assert complaints(artifact.subject) == []


# Recipes


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *((name, "w4a16") for name in CASES),
        *((name, "w8a16") for name in ("llama-gqa", "gpt2", "falcon-40b", "phi3", *EXPERTS, "t5", "bart")),
        *((name, "awq") for name in ("llama-gqa", "gpt2", "gptj", "falcon-7b", "phi3", "gemma2", "opt")),
    ],
)
def test_each_wrong_byte_order_and_scale_is_caught(name: str, recipe: str, built: Build) -> None:
    """Packed integers in another order, and scales that are others, in every linear of a layer."""
    artifact = built(name, wide=True, tp=2, dtype="bfloat16", **PACKED[recipe])

    mutations = {**packed_mutations(artifact), **scale_mutations(artifact)}

    assert survivors(artifact, mutations) == []


# config.json

OTHERWISE: Mapping[str, Any] = {
    "hidden_act": {"gelu": "relu", "gelu_new": "relu", "relu": "silu", "silu": "relu", "swiglu": "gelu"},
    "position_embedding_type": {
        "rope_gpt_neox": "rope_gptj",
        "rope_gptj": "rope_gpt_neox",
        "alibi": "alibi_with_scale",
        "alibi_with_scale": "alibi",
        "learned_absolute": "rope_gpt_neox",
        "relative": "learned_absolute",
    },
    "dtype": {"float32": "float16"},
    "architecture": {},
}
INERT = frozenset(
    {
        *("producer", "logits_dtype", "gpt_variant", "seq_length", "decoder_start_token_id", "eos_token_id"),
        *("bos_token_id", "pad_token_id", "skip_cross_qkv", "gated_act", "norm_before_bmm1"),
        *("embedding_sharding_dim", "model_type", "use_implicit_relative_attention"),
    }
)
"""Fields without effect on logits, of these checkpoints: whole tables, one in every layer, and no fp16 to overflow."""
UNUSED: Mapping[str, tuple[str, ...]] = {
    "rotary_base": ("gpt2", "bigcode", "bigcode-mha", "falcon-rw"),
    "rotary_pct": ("gpt2", "bigcode", "bigcode-mha"),
    "mlp_bias": EXPERTS,
    "intermediate_size": ("qwen2-moe", "qwen3-moe"),
    "moe_intermediate_size": ("qwen2", "qwen3"),
    "moe_shared_expert_intermediate_size": ("qwen2", "qwen3", "qwen3-moe"),
    "new_decoder_architecture": ("falcon-7b",),
    "num_ln_in_parallel_attn": ("falcon-7b", "falcon-rw"),
    "parallel_attention": ("falcon-40b",),
    "share_embedding_table": ("gemma", "gemma2"),
    "position_embedding_type": TWO_STACKS,
    "num_buckets": ("bart",),
    "max_distance": ("bart",),
    "rotary_scaling": ("gpt2", "bigcode", "bigcode-mha"),
}
"""Fields that the network of a family has no use for."""


def config_mutations(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each field, and each of a nested object, with another value of its type."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            if key != "mapping":
                found |= {f"{key}.{inner}": {key: change} for inner, change in config_mutations(value).items()}
        elif key not in INERT and key not in ("name", "version"):
            found[key] = {key: _otherwise(key, value)}
    return found


def _otherwise(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5
    if isinstance(value, str):
        return OTHERWISE.get(key, {}).get(value, "another")
    return {"rotary_scaling": {"type": "linear", "factor": 2.0}}.get(key, 7)


@every_family
def test_each_wrong_field_is_caught(name: str, built: Build) -> None:
    """Each field of config.json, one at a time: rotary base, scaling and share, epsilon, activation, caps and more."""
    artifact, left = built(name, tp=2), []
    for part in ("encoder", "decoder") if name in TWO_STACKS else ("",):
        config = json.loads((artifact.folder / part / "config.json").read_text())
        for key, change in config_mutations(config).items():
            if artifact.configured(change, part) == [] and key not in left:
                left.append(key)

    assert sorted(left) == sorted(key for key, families in UNUSED.items() if name in families)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rotary_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama-gqa", {"rotary_scaling": None}),
        ("llama-gqa", {"rotary_scaling": {"factor": 8.0}}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("mpt", {"clip_qkv": 0.5}),
        ("mixtral", {"moe": {"normalization_mode": 0}}),
        ("mixtral", {"moe": {"top_k": 1}}),
        ("bart", {"has_embedding_scale": True}),
        ("llama", {"mapping": {"tp_size": 1, "world_size": 1}}),
        ("llama", {"mapping": {"tp_size": 1, "pp_size": 2}}),
    ],
)
def test_this_wrong_field_is_caught(name: str, change: dict[str, Any], built: Build) -> None:
    """Values that another model might have."""
    artifact = built(name, tp=2)
    part = "decoder" if name in TWO_STACKS else ""

    assert artifact.configured(change, part) != []


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize(
    "content", ["", "{\n\x00", "[]", "null", "{}", "[" * 100_000, '{"mapping": []}', '{"mapping": {"world_size": "x"}}']
)
def test_a_damaged_config_is_said_so(content: str, name: str, built: Build) -> None:
    """No traceback, whatever is in it; of an encoder-decoder model the decoder's."""
    artifact = built(name, tp=2)
    path = artifact.folder / ("decoder" if name == "t5" else "") / "config.json"
    before = path.read_bytes()
    path.write_text(content)
    try:
        assert complaints(artifact.subject) != []
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "unreadable"),
        ("[]", "a JSON list"),
        ('{"mapping": []}', r"mapping: \[\]; expected an object"),
        ('{"mapping": {"world_size": "x"}}', "world_size: 'x'; expected a whole number"),
        ('{"mapping": {"world_size": 0}}', "world_size: 0"),
        ('{"mapping": {"world_size": true}}', "world_size: True"),
    ],
)
def test_ranks_that_cannot_be_counted_are_said_so(content: str, text: str, tmp_path: Path) -> None:
    """By the file and the key."""
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(MismatchError, match=rf"config\.json.*{text}"):
        trtllm.ranks(tmp_path)


@pytest.mark.parametrize(
    ("content", "count"), [({}, 1), ({"mapping": None}, 1), ({"mapping": {}}, 1), ({"mapping": {"world_size": 4}}, 4)]
)
def test_ranks_are_counted(content: dict[str, Any], count: int, tmp_path: Path) -> None:
    """One where config.json does not say."""
    (tmp_path / "config.json").write_text(json.dumps(content))

    assert trtllm.ranks(tmp_path) == count


@pytest.mark.parametrize(("name", "other"), [("llama", "bart"), ("bart", "llama")])
def test_a_model_of_another_kind_is_said_so(name: str, other: str, built: Build) -> None:
    """An encoder and a decoder against one stack, and the reverse."""
    subject = replace(built(name, tp=2).subject, folder=built(other, tp=2).folder)

    assert "--model" in trtllm_hint(subject)


def trtllm_hint(subject: trtllm.Subject) -> str:
    """The hint of the first problem."""
    with pytest.raises(MismatchError) as caught:
        items_of(subject)
    return caught.value.problems[0].hint


# Models that come quantized

LINEARS = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (128, 128),
    "mlp.up_proj": (128, 128),
    "mlp.down_proj": (128, 128),
}
GROUP = 64
METHODS: Mapping[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "static"},
}


def in_words(values: np.ndarray[Any, Any], order: Sequence[int]) -> Tensor:
    """Pack each eight values of the last axis in an int32; bits 4 i and up hold value `order[i]`."""
    eights = values.reshape(*values.shape[:-1], -1, 8).astype(np.uint32)
    words = sum(eights[..., value] << np.uint32(4 * place) for place, value in enumerate(order))
    return torch.from_numpy(np.asarray(words, np.uint32).view(np.int32))


def random_linear(method: str, out: int, inp: int, numbers: np.random.Generator) -> dict[str, Tensor]:
    """The tensors of one quantized linear layer."""
    if method == "fp8":
        values = torch.from_numpy(numbers.normal(size=(out, inp)).astype(np.float32))
        scales = numbers.uniform(0.01, 0.1, size=2).astype(np.float32)
        return {
            "weight": (values / scales[0]).clamp(-448, 448).to(torch.float8_e4m3fn),
            "weight_scale": torch.tensor(scales[0]),
            "input_scale": torch.tensor(scales[1]),
        }
    values, zeros = numbers.integers(0, 16, (inp, out)), numbers.integers(1, 15, (inp // GROUP, out))
    scales16 = torch.from_numpy(numbers.uniform(0.005, 0.02, (inp // GROUP, out))).half()
    if method == "awq":
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        return {"qweight": in_words(values, order), "qzeros": in_words(zeros, order), "scales": scales16}
    packed = in_words(values.T, range(8)).T.contiguous()
    return {"qweight": packed, "qzeros": in_words(zeros - 1, range(8)), "scales": scales16}


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """`quantized(method)` is the converted checkpoint of a LLaMA that comes quantized, on two ranks."""
    made: dict[str, Artifact] = {}

    def make(method: str) -> Artifact:
        if method not in made:
            root = tmp_path_factory.mktemp(method)
            model = models.build("llama_gqa", config={"hidden_size": 128, "intermediate_size": 128}, dtype="float16")
            _calm(model)
            model.save_pretrained(root / "hf")
            tensors = load_file(root / "hf" / "model.safetensors")
            numbers = np.random.default_rng(3)
            for layer in range(2):
                for name, (out, inp) in LINEARS.items():
                    stem = f"model.layers.{layer}.{name}"
                    del tensors[f"{stem}.weight"]
                    linear = random_linear(method, out, inp, numbers)
                    tensors |= {f"{stem}.{leaf}": tensor for leaf, tensor in linear.items()}
            save_file(tensors, root / "hf" / "model.safetensors")
            path = root / "hf" / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": METHODS[method]}))
            recipe = "fp8" if method == "fp8" else "w4a16_gptq"
            made[method] = Artifact(convert(root / "hf", root / "out", tp=2, dtype="float16", quantization=recipe))
        return made[method]

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_passes(method: str, quantized: Callable[..., Artifact]) -> None:
    """What was passed through is the model that came."""
    assert complaints(quantized(method).subject) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_scale_of_a_quantized_model_is_caught(method: str, quantized: Callable[..., Artifact]) -> None:
    """Scales of weights and activations, and zeros, one doubled or two exchanged, in every linear."""
    artifact = quantized(method)

    mutations = {**scale_mutations(artifact, 0), **scale_mutations(artifact, 1)}

    assert len(mutations) >= 20
    assert survivors(artifact, mutations) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_an_activation_scale_that_cannot_be_one_is_caught(value: float, quantized: Callable[..., Artifact]) -> None:
    """NaN, infinite, zero and negative ones, which no float run feels."""
    artifact = quantized("fp8")
    found: dict[str, Changes] = {
        name: {(_last_file(artifact), name): torch.full_like(tensor, value)}
        for name, tensor in _last(artifact).items()
        if name.endswith("activation_scaling_factor")
    }

    assert survivors(artifact, found) == []
    assert any("a finite number above 0" in line for line in artifact.after(next(iter(found.values()))))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_zero_off_by_one_is_caught(method: str, quantized: Callable[..., Artifact]) -> None:
    """Zeros that are stored less one, taken as they are; and integers in another order."""
    artifact = quantized(method)
    found: dict[str, Changes] = {}
    for name in (key for key in artifact.names() if key.endswith(".zero")):
        stem = name.removesuffix(".zero")
        for file, zero in artifact.ranks(name):
            tensors = artifact.tensors[file]
            found[f"{file}: {name}"] = {(file, name): zero + tensors[f"{stem}.weights_scaling_factor"]}
            weight = tensors[f"{stem}.weight"]
            flat = weight.contiguous().view(torch.int16).flatten()
            turned = torch.cat([flat[32:64], flat[:32], flat[64:]]).view(torch.float16).view(weight.shape)
            found[f"{file}: {stem}.weight"] = {(file, f"{stem}.weight"): turned}

    assert survivors(artifact, found) == []


@pytest.mark.parametrize("method", METHODS)
def test_exchanged_ranks_of_a_quantized_model_are_caught(method: str, quantized: Callable[..., Artifact]) -> None:
    """Every split tensor, and with FP8 every layer."""
    artifact = quantized(method)

    assert survivors(artifact, {**exchanged_ranks(artifact), **exchanged_layers(artifact)}) == []


@pytest.fixture(scope="session")
def rowwise(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A LLaMA of four layers, of which two have FP8 matrices with a scale for each row."""
    root = tmp_path_factory.mktemp("rowwise")
    model = models.build("llama_gqa", config={"num_hidden_layers": 4}, dtype="bfloat16")
    model.save_pretrained(root / "hf")
    return Artifact(convert(root / "hf", root / "out", tp=2, dtype="bfloat16", quantization="fp8_rowwise"))


def test_a_wrong_row_scale_is_caught(rowwise: Artifact) -> None:
    """Scales doubled and exchanged, shards exchanged, and bytes in another order, in both inner layers."""
    changes = {**scale_mutations(rowwise, 1), **scale_mutations(rowwise, 2), **exchanged_ranks(rowwise)}
    for name, tensor in _last(rowwise).items():
        if tensor.dtype == torch.float8_e4m3fn:
            turned = tensor.view(torch.int8).roll(1, 0).view(torch.float8_e4m3fn)
            changes[f"{name}: rows"] = {(_last_file(rowwise), name): turned}

    assert complaints(rowwise.subject) == []
    assert survivors(rowwise, changes) == []


def test_a_malformed_clamp_is_caught(rowwise: Artifact) -> None:
    """One bound where there must be two."""
    assert rowwise.configured({"quantization": {"clamp_val": [-1.0]}}) != []


# The command line


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_verify_ends_with_7(name: str, built: Build, model: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    """`verify --deep` of a checkpoint with two exchanged norms, without a manifest."""
    artifact = built(name, tp=2)
    broken = Path(shutil.copytree(artifact.folder, tmp_path / "checkpoint"))
    norms = {key: value for key, value in exchanged_layers(artifact).items() if "norm" in key}
    changes = next(iter(norms.values()))
    for file in {file for file, _ in changes}:
        mine = {tensor: value for (changed, tensor), value in changes.items() if changed == file and value is not None}
        save_file({**artifact.tensors[file], **mine}, broken / file)

    whole = run("verify", "--deep", "--model", model(name), artifact.folder)
    result = run("verify", "--deep", "--model", model(name), broken)

    assert whole.code == 0, whole.err
    assert result.code == 7, result.err
    assert "error: " in result.err


def test_a_rejected_build_is_kept_aside(
    model: Callable[..., Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a converter that adds one to every norm: exit code 7, no OUTPUT, and OUTPUT.rejected."""
    from llmcompile.exporters.trtllm import layout, rows

    mixed = {**rows.FAMILIES, "llama": replace(rows.FAMILIES["llama"], mlp_norm="post_layernorm", add_one=True)}
    monkeypatch.setattr(layout, "FAMILIES", mixed)
    output = tmp_path / "out"

    result = run("build", "trtllm", "--model", model("llama"), "--stop-after", "checkpoint", output)

    assert result.code == 7, result.err
    assert not output.exists()
    assert (tmp_path / "out.rejected" / "checkpoint" / "config.json").is_file()


# Quality


TEXT = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 " * 4


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> trtllm.Subject:
    """A quantized checkpoint of a model with a tokenizer, 20 positions long, and a text of 144 words."""
    root = tmp_path_factory.mktemp("scored")
    built = models.build("gpt2", config={"n_embd": 128, "n_inner": 128}, dtype="float16")
    _calm(built)
    built.save_pretrained(root / "hf")
    models.add_tokenizer(root / "hf")
    (root / "text.txt").write_text(TEXT)
    subject = convert(root / "hf", root / "out", dtype="float16", quantization="w8a16", wo_layout="sm80")
    return replace(subject, eval_text=root / "text.txt")


def quality_of(subject: trtllm.Subject) -> Quality:
    """What validation says of it."""
    return next(item for item in items_of(subject) if isinstance(item, Quality))


def test_perplexity_is_that_of_the_model(scored: trtllm.Subject) -> None:
    """Windows as long as the model allows cover the text, and the mean is over all their predictions."""
    model = transformers.AutoModelForCausalLM.from_pretrained(scored.checkpoint, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(scored.checkpoint)(TEXT)["input_ids"]
    windows = [ids[start : start + 20] for start in range(0, len(ids), 20)]
    windows = windows[:8]
    nats, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            logits = model(torch.tensor([window])).logits[0].double()
            chances = torch.log_softmax(logits, -1)
            nats -= float(sum(chances[at, window[at + 1]] for at in range(len(window) - 1)))
            count += len(window) - 1

    found = quality_of(scored)

    assert found.perplexity_model == pytest.approx(float(np.exp(nats / count)), rel=1e-4)
    assert found.tokens == sum(len(window) for window in windows)
    assert "text.txt" in found.text


def test_the_sample_is_shorter_for_a_large_model(scored: trtllm.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What scoring costs is bounded, but for a text the user chose."""
    monkeypatch.setattr(trtllm, "_MULTIPLICATIONS", 1)

    assert quality_of(replace(scored, eval_text=None)).tokens == 32
    assert quality_of(scored).tokens > 32


def test_top1_counts_equal_preferences(scored: trtllm.Subject) -> None:
    """Eight bits cost little, so most preferences stay, and an error is a part of the largest logit."""
    found = quality_of(scored)

    assert 0.8 <= found.top1 <= 1.0
    assert found.perplexity == pytest.approx(found.perplexity_model, rel=0.2)
    assert 0.0 < found.largest_error < found.largest_logit


def test_a_missing_tokenizer_is_said(built: Build) -> None:
    """Without one, fixed tokens are scored, and a note says so."""
    artifact = built("gpt2", wide=True, tp=2, dtype="bfloat16", **PACKED["w8a16"])

    notes = [item for item in items_of(artifact.subject) if isinstance(item, str)]

    assert any("no text was scored: there are no tokenizer files" in note for note in notes)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00", None])
def test_a_text_that_cannot_be_used_is_an_error(content: bytes | None, scored: trtllm.Subject, tmp_path: Path) -> None:
    """Empty, blank, not UTF-8, and absent texts are refused by the name of the option."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(OptionsError, match="--eval-text"):
        items_of(replace(scored, eval_text=path))


@pytest.mark.parametrize(
    ("perplexity", "words"),
    [(10.05, "+0.5%"), (9.9, "-1%"), (1e304, "+1e+305%"), (float("inf"), "perplexity inf, +inf%"), (5.0, "-50%")],
)
def test_what_a_recipe_costs_is_one_short_line(perplexity: float, words: str) -> None:
    """Three digits of the percentage, however large."""
    found = Quality(
        text="text",
        recipe="W8A16",
        tokens=7,
        perplexity_model=10.0,
        perplexity=perplexity,
        kl=0.25,
        top1=0.5,
        largest_error=0.1,
        largest_logit=3.0,
    )

    assert words in str(found)
    assert len(str(found)) < 200


# The engine


def test_logits_of_an_engine_are_compared(built: Build, tmp_path: Path) -> None:
    """The model's own pass, and one with a single wrong logit does not."""
    subject = built("llama", tp=1, dtype="float16").subject
    model = transformers.AutoModelForCausalLM.from_pretrained(subject.checkpoint, dtype=torch.float16).eval()
    prompts = trtllm.engine_prompts(subject)
    files = [tmp_path / f"{number}.npy" for number in range(len(prompts))]
    with torch.no_grad():
        for prompt, path in zip(prompts, files, strict=True):
            np.save(path, model.float()(torch.tensor([prompt])).logits[0].numpy())
    same_logits = list(trtllm.engine_checks(subject, prompts, files, False))
    wrong = np.load(files[1])
    wrong[3, 5] += 1 + abs(wrong).max() / 10
    np.save(files[1], wrong)

    checks = list(trtllm.engine_checks(subject, prompts, files, False))

    assert len(prompts) > 1
    assert problems_of(same_logits) == []
    assert [check.comparison.passed for check in checks] == [True, False, *[True] * (len(prompts) - 2)]
    assert "prompt 1 on the GPU" in str(problems_of(checks)[0])


# What is not finite


@pytest.fixture
def overflowing(tmp_path: Path) -> Callable[[str], Path]:
    """`overflowing(tensor)` is a model in float32 with one element there that float16 does not hold."""

    def make(name: str) -> Path:
        source = models.save("llama_gqa", tmp_path / "model", config={"hidden_size": 64, "intermediate_size": 64})
        held = load_file(source / "model.safetensors")
        held[name].view(-1)[5] = 1e5
        save_file(held, source / "model.safetensors", {"format": "pt"})
        return source

    return make


@pytest.mark.parametrize("target", [("--stop-after", "checkpoint"), ("--target", "llmapi")])
def test_accepted_infinities_are_left_out_of_the_comparison(
    target: tuple[str, ...], overflowing: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    """One token's logits are infinite on both sides, and the others are compared."""
    command = ("build", "trtllm", "-m", overflowing("lm_head.weight"), "--dtype", "fp16", "--allow-overflow", *target)

    result = run(*command, tmp_path / "out")

    assert result.code == 0, result.err
    notes = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["validation"]["notes"]
    assert "of output logits is not finite, here as in the model, and was not compared" in " ".join(notes)


@pytest.mark.parametrize("target", [("--stop-after", "checkpoint"), ("--target", "llmapi")])
def test_infinities_that_leave_nothing_to_compare_are_rejected(
    target: tuple[str, ...], overflowing: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    """A norm that overflows makes every logit NaN, and nothing is known of the rest."""
    name = "model.norm.weight"

    result = run(
        *("build", "trtllm", "-m", overflowing(name), "--dtype", "fp16", "--allow-overflow", *target), tmp_path / "out"
    )

    assert result.code == 7, result.err
    assert "NaN or infinite" in result.err


def test_logits_that_are_not_finite_are_not_scored(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a sentence instead of figures, which NaN would make look good; a comparison of recipes goes on."""
    sizes = {"hidden_size": 128, "intermediate_size": 128}
    source = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=sizes)
    executed = trtllm.execute

    def broken(*arguments: Any, **keywords: Any) -> Any:
        found = executed(*arguments, **keywords)
        return {"logits": found["logits"] * math.nan} if keywords.get("quantize") else found

    monkeypatch.setattr(trtllm, "execute", broken)

    result = run("quantize", "-m", source, "--recipes", "w8a16", tmp_path / "out")

    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert [outcome["quality"] for outcome in report["outcomes"]] == [None, None]
    assert "of the checkpoint's logits are NaN or infinite" in result.err + json.dumps(report)
