"""A split checkpoint has a file for every tensor of transformers' state dict, under names that stay in their folder."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import models
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import BF16, FP16, DType
from llmcompile.errors import CheckpointError, UnsupportedError
from llmcompile.exporters.neuron import split
from llmcompile.exporters.neuron.split import write_split
from llmcompile.writing import WorkDirectory

DECODERS = [name for name in models.FAMILIES if name not in ("bert", "bart", "t5", "t5_v11", "mt5")]


def written(
    checkpoint: Path, out: Path, *, dtype: DType | None = None, folder: str = ""
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """key_to_filename.json, and every tensor by its key."""
    with WorkDirectory(out, job={}, resume=False, force=False) as work:
        write_split(open_checkpoint(checkpoint), work, folder, dtype)
        work.publish()
    return loaded(out / folder)


def loaded(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What transformers-neuronx would load."""
    files = json.loads((folder / "pytorch_model.bin" / "key_to_filename.json").read_text())
    assert sorted(path.name for path in (folder / "pytorch_model.bin").iterdir()) == sorted(
        [*files.values(), "key_to_filename.json"]
    )
    return files, {
        key: torch.load(folder / "pytorch_model.bin" / file, weights_only=True) for key, file in files.items()
    }


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Equal keys, types, shapes and elements."""
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("family", DECODERS)
def test_keys_are_those_of_transformers_model(family: str, tmp_path: Path) -> None:
    """A tied head is among them, as in a state dict."""
    model = models.build(family)
    model.save_pretrained(tmp_path / "hf")

    _, found = written(tmp_path / "hf", tmp_path / "out")

    same(found, model.state_dict())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "bloom"])
def test_a_model_without_a_head_gets_the_names_of_one_with_it(family: str, tmp_path: Path) -> None:
    """Tensors saved without the prefix have it, and a tied head is made of the embedding."""
    config = {"tie_word_embeddings": True}
    model = models.build(family, base=True, config=config)
    model.save_pretrained(tmp_path / "hf")
    whole = getattr(transformers, models.FAMILIES[family].model_class).from_pretrained(tmp_path / "hf")

    _, found = written(tmp_path / "hf", tmp_path / "out")

    same(found, whole.state_dict())


@pytest.mark.parametrize("pickle", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_any_form_of_checkpoint_is_split(pickle: bool, sharded: bool, tmp_path: Path) -> None:
    """Safetensors and PyTorch's pickles, in one file or several."""
    models.save("llama", tmp_path / "hf", pickle=pickle, sharded=sharded, dtype="bfloat16")

    _, found = written(tmp_path / "hf", tmp_path / "out")

    same(found, models.build("llama", dtype="bfloat16").state_dict())


@pytest.mark.parametrize(("dtype", "name"), [(FP16, "float16"), (BF16, "bfloat16")])
def test_floats_are_cast(dtype: DType, name: str, tmp_path: Path) -> None:
    """As torch casts them."""
    model = models.build("gpt2")
    model.save_pretrained(tmp_path / "hf")

    _, found = written(tmp_path / "hf", tmp_path / "out", dtype=dtype)

    same(found, {key: tensor.to(getattr(torch, name)) for key, tensor in model.state_dict().items()})


def test_a_folder_is_a_prefix(tmp_path: Path) -> None:
    """The layout of SDK 2.16 has the split checkpoint in `checkpoint/`."""
    models.save("gpt2", tmp_path / "hf")

    files, _ = written(tmp_path / "hf", tmp_path / "out", folder="checkpoint/")

    assert files["transformer.wte.weight"].endswith(".transformer.wte.weight")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint"]


def test_a_model_without_a_table_keeps_its_names(tmp_path: Path) -> None:
    """Tensors of any type, as they are stored."""
    state = {
        "encoder.odd name": torch.arange(6).reshape(2, 3),
        "half": torch.ones(2, dtype=torch.float16),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "tiny": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    save_file(state, tmp_path / "hf" / "model.safetensors")

    files, found = written(tmp_path / "hf", tmp_path / "out", dtype=FP16)

    assert files["encoder.odd name"].split(".", 1)[1] == "encoder.odd_name"
    tiny = found.pop("tiny")
    assert torch.equal(tiny.float(), state.pop("tiny").float())
    same(found, {**state, "one": state["one"].half(), "none": state["none"].half()})


def test_what_the_model_recomputes_is_left_out(tmp_path: Path) -> None:
    """Rotary frequencies of older files are; tensors that nobody knows are not."""
    model = models.build("llama")
    model.save_pretrained(tmp_path / "hf")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.layers.0.new": torch.ones(2)}
    save_file({**model.state_dict(), **extra}, tmp_path / "hf" / "model.safetensors")

    _, found = written(tmp_path / "hf", tmp_path / "out")

    assert found.keys() - model.state_dict().keys() == {"model.layers.0.new"}


@given(keys=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6, unique=True))
def test_no_name_leaves_the_folder(keys: list[str]) -> None:
    """Whatever the keys, files are distinct names without a separator, and short; or they are refused."""
    files = {key: f"p{number}.{split._file_name(key)}" for number, key in enumerate(keys)}
    try:
        split._check_names(files)
    except CheckpointError:
        return
    assert len(set(files.values())) == len(keys)
    for file in files.values():
        assert not set(file) & set("/\\\0")
        assert file not in (".", "..")
        assert len(file.encode()) <= 255


@pytest.mark.parametrize("name", ["../../etc/passwd", "/absolute", "a\\b", "..\\..", "a\0b"])
def test_a_path_in_a_key_becomes_one_name(name: str, tmp_path: Path) -> None:
    """Separators are dropped."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    save_file({name: torch.ones(1)}, tmp_path / "hf" / "model.safetensors")

    files, _ = written(tmp_path / "hf", tmp_path / "out")

    assert set(files) == {name}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


@pytest.mark.parametrize("name", ["/", " . ", "..", "x" * 300])
def test_a_key_that_makes_no_name_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing is written."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    save_file({name: torch.ones(1)}, tmp_path / "hf" / "model.safetensors")

    with pytest.raises(CheckpointError, match="letters, digits"):
        written(tmp_path / "hf", tmp_path / "out")


def test_metas_files_are_refused(tmp_path: Path) -> None:
    """Their names and the order of their rows are not transformers'."""
    state = {"tok_embeddings.weight": torch.ones(8, 4), "output.weight": torch.ones(8, 4), "norm.weight": torch.ones(4)}
    (tmp_path / "params.json").write_text('{"dim": 4, "n_layers": 1, "n_heads": 1, "vocab_size": 8}')
    torch.save(state, tmp_path / "consolidated.00.pth")

    with pytest.raises(UnsupportedError, match="Meta"):
        split.split_keys(open_checkpoint(tmp_path))


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last is gone before the next is read."""
    models.save("llama", tmp_path / "hf")
    alive: list[weakref.ref[Any]] = []
    read = Reader.read

    def watched(self: Reader, stored: Any) -> Any:
        assert [number() for number in alive if number() is not None] == []
        values = read(self, stored)
        alive.append(weakref.ref(values if values.base is None else values.base))
        return values

    monkeypatch.setattr(Reader, "read", watched)

    written(tmp_path / "hf", tmp_path / "out")

    assert len(alive) == 21


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished files are not made again, and the result is that of a run in one go."""
    models.save("gpt2", tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    written(tmp_path / "hf", tmp_path / "whole")
    save, calls = torch.save, [0]

    def failing(tensor: Tensor, target: Any) -> None:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        save(tensor, target)

    monkeypatch.setattr(torch, "save", failing)
    with (
        pytest.raises(KeyboardInterrupt),
        WorkDirectory(tmp_path / "out", job={}, resume=False, force=False) as work,
    ):
        write_split(checkpoint, work, "", None)
    done = len(work.finished)
    calls[0] = 100
    with WorkDirectory(tmp_path / "out", job={}, resume=True, force=False) as work:
        write_split(checkpoint, work, "", None)
        work.publish()

    assert done == 5
    assert calls[0] - 100 == 2 * (len(loaded(tmp_path / "out")[0]) - done)
    for path in (tmp_path / "whole" / "pytorch_model.bin").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "pytorch_model.bin" / path.name).read_bytes()


def test_values_that_become_infinite_are_counted(tmp_path: Path) -> None:
    """In the record of their file, as elsewhere."""
    model = models.build("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[:3] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with WorkDirectory(tmp_path / "out", job={}, resume=False, force=False) as work:
        write_split(open_checkpoint(tmp_path / "hf"), work, "", FP16)
        counted = [dict(written.overflowed) for written in work.finished.values() if len(written.overflowed) > 0]
        work.discard()

    assert counted == [{"transformer.ln_f.weight": 3}]


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    """Equal checkpoints give equal bytes."""
    models.save("llama", tmp_path / "hf")
    for name in ("first", "second"):
        written(tmp_path / "hf", tmp_path / name)

    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "pytorch_model.bin").iterdir()}
        for name in ("first", "second")
    ]
    assert contents[0] == contents[1]
