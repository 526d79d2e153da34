"""config.json of an encoder-decoder: what both stacks must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import models
from llmcompile import pipeline
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.validation.tensorrt_llm import check_checkpoint, relative_tables, stack_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 on two ranks, as the exporter writes it."""
    root = tmp_path_factory.mktemp("t5")
    build = BuildOptions(model=str(models.save("t5", root / "hf")), output=root / "out", validate=False)
    report = pipeline.begin()
    job = pipeline.prepare(TrtllmOptions(build=build, tp=2, dtype="float32", stop_after="checkpoint"), report)

    class Silent(pipeline.View):
        pass

    pipeline.build(job, Silent(), report)
    return root / "out" / "checkpoint"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("decoder", {"num_key_value_heads": 2}),
        ("decoder", {"hidden_size": 48}),
        ("decoder", {"mapping": {"world_size": 1, "tp_size": 1}}),
        ("decoder", {"encoder_num_heads": 2}),
        ("encoder", {"dtype": "float16"}),
        ("encoder", {"max_distance": 2}),
    ],
)
def test_stacks_that_do_not_fit_are_refused(part: str, change: dict[str, Any], folder: Path) -> None:
    """Before any tensor is read; the field is named."""
    path = folder / part / "config.json"
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), **change}))

    problems = check_checkpoint(folder)
    path.write_bytes(before)

    assert problems != []
    assert check_checkpoint(folder) == []


def test_tables_are_put_together(folder: Path) -> None:
    """All tokens, no positions, and the heads of both ranks in each relative table."""
    assert sum(len(block) for block in stack_table(folder, "tokens", decoder=True)) == models.VOCAB
    assert list(stack_table(folder, "positions", decoder=False)) == []
    found = dict(relative_tables(folder, decoder=True))
    assert len(found) == 4  # three layers, and one at the top
    assert {tuple(table.shape) for table in found.values()} == {(4, 12)}
