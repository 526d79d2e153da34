"""What a Neuron artifact has beside graphs: which files of the checkpoint go along, and which deviations remain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import models
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.packaging.manifest import Deviation, FileRecord
from llmcompile.pipeline.neuron.layouts import _module_configs, remaining

MODULES = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Normalize"}]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """An encoder as sentence-transformers saves one, with a file outside its folder."""
    folder = models.save("bert", tmp_path / "model", config={"num_hidden_layers": 1})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    (folder / "1_Pooling/deeper").mkdir()
    (folder / "1_Pooling/deeper/config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"secret": 1}')
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/config.json").write_text('{"secret": 2}')
    return folder


def configs(folder: Path, modules: object) -> list[str]:
    """The configurations that a modules.json leads to."""
    (folder / "modules.json").write_text(modules if isinstance(modules, str) else json.dumps(modules))
    return list(_module_configs(open_checkpoint(folder)))


def test_the_configuration_of_each_module_goes_along(bert: Path) -> None:
    """Of those that have one; the model's own is there by itself."""
    assert configs(bert, MODULES) == ["1_Pooling/config.json"]


@pytest.mark.parametrize("path", ["..", "../outside", "1_Pooling/..", "1_Pooling/deeper", ".", "/etc"])
def test_a_path_that_is_no_folder_of_the_model_is_passed_over(path: str, bert: Path) -> None:
    """Whatever modules.json says, no file from elsewhere comes into an artifact."""
    absolute = str(bert.parent / "outside")

    assert configs(bert, [{"path": path}, {"path": absolute}, *MODULES]) == ["1_Pooling/config.json"]


@pytest.mark.parametrize("text", ["{", "[3]", '[{"name": "0"}]', "7", '{"path": "1_Pooling"}', "null"])
def test_a_list_of_modules_that_is_none_is_passed_over(text: str, bert: Path) -> None:
    """It is no reason for a graph to fail."""
    assert configs(bert, text) == []


def test_a_module_whose_path_is_a_number_is_passed_over(bert: Path) -> None:
    """There is no such folder."""
    assert configs(bert, [{"path": 1}, {"path": None}, {"path": ["1_Pooling"]}]) == []


def test_a_model_of_transformers_has_no_modules(bert: Path) -> None:
    """A folder alone is not asked for."""
    assert list(_module_configs(open_checkpoint(bert))) == []


def test_deviations_remain_of_the_files_that_do() -> None:
    """A layout that drops a file drops what was said of it."""
    kept, gone = (Deviation(path=path, reason="r") for path in ("a", "b"))
    record = FileRecord(path="a", bytes=0, sha256="0" * 64)

    assert remaining([gone, kept], [record]) == (kept,)
