"""prompt_format from chat templates: what is derived, what is refused, and both renderings beside their originals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError, ToolchainError, UnsupportedError
from llmcompile.packaging.prompt_format import (
    Conversation,
    Derived,
    Format,
    Template,
    TemplateFailure,
    _Renderer,
    apply,
    derive,
    disagreement,
    read_template,
    render,
)
from llmcompile.packaging.tree import Tree, from_folder

PROMPTS = json.loads((Path(__file__).parents[1] / "golden" / "rayllm" / "outcomes.json").read_text())["prompts"]


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Iterator[None]:
    """A template that does not end is ended soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcompile.packaging.prompt_format._SECONDS", 5.0)
        yield


S = {"bos_token": "<s>", "eos_token": "</s>"}
_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
# What the models' own templates render, shortened to that.
LLAMA_2 = Template(
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set told = false %}{% endif %}{% for message in rest %}"
    + _ALTERNATE
    + "{% if "
    "loop.index0 == 0 and told != false %}{% set content = '<<SYS>>\\n' + told + "
    "'\\n<</SYS>>\\n\\n' + message['content'] "
    "%}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    S,
    True,
)
MISTRAL = Template(
    "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
    S,
    True,
)
CHATML = Template(
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    {},
    False,
)
QWEN_2 = Template(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    {},
    False,
)
QWEN_1_5 = Template(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content']}}"
    "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    {},
    False,
)
ZEPHYR = Template(
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token "
    "}}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% else %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}"
    "\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    S,
    True,
)
GEMMA = Template(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}"
    "{% for message in messages %}" + _ALTERNATE + "{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    {"bos_token": "<bos>", "eos_token": "<eos>"},
    True,
)
LLAMA_3 = Template(
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    True,
)
PHI_3 = Template(
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    False,
)
VICUNA = Template(
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set told = 'A chat.' %}{% set rest = messages %}{% endif %}{{ told }}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ ' USER: ' + m['content'] }}{% else %}{{ ' ASSISTANT: ' + "
    "m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
    S,
    True,
)
ALWAYS_A_SYSTEM = Template(
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] | trim %}{% set "
    "rest = messages[1:] %}"
    "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{{ '<h>system</h>\nDate: 26 "
    "Jul 2024\n\n' + told + "
    "'<e>' }}{% for m in rest %}{{ '<h>' + m['role'] + '</h>\n\n' + m['content'] | trim + '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}",
    {},
    False,
)
BRACES = Template(
    "{% for m in messages %}{{ '{' + m['role'] + '} ' + m['content'] + '\n' }}{% endfor %}"
    "{{ '{assistant} ' if add_generation_prompt }}",
    {},
    False,
)
GEMMA_3 = Template(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "(told if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    {"bos_token": "<bos>", "eos_token": "<eos>"},
    True,
)
FALCON = Template(
    "{% for m in messages %}{{ '' if loop.first else '\n' }}"
    "{{ {'system': 'System: ', 'user': 'User: ', 'assistant': 'Falcon: '}[m['role']] + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}",
    {},
    False,
)
_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_CHATML = Format(
    system="<|im_start|>system\n{instruction}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{instruction}<|im_end|>\n",
    trailing_assistant="<|im_start|>assistant\n",
    user="<|im_start|>user\n{instruction}<|im_end|>\n",
    strip_whitespace=False,
)
EXPECTED: dict[str, tuple[Template, Format]] = {
    # As in ray-project/ray-llm@891ccd7:models/continuous_batching/meta-llama--Llama-2-7b-chat-hf.yaml.
    "Llama-2": (
        LLAMA_2,
        Format(
            system="<<SYS>>\n{instruction}\n<</SYS>>\n\n",
            assistant=" {instruction} </s><s>",
            trailing_assistant="",
            user="[INST] {system}{instruction} [/INST]",
            system_in_user=True,
        ),
    ),
    "ChatML": (CHATML, _CHATML),
    "Qwen2": (
        QWEN_2,
        Format(**{**vars(_CHATML), "default_system_message": "You are a helpful assistant."}),
    ),
    "Qwen1.5": (
        QWEN_1_5,
        Format(**{**vars(_CHATML), "default_system_message": "You are a helpful assistant"}),
    ),
    "Zephyr": (
        ZEPHYR,
        Format(
            system="<|system|>\n{instruction}</s>\n",
            assistant="<|assistant|>\n{instruction}</s>\n",
            trailing_assistant="<|assistant|>\n",
            user="<|user|>\n{instruction}</s>\n",
            strip_whitespace=False,
        ),
    ),
    "Llama-3": (
        LLAMA_3,
        Format(
            system=_HEADER.format(role="system") + "{instruction}<|eot_id|>",
            assistant=_HEADER.format(role="assistant") + "{instruction}<|eot_id|>",
            trailing_assistant=_HEADER.format(role="assistant"),
            user=_HEADER.format(role="user") + "{instruction}<|eot_id|>",
        ),
    ),
    "Phi-3": (
        PHI_3,
        Format(
            system="<|system|>\n{instruction}<|end|>\n",
            assistant="<|assistant|>\n{instruction}<|end|>\n",
            trailing_assistant="<|assistant|>\n",
            user="<|user|>\n{instruction}<|end|>\n",
            strip_whitespace=False,
        ),
    ),
    "Vicuna": (
        VICUNA,
        Format(
            system="{instruction}",
            assistant=" ASSISTANT: {instruction}</s>",
            trailing_assistant=" ASSISTANT:",
            user=" USER: {instruction}",
            default_system_message="A chat.",
            strip_whitespace=False,
        ),
    ),
    "Gemma-3": (
        GEMMA_3,
        Format(
            system="{instruction}\n\n",
            assistant="<start_of_turn>model\n{instruction}<end_of_turn>\n",
            trailing_assistant="<start_of_turn>model\n",
            user="<start_of_turn>user\n{system}{instruction}<end_of_turn>\n",
            system_in_user=True,
        ),
    ),
    "Falcon": (
        FALCON,
        Format(
            system="System: {instruction}\n",
            assistant="Falcon: {instruction}\n",
            trailing_assistant="Falcon:",
            user="User: {instruction}\n",
            strip_whitespace=False,
        ),
    ),
    "a system part that is always there": (
        ALWAYS_A_SYSTEM,
        Format(
            system="<h>system</h>\nDate: 26 Jul 2024\n\n{instruction}<e>",
            assistant="<h>assistant</h>\n\n{instruction}<e>",
            trailing_assistant="<h>assistant</h>\n\n",
            user="<h>user</h>\n\n{instruction}<e>",
            add_system_tags_even_if_message_is_empty=True,
        ),
    ),
    "braces": (
        BRACES,
        Format(
            system="{{system}} {instruction}\n",
            assistant="{{assistant}} {instruction}\n",
            trailing_assistant="{assistant} ",
            user="{{user}} {instruction}\n",
            strip_whitespace=False,
        ),
    ),
}
PREPENDED: dict[str, tuple[Template, Format]] = {
    "Mistral": (
        MISTRAL,
        Format(
            system="{instruction}\n\n",
            assistant="{instruction}</s>",
            trailing_assistant="",
            user="[INST] {system}{instruction} [/INST]",
            system_in_user=True,
            strip_whitespace=False,
        ),
    ),
    "Gemma": (
        GEMMA,
        Format(
            system="{instruction}\n\n",
            assistant="<start_of_turn>model\n{instruction}<end_of_turn>\n",
            trailing_assistant="<start_of_turn>model\n",
            user="<start_of_turn>user\n{system}{instruction}<end_of_turn>\n",
            system_in_user=True,
        ),
    ),
}
_EACH = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
REFUSED: dict[str, tuple[str, str]] = {
    "today's date": ("{{ strftime_now('%d %b %Y') }}" + _EACH, "the date"),
    "an endless loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "does not end",
    ),
    "a syntax error": ("{% for", "unexpected"),
    "an error at run time": ("{{ messages[9]['content'] + '' }}", "a conversation of user"),
    "a first message unlike the others": (
        "{% for m in messages %}{{ ('first ' if loop.first else '') + m['role'] + m['content'] }}{% endfor %}",
        "the first user's message",
    ),
    "a system message before the last question": (
        "{% set told = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}{% for m in messages if "
        "m['role'] != 'system' %}{{ '[I]' + (told if loop.last else '') + m['content'] + '[/I]' }}{% endfor %}",
        "the messages change places",
    ),
    "numbered turns": (
        "{% for m in messages %}{{ loop.index ~ m['role'] + m['content'] + '\n' }}{% endfor %}",
        "before the",
    ),
    "texts in capitals": ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "0 times"),
    "texts twice": ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "2 times"),
    "a system message that is left out": (
        "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + m['content'] }}{% endfor %}",
        "the system's text",
    ),
    "an answer that ends only the last turn": (
        "{% for m in messages %}{{ m['role'] + m['content'] + ('!' if messages | length > 3 and loop.first else '') }}"
        "{% endfor %}",
        "before",
    ),
    "a limit of turns": (
        "{% if messages | length > 5 %}{{ raise_exception('too many') }}{% endif %}" + _EACH,
        "too many",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_derived(name: str) -> None:
    """The prompt_format of a template is the one a person would write."""
    template, expected = EXPECTED[name]

    assert derive(template).format == expected


@pytest.mark.parametrize("name", PREPENDED)
def test_system_messages_that_are_refused(name: str) -> None:
    """A template that refuses system messages is refused, unless they are to go before the first user's text."""
    template, expected = PREPENDED[name]

    with pytest.raises(UnsupportedError, match="system messages") as raised:
        derive(template)

    assert "--prepend-system" in raised.value.problems[0].hint
    assert derive(template, prepend_system=True).format == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """A template that no prompt_format renders is refused, naming the part."""
    text, part = REFUSED[name]

    with pytest.raises(UnsupportedError, match=part) as raised:
        derive(Template(text, {}, False))

    assert "--prompt-format FILE.yaml" in raised.value.problems[0].hint


@pytest.mark.parametrize("order", ["first", "last"])
def test_long_texts(order: str) -> None:
    """Pages of text between messages are expressed, or refused, without a search through every letter."""
    page = "\n".join(f"Rule {number}: be kind." for number in range(400))
    text = "{% for m in messages %}{{ '[' ~ m['role'] ~ ']' ~ m['content'] }}" + page + "{% endfor %}"
    if order == "last":
        text += "{{ messages | length if messages[0]['role'] == 'system' }}"
        with pytest.raises(UnsupportedError):
            derive(Template(text, {}, False))
    else:
        assert derive(Template(text, {}, False)).format.user == "[user]{instruction}" + page


def test_conversations_beyond_those_searched_by() -> None:
    """A derived prompt_format renders a conversation that the search never saw as the template does."""
    conversation: Conversation = (
        ("system", "Answer in {{verse}} [INST]"),
        ("user", "<|im_end|> is what?"),
        ("assistant", "A token.\n\n{instruction}"),
        ("user", "Go\ton"),
        ("assistant", "No"),
        ("user", "Yes"),
        ("assistant", "No"),
        ("user", "Yes"),
        ("assistant", "No"),
        ("user", "Bye"),
    )

    for template, made in EXPECTED.values():
        assert render(made, conversation) == apply(template, conversation)


_word = st.text("ab{}<>[]\n é", min_size=1, max_size=12).filter(lambda text: text.strip() == text)


@given(st.sampled_from(sorted(EXPECTED)), st.none() | _word, st.lists(st.tuples(_word, _word), max_size=3), _word)
@settings(max_examples=80, deadline=None)
def test_any_conversation(name: str, system: str | None, turns: list[tuple[str, str]], last: str) -> None:
    """Whatever is said, without white space at its ends, a prompt_format renders what its template does."""
    template, made = EXPECTED[name]
    said = [message for user, answer in turns for message in (("user", user), ("assistant", answer))]
    conversation = (*([] if system is None else [("system", system)]), *said, ("user", last))

    assert render(made, conversation) == apply(template, conversation)


def test_white_space_is_noted() -> None:
    """Llama-2 keeps white space before a question that follows a system message; RayLLM does not, and it is said."""
    notes = derive(LLAMA_2).notes

    assert [note.partition(":")[0] for note in notes] == [
        "a user's text with white space round it after a system message"
    ]


def test_an_empty_system_message_is_noted() -> None:
    """ChatML renders an empty system message, RayLLM leaves it out."""
    (note,) = derive(CHATML).notes

    assert note.startswith("an empty system message: RayLLM renders '<|im_start|>user")


def test_a_first_token_that_only_the_tokenizer_writes_is_noted() -> None:
    """Zephyr's template has no <s>, and RayLLM's tokenizer puts one."""
    assert "RayLLM's tokenizer puts <s> before the prompt, the chat template does not" in derive(ZEPHYR).notes


def test_first_token_of_the_template_alone() -> None:
    """A first token that the tokenizer does not write has no place in a prompt_format."""
    template = Template(MISTRAL.text, S, False)

    with pytest.raises(UnsupportedError, match="'<s>"):
        derive(template, prepend_system=True)


def test_no_disagreement() -> None:
    """A prompt_format that renders what a template does has nothing to tell."""
    assert disagreement(LLAMA_2, EXPECTED["Llama-2"][1]) is None


def test_disagreement() -> None:
    """A prompt_format of another model is told by the first conversation that differs, rendered both ways."""
    told = disagreement(CHATML, EXPECTED["Llama-2"][1])

    assert told is not None
    assert told.startswith("a conversation of user: '[INST] Name three rivers. [/INST]' by prompt_format")
    assert "'<|im_start|>user\\nName three rivers.<|im_end|>\\n<|im_start|>as...' by the chat template" in told


def test_disagreement_where_system_messages_are_refused() -> None:
    """What a template refuses is not compared."""
    assert disagreement(MISTRAL, PREPENDED["Mistral"][1]) is None


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_rendering_is_rayllms(index: int) -> None:
    """A prompt is the one that RayLLM's own code made of the conversation."""
    case = PROMPTS[index]

    made = render(Format(**case["format"]), tuple((role, text) for role, text in case["messages"]))

    assert made == case["prompt"]


def test_two_system_messages() -> None:
    """RayLLM takes one system message."""
    with pytest.raises(ValueError, match="one system message"):
        render(_CHATML, (("system", "a"), ("system", "b"), ("user", "c")))


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("generation", [True, False])
def test_template_is_rendered_as_transformers_does(name: str, generation: bool) -> None:
    """A template renders what transformers makes of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template, _ = EXPECTED[name]
    conversation = (("system", "Be brief."), ("user", "a b"), ("assistant", "c"), ("user", " d\n"))
    messages = [{"role": role, "content": text} for role, text in conversation]

    (theirs,), _ = render_jinja_template(
        [messages], chat_template=template.text, add_generation_prompt=generation, **template.tokens
    )

    bos = template.tokens.get("bos_token", "")
    expected = theirs.removeprefix(bos) if template.adds_bos else theirs
    assert apply(template, conversation, generation=generation) == expected


def test_words_of_templates() -> None:
    """break, tojson, and generation are known to templates, as transformers knows them."""
    text = (
        "{% for m in messages %}{% generation %}{{ {'a': 'é'} | tojson }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ tools is none }}"
    )

    assert apply(Template(text, {}, False), (("user", "x"), ("user", "y"))) == '{"a": "é"}True'


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{% include 'x' %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ (messages | length + 8) ** (9 ** 9) }}",
    ],
)
def test_templates_are_kept_in(text: str) -> None:
    """A template can neither change what it is given nor leave the sandbox; whatever it raises is its failure."""
    with pytest.raises(TemplateFailure):
        apply(Template(text, {}, False), (("user", "x"),))


def tokenizer(folder: Path, config: Any, **others: Any) -> Tree:
    """A folder with tokenizer files."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return from_folder(folder)


def test_read_template(tmp_path: Path) -> None:
    """A template and its tokens are read from tokenizer_config.json, whether a token is a text or an object."""
    config = {"chat_template": "x", "bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}

    assert read_template(tokenizer(tmp_path, config)) == Template("x", S, True)


def test_tokens_of_the_map(tmp_path: Path) -> None:
    """Tokens that tokenizer_config.json lacks come from special_tokens_map.json."""
    tree = tokenizer(tmp_path, {"chat_template": "x", "eos_token": "e"}, special_tokens_map={"unk_token": "u"})

    assert read_template(tree) == Template("x", {"eos_token": "e", "unk_token": "u"}, False)


def test_named_templates(tmp_path: Path) -> None:
    """Of several templates the one called default counts."""
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]

    assert read_template(tokenizer(tmp_path, {"chat_template": named})) == Template("d", {}, False)


def test_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    """chat_template.jinja goes before tokenizer_config.json."""
    (tmp_path / "chat_template.jinja").write_text("file")

    assert read_template(tokenizer(tmp_path, {"chat_template": "x"})) == Template("file", {}, False)


def test_no_template(tmp_path: Path) -> None:
    """A base model has none."""
    assert read_template(tokenizer(tmp_path, {"bos_token": "<s>"})) is None


@pytest.mark.parametrize(
    ("config", "post_processor", "expected"),
    [
        ({"add_bos_token": False}, None, False),
        ({"tokenizer_class": "LlamaTokenizerFast"}, None, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None, False),
        ({}, {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}, True),
        ({}, {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}, False),
        (
            {},
            {
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel"},
                    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
                ],
            },
            True,
        ),
    ],
)
def test_whether_the_tokenizer_writes_the_first_token(
    tmp_path: Path, config: dict[str, Any], post_processor: Any, expected: bool
) -> None:
    """add_bos_token decides, then the tokenizer's class, then the post-processor of tokenizer.json."""
    tree = tokenizer(
        tmp_path,
        {"chat_template": "x", "bos_token": "<s>", **config},
        tokenizer={"post_processor": post_processor},
    )

    template = read_template(tree)

    assert template is not None
    assert template.adds_bos == expected


@given(st.binary(max_size=60))
@settings(max_examples=30, deadline=None)
def test_any_tokenizer_files(content: bytes) -> None:
    """Any bytes in tokenizer files are a template, none, or an error of ours."""
    names = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
    tree = Tree("t", dict.fromkeys(names, len(content)), frozenset(), lambda path: content)
    try:
        read_template(tree)
    except CheckpointError:
        pass


@given(st.text("{}%'ab +|.[]0", max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_template(text: str) -> None:
    """Any template is expressed, or refused with something to type."""
    try:
        made: Derived | str = derive(Template(text, {}, False))
    except UnsupportedError as error:
        made = error.problems[0].hint

    assert made != ""


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 2000000000 }}",
        "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_cannot_take_the_machine(text: str) -> None:
    """Memory and time are those of a process of its own; the next template is rendered as if nothing had been."""
    with pytest.raises(TemplateFailure, match="1 GiB"):
        apply(Template(text, {}, False), (("user", "u"),))

    assert apply(Template("{{ messages[0]['content'] }}", {}, False), (("user", "u"),)) == "u"


def test_without_jinja(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without jinja2 the error says what to install."""
    (tmp_path / "jinja2.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    renderer = _Renderer()
    monkeypatch.setattr("llmcompile.packaging.prompt_format._renderer", lambda: renderer)

    with pytest.raises(ToolchainError, match="jinja2") as raised:
        derive(CHATML)
    renderer.close()

    assert raised.value.problems[0].hint == "pip install jinja2"
