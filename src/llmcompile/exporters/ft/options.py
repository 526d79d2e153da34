"""What `llmcompile partition ft` may be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from llmcompile.errors import OptionsError
from llmcompile.exporters.options import BuildOptions


@dataclass(frozen=True, kw_only=True)
class FtOptions:
    """Options of the FasterTransformer backend.

    Attributes:
        build: Those every build command has.
        tp: Tensor parallel degree: ranks each layer is split over.
        pp: Pipeline parallel degree; recorded, since the files do not depend on it.
        dtype: fp32, fp16 or bf16; None for the checkpoint's own.
        encoder_only: Write only the encoder of a T5 model.
        act_scales: SmoothQuant activation scales of an OPT model; adds the int8 set.
        model_name: `model_name` in config.ini; None for what the vendor's converter writes.
    """

    backend: ClassVar[Literal["ft"]] = "ft"

    build: BuildOptions
    tp: int = 1
    pp: int = 1
    dtype: str | None = None
    encoder_only: bool = False
    act_scales: Path | None = None
    model_name: str | None = None

    def __post_init__(self) -> None:
        for flag, value in (("--tp", self.tp), ("--pp", self.pp)):
            if value < 1:
                raise OptionsError(flag, str(value), "1 or more")
        if self.dtype not in (None, "fp32", "fp16", "bf16"):
            raise OptionsError("--dtype", str(self.dtype), "fp32, fp16 or bf16")
        if self.model_name is not None and not _fits_one_line(self.model_name):
            raise OptionsError(
                "--model-name",
                f"{self.model_name[:40]!a}, {len(self.model_name)} characters",
                "printable ones of at most 150 bytes: FasterTransformer reads lines of 200 bytes",
            )


def _fits_one_line(name: str) -> bool:
    return name.isprintable() and len(name.encode()) <= 150
