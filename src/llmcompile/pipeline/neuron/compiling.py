"""The compile stage: every graph through neuronx-cc, or the commands that do it where the compiler is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcompile import environment
from llmcompile.errors import ToolchainError
from llmcompile.exporters.neuron import compiler as compilers
from llmcompile.exporters.neuron import flags
from llmcompile.exporters.neuron.cache import Cache
from llmcompile.exporters.neuron.neff import check_neff
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.pipeline.job import View
from llmcompile.writing import WorkDirectory, hash_file

COMMANDS = ("compile_commands.json", "compile.sh")
_SCRATCH = ".compiling"
"""Where the compiler runs, and leaves what it likes."""
_KEPT = ".compiled"
"""A compile cache of the run's own: a graph that was compiled before a run was stopped is not compiled again."""


@dataclass(frozen=True)
class ToCompile:
    """A lowered graph: its name and kind, as in its signature."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of all graphs, in graphs/<name>.neff of the work directory.

    Attributes:
        version: Of the compiler.
        arguments: Those that decide what it makes.
        cached: Graph -> whether the user's compile cache had it.
    """

    version: str
    arguments: tuple[str, ...]
    cached: Mapping[str, bool]


def arguments(
    options: NeuronOptions,
    target: str,
    extra: Sequence[str],
    graphs: Sequence[ToCompile],
    *,
    release: tuple[int, int] | None,
) -> Mapping[str, tuple[str, ...]]:
    """Graph -> the compiler's arguments that decide its NEFF; `extra` are those of NEURON_CC_FLAGS."""
    return {graph.name: (*flags.arguments(options, graph.kind, target, release=release), *extra) for graph in graphs}


def write_commands(
    options: NeuronOptions, target: str, extra: Sequence[str], graphs: Sequence[ToCompile], work: WorkDirectory
) -> tuple[str, ...]:
    """Write compile_commands.json and compile.sh; returns the arguments of the first graph."""
    every = arguments(options, target, extra, graphs, release=None)
    for name, text in zip(COMMANDS, compilers.commands(every), strict=True):
        work.write_bytes(name, text.encode())
    return every[graphs[0].name]


def compile_all(
    options: NeuronOptions,
    found: compilers.Compiler,
    target: str,
    extra: Sequence[str],
    graphs: Sequence[ToCompile],
    work: WorkDirectory,
    view: View,
) -> Compiled:
    """Compile every graph of the work directory, and note the files.

    Args:
        options: What was asked.
        found: The compiler.
        target: Instance family.
        extra: Flags of NEURON_CC_FLAGS.
        graphs: In the order of the artifact.
        work: Holds graphs/<name>.hlo.pb.
        view: Shown every line of the compiler's log.

    Raises:
        ToolchainError: The compiler failed on a graph.
    """
    every = arguments(options, target, extra, graphs, release=found.release)
    cache = Cache(work.path / _KEPT if options.compile_cache is None else options.compile_cache, found.version)
    made = compilers.compile_graphs(
        found,
        [
            compilers.Graph(
                name=graph.name,
                hlo=work.path / f"graphs/{graph.name}.hlo.pb",
                neff=work.path / neff_path(graph.name),
                arguments=every[graph.name],
            )
            for graph in graphs
        ],
        folder=_scratch(options, work),
        memory_budget_bytes=environment.available_memory(),
        on_line=view.building,
        workers=options.compile_workers,
        cache=cache,
        keep=options.compiler_workdir is not None,
    )
    for graph in graphs:
        work.record(neff_path(graph.name), hash_file(work.path / neff_path(graph.name)))
    return Compiled(
        version=found.version,
        arguments=every[graphs[0].name],
        cached={one.name: one.cached and options.compile_cache is not None for one in made},
    )


def adopt(folder: Path, recorded: tuple[str, ...], graphs: Sequence[ToCompile], work: WorkDirectory) -> Compiled:
    """Take the NEFFs that compile.sh left beside the graphs, after verifying each.

    Args:
        folder: Holds graphs/<name>.neff.
        recorded: The arguments in compile.sh.
        graphs: Every graph.
        work: Where the artifact is made.

    Raises:
        ToolchainError: A NEFF is damaged, or they come from compilers of several versions.
    """
    versions: dict[str, str] = {}
    for graph in graphs:
        target = work.path / neff_path(graph.name)
        target.unlink(missing_ok=True)
        shutil.copyfile(folder / neff_path(graph.name), target)
        versions[graph.name] = str(check_neff(target).compiler_version)
        work.record(neff_path(graph.name), hash_file(target))
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{name} by {version}" for name, version in versions.items())
        hint = f"sh {folder / 'compile.sh'} compiles all of them again"
        raise ToolchainError(str(folder / "graphs"), found, "NEFFs of one compiler", hint)
    version = next(iter(versions.values()))
    return Compiled(version=version, arguments=recorded, cached={graph.name: False for graph in graphs})


def neff_path(name: str) -> str:
    """Where a graph's NEFF is, before a layout puts it elsewhere."""
    return f"graphs/{name}.neff"


def _scratch(options: NeuronOptions, work: WorkDirectory) -> Path:
    return work.path / _SCRATCH if options.compiler_workdir is None else options.compiler_workdir
