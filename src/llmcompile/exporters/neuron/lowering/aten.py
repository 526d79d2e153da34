"""The table of ATen overloads that have a meaning in HLO; no model is named in it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmcompile.exporters.neuron.lowering.aten_elementwise import ELEMENTWISE, Rule
from llmcompile.exporters.neuron.lowering.aten_indexing import INDEXING
from llmcompile.exporters.neuron.lowering.aten_linear import LINEAR
from llmcompile.exporters.neuron.lowering.aten_reductions import REDUCTIONS
from llmcompile.exporters.neuron.lowering.aten_shapes import FACTORIES, SHAPES
from llmcompile.exporters.neuron.lowering.aten_windows import WINDOWS

THEMES: tuple[Mapping[str, Rule], ...] = (ELEMENTWISE, SHAPES, REDUCTIONS, INDEXING, LINEAR, WINDOWS)
TABLE: Mapping[str, Rule] = MappingProxyType({name: rule for theme in THEMES for name, rule in theme.items()})
"""ATen overload, as `str(OpOverload)` -> function of JAX arrays and numbers."""

IGNORED = frozenset(
    {
        "aten._assert_async.msg",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
"""Checks that compute nothing."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "sort": "Neuron has no sort (NCC_EUOC002)",
        "argsort": "Neuron has no sort (NCC_EUOC002)",
        "rand": "a random number; export a model in eval mode",
        "randn": "a random number; export a model in eval mode",
        "rand_like": "a random number; export a model in eval mode",
        "randn_like": "a random number; export a model in eval mode",
        "randint": "a random number; export a model in eval mode",
        "bernoulli": "a random number; export a model in eval mode",
        "native_dropout": "dropout; export a model in eval mode",
        "multinomial": "a random number; export a model in eval mode",
        "nonzero": "its result has no static shape",
        "masked_select": "its result has no static shape",
        "_unique2": "its result has no static shape",
        "_local_scalar_dense": "a value read from a tensor decides what is computed",
    }
)
"""Why some operators will never be in the table, by name without overload."""

__all__ = ["FACTORIES", "IGNORED", "REASONS", "TABLE", "THEMES"]
