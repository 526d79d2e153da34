"""The choice of a release, and what a target's flags become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass

import pytest

from llmcompile.errors import UnsupportedError
from llmcompile.packaging.artifact import Artifact
from llmcompile.packaging.target import KINDS, Kind, Package, Target, flag, flags
from llmcompile.packaging.targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class Options:
    """One flag."""

    depth: int | None = flag(None, "--depth", "-d", help="How deep.", minimum=1)


def target(version_flag: str | None = None, prefer: str | None = None) -> Target[Options]:
    """Serves FasterTransformer files from 1 on, and nothing else."""

    def preferred(artifact: Artifact, serving: Sequence[str]) -> str | None:
        return prefer

    return Target(
        name="shelf",
        title="Shelf",
        help="Put it on a shelf.",
        options=Options,
        releases=("2", "1.10", "1", "0.9"),
        version_flag=version_flag,
        serves={"ft": ("2", "1.10", "1")},
        refusals={"hf": ("it has no shelf", "build one")},
        plan=lambda artifact, options, request: Package(texts={}),
        rules={},
        detect=lambda tree: False,
        lint=lambda tree, serving: iter(()),
        prefer=preferred,
    )


def test_the_newest_release_is_the_default() -> None:
    """The first of those that serve the kind."""
    assert target().choose("ft", None) == "2"


@pytest.mark.parametrize(("asked", "release"), [("1", "1"), ("1.0.3", "1"), ("1.10", "1.10"), ("1.10.2", "1.10")])
def test_a_version_belongs_to_its_release(asked: str, release: str) -> None:
    """1.10.2 is of 1.10 and not of 1, which is asked for by 1.0.3."""
    assert target().choose("ft", asked) == release


def test_a_release_that_does_not_serve_the_kind_is_refused() -> None:
    """The flag is named, and the releases that would do."""
    with pytest.raises(UnsupportedError) as raised:
        target("--shelf-version").choose("ft", "0.9")

    (problem,) = raised.value.problems
    assert str(problem) == (
        "Shelf --shelf-version: 0.9 does not serve FasterTransformer files; expected one of 2, 1.10, 1"
    )
    assert problem.hint == "add --shelf-version 2, or leave it out"


def test_an_unknown_release_is_refused() -> None:
    """As one that is not known, which may be newer than this table."""
    with pytest.raises(UnsupportedError, match="--target-version: 3 is none of the releases known"):
        target().choose("ft", "3")


def test_a_kind_that_no_release_serves_is_refused_with_a_reason() -> None:
    """What is missing, and what to do instead."""
    with pytest.raises(UnsupportedError) as raised:
        target().choose("hf", None)

    (problem,) = raised.value.problems
    assert str(problem) == "Shelf: does not serve a Hugging Face checkpoint: it has no shelf"
    assert problem.hint == "build one"


def test_options_are_frozen_and_have_their_defaults() -> None:
    """A flag is a field like any other."""
    options = Options()

    assert options.depth is None
    with pytest.raises(FrozenInstanceError):
        options.depth = 2  # type: ignore[misc]


def test_flags_know_their_spellings() -> None:
    """In the order they are written."""
    found = flags(Options)

    assert list(found) == ["depth"]
    assert (found["depth"].names, found["depth"].minimum) == (("--depth", "-d"), 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_every_kind_is_served_or_refused(name: str, kind: Kind) -> None:
    """By releases the target knows, or with a reason and a way on; never both, never neither."""
    found = TARGETS[name]

    assert (kind in found.serves) != (kind in found.refusals)
    assert set(found.serves.get(kind, ())) <= set(found.releases)
    assert kind not in found.serves or len(found.serves[kind]) > 0
    assert kind not in found.refusals or all(len(text) > 0 for text in found.refusals[kind])


@pytest.mark.parametrize("name", TARGETS)
def test_a_refusal_sends_nobody_to_another(name: str) -> None:
    """A target that a hint names for the same artifact serves it."""
    for kind, (_, instead) in TARGETS[name].refusals.items():
        for other in re.findall(r"package ([a-z]+(?:-[a-z]+)?) ARTIFACT", instead):
            assert kind in TARGETS[other].serves, f"{kind}: {instead}"


@pytest.mark.parametrize("name", TARGETS)
def test_a_targets_flags_are_named_as_its_fields(name: str) -> None:
    """So that a variable of the environment is named as either."""
    assert all(made.names[0] == "--" + field.replace("_", "-") for field, made in flags(TARGETS[name].options).items())
