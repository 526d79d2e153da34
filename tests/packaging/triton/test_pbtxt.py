"""config.pbtxt without protobuf: what is read, what is refused and how it is said, and that writing inverts reading."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError
from llmcompile.packaging.triton.pbtxt import parse, render
from llmcompile.packaging.triton.schema import ENUMS, INTEGERS, MESSAGES, ROOT, Field

READ: dict[str, tuple[str, dict[str, Any]]] = {
    "scalars": (
        'name: "llm" max_batch_size: 8 model_transaction_policy { decoupled: True }',
        {"name": "llm", "max_batch_size": 8, "model_transaction_policy": {"decoupled": True}},
    ),
    "comments": ('# one\nname: "a" # two\n# three', {"name": "a"}),
    "separators": ('name: "a", backend: "b"; max_batch_size: 1', {"name": "a", "backend": "b", "max_batch_size": 1}),
    "a message with a colon": ("response_cache: { enable: true }", {"response_cache": {"enable": True}}),
    "angle brackets": ("response_cache < enable: false >", {"response_cache": {"enable": False}}),
    "a list of messages": (
        'input [ { name: "a" dims: [ -1 ] }, { name: "b" dims: [] } ]',
        {"input": [{"name": "a", "dims": [-1]}, {"name": "b", "dims": []}]},
    ),
    "a repeated field spelt out": (
        "input { dims: 1 dims: 2 } input { dims: [3, 4] dims: 5 }",
        {"input": [{"dims": [1, 2]}, {"dims": [3, 4, 5]}]},
    ),
    "a map": (
        'parameters { key: "a" value { string_value: "1" } } parameters: { value: { } key: "b" }',
        {"parameters": {"a": {"string_value": "1"}, "b": {}}},
    ),
    "a map as a list": ('metric_tags [ { key: "a" value: "1" }, { key: "b" } ]', {"metric_tags": {"a": "1", "b": ""}}),
    "the last of two entries with one key": (
        'metric_tags { key: "a" value: "1" } metric_tags { key: "a" value: "2" }',
        {"metric_tags": {"a": "2"}},
    ),
    "strings side by side": ('name: "ten" \'sor\'\n "rt"', {"name": "tensorrt"}),
    "escapes": (r'name: "a\tb\"\101\x42\u00e9\'\\"', {"name": "a\tb\"ABé'\\"}),
    "bytes that together are UTF-8": (r'name: "\303" "\251"', {"name": "é"}),
    "hexadecimal and octal": ("input { dims: [ 0x10, 010, -0x1 ] }", {"input": [{"dims": [16, 8, -1]}]}),
    "an enum by its number": ("input { data_type: 8 }", {"input": [{"data_type": "TYPE_INT32"}]}),
    "floats": (
        "sequence_batching { direct { minimum_slot_utilization: .5f } control_input { control { fp32_false_true: "
        "[ 1, -2.5e1, -inf ] } } }",
        {
            "sequence_batching": {
                "direct": {"minimum_slot_utilization": 0.5},
                "control_input": [{"control": [{"fp32_false_true": [1.0, -25.0, float("-inf")]}]}],
            }
        },
    ),
    "nothing": ("", {}),
}
REFUSED: dict[str, tuple[str, str]] = {
    "an unknown field": ('name: "a"\nmax_bach_size: 8', "c:2: max_bach_size: no such field"),
    "an unknown inner field": ('input { title: "a" }', "c:1: input[0].title: no such field"),
    "an integer for a string": ("name: 8", "c:1: name: 8; expected a string in quotes"),
    "a string for an integer": ('max_batch_size: "8"', 'c:1: max_batch_size: "8"; expected an integer'),
    "an integer out of range": ("max_batch_size: 2147483648", "c:1: max_batch_size: 2147483648"),
    "a negative count": ("dynamic_batching { priority_levels: -1 }", "dynamic_batching.priority_levels: -1"),
    "a float for an integer": ("max_batch_size: 8.0", "max_batch_size: 8.0"),
    "a word for a boolean": ("model_transaction_policy { decoupled: yes }", "decoupled: yes; expected true or false"),
    "an enum's value that does not exist": ("input { data_type: INT32 }", "input[0].data_type: INT32; expected one of"),
    "an enum's number that does not exist": ("input { data_type: 99 }", "input[0].data_type: 99"),
    "a singular field twice": ('name: "a"\nname: "b"', "c:2: name: given twice"),
    "a singular field twice, first its default": ("max_batch_size: 0 max_batch_size: 8", "max_batch_size: given twice"),
    "a singular message twice": ("response_cache {} response_cache {}", "response_cache: given twice"),
    "two of one choice": ("dynamic_batching {} ensemble_scheduling {}", "ensemble_scheduling: given beside dynamic_b"),
    "a list for a singular field": ("max_batch_size: [8]", "max_batch_size: ["),
    "a comma at the end of a list": ("input { dims: [1,] }", "input[0].dims[1]: ]"),
    "no colon": ("max_batch_size 8", "max_batch_size: 8; expected : and an integer"),
    "a placeholder": ("max_batch_size: ${triton_max_batch_size}", "${triton_max_batch_size}, a placeholder left over"),
    "a brace too few": ("input {\n", "c:2: input[0]: the end of the file"),
    "a brace too many": ("}", "c:1: }"),
    "two separators": ('name: "a";; backend: "b"', "c:1: ;; expected a field"),
    "a quote that does not end": ('name: "a\n"', "c:1: '\"a"),
    "an escape that does not exist": (r'name: "\q"', r'c:1: name: "\q"'),
    "bytes that are not UTF-8": (r'name: "\377"', "name: bytes that are not UTF-8"),
    "half of a surrogate pair": (r'name: "\ud800"', r'name: "\ud800"'),
    "a map's key twice in an entry": ('metric_tags { key: "a" key: "b" }', "metric_tags.key: given twice"),
    "a map's entry with another field": ('metric_tags { name: "a" }', "metric_tags: name; expected key, value"),
    "a field by its number": ('1: "a"', "c:1: 1; expected a field"),
    "an extension": ("[ab]: 1", "c:1: [; expected a field"),
}


@pytest.mark.parametrize("case", READ)
def test_read(case: str) -> None:
    """What the text format allows is read to its value."""
    text, value = READ[case]

    assert parse(text) == value


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """What is refused is named by line and field."""
    text, message = REFUSED[case]

    with pytest.raises(CheckpointError) as caught:
        parse(text, "c")

    assert message in str(caught.value)


def test_a_near_name_is_offered() -> None:
    """An unknown field is answered with the field that was meant."""
    with pytest.raises(CheckpointError) as caught:
        parse("max_bach_size: 8")

    assert caught.value.problems[0].hint == "did you mean max_batch_size?"


def test_a_placeholder_is_answered_with_what_to_type() -> None:
    """A placeholder that was left over names the command that fills it."""
    with pytest.raises(CheckpointError) as caught:
        parse("max_batch_size: ${size}", "llm/config.pbtxt")

    assert caught.value.problems[0].hint == "fill the template: tools/fill_template.py -i llm/config.pbtxt size:VALUE"


def test_all_placeholders_of_a_file_are_filled_by_one_command() -> None:
    """Each once, those within strings too: NVIDIA's template has 37."""
    with pytest.raises(CheckpointError) as caught:
        parse('name: "${name}"\nmax_batch_size: ${size}\ndynamic_batching { preferred_batch_size: [ ${size} ] }', "c")

    hint = "fill the template: tools/fill_template.py -i c name:VALUE,size:VALUE"
    assert caught.value.problems[0].hint == hint


def test_written() -> None:
    """Fields come in the schema's order, maps by key, short messages on a line."""
    text = render(
        {
            "parameters": {"b": {"string_value": '"'}, "a": {}},
            "input": [{"dims": [-1], "name": "x"}],
            "name": "llm\n",
        }
    )

    assert text == (
        'name: "llm\\n"\n'
        "input [\n"
        '  { name: "x" dims: [-1] }\n'
        "]\n"
        'parameters { key: "a" value { } }\n'
        'parameters { key: "b" value { string_value: "\\"" } }\n'
    )


def test_a_field_that_does_not_exist_is_not_written() -> None:
    """A message with a field outside the schema is our bug, not a file."""
    with pytest.raises(ValueError, match="ModelInput has no field title"):
        render({"input": [{"title": "x"}]})


def scalars(kind: str) -> st.SearchStrategy[Any]:
    """Values of a type that is no message."""
    if kind in ENUMS:
        return st.sampled_from(ENUMS[kind])
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind == "bool":
        return st.booleans()
    if kind == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return st.floats(allow_nan=False, width=32)


def messages(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Messages of a type, one field of each choice at most."""
    parts = {name: values(field) for name, field in MESSAGES[kind].items()}

    def choose(message: dict[str, Any]) -> dict[str, Any]:
        taken: set[str] = set()
        kept = {}
        for name, value in message.items():
            oneof = MESSAGES[kind][name].oneof
            if oneof is None or oneof not in taken:
                kept[name] = value
                taken |= set() if oneof is None else {oneof}
        return kept

    return st.fixed_dictionaries({}, optional=parts).map(choose)


def values(field: Field) -> st.SearchStrategy[Any]:
    """Values of a field."""
    one = st.deferred(lambda: messages(field.type)) if field.type in MESSAGES else scalars(field.type)
    if field.key is not None:
        return st.dictionaries(scalars(field.key), one, max_size=2)
    return st.lists(one, max_size=2) if field.repeated else one


def without_empty_maps(value: Any, kind: str) -> Any:
    """A message without empty maps: a map of no entries leaves no trace in the text."""
    if kind not in MESSAGES:
        return value
    kept = {}
    for name, held in value.items():
        field = MESSAGES[kind][name]
        if field.key is not None:
            if len(held) > 0:
                kept[name] = {key: without_empty_maps(item, field.type) for key, item in held.items()}
        elif field.repeated:
            kept[name] = [without_empty_maps(item, field.type) for item in held]
        else:
            kept[name] = without_empty_maps(held, field.type)
    return kept


def test_a_file_of_an_absurd_length_is_refused_before_it_is_read() -> None:
    """A hundred MiB of parameters are many GiB of tokens."""
    text = 'name: "a"\n' + "# no more than this\n" * 30_000

    with pytest.raises(CheckpointError, match=f"{len(text)} characters; expected at most 524288"):
        parse(text, "m/config.pbtxt")


@given(messages(ROOT))
def test_reading_inverts_writing(message: dict[str, Any]) -> None:
    """Every message is read back as it was."""
    text = render(message)

    assert parse(text) == without_empty_maps(message, ROOT)
    assert render(parse(text)) == render(without_empty_maps(message, ROOT))


@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                (
                    *(
                        "name",
                        "input",
                        "dims",
                        "parameters",
                        "key",
                        "value",
                        ":",
                        "{",
                        "}",
                        "[",
                        "]",
                        "<",
                        ">",
                        ",",
                        ";",
                    ),
                    *(
                        '"a"',
                        "'",
                        "1",
                        "-1",
                        "0x",
                        "${x}",
                        "\\",
                        "TYPE_FP32",
                        "data_type",
                        "true",
                        "#",
                        "\n",
                        "-",
                        "inf",
                    ),
                )
            )
        ).map(" ".join),
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text ends in anything but a message or an error of ours."""
    try:
        message = parse(text)
    except CheckpointError:
        return

    assert parse(render(message)) == without_empty_maps(message, ROOT)
