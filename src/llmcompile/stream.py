"""Carries out a plan: reads, rearranges, casts, hashes and writes, a bounded number of bytes at a time.

Worker threads take steps in disk order; NumPy, hashlib and the system calls release the interpreter lock, so reading,
rearranging and writing overlap. One more thread reads every weight file front to back to hash it, which is also the
read-ahead for the workers.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import accumulate

from llmcompile.assembly import assemble
from llmcompile.checkpoint.folder import WeightFile
from llmcompile.checkpoint.reader import Reader
from llmcompile.plan import (
    BLOCK_BYTES,
    Plan,
    Step,
)
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
        try:
            with ThreadPoolExecutor(workers + 1, thread_name_prefix="stream") as pool:
                hashing = pool.submit(hasher.run)
                jobs: list[Future[None]] = [pool.submit(run.work) for _ in range(workers)]
                try:
                    done, _ = wait([hashing, *jobs], return_when=FIRST_EXCEPTION)
                    for job in done:
                        job.result()
                finally:
                    run.stop()
        finally:
            run.close()
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
        self._picking = threading.Lock()
        self.starts = starts
        self._shared = _shared_files(plan, work, prefix)
        self._todo = iter([step for step in plan.steps if not self._is_finished(step)])
        self._at: dict[int, int] = {}

    def _is_finished(self, step: Step) -> bool:
        return all(
            self._shared[file].has(step) if file in self._shared else self.prefix + file in self.directory.finished
            for file in step.files
        )

    def stop(self) -> None:
        self.stopped.set()
        self.budget.stop()
        for shared in self._shared.values():
            shared.stop()

    def close(self) -> None:
        """Let go of the files that hold several tensors, finished or not."""
        for shared in self._shared.values():
            shared.close()

    def position(self) -> int | None:
        """Where the hindmost worker reads, in bytes from the start of the first file; None when all are done."""
        with self._lock:
            return min(self._at.values(), default=None)

    def work(self) -> None:
        """Take steps until there are none left."""
        try:
            while not self.stopped.is_set():
                # Steps take their bytes in order: one that waits for its turn in a file waits for a step that has its.
                with self._picking:
                    step = self._next()
                    if step is None:
                        return
                    taken = self.budget.take(step.memory_bytes())
                try:
                    self._write(step)
                finally:
                    self.budget.give_back(taken)
        except _StoppedError:
            return

    def _next(self) -> Step | None:
        with self._lock:
            step = next(self._todo, None)
            if step is None:
                self._at.pop(threading.get_ident(), None)
            else:
                file, offset = step.position
                self._at[threading.get_ident()] = self.starts[file] + offset
            return step

    def _write(self, step: Step) -> None:
        if len(step.tensors) == 0:
            self._write_files(step)
            return
        overflowed: Counter[str] = Counter()
        turns = [self._shared[file].turn(step) for file in step.files]
        for rank, block in assemble(step, self.reader, overflowed):
            # Counted over all ranks, and noted with the last, whose last block is the last of all.
            turns[rank].write(block, overflowed if rank == len(turns) - 1 else {})
            self.advance(len(block), step.sources[0].stored.name)
            if self.stopped.is_set():
                raise _StoppedError
            del block  # before the next is made
        assert all(turn.done for turn in turns), f"{step.tensors[0].name}: a share is incomplete"

    def _write_files(self, step: Step) -> None:
        staging = _staging_bytes(len(step.files))
        outputs: list[HashedFile] = []
        overflowed: Counter[str] = Counter()
        try:
            for file in step.files:
                outputs.append(self.directory.create(self.prefix + file, step.file_bytes, staging_bytes=staging))
            for rank, block in assemble(step, self.reader, overflowed):
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


def _staging_bytes(files: int) -> int:
    """Bytes collected before each direct write, when so many files are written side by side."""
    return max(_LEAST_STAGING_BYTES, BLOCK_BYTES // files // 4096 * 4096)


class _Shared:
    """A file that several steps add to, one after the other, whichever thread they run in."""

    def __init__(self, work: WorkDirectory, file: str, header: bytes, steps: Sequence[Step], staging: int) -> None:
        self._work = work
        self._file = file
        self._header = header
        self._staging = staging
        self._order = {id(step): index for index, step in enumerate(steps)}
        self._ends = list(accumulate((step.file_bytes for step in steps), initial=len(header)))
        self._changed = threading.Condition()
        self._stopped = False
        self._output: HashedFile | None = None
        self._overflowed: dict[str, int] = {}
        self._pending: list[tuple[int, dict[str, int]]] = []
        self._next = self._done_before()
        if self._next == len(steps) and file not in work.finished:
            # The earlier run wrote the last byte, and was stopped before it could rename the file.
            written = work.create(file, self._ends[-1], staging_bytes=staging).finish()
            work.record(file, replace(written, overflowed=dict(self._overflowed)))

    def _done_before(self) -> int:
        """How many steps an earlier run has finished."""
        if self._file in self._work.finished:
            return len(self._order)
        kept = self._work.kept.get(self._file)
        if kept is None or kept.size_bytes not in self._ends:
            self._work.kept.pop(self._file, None)
            return 0
        self._overflowed = dict(kept.overflowed)
        return self._ends.index(kept.size_bytes)

    def has(self, step: Step) -> bool:
        return self._order[id(step)] < self._next

    def turn(self, step: Step) -> _Turn:
        return _Turn(self, self._order[id(step)], step.file_bytes, done=self.has(step))

    def append(self, index: int, block: memoryview) -> None:
        """Write a block of the step number `index`, once all steps before it are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next == index)
            if self._stopped:
                raise _StoppedError
        # No other thread is past this point for this file: only the step whose turn it is.
        if self._output is None:
            self._output = self._work.create(self._file, self._ends[-1], staging_bytes=self._staging)
            if self._file not in self._work.kept:
                self._output.write(memoryview(self._header))
        self._output.write(block)

    def complete(self, overflowed: Mapping[str, int]) -> None:
        """The step whose turn it is has written everything."""
        assert self._output is not None
        self._overflowed |= overflowed
        self._output.mark()
        self._pending.append((self._ends[self._next + 1], dict(self._overflowed)))
        for size, digest in self._output.durable():
            self._work.progress(self._file, size, digest, self._pending.pop(0)[1])
        if self._next + 2 == len(self._ends):
            self._work.record(self._file, replace(self._output.finish(), overflowed=dict(self._overflowed)))
            self._output = None
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None


class _Turn:
    """One step's part of a shared file."""

    def __init__(self, shared: _Shared, index: int, size_bytes: int, *, done: bool) -> None:
        self._shared = shared
        self._index = index
        self._left = size_bytes
        self._skip = self.done = done

    def write(self, block: memoryview, overflowed: Mapping[str, int]) -> None:
        """Append a block; nothing happens where an earlier run has written it."""
        if self._skip or len(block) == 0:
            return
        self._shared.append(self._index, block)
        self._left -= len(block)
        if self._left == 0:
            self.done = True
            self._shared.complete(overflowed)


def _shared_files(plan: Plan, work: WorkDirectory, prefix: str) -> dict[str, _Shared]:
    steps: dict[str, list[Step]] = {file: [] for file in plan.headers}
    for step in plan.steps:
        for file in step.files if len(step.tensors) > 0 else ():
            steps[file].append(step)
    staging = _staging_bytes(max(1, len(steps)))
    return {file: _Shared(work, prefix + file, plan.headers[file], steps[file], staging) for file in plan.headers}


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
