"""Lay out a tiny decoder as optimum-neuron leaves it, without the Neuron SDK.

Usage: python tiny_neuron.py MODEL RELEASE OUTPUT

In real life this is `llmcompile export neuron --model MODEL --via optimum OUTPUT`, where optimum-neuron RELEASE is
installed. Here the compiled graphs and the weights are a few bytes: packages are made of names, sizes and records.
"""

import json
import shutil
import sys
from pathlib import Path

from llmcompile import __version__
from llmcompile.packaging import manifest
from llmcompile.writing import MANIFEST, hash_file

COMPILERS = {"0.3.0": "2.19.8089.0+8ab9f450", "0.4.4": "2.21.33363.0+82129205"}
CORES, BATCH, TOKENS = 4, 4, 256


def main(model: Path, release: str, output: Path) -> None:
    """Write the folder."""
    weights = output / "checkpoint" / "weights"
    weights.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, output)
    (output / "model.pt").write_bytes(b"graphs")
    for rank in range(CORES):
        (weights / f"tp{rank}_sharded_checkpoint.safetensors").write_bytes(b"weights")
    record = {
        "_serialized_key": "NxDNeuronConfig",
        "batch_size": BATCH,
        "checkpoint_id": None,
        "neuronxcc_version": COMPILERS[release],
        "optimum_neuron_version": release,
        "sequence_length": TOKENS,
        "target": "trn1",
        "torch_dtype": "bfloat16",
        "tp_degree": CORES,
    }
    (output / "neuron_config.json").write_text(json.dumps(record, indent=2))
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    made = manifest.Manifest(
        tool=manifest.Tool(version=__version__),
        backend="neuron",
        source=manifest.Source(model="org/tiny-llama", revision=None, commit=None, format="folder", files=()),
        model=manifest.Model(architecture="llama", sizes={}, facts={}),
        options={"batch_size": BATCH, "sequence_length": TOKENS, "num_cores": CORES, "dtype": "bf16"},
        versions={"optimum-neuron": release, "neuronx-cc": COMPILERS[release]},
        files=manifest.file_records((path.relative_to(output).as_posix(), hash_file(path)) for path in files),
        deviations=(),
        ignored=(),
        overflowed={},
        notes=("an example: nothing was compiled",),
        validation=None,
        engine=None,
        neuron=manifest.Neuron(
            task="text-generation",
            via="optimum",
            layout="optimum",
            status="compiled",
            target="inf2",
            ranks=CORES,
            graphs=(),
            compiler=COMPILERS[release],
            flags=(),
            environment_flags=(),
        ),
    )
    (output / MANIFEST).write_bytes(manifest.to_bytes(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
