"""The compiler is found, run on every graph within the memory there is, and its work verified.

A stand-in takes its place: neuronx-cc was never at hand, so these tests hold us to the vendor's documentation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neuronx_cc_standin as standin
from llmcompile.errors import ToolchainError
from llmcompile.exporters.neuron import compiler as tools
from llmcompile.exporters.neuron.cache import Cache, module_name
from llmcompile.exporters.neuron.compiler import Compiled, Compiler, Graph
from llmcompile.exporters.processes import Line
from watching import alive, wait_for

FLAGS = ("--framework=XLA", "--target=trn1", "--model-type=transformer", "--auto-cast=none", "--optlevel=2")
PLENTY = 1 << 40


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """The stand-in, which tells tmp_path/called of its calls."""
    (tmp_path / "called").mkdir()
    monkeypatch.setenv("NEURONX_CC_STANDIN_LOG", str(tmp_path / "called"))
    return Compiler(standin.install(tmp_path / "bin"), standin.VERSION)


@pytest.fixture
def build(found: Compiler, tmp_path: Path) -> Callable[..., tuple[tuple[Compiled, ...], list[Line]]]:
    """Compile graphs of tmp_path/graphs; each name has a graph of its own, unless bytes are given for it."""

    def built(*names: str, **given: Any) -> tuple[tuple[Compiled, ...], list[Line]]:
        lines: list[Line] = []
        settings: dict[str, Any] = {"memory_budget_bytes": PLENTY, "on_line": lines.append, **given}
        graphs = [graph(tmp_path, name) for name in names]
        return tools.compile_graphs(found, graphs, folder=tmp_path / "work", **settings), lines

    return built


def graph(tmp_path: Path, name: str, hlo: bytes | None = None, flags: tuple[str, ...] = FLAGS) -> Graph:
    """A graph on disk; its size says its name."""
    path = tmp_path / "graphs" / f"{name}.hlo.pb"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(standin.graph(dims=(len(name), 3)) if hlo is None else hlo)
    return Graph(name=name, hlo=path, neff=path.with_name(f"{name}.neff"), arguments=flags)


def calls(tmp_path: Path) -> list[dict[str, Any]]:
    """Compilations the stand-in was asked for, in the order they ended."""
    return standin.calls(tmp_path / "called")


# Find


def test_version_and_place_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By asking the first of its name on PATH."""
    program = standin.install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    found = tools.find(None)

    assert found == Compiler(program, "2.21.33363.0+82129205")
    assert found.release == (2, 21)


def test_a_given_program_is_asked(tmp_path: Path) -> None:
    """Wherever it is."""
    assert tools.find(standin.install(tmp_path, "2.27.5334.0+f702b353")).release == (2, 27)


def test_without_a_compiler_the_ways_on_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after lowering, a container, pip from AWS's index: each as it is typed."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolchainError) as caught:
        tools.find(None, output="my model")

    [problem] = caught.value.problems
    assert caught.value.exit_code == 6
    assert problem.found == "not on PATH"
    assert "`--stop-after lower` here" in problem.hint
    assert "--from-lowered 'my model' 'my model-compiled'" in problem.hint
    assert "docker run" in problem.hint
    assert "public.ecr.aws/neuron/" in problem.hint
    assert "sh 'my model/compile.sh'" in problem.hint
    assert "https://pip.repos.neuron.amazonaws.com" in problem.hint


def test_pypis_placeholder_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of its name without the program, of version 1."""
    info = tmp_path / "neuronx_cc-1.0.post1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neuronx-cc\nVersion: 1.0.post1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ToolchainError, match=r"the package neuronx-cc 1.0.post1 is PyPI's placeholder"):
        tools.find(None)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo NeuronX Compiler version 1.0.post1", "is version 1.0.post1"),
        ("echo 'WRONG PACKAGE. Please install' >&2; exit 1", "--version says 'WRONG PACKAGE"),
        ("exit 0", "--version says ''"),
    ],
)
def test_what_is_no_compiler_of_version_2_is_refused(script: str, text: str, tmp_path: Path) -> None:
    """Though it is on PATH: its answer decides."""
    program = tmp_path / "neuronx-cc"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    with pytest.raises(ToolchainError) as caught:
        tools.find(program)

    assert text in caught.value.problems[0].found
    assert "--from-lowered" in caught.value.problems[0].hint


def test_a_version_on_the_other_stream_is_read(tmp_path: Path) -> None:
    """Older releases print it there."""
    program = tmp_path / "neuronx-cc"
    program.write_text("#!/bin/sh\necho NeuronX Compiler version 2.10.0.34+6c8792c6f >&2\n")
    program.chmod(0o755)

    assert tools.find(program).version == "2.10.0.34+6c8792c6f"


@pytest.mark.parametrize("name", ["absent", "", "plain"])
def test_a_path_that_is_no_program_is_refused(name: str, tmp_path: Path) -> None:
    """By its flag."""
    (tmp_path / "plain").touch()

    with pytest.raises(ToolchainError, match=r"--neuronx-cc: .*: not an executable file"):
        tools.find(tmp_path / name)


# Compile


def test_graphs_are_compiled_and_verified(build: Callable[..., Any], found: Compiler, tmp_path: Path) -> None:
    """Each by a process of its own in a folder of its own, which is gone afterwards."""
    compiled, _ = build("token_generation", "context_encoding_16")

    assert [graph.name for graph in compiled] == ["token_generation", "context_encoding_16"]
    assert [graph.cached for graph in compiled] == [False, False]
    assert [graph.neff.compiler_version for graph in compiled] == ["2.21.33363.0"] * 2
    assert sorted(path.name for path in (tmp_path / "graphs").glob("*.neff*")) == [
        "context_encoding_16.neff",
        "token_generation.neff",
    ]
    assert len({call["folder"] for call in calls(tmp_path)}) == 2
    assert list((tmp_path / "work").iterdir()) == []


def test_the_command_is_the_documented_one(build: Callable[..., Any], tmp_path: Path) -> None:
    """The graph, our flags, and where output and log go."""
    build("model")

    [call] = calls(tmp_path)
    folder = call["folder"]
    assert call["words"] == [
        "compile",
        str(tmp_path / "graphs" / "model.hlo.pb"),
        *FLAGS,
        f"--output={folder}/model.neff",
        f"--logfile={folder}/log-neuron-cc.txt",
        "--verbose=info",
    ]


def test_the_log_comes_with_the_graphs_name(build: Callable[..., Any]) -> None:
    """Every line, and in a few words how far it is."""
    _, lines = build("model")

    assert "model: Compiler status PASS" in [line.text for line in lines]
    assert [line.progress for line in lines if line.progress is not None][:-1] == [
        "model: compiling",
        "model: BirCodeGenLoop",
        "model: 2 instructions estimated",
        "model: Tensorizer done in 0.153 s",
        "model: Frontend done",
        "model: passed",
    ]
    assert lines[-1].text.startswith("model: compiled in ")


def test_working_files_are_kept_where_they_are_asked_for(build: Callable[..., Any], tmp_path: Path) -> None:
    """--compiler_workdir; a second run has folders of its own, since the vendor's tools delete each other's."""
    build("model", keep=True)
    build("model", keep=True)

    folders = list((tmp_path / "work").iterdir())
    assert len(folders) == 2
    assert all((folder / "log-neuron-cc.txt").read_text() == "the whole log\n" for folder in folders)


def test_neither_tokens_nor_the_variable_of_flags_reach_the_compiler(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in its environment, its arguments or the log; the flags it gets are those that are recorded."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "LLMCOMPILE_TOKEN"):
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("NEURON_CC_FLAGS", "--enable-fast-context-switch")
    _, lines = build("model")

    [call] = calls(tmp_path)
    assert "hf_secret" not in json.dumps(call)
    assert "NEURON_CC_FLAGS" not in call["environment"]
    assert "--enable-fast-context-switch" not in call["words"]
    assert not any("hf_secret" in line.text for line in lines)


def overlapping(tmp_path: Path) -> int:
    """The most compilations that ran at the same time."""
    spans = [(call["start"], call["end"]) for call in calls(tmp_path)]
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


@pytest.mark.parametrize(("given", "most"), [({}, 3), ({"workers": 2}, 2), ({"workers": 1}, 1)])
def test_graphs_are_compiled_at_the_same_time(
    given: dict[str, int], most: int, build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as memory and --compile-workers allow."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", "slow")

    compiled, _ = build("a", "bb", "ccc", **given)

    assert len(compiled) == 3
    assert overlapping(tmp_path) == most


def test_memory_decides_how_many_run(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four GiB and a little do not fit into eight; one that does not fit at all runs alone, and says so."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", "slow")

    build("a", "bb", memory_budget_bytes=8 << 30)
    _, lines = build("ccc", memory_budget_bytes=1 << 30)

    assert overlapping(tmp_path) == 1
    assert "ccc: may need 4 GiB; 1 GiB are free" in [line.text for line in lines]


def test_memory_is_by_the_size_of_the_graph() -> None:
    """Above what was measured in public for its sizes: 10.6, 14.4, 22.9 and 30 GB."""
    sizes = {1_000_000: 10.6e9, 2_000_000: 14.4e9, 3_000_000: 22.9e9, 6_300_000: 30e9}

    assert all(tools.memory_bytes(size) > measured for size, measured in sizes.items())
    assert tools.memory_bytes(0) == 4 << 30


# Failures


@pytest.mark.parametrize(
    ("how", "said", "advice"),
    [
        ("F137", "exit code 70: [F137] neuronx-cc was forcibly killed", "--compile-workers 1"),
        ("oom", "killed by SIGKILL", "--compile-workers 1"),
        ("oom-137", "exit code 137", "--compile-workers 1"),
        ("F134", "exit code 70: [F134]", "https://github.com/aws-neuron/aws-neuron-sdk/issues"),
        ("70", "exit code 70", "https://github.com/aws-neuron/aws-neuron-sdk/issues"),
        ("NCC_EOOM001", "exit code 70: [NCC_EOOM001]", "more --num-cores"),
        ("XCG815", "exit code 70: [XCG815] Estimated peak HBM usage (17.28)", "--sequence-length"),
        ("XTP003", "exit code 70: [XTP003] Too many instructions", "-O1"),
        ("NCC_EXTP004", "exit code 70: [NCC_EXTP004]", "-O1"),
        ("NCC_EUOC002", "exit code 70: [NCC_EUOC002]", "list-operators"),
        ("no-file", "exit code 0, and no file", "another version"),
    ],
)
def test_a_failure_says_what_to_do(
    how: str, said: str, advice: str, build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graph's name, the compiler's own words, the log that stays, the command and the last lines."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", how)

    with pytest.raises(ToolchainError) as caught:
        build("model")

    [problem] = caught.value.problems
    assert problem.subject == "neuronx-cc, model"
    assert problem.found.startswith(said)
    assert advice in problem.hint
    [log] = (tmp_path / "work").glob("model-*/log-neuron-cc.txt")
    assert f"its log: {log}" in problem.hint
    assert f"to repeat it: cd {log.parent} && " in problem.hint
    assert "BirCodeGenLoop" in problem.hint or how == "70"
    assert list((tmp_path / "graphs").glob("*.neff*")) == []


def test_a_failure_shows_the_last_twenty_lines(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the code that stood before them."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", "70")

    with pytest.raises(ToolchainError) as caught:
        build("model")

    lines = caught.value.problems[0].hint.split("its last 20 lines:\n")[1].splitlines()
    assert len(lines) == 20
    assert "line 39, in" in "".join(lines)
    assert "line 10, in" not in "".join(lines)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("empty", "0 bytes; expected a header"),
        ("truncated", "as its header says"),
        ("damaged", "has the hash"),
        ("other-version", r"made by neuronx-cc 2.15.128.0; expected 2.21.33363.0\+82129205"),
    ],
)
def test_a_file_that_is_none_is_refused(
    how: str, text: str, build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the compiler said that it passed; nothing of it gets to where the NEFF belongs, or into the cache."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", how)
    cache = Cache(tmp_path / "cache", standin.VERSION)

    with pytest.raises(ToolchainError, match=text):
        build("model", cache=cache)

    assert list((tmp_path / "graphs").glob("*.neff*")) == []
    assert list((tmp_path / "cache").rglob("model.*")) == []


def test_one_failure_ends_the_others(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their processes, and their working files; those of the failure stay."""
    slow = tmp_path / "bin" / "neuronx-cc"
    slow.write_text(slow.read_text().replace("exec ", 'case "$2" in *longer*) sleep 300;; esac\nexec '))
    monkeypatch.setenv("NEURONX_CC_STANDIN", "TEN404")

    with pytest.raises(ToolchainError, match=r"neuronx-cc, model: exit code 70: \[TEN404\]"):
        build("model", "longer")

    assert [path.name[:6] for path in (tmp_path / "work").iterdir()] == ["model-"]


@pytest.mark.parametrize(
    ("hlo", "target", "text"),
    [
        (b"no module", "trn1", "cannot be read as HLO"),
        (standin.graph(dtype="f64"), "trn1", r"\[NCC_ESPP004\]"),
        (standin.graph(dtype="c64"), "trn1", r"\[NCC_EVRF004\]"),
        (standin.graph(opcode="cholesky"), "trn1", r"\[NCC_EUOC002\]"),
        (standin.graph(opcode="custom-call"), "trn1", r"\[NCC_EHCA005\]"),
        (standin.graph(first_id=1 << 32), "trn1", "not unique 32-bit numbers"),
        (standin.graph(opcode="dot", dtype="s32"), "trn2", r"\[NCC_EVRF035\]"),
        (standin.graph(dims=(1 << 31, 3)), "trn1", r"\[NCC_EVRF009\]"),
    ],
)
def test_what_the_compiler_refuses_is_said_by_its_code(
    hlo: bytes, target: str, text: str, found: Compiler, tmp_path: Path
) -> None:
    """The stand-in holds graphs to the documented input rules."""
    flags = ("--framework=XLA", f"--target={target}")
    refused = graph(tmp_path, "model", hlo, flags)

    with pytest.raises(ToolchainError, match=text):
        tools.compile_graphs(
            found, [refused], folder=tmp_path / "work", memory_budget_bytes=PLENTY, on_line=lambda line: None
        )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--framework=XLA", "--target=trn1", "--lnc=2"), r"\[NCC_EARG001\]"),
        (("--framework=XLA", "--target=trn1", "--native-int64=disabled"), r"\[NCC_EARG002\].*--native-int64"),
        (("--framework=XLA", "--target=trn1", "--auto-cast=matmul"), "invalid choice: 'matmul'"),
        (("--target=trn1",), "arguments are required: --framework"),
    ],
)
def test_what_the_command_line_refuses_is_said(
    flags: tuple[str, ...], text: str, found: Compiler, tmp_path: Path
) -> None:
    """The stand-in holds flags to the documented command line."""
    with pytest.raises(ToolchainError, match=text):
        tools.compile_graphs(
            found,
            [graph(tmp_path, "model", flags=flags)],
            folder=tmp_path / "work",
            memory_budget_bytes=PLENTY,
            on_line=lambda line: None,
        )


def test_an_absent_graph_is_said(found: Compiler, tmp_path: Path) -> None:
    """Before anything is started."""
    absent = Graph(name="model", hlo=tmp_path / "absent.hlo.pb", neff=tmp_path / "absent.neff", arguments=FLAGS)

    with pytest.raises(ToolchainError, match=r"absent.hlo.pb: No such file or directory; expected a lowered graph"):
        tools.compile_graphs(
            found, [absent], folder=tmp_path / "work", memory_budget_bytes=PLENTY, on_line=lambda line: None
        )


def test_a_name_that_leads_out_of_the_work_folder_does_not(found: Compiler, tmp_path: Path) -> None:
    """A record of lowered graphs may come from anywhere."""
    evil = Graph(
        name="../../evil", hlo=graph(tmp_path, "model").hlo, neff=tmp_path / "graphs" / "model.neff", arguments=FLAGS
    )

    tools.compile_graphs(
        found, [evil], folder=tmp_path / "work", memory_budget_bytes=PLENTY, on_line=lambda line: None, keep=True
    )

    assert [path.parent for path in tmp_path.rglob("*evil*")] == [tmp_path / "work"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_whatever_ends_us_ends_all_compilers(
    kind: type[BaseException], build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what they started."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", "hang")

    def stop(number: int, frame: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(kind):
            build("a", "bb")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    pids = [int(pid) for path in (tmp_path / "called").glob("pids-*") for pid in path.read_text().split()]
    assert len(pids) == 4
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert list((tmp_path / "work").iterdir()) == []


# With a cache


def test_what_was_compiled_is_not_compiled_again(build: Callable[..., Any], tmp_path: Path) -> None:
    """The same file, from the cache; another graph is compiled."""
    cache = Cache(tmp_path / "cache", standin.VERSION)
    build("model", cache=cache)
    first = (tmp_path / "graphs" / "model.neff").read_bytes()
    (tmp_path / "graphs" / "model.neff").unlink()

    compiled, lines = build("model", "another", cache=cache)

    assert [(graph.name, graph.cached) for graph in compiled] == [("model", True), ("another", False)]
    assert (tmp_path / "graphs" / "model.neff").read_bytes() == first
    assert [call["graph"] for call in calls(tmp_path)] == ["model", "another"]
    assert "model: found in the compile cache" in [line.progress for line in lines]


def test_a_damaged_entry_is_compiled_again(build: Callable[..., Any], tmp_path: Path) -> None:
    """And put right."""
    cache = Cache(tmp_path / "cache", standin.VERSION)
    build("model", cache=cache)
    [cached] = (tmp_path / "cache").rglob("model.neff")
    cached.write_bytes(cached.read_bytes()[:-1])

    again, _ = build("model", cache=cache)
    third, _ = build("model", cache=cache)

    assert [again[0].cached, third[0].cached] == [False, True]


def test_a_failure_is_tried_again(build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is in the cache."""
    cache = Cache(tmp_path / "cache", standin.VERSION)
    monkeypatch.setenv("NEURONX_CC_STANDIN", "F137")
    with pytest.raises(ToolchainError):
        build("model", cache=cache)
    monkeypatch.delenv("NEURONX_CC_STANDIN")

    compiled, _ = build("model", cache=cache)

    assert compiled[0].cached is False
    assert len(calls(tmp_path)) == 2


def test_equal_graphs_of_one_run_are_compiled_once(found: Compiler, tmp_path: Path) -> None:
    """The second waits for the first."""
    cache = Cache(tmp_path / "cache", standin.VERSION)
    graphs = [graph(tmp_path, name, standin.graph()) for name in ("first", "second")]

    compiled = tools.compile_graphs(
        found,
        graphs,
        folder=tmp_path / "work",
        memory_budget_bytes=PLENTY,
        on_line=lambda line: None,
        cache=cache,
    )

    assert [graph.cached for graph in compiled] == [False, True]
    assert len(calls(tmp_path)) == 1


def test_two_processes_compile_a_graph_once(
    build: Callable[..., Any], found: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for the other, says so, and takes what it made."""
    monkeypatch.setenv("NEURONX_CC_STANDIN", "slow")
    cache = Cache(tmp_path / "cache", standin.VERSION)
    made = graph(tmp_path, "model")
    call = (
        "from pathlib import Path; from llmcompile.exporters.neuron.compiler import *; "
        "from llmcompile.exporters.neuron.cache import Cache; "
        f"graph = Graph(name='model', hlo=Path({str(made.hlo)!r}), neff=Path({str(tmp_path / 'other.neff')!r}), "
        f"arguments={FLAGS!r}); "
        f"compile_graphs(Compiler(Path({str(found.path)!r}), {standin.VERSION!r}), [graph], "
        f"folder=Path({str(tmp_path / 'other')!r}), memory_budget_bytes=1 << 40, "
        f"on_line=lambda line: print(line.text, flush=True), cache=Cache(Path({str(tmp_path / 'cache')!r}), "
        f"{standin.VERSION!r}))"
    )
    other = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"model: compiling\n"

    compiled, lines = build("model", cache=cache)

    assert compiled[0].cached is True
    assert lines[0].progress == "model: waiting for another process that compiles it"
    other.communicate()
    assert (tmp_path / "other.neff").read_bytes() == (tmp_path / "graphs" / "model.neff").read_bytes()
    assert len(calls(tmp_path)) == 1


def test_a_full_cache_stops_nobody(build: Callable[..., Any], tmp_path: Path) -> None:
    """The graph is compiled, and the reason said."""
    cache = Cache(tmp_path / "cache", standin.VERSION)
    name = module_name(standin.graph(dims=(5, 3)), FLAGS)
    folder = tmp_path / "cache" / f"neuronxcc-{standin.VERSION}"
    folder.mkdir(parents=True)
    (folder / f".{name}.new").write_text("a file where a folder should be")

    compiled, lines = build("model", cache=cache)

    assert compiled[0].cached is False
    assert any("not added to the compile cache" in line.text for line in lines)


# Commands for elsewhere


def test_the_script_compiles_every_graph(found: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it is called, with the compiler on PATH and nothing of ours."""
    for name in ("context_encoding_16", "it's $HOME"):
        graph(tmp_path, name)
    flags = {"context_encoding_16": FLAGS, "it's $HOME": (*FLAGS, "--enable-fast-loading-neuron-binaries")}
    text, script = tools.commands(flags)
    (tmp_path / "compile.sh").write_text(script)
    monkeypatch.setenv("PATH", f"{found.path.parent}:{os.environ['PATH']}")

    subprocess.run(["sh", str(tmp_path / "compile.sh")], cwd="/", check=True, stdout=subprocess.DEVNULL)

    assert (tmp_path / "graphs" / "context_encoding_16.neff").stat().st_size > 1024
    assert (tmp_path / "graphs" / "it's $HOME.neff").stat().st_size > 1024
    entries = json.loads(text)
    assert [entry["graph"] for entry in entries] == list(flags)
    assert [entry["arguments"][1:] for entry in entries] == [call["words"] for call in calls(tmp_path)]
    assert entries[0]["arguments"] == [
        "neuronx-cc",
        "compile",
        "graphs/context_encoding_16.hlo.pb",
        *FLAGS,
        "--output=graphs/context_encoding_16.neff",
        "--logfile=graphs/context_encoding_16.log",
        "--verbose=info",
    ]


@pytest.mark.parametrize("how", ["a=TEN404", "a=no-file"])
def test_the_script_ends_at_the_first_failure(
    how: str, found: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit code, or a file that is not there."""
    for name in ("a", "b"):
        graph(tmp_path, name)
    (tmp_path / "compile.sh").write_text(tools.commands({"a": FLAGS, "b": FLAGS})[1])
    monkeypatch.setenv("PATH", f"{found.path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NEURONX_CC_STANDIN", how)

    done = subprocess.run(["sh", "compile.sh"], cwd=tmp_path, check=False, stdout=subprocess.DEVNULL)

    assert done.returncode != 0
    assert [call["graph"] for call in calls(tmp_path)] == ["a"]
