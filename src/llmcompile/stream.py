"""Carries out a plan: reads, rearranges, casts, hashes and writes, a bounded number of bytes at a time.

Worker threads take steps in disk order; NumPy, hashlib and the system calls release the interpreter lock, so reading,
rearranging and writing overlap. One more thread reads every weight file front to back to hash it, which is also the
read-ahead for the workers.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from llmcompile.checkpoint.folder import WeightFile
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import FP32, DType
from llmcompile.plan import (
    BLOCK_BYTES,
    Compute,
    Piece,
    Plan,
    Step,
    leading_axis,
    rank_at_a_time,
    rows_at_a_time,
    segments,
)
from llmcompile.transforms import Array, cast, copy_strided, from_float32, overflows
from llmcompile.writing import HashedFile, WorkDirectory, Written

_HASH_BYTES = 1 << 20
_LEAST_STAGING_BYTES = 256 << 10
_LEAD_BYTES = 256 << 20
"""How far the hashing thread may run ahead of the workers, so that what it read is still cached when they get there."""


@dataclass(frozen=True)
class Streamed:
    """What came of a run.

    Attributes:
        source_sha256: Weight file -> sha256.
        overflowed: Tensor -> elements that were finite and became infinite in the cast.
    """

    source_sha256: Mapping[str, str]
    overflowed: Mapping[str, int]


def stream(
    plan: Plan,
    files: Sequence[WeightFile],
    work: WorkDirectory,
    *,
    prefix: str,
    budget_bytes: int,
    workers: int,
    advance: Callable[[int, str], None],
) -> Streamed:
    """Write every file of `plan` that `work` does not have yet.

    Args:
        plan: Without problems.
        files: The checkpoint's weight files.
        work: Where to write; finished files are recorded in its journal.
        prefix: Folder inside the artifact the plan's paths are relative to; "" for the top.
        budget_bytes: Bytes of tensor data held at once; a step larger than this runs alone.
        workers: Threads that rearrange and write.
        advance: Told, from several threads, of every block written: its bytes and the name of a tensor in it.

    Raises:
        CheckpointError: A weight file cannot be read to its end.
        OutputError: The disk is full or failed.
    """
    with Reader(files) as reader:
        run = _Run(plan, reader, work, prefix, _Budget(budget_bytes), _starts(files), advance)
        hasher = _SourceHasher(files, reader, run)
        with ThreadPoolExecutor(workers + 1, thread_name_prefix="stream") as pool:
            hashing = pool.submit(hasher.run)
            jobs: list[Future[None]] = [pool.submit(run.work) for _ in range(workers)]
            try:
                done, _ = wait([hashing, *jobs], return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
            finally:
                run.stop()
        return Streamed(hasher.digests, _overflowed(work.finished.values()))


def _overflowed(files: Iterable[Written]) -> dict[str, int]:
    """Tensor -> overflowed elements; a tensor that several files hold counts once."""
    most: dict[str, int] = {}
    for file in files:
        for tensor, elements in file.overflowed.items():
            most[tensor] = max(elements, most.get(tensor, 0))
    return dict(sorted(most.items()))


class _StoppedError(Exception):
    """Another thread failed or the run was interrupted."""


class _Budget:
    """Hands out bytes; a request larger than everything waits until it is alone."""

    def __init__(self, size_bytes: int) -> None:
        self._free = self._all = size_bytes
        self._changed = threading.Condition()
        self._stopped = False

    def take(self, size_bytes: int) -> int:
        wanted = min(size_bytes, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._free >= wanted)
            if self._stopped:
                raise _StoppedError
            self._free -= wanted
        return wanted

    def give_back(self, size_bytes: int) -> None:
        with self._changed:
            self._free += size_bytes
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class _Run:
    """The state the threads share."""

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        work: WorkDirectory,
        prefix: str,
        budget: _Budget,
        starts: Mapping[str, int],
        advance: Callable[[int, str], None],
    ) -> None:
        self.reader = reader
        self.directory = work
        self.prefix = prefix
        self.budget = budget
        self.advance = advance
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self.starts = starts
        self._todo = iter([step for step in plan.steps if not self._is_finished(step)])
        self._at: dict[int, int] = {}

    def _is_finished(self, step: Step) -> bool:
        return all(self.prefix + file in self.directory.finished for file in step.files)

    def stop(self) -> None:
        self.stopped.set()
        self.budget.stop()

    def position(self) -> int | None:
        """Where the hindmost worker reads, in bytes from the start of the first file; None when all are done."""
        with self._lock:
            return min(self._at.values(), default=None)

    def work(self) -> None:
        """Take steps until there are none left."""
        try:
            while not self.stopped.is_set():
                with self._lock:
                    step = next(self._todo, None)
                    if step is None:
                        self._at.pop(threading.get_ident(), None)
                        return
                    file, offset = step.position
                    self._at[threading.get_ident()] = self.starts[file] + offset
                taken = self.budget.take(step.memory_bytes())
                try:
                    self._write(step)
                finally:
                    self.budget.give_back(taken)
        except _StoppedError:
            return

    def _write(self, step: Step) -> None:
        staging = max(_LEAST_STAGING_BYTES, BLOCK_BYTES // len(step.files) // 4096 * 4096)
        outputs: list[HashedFile] = []
        overflowed: Counter[str] = Counter()
        try:
            for file in step.files:
                outputs.append(self.directory.create(self.prefix + file, step.file_bytes, staging_bytes=staging))
            for rank, block in _blocks(step, self.reader, overflowed):
                outputs[rank].write(block)
                self.advance(len(block), step.pieces[0].stored.name)
                if self.stopped.is_set():
                    raise _StoppedError
                del block  # before the next is made
            for file, output in zip(step.files, outputs, strict=True):
                written = output.finish()
                if len(overflowed) > 0 and file == step.files[-1]:
                    # Counted over all ranks, and noted with the last, since a step is redone unless all are there.
                    written = replace(written, overflowed=dict(overflowed))
                self.directory.record(self.prefix + file, written)
        finally:
            for output in outputs:
                output.close()


def _starts(files: Sequence[WeightFile]) -> dict[str, int]:
    """File name -> where it begins when all files are laid end to end, in bytes."""
    ordered = sorted(files, key=lambda file: file.name)
    ends = accumulate((file.size_bytes for file in ordered), initial=0)
    return {file.name: start for file, start in zip(ordered, ends, strict=False)}


class _SourceHasher:
    """Hashes every weight file from front to back."""

    def __init__(self, files: Sequence[WeightFile], reader: Reader, run: _Run) -> None:
        self._files = sorted(files, key=lambda file: file.name)
        self._reader = reader
        self._run = run
        self.digests: dict[str, str] = {}

    def run(self) -> None:
        """Fill `digests`."""
        buffer = memoryview(bytearray(_HASH_BYTES))
        for file in self._files:
            digest = hashlib.sha256()
            for offset in range(0, file.size_bytes, _HASH_BYTES):
                self._keep_pace(self._run.starts[file.name] + offset)
                if self._run.stopped.is_set():
                    return
                piece = buffer[: min(_HASH_BYTES, file.size_bytes - offset)]
                self._reader.read_into(file.name, offset, piece)
                digest.update(piece)
            self.digests[file.name] = digest.hexdigest()

    def _keep_pace(self, position: int) -> None:
        while not self._run.stopped.is_set():
            hindmost = self._run.position()
            if hindmost is None or position <= hindmost + _LEAD_BYTES:
                return
            self._run.stopped.wait(0.002)


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
    everyone = tuple(range(len(step.files)))
    if rank_at_a_time(step, group):
        for rank in everyone:
            shares = [(rank * size // step.ranks, (rank + 1) * size // step.ranks) for size in sizes]
            for chunk in _chunks(step, group, *shares[0]) if rows_at_a_time(step, group) else [shares]:
                yield _Region((rank,), tuple(chunk))
    elif rows_at_a_time(step, group):
        for chunk in _chunks(step, group, 0, sizes[0]):
            yield _Region(everyone, tuple(chunk))
    else:
        yield _Region(everyone, tuple((0, size) for size in sizes))


def _chunks(step: Step, group: tuple[Piece, ...], first: int, last: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges of about a block each; all pieces of the group share the leading axis."""
    length = _rows_per_block(step, group, group[0].size(leading_axis(group[0])))
    for start in range(first, last, length):
        yield [(start, min(start + length, last))] * len(group)


def _rows_per_block(step: Step, group: tuple[Piece, ...], rows: int) -> int:
    elements = sum(np.prod(piece.shape(False), dtype=int) for piece in group)
    return max(1, int(BLOCK_BYTES * rows // max(1, elements * step.dtype.size_bytes)))


def _blocks(step: Step, reader: Reader, overflowed: Counter[str]) -> Iterator[tuple[int, memoryview]]:
    """The contents of the step's files as (index of the file, bytes), each file's bytes in order."""
    if step.row.compute is not None:
        yield from _computed(step, reader, overflowed)
        return
    for group in segments(step):
        for region in _regions(step, group):
            views = _read(group, region.ranges, reader)
            for rank in region.ranks:
                shares = [
                    _share(step, piece, view, start, rank)
                    for piece, view, (start, _) in zip(group, views, region.ranges, strict=True)
                ]
                for block in _assembled(step, group, shares, overflowed):
                    yield rank, block
                    del block
            # Free the region before the next is read: a step may hold only one.
            del views, shares


def _read(group: Sequence[Piece], ranges: Sequence[tuple[int, int]], reader: Reader) -> list[Array]:
    """Each piece's range as an array of canonical axes (out axes, then in axes); shared tensors are read once."""
    held: dict[tuple[str, int, int], Array] = {}
    views = []
    for piece, (start, end) in zip(group, ranges, strict=True):
        sizes = {axis.name: axis.size for axis in piece.axes} | {leading_axis(piece): end - start}
        first, last = _stored_rows(piece, start, end)
        key = (piece.stored.name, first, last)
        if key not in held:
            held[key] = reader.read_rows(piece.stored, first, last)
        names = [axis.name for axis in piece.axes]
        if names[0] == "part":
            names.pop(0)
        view = held[key].reshape([sizes[name] for name in names])
        if "part" in names:
            view = view[(slice(None),) * names.index("part") + (piece.part,)]
            names.remove("part")
        views.append(view.transpose([names.index(name) for name in (*piece.out, *piece.inp)]))
    return views


def _stored_rows(piece: Piece, start: int, end: int) -> tuple[int, int]:
    """Rows of the stored tensor that hold `start` to `end` of the leading axis."""
    rows = [axis.size for axis in piece.axes[: piece.first_dimension]]
    base = piece.skip_rows
    if piece.axes[0].name == "part":
        assert piece.part is not None
        rows.pop(0)
        base += piece.part * int(np.prod(rows))
    unit = int(np.prod(rows[1:], dtype=int))
    return base + start * unit, base + end * unit


def _share(step: Step, piece: Piece, view: Array, start: int, rank: int) -> Array:
    """The rank's share of a canonical view, with axes in the file's order; `start` is where the view begins."""
    names = [*piece.out, *piece.inp]
    if step.row.split != "":
        axis = piece.out[0] if step.row.split == "out" else piece.inp[0]
        size = piece.size(axis) // step.ranks
        first = rank * size
        if axis == leading_axis(piece):
            length = min(size, view.shape[names.index(axis)])
            first = max(0, first - start)
            size = length
        view = view[(slice(None),) * names.index(axis) + (slice(first, first + size),)]
    if step.row.in_first:
        view = view.transpose([names.index(name) for name in (*piece.inp, *piece.out)])
    return view


def _assembled(
    step: Step, group: tuple[Piece, ...], shares: Sequence[Array], overflowed: Counter[str]
) -> Iterator[memoryview]:
    """The bytes of one file's part: the shares side by side, some rows at a time."""
    row_axes = [len(piece.inp) if step.row.in_first else len(piece.out) for piece in group]
    if len(group[0].inp) == 0:
        shares, row_axes = [share[np.newaxis] for share in shares], [1] * len(group)
    rows = shares[0].shape[0]
    row_bytes = sum(share.size for share in shares) * step.dtype.size_bytes // max(1, rows)
    length = max(1, BLOCK_BYTES // max(1, row_bytes))
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
