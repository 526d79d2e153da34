"""The vocabulary of roles: how an architecture says what its checkpoint holds, in terms every backend understands.

A *role* names what a tensor is for (`attn.q.weight`), whatever the checkpoint calls it. Every role has output axes and,
for matrices, input axes; attention axes keep the head apart from the elements inside it, so that a split by rank counts
heads and cannot cut one in half.

Roles shared by all families (a prefix `encoder.` or `decoder.` where a model has both stacks):
    embed.tokens  embed.positions  embed.types  embed.norm  embed.project_in  embed.project_out  norm  head  pooler
    attn.norm  attn.q  attn.k  attn.v  attn.o  attn.relative  cross.norm  cross.q  cross.k  cross.v  cross.o
    mlp.norm  mlp.up  mlp.gate  mlp.down
    attn.q_norm  attn.k_norm  attn.post_norm  mlp.post_norm  router
    experts.up  experts.gate  experts.down  shared.up  shared.gate  shared.down  shared.switch
each followed by `.weight` or `.bias`. `attn.norm` and `mlp.norm` belong to the block of that name, before it or after;
`attn.post_norm` and `mlp.post_norm` follow the block in models that have both. A quantized checkpoint has, beside or
instead of `.weight`: `.qweight`, `.qzeros` and `.scales` (GPTQ, AWQ), `.weight_scale` and `.input_scale` (FP8).

Axes are names of sizes. Besides: `part` counts the roles of a fused tensor; `heads+kv_heads+kv_heads` holds one role
after the other on one axis; `ffn/8` is an eighth of a size, for packed integers; a number is itself.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from llmcompile.dtypes import Shape
from llmcompile.errors import CheckpointError, Problem, collected

Fact: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Dims:
    """What config.json says of one model.

    Attributes:
        sizes: Axis name -> elements (vocab, hidden, heads, kv_heads, head_dim, ffn, layers, ...).
        facts: Everything else a backend may need (activation, norm_eps, tied, rotary_dim, ...).
    """

    sizes: Mapping[str, int]
    facts: Mapping[str, Fact]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint and the roles it holds.

    Attributes:
        roles: One role, or several for a fused tensor, in the order of its axis `part` or of a sum's addends.
        name: Name in the checkpoint without the family's prefix; `{layer}` and `{expert}` stand for numbers.
        out: Output axes, slowest first, by name; one of them is `part` or a sum in a fused tensor.
        inp: Input axes; "" for a vector.
        in_first: Whether the checkpoint stores (in, out), as GPT-2's Conv1D does, instead of torch's (out, in).
        repeat: The size that counts the layers, for names with `{layer}`.
        when: Facts that must be true for the tensor to exist, separated by spaces; "!fact" for false; "" for always.
        tied_to: Role read instead when the fact `tied` is true; a stored tensor is then ignored, as transformers does.
        skip_rows: Leading rows that hold no data (OPT's two padding positions).
        legacy: Older names of the same tensor.
        order: Output axes as every backend knows them, where the checkpoint stores them in another order.
        kind: Element type of a tensor that is not float, by name ("int32"); "" for any float type.
    """

    roles: tuple[str, ...]
    name: str
    out: str
    inp: str = ""
    in_first: bool = False
    repeat: str = "layers"
    when: str = ""
    tied_to: str = ""
    skip_rows: int = 0
    legacy: tuple[str, ...] = ()
    order: str = ""
    kind: str = ""

    def stored_axes(self) -> tuple[tuple[str, ...], ...]:
        """Axes of each stored dimension, in stored order."""
        out, inp = tuple(self.out.split()), tuple(self.inp.split())
        if len(inp) == 0:
            return (out,)
        return (inp, out) if self.in_first else (out, inp)

    def stored_shape(self, dims: Dims) -> Shape:
        """The shape config.json implies for the tensor."""
        shape = [math.prod(self.size(axis, dims) for axis in axes) for axes in self.stored_axes()]
        return (shape[0] + self.skip_rows, *shape[1:])

    def size(self, axis: str, dims: Dims) -> int:
        """Elements of `axis`; of `part`, the roles held."""
        return len(self.roles) if axis == "part" else axis_size(axis, dims)

    def arithmetic(self, dims: Dims) -> str:
        """`stored_shape` spelt out: "heads 4 x head_dim 8, hidden 32"."""
        sides = [" x ".join(f"{axis} {self.size(axis, dims)}" for axis in axes) for axes in self.stored_axes()]
        if self.skip_rows > 0:
            sides[0] += f" + {self.skip_rows}"
        return ", ".join(sides)

    def exists(self, dims: Dims) -> bool:
        """Whether this model has the tensor at all."""
        return holds(self.when, dims)

    def places(self, dims: Dims) -> Iterator[tuple[int | None, int | None]]:
        """Layer and expert of each tensor the entry stands for; None where its name has no such number."""
        for layer in range(dims.sizes[self.repeat]) if "{layer}" in self.name else [None]:
            for expert in range(dims.sizes["experts"]) if "{expert}" in self.name else [None]:
                yield layer, expert

    def name_at(self, layer: int | None, expert: int | None) -> str:
        """The name of the tensor at a place."""
        name = self.name if layer is None else self.name.replace("{layer}", str(layer))
        return name if expert is None else name.replace("{expert}", str(expert))


def holds(when: str, dims: Dims) -> bool:
    """Whether all facts of a condition are as it says, as in `Tensor.when`."""
    return all(bool(dims.facts[fact.removeprefix("!")]) is not fact.startswith("!") for fact in when.split())


def axis_size(axis: str, dims: Dims) -> int:
    """Elements of an axis by its name: a size, a number, a sum such as `heads+kv_heads`, or a fraction, `ffn/8`."""
    if "+" in axis:
        return sum(axis_size(addend, dims) for addend in axis.split("+"))
    if "/" in axis:
        name, divisor = axis.split("/")
        return dims.sizes[name] // axis_size(divisor, dims)
    return int(axis) if axis.isdigit() else dims.sizes[axis]


@dataclass(frozen=True)
class Assumed:
    """What a tensor that is never read is taken to hold; a checkpoint where it holds something else is refused.

    Attributes:
        pattern: Names it is about, as in `Architecture.ignored`.
        content: In words, for the message.
        hint: What to do about other content.
        group: 0 for zeros alone; otherwise element i is i // group.
    """

    pattern: str
    content: str
    hint: str
    group: int = 0


@dataclass(frozen=True)
class Architecture:
    """A family of models: which classes it answers to, what its checkpoints hold, how to read its config.

    Attributes:
        name: Our name for the family.
        classes: Values of config.json's `architectures` it covers.
        model_types: Values of `model_type`, consulted only when `architectures` is absent.
        prefixes: Prefixes that tensor names carry or not, depending on the class that saved them; longest first.
        tensors: The table.
        dims: Reads config.json; raises CheckpointError.
        ignored: Name patterns (fnmatch, without prefix) never read -> why not.
        assumed: What some of those must hold, since the reason says so; `assembly.check_ignored` looks.
    """

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    prefixes: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    dims: Callable[[Mapping[str, Any]], Dims]
    ignored: Mapping[str, str]
    assumed: tuple[Assumed, ...] = ()

    def expected(self, dims: Dims) -> Iterator[tuple[Tensor, int | None, int | None]]:
        """Every tensor of a model of these dims, with the numbers of its layer and its expert."""
        for tensor in self.tensors:
            if tensor.exists(dims):
                for layer, expert in tensor.places(dims):
                    yield tensor, layer, expert

    def locate(self, names: Iterable[str]) -> Mapping[str, str]:
        """Canonical name (without prefix, with today's spelling) -> name in the file, for the `names` of a checkpoint.

        Today's spelling wins over a legacy one. A name that matches nothing, or whose place is taken, maps from itself.
        """
        current = [(_pattern(tensor.name), tensor.name) for tensor in self.tensors]
        legacy = [(_pattern(old), tensor.name) for tensor in self.tensors for old in tensor.legacy]
        found: dict[str, str] = {}
        rest = list(names)
        for patterns in (current, legacy, []):
            unplaced = []
            for name in rest:
                canonical = self._canonical(name, patterns) if len(patterns) > 0 else name
                if canonical is None or canonical in found:
                    unplaced.append(name)
                else:
                    found[canonical] = name
            rest = unplaced
        return MappingProxyType(found)

    def _canonical(self, name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str | None:
        for prefix in (*self.prefixes, ""):
            if not name.startswith(prefix):
                continue
            short = name.removeprefix(prefix)
            for pattern, current in patterns:
                match = pattern.fullmatch(short)
                if match is not None:
                    for place, number in match.groupdict().items():
                        current = current.replace(f"{{{place}}}", number)
                    return current
        return None

    def why_ignored(self, name: str) -> str | None:
        """Why the tensor called `name` in the file is not read; None when there is no reason."""
        for short in self._short(name):
            for pattern, reason in self.ignored.items():
                if fnmatch.fnmatchcase(short, pattern):
                    return reason
        return None

    def assumption(self, name: str) -> Assumed | None:
        """What the tensor called `name` in the file must hold to be ignored; None when it may hold anything."""
        for short in self._short(name):
            for assumed in self.assumed:
                if fnmatch.fnmatchcase(short, assumed.pattern):
                    return assumed
        return None

    def _short(self, name: str) -> Iterator[str]:
        """The name without each prefix it carries."""
        for prefix in (*self.prefixes, ""):
            if name.startswith(prefix):
                yield name.removeprefix(prefix)


def _pattern(name: str) -> re.Pattern[str]:
    number = r"(?P<\1>0|[1-9][0-9]*)"
    return re.compile(re.sub(r"\\\{(layer|expert)\\\}", number, re.escape(name)))


def linear(
    role: str,
    name: str,
    out: str,
    inp: str,
    *,
    bias: bool = True,
    in_first: bool = False,
    repeat: str = "layers",
    when: str = "",
    bias_when: str = "",
) -> tuple[Tensor, ...]:
    """The weight of a linear layer and, unless told not to, its bias; `bias_when` is one more condition of the bias."""
    weight = Tensor((f"{role}.weight",), f"{name}.weight", out, inp, in_first=in_first, repeat=repeat, when=when)
    condition = f"{when} {bias_when}".strip()
    return (
        (weight, Tensor((f"{role}.bias",), f"{name}.bias", out, repeat=repeat, when=condition)) if bias else (weight,)
    )


def fused(
    roles: tuple[str, ...],
    name: str,
    out: str,
    inp: str,
    *,
    bias: bool = True,
    in_first: bool = False,
    when: str = "",
    bias_when: str = "",
) -> tuple[Tensor, ...]:
    """The weight of a linear layer that holds several `roles`, and its bias unless told not to.

    Args:
        roles: In the order of the axis `part`, or of the addends of a sum, in `out`.
        name: Without `.weight`.
        out: Output axes.
        inp: Input axes.
        bias: Whether there is one at all.
        in_first: As in `Tensor`.
        when: Condition of both.
        bias_when: One more condition of the bias.
    """
    weights, biases = (tuple(f"{role}.{kind}" for role in roles) for kind in ("weight", "bias"))
    weight = Tensor(weights, f"{name}.weight", out, inp, in_first=in_first, when=when)
    return (weight, Tensor(biases, f"{name}.bias", out, when=f"{when} {bias_when}".strip())) if bias else (weight,)


def norm(
    role: str, name: str, *, bias: bool = True, repeat: str = "layers", when: str = "", legacy: bool = False
) -> tuple[Tensor, ...]:
    """A normalisation over `hidden`: weight and, unless told not to, bias; `legacy` adds TensorFlow's names."""
    pairs = (("weight", "gamma"), ("bias", "beta")) if bias else (("weight", "gamma"),)
    return tuple(
        Tensor(
            (f"{role}.{kind}",),
            f"{name}.{kind}",
            "hidden",
            repeat=repeat,
            when=when,
            legacy=(f"{name}.{old}",) if legacy else (),
        )
        for kind, old in pairs
    )


Epsilon: TypeAlias = Annotated[float, Field(gt=0)]
"""What a norm adds to the variance: without it, a row of zeros is divided by zero."""
Fraction: TypeAlias = Annotated[float, Field(gt=0, le=1)]
"""A part of a whole."""
_LARGEST = 2**40
"""No whole number of a config is beyond it; arithmetic on one that is would overflow a float or a shape."""


class HFConfig(BaseModel):
    """The keys every family's config.json may hold; each family adds its own. Unknown keys are other people's.

    Defaults are those of the transformers class, for keys that config files leave out. Source:
    huggingface/transformers@v4.57.6:src/transformers/configuration_utils.py.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)

    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    name_or_path: str = Field("", validation_alias="_name_or_path")

    def start_and_end(self) -> dict[str, Fact]:
        """Facts start_id and end_id; the first of several end tokens, since the runtimes know one."""
        end = self.eos_token_id[0] if isinstance(self.eos_token_id, list) and self.eos_token_id else self.eos_token_id
        return {"start_id": self.bos_token_id, "end_id": end if isinstance(end, int) else None}


def alias(*names: str) -> AliasChoices:
    """Alternative spellings of one config key, newest last."""
    return AliasChoices(*names)


ConfigT = TypeVar("ConfigT", bound=HFConfig)


def read_config(kind: type[ConfigT], config: Mapping[str, Any], *, file: str = "config.json") -> ConfigT:
    """Check config.json against `kind`.

    Args:
        kind: What it must hold.
        config: Its content.
        file: What it is called, in messages.

    Raises:
        CheckpointError: Every key that is absent, of the wrong type or absurdly large, by name.
    """
    hint = f"check that {file} belongs to these weights"
    try:
        read = kind.model_validate(dict(config))
    except ValidationError as error:
        raise collected(
            CheckpointError,
            [
                Problem(
                    f"{file}: {'.'.join(str(part) for part in item['loc'])}",
                    "absent" if item["type"] == "missing" else repr(item["input"])[:80],
                    item["msg"].removeprefix("Input should be ").lower(),
                    hint,
                )
                for item in error.errors()
            ],
        ) from error
    large = [
        Problem(f"{file}: {key}", repr(value)[:80], f"-{_LARGEST} to {_LARGEST}", hint)
        for key, value in read
        if isinstance(value, int) and abs(value) > _LARGEST
    ]
    if len(large) > 0:
        raise collected(CheckpointError, large)
    return read


def chosen(per_token: int, experts: int) -> int:
    """Experts that each token is sent to.

    Raises:
        CheckpointError: Fewer than one, or more than there are.
    """
    if not 1 <= per_token <= experts:
        raise CheckpointError(
            "config.json: num_experts_per_tok",
            f"{per_token} of {experts} experts",
            f"1 to {experts}",
            "check that config.json belongs to these weights",
        )
    return per_token


def per_head(hidden: int, heads: int) -> int:
    """Elements per head where config.json does not say.

    Raises:
        CheckpointError: `hidden` is not a multiple of `heads`.
    """
    if heads < 1 or hidden % heads != 0:
        raise CheckpointError(
            "config.json", f"hidden size {hidden} with {heads} heads", "a multiple", "check the revision of config.json"
        )
    return hidden // heads


def rope(config: Mapping[str, Any], *, base: float) -> dict[str, Fact]:
    """Facts rotary_base, rope_scaling (its kind) and rope_config, from today's or yesterday's spelling of the config.

    `rope_config` is the scaling as the checkpoint gives it, as JSON text; None without scaling. Today's spelling is
    `rope_parameters`, which holds the base as well; yesterday's, separate keys.

    Args:
        config: config.json.
        base: The family's default base.

    Raises:
        CheckpointError: The base is not a number above 0, or the scaling is no object, or lacks a number it needs.
    """
    for key in ("rope_parameters", "rope_scaling"):
        if config.get(key) is not None and not isinstance(config[key], Mapping):
            raise CheckpointError(f"config.json: {key}", repr(config[key])[:80], "an object or null", _CHECK)
    parameters = {} if config.get("rope_parameters") is None else config["rope_parameters"]
    theta = parameters.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", base)))
    scaling = config.get("rope_scaling")
    kind = parameters.get("rope_type", "default")
    if isinstance(scaling, Mapping):
        kind = scaling.get("rope_type", scaling.get("type", "default"))
    given = scaling if isinstance(scaling, Mapping) else {k: v for k, v in parameters.items() if k not in _NOT_SCALING}
    for key in _NUMBERS.get(str(kind), ()):
        _above_zero(f"rope_scaling.{key}", given.get(key))
    if kind == "llama3" and given["low_freq_factor"] == given["high_freq_factor"]:
        found = f"{given['high_freq_factor']}, as low_freq_factor"
        raise CheckpointError("config.json: rope_scaling.high_freq_factor", found, "another number", _CHECK)
    return {
        "rotary_base": _above_zero("rope_theta", theta),
        "rope_scaling": None if kind == "default" else str(kind),
        "rope_config": None if kind == "default" else json.dumps(given),
    }


_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
_NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kind of scaling -> the numbers it computes with, without defaults.
Source: huggingface/transformers@v4.57.6:src/transformers/modeling_rope_utils.py (rope_config_validation)."""
_CHECK = "check that config.json belongs to these weights"


def _above_zero(key: str, value: Any) -> float:
    found = number(key, value)
    if found <= 0:
        raise CheckpointError(f"config.json: {key}", repr(value)[:80], "a number above 0", _CHECK)
    return found


def fraction(key: str, value: Any) -> float:
    """The value of a config key that is a part of a whole.

    Raises:
        CheckpointError: It is not a number above 0 and at most 1.
    """
    if _above_zero(key, value) > 1:
        raise CheckpointError(f"config.json: {key}", repr(value)[:80], "a number above 0 and at most 1", _CHECK)
    return float(value)


def number(key: str, value: Any) -> float:
    """The value of a config key that `HFConfig` leaves to the family.

    Raises:
        CheckpointError: It is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise CheckpointError(
            f"config.json: {key}", repr(value)[:80], "a number", "check that config.json belongs to these weights"
        )
    return float(value)
