"""The lint of packages for LMI: each rule reads the files as LMI's programs do, and knows nothing of how we write them.

The reason of each rule, with its source, is in docs/formats/lmi.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.lmi import model_checks, properties_checks
from llmcompile.packaging.lmi.seen import FILE, Seen, see
from llmcompile.packaging.target import Finding, Serving

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

_CHECKS: Mapping[str, tuple[str, Callable[[Seen], Iterator[Finding]]]] = {
    "archive-root": ("serving.properties is at the root, not in a folder of the archive", model_checks.archive_root),
    "properties-dialect": ("Java and LMI's Python tools read the same entries", properties_checks.dialect),
    "known-keys": ("no key is a misspelled one of LMI's", properties_checks.known_keys),
    "credentials": ("no entry looks like a token or a password", properties_checks.credentials),
    "engine": ("the release has the engine", properties_checks.engine),
    "entry-point": ("the release has the handler, and it starts there", properties_checks.entry_point),
    "handler-mode": ("the handler runs in the mode it insists on", properties_checks.handler_mode),
    "dynamic-batch": ("batch_size above 1 and a rolling batch do not meet", properties_checks.dynamic_batch),
    "model-id": ("model_id is absent, absolute or s3://, and does not hide files", properties_checks.model_id),
    "s3url": ("s3url is not beside model_id, and the release still reads it", properties_checks.s3url),
    "environment": ("no environment file beside it says otherwise", properties_checks.environment),
    "layout": ("the model lies as the release looks for it", properties_checks.layout),
    "build-config": ("a flat engine's config.json has build_config", model_checks.build_config),
    "model-files": ("configuration and tokenizer are where the handler opens them", model_checks.model_files),
    "rank-files": ("every rank of tp x pp has its files", model_checks.rank_files),
    "split-weights": ("every file of a split Neuron checkpoint is there", model_checks.split_weights),
    "tensor-parallel": ("tensor_parallel_degree is the model's own", model_checks.tensor_parallel),
    "batch-size": ("no more sequences at once than it was built for", model_checks.batch_size),
    "sequence-length": ("positions and tokens are those it was built for", model_checks.sequence_length),
    "dtype": ("dtype is spelled as the handler does, and fits the weights", model_checks.dtype),
    "gpt-model-path": ("config.pbtxt names the engine's folder in the container", model_checks.gpt_model_path),
    "decoupled": ("config.pbtxt is decoupled", model_checks.decoupled),
    "verify-file": ("FasterTransformer's verify is one line without a blank or newline", model_checks.verify_file),
    "runtime-version": ("the image's runtime is the one it was compiled by", model_checks.runtime_version),
    "compiled-graphs": ("compiled graphs are where LMI looks, in the form it takes", model_checks.compiled_graphs),
}
RULES: Mapping[str, str] = MappingProxyType({name: demand for name, (demand, _) in _CHECKS.items()})


def detect(tree: Tree) -> bool:
    """Whether there is a serving.properties, at the root or in a folder above which nothing is."""
    tops = {path.split("/")[0] for path in tree.files}
    return FILE in tree.files or (len(tops) == 1 and any(path.endswith(f"/{FILE}") for path in tree.files))


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    seen = see(tree, serving)
    for name, (_, check) in _CHECKS.items():
        for found in check(seen):
            yield replace(found, rule=name)
