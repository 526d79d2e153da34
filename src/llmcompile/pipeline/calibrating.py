"""The calibration stage: the model on a text, layer by layer, in the work directory, so that it can be resumed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmcompile import environment
from llmcompile.architectures import ARCHITECTURES
from llmcompile.architectures.spec import Dims
from llmcompile.checkpoint.headers import Stored
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import BF16, FP16, FP32
from llmcompile.exporters.trtllm.backend import make_layout
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline.job import BATCH_TOKENS, Job, View, after_calibration, planned, prevailing_dtype
from llmcompile.ranges import CACHED, CROSS, GROUP_OF, GROUPS, Measured, Ranges
from llmcompile.transforms import Array
from llmcompile.writing import WorkDirectory

if TYPE_CHECKING:
    from torch import Tensor

    from llmcompile.calibration.data import Samples
    from llmcompile.calibration.layers import Layers
    from llmcompile.calibration.measuring import LayerRanges, Places
    from llmcompile.validation.checks import StoredWeights
    from llmcompile.validation.reference import Weights

_FOLDER = "calibration/"
"""Inside the work directory; nothing of it is in the artifact."""


@dataclass(frozen=True)
class Calibrated:
    """What came of calibration: the job, now with its scales, the manifest's record, and what was measured."""

    job: Job
    record: records.Calibration
    ranges: Ranges


def read(job: Job) -> Samples | None:
    """The samples a job is calibrated on; None for one that needs none.

    Raises:
        OptionsError: --calib-dataset cannot be used.
        CheckpointError: There is no tokenizer.
    """
    options = job.options
    if job.layout.measurement is None or not isinstance(options, TrtllmOptions):
        return None
    from llmcompile.calibration.data import read_samples

    return read_samples(
        job.data,
        job.checkpoint.root,
        vocab=job.dims.sizes["vocab"],
        size=options.calib_size,
        length=min(options.calib_seq_len, job.dims.sizes.get("positions", options.calib_seq_len)),
        column=options.calib_column,
        trust_remote_code=options.build.trust_remote_code,
    )


def identity(job: Job, samples: Samples | None) -> Mapping[str, object]:
    """What of the samples, and of who measures, decides the artifact's bytes."""
    if samples is None:
        return {}
    assert isinstance(job.options, TrtllmOptions)
    name, version = calibrator(job)
    return {
        "calibration": {
            "sha256": samples.sha256,
            "column": job.options.calib_column,
            "tokens": list(samples.tokens.shape),
            # A tokenizer may run code of its own, which is in none of the files that are hashed.
            "tokens_sha256": hashlib.sha256(samples.tokens.numpy().tobytes()).hexdigest(),
            "calibrator": name,
            "version": version,
        }
    }


def calibrator(job: Job) -> tuple[Literal["llmcompile", "modelopt"], str | None]:
    """Who measures, and which release of nvidia-modelopt it is."""
    assert isinstance(job.options, TrtllmOptions)
    if job.options.calibrator != "modelopt":
        return "llmcompile", None
    from llmcompile.calibration.modelopt import installed_version

    return "modelopt", installed_version()


def calibrate(job: Job, samples: Samples, work: WorkDirectory, view: View, ranges: Ranges | None = None) -> Calibrated:
    """Measure every layer that an earlier run has not, and plan the job anew with what was found.

    Args:
        job: What is built.
        samples: What the model is run on.
        work: Where measured layers are kept.
        view: Shown how far it is.
        ranges: What another recipe, with the same `Measurement`, found on these samples; nothing is measured then.

    Raises:
        CheckpointError: The model's weights do not fit its config.json, or an activation is not finite.
        OutputError: The disk is full.
    """
    if ranges is None:
        ranges = _measured(job, samples, work, view)
    assert isinstance(job.options, TrtllmOptions)
    layout = make_layout(
        job.architecture,
        job.dims,
        job.options,
        source_dtype=prevailing_dtype(job.checkpoint),
        model_label=job.located.label,
        ranges=ranges,
    )
    plan = planned(job.checkpoint, job.architecture, job.dims, layout)
    resources = after_calibration(job.options.build, job.resources)
    return Calibrated(
        replace(job, layout=layout, plan=plan, resources=resources), _record(job, samples, ranges), ranges
    )


def _measured(job: Job, samples: Samples, work: WorkDirectory, view: View) -> Ranges:
    steps = _steps(job.dims)
    found = _finished(work, len(steps))
    if len(found) < len(steps):
        _measure(job, samples, work, view, found)
    return Ranges(
        {(step.layer, group): one for number, step in enumerate(steps) for group, one in found[number].linears.items()},
        {step.layer: cache for number, step in enumerate(steps) if (cache := found[number].cache) is not None},
        {step.layer: found[number].unreached for number, step in enumerate(steps) if found[number].unreached != ()},
    )


def discard(work: WorkDirectory) -> None:
    """Take what calibration kept for a resumed run off the artifact's files."""
    for file in [file for file in work.finished if file.startswith(_FOLDER)]:
        work.forget(file)


def _measure(job: Job, samples: Samples, work: WorkDirectory, view: View, found: dict[int, LayerRanges]) -> None:
    import torch

    assert job.layout.measurement is not None
    dtype = {FP16: torch.float16, BF16: torch.bfloat16}.get(job.layout.dtype, torch.float32)
    steps = _steps(job.dims)
    needed = {_states(len(found)), *((_ENCODED,) if steps[len(found)].stack == "decoder" else ())}
    if not needed <= work.finished.keys():
        # The hidden states that a stopped run left are gone or damaged: begin again.
        found.clear()
    first = len(found)
    measure = _measurer(job, samples)
    with _source(job) as (config_dir, weights), view.calibrating(len(steps), first) as advance:
        run = _Run(job, samples, work, config_dir, weights)
        stack = _opened(run, steps[first], embed=first == 0)
        for number in range(first, len(steps)):
            step = steps[number]
            following = steps[number + 1] if number + 1 < len(steps) else None
            ends = following is not None and following.stack != step.stack
            file = _ENCODED if ends else "" if following is None else _states(number + 1)
            with run.writer(file) as states:
                found[number] = measure(
                    stack.layers,
                    step.layer,
                    run.read(_states(number), encoded=step.stack == "decoder"),
                    weights=weights,
                    places=stack.places,
                    measurement=job.layout.measurement,
                    dtype=dtype,
                    done=_finishing(stack, states.write) if ends else states.write,
                )
            if ends and following is not None:
                stack = _opened(run, following, embed=True, number=number + 1)
            work.write_bytes(_result(number), _kept(found[number]))
            run.drop(_states(number))
            # Large blocks come and go in any order: left alone, the heap grows layer by layer.
            environment.trim_memory()
            advance(number)


def _measurer(job: Job, samples: Samples) -> Callable[..., LayerRanges]:
    """What measures a layer."""
    assert isinstance(job.options, TrtllmOptions)
    if job.options.calibrator == "modelopt":
        from llmcompile.calibration import modelopt

        return partial(modelopt.measure_layer, recipe=job.options.quantization, samples=len(samples.tokens))
    from llmcompile.calibration.measuring import measure_layer

    return partial(measure_layer, total_tokens=samples.tokens.numel())


@dataclass(frozen=True)
class _Step:
    """A layer: its number in its stack, which is "" where there is one."""

    stack: str
    layer: int


def _steps(dims: Dims) -> tuple[_Step, ...]:
    """All layers, in the order they are measured in."""
    layers, decoder = dims.sizes["layers"], dims.sizes.get("decoder_layers", 0)
    own = [_Step("encoder" if decoder > 0 else "", layer) for layer in range(layers)]
    return (*own, *(_Step("decoder", layer) for layer in range(decoder)))


@dataclass(frozen=True)
class _Opened:
    """A stack whose layers can be run: they know how the model calls them.

    Attributes:
        layers: Its layers.
        places: Where its tensors belong.
        batches: The tokens it reads, in the order of the states.
    """

    layers: Layers
    places: Places
    batches: list[Tensor]


def _opened(run: _Run, step: _Step, *, embed: bool, number: int = 0) -> _Opened:
    """Learn how the stack of a step calls its layers, and write the states that go into the first where `embed`."""
    import torch

    from llmcompile.calibration.layers import Layers

    job, tokens = run.job, run.samples.tokens
    if step.stack == "decoder":
        # The samples behind the start token, as when a model learns to give back what it read.
        start = torch.full((len(tokens), 1), int(str(job.dims.facts["decoder_start_id"])))
        tokens = torch.cat((start, tokens[:, :-1]), 1)
    batches = list(torch.split(tokens, max(1, BATCH_TOKENS // tokens.shape[1])))
    layers = Layers(
        run.config_dir,
        run.weights,
        stack=step.stack,
        layers=job.dims.sizes["decoder_layers" if step.stack == "decoder" else "layers"],
        trust_remote_code=job.options.build.trust_remote_code,
    )
    seen: set[int] = set()
    with run.writer(_states(number) if embed else "") as states:
        given = run.read(_ENCODED) if step.stack == "decoder" else (None for _ in batches)
        for batch, encoded in zip(batches, given, strict=True):
            if embed or len(batch) not in seen:
                states.write(layers.embed(batch, encoded))
            seen.add(len(batch))
    if isinstance(run.weights, _Read):
        run.weights.drop()
    return _Opened(layers, _places(job, run.weights, step.stack), batches)


def _finishing(stack: _Opened, write: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """What turns states behind the last layer of an encoder, batch by batch, into what the encoder gives."""
    batches = iter(stack.batches)
    return lambda hidden: write(stack.layers.finish(next(batches), hidden))


@dataclass(frozen=True)
class _Run:
    """What the files of a calibration are for.

    Attributes:
        job: What is calibrated.
        samples: On what.
        work: Where.
        config_dir: The model's config.
        weights: Its weights.
    """

    job: Job
    samples: Samples
    work: WorkDirectory
    config_dir: Path
    weights: Weights

    def writer(self, file: str) -> _Writer:
        """What writes the states of all samples to a file, or for "" drops them."""
        return _Writer(self.work, file, self.samples, self.job.dims)

    def read(self, file: str, *, encoded: bool = False) -> Iterator[Tensor]:
        """The states in a file, batch by batch; each sample's followed by what the encoder gave where `encoded`."""
        import torch

        size = max(1, BATCH_TOKENS // self.samples.tokens.shape[1])
        batches = list(torch.split(self.samples.tokens, size))
        own = _read_states(self.work.path / file, batches, self.job.dims)
        if not encoded:
            yield from own
            return
        for pair in zip(own, _read_states(self.work.path / _ENCODED, batches, self.job.dims), strict=True):
            yield torch.cat(pair, 1)

    def drop(self, file: str) -> None:
        """Take a file away."""
        self.work.forget(file)
        (self.work.path / file).unlink()


def _states(number: int) -> str:
    """Where the hidden states that go into a step's layer are."""
    return f"{_FOLDER}states-{number}"


_ENCODED = f"{_FOLDER}encoded"
"""Where what the encoder gives is, while a decoder is measured."""


def _result(number: int) -> str:
    return f"{_FOLDER}layer-{number}.safetensors"


def _finished(work: WorkDirectory, steps: int) -> dict[int, LayerRanges]:
    """What an earlier run measured: the first layers, as far as none is missing."""
    found: dict[int, LayerRanges] = {}
    while len(found) < steps and _result(len(found)) in work.finished:
        found[len(found)] = _ranges((work.path / _result(len(found))).read_bytes())
    return found


class _Writer:
    """Hidden states of all samples as one file, float32; without a file, they are dropped."""

    def __init__(self, work: WorkDirectory, file: str, samples: Samples, dims: Dims) -> None:
        self._work, self._file = work, file
        size_bytes = samples.tokens.numel() * dims.sizes["hidden"] * 4
        work.kept.pop(file, None)
        self._output = None if file == "" else work.create(file, size_bytes)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._output is None:
            return
        if kind is None:
            self._work.record(self._file, self._output.finish())
        else:
            self._output.close()

    def write(self, hidden: Tensor) -> None:
        """Add a batch."""
        if self._output is not None:
            self._output.write(np.ascontiguousarray(hidden.numpy()).reshape(-1).view(np.uint8).data)


def _read_states(path: Path, batches: list[Tensor], dims: Dims) -> Iterator[Tensor]:
    import torch

    with path.open("rb") as stream:
        for batch in batches:
            values = np.fromfile(stream, np.float32, batch.numel() * dims.sizes["hidden"])
            yield torch.from_numpy(values).reshape(*batch.shape, -1)


class _Read:
    """Weights whose matrices are read into memory of our own, which goes with them.

    A memory map's pages stay until it is dropped, and count as ours; but of a table only the rows that are looked up
    are touched, so tables stay mapped.
    """

    def __init__(self, mapped: StoredWeights, reader: Reader, tensors: Mapping[str, Stored], vocab: int) -> None:
        self._mapped, self._reader, self._tensors, self._vocab = mapped, reader, tensors, vocab

    def names(self) -> Collection[str]:
        """Every tensor in the checkpoint."""
        return self._mapped.names()

    def drop(self) -> None:
        """Let go of the tables."""
        self._mapped.drop()

    def read(self, name: str) -> Tensor:
        """One tensor as stored."""
        import torch

        stored = self._tensors[name]
        code = {FP16: torch.float16, BF16: torch.bfloat16, FP32: torch.float32}.get(stored.dtype)
        if code is None or stored.shape[:1] == (self._vocab,):
            return self._mapped.read(name)
        bits = self._reader.read(stored)
        return torch.from_numpy(bits.view(np.int32 if stored.dtype == FP32 else np.int16)).view(code)


@contextmanager
def _source(job: Job) -> Iterator[tuple[Path, Weights]]:
    """The model for transformers: its config's folder and its weights."""
    from llmcompile.validation.checks import StoredWeights
    from llmcompile.validation.sources import MetaWeights

    files = tuple(file.path for file in job.checkpoint.files)
    if job.architecture.name != "meta_llama":
        with Reader(job.checkpoint.files) as reader:
            yield (
                job.checkpoint.root,
                _Read(StoredWeights(files), reader, job.checkpoint.tensors, job.dims.sizes["vocab"]),
            )
        return
    meta = MetaWeights(files, job.checkpoint.root / "params.json")
    with tempfile.TemporaryDirectory(prefix="llmcompile-") as folder:
        meta.write_config(Path(folder))
        yield Path(folder), meta


def _places(job: Job, weights: Weights, stack: str) -> Places:
    """Where a stack's tensors in the checkpoint belong, as transformers names them."""
    from llmcompile.calibration.measuring import Places

    architecture = job.architecture
    if architecture.name == "meta_llama":
        architecture = next(other for other in ARCHITECTURES if other.name == "llama")
    located = architecture.locate(weights.names())
    groups: dict[str, str] = {}
    readers: dict[str, int] = {}
    cached: dict[str, str] = {}
    for tensor in architecture.tensors:
        role = tensor.roles[0].removesuffix(".weight")
        if not tensor.roles[0].endswith(".weight") or (stack != "" and not role.startswith(f"{stack}.")):
            continue
        numbers = range(job.dims.sizes["experts"]) if "{expert}" in tensor.name else (None,)
        for layer in range(job.dims.sizes.get(tensor.repeat, 0)):
            for expert in numbers:
                stored = located.get(tensor.name_at(layer, expert))
                if stored is None:
                    continue
                if role in GROUP_OF:
                    groups[stored] = GROUP_OF[role]
                if expert is not None or role in CROSS:
                    readers[stored] = CROSS[role] if expert is None else expert
                if role in CACHED:
                    cached[stored] = role
    normed = {CACHED[role] for role in cached.values()}
    return Places(groups, readers, tuple(stored for stored, role in cached.items() if role not in normed))


def _kept(found: LayerRanges) -> bytes:
    """A layer's figures as they are kept."""
    from safetensors.numpy import save

    arrays: dict[str, Array] = {}
    for group, measured in found.linears.items():
        arrays[f"{group}.inputs"] = np.array([measured.inputs], np.float32)
        arrays[f"{group}.weights"] = np.array([measured.weights], np.float32)
        if measured.columns is not None:
            arrays[f"{group}.columns"] = measured.columns
        if measured.experts is not None:
            arrays[f"{group}.experts"] = measured.experts
    if found.cache is not None:
        arrays["cache"] = np.array([found.cache], np.float32)
    if len(found.unreached) > 0:
        arrays["unreached"] = np.array(found.unreached, np.int64)
    return save(arrays)


def _ranges(content: bytes) -> LayerRanges:
    from safetensors.numpy import load

    from llmcompile.calibration.measuring import LayerRanges

    arrays = load(content)
    linears = {
        group: Measured(
            float(arrays[f"{group}.inputs"][0]),
            float(arrays[f"{group}.weights"][0]),
            arrays.get(f"{group}.columns"),
            arrays.get(f"{group}.experts"),
        )
        for group in GROUPS
        if f"{group}.inputs" in arrays
    }
    cache = float(arrays["cache"][0]) if "cache" in arrays else None
    return LayerRanges(linears, cache, tuple(int(expert) for expert in arrays.get("unreached", ())))


def _record(job: Job, samples: Samples, ranges: Ranges) -> records.Calibration:
    assert isinstance(job.options, TrtllmOptions)
    count, length = samples.tokens.shape
    name, version = calibrator(job)
    linears = {f"{layer}.{group}": measured for (layer, group), measured in ranges.linears.items()}
    return records.Calibration(
        data=samples.name,
        sha256=samples.sha256,
        column=job.options.calib_column,
        calibrator=name,
        calibrator_version=version,
        samples=count,
        tokens=length,
        inputs={name: measured.inputs for name, measured in linears.items()},
        weights={name: measured.weights for name, measured in linears.items()},
        columns={name: _columns(one.columns) for name, one in linears.items() if one.columns is not None},
        experts={name: tuple(one.experts.tolist()) for name, one in linears.items() if one.experts is not None},
        cache={str(layer): value for layer, value in ranges.cache.items()},
    )


def _columns(factors_C: Array) -> records.Columns:
    content = np.ascontiguousarray(factors_C, "<f4").tobytes()
    return records.Columns(
        sha256=hashlib.sha256(content).hexdigest(), smallest=float(factors_C.min()), largest=float(factors_C.max())
    )
