"""Neuron artifacts of tiny models as the exporter writes them, and ways to break them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file, save_file
from torch import Tensor

import neuron_decoders
from llmcompile.exporters.neuron import encoders
from llmcompile.exporters.neuron.lowering.program import Lowered
from llmcompile.exporters.neuron.network import export_graphs
from llmcompile.exporters.neuron.options import Shapes
from llmcompile.exporters.neuron.signature import to_json
from llmcompile.exporters.neuron.weights import write_weights
from llmcompile.hlo import Instruction, Module, Shape, parse, serialize
from llmcompile.hlo.fields import InstructionField
from llmcompile.validation.neuron import Subject
from llmcompile.writing import WorkDirectory

DTYPES: Mapping[str, Any] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
Behind: TypeAlias = Callable[[Instruction, Iterator[int]], list[Instruction]]
"""(a value, ids nobody has) -> instructions, the last of which takes the value's place."""


def decoder(
    checkpoint: Path,
    folder: Path,
    *,
    ranks: int,
    slots: int,
    buckets: tuple[int, ...],
    dtype: str = "float32",
    batch: int = 2,
) -> Subject:
    """Lower a checkpoint's decoder, and write its weights, into `folder`."""
    options = neuron_decoders.options_for(ranks=ranks, batch=batch, slots=slots, buckets=buckets, torch_dtype=dtype)
    written = neuron_decoders.write(checkpoint, folder, options)
    for graph in export_graphs(written.architecture, written.dims, options, dtype=written.layout.dtype):
        _write_graph(folder, graph)
    return _subject(folder, checkpoint, "text-generation", dtype, written.architecture.name)


def encoder(
    checkpoint: Path,
    folder: Path,
    task: str,
    *,
    batch: int,
    sequence: int,
    choices: int | None = None,
    dtype: str = "float32",
    states: bool = False,
) -> Subject:
    """Lower a checkpoint's encoder for a task, and write its weights, into `folder`.

    Args:
        checkpoint: As transformers saves models.
        folder: Made where it does not exist.
        task: One of the exporter's.
        batch: Rows.
        sequence: Tokens of each.
        choices: Answers of multiple-choice.
        dtype: Of weights and arithmetic.
        states: Whether hidden states and attention weights are outputs.
    """
    shapes = Shapes(batch_size=batch, sequence_length=sequence, num_choices=choices)
    built = encoders.build(checkpoint, task, shapes, dtype, output_hidden_states=states, output_attentions=states)
    graph = encoders.export_encoder(built)
    tensors = dict(encoders.weights(built, graph))
    with WorkDirectory(folder, job={}, resume=False, force=False) as work:
        write_weights(graph.signature.weights, tensors.__getitem__, work)
        work.publish()
    _write_graph(folder, graph)
    subject = _subject(folder, checkpoint, task, dtype, "")
    return replace(subject, output_hidden_states=states, output_attentions=states)


def copied(subject: Subject, folder: Path) -> Subject:
    """The same artifact in another folder, to be broken."""
    shutil.copytree(subject.folder, folder)
    return replace(subject, folder=folder)


def _write_graph(folder: Path, graph: Lowered) -> None:
    name = graph.signature.name
    (folder / "graphs").mkdir(exist_ok=True)
    (folder / f"graphs/{name}.hlo.pb").write_bytes(graph.module)
    (folder / f"graphs/{name}.json").write_text(to_json(graph.signature))


def _subject(folder: Path, checkpoint: Path, task: str, dtype: str, family: str) -> Subject:
    files = tuple(sorted(checkpoint.glob("*.safetensors")))
    stored = {str(tensor.dtype).removeprefix("torch.") for file in files for tensor in load_file(file).values()}
    return Subject(
        folder=folder,
        checkpoint=checkpoint,
        weight_files=files,
        task=task,
        dtype=DTYPES[dtype],
        stored_dtype=DTYPES[stored.pop()] if len(stored) == 1 else "mixed",
        family=family,
    )


def rank_file(subject: Subject, rank: int) -> Path:
    """A rank's weights."""
    return subject.folder / f"weights/tp{rank}_sharded_checkpoint.safetensors"


def tensors(subject: Subject, rank: int) -> dict[str, Tensor]:
    """What is in a rank's file."""
    return load_file(rank_file(subject, rank))


def put(subject: Subject, rank: int, changed: Mapping[str, Tensor], *, gone: str = "") -> None:
    """Write a rank's file anew, with some tensors changed or more, and one gone."""
    merged = {name: tensor for name, tensor in {**tensors(subject, rank), **changed}.items() if name != gone}
    save_file({name: tensor.clone().contiguous() for name, tensor in merged.items()}, rank_file(subject, rank))


def border(subject: Subject, graph: str) -> dict[str, Any]:
    """What the file beside a graph says."""
    content: dict[str, Any] = json.loads((subject.folder / f"graphs/{graph}.json").read_text())
    return content


def put_border(subject: Subject, graph: str, content: object) -> None:
    """Write the file beside a graph anew."""
    (subject.folder / f"graphs/{graph}.json").write_text(json.dumps(content))


def rewrite(subject: Subject, graph: str, change: Callable[[Module], Module]) -> None:
    """Let `change` change a graph."""
    path = subject.folder / f"graphs/{graph}.hlo.pb"
    path.write_bytes(serialize(change(parse(path.read_bytes()))))


def without(opcode: str, number: int) -> Callable[[Module], Module]:
    """A change that leaves an operation out, so that its operand goes through as it is."""

    def change(module: Module) -> Module:
        place = [one for one in module.entry.instructions if one.opcode == opcode][number]
        return _replaced(module, {place.id: place.operand_ids[0]}, module.entry.instructions)

    return change


def behind_parameter(name: str, made: Behind) -> Callable[[Module], Module]:
    """A change of what everyone reads of the parameter whose name begins so."""

    def change(module: Module) -> Module:
        place = next(one for one in module.parameters if one.name.startswith(f"{name}."))
        more = made(place, module.fresh_ids())
        instructions = []
        for one in module.entry.instructions:
            instructions += [one, *more] if one.id == place.id else [one]
        return _replaced(module, {place.id: more[-1].id}, instructions, kept={one.id for one in more})

    return change


def in_result(number: int, made: Behind) -> Callable[[Module], Module]:
    """A change of the result of that number."""

    def change(module: Module) -> Module:
        entry = module.entry
        place = entry.by_id[entry.root.operand_ids[number]]
        more = made(place, module.fresh_ids())
        operands = list(entry.root.operand_ids)
        operands[number] = more[-1].id
        others = [one for one in entry.instructions if one.id != entry.root_id]
        root = entry.root.with_operands(operands)
        return module.with_computation(entry.with_instructions([*others, *more, root], root_id=root.id))

    return change


def result_is(number: int, parameter: str) -> Callable[[Module], Module]:
    """A change that gives a parameter back unchanged as the result of that number."""

    def change(module: Module) -> Module:
        given = next(one for one in module.parameters if one.name.startswith(f"{parameter}."))
        return in_result(number, lambda _, ids: [operation("copy", given.shape, next(ids), given)])(module)

    return change


def operation(
    opcode: str, shape: Shape, id: int, *operands: Instruction, dimensions: tuple[int, ...] = ()
) -> Instruction:
    """An instruction."""
    made = Instruction.make(opcode, shape, id=id, operand_ids=[one.id for one in operands])
    return Instruction(made.message.with_integers(InstructionField.DIMENSIONS, dimensions))


def reversed_along(axis: int) -> Behind:
    """The value, its elements along an axis in the opposite order."""
    return lambda value, ids: [operation("reverse", value.shape, next(ids), value, dimensions=(axis,))]


def later_in_later_rows(value: Instruction, ids: Iterator[int]) -> list[Instruction]:
    """Integers (rows, ...) plus the number of their row."""
    row = operation("iota", value.shape, next(ids), dimensions=(0,))
    return [row, operation("add", value.shape, next(ids), value, row)]


def more_on_later_ranks(value: Instruction, ids: Iterator[int]) -> list[Instruction]:
    """Floats plus the number of the rank."""
    rank = operation("replica-id", Shape("u32"), next(ids))
    number = operation("convert", Shape(value.shape.dtype), next(ids), rank)
    wide = operation("broadcast", value.shape, next(ids), number)
    return [rank, number, wide, operation("add", value.shape, next(ids), value, wide)]


def _replaced(
    module: Module, stand_in: Mapping[int, int], instructions: Sequence[Instruction], kept: Collection[int] = ()
) -> Module:
    """With other operands everywhere but in the instructions that are kept."""
    entry = module.entry
    moved = [
        one if one.id in kept else one.with_operands([stand_in.get(id, id) for id in one.operand_ids])
        for one in instructions
    ]
    return module.with_computation(entry.with_instructions(moved, root_id=entry.root_id))
