"""A machine with a GPU that is none: stand-ins for NVIDIA's driver and TensorRT for RTX, as child processes see it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

STANDIN = Path(__file__).parent / "rtx_standin"
VERSION = "1.7.1.116"
"""Of the stand-in."""


def driver(folder: Path) -> Path:
    """A folder with libcuda.so.1; skips the test where no C compiler is."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the stand-in for NVIDIA's driver is a C file, and there is no cc")
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Werror")
    subprocess.run([compiler, *flags, "-o", folder / "libcuda.so.1", STANDIN / "cuda.c"], check=True)
    return folder


def plug(patch: pytest.MonkeyPatch, folder: Path, gpus: str, *, runtime: bool = True) -> None:
    """Let children find the driver in `folder`, with GPUs of these compute capabilities.

    With `runtime` they find the stand-in for TensorRT for RTX too, otherwise the vendor's own.
    """
    before = os.environ.get("PYTHONPATH")
    if runtime:
        patch.setenv("PYTHONPATH", str(STANDIN) if before is None else f"{STANDIN}{os.pathsep}{before}")
    patch.setenv("LD_LIBRARY_PATH", str(folder))
    patch.setenv("CUDA_STANDIN_GPUS", gpus)
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
