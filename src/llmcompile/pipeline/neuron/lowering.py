"""The lower stage: every graph in HLO, checked against the compiler's documented rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcompile.errors import PlanError, Problem, collected
from llmcompile.exporters.neuron import memory, preflight
from llmcompile.exporters.neuron import signature as signatures
from llmcompile.exporters.neuron.signature import Signature
from llmcompile.hlo.module import parse
from llmcompile.packaging import manifest as records
from llmcompile.pipeline.job import View
from llmcompile.pipeline.neuron.planning import Export
from llmcompile.writing import WorkDirectory

if TYPE_CHECKING:
    from llmcompile.exporters.neuron.lowering.program import Lowered

GRAPHS = "graphs/"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A lowered graph in the work directory.

    Attributes:
        signature: Its border.
        sha256: Of the HloModuleProto.
        warnings: What the preflight found and the compiler will take.
        core_bytes: What it needs of a core, by a low estimate.
    """

    signature: Signature
    sha256: str
    warnings: tuple[str, ...]
    core_bytes: int

    @property
    def hlo(self) -> str:
        """Path of the HloModuleProto in the artifact."""
        return hlo_path(self.signature.name)

    def record(self) -> records.Graph:
        """The graph as the manifest has it."""

        def values(items: Sequence[signatures.Value]) -> tuple[records.GraphValue, ...]:
            return tuple(records.GraphValue(name=item.name, dtype=item.dtype, shape=item.shape) for item in items)

        return records.Graph.model_validate(
            {
                "name": self.signature.name,
                "kind": self.signature.kind,
                "hlo": self.hlo,
                "hlo_sha256": self.sha256,
                "inputs": values(self.signature.inputs),
                "outputs": values(self.signature.outputs),
                "core_bytes": self.core_bytes,
                "warnings": self.warnings,
            }
        )


def hlo_path(name: str) -> str:
    """Where a graph is in the artifact."""
    return f"{GRAPHS}{name}.hlo.pb"


def lowered_graphs(made: Export, lowered: Iterator[Lowered], work: WorkDirectory, view: View) -> tuple[Graph, ...]:
    """Lower, check and write each graph; those that an earlier run finished are read again.

    Args:
        made: The plan.
        lowered: The graphs, made as they are asked for.
        work: Where the artifact is made.
        view: Told of each graph.

    Raises:
        PlanError: The compiler would reject a graph; the problems of all.
        UnsupportedError: An operator cannot be lowered.
    """
    graphs: list[Graph] = []
    problems: list[Problem] = []
    kept = all(path in work.finished for name in made.graphs for path in (hlo_path(name), _signature_path(name)))
    for number, name in enumerate(made.graphs):
        if not kept:
            view.lowering(name, number + 1, len(made.graphs))
            one = next(lowered)
            assert one.signature.name == name
            work.write_bytes(hlo_path(name), one.module)
            work.write_bytes(_signature_path(name), signatures.to_json(one.signature).encode())
        graph, found = _checked(made, name, work)
        problems += found
        graphs.append(graph)
        if len(found) == 0:
            view.preflighted(name, graph.warnings)
    if len(problems) > 0:
        raise collected(PlanError, problems)
    return tuple(graphs)


def _signature_path(name: str) -> str:
    return f"{GRAPHS}{name}.json"


def _checked(made: Export, name: str, work: WorkDirectory) -> tuple[Graph, list[Problem]]:
    content: Mapping[str, object] = json.loads((work.path / _signature_path(name)).read_bytes())
    signature = signatures.from_json(content)
    module = parse((work.path / hlo_path(name)).read_bytes())
    findings = preflight.check(module, target=made.target, ranks=signature.ranks, divisible=made.decoder)
    graph = Graph(
        signature=signature,
        sha256=work.finished[hlo_path(name)].sha256,
        warnings=preflight.warnings(findings),
        core_bytes=memory.memory(module).total,
    )
    return graph, preflight.problems(findings, name)
