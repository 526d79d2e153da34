"""Joins what a checkpoint holds with what an artifact needs: a list of reads and writes, proved to cover both sides.

A plan is made from headers and config.json alone. It is what `--dry-run` prints and what `stream` carries out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmcompile.architectures.spec import Architecture, Dims, Tensor
from llmcompile.checkpoint.headers import Stored
from llmcompile.dtypes import BF16, FP32, DType, Shape
from llmcompile.errors import Problem
from llmcompile.transforms import Array

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
class Row:
    """One file of an artifact, or one per rank and layer: which roles it is made of, and how they lie in it.

    Attributes:
        file: Path in the artifact; `{layer}` and `{rank}` stand for numbers. Without `{rank}` all ranks share it.
        roles: What it holds, joined along the output axis.
        in_first: Whether matrices lie (in, out); (out, in) otherwise.
        split: "out" or "in": the axes whose first is divided among the ranks; "" for none.
        compute: Arithmetic instead of a rearrangement.
        dtype: Element type; None for the artifact's.
        when: A fact that must be true, as in `architectures.spec.Tensor.when`.
        layer: The one layer this row is for; None for every layer its roles have.
    """

    file: str
    roles: tuple[str, ...]
    in_first: bool = False
    split: str = ""
    compute: Compute | None = None
    dtype: DType | None = None
    when: str = ""
    layer: int | None = None


@dataclass(frozen=True)
class Axis:
    """A named axis of a tensor and its elements."""

    name: str
    size: int


@dataclass(frozen=True)
class Piece:
    """One role where it lies in a stored tensor.

    Attributes:
        stored: The tensor.
        axes: Its named axes, slowest first; their product times the row size is the tensor without `skip_rows`.
        first_dimension: How many of `axes` make up the stored first dimension.
        part: Index on the axis `part`; None when the tensor holds this role alone.
        skip_rows: Leading rows of the stored tensor that hold no data.
        out: Names of the output axes.
        inp: Names of the input axes.
        role: The role.
    """

    stored: Stored
    axes: tuple[Axis, ...]
    first_dimension: int
    part: int | None
    skip_rows: int
    out: tuple[str, ...]
    inp: tuple[str, ...]
    role: str

    def size(self, axis: str) -> int:
        """Elements of the axis called `axis`."""
        return next(item.size for item in self.axes if item.name == axis)

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
        files: One path per rank, or a single one that all ranks share.
        dtype: Element type of the files.
        artifact_dtype: Element type of the artifact.
        file_bytes: Bytes of each file.
        ranks: Ranks of the artifact.
    """

    row: Row
    pieces: tuple[Piece, ...]
    files: tuple[str, ...]
    dtype: DType
    artifact_dtype: DType
    file_bytes: int
    ranks: int

    @property
    def position(self) -> tuple[str, int]:
        """Where on disk the step's first byte lies: file name and offset."""
        return min((piece.stored.file, piece.stored.offset) for piece in self.pieces)

    @property
    def source_bytes(self) -> int:
        """Bytes of the stored tensors the step reads, each counted once."""
        return sum({piece.stored.name: piece.stored.size_bytes for piece in self.pieces}.values())

    def memory_bytes(self) -> int:
        """Bytes the step holds at once, at most: what it has read, and the blocks on their way out."""
        if self.row.compute is not None:
            elements = sum(math.prod(piece.shape(False)) for piece in self.pieces)
            if self.row.compute.by_rows:
                whole = sum(math.prod(piece.shape(False)) for piece in self.pieces[1:])
                return whole * 3 * FP32.size_bytes + 6 * BLOCK_BYTES
            return elements * 4 * FP32.size_bytes
        cast = max(_cast_bytes(piece.stored.dtype, self.dtype) for piece in self.pieces)
        blocks = 2 * BLOCK_BYTES + BLOCK_BYTES // self.dtype.size_bytes * cast
        return max(region_bytes(self, pieces) for pieces in segments(self)) + blocks


@dataclass(frozen=True)
class Plan:
    """The work to do and the proof that it is whole.

    Attributes:
        steps: In the order their sources lie on disk.
        problems: What stands in the way; nothing may be written unless this is empty.
        ignored: Names of stored tensors not read -> why not.
        tensors_read: Names of stored tensors read.
    """

    steps: tuple[Step, ...]
    problems: tuple[Problem, ...]
    ignored: Mapping[str, str]
    tensors_read: tuple[str, ...]

    @property
    def files(self) -> Mapping[str, int]:
        """Every file the steps write -> its bytes."""
        return {file: step.file_bytes for step in self.steps for file in step.files}

    @property
    def output_bytes(self) -> int:
        """Bytes of all files the steps write."""
        return sum(self.files.values())

    def memory_bytes(self, workers: int) -> int:
        """Bytes of tensor data held at once when the `workers` hungriest steps run side by side."""
        return sum(sorted((step.memory_bytes() for step in self.steps), reverse=True)[:workers])


def _split_axis(row: Row, piece: Piece) -> str:
    if row.split == "":
        return ""
    return piece.out[0] if row.split == "out" else piece.inp[0]


def segments(step: Step) -> tuple[tuple[Piece, ...], ...]:
    """Groups of pieces that fill a file one after the other.

    Pieces whose rows lie side by side (in_first, or vectors) are one group; stacked pieces are a group each.
    """
    side_by_side = step.row.in_first or all(len(piece.inp) == 0 for piece in step.pieces)
    return (step.pieces,) if side_by_side else tuple((piece,) for piece in step.pieces)


def leading_axis(piece: Piece) -> str:
    """The stored tensor's slowest axis that is not `part`: reads are ranges of it."""
    names = [axis.name for axis in piece.axes]
    return names[1] if names[0] == "part" else names[0]


def rank_at_a_time(step: Step, pieces: tuple[Piece, ...]) -> bool:
    """Whether each rank's share of every piece is one contiguous range of the stored tensor."""
    return step.row.split != "" and all(
        leading_axis(piece) == _split_axis(step.row, piece) and piece.stored.strides is None for piece in pieces
    )


def rows_at_a_time(step: Step, pieces: tuple[Piece, ...]) -> bool:
    """Whether the file's rows lie in the order of the stored tensors', so that a few can be handled at a time."""
    return all(leading_axis(piece) == file_axis(step, piece) and piece.stored.strides is None for piece in pieces)


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
    held = {
        piece.stored.name: piece.stored.size_bytes * (1 if piece.axes[0].name != "part" else 1 / piece.axes[0].size)
        for piece in pieces
    }
    total = math.ceil(sum(held.values()))
    return math.ceil(total / step.ranks) if rank_at_a_time(step, pieces) else total


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
) -> Plan:
    """Join an architecture's table with a backend's rows over the tensors of one checkpoint.

    Args:
        architecture: The family.
        dims: Its sizes and facts for this model.
        stored: The checkpoint's tensors by name.
        rows: What the artifact needs.
        ranks: Ranks each split axis is divided over.
        dtype: Element type of files whose row names none.
        unused: Prefixes of roles the backend does not store -> why not.

    Returns:
        A plan whose `problems` name every missing, unknown or misshapen tensor, every axis that does not divide.
    """
    located = architecture.locate(stored)
    needed = {role for row in rows if _applies(row.when, dims) for role in row.roles}
    ledger = _Ledger(architecture, dims, dict(stored), located, needed)
    pieces = ledger.pieces()
    problems = [*ledger.problems, *_indivisible([row for row in rows if _applies(row.when, dims)], pieces, ranks)]
    steps: list[Step] = []
    for row in rows:
        if _applies(row.when, dims):
            steps.extend(_steps(row, pieces, ranks, dtype))
    ignored = ledger.account_for_rest(unused)
    problems.extend(ledger.unknown)
    return Plan(
        steps=tuple(sorted(steps, key=lambda step: step.position)),
        problems=_folded(problems),
        ignored=ignored,
        tensors_read=tuple(sorted({piece.stored.name for step in steps for piece in step.pieces})),
    )


def _applies(when: str, dims: Dims) -> bool:
    return when == "" or bool(dims.facts[when.removeprefix("!")]) is not when.startswith("!")


PieceKey = tuple[str, int | None]


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
        self.claimed: dict[str, tuple[Tensor, int | None]] = {}
        self.tied_copies: dict[str, str] = {}
        self.problems: list[_Finding] = []
        self.unknown: list[_Finding] = []

    def pieces(self) -> dict[PieceKey, Piece]:
        """(role, layer) -> piece, for every role some row needs; problems are noted, not raised."""
        found: dict[PieceKey, Piece] = {}
        for tensor, layer in self.architecture.expected(self.dims):
            stored = self._stored(tensor, layer)
            if stored is None:
                continue
            for part, role in enumerate(tensor.roles):
                found[role, layer] = _piece(tensor, role, part, stored, self.dims)
        for tensor, layer in self.architecture.expected(self.dims):
            if tensor.tied_to != "" and self.dims.facts["tied"] is True and (tensor.tied_to, None) in found:
                found[tensor.roles[0], layer] = found[tensor.tied_to, None]
        return found

    def _stored(self, tensor: Tensor, layer: int | None) -> Stored | None:
        canonical = tensor.name if layer is None else tensor.name.replace("{layer}", str(layer))
        name = self.located.get(canonical)
        if tensor.tied_to != "" and self.dims.facts["tied"] is True:
            if name is not None:
                self.tied_copies[name] = f"tied: {tensor.tied_to} is used instead, as transformers does"
            return None
        if name is None:
            if not self.needed.isdisjoint(tensor.roles):
                self._note(tensor.name, layer, "absent from the checkpoint", self._shape_text(tensor), _MISSING)
            return None
        self.claimed[name] = (tensor, layer)
        stored = self.stored[name]
        if stored.shape != tensor.stored_shape(self.dims):
            where = f"shape {_text(stored.shape)} in {stored.file}"
            self._note(tensor.name, layer, where, self._shape_text(tensor), _SHAPE)
            return None
        if not stored.dtype.is_float:
            self._note(tensor.name, layer, f"dtype {stored.dtype.name}", "a float type", _QUANTIZED)
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
        self.unknown.append(_Finding(tensor.name, layer, "has no place in the artifact's layout", "", _NO_PLACE))
        return None


_MISSING = "check that all shards are there and that config.json belongs to them"
_SHAPE = "check the revision of config.json"
_QUANTIZED = "start from the unquantized checkpoint"
_UNKNOWN = "check config.json's architectures; if the tensor is known to be unused, please report it"
_NO_PLACE = "the vendor's runtime cannot use it; the model cannot be represented faithfully"


def _text(shape: Shape) -> str:
    return f"({', '.join(str(side) for side in shape)})"


def _piece(tensor: Tensor, role: str, part: int, stored: Stored, dims: Dims) -> Piece:
    groups = tensor.stored_axes()
    return Piece(
        stored=stored,
        axes=tuple(Axis(axis, tensor.size(axis, dims)) for axes in groups for axis in axes),
        first_dimension=len(groups[0]),
        part=part if len(tensor.roles) > 1 else None,
        skip_rows=tensor.skip_rows,
        out=tuple(axis for axis in tensor.out.split() if axis != "part"),
        inp=tuple(tensor.inp.split()),
        role=role,
    )


def _steps(row: Row, pieces: Mapping[PieceKey, Piece], ranks: int, dtype: DType) -> Iterable[Step]:
    per_layer = sorted({layer for role, layer in pieces if role in row.roles and layer is not None})
    layers: list[int | None] = [*per_layer] if len(per_layer) > 0 else [None]
    if row.layer is not None:
        layers = [row.layer]
    for layer in layers:
        parts = [pieces[role, layer] for role in row.roles if (role, layer) in pieces]
        if len(parts) == len(row.roles):
            step = _step(row, layer, tuple(parts), ranks, dtype)
            if step is not None:
                yield step


def _step(row: Row, layer: int | None, pieces: tuple[Piece, ...], ranks: int, dtype: DType) -> Step | None:
    if any(piece.size(axis) % ranks != 0 for piece in pieces if (axis := _split_axis(row, piece)) != ""):
        return None
    path = row.file if layer is None else row.file.replace("{layer}", str(layer))
    split = "{rank}" in path
    files = tuple(path.replace("{rank}", str(rank)) for rank in range(ranks)) if split else (path,)
    kind = dtype if row.dtype is None else row.dtype
    return Step(row, pieces, files, kind, dtype, _file_bytes(row, pieces, kind, ranks), ranks)


def _file_bytes(row: Row, pieces: tuple[Piece, ...], dtype: DType, ranks: int) -> int:
    if row.compute is None:
        elements = sum(math.prod(piece.shape(False)) for piece in pieces)
    else:
        sizes = {axis.name: axis.size for piece in pieces for axis in piece.axes}
        elements = math.prod(int(word) if word.isdigit() else sizes[word] for word in row.compute.elements.split())
    return elements * dtype.size_bytes // (ranks if row.split != "" else 1)


def _indivisible(rows: Sequence[Row], pieces: Mapping[PieceKey, Piece], ranks: int) -> list[_Finding]:
    """One finding per axis that does not divide, with the degrees that suit all split axes of the model."""
    sizes: dict[str, int] = {}
    for row in rows:
        for (role, _), piece in pieces.items():
            if row.split != "" and role in row.roles:
                sizes[_split_axis(row, piece)] = piece.size(_split_axis(row, piece))
    shared = math.gcd(*sizes.values())
    degrees = ", ".join(str(degree) for degree in range(1, shared + 1) if shared % degree == 0)
    return [
        _Finding(
            f"--tp {ranks}",
            None,
            f"{size} {axis} / {ranks} ranks = {size / ranks:.2f}",
            "a whole number on each rank",
            f"degrees that divide this model: {degrees}",
        )
        for axis, size in sizes.items()
        if size % ranks != 0
    ]


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
