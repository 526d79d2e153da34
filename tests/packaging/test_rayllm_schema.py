"""RayLLM's registry entries: our schema beside RayLLM's own, recorded in tests/golden/rayllm."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError
from llmcompile.packaging.rayllm.schema import LLMApp, TRTLLMEngine, flaws, parse, placeholders, read_entry

OUTCOMES = json.loads((Path(__file__).parents[1] / "golden" / "rayllm" / "outcomes.json").read_text())
ENTRIES = OUTCOMES["entries"]
STRICTER = {
    "unknown key at the top": "ignored",
    "unknown key of deployment_config": "ignored",
    "unknown key of autoscaling_config": "ignored",
    "unknown key of scaling_config": "ignored",
    "unknown key of generation": "ignored",
    "unknown key of s3_mirror_config": "ignored",
    "placement_group_bundles": "ignored",
    "unknown scheduler_policy": "start",
    "unknown logger_level": "start",
    "unknown model_type TRTLLM": "start",
    "unknown placement_strategy": "start",
    "s3_mirror_config with gs": "start",
    "missing prompt_format": "request",
    "system in user without system_in_user": "request",
    "user with another placeholder": "request",
    "missing type": "guessed",
}
"""What RayLLM's models accept and ours do not, and what comes of it."""


def entry(name: str = "good TRTLLMEngine") -> Any:
    """A recorded entry, to be changed."""
    return copy.deepcopy(ENTRIES[name]["entry"])


@pytest.mark.parametrize("name", [name for name in ENTRIES if not ENTRIES[name]["outcome"]["accepted"]])
def test_refused(name: str) -> None:
    """What RayLLM's models refuse has a flaw that says so."""
    assert "refused" in {flaw.effect for flaw in flaws(ENTRIES[name]["entry"])}


@pytest.mark.parametrize("name", [name for name in ENTRIES if ENTRIES[name]["outcome"]["accepted"]])
def test_accepted(name: str) -> None:
    """What RayLLM's models accept has no flaw, but for those listed, whose effect is told."""
    effects = {flaw.effect for flaw in flaws(ENTRIES[name]["entry"])}

    assert effects == ({STRICTER[name]} if name in STRICTER else set())


def test_every_stricter_case_is_one_that_rayllm_accepts() -> None:
    """The list of what we are stricter about has no case that RayLLM refuses too."""
    assert [name for name in STRICTER if not ENTRIES[name]["outcome"]["accepted"]] == []


def test_the_registry_is_there() -> None:
    """All 15 entries of RayLLM's registry are among the recorded ones."""
    assert len([name for name in ENTRIES if name.startswith("registry ")]) == 15


def test_values_of_an_entry() -> None:
    """Values are read, and absent ones have RayLLM's defaults."""
    app = read_entry(json.dumps(entry()), "e.yaml")

    assert isinstance(app, LLMApp)
    assert isinstance(app.engine_config, TRTLLMEngine)
    assert app.engine_config.scheduler_policy == "MAX_UTILIZATION"
    assert app.engine_config.enable_trt_overlap
    assert app.engine_config.max_total_tokens == 2048
    assert app.engine_config.s3_mirror_config is not None
    assert app.engine_config.s3_mirror_config.bucket_uri == "s3://bucket/model/"
    assert app.scaling_config.num_workers == 2
    assert app.deployment_config is not None
    assert app.deployment_config.autoscaling_config is not None
    assert app.deployment_config.autoscaling_config.smoothing_factor == 0.6


def test_every_problem_is_told() -> None:
    """An entry with three flaws gives three problems, each with its key and file."""
    made = entry()
    made["scaling_config"]["num_workers"] = "two"
    made["engine_config"]["logger_level"] = "LOUD"
    made["colour"] = "red"

    with pytest.raises(CheckpointError) as raised:
        read_entry(json.dumps(made), "e.yaml")

    subjects = {problem.subject for problem in raised.value.problems}
    assert subjects == {
        "e.yaml: scaling_config.num_workers",
        "e.yaml: engine_config.logger_level",
        "e.yaml: colour",
    }
    assert all(problem.hint != "" for problem in raised.value.problems)


def test_flaws_name_what_was_found() -> None:
    """A wrong word is shown with the words that are known."""
    made = entry("unknown scheduler_policy")

    (flaw,) = flaws(made)

    assert flaw.key == "engine_config.scheduler_policy"
    assert flaw.found == "'FASTEST'"
    assert "MAX_UTILIZATION" in flaw.expected
    assert "GUARANTEED_NO_EVICT" in flaw.expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a: [", "- a\n- b", "!!python/object:os.system {}", "!!int ''", "!!bool x", "!!timestamp x", "[" * 5000],
)
def test_not_an_entry(text: str) -> None:
    """What is no mapping, or no YAML, is an error of the file; nothing in it is run."""
    with pytest.raises(CheckpointError, match=r"e\.yaml"):
        read_entry(text, "e.yaml")


def test_too_long() -> None:
    """A file of more than a MiB is not parsed."""
    with pytest.raises(CheckpointError, match="at most 1048576"):
        parse("a" * (1 << 20) + "a", "e.yaml")


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("[INST] [/INST]", "refused"),
        ("{instruction} {", "request"),
        ("{instruction} {0}", "request"),
        ("{instruction} {}", "request"),
        ("{instruction!r}{instruction}", "request"),
        ("{{instruction}}", "request"),
    ],
)
def test_texts_that_cannot_be_filled(text: str, effect: str) -> None:
    """A text without its placeholder is refused; one that str.format chokes on fails at every chat."""
    made = entry()
    made["engine_config"]["generation"]["prompt_format"]["assistant"] = text

    assert [(flaw.key, flaw.effect) for flaw in flaws(made)] == [
        ("engine_config.generation.prompt_format.assistant", effect)
    ]


def test_braces_of_a_text() -> None:
    """Doubled braces are text."""
    assert placeholders("{{x}} {instruction}") == {"instruction"}


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text(text: str) -> None:
    """Any text is an entry or an error of ours."""
    try:
        read_entry(text, "e.yaml")
    except CheckpointError:
        pass


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["engine_config", "scaling_config", "generation", "prompt_format", "type", "user", "num_workers", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json)
@settings(max_examples=60, deadline=None)
def test_any_content(content: object) -> None:
    """Any content has flaws that can be told, or none."""
    for flaw in flaws(content):
        assert flaw.effect in ("refused", "ignored", "start", "request", "guessed")
        assert flaw.found != ""
