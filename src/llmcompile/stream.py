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
