"""Rank files: what is read, put together and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmcompile.errors import MismatchError
from llmcompile.validation.tensorrt_llm.rank_files import (
    RankFile,
    finite_problems,
    joined_blocks,
    surplus_files,
    tensor_problems,
)

TABLE = torch.arange(20.0).view(5, 4)


def files(folder: Path, *parts: torch.Tensor) -> list[RankFile]:
    """One rank file for each part of a table `t`."""
    for rank, part in enumerate(parts):
        save_file({"t": part.contiguous()}, folder / f"rank{rank}.safetensors")
    return [RankFile(folder / f"rank{rank}.safetensors") for rank in range(len(parts))]


def test_rows_are_joined_without_padding(tmp_path: Path) -> None:
    """Three and three rows of which the last is padding."""
    padded = torch.cat([TABLE, torch.zeros(1, 4)])

    found = list(joined_blocks(files(tmp_path, padded[:3], padded[3:]), "t", rows=5, axis=0))

    assert torch.equal(torch.cat(found), TABLE)


def test_columns_are_joined(tmp_path: Path) -> None:
    """Two columns of each."""
    found = list(joined_blocks(files(tmp_path, TABLE[:, :2], TABLE[:, 2:]), "t", rows=5, axis=1))

    assert torch.equal(torch.cat(found), TABLE)


def test_whole_tables_must_be_the_same(tmp_path: Path) -> None:
    """One element that differs on rank 1 names its file."""
    other = TABLE.clone()
    other[2, 2] = 7

    assert torch.equal(torch.cat(list(joined_blocks(files(tmp_path, TABLE, TABLE), "t", rows=5, axis=None))), TABLE)
    with pytest.raises(MismatchError, match=r"rank1\.safetensors: t"):
        list(joined_blocks(files(tmp_path, TABLE, other), "t", rows=5, axis=None))


def test_single_rows_are_read_in_order(tmp_path: Path) -> None:
    """Rows 3 and 0."""
    found = list(files(tmp_path, TABLE)[0].single_rows("t", [3, 0]))

    assert torch.equal(torch.stack(found), TABLE[[3, 0]])


def test_every_wrong_tensor_is_named(tmp_path: Path) -> None:
    """A missing, a misshapen and an unknown one."""
    save_file({"a": TABLE, "c": TABLE.clone()}, tmp_path / "rank0.safetensors")
    required = {"a": (torch.float32, (5, 5)), "b": (torch.float16, (1,))}

    found = [str(problem) for problem in tensor_problems(RankFile(tmp_path / "rank0.safetensors"), required)]

    assert len(found) == 3
    assert "a: float32 [5, 4]; expected float32 [5, 5]" in found[0]
    assert "b: missing; expected float16 [1]" in found[1]
    assert "c: not in the network" in found[2]


def test_a_nan_is_named(tmp_path: Path) -> None:
    """Infinities too, but integers cannot be."""
    tensors = {"good": TABLE, "bad": torch.tensor([1.0, float("inf")]), "whole": torch.ones(2, dtype=torch.int8)}
    save_file(tensors, tmp_path / "rank0.safetensors")

    found = [str(problem) for problem in finite_problems(RankFile(tmp_path / "rank0.safetensors"))]

    assert len(found) == 1
    assert "bad: infinities or NaNs" in found[0]


def test_a_damaged_file_is_a_mismatch(tmp_path: Path) -> None:
    """Cut off in its header, and absent."""
    (tmp_path / "rank0.safetensors").write_bytes(b"\x10")

    with pytest.raises(MismatchError, match="unreadable"):
        RankFile(tmp_path / "rank0.safetensors")
    with pytest.raises(MismatchError, match="missing"):
        RankFile(tmp_path / "rank1.safetensors")


def test_surplus_ranks_are_named(tmp_path: Path) -> None:
    """Rank 2 of two; other files are nobody's business."""
    files(tmp_path, TABLE, TABLE, TABLE)
    (tmp_path / "rankings.safetensors").touch()

    assert [problem.subject for problem in surplus_files(tmp_path, 2)] == [str(tmp_path / "rank2.safetensors")]
