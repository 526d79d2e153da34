"""How a Neuron artifact lies on disk: what is written before compiling, and where the compiled graphs go.

    nxd         config.json, neuron_config.json, weights/tp<rank>_sharded_checkpoint.safetensors, graphs/<name>.neff
    sdk-2.16    config.json with "neuron", checkpoint/{config.json,pytorch_model.bin/}, compiled/<hash>.neff
    lmi-split   config.json, pytorch_model.bin/, compiled/<hash>.neff
    lmi-cache   config.json, pytorch_model.bin/, compiled/neuronxcc-<version>/MODULE_<hash>+<flags>/
    optimum     config.json with "neuron", model.neuron: made by optimum-neuron (`through_optimum.py`)

Every one has graphs/<name>.hlo.pb and .json. The ranks' files of weights stay where a runtime reads them, and in what
is lowered but not compiled.

Source: huggingface/optimum-neuron@v0.0.24:optimum/neuron/modeling_decoder.py (sdk-2.16); deepjavalibrary/djl-serving
docs on "Split Model and Compiled Graph" (lmi-split), see docs/formats/neuron.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcompile.checkpoint.folder import Checkpoint, contained
from llmcompile.exporters.neuron import cache
from llmcompile.packaging import manifest as records
from llmcompile.pipeline.neuron.compiling import Compiled, neff_path
from llmcompile.pipeline.neuron.planning import Export
from llmcompile.writing import WorkDirectory, hash_file

WEIGHTS = "weights/"
SPLIT = {"sdk-2.16": "checkpoint/", "lmi-split": "", "lmi-cache": ""}
"""Layouts whose weights are one file for each tensor of the model -> folder that pytorch_model.bin/ is in."""
_CODE = ".py"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What config.json of the 2.16 layout says of an export.

    Attributes:
        task: What the graphs do.
        batch_size: Sequences at once.
        sequence_length: Tokens.
        num_cores: Tensor parallel degree.
        auto_cast_type: Element type the runtime computes in.
        checkpoint_id: Where the model came from.
        checkpoint_revision: Its commit; None for a local folder.
    """

    task: str
    batch_size: int | None
    sequence_length: int | None
    num_cores: int
    auto_cast_type: str
    checkpoint_id: str
    checkpoint_revision: str | None


def facts_of(manifest: records.Manifest) -> Facts:
    """The facts, as the manifest has them."""
    neuron, options = manifest.neuron, manifest.options
    assert neuron is not None

    def size(name: str) -> int | None:
        value = options.get(name)
        return value if isinstance(value, int) else None

    return Facts(
        task=neuron.task,
        batch_size=size("batch_size"),
        sequence_length=size("sequence_length"),
        num_cores=neuron.ranks,
        auto_cast_type=str(options["dtype"]),
        checkpoint_id=manifest.source.model,
        checkpoint_revision=manifest.source.commit,
    )


def write_model_files(made: Export, work: WorkDirectory) -> None:
    """Write what a runtime needs beside graphs: configuration, tokenizer and, for split layouts, the model's tensors.

    The checkpoint's own code goes along only where it may run.
    """
    assert made.checkpoint is not None
    checkpoint = made.checkpoint
    for name in checkpoint.auxiliary:
        if name.endswith(_CODE) and not made.options.build.trust_remote_code:
            continue
        work.write_bytes(name, contained(checkpoint.root, name).read_bytes())
    for name in _module_configs(checkpoint):
        work.write_bytes(name, contained(checkpoint.root, name).read_bytes())
    if made.layout not in SPLIT:
        return
    from llmcompile.exporters.neuron.split import write_split

    folder = SPLIT[made.layout]
    if folder != "":
        work.write_bytes(f"{folder}config.json", contained(checkpoint.root, "config.json").read_bytes())
    write_split(checkpoint, work, folder, split_dtype(made))


def _module_configs(checkpoint: Checkpoint) -> Iterator[str]:
    """The configurations that modules.json of a sentence-transformers model names, such as that of its pooling."""
    if "modules.json" not in checkpoint.auxiliary:
        return
    try:
        modules = json.loads(contained(checkpoint.root, "modules.json").read_bytes())
        folders = [str(module["path"]) for module in modules]
    except (ValueError, KeyError, TypeError):
        return
    for folder in folders:
        name = f"{folder}/config.json"
        if re.fullmatch(r"\w+/config\.json", name, flags=re.ASCII) and (checkpoint.root / name).is_file():
            yield name


def split_dtype(made: Export) -> Any:
    """Element type of split weights; None for the checkpoint's own."""
    if made.job is not None:
        return made.job.layout.dtype
    return None


def remaining(
    deviations: Sequence[records.Deviation], files: Sequence[records.FileRecord]
) -> tuple[records.Deviation, ...]:
    """Those of files that the artifact has."""
    paths = {record.path for record in files}
    return tuple(deviation for deviation in deviations if deviation.path in paths)


def finish(manifest: records.Manifest, compiled: Compiled, work: WorkDirectory) -> records.Neuron:
    """Put compiled graphs where the layout has them, and drop what it does not have.

    Returns:
        The record of the export, with the compiled graphs.
    """
    neuron = manifest.neuron
    assert neuron is not None
    places = _placed(neuron, compiled, work)
    if neuron.layout in SPLIT:
        shutil.rmtree(work.path / WEIGHTS)
        for file in [file for file in work.finished if file.startswith(WEIGHTS)]:
            work.forget(file)
    if neuron.layout == "sdk-2.16":
        _write_config(facts_of(manifest), compiled.version, work)
    graphs = tuple(
        graph.model_copy(
            update={
                "neff": places[graph.name],
                "neff_sha256": work.finished[places[graph.name]].sha256,
                "cached": compiled.cached[graph.name],
            }
        )
        for graph in neuron.graphs
    )
    update = {"status": "compiled", "compiler": compiled.version, "flags": compiled.arguments, "graphs": graphs}
    return neuron.model_copy(update=update)


def _placed(neuron: records.Neuron, compiled: Compiled, work: WorkDirectory) -> Mapping[str, str]:
    """Graph -> path of its NEFF."""
    if neuron.layout not in SPLIT:
        return {graph.name: neff_path(graph.name) for graph in neuron.graphs}
    if neuron.layout == "lmi-cache":
        entries = [
            cache.Entry((work.path / graph.hlo).read_bytes(), compiled.arguments, work.path / neff_path(graph.name))
            for graph in neuron.graphs
        ]
        folder = work.path / "compiled"
        if folder.exists():
            shutil.rmtree(folder)
        made = cache.dump(folder, compiled.version, entries)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            work.record(str(path.relative_to(work.path)), hash_file(path))
        for graph in neuron.graphs:
            (work.path / neff_path(graph.name)).unlink()
            work.forget(neff_path(graph.name))
        return {graph.name: str(path.relative_to(work.path)) for graph, path in zip(neuron.graphs, made, strict=True)}
    (work.path / "compiled").mkdir(exist_ok=True)
    places = {}
    for graph in neuron.graphs:
        places[graph.name] = f"compiled/{cache.compiled_name((work.path / graph.hlo).read_bytes())}"
        os.replace(work.path / neff_path(graph.name), work.path / places[graph.name])
        written = work.finished[neff_path(graph.name)]
        work.forget(neff_path(graph.name))
        work.record(places[graph.name], written)
    return places


def _write_config(facts: Facts, compiler_version: str, work: WorkDirectory) -> None:
    """config.json with the section "neuron", and generation_config.json, which that runtime wants.

    Source: huggingface/optimum-neuron@v0.0.24:optimum/neuron/modeling_decoder.py (NeuronDecoderModel._save_pretrained).
    """
    path = work.path / "config.json"
    config = json.loads(path.read_bytes())
    config["neuron"] = {
        "task": facts.task,
        "batch_size": facts.batch_size,
        "num_cores": facts.num_cores,
        "auto_cast_type": facts.auto_cast_type,
        "sequence_length": facts.sequence_length,
        "compiler_type": "neuronx-cc",
        "compiler_version": compiler_version,
        "checkpoint_id": facts.checkpoint_id,
        "checkpoint_revision": facts.checkpoint_revision,
    }
    path.unlink()  # it may be a link to another artifact's
    work.write_bytes("config.json", (json.dumps(config, indent=2) + "\n").encode())
    if "generation_config.json" not in work.finished:
        tokens = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        content = {"_from_model_config": True, **{key: value for key, value in tokens.items() if value is not None}}
        work.write_bytes("generation_config.json", (json.dumps(content, indent=2) + "\n").encode())
