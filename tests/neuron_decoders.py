"""Tiny decoders as every rank's file of weights, run eagerly with all ranks in lockstep, and by transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BY_NAME
from llmcompile.exporters.neuron.layout import make_layout
from llmcompile.exporters.neuron.lowering import collectives
from llmcompile.exporters.neuron.network import TORCH_DTYPES, Decoder
from llmcompile.exporters.neuron.options import NeuronOptions, Shapes
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.pipeline.job import prevailing_dtype
from llmcompile.plan import make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

SLOTS = 16


def options_for(*, ranks: int, batch: int = 2, slots: int = SLOTS, **given: Any) -> NeuronOptions:
    """Options of a decoder."""
    build = BuildOptions(model="m", output=Path("out"))
    shapes = Shapes(batch_size=batch, sequence_length=slots)
    return NeuronOptions(build=build, task="text-generation", shapes=shapes, num_cores=ranks, **given)


@dataclass(frozen=True)
class Written:
    """A decoder's weights on every rank.

    Attributes:
        architecture: Its family.
        dims: Its sizes and facts.
        options: What it was written with.
        layout: What was written.
        ranks: Tensors of rank 0, 1 and so on.
    """

    architecture: Architecture
    dims: Dims
    options: NeuronOptions
    layout: Layout
    ranks: list[dict[str, Tensor]]


def write(checkpoint_folder: Path, out: Path, options: NeuronOptions) -> Written:
    """Write every rank's weights as llmcompile does, and read them back."""
    checkpoint = open_checkpoint(checkpoint_folder)
    architecture = lookup(checkpoint.config, checkpoint.tensors)
    dims = architecture.dims(checkpoint.config)
    layout = make_layout(architecture, dims, options, source_dtype=prevailing_dtype(checkpoint), model_label="m")
    assert layout.refusals == ()
    plan = make_plan(
        architecture,
        dims,
        checkpoint.tensors,
        layout.rows,
        ranks=layout.ranks,
        dtype=layout.dtype,
        unused=layout.unused,
    )
    assert plan.problems == ()
    with WorkDirectory(out, job={}, resume=False, force=False) as work:
        stream(
            plan,
            checkpoint.files,
            work,
            prefix=layout.folder,
            budget_bytes=1 << 30,
            workers=1,
            advance=lambda size_bytes, tensor: None,
        )
        work.publish()
    files = [out / f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(options.num_cores)]
    return Written(architecture, dims, options, layout, [load_file(file) for file in files])


class Lockstep:
    """Ranks in threads that meet at every collective."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks)
        self._parts: list[Tensor | None] = [None] * ranks
        self._here = threading.local()
        self._ranks = ranks

    def _exchanged(self, x: Tensor) -> list[Tensor]:
        self._parts[self._here.rank] = x
        self._barrier.wait()
        parts = [part for part in self._parts if part is not None]
        self._barrier.wait()
        return parts

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors."""
        parts = self._exchanged(x)
        total = parts[0].clone()
        for part in parts[1:]:
            total = total + part
        return total

    def all_gather(self, x: Tensor, dim: int, ranks: int) -> Tensor:
        """All ranks' tensors side by side."""
        assert ranks == self._ranks
        return torch.cat(self._exchanged(x), dim)

    def run(self, calls: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """Every rank's result of a call each."""

        def on(rank: int) -> Tensor:
            self._here.rank = rank
            try:
                with torch.no_grad():
                    return calls[rank]()
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self._ranks) as pool:
            return list(pool.map(on, range(self._ranks)))


@contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch, ranks: int) -> Iterator[Lockstep]:
    """Collectives between threads of this process instead of the operators that only a graph has."""
    together = Lockstep(ranks)
    with monkeypatch.context() as patch:
        patch.setattr(collectives, "all_reduce", together.all_reduce)
        patch.setattr(collectives, "all_gather", together.all_gather)
        yield together


def decoders_of(written: Written, *, device: str = "cpu") -> list[Decoder]:
    """The network of every rank, with its weights where the device is not meta."""
    shapes = written.options.shapes
    assert shapes.batch_size is not None
    assert shapes.sequence_length is not None
    made = []
    for weights in written.ranks:
        decoder = Decoder(
            written.architecture,
            written.dims,
            batch=shapes.batch_size,
            sequence_length=shapes.sequence_length,
            ranks=written.options.num_cores,
            dtype=TORCH_DTYPES[BY_NAME[written.layout.dtype.name]],
            device=device,
        ).eval()
        if device != "meta":
            names = set(decoder.state_dict())
            assert names <= set(weights)
            decoder.load_state_dict({name: weights[name] for name in names})
        made.append(decoder)
    return made


Runner = Callable[[Tensor, Tensor], list[Tensor]]
"""(input_ids, position_ids) -> every rank's logits, each call going on from the caches of the last."""


def padded(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[Tensor, Tensor]:
    """Prompts as input_ids and position_ids of a graph for so many tokens, padded on the right."""
    ids = torch.zeros((len(prompts), tokens), dtype=torch.int32)
    positions = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
        positions[row, : len(prompt)] = torch.arange(len(prompt), dtype=torch.int32)
    return ids, positions


def texts(lengths: Sequence[int], steps: int, *, vocab: int, seed: int = 7) -> list[list[int]]:
    """Random tokens, for each row its prompt and what follows it."""
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (length + steps,), generator=numbers).tolist() for length in lengths]


def followed(run: Runner, rows: Sequence[Sequence[int]], lengths: Sequence[int], steps: int, *, bucket: int) -> Tensor:
    """Logits behind each row's prompt and behind each of `steps` given tokens, (rows, 1 + steps, vocabulary).

    Asserts that all ranks agree to the bit.
    """
    found = []
    calls = [padded([row[:length] for row, length in zip(rows, lengths, strict=True)], bucket)]
    for step in range(steps):
        places = [length + step for length in lengths]
        ids = [[row[place]] for row, place in zip(rows, places, strict=True)]
        positions = torch.tensor([[place] for place in places], dtype=torch.int32)
        calls.append((torch.tensor(ids, dtype=torch.int32), positions))
    for ids, positions in calls:
        ranks = run(ids, positions)
        assert all(torch.equal(ranks[0], other) for other in ranks)
        found.append(ranks[0])
    return torch.cat(found, 1)


def expected(model: Any, rows: Sequence[Sequence[int]], lengths: Sequence[int], steps: int) -> Tensor:
    """The same by transformers: each row alone, without padding and without a cache."""
    found = []
    for row, length in zip(rows, lengths, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
        found.append(logits[length - 1 : length + steps])
    return torch.stack(found)
