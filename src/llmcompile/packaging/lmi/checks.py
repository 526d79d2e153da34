"""The lint of packages for LMI: each rule reads the files as LMI's programs do, and knows nothing of how we write them.

The reason of each rule, with its source, is in docs/formats/lmi.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.lmi import model_checks, properties_checks
from llmcompile.packaging.lmi.seen import FILE, Seen, see, skipped
from llmcompile.packaging.target import Finding, Serving

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

_CHECKS: Mapping[str, Callable[[Seen], Iterator[Finding]]] = MappingProxyType(
    {
        "archive-root": model_checks.archive_root,
        "properties-dialect": properties_checks.dialect,
        "known-keys": properties_checks.known_keys,
        "credentials": properties_checks.credentials,
        "engine": properties_checks.engine,
        "entry-point": properties_checks.entry_point,
        "handler-mode": properties_checks.handler_mode,
        "dynamic-batch": properties_checks.dynamic_batch,
        "model-id": properties_checks.model_id,
        "s3url": properties_checks.s3url,
        "environment": properties_checks.environment,
        "layout": properties_checks.layout,
        "build-config": model_checks.build_config,
        "model-files": model_checks.model_files,
        "rank-files": model_checks.rank_files,
        "split-weights": model_checks.split_weights,
        "tensor-parallel": model_checks.tensor_parallel,
        "batch-size": model_checks.batch_size,
        "sequence-length": model_checks.sequence_length,
        "dtype": model_checks.dtype,
        "gpt-model-path": model_checks.gpt_model_path,
        "decoupled": model_checks.decoupled,
        "verify-file": model_checks.verify_file,
        "runtime-version": model_checks.runtime_version,
        "compiled-graphs": model_checks.compiled_graphs,
    }
)


_OF_ENTRIES = frozenset(
    {
        "known-keys",
        "credentials",
        "engine",
        "entry-point",
        "handler-mode",
        "dynamic-batch",
        "model-id",
        "s3url",
        "environment",
        "tensor-parallel",
        "batch-size",
        "sequence-length",
        "dtype",
        "compiled-graphs",
    }
)
"""Rules that go by entries of serving.properties: without any, what they do not find says nothing."""


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    seen = see(tree, serving)
    for name, check in _CHECKS.items():
        unread = seen.entries == {} and name in _OF_ENTRIES
        for found in [skipped(FILE, "no entry that could be read")] if unread else check(seen):
            yield replace(found, rule=name)
