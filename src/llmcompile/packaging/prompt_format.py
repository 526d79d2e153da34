"""A chat template as RayLLM's prompt_format: derived from what the template renders, and proved by rendering both.

A template is a program, a prompt_format four pieces of text. Conversations of marked messages go through the template;
the text between the marks gives every prompt_format that could stand for it, and the one is taken that renders all of
a larger set of conversations alike. Nothing here knows any model.

Source: the rendering of a prompt_format is ray-project/ray-llm@891ccd7:rayllm/common/models.py (PromptFormat); that of
a template is huggingface/transformers@v4.57.6:src/transformers/utils/chat_template_utils.py. Both of RayLLM's engines
call `tokenizer.encode(prompt)`, which puts the beginning-of-sequence token first where the tokenizer does so
(rayllm/backend/llm/trtllm/trtllm_engine.py, rayllm/backend/llm/vllm/vllm_compatibility.py).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmcompile.errors import CheckpointError, ToolchainError, UnsupportedError

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

T = TypeVar("T")
Conversation = tuple[tuple[str, str], ...]
"""Messages: (role, text), role being system, user or assistant."""
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokenizers whose own code puts the beginning-of-sequence token first unless add_bos_token says otherwise.
_BOS_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
_SECONDS = 10.0
"""Time a template may take for one conversation; no chat needs a thousandth of it."""
_PLACES = 100
"""Places of a text at which it is tried to cut it."""
_HINT = "pass --prompt-format FILE.yaml with what the model should see, or --no-chat for completions only"


@dataclass(frozen=True)
class Format:
    """RayLLM's prompt_format; texts hold {instruction}, and `user` {system} where `system_in_user`."""

    system: str
    assistant: str
    trailing_assistant: str
    user: str
    default_system_message: str = ""
    system_in_user: bool = False
    add_system_tags_even_if_message_is_empty: bool = False
    strip_whitespace: bool = True


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template.

    Attributes:
        text: Jinja.
        tokens: Name -> text of the special tokens that it may use.
        adds_bos: Whether the tokenizer itself puts the beginning-of-sequence token before every text.
    """

    text: str
    tokens: Mapping[str, str]
    adds_bos: bool


@dataclass(frozen=True)
class Derived:
    """A prompt_format, and which conversations it renders otherwise than the template."""

    format: Format
    notes: tuple[str, ...]


class TemplateFailure(Exception):
    """The template raised for a conversation, or cannot be compiled."""


def render(made: Format, conversation: Conversation) -> str:
    """The prompt RayLLM makes of a conversation.

    Raises:
        ValueError: There are two system messages.
    """
    systems = [text for role, text in conversation if role == "system"]
    if len(systems) > 1:
        raise ValueError("only one system message can be specified")
    messages = [(role, text) for role, text in conversation if role != "system"]
    tagged = made.add_system_tags_even_if_message_is_empty
    system = systems[0] if len(systems) > 0 else None
    if system is None and (made.default_system_message != "" or tagged):
        system = made.default_system_message
    if system is not None and (system != "" or tagged) and not made.system_in_user:
        messages.insert(0, ("system", system))
    prompt = ""
    for role, text in messages:
        shown = text.strip() if made.strip_whitespace else text
        if role == "user" and made.system_in_user:
            before = "" if system is None else made.system.format(instruction=system)
            prompt += made.user.format(instruction=shown, system=before)
            system = None
        else:
            prompt += {"system": made.system, "user": made.user, "assistant": made.assistant}[role].format(
                instruction=shown
            )
    return prompt + made.trailing_assistant


def read_template(tree: Tree) -> Template | None:
    """The chat template of a folder with tokenizer files; None where it has none.

    Raises:
        CheckpointError: A tokenizer file cannot be read.
    """
    config = _json(tree, "tokenizer_config.json")
    declared = config.get("chat_template")
    if isinstance(declared, list):
        named = {item.get("name"): item.get("template") for item in declared if isinstance(item, dict)}
        declared = named.get("default")
    if "chat_template.jinja" in tree.files:
        declared = tree.text("chat_template.jinja")
    if not isinstance(declared, str):
        return None
    listed = {**_json(tree, "special_tokens_map.json"), **config}
    tokens = {name: text for name in _TOKENS if (text := _token(listed.get(name))) is not None}
    return Template(declared, tokens, _adds_bos(tree, config, tokens.get("bos_token")))


def apply(template: Template, conversation: Conversation, *, generation: bool = True, today: str = "1 Jan") -> str:
    """The text a template renders, without the beginning-of-sequence token that the tokenizer adds itself.

    Args:
        template: The template.
        conversation: The messages.
        generation: Whether the answer is to follow.
        today: What it is told where it asks for the date.

    Raises:
        TemplateFailure: It raises, cannot be compiled, or does not end.
        ToolchainError: jinja2 is not installed.
    """
    rendered = _run(template, conversation, generation, today)
    bos = template.tokens.get("bos_token", "")
    return rendered.removeprefix(bos) if template.adds_bos else rendered


def derive(template: Template, *, prepend_system: bool = False) -> Derived:
    """The prompt_format that renders what the template does.

    Args:
        template: The template.
        prepend_system: Where the template refuses system messages, put them before the first user's text.

    Raises:
        UnsupportedError: There is none; names the part that cannot be expressed.
        ToolchainError: jinja2 is not installed.
    """
    probes = _probe(template, prepend_system)
    expected = _expected(template, probes.system is not None)
    nearest: tuple[int, Format] | None = None
    for _, likely in itertools.groupby(_candidates(probes), key=lambda pair: pair[0]):
        best: tuple[int, Format] | None = None
        for _, made in likely:
            wrong = [case for case in expected if render(made, case.conversation) != case.prompt]
            needed = sum(case.edge == "" for case in wrong)
            if nearest is None or needed < nearest[0]:
                nearest = (needed, made)
            if needed == 0 and (best is None or len(wrong) < best[0]):
                best = (len(wrong), made)
        if best is not None:
            return Derived(best[1], _notes(template, best[1], expected))
    raise _unexpressed(expected, None if nearest is None else nearest[1], probes)


def disagreement(template: Template, made: Format) -> str | None:
    """The first ordinary conversation that a prompt_format and a template render differently, in words; None for none.

    Raises:
        ToolchainError: jinja2 is not installed.
    """
    asked = _ordinary(True)
    try:
        _run(template, (("system", "s"), ("user", "u")), True, "1 Jan")
    except TemplateFailure:
        asked = _ordinary(False)
    for conversation in asked:
        try:
            theirs = apply(template, conversation)
        except TemplateFailure:
            continue
        ours = render(made, conversation)
        if ours != theirs:
            ours, theirs = _shown(ours, theirs), _shown(theirs, ours)
            return f"{_roles(conversation)}: {ours} by prompt_format, {theirs} by the chat template"
    return None


@dataclass(frozen=True)
class _Case:
    """A conversation, what the template makes of it, and the edge it is about; "" for an ordinary one."""

    conversation: Conversation
    prompt: str
    edge: str


@dataclass(frozen=True)
class _Probes:
    """Texts round marked messages.

    Attributes:
        head: Before the first user's text, without a system message.
        user_to_assistant: Between a user's text and the answer.
        assistant_to_user: Between an answer and the next user's text.
        tail: After the last user's text, when an answer is to follow.
        user_end: After the last user's text, when none is.
        assistant_end: After the last answer.
        system: Before and after the system message, up to the first user's text; None where it is refused.
    """

    head: str
    user_to_assistant: str
    assistant_to_user: str
    tail: str
    user_end: str
    assistant_end: str
    system: tuple[str, str] | None


_S, _U1, _A1, _U2, _A2, _U3 = (f"Qz{name}zQ" for name in ("system", "one", "two", "three", "four", "five"))
_TURNS: Conversation = (("user", _U1), ("assistant", _A1), ("user", _U2), ("assistant", _A2), ("user", _U3))


def _probe(template: Template, prepend_system: bool) -> _Probes:
    """Render the marked conversations.

    Raises:
        UnsupportedError: A part depends on what a prompt_format cannot know.
    """
    if _first(template, _TURNS[:1], today="1 Jan") != _first(template, _TURNS[:1], today="2 Feb"):
        raise _refused("the date", "the template writes today's date", "the same text on every day")
    head, tail = _pieces(template, _TURNS[:1])
    first = _pieces(template, _TURNS[:3])
    whole = _pieces(template, _TURNS)
    if len(set(whole[1:-1:2])) > 1 or first[1] != whole[1]:
        raise _refused("the assistant's messages", f"{whole[1]!r} before the first, {whole[3]!r} before the next")
    if len(set(whole[2:-1:2])) > 1 or first[2] != whole[2]:
        raise _refused("the user's messages", f"{whole[2]!r} before the second, {whole[4]!r} before the third")
    if {head, first[0], whole[0]} != {head} or {tail, first[-1], whole[-1]} != {tail}:
        raise _refused("the beginning or the end", "they depend on how many turns there are")
    return _Probes(
        head=head,
        user_to_assistant=whole[1],
        assistant_to_user=whole[2],
        tail=tail,
        user_end=_end(template, _TURNS[:1], tail),
        assistant_end=_end(template, _TURNS[:2], ""),
        system=_system(template, prepend_system),
    )


def _system(template: Template, prepend: bool) -> tuple[str, str] | None:
    told = (("system", _S), *_TURNS[:1])
    try:
        apply(template, told)
    except TemplateFailure as error:
        if prepend:
            return None
        raise UnsupportedError(
            "chat template: system messages",
            f"the template refuses them: {error}",
            "what RayLLM should make of them, which it accepts from everyone",
            "add --prepend-system to put them before the first user's text, or pass --prompt-format FILE.yaml",
        ) from error
    before, after, _ = _pieces(template, told)
    later = _pieces(template, (("system", _S), *_TURNS[:3]))
    if (later[0], later[1]) != (before, after):
        raise _refused("system messages", "what is round them depends on how many turns there are")
    return before, after


def _candidates(probes: _Probes) -> Iterator[tuple[int, Format]]:
    """Every prompt_format that could render what the probes saw, each with how far-fetched it is, plain ones first.

    0 puts the system message before the first user's message, 1 inside it, before its text, and 2 anywhere else.
    """
    gap, between, tail = probes.user_to_assistant, probes.assistant_to_user, probes.tail
    shared = _common(gap, tail)
    # Where every message ends in the same line break, that is where it ends, whatever the last one looks like.
    lines = _common(gap, tail, between).rpartition("\n")
    line = lines[0] + lines[1]
    user_ends = _distinct(
        *([line] if line != "" else []),
        _whole_tags(_common(shared, probes.user_end)),
        shared,
        _whole_tags(shared),
    )
    cuts = _distinct(
        *([len(between) - len(probes.head)] if between.endswith(probes.head) else []),
        *([len(line)] if line != "" else []),
        len(_whole_tags(_common(between, probes.assistant_end))),
        *_places(between),
    )
    for far in range(3):
        for cut, end, stripped in itertools.product(cuts, user_ends, (False, True)):
            made = Format(
                system="{instruction}",
                assistant=f"{_escaped(gap[len(end) :])}{{instruction}}{_escaped(between[:cut])}",
                trailing_assistant=tail[len(end) :],
                user=f"{_escaped(between[cut:])}{{instruction}}{_escaped(end)}",
                strip_whitespace=stripped,
            )
            for placed in _with_system(made, between[cut:], end, probes, far):
                yield far, placed


def _with_system(made: Format, start: str, end: str, probes: _Probes, far: int) -> Iterator[Format]:
    """The same with the places that system messages could have; `start` and `end` are round the user's text."""
    if probes.system is None:
        if start == probes.head and far == 1:
            user = f"{_escaped(start)}{{system}}{{instruction}}{_escaped(end)}"
            yield replace(made, system="{instruction}\n\n", user=user, system_in_user=True)
        return
    before, after = probes.system
    for cut in ((0,), (len(start),), _places(start)[1:-1])[far]:
        outer, inner = start[:cut], start[cut:]
        if not (before.startswith(outer) and after.endswith(inner)):
            continue
        opening, closing = before[len(outer) :], after[: len(after) - len(inner)]
        placed = replace(made, system=f"{_escaped(opening)}{{instruction}}{_escaped(closing)}")
        if far > 0:
            user = f"{_escaped(outer)}{{system}}{_escaped(inner)}{{instruction}}{_escaped(end)}"
            placed = replace(placed, user=user, system_in_user=True)
        if probes.head == start:
            yield placed
        default = _between(probes.head, before, after)
        if default is not None:
            tagged = default == ""
            yield replace(placed, default_system_message=default, add_system_tags_even_if_message_is_empty=tagged)


def _ordinary(system: bool) -> tuple[Conversation, ...]:
    """Conversations as people have them."""
    texts = ("Name three rivers.", "Rhine,\nElbe, Volga", 'A {brace}, a "quote" and {instruction}?', "ja - déjà 日本")
    turns = tuple(("user" if place % 2 == 0 else "assistant", texts[place % 4]) for place in range(7))
    plain = tuple(turns[:length] for length in (1, 3, 5, 7))
    if not system:
        return plain
    return (*plain, *((("system", "Be {brief}.\nTwo lines."), *conversation) for conversation in plain))


def _expected(template: Template, system: bool) -> tuple[_Case, ...]:
    """Conversations and what the template makes of them, without those it refuses."""
    asked = [(conversation, "") for conversation in _ordinary(system)]
    if system:
        asked.append(((("system", ""), ("user", "a")), "an empty system message"))
        asked.append(((("system", " s\n"), ("user", "a")), "a system message with white space round it"))
        asked.append(
            ((("system", "s"), ("user", " a\n")), "a user's text with white space round it after a system message")
        )
    asked.append(((("user", " a\n"),), "a user's text with white space round it"))
    asked.append(((("user", "a"), ("assistant", " b\n"), ("user", "c")), "an answer with white space round it"))
    asked.append(((("user", ""),), "an empty text of a user"))
    asked.append(((("user", "a"), ("user", "b")), "two messages of a user without an answer"))
    cases = []
    for conversation, edge in asked:
        try:
            cases.append(_Case(conversation, apply(template, conversation), edge))
        except TemplateFailure as error:
            if edge == "":
                raise _refused(_roles(conversation), f"the template raises: {error}") from error
    return tuple(cases)


def _notes(template: Template, made: Format, expected: Sequence[_Case]) -> tuple[str, ...]:
    notes = []
    for case in expected:
        ours = render(made, case.conversation)
        if ours != case.prompt:
            shown = f"{_shown(ours, case.prompt)}, by the chat template {_shown(case.prompt, ours)}"
            notes.append(f"{case.edge}: RayLLM renders {shown}")
    bos = template.tokens.get("bos_token")
    if template.adds_bos and bos is not None and not _run(template, _TURNS[:1], True, "1 Jan").startswith(bos):
        notes.append(f"RayLLM's tokenizer puts {bos} before the prompt, the chat template does not")
    return tuple(notes)


def _unexpressed(expected: Sequence[_Case], nearest: Format | None, probes: _Probes) -> UnsupportedError:
    """Why no prompt_format would do, by the first conversation that the nearest one renders otherwise."""
    if nearest is None:
        found = f"{probes.head!r} before the first user's text, {probes.assistant_to_user!r} before the next"
        if probes.system is not None:
            found += f"; {probes.system[0]!r} and {probes.system[1]!r} round a system message"
        return _refused("the first user's message", found)
    case = next(case for case in expected if case.edge == "" and render(nearest, case.conversation) != case.prompt)
    ours = render(nearest, case.conversation)
    found = f"{_shown(case.prompt, ours)}, and the nearest prompt_format renders {_shown(ours, case.prompt)}"
    return _refused(_roles(case.conversation), found)


def _refused(part: str, found: str, expected: str = "the same text round every message of a role") -> UnsupportedError:
    return UnsupportedError(f"chat template: {part}", found, expected, _HINT)


def _first(template: Template, conversation: Conversation, *, generation: bool = True, today: str = "1 Jan") -> str:
    """What the template makes of a conversation that every chat begins with.

    Raises:
        UnsupportedError: It raises.
    """
    try:
        return apply(template, conversation, generation=generation, today=today)
    except TemplateFailure as error:
        raise _refused(_roles(conversation), f"the template raises: {error}", "a rendering") from error


def _pieces(template: Template, conversation: Conversation) -> tuple[str, ...]:
    """The text before, between and after the marked messages.

    Raises:
        UnsupportedError: A message is not there once, as it was given, in order.
    """
    text = _first(template, conversation)
    marks = [mark for _, mark in conversation]
    for role, mark in conversation:
        if text.count(mark) != 1:
            raise _refused(f"the {role}'s text", f"it is in the rendering {text.count(mark)} times", "once, unchanged")
    pieces = re.split("|".join(marks), text)
    if re.findall("|".join(marks), text) != marks:
        raise _refused(_roles(conversation), "the messages change places", "the order they were said in")
    return tuple(pieces)


def _end(template: Template, conversation: Conversation, otherwise: str) -> str:
    """The text after the last message when no answer is to follow."""
    try:
        return apply(template, conversation, generation=False).rpartition(conversation[-1][1])[2]
    except TemplateFailure:
        return otherwise


def _between(text: str, before: str, after: str) -> str | None:
    """What stands between two ends of a text; None where it has not these ends."""
    if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
        return None
    return text[len(before) : len(text) - len(after)]


def _places(text: str) -> Sequence[int]:
    """Where a text may be cut: anywhere; a long one at its ends, after line breaks and before tags."""
    if len(text) <= _PLACES:
        return range(len(text) + 1)
    borders = (match.start() for match in re.finditer(r"(?<=\n)|(?=[<\[])", text))
    return _distinct(0, *itertools.islice(borders, _PLACES), len(text))


def _distinct(*values: T) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _common(*texts: str) -> str:
    return os.path.commonprefix(list(texts))  # noqa: RUF071  # characters are meant, not folders


def _whole_tags(text: str) -> str:
    """A text without a tag that it breaks off in: "<|end|><|us" ends before the second one."""
    return re.sub(r"(<[^<>]*|\[[^\[\]]*)$", "", text)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _roles(conversation: Conversation) -> str:
    return "a conversation of " + ", ".join(role for role, _ in conversation)


def _shown(text: str, other: str) -> str:
    """A text from where it begins to differ from another, in quotes, shortened."""
    start = max(0, len(_common(text, other)) - 12)
    return ascii(("..." if start > 0 else "") + text[start : start + 60] + ("..." if len(text) > start + 60 else ""))


def _json(tree: Tree, path: str) -> Mapping[str, Any]:
    if path not in tree.files:
        return {}
    try:
        content = json.loads(tree.read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{tree.name}/{path}", f"not JSON: {error}", "a JSON object", "copy it again") from error
    return content if isinstance(content, dict) else {}


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _adds_bos(tree: Tree, config: Mapping[str, Any], bos: str | None) -> bool:
    """Whether encoding a text puts the beginning-of-sequence token first."""
    if bos is None:
        return False
    declared = config.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    if str(config.get("tokenizer_class")).removesuffix("Fast") in _BOS_CLASSES:
        return True
    processor = _json(tree, "tokenizer.json").get("post_processor")
    parts = [processor]
    if isinstance(processor, dict) and isinstance(processor.get("processors"), list):
        parts += processor["processors"]
    return any(_begins_with(part, bos) for part in parts)


def _begins_with(processor: object, bos: str) -> bool:
    single = processor.get("single") if isinstance(processor, dict) else None
    first = single[0] if isinstance(single, list) and len(single) > 0 else None
    token = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(token, dict) and token.get("id") == bos


def _run(template: Template, conversation: Conversation, generation: bool, today: str) -> str:
    """Render as transformers does, in the process for it."""
    messages = [{"role": role, "content": text} for role, text in conversation]
    values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": generation}
    return _renderer().render({"text": template.text, "values": {**values, **template.tokens}, "today": today})


class _Renderer:
    """The process that renders templates: started when it is first asked, anew where a template ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, request: Mapping[str, Any]) -> str:
        """One rendered conversation.

        Raises:
            TemplateFailure: The template raised, cannot be compiled, or took more time or memory than any chat does.
            ToolchainError: jinja2 is not installed.
        """
        with self._lock:
            line = self._asked(json.dumps(request).encode() + b"\n")
        if line is None:
            raise TemplateFailure("it does not end, or takes more than 1 GiB of memory")
        answer = json.loads(line)
        if "missing" in answer:
            raise ToolchainError("jinja2", "not installed", "what chat templates are written for", "pip install jinja2")
        if "failed" in answer:
            raise TemplateFailure(answer["failed"])
        rendered: str = answer["rendered"]
        return rendered

    def _asked(self, request: bytes) -> bytes | None:
        """The process's answer; None where it gave none, and was ended."""
        if self._process is None or self._process.poll() is not None:
            worker = Path(__file__).with_name("template_worker.py")
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(_SECONDS, process.kill)
        late.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            late.cancel()
        if line.endswith(b"\n"):
            return line
        self.close()
        return None

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait()


@lru_cache(maxsize=1)
def _renderer() -> _Renderer:
    renderer = _Renderer()
    atexit.register(renderer.close)
    return renderer
