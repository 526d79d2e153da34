"""The file that runs in the other interpreter: what it imports, reads and refuses."""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import optimum_standin as standin
from llmcompile.exporters.neuron import optimum_worker as worker

WORKER = Path(worker.__file__)


def answer(python: Path, request: dict[str, Any], **environment: str) -> dict[str, Any]:
    """The result event of the worker run by an interpreter."""
    done = subprocess.run(
        [python, WORKER, json.dumps(request)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    assert found.pop("event") == "result"
    return found


def test_it_imports_nothing_but_the_standard_library() -> None:
    """At its top; the vendors' packages are imported by name, inside functions."""
    tree = ast.parse(WORKER.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module).split(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}

    assert names <= sys.stdlib_module_names


# Probe


def test_probe_reads_versions_and_imports_nothing(tmp_path: Path) -> None:
    """PyPI's placeholders raise ImportError when they are imported; here every package does."""
    python = standin.install(tmp_path)
    for name in ("torch_neuronx", "libneuronxla", "neuronx_distributed", "optimum", "torch", "transformers"):
        (tmp_path / "site" / f"{name}.py").write_text("raise ImportError('WRONG PACKAGE')")

    versions = answer(python, {"action": "probe"})["versions"]

    assert versions["optimum-neuron"] == "0.4.5"
    assert versions["neuronx-distributed"] == "0.15.22404"
    assert versions["torch-neuronx"] == "2.8.0.2.10.16998"


def test_a_package_that_is_not_there_has_no_version() -> None:
    """Our own interpreter has no optimum-neuron."""
    assert "optimum-neuron" not in worker.installed()
    assert worker.installed()["torch"] == torch.__version__


MAJORS = "Character devices:\n  1 mem\n245 neuron\n\nBlock devices:\n  8 sd\n"


def test_devices_are_counted_as_the_driver_names_them(tmp_path: Path) -> None:
    """No driver, no devices; a file of that name that is no device is none."""
    majors = tmp_path / "devices"
    majors.write_text(MAJORS)
    (tmp_path / "neuron0").write_text("")

    assert worker.devices(str(tmp_path / "absent"), str(tmp_path)) == 0
    assert worker.devices(str(majors), str(tmp_path)) == 0
    majors.write_text("Character devices:\n  1 mem\n")
    assert worker.devices(str(majors), str(tmp_path)) == 0


def test_a_device_has_the_drivers_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/neuron0, /dev/neuron1, ..., and not /dev/neuron_x."""
    majors = tmp_path / "devices"
    majors.write_text(MAJORS)
    for name in ("neuron0", "neuron1", "neuron_x", "sda"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(os, "major", lambda number: 245)

    assert worker.devices(str(majors), str(tmp_path)) == 2


# Arguments


def takes(a: int, b: int = 2) -> None:
    """A function."""


def main_export(model_name_or_path: str, optlevel: str = "2", **input_shapes: int) -> None:
    """A function by the name of the one whose further words are shapes."""


def test_an_argument_a_function_has_not_is_named() -> None:
    """Before it is called."""
    worker.accepts(takes, ["a", "b"])
    with pytest.raises(worker.Refused) as caught:
        worker.accepts(takes, ["a", "c"])

    assert (caught.value.function, caught.value.argument) == ("takes", "c")


def test_any_word_would_do_for_main_export_and_only_shapes_are_let_through() -> None:
    """An argument that a newer release dropped would vanish among the shapes."""
    worker.accepts(main_export, ["optlevel", "batch_size", "text_encoder"])
    with pytest.raises(worker.Refused, match="torch_dtype"):
        worker.accepts(main_export, ["torch_dtype"])


# Element types


def config(**fields: Any) -> SimpleNamespace:
    """A configuration of transformers."""
    return SimpleNamespace(**fields)


def test_an_asked_type_replaces_the_checkpoints() -> None:
    """Under the name that transformers before 4.56 has for it."""
    made = config(torch_dtype=torch.bfloat16)

    worker.set_dtype(torch, made, "float16")

    assert made.torch_dtype is torch.float16


def test_a_type_by_its_new_name_is_not_lost_on_an_old_transformers() -> None:
    """It leaves "dtype" a word it does not know, and torch_dtype None, which optimum-neuron takes for float32."""
    made = config(torch_dtype=None, dtype="bfloat16")

    worker.set_dtype(torch, made, None)

    assert (made.torch_dtype, made.dtype) == (torch.bfloat16, "bfloat16")


def test_an_asked_type_replaces_both_names() -> None:
    """As text, since the old transformers writes "dtype" to config.json as it is."""
    made = config(torch_dtype=None, dtype="bfloat16")

    worker.set_dtype(torch, made, "float16")

    assert (made.torch_dtype, made.dtype) == (torch.float16, "float16")


def test_the_checkpoints_own_type_is_left_alone() -> None:
    """Where nothing was asked."""
    made = config(torch_dtype=torch.float16)

    worker.set_dtype(torch, made, None)

    assert made.torch_dtype is torch.float16


# Check


def archive(path: Path, **members: bytes) -> Path:
    """A zip as TorchScript writes one."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("model/constants.pkl", b"()")
        for name, content in members.items():
            made.writestr(f"model/{name}", content)
    return path


NEFF = struct.pack("<QQ", 2, 1024) + bytes(1008) + b"payload"


def test_neffs_in_a_zip_are_counted(tmp_path: Path) -> None:
    """By the beginning of their header, wherever they lie."""
    path = archive(tmp_path / "model.pt", one=b"x" * 77 + NEFF, two=NEFF + NEFF, none=b"y" * 5000)

    assert worker.read_zip(str(path)) == 3


@given(before=st.integers(0, 40), chunk=st.integers(1, 40))
def test_a_neff_across_two_reads_is_counted_once(before: int, chunk: int, tmp_path_factory: Any) -> None:
    """Whatever lies before it and however little is read at once."""
    path = archive(tmp_path_factory.mktemp("zip") / "model.pt", one=b"z" * before + NEFF)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_CHUNK_BYTES", chunk)
        assert worker.read_zip(str(path)) == 1


def test_a_flipped_byte_in_a_zip_is_found(tmp_path: Path) -> None:
    """Against the checksum, though nothing is loaded."""
    path = archive(tmp_path / "model.pt", one=b"weights" * 100)
    content = bytearray(path.read_bytes())
    content[content.index(b"weights") + 50] ^= 1
    path.write_bytes(content)

    with pytest.raises(zipfile.BadZipFile):
        worker.read_zip(str(path))


def test_a_zip_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    """It has no constants.pkl."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("anything", b"")

    with pytest.raises(zipfile.BadZipFile, match="constants"):
        worker.read_zip(str(path))


def test_a_shard_says_its_tensors(tmp_path: Path) -> None:
    """By the vendor's own writer."""
    path = tmp_path / "tp0.safetensors"
    save_file({"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.ones(4)}, path)

    assert worker.shard_facts(str(path)) == {
        "bytes": path.stat().st_size,
        "tensors": {"a": ["F32", [4]], "b": ["BF16", [2, 3]]},
    }


@pytest.mark.parametrize("change", [-1, 1, -20])
def test_a_shard_of_another_length_is_refused(tmp_path: Path, change: int) -> None:
    """Its header must cover its bytes exactly."""
    path = tmp_path / "tp0.safetensors"
    content = standin.safetensors({"w": (2, 4)})
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))

    with pytest.raises(ValueError):
        worker.shard_facts(str(path))


JSONS = ("[]", "3", '"word"', "null", '{"w": 3}', '{"w": {}}', '{"w": {"data_offsets": "ab"}}', "{" * 60, "{}x")


@pytest.mark.parametrize("header", JSONS)
def test_a_header_that_says_something_else_is_a_problem(header: str, tmp_path: Path) -> None:
    """In the answer, and no traceback."""
    (tmp_path / "tp0.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())

    assert "problem" in shard_answer(tmp_path)


@given(content=st.binary(max_size=80))
def test_no_bytes_of_a_shard_end_the_worker(content: bytes, tmp_path_factory: Any) -> None:
    """They are a problem in its answer."""
    folder = tmp_path_factory.mktemp("shard")
    (folder / "tp0.safetensors").write_bytes(content)

    assert "problem" in shard_answer(folder)


def shard_answer(folder: Path) -> Any:
    """What the worker says of tp0.safetensors."""
    facts: Any = worker.check({"output": str(folder), "modules": [], "shards": ["tp0.safetensors"]})["shards"]
    return facts["tp0.safetensors"]


def test_files_are_listed_with_their_bytes(tmp_path: Path) -> None:
    """By their paths below the folder."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.neuron").write_bytes(b"123")
    (tmp_path / "a.json").write_bytes(b"{}")

    assert worker.listing(str(tmp_path)) == {"a.json": 2, "unet/model.neuron": 3}
