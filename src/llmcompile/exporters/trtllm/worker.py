"""Run in the interpreter that has tensorrt_llm, with nothing of ours: `python worker.py '{"action": ...}'`.

One JSON object in, as the only argument; JSON lines with the key "event" out, the vendor's own log between them. The
last event is "result". A failure is a traceback and exit code 1. Standard library only; tensorrt_llm is imported inside
functions.

Sources: tensorrt_llm/commands/build.py (build_model, main) and tensorrt_llm/runtime/model_runner.py of
NVIDIA/TensorRT-LLM@78f5c293 (0.13), @aaacc9bd (0.16), @008b2b8d, and the newest build.py and plugin.py (1.2).
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt_llm_tensorrt")
_SIZES = ("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens")
_NOT_CONFIG = (
    "logits_dtype",
    "fast_build",
    "strip_plan",
    "gather_all_token_logits",
    "kv_cache_type",
    "speculative_decoding_mode",
    "max_decoder_seq_len",
    "max_multimodal_len",
)
"""Flags of trtllm-build that are no field of BuildConfig by that name."""


def emit(event: str, **fields: object) -> None:
    """Write one JSON line, whole, whatever else writes to the same pipe."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


def probe(request: dict[str, Any]) -> dict[str, object]:
    """Say which tensorrt_llm and TensorRT this interpreter has, without importing them, which takes seconds."""
    version = _installed("tensorrt_llm")
    if version is None:
        version = _version_file()
    tensorrt = next((found for name in _TENSORRT if (found := _installed(name)) is not None), None)
    return {"version": version, "tensorrt": tensorrt, "python": sys.executable}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version_file() -> str | None:
    spec = find_spec("tensorrt_llm")
    if spec is None or spec.origin is None:
        return None
    path = os.path.join(os.path.dirname(spec.origin), "version.py")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        match = re.search(r"__version__\s*=\s*[\"']([^\"']+)[\"']", file.read())
    return None if match is None else match[1]


def build(request: dict[str, Any]) -> dict[str, object]:
    """Build and save the engine of each rank: one after the other, or `workers` at a time on as many GPUs."""
    ranks = range(request["ranks"])
    os.makedirs(request["output"], exist_ok=True)
    if request["workers"] == 1:
        for rank in ranks:
            build_rank(request, rank)
    else:
        with get_context("spawn").Pool(request["workers"], maxtasksperchild=1) as pool:
            pool.starmap(build_rank, [(request, rank) for rank in ranks], chunksize=1)
    return {"ranks": len(ranks)}


def build_rank(request: dict[str, Any], rank: int) -> None:
    """Load one rank of the checkpoint, build its engine and save it; rank 0 also writes the engine's config.json."""
    emit("progress", text=f"rank {rank}: loading")
    import_module("torch").cuda.set_device(rank % request["workers"])
    builder, models = import_module("tensorrt_llm.builder"), import_module("tensorrt_llm.models")
    checkpoint, flags = request["checkpoint"], dict(request["flags"])
    config = models.PretrainedConfig.from_json_file(os.path.join(checkpoint, "config.json"))
    config.set_rank(rank)
    if "logits_dtype" in flags:
        config.logits_dtype = flags["logits_dtype"]
    model = models.MODEL_MAP[config.architecture].from_checkpoint(checkpoint, config=config)
    emit("progress", text=f"rank {rank}: building")
    engine = builder.build(model, build_config(builder, flags, request))
    emit("progress", text=f"rank {rank}: saving")
    engine.save(request["output"])


def build_config(builder: Any, flags: dict[str, Any], request: dict[str, Any]) -> Any:
    """Make BuildConfig of `flags`, as the command line does; flags that name a plugin go to PluginConfig."""
    kind = import_module("tensorrt_llm.plugin").PluginConfig
    blank = kind()
    plugins = {name: value for name, value in flags.items() if hasattr(blank, name)}
    plugin_config = kind.from_dict(plugins) if hasattr(kind, "from_dict") else kind(**plugins)
    if flags.get("fast_build", False):
        plugin_config.manage_weights = True
    fields = {name: value for name, value in flags.items() if name not in plugins and name not in _NOT_CONFIG}
    fields = {**dict.fromkeys(_SIZES), **request["defaults"], **fields}
    for name, field in (("max_decoder_seq_len", "max_seq_len"), ("max_multimodal_len", _PROMPTS)):
        if name in flags:
            fields[field] = flags[name]
    if flags.get("gather_all_token_logits", False):
        fields.update(gather_context_logits=True, gather_generation_logits=True)
    if "speculative_decoding_mode" in flags:
        modes = import_module("tensorrt_llm.models.modeling_utils").SpeculativeDecodingMode
        fields["speculative_decoding_mode"] = modes.from_arguments(SimpleNamespace(**flags))
    for name in ("input_timing_cache", "output_timing_cache"):
        if request[name] is not None:
            fields[name] = request[name]
    config = builder.BuildConfig.from_dict(fields, plugin_config=plugin_config)
    if "kv_cache_type" in flags:
        config.kv_cache_type = _kv_cache_type(builder, flags["kv_cache_type"])
    if flags.get("strip_plan", False):
        config.use_strip_plan = True
    return config


_PROMPTS = "max_prompt_embedding_table_size"


def _kv_cache_type(builder: Any, value: str) -> Any:
    holder = builder if hasattr(builder, "KVCacheType") else import_module("tensorrt_llm.bindings")
    kind = holder.KVCacheType
    return kind.from_string(value) if hasattr(kind, "from_string") else kind[value.upper()]


def run(request: dict[str, Any]) -> dict[str, object]:
    """Run an engine built with --gather_context_logits on each prompt; rank 0 writes its logits, float32, as .npy.

    `prompts` are lists of token ids; `logits` is a folder for 0.npy, 1.npy, ..., each of shape (tokens, vocabulary).
    """
    numpy, torch = import_module("numpy"), import_module("torch")
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    torch.cuda.set_device(rank % torch.cuda.device_count())
    runner = import_module("tensorrt_llm.runtime").ModelRunner.from_dir(request["engine"], rank=rank)
    shapes = []
    for index, tokens in enumerate(request["prompts"]):
        prompt = torch.tensor(tokens, dtype=torch.int32)
        stop = {"end_id": request["end_id"], "pad_id": request["end_id"], "max_new_tokens": 1, "return_dict": True}
        outputs = runner.generate([prompt], **stop)
        if rank != 0:
            continue
        if "context_logits" not in outputs:
            raise SystemExit("the engine has no context logits; build it with --gather_context_logits")
        logits = outputs["context_logits"][0].float().cpu().numpy()
        numpy.save(os.path.join(request["logits"], f"{index}.npy"), logits)
        shapes.append(list(logits.shape))
        emit("progress", text=f"prompt {index + 1} of {len(request['prompts'])}")
    return {"shapes": shapes}


def main(text: str) -> None:
    """Do what the request, a JSON object, asks, and say so."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # our modules shadow nobody's
    request = json.loads(text)
    done = {"probe": probe, "build": build, "run": run}[request["action"]](request)
    if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
        emit("result", **done)


if __name__ == "__main__":
    main(sys.argv[1])
