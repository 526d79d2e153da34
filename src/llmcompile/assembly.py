"""Makes the bytes of an artifact's files: reads ranges of tensors, takes each rank's share, rearranges and casts it.

What is read at once is the smallest contiguous range that fills a block: some rows where the file lies in the order of
the stored tensor, one rank's share where that is contiguous, the whole tensor otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcompile.architectures.spec import Architecture, Assumed
from llmcompile.checkpoint.headers import Stored
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import FP32, DType, count
from llmcompile.errors import CheckpointError, Problem, collected
from llmcompile.plan import (
    BLOCK_BYTES,
    Combine,
    Compute,
    Encoder,
    Piece,
    Slots,
    Span,
    Step,
    leading_axis,
    placed,
    rank_at_a_time,
    rows_at_a_time,
    segments,
    share_shape,
    spans,
)
from llmcompile.transforms import Array, cast, copy_strided, from_float32, overflows, to_float32


@dataclass(frozen=True)
class _Region:
    """A part of a group's sources that is read at once.

    Attributes:
        ranks: Files made from it.
        ranges: Per piece, first and last (exclusive) index on its leading axis.
    """

    ranks: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]


def _regions(step: Step, group: tuple[Piece, ...]) -> Iterator[_Region]:
    """The reads that fill the group's part of the step's files, smallest that still are contiguous."""
    sizes = [piece.size(leading_axis(piece)) for piece in group]
    everyone = (0,) if step.row.split == "first" else tuple(range(len(step.files)))
    if rank_at_a_time(step, group):
        for rank in everyone:
            shares = [(share[0].start, share[0].stop) for share in _spans(step, group, rank)]
            for chunk in _chunks(step, group, *shares[0]) if rows_at_a_time(step, group) else [shares]:
                yield _Region((rank,), tuple(chunk))
    elif rows_at_a_time(step, group):
        for chunk in _chunks(step, group, 0, sizes[0]):
            yield _Region(everyone, tuple(chunk))
    else:
        yield _Region(everyone, tuple((0, size) for size in sizes))


def _spans(step: Step, group: tuple[Piece, ...], rank: int) -> list[tuple[Span, ...]]:
    """The rank's share of every piece; the plan has seen to it that there is one."""
    shares = [spans(step.row, piece, step.ranks, rank) for piece in group]
    return [share for share in shares if share is not None]


def _chunks(step: Step, group: tuple[Piece, ...], first: int, last: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges of about a block each; all pieces of the group share the leading axis."""
    length = _rows_per_block(step, group, group[0].size(leading_axis(group[0])))
    for start in range(first, last, length):
        yield [(start, min(start + length, last))] * len(group)


def _rows_per_block(step: Step, group: tuple[Piece, ...], rows: int) -> int:
    elements = sum(np.prod(piece.shape(False), dtype=int) for piece in group)
    length = max(1, int(BLOCK_BYTES * rows // max(1, elements * step.dtype.size_bytes)))
    return _encodable(step, length, int(elements // max(1, rows * group[0].shape(False)[1])))


def _encodable(step: Step, length: int, unit: int) -> int:
    """`length` indices of `unit` output rows each, rounded up to what the encoding takes at a time."""
    if step.row.encoding is None:
        return length
    multiple = step.row.encoding.rows // math.gcd(step.row.encoding.rows, max(1, unit))
    return -(-length // multiple) * multiple


def assemble(step: Step, reader: Reader, overflowed: Counter[str]) -> Iterator[tuple[int, memoryview]]:
    """The contents of a step's files, piece by piece.

    Args:
        step: What to make.
        reader: Where its tensors are read from.
        overflowed: Counts, per tensor, the finite elements that became infinite in a cast.

    Yields:
        Index of the file, and its next bytes: one-dimensional, valid until the next is asked for.

    Raises:
        CheckpointError: A weight file cannot be read.
    """
    if step.row.compute is not None:
        yield from _computed(step, reader, overflowed)
        return
    if step.row.combine is not None:
        yield from _combined(step, reader, overflowed)
        return
    encoders = _encoders(step, reader)
    left = [_plain_bytes(step)] * len(step.files)
    for part, group in enumerate(segments(step)):
        for region in _regions(step, group):
            views = _read(group, region.ranges, reader)
            for rank in region.ranks:
                shares = [
                    _share(step, piece, view, start, rank)
                    for piece, view, (start, _) in zip(group, views, region.ranges, strict=True)
                ]
                for block in _assembled(step, group, shares, overflowed):
                    left[rank] -= len(block)
                    yield rank, block if encoders == [] else _encoded(step, encoders[rank], block, part)
                    del block
            # Free the region before the next is read: a step may hold only one.
            del views, shares
    for rank, missing in enumerate(left):
        # What a share that was rounded up lacks, or a rank that is to have zeros.
        for start in range(0, missing, BLOCK_BYTES):
            yield rank, memoryview(bytes(min(BLOCK_BYTES, missing - start)))
    for rank, encoder in enumerate(encoders):
        for array in encoder.rest():
            yield rank, _bytes(array)


def _plain_bytes(step: Step) -> int:
    """Bytes of one file's share before it is encoded."""
    if len(step.tensors) == 0:
        return step.file_bytes
    shares = [share_shape(step.row, piece, step.ranks) for piece in step.pieces]
    return sum(out * inp for out, inp in shares) * step.dtype.size_bytes


def _encoders(step: Step, reader: Reader) -> list[Encoder]:
    """One encoder for each file."""
    encoding = step.row.encoding
    if encoding is None:
        return []
    asides = [_values(piece, reader.read(piece.stored), encoding.fault) for piece in step.asides]
    return [
        encoding.start(step.dtype, [*asides, *_columns(step, rank), *_experts(step)]) for rank in range(len(step.files))
    ]


def _experts(step: Step) -> list[Array]:
    """What an encoding knows of the experts that the files share."""
    assert step.row.encoding is not None
    experts, count = step.row.encoding.experts, len(step.pieces) // max(1, len(step.row.roles))
    return [] if experts is None else [experts[step.first_expert : step.first_expert + count]]


def _columns(step: Step, rank: int) -> list[Array]:
    """The rank's share of what an encoding knows of the inputs."""
    assert step.row.encoding is not None
    columns = step.row.encoding.columns
    if columns is None:
        return []
    sizes = [step.pieces[0].size(axis) for axis in step.pieces[0].inp]
    share = columns.reshape(sizes)
    for span in spans(step.row, step.pieces[0], step.ranks, rank) or ():
        if span.axis in step.pieces[0].inp:
            at = step.pieces[0].inp.index(span.axis)
            share = share[(slice(None),) * at + (slice(span.start, span.stop),)]
    return [np.ascontiguousarray(share).reshape(-1)]


def _values(piece: Piece, bits: Array, fault: Callable[[Array], str]) -> Array:
    """What is computed with: floats as float32, whatever they are stored as; integers as they are.

    Raises:
        CheckpointError: `fault` finds something wrong with them.
    """
    values = to_float32(bits, piece.stored.dtype) if piece.stored.dtype.is_float else bits
    wrong = fault(values)
    if wrong != "":
        raise CheckpointError(
            piece.stored.name,
            wrong,
            "finite numbers above 0",
            "get the checkpoint again, or start from the unquantized one",
        )
    return values


def _encoded(step: Step, encoder: Encoder, block: memoryview, part: int) -> memoryview:
    columns = share_shape(step.row, step.pieces[0], step.ranks)[1]
    try:
        return _bytes(encoder.encode(np.frombuffer(block, step.dtype.bits).reshape(-1, columns), part))
    except ValueError as error:
        raise CheckpointError(
            step.pieces[part].stored.name,
            f"{error}, as {step.dtype.name}",
            "finite weights",
            "choose a --dtype that holds them, such as bfloat16, or look for NaN in the checkpoint",
        ) from error


def _combined(step: Step, reader: Reader, overflowed: Counter[str]) -> Iterator[tuple[int, memoryview]]:
    """Small tensors computed from others: each operand is gathered whole for every rank."""
    combine = step.row.combine
    assert combine is not None
    for rank in range(len(step.files)):
        operands = [_gathered(step, combine, pieces, rank, reader) for pieces in step.operands]
        operands += [np.array([rank], np.int32)] if combine.rank else []
        bits = combine.function(operands).astype(step.dtype.bits, copy=False)
        if bits.shape == operands[0].shape and operands[0].dtype == np.float32:
            elements = overflows(operands[0], FP32, bits, step.dtype)
            if elements > 0:
                overflowed[step.operands[0][0].stored.name] += elements
        yield rank, _bytes(bits)


def _gathered(step: Step, combine: Combine, pieces: tuple[Piece, ...], rank: int, reader: Reader) -> Array:
    """One rank's share of an operand in the orientation of the row, joined along the output axis, as `_values`."""
    views = _read(pieces, [(0, piece.size(leading_axis(piece))) for piece in pieces], reader)
    shares = [
        _values(piece, _share(step, piece, view, 0, rank), combine.fault)
        for piece, view in zip(pieces, views, strict=True)
    ]
    if len(pieces[0].inp) == 0:
        return np.concatenate([share.reshape(-1) for share in shares])
    flat = []
    for piece, share in zip(pieces, shares, strict=True):
        first = len(piece.inp) if step.row.in_first else len(piece.out)
        rows = int(np.prod(share.shape[:first]))
        flat.append(share.reshape(rows, -1))
    return np.concatenate(flat, axis=1 if step.row.in_first else 0)


def _read(group: Sequence[Piece], ranges: Sequence[tuple[int, int]], reader: Reader) -> list[Array]:
    """Each piece's range as an array of canonical axes (out axes, then in axes); shared tensors are read once."""
    held: dict[tuple[str, int, int], Array] = {}
    views = []
    for piece, (start, end) in zip(group, ranges, strict=True):
        first, last = _stored_rows(piece, start, end)
        key = (piece.stored.name, first, last)
        if key not in held:
            held[key] = reader.read_rows(piece.stored, first, last)
        names, sizes = _stored_axes(piece, end - start)
        view = held[key].reshape(sizes)
        chosen = piece.chosen
        if chosen is not None and not piece.chosen_first:
            at = names.index(chosen.axis)
            taken = chosen.start if chosen.name == "" else slice(chosen.start, chosen.stop)
            view = view[(slice(None),) * at + (taken,)]
            names[at : at + 1] = [] if chosen.name == "" else [chosen.name]
        views.append(view.transpose([names.index(name) for name in (*piece.out, *piece.inp)]))
    return views


def _stored_axes(piece: Piece, length: int) -> tuple[list[str], list[int]]:
    """Names and sizes of the stored axes of what is read: `length` of the leading one, and the others whole."""
    names = [axis.name for axis in piece.axes]
    sizes = [axis.size for axis in piece.axes]
    if piece.chosen is not None and piece.chosen_first:
        names[:1] = [] if piece.chosen.name == "" else [piece.chosen.name]
        sizes = sizes[len(sizes) - len(names) :]
    sizes[0] = length
    return names, sizes


def _stored_rows(piece: Piece, start: int, end: int) -> tuple[int, int]:
    """Rows of the stored tensor that hold `start` to `end` of the leading axis."""
    rows = [axis.size for axis in piece.axes[: piece.first_dimension]]
    base = piece.skip_rows
    if piece.chosen is not None and piece.chosen_first:
        base += piece.chosen.start * math.prod(rows[1:])
        if piece.chosen.name == "":
            rows.pop(0)
    unit = math.prod(rows[1:])
    return base + start * unit, base + end * unit


def _share(step: Step, piece: Piece, view: Array, start: int, rank: int) -> Array:
    """The rank's share of a canonical view, with axes in the file's order; `start` is where the view begins."""
    names = [*piece.out, *piece.inp]
    for span in spans(step.row, piece, step.ranks, rank) or ():
        first, last = span.start, span.stop
        if span.axis == leading_axis(piece):
            # The view holds a range of this axis: all of the share, or some of its rows.
            first, last = max(0, first - start), min(last - start, view.shape[names.index(span.axis)])
        view = view[(slice(None),) * names.index(span.axis) + (slice(first, last),)]
    slots = placed(step.row, piece, step.ranks, rank)
    if slots is not None:
        view = _picked(step, piece, view, slots, rank)
    if step.row.in_first:
        view = view.transpose([names.index(name) for name in (*piece.inp, *piece.out)])
    return view


def _picked(step: Step, piece: Piece, view: Array, slots: Slots, rank: int) -> Array:
    """`slots` of a view that holds the rank's span alone, zeros where there is nothing, with as many axes."""
    names = [*piece.out, *piece.inp]
    (span,) = spans(step.row, piece, step.ranks, rank) or ()
    at = names.index(span.axis)
    grouped = step.row.slots is not None and names[at + 1 : at + 2] == ["group"]
    each = view.shape[at + 1] if grouped else 1
    shape = list(view.shape)
    shape[at : at + 1 + grouped] = [len(slots), 1][: 1 + grouped]
    picked = np.zeros(shape, view.dtype)
    for place, index, length in _runs(slots, 1 if grouped else len(slots)):
        first = index - span.start * each
        source = (slice(first // each, first // each + length), *([slice(first % each, first % each + 1)] * grouped))
        copy_strided(picked[(slice(None),) * at + (slice(place, place + length),)], view[(slice(None),) * at + source])
    return picked


def _runs(slots: Slots, longest: int) -> Iterator[tuple[int, int, int]]:
    """Place, index and length of each run of successive indices, none longer than `longest`."""
    place = 0
    while place < len(slots):
        index, length = slots[place], 1
        if index is not None:
            while length < longest and slots[place + length : place + length + 1] == (index + length,):
                length += 1
            yield place, index, length
        place += length


def _assembled(
    step: Step, group: tuple[Piece, ...], shares: Sequence[Array], overflowed: Counter[str]
) -> Iterator[memoryview]:
    """The bytes of one file's part: the shares side by side, some rows at a time."""
    row_axes = [len(piece.inp) if step.row.in_first else len(piece.out) for piece in group]
    if len(group[0].inp) == 0:
        shares, row_axes = [share[np.newaxis] for share in shares], [1] * len(group)
    rows = shares[0].shape[0]
    row_bytes = sum(share.size for share in shares) * step.dtype.size_bytes // max(1, rows)
    unit = math.prod(shares[0].shape[1 : row_axes[0]])
    length = _encodable(step, max(1, BLOCK_BYTES // max(1, row_bytes)), unit)
    for start in range(0, rows, length):
        parts = [share[start : start + length] for share in shares]
        yield _joined(step, group, parts, row_axes, overflowed)


def _joined(
    step: Step,
    group: tuple[Piece, ...],
    parts: Sequence[Array],
    row_axes: Sequence[int],
    overflowed: Counter[str],
) -> memoryview:
    if len(parts) == 1 and parts[0].flags.c_contiguous and group[0].stored.dtype == step.dtype:
        return _bytes(parts[0])
    rows = int(np.prod(parts[0].shape[: row_axes[0]]))
    columns = [part.size // max(1, rows) for part in parts]
    block = np.empty((rows, sum(columns)), step.dtype.bits)
    start = 0
    for piece, part, width in zip(group, parts, columns, strict=True):
        target = block[:, start : start + width].reshape(part.shape)
        assert np.shares_memory(target, block) or block.size == 0
        if piece.stored.dtype == step.dtype:
            copy_strided(target, part)
        else:
            gathered = np.empty(part.shape, part.dtype)
            copy_strided(gathered, part)
            target[...] = _cast(piece, gathered, step.dtype, overflowed)
        start += width
    return _bytes(block)


def _cast(piece: Piece, bits: Array, target: DType, overflowed: Counter[str]) -> Array:
    converted = cast(bits, piece.stored.dtype, target)
    elements = overflows(bits, piece.stored.dtype, converted, target)
    if elements > 0:
        overflowed[piece.stored.name] += elements
    return converted


def _bytes(block: Array) -> memoryview:
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8).data


def _computed(step: Step, reader: Reader, overflowed: Counter[str]) -> Iterator[tuple[int, memoryview]]:
    """Files made by arithmetic on whole tensors, or on some rows of the first with the whole of the others."""
    compute = step.row.compute
    assert compute is not None
    sizes = [piece.size(leading_axis(piece)) for piece in step.pieces]
    length = max(1, BLOCK_BYTES * sizes[0] // max(1, step.file_bytes)) if compute.by_rows else sizes[0]
    whole = _read(step.pieces[1:], [(0, size) for size in sizes[1:]], reader)
    for start in range(0, sizes[0], length):
        first = _read(step.pieces[:1], [(start, min(start + length, sizes[0]))], reader)
        yield from _results(step, compute, [*first, *whole], overflowed)
        del first


def _results(
    step: Step, compute: Compute, views: Sequence[Array], overflowed: Counter[str]
) -> Iterator[tuple[int, memoryview]]:
    dtype = step.artifact_dtype if compute.inputs is None else compute.inputs
    inputs = [_cast(piece, view, dtype, overflowed) for piece, view in zip(step.pieces, views, strict=True)]
    for index, result in enumerate(compute.function(inputs, dtype, step.ranks, compute.constants)):
        if result.dtype == np.float32 and step.dtype.is_float:
            bits = from_float32(result, step.dtype)
            elements = overflows(result, FP32, bits, step.dtype)
            if elements > 0:
                overflowed[step.pieces[0].stored.name] += elements
            result = bits
        yield index, _bytes(result.astype(step.dtype.bits, copy=False))


def check_ignored(architecture: Architecture, tensors: Mapping[str, Stored], reader: Reader) -> None:
    """See that tensors which are left out hold what the family's table takes them to hold.

    Args:
        architecture: Whose `assumed` says what that is.
        tensors: The stored tensors that the plan ignores, by name; those nothing is assumed of are not read.
        reader: Where they are read from, a block at a time.

    Raises:
        CheckpointError: One problem for each tensor that holds something else.
    """
    problems: list[Problem] = []
    for name, stored in tensors.items():
        assumed = architecture.assumption(name)
        if assumed is not None:
            problems += _contradictions(stored, assumed, reader)
    if len(problems) > 0:
        raise collected(CheckpointError, problems)


def _contradictions(stored: Stored, assumed: Assumed, reader: Reader) -> Iterator[Problem]:
    """At most one problem: the first element that is not as assumed."""
    if assumed.group > 0 and (stored.dtype.is_float or len(stored.shape) != 1):
        shape = " x ".join(str(size) for size in stored.shape)
        yield Problem(stored.name, f"{stored.dtype.name} of shape {shape}", "a vector of whole numbers", assumed.hint)
        return
    for start, bits in _flat(stored, reader):
        values = to_float32(bits, stored.dtype) if stored.dtype.is_float else bits
        wanted = np.zeros(1, np.int64) if assumed.group == 0 else np.arange(start, start + bits.size) // assumed.group
        wrong = values != wanted
        if wrong.any():
            first = int(wrong.argmax())
            expected = str(int(np.broadcast_to(wanted, wrong.shape)[first]))
            found = f"{values[first]} at element {start + first}"
            yield Problem(stored.name, found, f"{expected}: {assumed.content}", assumed.hint)
            return


def _flat(stored: Stored, reader: Reader) -> Iterator[tuple[int, Array]]:
    """The elements in order, a block at a time, and the number of the block's first."""
    if stored.strides is not None or len(stored.shards) > 0:
        yield 0, reader.read(stored).reshape(-1)
        return
    flat = replace(stored, shape=(count(stored.shape),))
    length = max(1, BLOCK_BYTES // stored.dtype.size_bytes)
    for start in range(0, flat.shape[0], length):
        yield start, reader.read_rows(flat, start, min(start + length, flat.shape[0]))
