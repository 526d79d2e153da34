"""Picking the runtime for an artifact, checking its files, running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation.fastertransformer import bert, gpt, gptj, gptneox, llama, smoothquant, t5
from llmcompile.validation.fastertransformer.ini import Ini, read_ini
from llmcompile.validation.fastertransformer.model import Inputs, Model, Outputs
from llmcompile.validation.fastertransformer.rank_files import Artifact, Row, size_problem, sizes

_RUNTIMES: Mapping[str, Callable[[Ini, int, Path], Model]] = MappingProxyType(
    {
        gpt.SECTION: gpt.resolve,
        "gptj": gptj.resolve,
        "gptneox": gptneox.resolve,
        "llama": llama.resolve,
        "bert": bert.resolve,
        t5.ENCODER: t5.resolve,
    }
)


def execute(folder: Path, inputs: Inputs, *, ranks: int) -> Outputs:
    """Compute, in float32, what FasterTransformer's runtime computes from an artifact.

    Args:
        folder: The `<ranks>-gpu` folder: config.ini and the `.bin` files.
        inputs: One request.
        ranks: Tensor-parallel ranks; all run here, one after the other.

    Returns:
        Decoders: "logits", shape (batch, sequence, vocabulary). BERT: "last_hidden_state", shape (batch, sequence,
        hidden). T5: "encoder_hidden_states", shape (batch, sequence, d_model), and "logits", shape (batch,
        decoder_sequence, vocabulary), the latter not for an encoder-only artifact.

    Raises:
        MismatchError: config.ini is unreadable or inconsistent, or a file is missing or has the wrong size; carries
            every such file.
        ValueError: `inputs` do not fit the model (token out of range, sequence too long, a tensor missing).
    """
    ini = read_ini(folder / "config.ini")
    return _run(_resolve(ini, folder, ranks), folder, inputs, ranks)


def execute_int8(folder: Path, inputs: Inputs, *, ranks: int) -> Outputs:
    """As `execute`, with the runtime's int8_mode=2 on the SmoothQuant files of an OPT artifact.

    Raises:
        MismatchError: As `execute`; also where config.ini has no `[gpt] int8 = True`.
        ValueError: As `execute`.
    """
    ini = read_ini(folder / "config.ini")
    return _run(smoothquant.resolve(ini, ranks, folder), folder, inputs, ranks)


def embedding_blocks(folder: Path, ranks: int, kind: str) -> tuple[Path, Iterator[Tensor]] | None:
    """The artifact's table of "tokens" or "positions", whole, in blocks of rows.

    Returns:
        Its file and float32 blocks of shape (rows, width); None where the runtime opens no such file.

    Raises:
        MismatchError: config.ini is unreadable or inconsistent.
    """
    model = _resolve(read_ini(folder / "config.ini"), folder, ranks)
    artifact = Artifact(folder, ranks, {row.name: row for row in model.rows})
    for name in _TABLES[kind]:
        if name in artifact.rows:
            return folder / artifact.rows[name].file(0, 0), artifact.row_blocks(name)
    return None


_TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tokens": ("model.wte", "model.wte.weight", "shared.weight_T"), "positions": ("model.wpe",)}
)


def check_int8(folder: Path, ranks: int) -> tuple[Problem, ...]:
    """Where a SmoothQuant artifact's int8 files and scales disagree with its float files, whose sizes are checked.

    Raises:
        MismatchError: config.ini is unreadable or inconsistent.
    """
    return tuple(smoothquant.disagreements(read_ini(folder / "config.ini"), ranks, folder))


def files(folder: Path, ranks: int) -> dict[str, int]:
    """Every file the runtime opens -> exact bytes; with `int8 = True`, in either mode.

    Raises:
        MismatchError: config.ini is unreadable or inconsistent.
    """
    ini = read_ini(folder / "config.ini")
    return sizes(_all_rows(ini, folder, ranks), ranks)


def check_files(folder: Path, ranks: int) -> tuple[Problem, ...]:
    """Every file that is missing, of the wrong size, or a `.bin` the runtime never opens; nothing is computed.

    Known files no runtime opens (T5 `shared.weight.bin`; NeoX output biases beside their sum) may be absent, and have a
    size if present. Files of other suffixes are not looked at.
    """
    try:
        ini = read_ini(folder / "config.ini")
        expected = sizes(_all_rows(ini, folder, ranks), ranks)
        dead = sizes(_resolve(ini, folder, ranks).dead, ranks)
    except MismatchError as error:
        return error.problems
    present = {path.name for path in folder.glob("*.bin")}
    wanted = expected | {name: size for name, size in dead.items() if name in present}
    found = (size_problem(folder, name, size) for name, size in wanted.items())
    unknown = (
        Problem(str(folder / name), "never opened by the runtime", "no such file", "was it written for other ranks?")
        for name in sorted(present - wanted.keys())
    )
    return (*(problem for problem in found if problem is not None), *unknown)


def _resolve(ini: Ini, folder: Path, ranks: int) -> Model:
    sections = [section for section in _RUNTIMES if ini.has_section(section)]
    if len(sections) != 1:
        raise MismatchError(
            str(ini.path),
            f"sections {sections}" if sections != [] else "no model section",
            f"exactly one of {', '.join(_RUNTIMES)}",
            "is this folder a FasterTransformer artifact?",
        )
    return _RUNTIMES[sections[0]](ini, ranks, folder)


def _all_rows(ini: Ini, folder: Path, ranks: int) -> tuple[Row, ...]:
    rows = _resolve(ini, folder, ranks).rows
    if not ini.boolean_or(gpt.SECTION, "int8", False):
        return rows
    return rows + smoothquant.resolve(ini, ranks, folder).rows


@torch.no_grad()
def _run(model: Model, folder: Path, inputs: Inputs, ranks: int) -> Outputs:
    expected = sizes(model.rows, ranks)
    checked = (size_problem(folder, name, size) for name, size in expected.items())
    problems = [problem for problem in checked if problem is not None]
    if problems != []:
        raise collected(MismatchError, problems)
    return model.run(Artifact(folder, ranks, {row.name: row for row in model.rows}), inputs)
