"""The serving targets: one file each, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.packaging import lmi, ray_serve, rayllm, sagemaker, tgi, triton
from llmcompile.packaging.target import Target

_ALL: tuple[Target[Any], ...] = (
    lmi.TARGET,
    triton.TARGET,
    rayllm.TARGET,
    ray_serve.TARGET,
    sagemaker.TARGET,
    tgi.TARGET,
)

TARGETS: Mapping[str, Target[Any]] = MappingProxyType({target.name: target for target in _ALL})
"""Name, as in `llmcompile package NAME` -> target; in the order in which a folder is looked at."""
