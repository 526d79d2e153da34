"""Artifacts to package: one of each kind, made once in a session and not to be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import serving_artifacts

if TYPE_CHECKING:
    from conftest import Run


@pytest.fixture(scope="session")
def artifact(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The artifact of a kind; not to be changed."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = serving_artifacts.make(kind, tmp_path_factory.mktemp(kind), run)
        return made[kind]

    return of
