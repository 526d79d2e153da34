"""Write packages for every target and kind, for the servers' own schemas to read: make_packages.py FOLDER.

FOLDER/<target>/<kind>-<release>[-<variant>]/ is a package. Runs where llmcompile is installed with its tests'
requirements; what reads the packages needs neither.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

# In place of this script's own folder, in which "triton" is not the package that PyTorch looks for.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import serving_artifacts
from llmcompile.cli import app
from llmcompile.packaging.targets import TARGETS

VARIANTS: dict[str, dict[str, tuple[object, ...]]] = {"triton": {"ensemble": ("--ensemble",), "bls": ("--bls",)}}
"""Target -> variant -> flags that are added, beside NVIDIA's code where the target needs it."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run llmcompile in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env, catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


def main(folder: Path) -> None:
    """Write them all."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = {kind: serving_artifacts.make(kind, Path(scratch) / kind, run) for kind in serving_artifacts.KINDS}
        for name, target in TARGETS.items():
            for kind, releases in target.serves.items():
                for release in releases:
                    for variant, more in {"": (), **VARIANTS.get(name, {})}.items():
                        code = serving_artifacts.model_py(Path(scratch) / "code")
                        added = more if len(more) == 0 else (*more, "--model-py", code)
                        output = folder / name / "-".join(part for part in (kind, release, variant) if part != "")
                        words = (
                            *serving_artifacts.flags(name, kind, Path(scratch)),
                            "--target-version",
                            release,
                            *added,
                        )
                        made = run("package", name, artifacts[kind], output, "--quiet", *words)
                        if made.code not in (0, 2, 4):
                            raise SystemExit(f"{output}: {made.err}")
    print(f"{sum(1 for _ in folder.glob('*/*'))} packages in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
