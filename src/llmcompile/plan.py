"""Joins what a checkpoint holds with what an artifact needs: a list of reads and writes, proved to cover both sides.

A plan is made from headers and config.json alone. It is what `--dry-run` prints and what `stream` carries out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Protocol, TypeAlias

from llmcompile.architectures.spec import Architecture, Dims, Tensor, holds
from llmcompile.checkpoint.headers import Stored
from llmcompile.dtypes import BF16, FP32, DType, Shape, count
from llmcompile.errors import Problem
from llmcompile.transforms import Array

Slots: TypeAlias = tuple[int | None, ...]
"""What one rank holds of a split axis, in order: the numbers of its indices, None for zeros in the place of one."""

BLOCK_BYTES = 4 << 20
"""Bytes of output produced, hashed and written at a time; small enough to stay in a shared cache."""


@dataclass(frozen=True)
class Compute:
    """Arithmetic that makes a file out of whole tensors, for the few files that are not a rearrangement.

    Attributes:
        function: (inputs, inputs' type, ranks, constants) -> one array per file, of any shape. Each input has
            canonical axes (out axes, then in axes); floats among the results are cast to the file's type.
        elements: Elements of the unsplit file, as a product of axis names and numbers: "vocab hidden", "3".
        inputs: Type the tensors are cast to first; None for the artifact's.
        constants: Numbers that come from options, such as activation scales.
        by_rows: Whether the first input may be handed over some rows at a time, each giving as many rows of the file.
    """

    function: Callable[[Sequence[Array], DType, int, tuple[float, ...]], Sequence[Array]]
    elements: str
    inputs: DType | None = None
    constants: tuple[float, ...] = ()
    by_rows: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """A tensor inside a safetensors file of the artifact."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return count(self.shape) * self.dtype.size_bytes


class Encoder(Protocol):
    """Turns the rows of one rank's matrix, in order, into the bytes of a tensor; made anew for every matrix."""

    def encode(self, block: Array, part: int) -> Array:
        """The next bytes.

        Args:
            block: Shape (rows, in), bits of the row's type, C order; rows are a multiple of `Encoding.rows`.
            part: Which of the row's roles the block belongs to, counted from 0; of experts, counted through all.

        Returns:
            Bits of the main tensor, C order.
        """

    def rest(self) -> Sequence[Array]:
        """The other tensors, once all rows have been seen: bits, in the order of `Encoding.tensors`."""


@dataclass(frozen=True)
class Misfit:
    """Why a matrix of some shape cannot be packed.

    Attributes:
        reason: The size, and what it must be a multiple of.
        hint: What to type where no other --tp helps, or instead of it.
    """

    reason: str
    hint: str


@dataclass(frozen=True)
class Encoding:
    """A matrix stored otherwise than as its elements: packed integers beside scales, for instance.

    Attributes:
        name: For messages.
        rows: Output rows that must be handed over together, or a multiple of them.
        start: (element type of the blocks, the row's `asides`) -> encoder. Floats among the asides are handed over as
            float32, whatever they are stored as; integers as they are.
        tensors: (name, shape (..., out, in) of the plain tensor, its type) -> what is stored, the packed tensor first.
        check: Shape -> why it cannot be packed; None when it can.
        fault: Values of an aside -> what is wrong with them; "" for nothing.
        columns: float32, one for each input of the whole matrix, before it is divided among ranks; each rank's share is
            handed to `start` behind the asides.
        experts: One for each expert of the layer; those of a rank's experts are handed to `start`, the last.
    """

    name: str
    rows: int
    start: Callable[[DType, Sequence[Array]], Encoder]
    tensors: Callable[[str, Shape, DType], tuple[TensorSpec, ...]]
    check: Callable[[Shape], Misfit | None] = lambda shape: None
    fault: Callable[[Array], str] = lambda values: ""
    columns: Array | None = None
    experts: Array | None = None


@dataclass(frozen=True)
class Combine:
    """A small tensor computed from others, each gathered whole for its rank first.

    Attributes:
        function: Operands in the orientation of the row -> bits of the tensor in the row's type. Floats are handed
            over as float32, whatever they are stored as; integers as they are.
        operands: The roles of each operand, joined as a row's roles are.
        scalar: Whether the result has one element; the first operand's shape otherwise.
        axes: Of a scalar: 1 or 0.
        rank: Whether the number of the rank, of one element, is handed over as one more operand, the last.
        fault: Values of one tensor of an operand -> what is wrong with them; "" for nothing.
    """

    function: Callable[[Sequence[Array]], Array]
    operands: tuple[tuple[str, ...], ...]
    scalar: bool = False
    axes: int = 1
    rank: bool = False
    fault: Callable[[Array], str] = lambda values: ""


@dataclass(frozen=True)
class Row:
    """One file of an artifact or one tensor in a file, or one per rank and layer: its roles, and how they lie in it.

    Attributes:
        file: Path in the artifact; `{layer}` and `{rank}` stand for numbers. Without `{rank}` all ranks share it.
        roles: What it holds, joined along the output axis.
        in_first: Whether matrices lie (in, out); (out, in) otherwise.
        split: "out" or "in": the axes whose first is divided among the ranks; "first": the first rank has the values
            and the others zeros; "" for none.
        compute: Arithmetic instead of a rearrangement.
        dtype: Element type; None for the artifact's.
        when: Facts that must be true, as in `architectures.spec.Tensor.when`.
        layer: The one layer this row is for; None for every layer its roles have.
        expert: The one expert this row is for, of roles that are repeated for experts.
        tensor: Name in a safetensors file, `{layer}` counted from the first of the pipeline stage; "" when the file is
            the tensor's bytes alone.
        stage: The pipeline stage that has a tensor without layer: "first", "last", or "" for all.
        uneven: What happens when the split axis does not divide: "pad" rounds the share up and adds zeros,
            "replicate" gives each of few indices to several ranks; "" refuses.
        slots: (role, ranks) -> what each rank holds of the split axis, as long on every rank; None for equal shares.
            An axis `group` behind it counts with it: index g of group k is k x groups + g.
        experts: Whether the roles are repeated for every expert a rank holds; the tensor then begins with that axis,
            and the roles of each expert are joined apart from the others'.
        repeat: Name of a size: roles without layer are written once for each of so many layers.
        encoding: How the matrix is packed.
        asides: Roles of small tensors the encoding needs.
        combine: Arithmetic on small tensors.
        later: Shape -> why whoever reads the artifact cannot pack the matrix, which is stored plain; None when it can.
    """

    file: str
    roles: tuple[str, ...]
    in_first: bool = False
    split: str = ""
    compute: Compute | None = None
    dtype: DType | None = None
    when: str = ""
    layer: int | None = None
    expert: int | None = None
    tensor: str = ""
    stage: str = ""
    uneven: str = ""
    slots: Callable[[str, int], tuple[Slots, ...]] | None = None
    experts: bool = False
    repeat: str = ""
    encoding: Encoding | None = None
    asides: tuple[str, ...] = ()
    combine: Combine | None = None
    later: Callable[[Shape], Misfit | None] = lambda shape: None

    @property
    def needed(self) -> tuple[str, ...]:
        """Every role the row reads."""
        operands = () if self.combine is None else self.combine.operands
        return (*self.roles, *self.asides, *(role for operand in operands for role in operand))


@dataclass(frozen=True)
class Grid:
    """How an artifact is divided among ranks.

    Attributes:
        tp: Tensor parallel ranks.
        pp: Pipeline stages.
        moe_ep: Ranks the experts are divided among; tp / moe_ep ranks share each expert.
    """

    tp: int
    pp: int = 1
    moe_ep: int = 1

    @property
    def moe_tp(self) -> int:
        """Ranks each expert is split over."""
        return self.tp // self.moe_ep

    def stage(self, layer: int, layers: int) -> tuple[int, int]:
        """Pipeline stage of a layer and its number there; the first stages have one more where they do not divide."""
        size, extra = divmod(layers, self.pp)
        starts = [0, *accumulate(size + (stage < extra) for stage in range(self.pp))]
        stage = next(stage for stage in range(self.pp) if layer < starts[stage + 1])
        return stage, layer - starts[stage]


@dataclass(frozen=True)
class Axis:
    """A named axis of a tensor and its elements."""

    name: str
    size: int


@dataclass(frozen=True)
class Chosen:
    """The part of a fused tensor's axis that holds one role.

    Attributes:
        axis: The stored axis.
        name: What the part is called; "" when it is a single index that is no axis of the role.
        start: First index.
        stop: One past the last.
    """

    axis: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """One role where it lies in a stored tensor.

    Attributes:
        stored: The tensor.
        axes: Its named axes, slowest first; their product times the row size is the tensor without `skip_rows`.
        first_dimension: How many of `axes` make up the stored first dimension.
        chosen: The role's part of a fused axis; None when the tensor holds this role alone.
        skip_rows: Leading rows of the stored tensor that hold no data.
        out: Names of the output axes.
        inp: Names of the input axes.
        role: The role.
    """

    stored: Stored
    axes: tuple[Axis, ...]
    first_dimension: int
    chosen: Chosen | None
    skip_rows: int
    out: tuple[str, ...]
    inp: tuple[str, ...]
    role: str

    def size(self, axis: str) -> int:
        """Elements of the axis called `axis`."""
        if self.chosen is not None and self.chosen.name == axis:
            return self.chosen.stop - self.chosen.start
        return next(item.size for item in self.axes if item.name == axis)

    @property
    def chosen_first(self) -> bool:
        """Whether the fused axis is the slowest."""
        return self.chosen is not None and self.axes[0].name == self.chosen.axis

    def shape(self, in_first: bool) -> Shape:
        """(out elements, in elements), or the other way round; a vector is (1, out elements)."""
        out = math.prod(self.size(axis) for axis in self.out)
        inp = math.prod(self.size(axis) for axis in self.inp)
        return (inp, out) if in_first or len(self.inp) == 0 else (out, inp)


@dataclass(frozen=True)
class Step:
    """One unit of work: read `pieces`, write `files`.

    Attributes:
        row: The layout's row.
        pieces: Its roles, in order.
        files: One path per share, or a single one that all ranks have in common.
        dtype: Element type of the elements written, or handed to the encoding.
        artifact_dtype: Element type of the artifact.
        file_bytes: Bytes the step adds to each file.
        ranks: Shares the split axis is divided into.
        tensors: What the step adds to each file, in order; empty when the files hold nothing else.
        asides: Where the row's asides lie.
        operands: Where the operands of the row's `combine` lie.
        first_expert: The first of the layer's experts that the files share, for a row about experts.
    """

    row: Row
    pieces: tuple[Piece, ...]
    files: tuple[str, ...]
    dtype: DType
    artifact_dtype: DType
    file_bytes: int
    ranks: int
    tensors: tuple[TensorSpec, ...] = ()
    asides: tuple[Piece, ...] = ()
    operands: tuple[tuple[Piece, ...], ...] = ()
    first_expert: int = 0

    @property
    def position(self) -> tuple[str, int]:
        """Where on disk the step's first byte lies: file name and offset."""
        return min((piece.stored.file, piece.stored.offset) for piece in self.sources)

    @property
    def sources(self) -> tuple[Piece, ...]:
        """Everything the step reads."""
        return (*self.pieces, *self.asides, *(piece for operand in self.operands for piece in operand))

    @property
    def alignment(self) -> int:
        """0 when every tensor ends on a multiple of four bytes, 1 on one of two, 2 otherwise.

        Written in this order, steps of one tensor each lie on a multiple of their element size, whatever that is up to
        four bytes, as readers that hand out tensors without a copy want it.
        """
        sizes = [tensor.size_bytes for tensor in self.tensors]
        return 0 if all(size % 4 == 0 for size in sizes) else 1 if all(size % 2 == 0 for size in sizes) else 2

    @property
    def source_bytes(self) -> int:
        """Bytes of the stored tensors the step reads, each counted once."""
        return sum({piece.stored.name: piece.stored.size_bytes for piece in self.sources}.values())

    def memory_bytes(self) -> int:
        """Bytes the step holds at once, at most: what it has read, and the blocks on their way out."""
        if self.row.combine is not None:
            stored = {piece.stored.name: count(piece.stored.shape) for piece in self.sources}
            return _COMBINED_COPIES * FP32.size_bytes * sum(stored.values()) + len(self.files) * self.file_bytes
        if self.row.compute is not None:
            elements = sum(math.prod(piece.shape(False)) for piece in self.pieces)
            if self.row.compute.by_rows:
                whole = sum(math.prod(piece.shape(False)) for piece in self.pieces[1:])
                return whole * 3 * FP32.size_bytes + 6 * BLOCK_BYTES
            return elements * 4 * FP32.size_bytes
        cast = max(_cast_bytes(piece.stored.dtype, self.dtype) for piece in self.pieces)
        blocks = 2 * BLOCK_BYTES + BLOCK_BYTES // self.dtype.size_bytes * cast
        if self.row.encoding is not None:
            blocks += 4 * BLOCK_BYTES + len(self.files) * sum(tensor.size_bytes for tensor in self.tensors[1:])
        return max(region_bytes(self, pieces) for pieces in segments(self)) + blocks


@dataclass(frozen=True)
class Plan:
    """The work to do and the proof that it is whole.

    Attributes:
        steps: In the order their sources lie on disk.
        problems: What stands in the way; nothing may be written unless this is empty.
        ignored: Names of stored tensors not read -> why not.
        tensors_read: Names of stored tensors read.
        headers: Files that hold several tensors -> the bytes they begin with; the steps that name such a file add to
            it one after the other, in the order of `steps`.
        texts: Small text files that follow from which file holds what: name -> content.
        unpackable: What stands in the way of whoever shall pack plain matrices later, by `Row.later`.
    """

    steps: tuple[Step, ...]
    problems: tuple[Problem, ...]
    ignored: Mapping[str, str]
    tensors_read: tuple[str, ...]
    headers: Mapping[str, bytes]
    unpackable: tuple[Problem, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> Mapping[str, int]:
        """Every file the steps write -> its bytes."""
        sizes = {file: len(header) for file, header in self.headers.items()}
        for step in self.steps:
            for file in step.files:
                sizes[file] = sizes.get(file, 0) + step.file_bytes
        return sizes

    @property
    def output_bytes(self) -> int:
        """Bytes of all files the steps write."""
        return sum(self.files.values())

    def memory_bytes(self, workers: int) -> int:
        """Bytes of tensor data held at once when the `workers` hungriest steps run side by side."""
        return sum(sorted((step.memory_bytes() for step in self.steps), reverse=True)[:workers])


@dataclass(frozen=True)
class Span:
    """A range of one axis: from `start` to `stop`, exclusive."""

    axis: str
    start: int
    stop: int


def spans(row: Row, piece: Piece, ranks: int, rank: int) -> tuple[Span, ...] | None:
    """The rank's share of a piece, as ranges of its axes; () for all of it, None when the axis does not divide.

    The first axis of the row's side is divided. Where there are more ranks than that axis has indices, each index goes
    to several ranks, which divide the axis `group` behind it among them or, with "replicate", have it in common.
    Of what `placed` picks from, it is the range that holds every pick.
    """
    if row.split not in ("out", "in"):
        return ()
    side = _side(row, piece)
    size = piece.size(side[0])
    if row.slots is not None:
        unit = _unit(piece, side)
        held = [index // unit for index in row.slots(piece.role, ranks)[rank] if index is not None]
        return (Span(side[0], min(held), max(held) + 1) if len(held) > 0 else Span(side[0], 0, 0),)
    if row.uneven == "pad":
        length = -(-size // ranks)
        return (Span(side[0], min(size, rank * length), min(size, (rank + 1) * length)),)
    if size % ranks == 0:
        length = size // ranks
        return (Span(side[0], rank * length, (rank + 1) * length),)
    if ranks % size != 0:
        return None
    sharing = ranks // size
    index = Span(side[0], rank // sharing, rank // sharing + 1)
    if len(side) > 1 and side[1] == "group":
        if piece.size("group") % sharing != 0:
            return None
        length = piece.size("group") // sharing
        return (index, Span("group", rank % sharing * length, (rank % sharing + 1) * length))
    return (index,) if row.uneven == "replicate" else None


def _side(row: Row, piece: Piece) -> tuple[str, ...]:
    """The axes the first of which the row divides."""
    return piece.out if row.split == "out" else piece.inp


def _unit(piece: Piece, side: tuple[str, ...]) -> int:
    """How many of the row's slots an index of the split axis stands for."""
    return piece.size("group") if len(side) > 1 and side[1] == "group" else 1


def placed(row: Row, piece: Piece, ranks: int, rank: int) -> Slots | None:
    """What of the rank's span it holds, in order, where that is not the span as it is; None where it is.

    Numbers count from the start of the split axis, and with `Row.slots` through an axis `group` behind it.
    """
    if row.split not in ("out", "in"):
        return None
    side = _side(row, piece)
    unit = 1
    if row.slots is not None:
        unit = _unit(piece, side)
        slots = row.slots(piece.role, ranks)[rank]
    elif row.uneven == "pad" and (row.split == "in" or len(row.roles) > 1) and piece.size(side[0]) % ranks != 0:
        size = piece.size(side[0])
        length = -(-size // ranks)
        slots = tuple(index if index < size else None for index in range(rank * length, (rank + 1) * length))
    else:
        # Rows that end a file are padded there, by whoever writes it.
        return None
    first = slots[0]
    if first is None or first % unit != 0 or len(slots) % unit != 0:
        return slots
    return None if slots == tuple(range(first, first + len(slots))) else slots


def rearranged(row: Row, piece: Piece, ranks: int) -> bool:
    """Whether some rank's share is not a range of the split axis."""
    return any(placed(row, piece, ranks, rank) is not None for rank in range(ranks))


def share_shape(row: Row, piece: Piece, ranks: int) -> tuple[int, int]:
    """Output and input elements of the largest share, which every rank is padded to."""
    taken = {span.axis: span.stop - span.start for span in (spans(row, piece, ranks, 0) or ())}
    if row.slots is not None:
        side = _side(row, piece)
        taken[side[0]] = len(row.slots(piece.role, ranks)[0])
        taken |= {"group": 1} if _unit(piece, side) > 1 else {}
    return (
        math.prod(taken.get(axis, piece.size(axis)) for axis in piece.out),
        math.prod(taken.get(axis, piece.size(axis)) for axis in piece.inp),
    )


def segments(step: Step) -> tuple[tuple[Piece, ...], ...]:
    """Groups of pieces that fill a file one after the other.

    Pieces whose rows lie side by side (in_first, or vectors) are one group, of experts one for each; stacked pieces are
    a group each.
    """
    side_by_side = step.row.in_first or all(len(piece.inp) == 0 for piece in step.pieces)
    if not side_by_side:
        return tuple((piece,) for piece in step.pieces)
    each = len(step.row.roles) if step.row.experts else len(step.pieces)
    return tuple(step.pieces[start : start + each] for start in range(0, len(step.pieces), max(1, each)))


def leading_axis(piece: Piece) -> str:
    """The piece's slowest axis where it is stored: reads are ranges of it."""
    names = [axis.name for axis in piece.axes]
    if not piece.chosen_first:
        return names[0]
    assert piece.chosen is not None
    return names[1] if piece.chosen.name == "" else piece.chosen.name


def rank_at_a_time(step: Step, pieces: tuple[Piece, ...]) -> bool:
    """Whether each rank's share of every piece is one contiguous range of the stored tensor."""
    for piece in pieces:
        share = spans(step.row, piece, step.ranks, 0)
        if share is None or len(share) != 1 or share[0].axis != leading_axis(piece) or piece.stored.strides is not None:
            return False
    return True


def rows_at_a_time(step: Step, pieces: tuple[Piece, ...]) -> bool:
    """Whether the file's rows lie in the order of the stored tensors', so that a few can be handled at a time."""
    return all(
        leading_axis(piece) == file_axis(step, piece)
        and piece.stored.strides is None
        and not (_divides(step.row, piece) and rearranged(step.row, piece, step.ranks))
        for piece in pieces
    )


def _divides(row: Row, piece: Piece) -> bool:
    """Whether the row splits the axis that reads are ranges of."""
    return row.split in ("out", "in") and _side(row, piece)[0] == leading_axis(piece)


def file_axis(step: Step, piece: Piece) -> str:
    """The slowest axis of the piece in the file; "" for a vector, which is one row."""
    if len(piece.inp) == 0:
        return ""
    return piece.inp[0] if step.row.in_first else piece.out[0]


def region_bytes(step: Step, pieces: tuple[Piece, ...]) -> int:
    """Bytes of source read before the first output block of a group can be made."""
    if rows_at_a_time(step, pieces):
        widest = max(piece.stored.dtype.size_bytes for piece in pieces)
        return math.ceil(BLOCK_BYTES * widest / step.dtype.size_bytes)
    by_rank = rank_at_a_time(step, pieces)
    held: dict[tuple[str, int], float] = {}
    for piece in pieces:
        start = piece.chosen.start if piece.chosen is not None and piece.chosen_first else 0
        share = _share_read(step, piece) if by_rank else 1
        copies = 2 if rearranged(step.row, piece, step.ranks) else 1
        held[piece.stored.name, start] = piece.stored.size_bytes * _part_read(piece) * share * copies
    return math.ceil(sum(held.values()))


def _part_read(piece: Piece) -> float:
    """How much of the stored tensor is read for the piece: its part, where parts follow one another."""
    if not piece.chosen_first:
        return 1
    assert piece.chosen is not None
    return (piece.chosen.stop - piece.chosen.start) / piece.axes[0].size


def _share_read(step: Step, piece: Piece) -> float:
    """How much of the piece one rank reads, at most."""
    read = 0.0
    for rank in range(step.ranks if step.row.slots is not None else 1):
        (span,) = spans(step.row, piece, step.ranks, rank) or (Span(leading_axis(piece), 0, 1),)
        read = max(read, (span.stop - span.start) / piece.size(span.axis))
    return read


_COMBINED_COPIES = 6
"""Float32 arrays of the operands' size that gathering them and the arithmetic on them hold at once, at most."""


def _cast_bytes(source: DType, target: DType) -> int:
    """Bytes held for each element that is cast: gathered, as float32, while it is rounded, as result, and marked."""
    if source == target:
        return 0
    wide = 0 if source == FP32 else FP32.size_bytes
    rounding = FP32.size_bytes if target == BF16 else 0
    return source.size_bytes + wide + rounding + target.size_bytes + 1


def make_plan(
    architecture: Architecture,
    dims: Dims,
    stored: Mapping[str, Stored],
    rows: Sequence[Row],
    *,
    ranks: int,
    dtype: DType,
    unused: Mapping[str, str],
    pp: int = 1,
    moe_ep: int = 1,
) -> Plan:
    """Join an architecture's table with a backend's rows over the tensors of one checkpoint.

    Args:
        architecture: The family.
        dims: Its sizes and facts for this model.
        stored: The checkpoint's tensors by name.
        rows: What the artifact needs.
        ranks: Tensor parallel ranks each split axis is divided over.
        dtype: Element type of files whose row names none.
        unused: Prefixes of roles the backend does not store -> why not.
        pp: Pipeline stages, for rows that name tensors in a file.
        moe_ep: Ranks the experts are divided among.

    Returns:
        A plan whose `problems` name every missing, unknown or misshapen tensor, every axis that does not divide.
    """
    grid = Grid(ranks, pp, moe_ep)
    rows = [row for row in rows if holds(row.when, dims)]
    needed = {role for row in rows for role in row.needed}
    ledger = _Ledger(architecture, dims, dict(stored), architecture.locate(stored), needed)
    pieces = ledger.pieces()
    problems = [*ledger.problems, *_indivisible(rows, pieces, grid)]
    steps: list[Step] = []
    joiner = _Joiner(pieces, grid, dims, dtype)
    for row in rows:
        steps.extend(joiner.steps(row))
    ignored = ledger.account_for_rest(unused)
    problems.extend([*joiner.problems(later=False), *ledger.unknown])
    steps.sort(key=lambda step: (step.alignment, step.position))
    return Plan(
        steps=tuple(steps),
        problems=_folded(problems),
        ignored=ignored,
        tensors_read=tuple(sorted({piece.stored.name for step in steps for piece in step.sources})),
        headers=_headers(steps),
        unpackable=_folded(list(joiner.problems(later=True))),
    )


def sharded(plan: Plan, most_bytes: int) -> Plan:
    """Divide a plan whose steps all add to one file among files of at most `most_bytes` of tensors, in disk order.

    A step's tensors stay together; one that is larger has a file of its own. Names and the index are transformers'; a
    single file keeps its name and needs no index.

    Source: huggingface/huggingface_hub@main:src/huggingface_hub/serialization/_base.py (split_state_dict_into_shards).
    """
    number: dict[int, int] = {}
    last, held = 1, 0
    for step in sorted(plan.steps, key=lambda step: step.position):
        if held > 0 and held + step.file_bytes > most_bytes:
            last, held = last + 1, 0
        number[id(step)], held = last, held + step.file_bytes
    if last == 1:
        return plan
    steps = sorted(plan.steps, key=lambda step: (number[id(step)], step.alignment, step.position))
    moved = tuple(replace(step, files=(_shard(step.files[0], number[id(step)], last),)) for step in steps)
    index = {
        "metadata": {"total_size": sum(step.file_bytes for step in moved)},
        "weight_map": dict(sorted((tensor.name, step.files[0]) for step in moved for tensor in step.tensors)),
    }
    texts = {f"{plan.steps[0].files[0]}.index.json": json.dumps(index, indent=2) + "\n"}
    return replace(plan, steps=moved, headers=_headers(moved), texts=texts)


def _shard(file: str, number: int, last: int) -> str:
    """The name of one of several files: model-00001-of-00002.safetensors."""
    stem, _, ending = file.rpartition(".")
    return f"{stem}-{number:05d}-of-{last:05d}.{ending}"


def _headers(steps: Sequence[Step]) -> dict[str, bytes]:
    """The safetensors header of every file that holds tensors: a JSON object, its length before it, padded to eight.

    Source: huggingface/safetensors@main:README.md (format).
    """
    entries: dict[str, dict[str, object]] = {}
    ends: dict[str, int] = {}
    for step in steps:
        for file in step.files if len(step.tensors) > 0 else ():
            header = entries.setdefault(file, {"__metadata__": {"format": "pt"}})
            for tensor in step.tensors:
                assert tensor.name not in header, f"{file}: {tensor.name} twice"
                start = ends.get(file, 0)
                ends[file] = start + tensor.size_bytes
                header[tensor.name] = {
                    "dtype": tensor.dtype.code,
                    "shape": list(tensor.shape),
                    "data_offsets": [start, ends[file]],
                }
    return {file: framed(header) for file, header in entries.items()}


def framed(header: Mapping[str, object]) -> bytes:
    """The header of a safetensors file, with its length before it, padded to a multiple of eight bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


PieceKey = tuple[str, int | None, int | None]
"""Role, layer and expert."""


class _Ledger:
    """Which stored tensor plays which role, and which are left over."""

    def __init__(
        self,
        architecture: Architecture,
        dims: Dims,
        stored: Mapping[str, Stored],
        located: Mapping[str, str],
        needed: set[str],
    ) -> None:
        self.architecture = architecture
        self.dims = dims
        self.stored = stored
        self.located = located
        self.needed = needed
        self.claimed: dict[str, tuple[Tensor, int | None]] = {}  # name in the file -> entry and layer
        self.tied_copies: dict[str, str] = {}
        self.problems: list[_Finding] = []
        self.unknown: list[_Finding] = []

    def pieces(self) -> dict[PieceKey, Piece]:
        """(role, layer, expert) -> piece, for every role some row needs; problems are noted, not raised."""
        found: dict[PieceKey, Piece] = {}
        for tensor, layer, expert in self.architecture.expected(self.dims):
            stored = self._stored(tensor, layer, expert)
            if stored is None:
                continue
            for part, role in enumerate(tensor.roles):
                found[role, layer, expert] = _piece(tensor, role, part, stored, self.dims)
        for tensor, layer, expert in self.architecture.expected(self.dims):
            if tensor.tied_to != "" and self.dims.facts["tied"] is True and (tensor.tied_to, None, None) in found:
                found[tensor.roles[0], layer, expert] = found[tensor.tied_to, None, None]
        return found

    def _stored(self, tensor: Tensor, layer: int | None, expert: int | None) -> Stored | None:
        shown = tensor.name if expert is None else tensor.name.replace("{expert}", str(expert))
        name = self.located.get(tensor.name_at(layer, expert))
        if tensor.tied_to != "" and self.dims.facts["tied"] is True:
            if name is not None:
                self.tied_copies[name] = f"tied: {tensor.tied_to} is used instead, as transformers does"
            return None
        if name is None:
            if not self.needed.isdisjoint(tensor.roles):
                self._note(shown, layer, "absent from the checkpoint", self._shape_text(tensor), _MISSING)
            return None
        self.claimed[name] = (tensor, layer)
        stored = self.stored[name]
        expected = tensor.stored_shape(self.dims)
        if stored.shape != expected and not (stored.shape == () and expected == (1,)):
            where = f"shape {_text(stored.shape)} in {stored.file}"
            self._note(shown, layer, where, self._shape_text(tensor), _SHAPE)
            return None
        if tensor.kind != "" and stored.dtype.name != tensor.kind:
            self._note(shown, layer, f"dtype {stored.dtype.name}", tensor.kind, _KIND)
            return None
        if tensor.kind == "" and not stored.dtype.is_float:
            self._note(shown, layer, f"dtype {stored.dtype.name}", "a float type", _QUANTIZED)
            return None
        return stored

    def _shape_text(self, tensor: Tensor) -> str:
        return f"{_text(tensor.stored_shape(self.dims))} by config.json ({tensor.arithmetic(self.dims)})"

    def _note(self, name: str, layer: int | None, found: str, expected: str, hint: str) -> None:
        self.problems.append(_Finding(name, layer, found, expected, hint))

    def account_for_rest(self, unused: Mapping[str, str]) -> dict[str, str]:
        """Stored tensors nobody reads -> why not; those without a reason become `unknown`."""
        ignored: dict[str, str] = {}
        for name in self.stored:
            reason = self.tied_copies.get(name)
            if reason is None and name in self.claimed:
                reason = self._unneeded(*self.claimed[name], unused)
            elif reason is None:
                reason = self.architecture.why_ignored(name)
                if reason is None:
                    family = self.architecture.name
                    self.unknown.append(
                        _Finding(name, None, f"a tensor that no {family} checkpoint holds", "", _UNKNOWN)
                    )
            if reason is not None:
                ignored[name] = reason
        return ignored

    def _unneeded(self, tensor: Tensor, layer: int | None, unused: Mapping[str, str]) -> str | None:
        if not self.needed.isdisjoint(tensor.roles):
            return None
        for prefix, reason in unused.items():
            if tensor.roles[0].startswith(prefix):
                return reason
        name = tensor.name.replace("{expert}", "*")
        self.unknown.append(_Finding(name, layer, "has no place in the artifact's layout", "", _NO_PLACE))
        return None


_MISSING = "check that all shards are there and that config.json belongs to them"
_SHAPE = "check the revision of config.json"
_QUANTIZED = "start from the unquantized checkpoint"
_KIND = "check config.json's quantization_config against the tensors"
_UNKNOWN = "check config.json's architectures; if the tensor is known to be unused, please report it"
_NO_PLACE = "the vendor's runtime cannot use it; the model cannot be represented faithfully"


def _text(shape: Shape) -> str:
    return f"({', '.join(str(side) for side in shape)})"


def _piece(tensor: Tensor, role: str, part: int, stored: Stored, dims: Dims) -> Piece:
    groups = tensor.stored_axes()
    chosen = _chosen(tensor, part, dims)
    renamed = {} if chosen is None else {chosen.axis: chosen.name}
    order = tensor.out if tensor.order == "" else tensor.order
    return Piece(
        stored=stored,
        axes=tuple(Axis(axis, tensor.size(axis, dims)) for axes in groups for axis in axes),
        first_dimension=len(groups[0]),
        chosen=chosen,
        skip_rows=tensor.skip_rows,
        out=tuple(name for axis in order.split() if (name := renamed.get(axis, axis)) != ""),
        inp=tuple(tensor.inp.split()),
        role=role,
    )


def _chosen(tensor: Tensor, part: int, dims: Dims) -> Chosen | None:
    """Where the role number `part` lies on the fused axis of its tensor."""
    if len(tensor.roles) == 1:
        return None
    axis = next(axis for axis in tensor.out.split() if axis == "part" or "+" in axis)
    addends = ["1"] * len(tensor.roles) if axis == "part" else axis.split("+")
    ends = [0, *accumulate(tensor.size(addend, dims) for addend in addends)]
    name = "" if addends[part] == "1" else addends[part]
    return Chosen(axis, name, ends[part], ends[part + 1])


class _Joiner:
    """Makes the steps of each row from the pieces of a checkpoint."""

    def __init__(self, pieces: Mapping[PieceKey, Piece], grid: Grid, dims: Dims, dtype: DType) -> None:
        self.pieces = pieces
        self.grid = grid
        self.dims = dims
        self.dtype = dtype
        self._misfits: list[tuple[Row, int | None, str, Misfit]] = []
        self._split: dict[str, tuple[Row, tuple[Piece, ...]]] = {}
        self._layers: dict[str, set[int]] = {}
        for role, layer, _ in pieces:
            if layer is not None:
                self._layers.setdefault(role, set()).add(layer)

    def steps(self, row: Row) -> Iterator[Step]:
        """Every step of a row whose sources are all there."""
        for layer in self._layers_of(row):
            for ep in range(self.grid.moe_ep if row.experts else 1):
                pieces = self._pieces(row, row.roles, layer, ep)
                asides = self._pieces(row, row.asides, layer, ep)
                operands = () if row.combine is None else row.combine.operands
                combined = [self._pieces(row, operand, layer, ep) for operand in operands]
                if pieces is None or asides is None or None in combined:
                    continue
                step = self._step(row, layer, ep, pieces, asides, tuple(found for found in combined if found))
                if step is not None:
                    yield step

    def _layers_of(self, row: Row) -> Sequence[int | None]:
        if row.layer is not None:
            return [row.layer]
        if row.repeat != "":
            return range(self.dims.sizes[row.repeat])
        layers = sorted({layer for role in row.needed for layer in self._layers.get(role, ())})
        return layers if len(layers) > 0 else [None]

    def _pieces(self, row: Row, roles: Sequence[str], layer: int | None, ep: int) -> tuple[Piece, ...] | None:
        """The pieces of `roles`, for every expert of the group `ep` where the row is about experts."""
        experts: Sequence[int | None] = [row.expert]
        if row.experts:
            size = self.dims.sizes["experts"] // self.grid.moe_ep
            experts = range(ep * size, (ep + 1) * size)
        at = None if row.repeat != "" else layer
        found = [self.pieces.get((role, at, expert)) for expert in experts for role in roles]
        whole = tuple(piece for piece in found if piece is not None)
        return whole if len(whole) == len(found) else None

    def _step(
        self,
        row: Row,
        layer: int | None,
        ep: int,
        pieces: tuple[Piece, ...],
        asides: tuple[Piece, ...],
        operands: tuple[tuple[Piece, ...], ...],
    ) -> Step | None:
        ranks = self.grid.moe_tp if row.experts else self.grid.tp
        if row.split in ("out", "in") and len(pieces) > 0:
            self._split.setdefault(row.tensor, (row, pieces))
        sources = (*pieces, *(piece for operand in operands for piece in operand))
        if any(spans(row, piece, ranks, 0) is None for piece in sources):
            return None
        dtype = self.dtype if row.dtype is None else row.dtype
        stage, local = self._place(row, layer)
        files = self._files(row, layer, stage, ep, ranks)
        if row.tensor == "":
            size = _file_bytes(row, pieces, dtype, ranks)
            return Step(row, pieces, files, dtype, self.dtype, size, ranks)
        name = row.tensor if local is None else row.tensor.replace("{layer}", str(local))
        shape = _tensor_shape(row, pieces if row.combine is None else operands[0], ranks)
        if row.combine is not None and row.combine.scalar:
            shape = (1,) * row.combine.axes
        tensors: tuple[TensorSpec, ...] = (TensorSpec(name, dtype, shape),)
        misfit = _misfit(row, shape)
        if misfit is not None:
            self._misfits.append((row, layer, f"shape {_text(shape)} on each rank", misfit))
        if row.encoding is not None and row.encoding.check(shape) is not None:
            return None
        if row.encoding is not None:
            tensors = row.encoding.tensors(name, shape, dtype)
        size = sum(tensor.size_bytes for tensor in tensors)
        first = ep * len(pieces) // len(row.roles) if row.experts else 0
        return Step(row, pieces, files, dtype, self.dtype, size, ranks, tensors, asides, operands, first)

    def problems(self, *, later: bool) -> Iterator[_Finding]:
        """Matrices that cannot be packed, here or `later`, with the degrees that suit all, and what else would help."""
        degrees = self._degrees() if len(self._misfits) > 0 else ""
        for row, layer, shape, misfit in [found for found in self._misfits if (found[0].encoding is None) is later]:
            suit = f"choose a --tp that suits every matrix ({degrees}; now {self.grid.tp}), or {misfit.hint}"
            hint = suit if degrees != "" else f"{misfit.hint}; no --tp suits every matrix"
            yield _Finding(row.tensor, layer, shape, misfit.reason, hint)

    def _degrees(self) -> str:
        """Every tensor parallel degree at which all matrices can be divided and packed."""
        split = self._split.values()
        most = max((piece.size(axis) for _, pieces in split for piece in pieces for axis in (*piece.out, *piece.inp)))
        shared = self.grid.moe_ep
        return ", ".join(
            str(tp)
            for tp in range(shared, min(most, _MOST_RANKS) + 1, shared)
            if all(_fits(row, pieces, tp // shared if row.experts else tp) for row, pieces in split)
        )

    def _place(self, row: Row, layer: int | None) -> tuple[int | None, int | None]:
        """Pipeline stage and number of the layer there; no stage for what all stages have."""
        if layer is not None and row.tensor != "" and self.grid.pp > 1:
            return self.grid.stage(layer, self.dims.sizes["layers"])
        last = self.grid.pp - 1
        return {"first": 0, "last": last, "": None if self.grid.pp > 1 else 0}[row.stage], layer

    def _files(self, row: Row, layer: int | None, stage: int | None, ep: int, ranks: int) -> tuple[str, ...]:
        path = row.file if layer is None else row.file.replace("{layer}", str(layer))
        if "{rank}" not in path:
            return (path,)
        if row.tensor == "":
            return tuple(path.replace("{rank}", str(rank)) for rank in range(ranks))
        tp = range(self.grid.tp)
        # Ranks that share an expert are moe_ep apart. Source: NVIDIA/TensorRT-LLM@v1.0.0:tensorrt_llm/mapping.py.
        members = [rank for rank in tp if rank % self.grid.moe_ep == ep] if row.experts else list(tp)
        assert stage is not None, f"{row.tensor}: a tensor without layer needs a stage"
        return tuple(path.replace("{rank}", str(stage * self.grid.tp + rank)) for rank in members)


def _misfit(row: Row, shape: Shape) -> Misfit | None:
    """Why a matrix of the row cannot be packed, here or later."""
    found = None if row.encoding is None else row.encoding.check(shape)
    return row.later(shape) if found is None else found


def _fits(row: Row, pieces: tuple[Piece, ...], ranks: int) -> bool:
    """Whether a matrix can be divided among so many ranks and packed there."""
    whole = all(spans(row, piece, ranks, 0) is not None for piece in pieces)
    return whole and _misfit(row, _tensor_shape(row, pieces, ranks)) is None


def _tensor_shape(row: Row, pieces: Sequence[Piece], ranks: int) -> Shape:
    """Shape of one rank's tensor: pieces stacked along the output axis, those of each expert apart."""
    shares = [share_shape(row, piece, ranks) for piece in pieces]
    if len(pieces[0].inp) == 0:
        return (sum(out for out, _ in shares),)
    if row.experts:
        each = len(row.roles)
        rows, columns = sum(out for out, _ in shares[:each]), shares[0][1]
        return (len(pieces) // each, *((columns, rows) if row.in_first else (rows, columns)))
    rows, columns = sum(out for out, _ in shares), shares[0][1]
    return (columns, rows) if row.in_first else (rows, columns)


def _file_bytes(row: Row, pieces: tuple[Piece, ...], dtype: DType, ranks: int) -> int:
    if row.compute is None:
        elements = sum(math.prod(piece.shape(False)) for piece in pieces)
    else:
        sizes = {axis.name: axis.size for piece in pieces for axis in piece.axes}
        elements = math.prod(int(word) if word.isdigit() else sizes[word] for word in row.compute.elements.split())
    return elements * dtype.size_bytes // (ranks if row.split != "" else 1)


def _indivisible(rows: Sequence[Row], pieces: Mapping[PieceKey, Piece], grid: Grid) -> list[_Finding]:
    """One finding per axis that does not divide, with the degrees that suit all split axes of the model."""
    by_role: dict[str, Piece] = {}
    for (role, _, _), piece in pieces.items():
        by_role.setdefault(role, piece)
    split = [
        (row, by_role[role]) for row in rows if row.split in ("out", "in") for role in row.needed if role in by_role
    ]
    findings: dict[str, _Finding] = {}
    for row, piece in split:
        ranks = grid.moe_tp if row.experts else grid.tp
        if spans(row, piece, ranks, 0) is None:
            axis = (piece.out if row.split == "out" else piece.inp)[0]
            size = piece.size(axis)
            flag = f"--moe-tp {ranks}" if row.experts and grid.moe_ep > 1 else f"--tp {grid.tp}"
            findings[axis] = _Finding(
                flag,
                None,
                f"{size} {axis} / {ranks} ranks = {size / ranks:.2f}",
                "a whole number on each rank",
                f"degrees that divide this model: {_degrees(split, grid)}",
            )
    return list(findings.values())


def _degrees(split: Sequence[tuple[Row, Piece]], grid: Grid) -> str:
    """Every tensor parallel degree that divides all split axes, experts being shared as they are now."""
    unique = {
        (row.split, row.uneven, row.slots, row.experts, piece.out, piece.inp, piece.axes): (row, piece)
        for row, piece in split
    }
    most = max(piece.size(axis) for _, piece in split for axis in (*piece.out, *piece.inp))
    return ", ".join(
        str(tp)
        for tp in range(1, min(most, _MOST_RANKS) + 1)
        if tp % grid.moe_ep == 0
        and all(
            spans(row, piece, tp // grid.moe_ep if row.experts else tp, 0) is not None for row, piece in unique.values()
        )
    )


_MOST_RANKS = 512


@dataclass(frozen=True)
class _Finding:
    """A problem before equal ones of several layers are folded into one."""

    name: str
    layer: int | None
    found: str
    expected: str
    hint: str


def _folded(findings: Sequence[_Finding]) -> tuple[Problem, ...]:
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for finding in findings:
        key = (finding.name, finding.found, finding.expected, finding.hint)
        groups.setdefault(key, []).extend([] if finding.layer is None else [finding.layer])
    return tuple(
        Problem(name.replace("{layer}", _ranges(layers)) if layers else name, found, expected, hint)
        for (name, found, expected, hint), layers in groups.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    ordered = sorted(set(numbers))
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    runs = [ordered[start:end] for start, end in pairwise(cuts)]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
