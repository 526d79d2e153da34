"""Encoders of optimum-neuron in Hugging Face's inference image for Neuron: what it is told, and what it demands.

Sources: aws/sagemaker-huggingface-inference-toolkit@69bc5ef:src/sagemaker_huggingface_inference_toolkit
(optimum_utils.py, mms_model_server.py); huggingface/optimum-neuron@v0.4.1:optimum/neuron/pipelines/transformers/base.py
(tasks), optimum/neuron/utils/version_utils.py (compiler); @213224e6:docs/source/containers.mdx (image).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError, UnsupportedError
from llmcompile.packaging import neuron_env, neuron_rules
from llmcompile.packaging.neuron_env import same_version
from llmcompile.packaging.sagemaker.names import TRANSFORMERS
from llmcompile.packaging.target import Finding

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

REPOSITORY = (
    f"huggingface-pytorch-inference-neuronx:2.8.0-transformers{TRANSFORMERS}-neuronx-py310-sdk2.26.0-ubuntu22.04"
)
COMPILER = "2.21.18209.0"
"""Of optimum-neuron 0.4.1, which is in it."""
COMPILED = "model.neuron"
TASKS = ("feature-extraction", "fill-mask", "question-answering", "text-classification", "token-classification")
"""Those of texts. Images and sounds have no static sequence length, which the toolkit insists on."""
_IGNORED = ("HF_OPTIMUM_BATCH_SIZE", "HF_OPTIMUM_SEQUENCE_LENGTH")
_SHAPES = ("static_batch_size", "static_sequence_length")


def is_encoder(tree: Tree) -> bool:
    """Whether a folder is what the image loads."""
    return COMPILED in tree.files and "neuron_config.json" not in tree.files


def environment(artifact: Artifact, runtime: str | None) -> Mapping[str, str]:
    """The variables for an encoder.

    Raises:
        UnsupportedError: The image does not load it.
    """
    if not is_encoder(artifact.tree):
        made = neuron_env.made_by(artifact)
        hint = "the image loads encoders in one file"
        if "neuron_config.json" in artifact.tree.files and made in neuron_env.IMAGES:
            hint = f"add --target-version optimum-{made}"
        raise UnsupportedError(str(artifact.path), f"no {COMPILED} at its root", "an encoder in one file", hint)
    if artifact.task not in TASKS:
        raise UnsupportedError(
            str(artifact.path),
            str(artifact.task),
            f"one of {', '.join(TASKS)}",
            "serve it with a container of your own",
        )
    section = _section(artifact.tree)
    has = COMPILER if runtime is None else runtime
    compiler = section.get("compiler_version")
    if isinstance(compiler, str) and _newer(compiler, has):
        raise UnsupportedError(
            f"neuronx-cc {has} of the image",
            f"{artifact.path} was compiled by {compiler}",
            "the same version or an older one",
            f"export again with neuronx-cc {has}; or give an image with {compiler}: --image-uri, --runtime-version",
        )
    missing = [name for name in _SHAPES if not isinstance(section.get(name), int)]
    if missing != []:
        raise UnsupportedError(
            f"{artifact.path}/config.json",
            f"no {' and no '.join(missing)}",
            "static shapes of texts",
            "export it again",
        )
    return {"HF_TASK": str(artifact.task)}


def lint(tree: Tree, variables: Mapping[str, str], where: str, folder: str, runtime: str | None) -> Iterator[Finding]:
    """Findings of neuron_env.RULES but "secrets", as far as they are about encoders."""
    inner = tree.under(folder)
    section = _section(inner)
    yield from _variables(variables, where)
    if "HF_MODEL_ID" in variables:
        found = f"HF_MODEL_ID={variables['HF_MODEL_ID'][:60]}"
        yield Finding("model", "failed", where, found, "none: it is fetched instead of this model", "take it out")
    else:
        yield Finding("model", "ok", where, "/opt/ml/model")
    missing = [name for name in (COMPILED, "config.json") if name not in inner.files]
    if all(name not in inner.files for name in neuron_rules.TOKENIZERS):
        missing.append("tokenizer.json")
    for name in missing:
        yield Finding("files", "failed", f"{folder}/{name}", "no such file", "the model", "copy the artifact again")
    if missing == []:
        yield Finding("files", "ok", folder, f"{len(inner.files)} files")
    yield Finding("release", "ok", folder, "an encoder: any release of optimum-neuron")
    yield _compiler(section, folder, COMPILER if runtime is None else runtime)
    for rule, name in zip(("batch", "sequence"), _SHAPES, strict=True):
        size = section.get(name)
        fits = isinstance(size, int) and not isinstance(size, bool) and size > 0
        hint = "" if fits else "export it again"
        yield Finding(rule, "ok" if fits else "failed", f"{folder}/config.json: {name}", f"{size!r:.40}", "", hint)
    for rule in ("input", "prefill", "cores", "dtype"):
        yield Finding(rule, "skipped", folder, "an encoder")


def _variables(variables: Mapping[str, str], where: str) -> Iterator[Finding]:
    task = variables.get("HF_TASK")
    if task not in TASKS:
        found = "no HF_TASK" if task is None else f"HF_TASK={task[:60]}"
        yield Finding("variables", "failed", where, found, f"one of {', '.join(TASKS)}", "set HF_TASK")
    for name in _IGNORED:
        if name in variables:
            yield Finding(
                "variables", "note", f"{where}: {name}", "not read: the model has its shapes", "", "take it out"
            )
    others = [name for name in variables if neuron_env.known(name) is not None and name != "HF_MODEL_ID"]
    for name in others:
        yield Finding("variables", "failed", f"{where}: {name}", "not read by this image", "", "take it out")
    if task in TASKS and others == []:
        yield Finding("variables", "ok", where, f"HF_TASK={task}")


def _compiler(section: Mapping[str, Any], folder: str, has: str) -> Finding:
    compiler, subject = section.get("compiler_version"), f"{folder}/config.json: compiler_version"
    if not isinstance(compiler, str):
        return Finding("compiler", "skipped", subject, "the model does not say which compiled it")
    newer = _newer(compiler, has)
    hint = f"export again with neuronx-cc {has}" if newer else ""
    return Finding("compiler", "failed" if newer else "ok", subject, compiler, f"{has}, or older", hint)


def _newer(one: str, other: str) -> bool:
    first, second = (
        tuple(int(part) for part in re.findall(r"\d{1,9}", version.partition("+")[0])) for version in (one, other)
    )
    return first > second and not same_version(one, other)


def _section(tree: Tree) -> Mapping[str, Any]:
    """The section "neuron" of config.json; empty where there is none."""
    try:
        content = json.loads(tree.read("config.json"))
    except (ValueError, RecursionError, CheckpointError):
        return {}
    section = content.get("neuron") if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}
