"""The decoder of one tensor parallel rank in torch, built without weights, for every decoder-only family.

Its parameters have the names of the tensors in the rank's file; its key and value caches are buffers that a call
changes. Ranks differ in weights and caches alone, so that one graph serves all of them.

Shape suffixes: B batch, S tokens of a row, H hidden, K tokens of all rows, E experts, C experts of a token, I width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import BF16, FP16, FP32, DType
from llmcompile.exporters.neuron.families import FAMILIES, Block, Network, Rotary
from llmcompile.exporters.neuron.heads import heads_of
from llmcompile.exporters.neuron.layout import buckets
from llmcompile.exporters.neuron.lowering import collectives
from llmcompile.exporters.neuron.lowering.program import Lowered, lower
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.exporters.neuron.rows import FAMILIES as NAMES
from llmcompile.exporters.neuron.signature import CONTEXT, GENERATION
from llmcompile.exporters.neuron.tables import alibi_biases, alibi_slopes, frequencies, magnitude

TORCH_DTYPES: Mapping[DType, torch.dtype] = MappingProxyType(
    {FP32: torch.float32, FP16: torch.float16, BF16: torch.bfloat16}
)


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": functional.relu,
        "silu": functional.silu,
        "swish": functional.silu,
        "gelu": functional.gelu,
        "gelu_new": _tanh_gelu,
        "gelu_fast": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "quick_gelu": _quick_gelu,
    }
)
_UNSEEN = torch.finfo(torch.float32).min
"""Score of a key that may not be seen: no infinity, and nothing in a sum of exponentials."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the parts of a decoder are built from.

    Attributes:
        network: What it computes.
        sizes: Of its axes.
        roles: What its checkpoint holds; a part without role is not built.
        ranks: Ranks it is divided over.
        dtype: Of parameters, caches and products.
        device: Of parameters and caches.
    """

    network: Network
    sizes: Mapping[str, int]
    roles: frozenset[str]
    ranks: int
    dtype: torch.dtype
    device: torch.device

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def has(self, role: str) -> bool:
        return role in self.roles

    def share(self, size: int) -> int:
        """A rank's part of an axis, rounded up."""
        return -(-size // self.ranks)

    def summed(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return collectives.all_reduce(x) if self.ranks > 1 else x

    def gathered(self, x: Tensor, size: int) -> Tensor:
        """The last axis of all ranks, without its padding."""
        whole = collectives.all_gather(x, x.ndim - 1, self.ranks) if self.ranks > 1 else x
        return whole if whole.shape[-1] == size else whole.narrow(-1, 0, size)


class _Linear(nn.Module):
    """One rank's part of a matrix (out, in), with the bias of the role where there is one."""

    def __init__(self, model: _Model, out: int, inp: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = model.parameter(out, inp)
        self.bias = model.parameter(out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """Without the bias, which belongs behind a sum over ranks."""
        return functional.linear(x, self.weight)

    def biased(self, x: Tensor) -> Tensor:
        """A sum over ranks of `product`, and the bias once."""
        return x if self.bias is None else x + self.bias


class _Weight(nn.Module):
    """A tensor under the name `weight`."""

    def __init__(self, model: _Model, *shape: int) -> None:
        super().__init__()
        self.weight = model.parameter(*shape)


class _RankNumber(nn.Module):
    """The number of the rank, int32, shape (1,)."""

    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.rank = nn.Parameter(torch.empty(1, dtype=torch.int32, device=model.device), requires_grad=False)


class _Norm(nn.Module):
    """A normalisation over the last axis, in float32."""

    def __init__(self, model: _Model, role: str, size: int, *, rms: bool | None = None) -> None:
        super().__init__()
        self._network = model.network
        self._rms = model.network.rms if rms is None else rms
        self.weight = model.parameter(size)
        self.bias = model.parameter(size) if model.has(f"{role}.bias") else None

    def forward(self, x: Tensor) -> Tensor:
        wide, weight = x.float(), self.weight.float()
        if self._network.add_one:
            weight = 1.0 + weight
        if self._rms:
            normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._network.eps) * weight
        else:
            bias = None if self.bias is None else self.bias.float()
            normed = functional.layer_norm(wide, (x.shape[-1],), weight, bias, self._network.eps)
        return normed.to(x.dtype)


class _Attention(nn.Module):
    """The linear layers of attention; the rest is the decoder's, which has the caches."""

    def __init__(self, model: _Model, *, queries: int, keys: int, fused: bool) -> None:
        super().__init__()
        hidden, self._dim = model.sizes["hidden"], model.sizes["head_dim"]
        self._clip = model.network.clip
        self._parts = [queries, keys, keys]
        bias = model.has("attn.q.bias")
        rows = [heads * self._dim for heads in self._parts]
        widths = {"Wqkv": sum(rows)} if fused else dict(zip(("q_proj", "k_proj", "v_proj"), rows, strict=True))
        self.qkv_proj = nn.ModuleDict({name: _Linear(model, out, hidden, bias=bias) for name, out in widths.items()})
        output = _Linear(model, hidden, queries * self._dim, bias=model.has("attn.o.bias"))
        self.o_proj = nn.ModuleDict({"o_proj": output})
        self.q_layernorm = _Norm(model, "attn.q_norm", self._dim) if model.has("attn.q_norm.weight") else None
        self.k_layernorm = _Norm(model, "attn.k_norm", self._dim) if model.has("attn.k_norm.weight") else None

    @property
    def output(self) -> _Linear:
        output = self.o_proj["o_proj"]
        assert isinstance(output, _Linear)
        return output

    def project(self, x_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, head)."""
        parts = [layer(x_BSH) for layer in self.qkv_proj.values()]
        if len(parts) == 1:
            parts = list(parts[0].split([heads * self._dim for heads in self._parts], -1))
        if self._clip is not None:
            parts = [part.clamp(-self._clip, self._clip) for part in parts]
        q, k, v = (part.reshape(*part.shape[:-1], -1, self._dim).transpose(1, 2) for part in parts)
        q = q if self.q_layernorm is None else self.q_layernorm(q)
        k = k if self.k_layernorm is None else self.k_layernorm(k)
        return q, k, v


class _FeedForward(nn.Module):
    """A feed-forward, gated where the checkpoint has a gate."""

    def __init__(self, model: _Model, role: str, width: int) -> None:
        super().__init__()
        hidden, share = model.sizes["hidden"], model.share(width)
        self._activation = _ACTIVATIONS[model.network.activation]
        bias = {part: model.has(f"{role}.{part}.bias") for part in ("gate", "up", "down")}
        gated = model.has(f"{role}.gate.weight")
        self.gate_proj = _Linear(model, share, hidden, bias=bias["gate"]) if gated else None
        self.up_proj = _Linear(model, share, hidden, bias=bias["up"])
        self.down_proj = _Linear(model, hidden, share, bias=bias["down"])

    def product(self, x: Tensor) -> Tensor:
        """The rank's part of the sum, without the last bias."""
        up: Tensor = self.up_proj(x)
        inner = self._activation(up) if self.gate_proj is None else self._activation(self.gate_proj(x)) * up
        return self.down_proj.product(inner)

    def biased(self, x: Tensor) -> Tensor:
        return self.down_proj.biased(x)


class _Experts(nn.Module):
    """The stacked matrices of all experts, (experts, in, out): gate and up side by side, and down."""

    def __init__(self, model: _Model) -> None:
        super().__init__()
        hidden, experts = model.sizes["hidden"], model.sizes["experts"]
        width = model.share(model.sizes.get("moe_ffn", model.sizes["ffn"]))
        self._activation = _ACTIVATIONS[model.network.activation]
        self.gate_up_proj = _Weight(model, experts, hidden, 2 * width)
        self.down_proj = _Weight(model, experts, width, hidden)

    def all(self, x_KH: Tensor, weights_KE: Tensor) -> Tensor:
        """Every token through every expert, weighted; shape (tokens, hidden)."""
        inner_EKI = self._inner(torch.matmul(x_KH[None], self.gate_up_proj.weight))
        weighted_KEI = inner_EKI.transpose(0, 1) * weights_KE[..., None]
        return torch.matmul(weighted_KEI.flatten(1), self.down_proj.weight.flatten(0, 1))

    def some(self, x_KH: Tensor, weights_KC: Tensor, chosen_KC: Tensor) -> Tensor:
        """Every token through its C experts, whose matrices alone are read; shape (tokens, hidden)."""
        tokens, each = chosen_KC.shape
        chosen = chosen_KC.flatten()
        x = x_KH[:, None].expand(-1, each, -1).reshape(tokens * each, 1, -1)
        inner = self._inner(torch.bmm(x, self.gate_up_proj.weight.index_select(0, chosen)))
        out = torch.bmm(inner, self.down_proj.weight.index_select(0, chosen)).view(tokens, each, -1)
        return (out * weights_KC[..., None]).sum(1)

    def _inner(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self._activation(gate) * up


class _Mixture(nn.Module):
    """A mixture of experts, every rank with a part of each, and an expert for all tokens where there is one.

    Few tokens read the matrices of their experts alone. Many go through all experts, those they are not sent to with
    the weight zero: neither needs a sort, nor a shape that depends on values.
    """

    def __init__(self, model: _Model) -> None:
        super().__init__()
        experts, hidden = model.network.experts, model.sizes["hidden"]
        assert experts is not None
        self._routing = experts
        self._count = model.sizes["experts"]
        self.router = nn.ModuleDict({"linear_router": _Linear(model, self._count, hidden, bias=False)})
        self.expert_mlps = nn.ModuleDict({"mlp_op": _Experts(model)})
        shared = model.has("shared.up.weight")
        self.shared_experts = _FeedForward(model, "shared", model.sizes["shared_ffn"]) if shared else None
        self.shared_expert_gate = _Linear(model, 1, hidden, bias=False) if shared else None

    def product(self, x_BSH: Tensor) -> Tensor:
        """The rank's part of the sum."""
        x_KH = x_BSH.flatten(0, 1)
        experts = self.expert_mlps["mlp_op"]
        assert isinstance(experts, _Experts)
        weights_KC, chosen_KC = self._choose(x_KH)
        if chosen_KC.numel() < self._count:
            total = experts.some(x_KH, weights_KC, chosen_KC)
        else:
            numbers = torch.arange(self._count, dtype=torch.int32, device=x_KH.device)
            placed = (chosen_KC[..., None] == numbers) * weights_KC[..., None]
            total = experts.all(x_KH, placed.sum(1))
        if self.shared_experts is not None and self.shared_expert_gate is not None:
            total = total + torch.sigmoid(self.shared_expert_gate(x_KH)) * self.shared_experts.product(x_KH)
        return total.view_as(x_BSH)

    def biased(self, x: Tensor) -> Tensor:
        return x

    def _choose(self, x_KH: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and number of each token's experts, best first; of equals the one with the lower number."""
        left_KE = torch.softmax(self.router["linear_router"](x_KH).float(), -1)
        numbers = torch.arange(self._count, dtype=torch.int32, device=x_KH.device)
        weights, chosen = [], []
        for _ in range(self._routing.per_token):
            weights.append(left_KE.amax(-1))
            chosen.append(left_KE.argmax(-1).int())
            left_KE = torch.where(numbers == chosen[-1][:, None], -1.0, left_KE)
        stacked = torch.stack(weights, -1)
        if self._routing.normalized:
            stacked = stacked / stacked.sum(-1, keepdim=True)
        return stacked.to(x_KH.dtype), torch.stack(chosen, -1)


Attend = Callable[[_Attention, Tensor], Tensor]
"""(a layer's attention, its input) -> the rank's part of its output, without bias."""


class _Layer(nn.Module):
    """One layer of the decoder."""

    def __init__(self, model: _Model, attention: _Attention, *, mlp_norm: str) -> None:
        super().__init__()
        hidden, self._model, self._mlp_norm = model.sizes["hidden"], model, mlp_norm
        self.input_layernorm = _Norm(model, "attn.norm", hidden)
        self.self_attn = attention
        dense = model.network.experts is None
        self.mlp = _FeedForward(model, "mlp", model.sizes["ffn"]) if dense else _Mixture(model)
        if model.has("mlp.norm.weight"):
            self.add_module(mlp_norm, _Norm(model, "mlp.norm", hidden))
        if model.network.block is Block.SANDWICH:
            self.post_attention_layernorm = _Norm(model, "attn.post_norm", hidden)
            self.post_feedforward_layernorm = _Norm(model, "mlp.post_norm", hidden)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """The stream behind the layer."""
        block = self._model.network.block
        if block is Block.PARALLEL:
            return self._parallel(x, attend)
        if block is Block.POST_NORM:
            x = self.input_layernorm(x + self._attention(x, attend))
            return self._second(x + self._feed_forward(x))
        normed = self.input_layernorm(x)
        inner = self._attention(normed, attend)
        if block is Block.SANDWICH:
            inner = self.post_attention_layernorm(inner)
        x = (normed if self._model.network.residual_after_norm else x) + inner
        normed = self._second(x)
        inner = self._feed_forward(normed)
        if block is Block.SANDWICH:
            inner = self.post_feedforward_layernorm(inner)
        return (normed if self._model.network.residual_after_norm else x) + inner

    def _parallel(self, x: Tensor, attend: Attend) -> Tensor:
        """Both blocks in one sum over ranks; the second has the first's norm where it has none of its own."""
        normed = self.input_layernorm(x)
        other = self._second(x) if hasattr(self, self._mlp_norm) else normed
        total = self._model.summed(attend(self.self_attn, normed) + self.mlp.product(other))
        return x + self.mlp.biased(self.self_attn.output.biased(total))

    def _second(self, x: Tensor) -> Tensor:
        norm: Callable[[Tensor], Tensor] = getattr(self, self._mlp_norm)
        return norm(x)

    def _attention(self, x: Tensor, attend: Attend) -> Tensor:
        return self.self_attn.output.biased(self._model.summed(attend(self.self_attn, x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp.biased(self._model.summed(self.mlp.product(x)))


class Decoder(nn.Module):
    """One rank's decoder, with caches for a batch of texts.

    A call of several tokens encodes prompts from their first token on: rows are padded on the right with token 0 at
    position 0, and fill the caches from slot 0. A call of one token goes on: it fills the slot of its position.

    Args:
        architecture: The family, one of `families.FAMILIES`.
        dims: Of the model, without `families.refusals`.
        batch: Rows.
        sequence_length: Slots of the caches: tokens of prompt and answer.
        ranks: Ranks the model is divided over.
        dtype: Of parameters, caches and matrix products; statistics are in float32.
        device: Of parameters and buffers; "meta" for a decoder without values.

    Attributes:
        states: Names of the caches in order, k_cache_0, v_cache_0, k_cache_1, ...: each of shape (batch, key and value
            heads per rank, sequence_length, head).
        constants: Values of the other buffers, which `lower` needs where they are on the meta device.
    """

    def __init__(
        self,
        architecture: Architecture,
        dims: Dims,
        *,
        batch: int,
        sequence_length: int,
        ranks: int,
        dtype: torch.dtype,
        device: str = "meta",
    ) -> None:
        super().__init__()
        network, names = FAMILIES[architecture.name](dims), NAMES[architecture.name]
        held = frozenset(role for tensor in architecture.tensors if tensor.exists(dims) for role in tensor.roles)
        model = _Model(
            network=network,
            sizes=dims.sizes,
            roles=held,
            ranks=ranks,
            dtype=dtype,
            device=torch.device(device),
        )
        self._model, self._network, self._slots = model, network, sequence_length
        # Rounded to the model's type, as Gemma's code does.
        self._scale = float(torch.tensor(network.embedding_scale, dtype=dtype))
        self._heads = heads_of(dims)
        self._queries, self._keys = self._heads.queries_per_rank(ranks), self._heads.kv_per_rank(ranks)
        self._vocab, hidden = dims.sizes["vocab"], dims.sizes["hidden"]
        self._width = dims.sizes.get("width", hidden)
        self.embed_tokens = _Weight(model, self._vocab, model.share(self._width))
        if model.has("embed.positions.weight"):
            self.embed_positions = _Weight(model, dims.sizes["positions"], hidden)
        if model.has("embed.project_in.weight"):
            self.project_in = _Linear(model, hidden, self._width, bias=False)
            self.project_out = _Linear(model, self._width, hidden, bias=False)
        if model.has("embed.norm.weight"):
            self.embed_norm = _Norm(model, "embed.norm", hidden)
        self.layers = nn.ModuleList(
            _Layer(
                model,
                _Attention(model, queries=self._queries, keys=self._keys, fused=names.fused_qkv),
                mlp_norm=names.mlp_norm,
            )
            for _ in range(dims.sizes["layers"])
        )
        if model.has("norm.weight"):
            self.norm = _Norm(model, "norm", hidden)
        self.lm_head = _Linear(model, model.share(self._vocab), self._width, bias=model.has("head.bias"))
        self.constants: dict[str, Tensor] = {}
        self._make_tables()
        self.states = tuple(f"{kind}_cache_{layer}" for layer in range(dims.sizes["layers"]) for kind in "kv")
        for name in self.states:
            shape = (batch, self._keys, sequence_length, dims.sizes["head_dim"])
            cache = torch.zeros(shape, dtype=dtype, device=model.device)
            self.register_buffer(name, cache, persistent=False)

    def _make_tables(self) -> None:
        """Rotary frequencies and ALiBi slopes; the latter of every rank, which finds its own by its number."""
        if self._network.rotary is not None:
            self._constant("rotary_frequencies", frequencies(self._network.rotary))
        alibi = self._network.alibi
        if alibi is None:
            return
        if self._model.ranks > 1:
            self.rank_util = _RankNumber(self._model)
        if alibi.scaled:
            table = alibi_biases(alibi, self._heads.query, self._slots)
        else:
            table = alibi_slopes(alibi, self._heads.query)
        held = self._heads.query_slots(self._model.ranks)
        rows = [torch.zeros_like(table[0]) if head is None else table[head] for heads in held for head in heads]
        self._constant("alibi", torch.stack(rows).reshape(self._model.ranks, -1, *table.shape[1:]))

    def _constant(self, name: str, values: Tensor) -> None:
        self.constants[name] = values
        self.register_buffer(name, values.to(self._model.device), persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Logits of each row's last token, and the caches with the keys and values of all its tokens.

        Args:
            input_ids: Shape (batch, tokens), int32.
            position_ids: Shape (batch, tokens), int32: 0, 1, 2, ... and 0 for padding; of one token, where it goes.

        Returns:
            Shape (batch, 1, vocabulary), float32; equal on all ranks.
        """
        x = self._embed(input_ids, position_ids)
        turn = None if self._network.rotary is None else self._turn(self._network.rotary, position_ids)
        masks = {window: self._mask(position_ids, window) for window in dict.fromkeys(self._network.windows)}
        biases = None if self._network.alibi is None else self._biases(x.shape[1])
        for number, layer in enumerate(self.layers):
            seen = masks[self._network.windows[number]]
            x = layer(x, partial(self._attend, number, position_ids, turn, seen, biases))
        x = _last(x, position_ids)
        x = self.norm(x) if hasattr(self, "norm") else x
        x = self.project_out(x) if hasattr(self, "project_out") else x
        logits = self._model.gathered(self.lm_head(x), self._vocab).float()
        return logits if self._network.logit_cap is None else _capped(logits, self._network.logit_cap)

    def _embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        share = functional.embedding(input_ids, self.embed_tokens.weight)
        x = self._model.gathered(share, self._width)
        x = x if self._scale == 1.0 else x * self._scale
        x = self.project_in(x) if hasattr(self, "project_in") else x
        if hasattr(self, "embed_positions"):
            x = x + functional.embedding(position_ids, self.embed_positions.weight)
        return self.embed_norm(x) if hasattr(self, "embed_norm") else x

    def _turn(self, rotary: Rotary, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's angles, (batch, 1, tokens, dim / 2), float32.

        LongRoPE has other frequencies for a row whose last position is past the original ones.
        """
        table = self.get_buffer("rotary_frequencies")
        chosen = table[0]
        if rotary.original > 0:
            long = position_ids.amax(1) >= rotary.original
            chosen = torch.where(long[:, None], table[1], table[0])[:, None, None]
        angles = position_ids.float()[:, None, :, None] * chosen
        scale = magnitude(rotary)
        return angles.cos() * scale, angles.sin() * scale

    def _mask(self, position_ids: Tensor, window: int | None) -> Tensor:
        """Which keys each query may see, (batch or 1, 1, tokens, keys).

        Prompts are compared by their places in the row, since padding is behind them and has position 0.
        """
        tokens = position_ids.shape[1]
        keys = self._slots if tokens == 1 else tokens
        key = torch.arange(keys, dtype=torch.int32, device=position_ids.device)[None, None, None]
        if tokens == 1:
            query = position_ids[:, None, :, None]
        else:
            query = torch.arange(tokens, dtype=torch.int32, device=position_ids.device)[None, None, :, None]
        seen = key <= query
        return seen if window is None or window >= self._slots else seen & (key > query - window)

    def _biases(self, tokens: int) -> Tensor:
        """ALiBi's addends of the scores, (1, heads, 1, keys), float32."""
        alibi, table = self._network.alibi, self.get_buffer("alibi")
        assert alibi is not None
        own = table[0] if self._model.ranks == 1 else table.index_select(0, self.rank_util.rank)[0]
        keys = self._slots if tokens == 1 else tokens
        if alibi.scaled:
            return own[None, :, None, :keys].float() * self._network.score_scale
        return own[None, :, None, None] * torch.arange(keys, dtype=torch.int32, device=own.device).float()

    def _attend(
        self,
        number: int,
        position_ids: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        seen: Tensor,
        biases: Tensor | None,
        attention: _Attention,
        x_BSH: Tensor,
    ) -> Tensor:
        """The rank's part of a layer's attention; its keys and values go to the cache."""
        q, k, v = attention.project(x_BSH)
        if turn is not None and self._network.rotary is not None:
            q, k = (_rotated(heads, self._network.rotary, turn) for heads in (q, k))
        k, v = (self._remembered(f"{kind}_cache_{number}", new, position_ids) for kind, new in (("k", k), ("v", v)))
        scores = self._scores(number, q, k)
        scores = scores if biases is None else scores + biases
        weights = torch.softmax(torch.where(seen, scores, _UNSEEN), -1).to(v.dtype)
        context = torch.matmul(self._grouped(weights), v).reshape(q.shape)
        return attention.output.product(context.transpose(1, 2).flatten(2))

    def _grouped(self, x: Tensor) -> Tensor:
        """(batch, query heads, tokens, ...) -> (batch, key heads, query heads of each x tokens, ...)."""
        return x.reshape(x.shape[0], self._keys, -1, x.shape[-1])

    def _scores(self, number: int, q: Tensor, k: Tensor) -> Tensor:
        """Shape (batch, query heads, tokens, keys), float32."""
        network = self._network
        scale = network.score_scale / (number + 1 if network.score_scale_by_layer else 1)
        products = torch.matmul(self._grouped(q), k.transpose(-1, -2)).float() * scale
        scores = products.reshape(*q.shape[:3], k.shape[2])
        return scores if network.score_cap is None else _capped(scores, network.score_cap)

    def _remembered(self, name: str, new: Tensor, position_ids: Tensor) -> Tensor:
        """Put keys or values of a call into their cache; what the call's queries look at."""
        cache, tokens = self.get_buffer(name), new.shape[2]
        if tokens > 1:
            cache.copy_(torch.slice_scatter(cache, new, 2, 0, tokens))
            return new
        places = position_ids.long()[:, None, :, None].expand(new.shape)
        updated = torch.scatter(cache, 2, places, new)
        cache.copy_(updated)
        return updated


def _capped(x: Tensor, cap: float) -> Tensor:
    return torch.tanh(x / cap) * cap


def _rotated(x: Tensor, rotary: Rotary, turn: tuple[Tensor, Tensor]) -> Tensor:
    """The first `rotary.dim` elements of each head turned by the angles of their position, in float32."""
    cos, sin = turn
    wide, rest = x[..., : rotary.dim].float(), x[..., rotary.dim :]
    half = rotary.dim // 2
    pairs = wide.reshape(*wide.shape[:-1], *((half, 2) if rotary.interleaved else (2, half)))
    axis = -1 if rotary.interleaved else -2
    first, second = pairs.select(axis, 0), pairs.select(axis, 1)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), axis).flatten(-2).to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), -1)


def _last(x_BSH: Tensor, position_ids: Tensor) -> Tensor:
    """Each row's token of the highest position, (batch, 1, hidden)."""
    if x_BSH.shape[1] == 1:
        return x_BSH
    places = position_ids.argmax(1, keepdim=True)[..., None].expand(-1, 1, x_BSH.shape[2])
    return torch.gather(x_BSH, 1, places)


def export_graphs(architecture: Architecture, dims: Dims, options: NeuronOptions, *, dtype: DType) -> Iterator[Lowered]:
    """The graphs of a decoder in HLO, lowered one after the other: nothing of one is kept for the next.

    Args:
        architecture: The family.
        dims: Of the model, which `layout.make_layout` did not refuse.
        options: With batch size and sequence length.
        dtype: As in the layout.

    Yields:
        context_encoding_<tokens> for each of `layout.buckets`, then token_generation.

    Raises:
        UnsupportedError: An operator has no lowering.
    """
    batch, slots = options.shapes.batch_size, options.shapes.sequence_length
    assert batch is not None
    assert slots is not None
    decoder = Decoder(
        architecture,
        dims,
        batch=batch,
        sequence_length=slots,
        ranks=options.num_cores,
        dtype=TORCH_DTYPES[dtype],
    ).eval()
    for tokens in buckets(options):
        yield _lowered(decoder, f"{CONTEXT}_{tokens}", CONTEXT, batch, tokens, options.num_cores)
    yield _lowered(decoder, GENERATION, GENERATION, batch, 1, options.num_cores)


def _lowered(decoder: Decoder, name: str, kind: str, batch: int, tokens: int, ranks: int) -> Lowered:
    ids = torch.zeros((batch, tokens), dtype=torch.int32, device="meta")
    with torch.no_grad():
        program = torch.export.export(decoder, (ids, ids.clone()), strict=False)
    return lower(
        program,
        name=name,
        kind=kind,
        ranks=ranks,
        input_names=("input_ids", "position_ids"),
        output_names=("logits",),
        states=decoder.states,
        values=decoder.constants,
    )
