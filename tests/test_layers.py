"""The import order of docs/architecture.md, and what the command line may import before it is asked to work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "llmcompile"
LAYERS = {
    "errors": 0,
    "dtypes": 0,
    "environment": 0,
    "checkpoint": 1,
    "hlo": 1,
    "onnx_model": 1,
    "transforms": 1,
    "architectures": 2,
    "quantization": 2,
    "ranges": 2,
    "writing": 2,
    "plan": 3,
    "assembly": 4,
    "stream": 5,
    "exporters": 6,
    "validation": 6,
    "packaging": 6,
    "calibration": 7,
    "pipeline": 8,
    "cli": 9,
    "__main__": 10,
}
"""`environment` imports nothing of ours; only the pipeline and the command line import it."""
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "transformers", "numpy", "safetensors", "huggingface_hub", "jax", "onnx", "onnxruntime", "matplotlib")
"""pydantic is not among them, since newer releases of typer import it themselves; our models stay behind the last."""


def modules(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> Iterator[tuple[str, ...]]:
    """The path below llmcompile of every module of ours that a file imports; a name of llmcompile itself is none."""
    for module in modules(path):
        name = tuple(module.split("."))
        if name[0] == "llmcompile" and len(name) > 1 and name[1] in LAYERS:
            yield name[1:]


def package(path: Path) -> str:
    """The package or module directly below llmcompile that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_module_has_a_layer() -> None:
    """A new package must say where it stands."""
    assert {package(path) for path in FILES} - {"__init__"} == LAYERS.keys()


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_imports_point_down(path: Path) -> None:
    """To a strictly lower layer, or inside the file's own package."""
    mine = package(path)
    layer = LAYERS.get(mine, 0)

    upward = {name[0] for name in ours(path) if name[0] != mine and LAYERS[name[0]] >= layer}

    assert upward == set()


def test_the_environment_is_for_the_pipeline_and_the_command_line() -> None:
    """Nothing below decides by what the machine has."""
    importers = {package(path) for path in FILES if any(name[0] == "environment" for name in ours(path))}

    assert importers <= {"pipeline", "cli"}


def test_validation_knows_neither_exporters_nor_architectures() -> None:
    """It cannot repeat the mistakes of the code that wrote the files; `hlo` and `onnx_model` are formats."""
    found = {name[0] for path in (SOURCE / "validation").rglob("*.py") for name in ours(path)}

    assert found <= {"validation", "errors", "dtypes", "hlo", "onnx_model"}


def test_the_executor_knows_only_errors() -> None:
    """FasterTransformer's runtime is rewritten from the vendor's sources alone."""
    found = {name[:2] for path in (SOURCE / "validation" / "fastertransformer").rglob("*.py") for name in ours(path)}

    assert {name[0] for name in found} <= {"validation", "errors"}
    assert {name[1] for name in found if name[0] == "validation"} == {"fastertransformer"}


def test_exporters_do_not_know_each_other() -> None:
    """exporters/x never imports exporters/y."""
    crossed = []
    for folder in (path for path in (SOURCE / "exporters").iterdir() if path.is_dir()):
        others = {path.name for path in (SOURCE / "exporters").iterdir() if path.is_dir()} - {folder.name}
        for path in folder.rglob("*.py"):
            crossed += [name for name in ours(path) if name[0] == "exporters" and name[1] in others]

    assert crossed == []


def test_only_the_hub_module_uses_the_network() -> None:
    """huggingface_hub is imported in one file."""
    importers = {str(p.relative_to(SOURCE)) for p in FILES if any(m.startswith("huggingface_hub") for m in modules(p))}

    assert importers == {"checkpoint/hub.py"}


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("onnx", {"onnx_model.py"}),
        ("onnxruntime", {"validation/ort.py"}),
        ("matplotlib", {"pipeline/plotting.py"}),
        ("onnxscript", set()),
        ("tensorrt_rtx", set()),
        ("tensorrt_rtx_bindings", set()),
    ],
)
def test_a_package_of_an_extra_is_imported_in_one_file(package: str, home: set[str]) -> None:
    """The builder's is imported by name, in a process of its own; torch.onnx imports onnxscript."""
    importers = {str(p.relative_to(SOURCE)) for p in FILES if any(m.split(".")[0] == package for m in modules(p))}

    assert importers == home


def test_click_is_typers_business() -> None:
    """Typer carries its own, so nothing of ours imports click."""
    assert [path for path in FILES if any(module.split(".")[0] == "click" for module in modules(path))] == []


def test_only_the_console_prints() -> None:
    """No other file calls print, writes to the standard streams or makes a rich console; --version echoes."""
    allowed = {"cli/console.py", "cli/__init__.py"}
    printing = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
            if name in ("print", "sys.stdout", "sys.stderr", "typer.echo", "typer.secho", "rich.print", "RichConsole"):
                printing.add(str(path.relative_to(SOURCE)))

    assert printing <= allowed


COMMANDS = [
    [],
    ["partition"],
    ["partition", "ft"],
    ["build"],
    ["build", "trtllm"],
    ["build", "tensorrt-rtx"],
    ["export"],
    ["export", "neuron"],
    ["quantize"],
    ["verify"],
]
_LIST = (
    "import sys\nfrom llmcompile.cli import app\n"
    "try:\n    app([*sys.argv[1:], '--help'])\n"
    f"finally:\n    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
)


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(["llmcompile", *command]) for command in COMMANDS])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """Neither torch nor transformers nor numpy nor our pydantic models."""
    done = subprocess.run([sys.executable, "-c", _LIST, *command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(["llmcompile", *command]) for command in COMMANDS])
def test_help_takes_less_than_a_third_of_a_second(command: list[str]) -> None:
    """Where importing typer and rich takes its usual eighth of one; on a slower or busier machine, 2.7 times that."""

    def seconds(*words: str) -> float:
        before, start = os.times(), time.monotonic()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return min(spent, time.monotonic() - start)

    ours, theirs = [], []
    for _ in range(15):
        ours.append(seconds("-m", "llmcompile", *command, "--help"))
        theirs.append(seconds("-c", "import typer, typer.rich_utils"))
        if min(ours) < max(0.3, 2.7 * min(theirs)):
            return
    raise AssertionError(f"{min(ours):.3f} s; importing typer and rich alone {min(theirs):.3f} s")
