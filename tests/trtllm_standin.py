"""A stand-in for trtllm-build and for the package tensorrt_llm, standard library only.

As a program (`install` writes one that calls `main`) it takes the flags recorded in
tests/golden/trtllm_build/<release>.txt and no others, checks that the checkpoint is whole, logs as the builder does and
writes the engine folder's layout. TRTLLM_STANDIN says what goes wrong: fail, hang, babble (one long line), die, half
(one rank is not written) or empty (no bytes). TRTLLM_STANDIN_LOG is a folder that is told how the program was called.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "trtllm_build"


def parser(release: str) -> argparse.ArgumentParser:
    """The parser whose help text is recorded: the same flags, kinds and choices."""
    made = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    for line in (GOLDEN / f"{release}.txt").read_text().split("options:\n")[1].splitlines():
        names = re.findall(r"(?:^  |, )(--\w+)", line)
        if names in ([], ["--help"]):
            continue
        values = line.split(names[-1])[1].strip()
        choices = re.match(r"\{(.*?)\}", values)
        if values == "":
            made.add_argument(*names, action="store_true")
        else:
            several = "+" if values.endswith("...]") else None
            made.add_argument(*names, nargs=several, choices=None if choices is None else choices[1].split(","))
    return made


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def log(text: str, level: str = "I") -> None:
    """One line as the vendor's logger writes it."""
    say(f"[11/21/2026-12:00:00] [TRT-LLM] [{level}] {text}")


def main(release: str, version: str, words: list[str]) -> None:
    """Be trtllm-build."""
    if "--help" in words:
        say((GOLDEN / f"{release}.txt").read_text())
        return
    arguments = parser(release).parse_args(words)
    called = json.dumps({"words": words, "environment": dict(os.environ)})
    for folder in (Path.cwd(), Path(os.environ.get("TRTLLM_STANDIN_LOG", str(Path.cwd())))):
        (folder / "standin.json").write_text(called)
    say(f"[TensorRT-LLM] TensorRT-LLM version: {version}")
    checkpoint, output = Path(arguments.checkpoint_dir), Path(arguments.output_dir)
    config = json.loads((checkpoint / "config.json").read_text())
    log("Set gemm_plugin to None.")
    misbehave()
    for rank in range(config["mapping"]["world_size"]):
        assert (checkpoint / f"rank{rank}.safetensors").stat().st_size > 0
        log("Build TensorRT engine Unnamed Network 0")
        log("Total time of building Unnamed Network 0: 00:00:36")
        save(output, rank, config, built(arguments, config), version)
    Path(arguments.output_timing_cache).write_bytes(b"timings")
    log(f"Timing cache serialized to {arguments.output_timing_cache}")
    log("Total time of building all engines: 00:01:59")


def built(arguments: argparse.Namespace, config: dict[str, object]) -> dict[str, object]:
    """The limits of build_config, as BuildConfig.to_dict names them; its defaults are those of TensorRT-LLM 1.2."""
    defaults = {"max_batch_size": 2048, "max_input_len": 1024, "max_num_tokens": 8192, "max_beam_width": 1}
    made: dict[str, object] = {}
    for name, default in defaults.items():
        given = getattr(arguments, name, None)
        made[name] = default if given is None else int(given)
    length = getattr(arguments, "max_seq_len", None)
    made["max_seq_len"] = config.get("max_position_embeddings") if length is None else int(length)
    for name in ("gather_context_logits", "gather_generation_logits"):
        made[name] = bool(getattr(arguments, name, False))
    paged = getattr(arguments, "use_paged_context_fmha", None)
    made["kv_cache_type"] = "PAGED"
    made["plugin_config"] = {"use_paged_context_fmha": paged != "disable", "paged_kv_cache": True}
    return made


def misbehave() -> None:
    """Do what TRTLLM_STANDIN says."""
    how = os.environ.get("TRTLLM_STANDIN", "")
    if how == "fail":
        for number in range(40):
            log(f"line {number}", "E")
        raise SystemExit(1)
    if how == "hang":
        child = subprocess.Popen(["sleep", "300"])
        (Path.cwd() / "pids").write_text(f"{os.getpid()} {child.pid}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(300)
    if how == "babble":
        sys.stdout.write("x" * 3_000_000)
        raise SystemExit(1)
    if how == "die":
        os.kill(os.getpid(), signal.SIGSEGV)


def save(output: Path, rank: int, config: dict[str, object], build: dict[str, object], version: str) -> None:
    """Write one rank's engine, and config.json with the first, as Engine.save does."""
    how = os.environ.get("TRTLLM_STANDIN", "")
    output.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        whole = {"version": version, "pretrained_config": config, "build_config": build}
        (output / "config.json").write_text(json.dumps(whole))
    log(f"Serializing engine to {output}/rank{rank}.engine...")
    if how != "half" or rank == 0:
        (output / f"rank{rank}.engine").write_bytes(b"" if how == "empty" else b"engine of rank %d" % rank)
    log("Engine serialized. Total time: 00:00:28")


def install(folder: Path, version: str, release: str, *, program: bool = True) -> Path:
    """Make an environment: bin/python3, bin/trtllm-build, and tensorrt_llm of `version`; returns the interpreter.

    The interpreter is a script that puts the package on its path: a copy of a virtual environment would be slow.
    """
    site, programs = folder / "site", folder / "bin"
    package, info = site / "tensorrt_llm", site / f"tensorrt_llm-{version}.dist-info"
    for path in (programs, package, info):
        path.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    tensorrt = site / "tensorrt-10.13.3.dist-info"
    tensorrt.mkdir()
    (tensorrt / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.13.3\n")
    write_package(package, site, version)
    python = programs / "python3"
    script(python, f'PYTHONPATH="{site}:{Path(__file__).parent}" exec "{sys.executable}" "$@"')
    if program:
        call = f"import sys; from trtllm_standin import main; main({release!r}, {version!r}, sys.argv[1:])"
        script(
            programs / "trtllm-build", f'PYTHONPATH="{Path(__file__).parent}" exec "{sys.executable}" -c "{call}" "$@"'
        )
    return python


def script(path: Path, text: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def nvidia_smi(folder: Path, *lines: str) -> None:
    """Put a nvidia-smi that lists these GPUs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    script(folder / "nvidia-smi", "\n".join(f"echo '{line}'" for line in lines))


def write_package(package: Path, site: Path, version: str) -> None:
    """Write a package with the names worker.py uses, each with the vendor's signature."""
    (package / "__init__.py").write_text("print('[TensorRT-LLM] imported', flush=True)\n")
    (package / "version.py").write_text(f'__version__ = "{version}"\n')
    (package / "plugin.py").write_text(_PLUGIN)
    (package / "models.py").write_text(_MODELS)
    (package / "builder.py").write_text(_BUILDER.replace("VERSION", repr(version)))
    (package / "runtime.py").write_text(_RUNTIME)
    (site / "torch.py").write_text(_TORCH)
    (site / "numpy.py").write_text(_NUMPY)


_PLUGIN = """
class PluginConfig:
    gemm_plugin = None
    context_fmha = True
    manage_weights = False

    @classmethod
    def from_dict(cls, config):
        made = cls()
        made.__dict__.update(config)
        return made
"""
_MODELS = """
import json, os

class PretrainedConfig:
    @classmethod
    def from_json_file(cls, path):
        made = cls()
        made.values = json.load(open(path))
        made.architecture = made.values["architecture"]
        return made

    def set_rank(self, rank):
        self.rank = rank

class Llama:
    @classmethod
    def from_checkpoint(cls, ckpt_dir, rank=None, config=None):
        assert os.path.getsize(os.path.join(ckpt_dir, f"rank{config.rank}.safetensors")) > 0
        made = cls()
        made.config = config
        return made

MODEL_MAP = {"LlamaForCausalLM": Llama}
"""
_BUILDER = """
import enum
from pathlib import Path
from trtllm_standin import misbehave, save

class KVCacheType(str, enum.Enum):
    PAGED = "paged"
    CONTINUOUS = "continuous"

class BuildConfig:
    @classmethod
    def from_dict(cls, config, plugin_config=None):
        made = cls()
        made.plugin_config = plugin_config
        for name in ("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens",
                     "opt_num_tokens"):
            setattr(made, name, config.pop(name))
        for name in ("input_timing_cache", "output_timing_cache", "gather_context_logits"):
            setattr(made, name, config.pop(name, None))
        assert config == {}, config
        return made

class Engine:
    def __init__(self, model, config):
        self.model, self.config = model, config

    def save(self, folder):
        build = {"max_batch_size": self.config.max_batch_size, "gemm": self.config.plugin_config.gemm_plugin,
                 "kv": getattr(self.config, "kv_cache_type", None)}
        save(Path(folder), self.model.config.rank, self.model.config.values, build, VERSION)

def build(model, build_config):
    misbehave()
    return Engine(model, build_config)
"""
_RUNTIME = """
class Logits:
    def __init__(self, rows):
        self.shape = (rows, 7)
    def float(self):
        return self
    cpu = numpy = float

class ModelRunner:
    @classmethod
    def from_dir(cls, engine_dir, *, rank=0):
        return cls()
    def generate(self, batch_input_ids, *, end_id, pad_id, max_new_tokens, return_dict):
        return {"context_logits": [Logits(len(batch_input_ids[0]))]}
"""
_NUMPY = r"""
def save(path, value):
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % value.shape
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    rows, columns = value.shape
    zeros = bytes(4 * rows * columns)
    open(path, "wb").write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + zeros)
"""
_TORCH = """
int32 = "int32"
class cuda:
    @staticmethod
    def set_device(index):
        pass
    @staticmethod
    def device_count():
        return 1
def tensor(values, dtype=None):
    return values
"""


def checkpoint(folder: Path, ranks: int = 1, **fields: object) -> dict[str, object]:
    """Write a checkpoint of dummy rank files; returns its config.json."""
    folder.mkdir(parents=True)
    mapping = {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
    config: dict[str, object] = {"architecture": "LlamaForCausalLM", "dtype": "float16", "mapping": mapping, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.safetensors").write_bytes(b"weights")
    return config
