"""From a network to the graph torch.onnx makes of it, in a folder that is not the artifact yet."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmcompile.errors import UnsupportedError
from llmcompile.exporters.rtx.networks import Given, Network
from llmcompile.exporters.rtx.source import first_line, quiet

PREFIX = "llmcompile::"
"""What names at the border of an exported graph begin with: torch.onnx gives a value inside the graph the same name as
an output without a word, and no value inside is called this. `rewrite` takes it away."""

_LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes")


def export(network: Network, path: Path, *, opset: int) -> None:
    """Write the graph of a network, with its weights in a file beside it.

    Args:
        network: What to export; its module is left as it is.
        path: File of the graph; that of the weights has ".data" appended.
        opset: Version of ONNX's operators.

    Raises:
        UnsupportedError: torch.export cannot trace the model, or torch.onnx has no translation for an operator.
    """
    with quiet(), _silent(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                network.module,
                _arguments(network.inputs),
                input_names=[PREFIX + given.name for given in network.inputs],
                output_names=[PREFIX + name for name in network.outputs],
                dynamic_shapes=_dynamic(network.inputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
                report=False,
            )
            program.save(str(path), external_data=True)
        except Exception as error:  # whatever a model's own code, or torch, raises when it is traced
            cause = error if error.__cause__ is None else error.__cause__
            reason = first_line(cause if isinstance(cause, Exception) else error)
            short = any(weight.dtype == torch.float16 for weight in network.module.parameters())
            raise UnsupportedError(
                type(getattr(network.module, "of", network.module)).__name__,
                f"torch.onnx cannot export it ({reason})",
                "a model whose control flow does not depend on its values",
                # BART's code looks for infinities in fp16 alone.
                "--dtype bf16, or fp32" if short else "docs/formats/tensorrt-rtx.md has the models that were tried",
            ) from error


def _arguments(inputs: Sequence[Given]) -> tuple[Any, ...]:
    """Examples as the modules take them: caches of all layers as one list."""
    return tuple(group[0].example if alone else [given.example for given in group] for alone, group in _grouped(inputs))


def _dynamic(inputs: Sequence[Given]) -> tuple[Any, ...]:
    auto = torch.export.Dim.AUTO

    def axes(given: Given) -> dict[int, Any]:
        return {place: auto for place, name in enumerate(given.axes) if name is not None}

    return tuple(axes(group[0]) if alone else [axes(given) for given in group] for alone, group in _grouped(inputs))


def _grouped(inputs: Sequence[Given]) -> Iterator[tuple[bool, list[Given]]]:
    """Inputs one by one, those of caches together."""

    def cache(given: Given) -> str:
        head, dot, _ = given.name.partition(".")
        return head if dot != "" else ""

    for name, group in itertools.groupby(inputs, key=cache):
        if name != "":
            yield False, list(group)
        else:
            yield from ((True, [given]) for given in group)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch.onnx, and torch.export when it fails, from printing."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
