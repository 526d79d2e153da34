"""Which weights are missing, of both kinds of folders."""

from __future__ import annotations

import pytest

from llmcompile.packaging.tree import Tree
from llmcompile.packaging.weights import are_all, missing_weights, ranked_tensors
from trees import tree_of

INDEX = b'{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}'


def tree(**files: bytes) -> Tree:
    """Files; two underscores stand for a dot, one for a dash."""
    named = {name.replace("__", ".").replace("_", "-"): content for name, content in files.items()}
    return tree_of(named)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"model__safetensors": b"x"}, None),
        ({"model__safetensors": b""}, "1 files missing or empty, like model.safetensors"),
        ({"model__safetensors__index__json": INDEX, "x_1__safetensors": b"x", "x_2__safetensors": b"x"}, None),
        (
            {"model__safetensors__index__json": INDEX, "x_1__safetensors": b"x"},
            "1 files missing or empty, like x-2.safetensors",
        ),
        (
            {"model__safetensors__index__json": b"[]", "x_1__safetensors": b"x"},
            "model.safetensors.index.json without weight_map",
        ),
        ({"a_00001_of_00002__safetensors": b"x"}, "1 of 2 shards, and no model.safetensors.index.json"),
        ({"a_00001_of_00002__bin": b"x", "a_00002_of_00002__bin": b"x"}, None),
        ({"optimizer__pt": b"x", "config__json": b"{}"}, "no *.safetensors or *.bin"),
    ],
)
def test_what_a_checkpoint_lacks(files: dict[str, bytes], missing: str | None) -> None:
    """The index decides where there is one; then the numbers in the names; an optimizer's state is no weight."""
    assert missing_weights(tree(**files)) == missing


def test_ranks_of_a_tensor() -> None:
    """A tensor that is whole in every rank has no number in its name."""
    paths = ("a.weight.0.bin", "a.weight.1.bin", "b.weight.0.bin", "norm.bin", "config.ini")

    assert ranked_tensors(paths) == {"a.weight": {0, 1}, "b.weight": {0}}


@pytest.mark.parametrize(("ranks", "count", "complete"), [((1, 0), 2, True), ((0,), 2, False), ((0, 2), 2, False)])
def test_ranks_that_are_all(ranks: tuple[int, ...], count: int, complete: bool) -> None:
    """From 0 on, in whatever order they are listed."""
    assert are_all(ranks, count) is complete
