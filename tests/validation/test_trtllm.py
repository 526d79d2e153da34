"""Broken TensorRT-LLM checkpoints must be caught by what they hold alone: no manifest is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcompile import pipeline
from llmcompile.errors import LlmCompileError, OptionsError
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
        config[key] = _merged(config[key], value) if isinstance(value, dict) and key in config else value
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
            for (file, first), (other, second) in zip(mine, mine[1:], strict=False):
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
            for row in (*range(0, len(tensor), 14), len(tensor) - 1):
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


def packed_mutations(artifact: Artifact) -> dict[str, Changes]:
    """In each packed matrix of the last rank: bytes, nibbles, rows and columns exchanged, and one bit flipped."""
    found: dict[str, Changes] = {}
    for name, tensor in _last(artifact).items():
        if not name.endswith("weight") or tensor.dtype.itemsize != 1 or tensor.dim() < 2:
            continue
        key, flat = (_last_file(artifact), name), tensor.view(torch.int8).flatten()

        def shaped(changed: Tensor, like: Tensor = tensor) -> Tensor:
            return changed.view(like.dtype).view(like.shape)

        at = int((flat[1:] != flat[:-1]).nonzero()[0])
        exchanged = flat.clone()
        exchanged[at], exchanged[at + 1] = flat[at + 1], flat[at]
        found[f"{name}: two bytes"] = {key: shaped(exchanged)}
        found[f"{name}: pairs of bytes"] = {key: shaped(flat.view(-1, 2).flip(1).flatten())}
        found[f"{name}: rows moved"] = {key: shaped(tensor.view(torch.int8).roll(1, -2))}
        found[f"{name}: columns moved"] = {key: shaped(tensor.view(torch.int8).roll(1, -1))}
        bit = flat.clone()
        bit[len(bit) // 2] ^= 0x40
        found[f"{name}: a bit"] = {key: shaped(bit)}
        if artifact.subject.algorithm in ("W4A16", "W4A16_AWQ"):
            unsigned = flat.view(torch.uint8)
            nibbles = (unsigned << 4 | unsigned >> 4).view(torch.int8)
            found[f"{name}: nibbles"] = {key: shaped(nibbles)}
    return found


def scale_mutations(artifact: Artifact) -> dict[str, Changes]:
    """Of each tensor of scales, zeros or input factors: one doubled, two exchanged."""
    found: dict[str, Changes] = {}
    for name, tensor in _last(artifact).items():
        if not name.endswith(("scale", "scaling_factor", "zero")):
            continue
        key, flat = (_last_file(artifact), name), tensor.flatten()
        one = flat.clone()
        one[len(one) // 2] *= 2
        found[f"{name}: one doubled"] = {key: one.view(tensor.shape)}
        apart = (flat[1:] != flat[:-1]).nonzero()
        if len(apart) > 0:
            at, two = int(apart[0]), flat.clone()
            two[at], two[at + 1] = flat[at + 1], flat[at]
            found[f"{name}: two exchanged"] = {key: two.view(tensor.shape)}
    return found


def _last_file(artifact: Artifact) -> str:
    return list(artifact.tensors)[-1]


def _last(artifact: Artifact) -> Mapping[str, Tensor]:
    return artifact.tensors[_last_file(artifact)]
