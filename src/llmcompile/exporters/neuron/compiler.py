"""neuronx-cc: found, run on each graph within the memory there is, and what it wrote verified.

It is a program, never imported. The one that ran here is a stand-in: the vendor's was never at hand, so what is said of
its log and its errors is by its documentation and by public logs.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:compiler/neuronx-cc/api-reference-guide/index.rst, compiler/error-codes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from llmcompile.errors import ToolchainError
from llmcompile.exporters.neuron.cache import Cache, Claim
from llmcompile.exporters.neuron.diagnosis import explain, has_code, progress
from llmcompile.exporters.neuron.flags import VARIABLE
from llmcompile.exporters.neuron.neff import Neff, check_neff
from llmcompile.exporters.processes import (
    LAST_LINES,
    Child,
    Line,
    OnLine,
    child_environment,
    ended,
    shortened,
    stop,
    tail,
    wait,
)
from llmcompile.writing import output_errors

PROGRAM = "neuronx-cc"
LOG = "log-neuron-cc.txt"
IMAGE = "public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04"
"""The last of AWS's images whose SDK serves inf2, trn1 and trn2 alike and that was seen in their list.

Source: aws-neuron/deep-learning-containers, README.md, "pytorch-inference-neuronx".
"""
INDEX = "https://pip.repos.neuron.amazonaws.com"
_ENVIRONMENTS = "aws_neuronx_venv_*/bin/neuronx-cc"
"""In /opt, where AWS's machine images have it."""
_OLDEST = (2, 0)
"""PyPI's neuronx-cc is a placeholder of version 1; the compiler of Inferentia 1 is another program."""
_PROBE_SECONDS = 120.0
_POLL_SECONDS = 0.25
"""Between two looks at a lock that another process holds."""
_VERSION = re.compile(r"NeuronX Compiler version (\d+)\.(\d+)([\w.+]*)")
_GIB = 1 << 30


@dataclass(frozen=True)
class Compiler:
    """A neuronx-cc that answers.

    Attributes:
        path: The program.
        version: As it says it: "2.21.33363.0+82129205".
    """

    path: Path
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        numbers = re.findall(r"\d+", self.version)
        return int(numbers[0]), int(numbers[1])


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph to compile.

    Attributes:
        name: What messages call it.
        hlo: Its serialized HloModuleProto.
        neff: The file to make or replace.
        arguments: What `flags.arguments` gave, and `flags.environment_flags`.
    """

    name: str
    hlo: Path
    neff: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled graph.

    Attributes:
        name: Of the graph.
        neff: What the file says of itself.
        cached: Whether the compile cache had it.
        seconds: Between the start of the compiler and its end; 0 where the cache had it.
    """

    name: str
    neff: Neff
    cached: bool
    seconds: float


# Find


def find(path: Path | None, *, output: str = "OUTPUT", lowered: bool = False) -> Compiler:
    """Find neuronx-cc and ask for its version.

    Args:
        path: The program; None for the one on PATH, or beside our own interpreter.
        output: The artifact, which the message names.
        lowered: Whether that is there already, with its graphs lowered.

    Raises:
        ToolchainError: There is none, or it is none of version 2 or later; says the ways on.
    """
    if path is not None and (path.is_dir() or not os.access(path, os.X_OK)):
        raise ToolchainError("--neuronx-cc", f"{path}: not an executable file", "the path of neuronx-cc")
    found = _on_path() if path is None else path
    if found is None:
        raise missing(f"not on PATH{_placeholder()}", output, lowered=lowered)
    program = Path(os.path.abspath(found))  # not resolved: it finds its own libraries from where it is called
    text = _asked(program)
    match = _VERSION.search(text)
    if match is None:
        raise missing(f"{program} --version says {shortened(text)!r}", output, lowered=lowered)
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise missing(f"{program} is version {match[1]}.{match[2]}{match[3]}", output, lowered=lowered)
    return Compiler(program, f"{match[1]}.{match[2]}{match[3]}")


def missing(found: str, output: str, *, lowered: bool) -> ToolchainError:
    """Say that there is no compiler, and the ways on.

    Args:
        found: What there is in its place.
        output: The artifact.
        lowered: Whether that is there already, with its graphs lowered.
    """
    container = f'docker run --rm -v "$PWD:/work" -w /work {IMAGE} sh {shlex.quote(f"{output}/compile.sh")}'
    again = f"llmcompile export neuron --from-lowered {shlex.quote(output)} {shlex.quote(f'{output}-compiled')}"
    if lowered:
        first = f"copy {output} to where the compiler is: {again}"
        second = f"in AWS's container: {container}, and then the same command here: it takes those NEFFs"
    else:
        first = f"`--stop-after lower` here; where the compiler is: {again}"
        second = f"after the first half of 1, in AWS's container: {container}, and then the second half here"
    hint = (
        f"ways on:\n  1. {first}\n  2. {second}\n"
        f"  3. in an environment of its own: pip install 'neuronx-cc==2.*' --extra-index-url {INDEX}, "
        "then `--neuronx-cc` its neuronx-cc"
    )
    elsewhere = sorted(Path("/opt").glob(_ENVIRONMENTS))
    if len(elsewhere) > 0:
        hint += f"\n  4. one that is here: --neuronx-cc {elsewhere[-1]}"
    return ToolchainError(PROGRAM, found, "the Neuron compiler, version 2 or later", hint)


def _on_path() -> Path | None:
    found = shutil.which(PROGRAM)
    if found is not None:
        return Path(found)
    beside = Path(sys.executable).with_name(PROGRAM)
    return beside if os.access(beside, os.X_OK) else None


def _placeholder() -> str:
    """What a package of the compiler's name says, where it is not the compiler."""
    try:
        version = metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return ""
    return f", and the package {PROGRAM} {version} is PyPI's placeholder" if version.startswith("1.") else ""


def _asked(program: Path) -> str:
    words = [str(program), "--version"]
    with (
        tempfile.TemporaryDirectory(prefix="llmcompile-") as scratch,
        Child(words, Path(scratch), _environment()) as child,
    ):
        try:
            lines = list(child.lines(_PROBE_SECONDS))
        except TimeoutError as error:
            found = f"silent for {_PROBE_SECONDS:.0f} s after --version"
            raise ToolchainError(str(program), found, "its version", tail(child.last)) from error
        child.ending()
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    """Without NEURON_CC_FLAGS, whose flags are on the command line, where they are recorded."""
    return child_environment(without=(VARIABLE,))


# Compile


def compile_command(program: str, graph: str, neff: str, log: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """The words that compile a graph; the paths as they are given."""
    return (program, "compile", graph, *arguments, f"--output={neff}", f"--logfile={log}", "--verbose=info")


def commands(graphs: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """The commands that compile what was lowered, for a person or a container that has the compiler and not us.

    Args:
        graphs: Names of graphs, of which graphs/<name>.hlo.pb is beside the files -> their flags.

    Returns:
        The text of compile_commands.json, a list of objects with "graph" and "arguments", paths relative to its
        folder; and of compile.sh, which can be called from anywhere and ends at the first failure.
    """
    entries = []
    lines = [
        "#!/bin/sh",
        "# Compiles the graphs beside this file: graphs/*.hlo.pb into graphs/*.neff.",
        "set -eu",
        'cd -- "$(dirname -- "$0")"',
    ]
    for name, arguments in graphs.items():
        neff = f"graphs/{name}.neff"
        words = compile_command(PROGRAM, f"graphs/{name}.hlo.pb", neff, f"graphs/{name}.log", arguments)
        entries.append({"graph": name, "arguments": list(words)})
        # The compiler was seen to end with 0 and leave no file.
        lines += ["", shlex.join(words), f"test -s {shlex.quote(neff)}"]
    return json.dumps(entries, indent=1) + "\n", "\n".join(lines) + "\n"


def memory_bytes(hlo_bytes: int) -> int:
    """Memory of this machine that compiling a graph takes at most, as far as is known: 4 GiB and 8 for each MiB of it.

    Weights are not in a graph, so its size tells how many operations it has. Public measurements of neuronx-cc 2.27
    on graphs of a large language model: under 1 MB 10.6 GB, 1 to 2 MB 14.4, 2 to 3 MB 22.9, 6.3 MB 30; older releases
    and long prompts took several times that (174 GB at 3 MB), which an operator answers with --compile-workers 1.
    """
    return 4 * _GIB + 8 * _GIB * hlo_bytes // (1 << 20)


def compile_graphs(
    compiler: Compiler,
    graphs: Sequence[Graph],
    *,
    folder: Path,
    memory_budget_bytes: int,
    on_line: OnLine,
    workers: int | None = None,
    cache: Cache | None = None,
    keep: bool = False,
) -> tuple[Compiled, ...]:
    """Compile every graph that the cache does not have; one process each, the largest first.

    Args:
        compiler: What `find` found.
        graphs: In any order; their names differ.
        folder: Work folder; each graph gets one of its own inside, which stays where its compilation fails.
        memory_budget_bytes: Of this machine, for all at once by `memory_bytes`; one that needs more runs alone.
        on_line: Given every line of the logs as it comes, behind the graph's name.
        workers: Graphs at once at most; None for as many as memory allows.
        cache: Looked into first, and given what was compiled; two processes that share it compile a graph once.
        keep: Whether the compiler's working files stay.

    Returns:
        In the order of the graphs.

    Raises:
        ToolchainError: The compiler failed on a graph, with what to do, its last lines and the log's path; the others
            are stopped. Whatever ends this function early, an interrupt included, ends all processes.
        OutputError: The disk is full, or a place cannot be written to.
    """
    with output_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [_Job(compiler, graph, folder, cache, on_line) for graph in graphs]
    waiting = sorted(jobs, key=lambda job: job.memory_bytes, reverse=True)
    running: list[_Job] = []
    try:
        while len(waiting) + len(running) > 0:
            for job in list(waiting):
                taken = sum(other.memory_bytes for other in running)
                few = workers is None or len(running) < workers
                if running != [] and not (few and taken + job.memory_bytes <= memory_budget_bytes):
                    continue
                if job.begin(memory_budget_bytes):
                    waiting.remove(job)
                    running += [job] if job.compiled is None else []
            if running == [] and waiting != []:
                time.sleep(_POLL_SECONDS)  # others compile what we wait for
            elif running != []:
                wait([job.child for job in running if job.child is not None], _POLL_SECONDS)
            running = [job for job in running if not job.advance()]
    finally:
        stop([job.child for job in jobs if job.child is not None])
        for job in jobs:
            job.end(keep=keep)
    return tuple(job.result() for job in jobs)


@dataclass
class _Job:
    """One graph on its way: waiting, running, compiled or failed."""

    compiler: Compiler
    graph: Graph
    parent: Path
    cache: Cache | None
    on_line: OnLine
    hlo: bytes = b""
    memory_bytes: int = 0
    compiled: Compiled | None = None
    failed: bool = False
    told: bool = False
    started: float = 0.0
    codes: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    folder: Path | None = None
    child: Child | None = None
    claim: Claim | None = None

    def __post_init__(self) -> None:
        try:
            self.hlo = self.graph.hlo.read_bytes()
        except OSError as error:
            raise ToolchainError(str(self.graph.hlo), str(error.strerror), "a lowered graph") from error
        self.memory_bytes = memory_bytes(len(self.hlo))

    @property
    def made(self) -> Path:
        """Where the compiler writes; private until it is verified."""
        assert self.folder is not None
        return self.folder / "model.neff"

    def say(self, text: str, progress: str | None = None) -> None:
        self.on_line(Line(f"{self.graph.name}: {text}", None if progress is None else f"{self.graph.name}: {progress}"))

    def begin(self, memory_budget_bytes: int) -> bool:
        """Take the NEFF from the cache or start the compiler; False while another process compiles the same graph."""
        with output_errors(self.graph.neff, 0):
            self.graph.neff.parent.mkdir(parents=True, exist_ok=True)
        if self.cache is not None:
            self.claim = self.cache.claim(self.hlo, self.graph.arguments)
            neff = self.cache.get(self.hlo, self.graph.arguments, self.graph.neff)
            if neff is not None:
                self._release()
                self.compiled = Compiled(name=self.graph.name, neff=neff, cached=True, seconds=0.0)
                self.say("found in the compile cache", "found in the compile cache")
                return True
            if self.claim is None:
                if not self.told:
                    self.say("another process compiles it", "waiting for another process that compiles it")
                self.told = True
                return False
        if self.memory_bytes > memory_budget_bytes:
            self.say(f"may need {self.memory_bytes / _GIB:.0f} GiB; {memory_budget_bytes / _GIB:.0f} GiB are free")
        with output_errors(self.parent, 0):
            prefix = re.sub(r"[^\w.-]", "_", self.graph.name)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self.parent))
            (self.folder / LOG).touch()
        self.started = time.monotonic()
        self.child = Child(self._words(), self.folder, _environment())
        self.say("compiling", "compiling")
        return True

    def _words(self) -> tuple[str, ...]:
        assert self.folder is not None
        hlo, log = self.graph.hlo.absolute(), (self.folder / LOG).absolute()
        return compile_command(
            str(self.compiler.path), str(hlo), str(self.made.absolute()), str(log), self.graph.arguments
        )

    def advance(self) -> bool:
        """Hand on what the compiler said since; True once it has ended and its NEFF is in place."""
        assert self.child is not None
        for text in self.child.read():
            if has_code(text):
                self.codes.append(text)
            self.say(text, progress(text))
        if self.child.talking:
            return False
        code = self.child.ending()
        stop([self.child])
        if code != 0 or not self.made.is_file():
            self.failed = True
            raise self._failure(code)
        try:
            neff = check_neff(self.made, compiler_version=self.compiler.version)
        except ToolchainError:
            self.failed = True
            raise
        self._keep(neff)
        return True

    def _keep(self, neff: Neff) -> None:
        if self.cache is not None:
            reason = self.cache.put(self.hlo, self.graph.arguments, self.made)
            self._release()
            if reason is not None:
                self.say(f"not added to the compile cache: {reason}")
        with output_errors(self.graph.neff, neff.size_bytes):
            # The work folder may be on another disk.
            part = self.graph.neff.with_name(self.graph.neff.name + ".part")
            shutil.move(self.made, part)
            os.replace(part, self.graph.neff)
        seconds = time.monotonic() - self.started
        self.compiled = Compiled(name=self.graph.name, neff=neff, cached=False, seconds=seconds)
        self.say(f"compiled in {seconds:.0f} s", f"compiled in {seconds:.0f} s")

    def _failure(self, code: int) -> ToolchainError:
        assert self.folder is not None
        assert self.child is not None
        said, advice = explain(code, [*self.codes, *self.child.last])
        how = ended(code) if code != 0 else "exit code 0, and no file"
        words = shlex.join(self._words())
        return ToolchainError(
            f"{PROGRAM}, {self.graph.name}",
            how if said == "" else f"{how}: {said}",
            "a NEFF",
            f"{advice}\nits log: {self.folder / LOG}\n"
            f"to repeat it: cd {shlex.quote(str(self.folder))} && {words}\n{tail(self.child.last)}",
        )

    def _release(self) -> None:
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def end(self, *, keep: bool) -> None:
        """Give up what is held; the working files of a failure stay."""
        self._release()
        if self.folder is not None and not keep and not self.failed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def result(self) -> Compiled:
        assert self.compiled is not None
        return self.compiled
