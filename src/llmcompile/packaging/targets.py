"""The serving targets: one file each, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.packaging.target import Target

_ALL: tuple[Target[Any], ...] = ()

TARGETS: Mapping[str, Target[Any]] = MappingProxyType({target.name: target for target in _ALL})
