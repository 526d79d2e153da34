"""What a person is told of a Neuron export, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcompile.cli.neuron_lines import kind, lowering_lines, rows, task_lines
from llmcompile.exporters.neuron.compiler import Compiler
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.packaging import manifest as records
from llmcompile.packaging.manifest import Comparison, Graph, Manifest, Neuron, Validation
from llmcompile.pipeline.job import Report
from llmcompile.pipeline.neuron import Lowering

SHA = "0" * 64
CAST = "fixed tokens, as --auto-cast all --auto-cast-type bf16 will compute it"


def graph(name: str, core_bytes: int, cached: bool | None = None) -> Graph:
    """The record of a graph."""
    return Graph(
        name=name,
        kind="encoder",
        hlo=f"graphs/{name}.hlo.pb",
        hlo_sha256=SHA,
        inputs=(),
        outputs=(),
        core_bytes=core_bytes,
        warnings=(),
        cached=cached,
    )


def neuron(**changed: Any) -> Neuron:
    """The record of an export that is lowered for one core."""
    made = Neuron(
        task="fill-mask",
        via="xla",
        layout="nxd",
        status="lowered",
        target="trn1",
        ranks=1,
        graphs=(graph("one", 30), graph("two", 40)),
        compiler=None,
        flags=(),
        environment_flags=(),
    )
    return made.model_copy(update=changed)


def comparison(error: float | None, *, fed: str = "fixed tokens", output: str = "logits") -> Comparison:
    """An output that was off by `error`, of at most 0.5; None for one that could not be measured."""
    details: Mapping[str, Any] = {"max_abs": error, "atol": 0.5}
    return Comparison(input=fed, reference="the model", output=output, passed=True, details=details)


def validation(*comparisons: Comparison) -> Validation:
    """A verdict."""
    return Validation(passed=True, executor="XLA", comparisons=comparisons, notes=())


def made(found: Validation | None = None, **changed: Any) -> Manifest:
    """The record of an artifact of two files."""
    return Manifest.model_construct(
        source=records.Source(model="org/tiny", revision=None, commit=None, format="safetensors", files=()),
        model=records.Model(architecture="bert", sizes={}, facts={}),
        files=(records.FileRecord(path="a", bytes=10, sha256=SHA), records.FileRecord(path="b", bytes=5, sha256=SHA)),
        neuron=neuron(**changed),
        validation=found,
    )


def told(found: Validation | None = None, output: str = "out", **changed: Any) -> Mapping[str, str]:
    """The lines of a finished export, by their names."""
    report = Report(started="", output=Path(output))
    return dict(rows(made(found, **changed), report, "3 s", lambda size: f"{size:g} B"))


def test_the_record_is_counted_among_the_files() -> None:
    """Its bytes, which cannot be in it, are not."""
    assert told()["artifact"] == "layout nxd · 1 core of trn1 · 3 files, 15 B"


def test_several_cores_are_in_the_plural() -> None:
    """Of which all hold a share."""
    assert told(ranks=2)["artifact"].startswith("layout nxd · 2 cores of trn1")


def test_the_largest_graph_says_what_a_core_needs() -> None:
    """Beside the names of all."""
    assert told()["graphs"] == "one, two; at most 40 B a core"


def test_an_export_without_graphs_of_ours_says_nothing_of_them() -> None:
    """optimum-neuron's are its own."""
    assert told(graphs=())["graphs"] == ""


def test_a_compiler_is_named_with_its_arguments() -> None:
    """And how many graphs it was not needed for."""
    graphs = (graph("one", 30, cached=True), graph("two", 40, cached=False))
    found = told(status="compiled", compiler="2.21", flags=("-O1", "--target=trn1"), graphs=graphs)

    assert found["compiler"] == "neuronx-cc 2.21 -O1 --target=trn1, 1 of 2 from the cache"


def test_nothing_is_said_of_an_empty_cache() -> None:
    """Where every graph was compiled."""
    assert told(status="compiled", compiler="2.21")["compiler"] == "neuronx-cc 2.21"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (None, "no (--no-validate)"),
        (validation(), "nothing was compared"),
        (validation(comparison(0.25)), "logits 2.5e-01 (limit 5.0e-01), in 1 run"),
        (validation(comparison(0.0)), "logits equal, in 1 run"),
        (validation(comparison(None)), "logits, in 1 run"),
        (
            validation(comparison(0.1, fed="a"), comparison(0.2, fed="b"), comparison(0.1, fed="b", output="states")),
            "logits 2.0e-01 (limit 5.0e-01); states 1.0e-01 (limit 5.0e-01), in 2 runs",
        ),
        (validation(comparison(0.4, fed=CAST)), "nothing was compared"),
    ],
    ids=["not asked for", "nothing", "one", "equal", "unmeasured", "several", "only a prediction"],
)
def test_the_worst_error_of_each_output_is_told(found: Validation | None, line: str) -> None:
    """Beside its limit; what a cast would cost is no proof."""
    assert told(found)["validated"] == line


def test_what_casts_cost_is_told_apart() -> None:
    """By the flags as they were given."""
    found = told(validation(comparison(0.1), comparison(0.4, fed=CAST)))

    assert found["validated"] == "logits 1.0e-01 (limit 5.0e-01), in 1 run"
    assert found["casts"] == "--auto-cast all --auto-cast-type bf16 moves logits 4.0e-01 (limit 5.0e-01)"


def test_without_casts_there_is_nothing_to_tell() -> None:
    """Nor without a validation."""
    assert (told(validation(comparison(0.1)))["casts"], told()["casts"]) == ("", "")


def test_what_is_lowered_goes_on_where_the_compiler_is() -> None:
    """By llmcompile or by the shell, with paths that a shell takes as one word."""
    found = told(output="my out")

    assert found["next"] == "where neuronx-cc is: llmcompile export neuron --from-lowered 'my out' 'my out-compiled'"
    assert found["or"] == "without llmcompile: sh 'my out/compile.sh'"


def test_what_is_compiled_can_be_verified() -> None:
    """And needs no other command."""
    found = told(status="compiled", output="my out")

    assert found["next"] == "llmcompile verify 'my out'"
    assert "or" not in found


def test_an_artifact_says_what_it_is_good_for() -> None:
    """By its state."""
    assert kind(neuron()) == "lowered and ready for neuronx-cc"
    assert kind(neuron(status="compiled")) == "compiled for trn1"


@pytest.mark.parametrize(
    ("compiled", "compiler", "line"),
    [
        (True, None, "build  the NEFFs beside the graphs are taken as they are, layout nxd"),
        (False, None, "build  no neuronx-cc found"),
        (False, Compiler(Path("neuronx-cc"), "2.21"), "build  with neuronx-cc 2.21 for trn1, layout nxd"),
    ],
    ids=["by compile.sh", "not at all", "by us"],
)
def test_a_build_from_lowered_graphs_says_who_compiles(compiled: bool, compiler: Compiler | None, line: str) -> None:
    """Nobody, where compile.sh has done so."""
    build = BuildOptions(model="m", output=Path("out"))
    lowering = Lowering(
        options=NeuronOptions(build=build),
        folder=Path("lowered"),
        manifest=made(),
        compiler=compiler,
        compiled=compiled,
        environment_flags=(),
        errors=(),
    )

    assert lowering_lines(lowering, lambda size: f"{size:g} B") == [
        "org/tiny: bert · fill-mask, lowered",
        "read   lowered: one, two for 1 core; at most 40 B a core",
        line,
    ]


def test_tasks_are_a_table() -> None:
    """Each with the ways that lead there."""
    assert task_lines("m", {"fill-mask": ("xla", "optimum"), "text-generation": ("optimum",)}) == [
        "fill-mask        our own lowering, optimum-neuron",
        "text-generation  optimum-neuron",
    ]


def test_a_model_without_tasks_is_told() -> None:
    """By its name."""
    assert task_lines("m", {}) == ["m: no task that Neuron runs"]
