"""Every kind of artifact with every target: packaged and clean, or refused with a reason and a way on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import serving_artifacts
from llmcompile.packaging.targets import TARGETS

if TYPE_CHECKING:
    from conftest import Run

Of = Callable[[str], Path]
SERVED = [(name, kind) for name, target in TARGETS.items() for kind in target.serves]
REFUSED = [(name, kind) for name, target in TARGETS.items() for kind in target.refusals]


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_what_a_target_serves_is_packaged_and_clean(
    name: str, kind: str, artifact: Of, run: Run, tmp_path: Path
) -> None:
    """`package`, then `lint` and `verify` of what it wrote, all end with 0."""
    words = serving_artifacts.flags(name, kind, tmp_path)
    packaged = run("package", name, artifact(kind), tmp_path / "out", *words)

    assert packaged.code == 0, packaged.err
    linted, verified = run("lint", tmp_path / "out"), run("verify", tmp_path / "out")
    assert (linted.code, verified.code) == (0, 0), linted.err + verified.err
    assert TARGETS[name].title in linted.out


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_a_package_is_the_same_every_time(name: str, kind: str, artifact: Of, run: Run, tmp_path: Path) -> None:
    """Equal artifacts and options give equal bytes; no file holds a path of this machine."""
    words = serving_artifacts.flags(name, kind, tmp_path)
    for output in ("one", "two"):
        run("package", name, artifact(kind), tmp_path / output, *words)

    paths = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(paths) > 0
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        if path.name != "llmcompile.json":
            assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_no_release_serves_is_refused(name: str, kind: str, artifact: Of, run: Run, tmp_path: Path) -> None:
    """Exit code 4, a reason, what to do instead; nothing is written."""
    result = run("package", name, artifact(kind), tmp_path / "out", *serving_artifacts.flags(name, kind, tmp_path))

    assert result.code == 4, result.err
    assert "does not serve" in result.err
    assert "hint:" in result.err
    assert list(tmp_path.iterdir()) == []
