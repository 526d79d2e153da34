"""JSON and YAML of strangers: what cannot be read within bounds is said, and nothing else is raised."""

from __future__ import annotations

import pytest

from llmcompile.packaging import compose
from llmcompile.packaging.documents import YAML_CHARACTERS, json_object, yaml_value
from llmcompile.packaging.tree import Tree

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
BAD = {
    "half a list": "[",
    "a month that there is not": "a: 2024-99-99",
    "an integer without digits": "a: !!int ''",
    "a boolean that is none": "a: !!bool x",
    "nothing but depth": "[" * 5000,
    "a list within itself": "&a [*a]",
    "aliases of aliases": ALIASES,
    "more than anybody writes": "#" * (YAML_CHARACTERS + 1),
}


@pytest.mark.parametrize("case", BAD)
def test_yaml_that_cannot_be_read_is_a_value_error(case: str) -> None:
    """With a reason; the parser's own exceptions and endless values stay inside."""
    with pytest.raises(ValueError, match=r"not YAML|once its aliases|are read"):
        yaml_value(BAD[case])


@pytest.mark.parametrize("case", BAD)
def test_a_compose_file_that_cannot_be_read_is_a_value_error(case: str) -> None:
    """As its rule expects, whoever wrote it."""
    with pytest.raises(ValueError, match=r"not YAML|once its aliases|are read"):
        compose.read(BAD[case])


def test_an_alias_may_be_used_twice() -> None:
    """People share settings by them."""
    assert yaml_value("a: &a {b: 1}\nc: [*a, *a]") == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}


@pytest.mark.parametrize(
    ("content", "value"), [(b'{"a": 1}', {"a": 1}), (b"[1]", None), (b"{", None), (b"[" * 9999, None)]
)
def test_a_json_file_holds_an_object_or_nothing(content: bytes, value: object) -> None:
    """A list, half an object and depth without end are nothing."""
    tree = Tree("t", {"a.json": len(content)}, frozenset(), lambda path: content)

    assert (json_object(tree, "a.json"), json_object(tree, "b.json")) == (value, None)


def test_merge_keys_cannot_double_without_end() -> None:
    """Each line of these merges the one before it twice: sixty lines would copy more than a machine holds."""
    lines = [f"a{number}: &a{number}\n  <<: [*a{number - 1}, *a{number - 1}]\n" for number in range(1, 61)]

    with pytest.raises(ValueError, match="taken over by <<"):
        yaml_value("a0: &a0 {x: 1}\n" + "".join(lines))


def test_a_mapping_that_is_merged_very_often_is_refused() -> None:
    """Merges are counted over the whole text."""
    base = ", ".join(f"k{number}: 1" for number in range(500))

    with pytest.raises(ValueError, match="taken over by <<"):
        yaml_value(f"a: &a {{{base}}}\nb:\n" + "- <<: *a\n" * 1000)


def test_merge_keys_are_followed() -> None:
    """As YAML 1.1 has them: what stands in the mapping itself counts."""
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: [*b, *a], z: 3}"

    assert yaml_value(text)["c"] == {"x": 1, "y": 2, "z": 3}
