"""Artifacts in memory, packages of them, and how to look at and break these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmcompile.packaging.artifact import Artifact
from llmcompile.packaging.target import Finding, Package, Request, Serving
from llmcompile.packaging.tree import planned
from llmcompile.packaging.triton import TARGET, TritonOptions
from trees import tree_of

Files = dict[str, bytes]
SOURCES = {
    "preprocessing": ("model.py",),
    "postprocessing": ("model.py",),
    "tensorrt_llm_bls": ("model.py", "lib/decode.py", "lib/triton_decoder.py"),
    "tensorrt_llm": ("model.py", "helpers.py"),
}


def engine_config(version: str = "0.17.0", tp: int = 2, pp: int = 1, **build: Any) -> dict[str, Any]:
    """config.json of an engine for 8 requests and 2 beams."""
    return {
        "version": version,
        "pretrained_config": {
            "architecture": "LlamaForCausalLM",
            "logits_dtype": build.pop("logits_dtype", "float32"),
            "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        },
        "build_config": {
            "max_batch_size": 8,
            "max_beam_width": 2,
            "plugin_config": {"use_paged_context_fmha": build.pop("paged", True)},
            **build,
        },
    }


def _artifact(kind: Any, files: Files, **known: Any) -> Artifact:
    defaults: dict[str, Any] = {
        "path": Path("artifact"),
        "kind": kind,
        "manifest": None,
        "tree": tree_of(files, name="artifact"),
        "sha256": {},
        "config": {},
        "model": "org/model",
        "commit": None,
        "tp": 2,
        "pp": 1,
        "dtype": "fp16",
        "task": None,
        "batch_size": None,
        "sequence_length": None,
        "input_length": None,
        "beam_width": None,
        "compiler": None,
        "quantization": None,
        "engine": {},
    }
    return Artifact(**(defaults | known))


TOKENIZER: Files = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "config.json": b"{}"}


def engine(
    version: str = "0.17.0", *, tp: int = 2, pp: int = 1, parts: tuple[str, ...] = ("",), **build: Any
) -> Artifact:
    """An engine, or with parts ("/encoder", "/decoder") two."""
    config = engine_config(version, tp, pp, **build)
    files = dict(TOKENIZER)
    for part in parts:
        files[f"engine{part}/config.json"] = json.dumps(config).encode()
        files |= {f"engine{part}/rank{rank}.engine": b"engine" for rank in range(tp * pp)}
    return _artifact("trtllm-engine", files, tp=tp, pp=pp, compiler=version, engine=config, batch_size=8, beam_width=2)


def ft(model_type: str = "gpt2", *, dtype: str = "fp16", **options: Any) -> Artifact:
    """FasterTransformer files for two ranks."""
    files = {
        "2-gpu/config.ini": b"[gpt]\nweight_data_type = fp16\n",
        "2-gpu/model.wte.bin": b"once",
        "2-gpu/model.layers.0.dense.weight.0.bin": b"zero",
        "2-gpu/model.layers.0.dense.weight.1.bin": b"one",
        **TOKENIZER,
    }
    manifest = SimpleNamespace(options=options)
    return _artifact("ft", files, config={"model_type": model_type}, dtype=dtype, manifest=manifest)


def hf(**config: Any) -> Artifact:
    """A Hugging Face checkpoint."""
    files = {**TOKENIZER, "model.safetensors": b"weights"}
    return _artifact("hf", files, config={"num_attention_heads": 8, **config}, tp=1)


def sources(folder: Path) -> Path:
    """A folder like all_models/: code of the models that run in Python, of our own making."""
    for model, names in SOURCES.items():
        for name in names:
            path = folder / model / "1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {model}\n")
    return folder


def plan(artifact: Artifact, version: str | None = None, runtime: str | None = None, **options: Any) -> Package:
    """The package as the command would plan it."""
    chosen = TARGET.choose(artifact.kind, version, artifact)
    return TARGET.plan(artifact, TritonOptions(**options), Request(chosen, runtime))


def files_of(package: Package, artifact: Artifact) -> tuple[Files, tuple[str, ...]]:
    """What a package holds: the files, and the folders that are empty."""
    tree = planned("repository", package.texts, package.links, package.folders, artifact.tree)
    return {path: tree.load(path) for path in tree.files}, package.folders


def findings(files: Files, folders: tuple[str, ...] = (), **serving: Any) -> list[Finding]:
    """What the lint finds."""
    return list(TARGET.lint(tree_of(files, folders), Serving(**serving)))


def failed(found: list[Finding]) -> list[str]:
    """The rules that failed, each once."""
    return sorted({finding.rule for finding in found if finding.status == "failed"})


def edit(path: str, old: str, new: str) -> Callable[[Files], None]:
    """A change of one file's text, which must have been there."""

    def change(files: Files) -> None:
        text = files[path].decode()
        assert old in text, text
        files[path] = text.replace(old, new).encode()

    return change


def parameter(path: str, key: str, old: str, new: str) -> Callable[[Files], None]:
    """Another value of a parameter."""
    start = f'"{key}" value {{ string_value: '
    return edit(path, f'{start}"{old}"', f'{start}"{new}"')


def typed(path: str, tensor: str, old: str, new: str) -> Callable[[Files], None]:
    """Another type of a tensor."""
    start = f'name: "{tensor}" data_type: '
    return edit(path, start + old, start + new)


def remove(path: str) -> Callable[[Files], None]:
    """A file taken away."""

    def change(files: Files) -> None:
        del files[path]

    return change
