"""Record what optimum-neuron's wheels take: `python make.py WHEEL...` writes <version>.json beside this file.

The sources are parsed and never imported: optimum-neuron imports only where the Neuron SDK is.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ENTRY = "optimum/exporters/neuron/__main__.py"
CONVERT = "optimum/exporters/neuron/convert.py"
UTILS = "optimum/exporters/neuron/utils.py"
CONFIGS = ("optimum/exporters/neuron/config.py", "optimum/exporters/neuron/model_configs.py")
OPTIONS = "optimum/commands/export/neuronx.py"
INSTANCES = "optimum/neuron/utils/instance.py"
AUTO = "optimum/neuron/models/auto_model.py"
DECODERS = (
    ("optimum/neuron/models/inference/modeling_utils.py", "NeuronPreTrainedModel"),
    ("optimum/neuron/modeling_decoder.py", "NeuronModelForCausalLM"),
)
WIDTH = 118
CLASSES = "optimum/neuron/models/inference/auto_models.py"


def record(wheel: Path) -> dict[str, Any]:
    """Everything the adapter relies on, of one wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        read = {ENTRY, CONVERT, UTILS, *CONFIGS, OPTIONS, INSTANCES, AUTO, CLASSES, *(path for path, _ in DECODERS)}
        trees = {name: ast.parse(archive.read(name)) for name in read & names}
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    path, kind = next((path, kind) for path, kind in DECODERS if path in trees)
    constants = {}
    if INSTANCES in trees:
        constants["SUPPORTED_INSTANCE_TYPES"] = assigned(trees[INSTANCES], "SUPPORTED_INSTANCE_TYPES")
    return {
        "version": re.search(r"^Version: (.+)$", metadata, re.MULTILINE)[1],
        "requires_python": re.search(r"^Requires-Python: (.+)$", metadata, re.MULTILINE)[1],
        "requires": sorted(re.findall(r"^Requires-Dist: ([^;\n]+); extra == .neuronx.$", metadata, re.MULTILINE)),
        "functions": {
            "main_export": signature(function(trees[ENTRY], "main_export")),
            "normalize_diffusers_input_shapes": signature(function(trees[ENTRY], "normalize_diffusers_input_shapes")),
            "build_stable_diffusion_components_mandatory_shapes": signature(
                function(trees[UTILS], "build_stable_diffusion_components_mandatory_shapes")
            ),
            "compile": signature(function(trees[CONVERT], "export")),
            "get_neuron_model_class": signature(function(trees[AUTO], "get_neuron_model_class")),
            "get_neuron_config": signature(function(trees[path], "get_neuron_config", kind)),
            "export": signature(function(trees[path], "export", kind)),
        },
        "options": list(options(trees[OPTIONS], constants)),
        "tasks": tasks([trees[name] for name in CONFIGS]),
        "decoders": sorted(decoders(trees[CLASSES])),
    }


def function(tree: ast.Module, name: str, kind: str | None = None) -> ast.FunctionDef:
    """A function of a module, or of a class of it."""
    body: list[ast.stmt] = tree.body
    if kind is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == kind).body
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)


def signature(found: ast.FunctionDef) -> dict[str, Any]:
    """Arguments with the source of their defaults, null for one that must be given; whether it takes any keyword."""
    arguments = [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]
    plain = len(found.args.posonlyargs) + len(found.args.args)
    defaults = [None] * (plain - len(found.args.defaults)) + [*found.args.defaults, *found.args.kw_defaults]
    named = {
        argument.arg: None if default is None else ast.unparse(default)
        for argument, default in zip(arguments, defaults, strict=True)
        if argument.arg != "cls"
    }
    return {"arguments": named, "keywords": found.args.kwarg is not None}


def options(tree: ast.Module, constants: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each option of the command line: its names, and what argparse is told of it, help text apart."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            told = {word.arg: value(word.value, constants) for word in node.keywords if word.arg != "help"}
            yield {"names": [value(name, constants) for name in node.args], **told}


def value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """What a literal, or a name of `constants`, is; the source of anything else."""
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def tasks(trees: list[ast.Module]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """The shapes each task of each model type needs, by library."""
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    constants = {"COMMON_TEXT_TASKS": assigned(trees[-1], "COMMON_TEXT_TASKS")}
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for kind in classes.values():
        for call in kind.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_in_tasks_manager":
                words = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                model, *named = flat(call.args, constants)
                shapes = {task: shapes_of(input_args(kind.name, classes), task) for task in named}
                found.setdefault(words.get("library_name", "transformers"), {})[model] = shapes
    return {library: dict(sorted(models.items())) for library, models in sorted(found.items())}


def flat(arguments: list[ast.expr], constants: Mapping[str, list[str]]) -> list[str]:
    """Positional arguments with the starred ones opened."""
    names: list[str] = []
    for node in arguments:
        names += several(node.value, constants) if isinstance(node, ast.Starred) else [ast.literal_eval(node)]
    return names


def several(node: ast.expr, constants: Mapping[str, list[str]]) -> list[str]:
    """A list of literals, a constant, or `[x for x in CONSTANT if x != literal]`."""
    if isinstance(node, ast.Name):
        return constants[node.id]
    if isinstance(node, ast.ListComp):
        (loop,) = node.generators
        (test,) = loop.ifs
        assert isinstance(loop.iter, ast.Name)
        assert isinstance(test, ast.Compare)
        assert isinstance(test.ops[0], ast.NotEq)
        without = ast.literal_eval(test.comparators[0])
        return [name for name in constants[loop.iter.id] if name != without]
    return list(ast.literal_eval(node))


def input_args(name: str, classes: Mapping[str, ast.ClassDef]) -> list[Any]:
    """INPUT_ARGS of a class or of the first of its bases that has them."""
    if name not in classes:
        return []
    try:
        return list(assigned(classes[name], "INPUT_ARGS"))
    except StopIteration:
        for base in classes[name].bases:
            found = input_args(ast.unparse(base), classes)
            if found != []:
                return found
        return []


def shapes_of(arguments: list[Any], task: str) -> list[str]:
    """Those of INPUT_ARGS that a task needs: a pair is a task, or several, and a name."""
    needed = []
    for entry in arguments:
        only, name = entry if isinstance(entry, tuple) else (task, entry)
        if task in (only if isinstance(only, tuple) else (only,)):
            needed.append(name)
    return needed


def assigned(scope: ast.Module | ast.ClassDef, name: str) -> Any:
    """The literal that a name of a module or class is set to."""
    targets = (node for node in scope.body if isinstance(node, ast.Assign))
    return ast.literal_eval(next(node.value for node in targets if ast.unparse(node.targets[0]) == name))


def decoders(tree: ast.Module) -> Iterator[list[str]]:
    """Model type and task of each class for neuronx-distributed."""
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else []:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_neuron_model_for_inference":
                yield [ast.literal_eval(argument) for argument in call.args]


def laid_out(content: Any, indent: int = 0, begun: int = 0) -> str:
    """JSON with whatever fits a line on one; `begun` characters of the first line are taken."""
    line = json.dumps(content)
    if indent + begun + len(line) <= WIDTH or not isinstance(content, dict | list):
        return line
    inner = indent + 1
    if isinstance(content, dict):
        parts = [f"{json.dumps(key)}: {laid_out(part, inner, len(key) + 5)}" for key, part in content.items()]
    else:
        parts = [laid_out(part, inner) for part in content]
    opening, closing = "{}" if isinstance(content, dict) else "[]"
    return f"{opening}\n" + ",\n".join(f"{' ' * inner}{part}" for part in parts) + f"\n{' ' * indent}{closing}"


def main(wheels: list[str]) -> None:
    """Write a file for each wheel."""
    for wheel in wheels:
        found = record(Path(wheel))
        Path(__file__).with_name(f"{found['version']}.json").write_text(laid_out(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
