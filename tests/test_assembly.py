"""Every file gets its bytes in order, in blocks that what makes them can take."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from llmcompile.architectures.spec import Architecture, Assumed, Dims, Tensor
from llmcompile.assembly import assemble, check_ignored
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import BF16, BY_NAME, FP16, FP32, INT8, DType, Shape
from llmcompile.errors import CheckpointError
from llmcompile.plan import Combine, Encoding, Row, Slots, Step, TensorSpec, make_plan

Array = NDArray[Any]
Weights = Mapping[str, Array]
RANK = "rank{rank}.safetensors"
SIZES = {"n": 12, "m": 10, "h": 4, "d": 3, "experts": 4}


@contextmanager
def blocks_of(size_bytes: int) -> Iterator[None]:
    """Blocks of that many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcompile.assembly.BLOCK_BYTES", size_bytes)
        patch.setattr("llmcompile.plan.BLOCK_BYTES", size_bytes)
        yield


def checkpoint(folder: Path, weights: Weights) -> Path:
    """A folder of one safetensors file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Tiny"]}))
    save_file(dict(weights), folder / "model.safetensors")
    return folder


def steps_of(
    source: Path, tensors: Sequence[Tensor], row: Row, *, ranks: int, dtype: DType = FP32, moe_ep: int = 1
) -> tuple[Step, ...]:
    """What a plan of one row has to do."""
    dims = Dims(SIZES, {})
    architecture = Architecture("tiny", (), (), (), tuple(tensors), lambda _: dims, {})
    plan = make_plan(
        architecture, dims, open_checkpoint(source).tensors, [row], ranks=ranks, dtype=dtype, unused={}, moe_ep=moe_ep
    )
    assert plan.problems == ()
    return plan.steps


def assembled(source: Path, step: Step) -> list[list[bytes]]:
    """Every block of each of the step's files, in order."""
    files: list[list[bytes]] = [[] for _ in step.files]
    with Reader(open_checkpoint(source).files) as reader:
        for file, block in assemble(step, reader, Counter()):
            files[file].append(bytes(block))
    return files


def joined(source: Path, step: Step) -> list[bytes]:
    """The contents the step gives each of its files."""
    return [b"".join(blocks) for blocks in assembled(source, step)]


class Recording:
    """An encoder that keeps what it is given, and appends two bytes at the end."""

    def __init__(self, log: list[tuple[Shape, int]]) -> None:
        self.log = log

    def encode(self, block: Array, part: int) -> Array:
        """The block as it is."""
        self.log.append((block.shape, part))
        return block

    def rest(self) -> Sequence[Array]:
        """Two tensors of a byte each."""
        return [np.array([7], np.uint8), np.array([9], np.uint8)]


def recording(rows: int, log: list[tuple[Shape, int]]) -> Encoding:
    """An encoding that takes `rows` at a time."""

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, dtype, shape), TensorSpec(f"{name}.end", INT8, (2,)))

    return Encoding("recording", rows, lambda dtype, asides: Recording(log), tensors)


MATRIX = Tensor(("a",), "a", "n", "m")
TWO = (MATRIX, Tensor(("b",), "b", "n", "m"))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.sampled_from([1, 2, 3, 4]),
    block_bytes=st.integers(1, 600),
    ranks=st.sampled_from([1, 2, 3]),
    split=st.sampled_from(["", "out", "in"]),
)
def test_an_encoder_gets_whole_units_of_rows_in_order(
    rows: int, block_bytes: int, ranks: int, split: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However small the blocks, each is a multiple of the encoding's rows; joined, they are the rank's matrix."""
    weights = {"a": np.arange(120, dtype=np.float32).reshape(12, 10)}
    ranks = ranks if split == "out" else 2 if split == "in" else ranks
    if split == "out" and (12 // ranks) % rows != 0:
        return
    log: list[tuple[Shape, int]] = []
    source = checkpoint(tmp_path_factory.mktemp("any") / "hf", weights)
    with blocks_of(block_bytes):
        row = Row(RANK, ("a",), tensor="a", split=split, encoding=recording(rows, log))
        (step,) = steps_of(source, [MATRIX], row, ranks=ranks)
        found = joined(source, step)

    axis = {"": None, "out": 0, "in": 1}[split]
    parts = [weights["a"]] * ranks if axis is None else np.split(weights["a"], ranks, axis)
    assert found == [part.tobytes() + bytes([7, 9]) for part in parts]
    assert all(shape[0] % rows == 0 for shape, _ in log)


def test_an_encoder_is_told_which_part_a_block_belongs_to(tmp_path: Path) -> None:
    """Rows of the first role are part 0, those of the second part 1."""
    log: list[tuple[Shape, int]] = []
    source = checkpoint(tmp_path / "hf", {name: np.ones((12, 10), np.float32) for name in "ab"})
    (step,) = steps_of(source, TWO, Row(RANK, ("a", "b"), tensor="x", encoding=recording(1, log)), ranks=1)

    assembled(source, step)

    assert log == [((12, 10), 0), ((12, 10), 1)]


def test_experts_are_parts_of_one_tensor(tmp_path: Path) -> None:
    """Two roles of each of two experts are the parts 0 to 3, stacked expert by expert."""
    tensors = [Tensor((role,), f"{role}.{{expert}}", "n", "m") for role in "ab"]
    weights = {
        f"{role}.{expert}": np.full((12, 10), 10 * expert + number, np.float32)
        for number, role in enumerate("ab")
        for expert in range(4)
    }
    log: list[tuple[Shape, int]] = []
    source = checkpoint(tmp_path / "hf", weights)
    row = Row(RANK, ("a", "b"), tensor="x", split="out", experts=True, encoding=recording(1, log))

    steps = steps_of(source, tensors, row, ranks=4, moe_ep=2)

    assert [step.tensors[0].shape for step in steps] == [(2, 12, 10), (2, 12, 10)]
    for group, step in enumerate(steps):
        expected = [
            np.split(weights[f"{role}.{expert}"], 2)[rank]
            for rank in (0, 1)
            for expert in (2 * group, 2 * group + 1)
            for role in "ab"
        ]
        assert joined(source, step) == [
            b"".join(part.tobytes() for part in expected[4 * rank : 4 * rank + 4]) + bytes([7, 9]) for rank in (0, 1)
        ]
    assert {part for _, part in log} == {0, 1, 2, 3}


def test_what_an_encoder_knows_at_the_end_follows_all_rows(tmp_path: Path) -> None:
    """The rest of a file's tensors comes once, after its last block."""
    source = checkpoint(tmp_path / "hf", {"a": np.ones((12, 10), np.float32)})
    with blocks_of(100):
        row = Row(RANK, ("a",), tensor="a", split="out", encoding=recording(1, []))
        (step,) = steps_of(source, [MATRIX], row, ranks=2)
        found = assembled(source, step)

    for blocks in found:
        assert blocks[-2:] == [bytes([7]), bytes([9])]
        assert sum(len(block) for block in blocks[:-2]) == 6 * 10 * 4


@pytest.mark.parametrize("block_bytes", [1, 64, 4 << 20])
@pytest.mark.parametrize("ranks", [5, 7, 12, 16])
def test_shares_that_were_rounded_up_end_in_zeros(ranks: int, block_bytes: int, tmp_path: Path) -> None:
    """All files have equal sizes; joined they are the matrix and zeros."""
    weights = {"a": np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)}
    source = checkpoint(tmp_path / "hf", weights)
    with blocks_of(block_bytes):
        row = Row(RANK, ("a",), tensor="a", split="out", uneven="pad")
        (step,) = steps_of(source, [MATRIX], row, ranks=ranks)
        found = joined(source, step)

    share = -(-12 // ranks) * 10 * 4
    assert [len(content) for content in found] == [share] * ranks
    assert b"".join(found) == weights["a"].tobytes() + bytes(share * ranks - weights["a"].nbytes)


def test_what_the_first_rank_has_is_zeros_on_the_others(tmp_path: Path) -> None:
    """Split "first": a bias that the network adds on every rank."""
    bias = np.arange(1, 13, dtype=np.float32)
    source = checkpoint(tmp_path / "hf", {"c": bias})
    (step,) = steps_of(source, [Tensor(("c",), "c", "n")], Row(RANK, ("c",), tensor="c", split="first"), ranks=3)

    assert joined(source, step) == [bias.tobytes(), bytes(48), bytes(48)]


@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("split", ["", "out", "in"])
def test_operands_are_gathered_whole_for_each_rank(split: str, in_first: bool, tmp_path: Path) -> None:
    """A tensor computed from others gets each operand's share in the row's orientation, parts joined by outputs."""
    numbers = np.random.default_rng(1)
    weights = {name: numbers.normal(size=(12, 10)).astype(np.float32) for name in "ab"}
    source = checkpoint(tmp_path / "hf", weights)
    given_: list[Array] = []

    def keep(operands: Sequence[Array]) -> Array:
        given_.append(operands[0].copy())
        return operands[0]

    row = Row(RANK, (), tensor="x", split=split, in_first=in_first, combine=Combine(keep, (("a", "b"),)))
    (step,) = steps_of(source, TWO, row, ranks=2)
    found = joined(source, step)

    axis = {"": None, "out": 0, "in": 1}[split]
    for rank in (0, 1):
        parts = [weights[name] if axis is None else np.split(weights[name], 2, axis)[rank] for name in "ab"]
        expected = np.concatenate(parts).T if in_first else np.concatenate(parts)
        np.testing.assert_array_equal(given_[rank], expected)
        assert found[rank] == np.ascontiguousarray(expected).tobytes()
        assert step.tensors[0].shape == expected.shape


def test_a_scalar_has_one_element_on_every_rank(tmp_path: Path) -> None:
    """The result of a combination may be one number, whatever its operands' shapes."""
    source = checkpoint(tmp_path / "hf", {"a": np.full((12, 10), 3, np.float32)})
    combine = Combine(lambda operands: operands[0].max().reshape(1), (("a",),), scalar=True)
    (step,) = steps_of(source, [MATRIX], Row(RANK, (), tensor="x", combine=combine), ranks=2)

    assert step.tensors[0].shape == (1,)
    assert joined(source, step) == [np.float32([3]).tobytes()] * 2


def test_ranks_that_share_a_head_have_it_in_common(tmp_path: Path) -> None:
    """4 heads on 12 ranks: rank r has the whole of head r // 3."""
    weights = {"a": np.arange(12 * 10, dtype=np.float32).reshape(12, 10)}
    source = checkpoint(tmp_path / "hf", weights)
    row = Row(RANK, ("a",), tensor="a", split="out", uneven="replicate")

    (step,) = steps_of(source, [Tensor(("a",), "a", "h d", "m")], row, ranks=12)

    whole = weights["a"].reshape(4, 3, 10)
    assert joined(source, step) == [whole[rank // 3].tobytes() for rank in range(12)]


@pytest.mark.parametrize("block_bytes", [1, 64, 4 << 20])
@pytest.mark.parametrize("ranks", [3, 4, 7, 12])
@pytest.mark.parametrize("in_first", [False, True])
def test_inputs_that_were_rounded_up_are_padded_on_every_row(
    ranks: int, block_bytes: int, in_first: bool, tmp_path: Path
) -> None:
    """Split "in": joined along the inputs the files are the matrix and columns of zeros."""
    weights = {"a": np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)}
    source = checkpoint(tmp_path / "hf", weights)
    with blocks_of(block_bytes):
        row = Row(RANK, ("a",), tensor="a", split="in", uneven="pad", in_first=in_first)
        (step,) = steps_of(source, [MATRIX], row, ranks=ranks)
        found = joined(source, step)

    shape = step.tensors[0].shape
    shares = [np.frombuffer(content, np.float32).reshape(shape) for content in found]
    whole = np.concatenate([share.T if in_first else share for share in shares], 1)
    np.testing.assert_array_equal(whole[:, :10], weights["a"])
    assert (whole[:, 10:] == 0).all()


def test_parts_of_a_padded_file_are_each_padded(tmp_path: Path) -> None:
    """Two roles of 12 rows on 5 ranks: each rank has 3 rows of the first, zeros among them, before 3 of the second."""
    weights = {
        name: np.arange(1, 121, dtype=np.float32).reshape(12, 10) + start for name, start in (("a", 0), ("b", 500))
    }
    source = checkpoint(tmp_path / "hf", weights)
    (step,) = steps_of(source, TWO, Row(RANK, ("a", "b"), tensor="x", split="out", uneven="pad"), ranks=5)

    padded = {name: np.concatenate([weights[name], np.zeros((3, 10), np.float32)]).reshape(5, 3, 10) for name in "ab"}
    assert joined(source, step) == [padded["a"][rank].tobytes() + padded["b"][rank].tobytes() for rank in range(5)]


SLOTS = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=3, max_size=3)
"""Of 4 heads, those in the three places of a rank."""


@pytest.mark.parametrize(
    ("out", "stored_in_first"), [("h d", False), ("h d", True), ("d h", False)], ids=["rows", "columns", "inner"]
)
@pytest.mark.parametrize("split", ["out", "in"])
@settings(deadline=None, max_examples=25)
@given(places=st.lists(SLOTS, min_size=2, max_size=2), block_bytes=st.sampled_from([1, 100, 4 << 20]))
def test_slots_say_which_indices_a_rank_holds(
    split: str, out: str, stored_in_first: bool, places: list[list[int | None]], block_bytes: int
) -> None:
    """Each place of a rank has the rows, or columns, of its head, or zeros; heads may be repeated and left out."""
    order = "h d" if out == "d h" else ""
    held: tuple[Slots, ...] = tuple(tuple(rank) for rank in places)
    numbers = np.random.default_rng(3).normal(size=(4, 3, 10)).astype(np.float32)
    stored = numbers.transpose(1, 0, 2) if order != "" else numbers
    matrix = stored.reshape(12, 10)
    if split == "out":
        tensor = Tensor(("a",), "a", out, "m", in_first=stored_in_first, order=order)
        weight = matrix.T if stored_in_first else matrix
    else:
        tensor = Tensor(("a",), "a", "m", "h d", in_first=not stored_in_first)
        weight = numbers.reshape(12, 10) if not stored_in_first else numbers.reshape(12, 10).T
    with tempfile.TemporaryDirectory() as folder, blocks_of(block_bytes):
        source = checkpoint(Path(folder) / "hf", {"a": np.ascontiguousarray(weight)})
        row = Row(RANK, ("a",), tensor="a", split=split, slots=lambda role, ranks: held)
        (step,) = steps_of(source, [tensor], row, ranks=2)
        found = joined(source, step)

    empty = np.zeros((3, 10), np.float32)
    for rank in (0, 1):
        rows = np.concatenate([empty if head is None else numbers[head] for head in held[rank]])
        expected = rows if split == "out" else rows.T
        assert step.tensors[0].shape == expected.shape
        assert found[rank] == np.ascontiguousarray(expected).tobytes()


@settings(deadline=None, max_examples=25)
@given(
    places=st.lists(st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=4, max_size=4), min_size=3, max_size=3)
)
def test_slots_count_through_a_group(places: list[list[int | None]]) -> None:
    """Of 2 key heads with 3 queries each, queries 0 to 5 go wherever they are told, out of a fused tensor too."""
    held: tuple[Slots, ...] = tuple(tuple(rank) for rank in places)
    sizes = {"kv": 2, "group": 3, "e": 2, "m": 10}
    fused = np.random.default_rng(4).normal(size=(2, 5, 2, 10)).astype(np.float32)
    dims = Dims(sizes, {})
    tensor = Tensor(("q", "k", "v"), "a", "kv group+1+1 e", "m")
    architecture = Architecture("tiny", (), (), (), (tensor,), lambda _: dims, {})

    def slots(role: str, ranks: int) -> tuple[Slots, ...]:
        return held if role == "q" else ((0,), (1,), (1,))

    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint(Path(folder) / "hf", {"a": fused.reshape(20, 10)})
        row = Row(RANK, ("q", "k", "v"), tensor="a", split="out", slots=slots)
        tensors = open_checkpoint(source).tensors
        plan = make_plan(architecture, dims, tensors, [row], ranks=3, dtype=FP32, unused={})
        found = joined(source, plan.steps[0])

    queries = fused[:, :3].reshape(6, 2, 10)
    empty = np.zeros((2, 10), np.float32)
    for rank, kv in enumerate((0, 1, 1)):
        parts = [*(empty if head is None else queries[head] for head in held[rank]), fused[kv, 3], fused[kv, 4]]
        assert found[rank] == np.concatenate(parts).tobytes()


def test_experts_may_lie_inputs_first(tmp_path: Path) -> None:
    """Of each expert the roles side by side, (experts, in, out); every rank has a part of each role."""
    tensors = [Tensor((role,), f"{role}.{{expert}}", "n", "m") for role in "ab"]
    numbers = np.random.default_rng(5)
    weights = {
        f"{role}.{expert}": numbers.normal(size=(12, 10)).astype(np.float32) for role in "ab" for expert in range(4)
    }
    source = checkpoint(tmp_path / "hf", weights)
    row = Row(RANK, ("a", "b"), tensor="x", split="out", experts=True, in_first=True)

    (step,) = steps_of(source, tensors, row, ranks=2)

    assert step.tensors[0].shape == (4, 10, 12)
    for rank, content in enumerate(joined(source, step)):
        experts = [
            np.concatenate([weights[f"{role}.{expert}"].reshape(2, 6, 10)[rank] for role in "ab"]).T
            for expert in range(4)
        ]
        assert content == np.stack(experts).tobytes()


def test_a_combination_may_ask_for_the_rank(tmp_path: Path) -> None:
    """Its number is the last operand."""
    source = checkpoint(tmp_path / "hf", {"c": np.ones(12, np.float32)})
    combine = Combine(lambda operands: operands[-1], (("c",),), scalar=True, rank=True)
    row = Row(RANK, (), tensor="x", combine=combine, dtype=BY_NAME["int32"])

    (step,) = steps_of(source, [Tensor(("c",), "c", "n")], row, ranks=3)

    assert joined(source, step) == [np.int32([rank]).tobytes() for rank in range(3)]


BITS = {FP32: np.dtype(np.float32), FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("kind", BITS, ids=lambda dtype: dtype.name)
def test_operands_are_float32_whatever_they_are_stored_as(kind: DType, tmp_path: Path) -> None:
    """A combination computes with the values of a bf16 tensor, not with its bits."""
    values = np.random.default_rng(2).normal(size=(12, 10)).astype(BITS[kind])
    source = checkpoint(tmp_path / "hf", {"a": values})
    given_: list[Array] = []

    def keep(operands: Sequence[Array]) -> Array:
        given_.append(operands[0].copy())
        return operands[0]

    (step,) = steps_of(source, [MATRIX], Row(RANK, (), tensor="x", combine=Combine(keep, (("a",),))), ranks=1)
    assembled(source, step)

    assert given_[0].dtype == np.float32
    np.testing.assert_array_equal(given_[0], values.astype(np.float32))


def test_integer_operands_stay_integers(tmp_path: Path) -> None:
    """Packed integers are handed over as they are stored."""
    values = np.random.default_rng(2).integers(-(2**31), 2**31, (12, 10), np.int32)
    source = checkpoint(tmp_path / "hf", {"a": values})
    combine = Combine(lambda operands: operands[0].view(np.float32), (("a",),))
    tensors = [Tensor(("a",), "a", "n", "m", kind="int32")]

    (step,) = steps_of(source, tensors, Row(RANK, (), tensor="x", combine=combine), ranks=1)

    assert joined(source, step) == [values.tobytes()]


@pytest.mark.parametrize("kind", BITS, ids=lambda dtype: dtype.name)
def test_asides_are_float32_whatever_they_are_stored_as(kind: DType, tmp_path: Path) -> None:
    """An encoder gets the values of its scales, not their bits."""
    given_: list[Array] = []

    def start(dtype: DType, asides: Sequence[Array]) -> Recording:
        given_.extend(asides)
        return Recording([])

    encoding = Encoding("keeping", 1, start, recording(1, []).tensors)
    source = checkpoint(tmp_path / "hf", {"a": np.ones((12, 10), np.float32), "s": np.array([1.5], BITS[kind])})
    row = Row(RANK, ("a",), tensor="x", encoding=encoding, asides=("s",))
    (step,) = steps_of(source, [MATRIX, Tensor(("s",), "s", "1")], row, ranks=1)

    assembled(source, step)

    assert given_[0].dtype == np.float32
    assert given_[0].tolist() == [1.5]


ASSUMING = Architecture(
    "tiny",
    (),
    (),
    ("model.",),
    (),
    lambda _: Dims({}, {}),
    {},
    (Assumed("*.bias", "zeros", "no way on"), Assumed("*.g_idx", "i // 4", "quantize it again", 4)),
)
ORDER = np.arange(40, dtype=np.int32) // 4


def looked_at(folder: Path, weights: Weights) -> None:
    """Hold a checkpoint's tensors against what is assumed of them."""
    opened = open_checkpoint(checkpoint(folder, weights))
    with Reader(opened.files) as reader:
        check_ignored(ASSUMING, opened.tensors, reader)


@pytest.mark.parametrize("block_bytes", [4, 64, 4 << 20])
@pytest.mark.parametrize(
    "weights",
    [
        {"model.a.bias": np.zeros(40, np.float16)},
        {"a.bias": np.full((3, 5), -0.0, np.float32)},
        {"a.bias": np.zeros(9, ml_dtypes.bfloat16)},
        {"a.bias": np.zeros(9, np.int32)},
        {"a.bias": np.zeros(0, np.float32)},
        {"model.a.g_idx": ORDER},
        {"a.g_idx": ORDER.astype(np.int64)},
        {"a.other": np.ones(9, np.float32)},
    ],
    ids=lambda weights: "-".join(f"{name}-{array.dtype}" for name, array in weights.items()),
)
def test_ignored_tensors_that_hold_what_is_assumed_pass(weights: Weights, block_bytes: int, tmp_path: Path) -> None:
    """Zeros of any type and shape, groups in order, and anything of a tensor that nothing is assumed of."""
    with blocks_of(block_bytes):
        looked_at(tmp_path / "hf", weights)


@pytest.mark.parametrize("block_bytes", [4, 64, 4 << 20])
@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("a.bias", np.eye(1, 40, 33, dtype=np.float32)[0], "1.0 at element 33; expected 0: zeros"),
        ("model.a.bias", np.full((2, 3), np.nan, np.float32), "nan at element 0; expected 0: zeros"),
        ("a.bias", np.eye(2, 3, 1, dtype=ml_dtypes.bfloat16), "1.0 at element 1; expected 0: zeros"),
        ("a.g_idx", ORDER[::-1].copy(), "9 at element 0; expected 0: i // 4"),
        ("a.g_idx", np.r_[ORDER[:39], np.int32(3)].astype(np.int32), "3 at element 39; expected 9: i // 4"),
        ("a.g_idx", ORDER.astype(np.float32), "fp32 of shape 40; expected a vector of whole numbers"),
        ("a.g_idx", ORDER.reshape(4, 10), "int32 of shape 4 x 10; expected a vector of whole numbers"),
    ],
)
def test_ignored_tensors_that_hold_something_else_are_named(
    name: str, values: Array, found: str, block_bytes: int, tmp_path: Path
) -> None:
    """The first element that is not as assumed, in whichever block it lies."""
    with blocks_of(block_bytes), pytest.raises(CheckpointError) as caught:
        looked_at(tmp_path / "hf", {name: values})

    assert str(caught.value) == f"{name}: {found}"


def test_every_ignored_tensor_that_holds_something_else_is_named(tmp_path: Path) -> None:
    """One problem for each, in the order of the checkpoint."""
    with pytest.raises(CheckpointError) as caught:
        looked_at(tmp_path / "hf", {f"{name}.bias": np.ones(3, np.float32) for name in "abc"})

    assert [problem.subject for problem in caught.value.problems] == ["a.bias", "b.bias", "c.bias"]


def test_an_encoders_complaint_names_the_tensor(tmp_path: Path) -> None:
    """A ValueError becomes an error about the checkpoint, with the tensor and the type it was cast to."""

    class Refusing(Recording):
        def encode(self, block: Array, part: int) -> Array:
            raise ValueError("a weight is infinite")

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, dtype, shape),)

    source = checkpoint(tmp_path / "hf", {"b": np.ones((12, 10), np.float32)})
    encoding = Encoding("refusing", 1, lambda dtype, asides: Refusing([]), tensors)
    (step,) = steps_of(source, TWO[1:], Row(RANK, ("b",), tensor="x", encoding=encoding), ranks=1, dtype=FP16)

    with pytest.raises(CheckpointError, match="b: a weight is infinite, as fp16; expected finite weights"):
        assembled(source, step)
