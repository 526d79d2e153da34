"""What `llmcompile quantize` may be asked: recipes to build and measure side by side, all else being equal."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmcompile.errors import OptionsError, Problem, collected
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.options import CALIBRATION, GROUPWISE, TrtllmOptions


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of a comparison.

    Attributes:
        build: Those every build command has.
        recipes: Names of `versions.RECIPES`; empty for all that the model's family has.
        dtype: As in `TrtllmOptions`, like all that follow but the last two; each goes to the recipes that take it.
        kv_cache: Of every recipe; the unquantized checkpoint has none.
        group_size: Of those with groups.
        calib_dataset: Of those that are calibrated.
        calib_column: Likewise.
        calib_size: Likewise.
        calib_seq_len: Likewise.
        calibrator: Likewise.
        eval_text: Of all.
        target: Of all.
        trtllm_version: Of all.
        keep: Leave every checkpoint in OUTPUT.
        plot: Draw quantize.svg and quantize.png, which needs matplotlib.
    """

    build: BuildOptions
    recipes: tuple[str, ...] = ()
    dtype: str | None = TrtllmOptions.dtype
    kv_cache: str | None = TrtllmOptions.kv_cache
    group_size: int = TrtllmOptions.group_size
    calib_dataset: str | None = TrtllmOptions.calib_dataset
    calib_column: str = TrtllmOptions.calib_column
    calib_size: int = TrtllmOptions.calib_size
    calib_seq_len: int = TrtllmOptions.calib_seq_len
    calibrator: str = TrtllmOptions.calibrator
    eval_text: Path | None = TrtllmOptions.eval_text
    target: str = TrtllmOptions.target
    trtllm_version: str = TrtllmOptions.trtllm_version
    keep: bool = False
    plot: bool = True

    def __post_init__(self) -> None:
        problems = [_unknown(name) for name in dict.fromkeys(self.recipes) if name not in versions.RECIPES]
        if len(problems) == 0 and len(set(self.recipes)) < len(self.recipes):
            problems.append(Problem("--recipes", f"{','.join(self.recipes)}: one of them twice", "each once"))
        named = self.recipes if len(self.recipes) > 0 else tuple(versions.RECIPES)
        if len(problems) == 0 and self.group_size != TrtllmOptions.group_size and set(named).isdisjoint(GROUPWISE):
            found = f"{self.group_size} with --recipes {','.join(named)}, none of which has groups"
            problems.append(Problem("--group-size", found, f"one of {', '.join(GROUPWISE)}", "drop --group-size"))
        if len(problems) > 0:
            raise collected(OptionsError, problems)
        self.build_options(None, self.build, calibrated=True)

    def build_options(self, recipe: str | None, build: BuildOptions, *, calibrated: bool) -> TrtllmOptions:
        """The build of one recipe, or of none.

        Args:
            recipe: A name of `versions.RECIPES`; None for the unquantized checkpoint.
            build: Where to.
            calibrated: Whether it takes calibration data.

        Raises:
            OptionsError: A value is none that `build trtllm` takes, or not with this recipe.
            UnsupportedError: `trtllm_version` is none that is built for, or lacks the recipe.
        """
        options = TrtllmOptions(
            build=build,
            quantization=recipe,
            dtype=self.dtype,
            kv_cache=self.kv_cache,
            calib_dataset=self.calib_dataset,
            calib_column=self.calib_column,
            calib_size=self.calib_size,
            calib_seq_len=self.calib_seq_len,
            calibrator=self.calibrator,
            trtllm_version=self.trtllm_version,
            eval_text=self.eval_text,
            target=self.target,
            stop_after=None if self.target == "llmapi" else "checkpoint",
        )
        if recipe is None or not calibrated:
            options = replace(options, **{name: getattr(TrtllmOptions, name) for name in CALIBRATION})
        if recipe is None:
            return replace(options, kv_cache=None)
        return replace(options, group_size=self.group_size if recipe in GROUPWISE else options.group_size)


def recipes_of(words: str | None) -> tuple[str, ...]:
    """The names in "fp8,int8_sq"; none for "all"."""
    names: Sequence[str] = [] if words is None else [name.strip().lower() for name in words.split(",")]
    return () if list(names) == ["all"] else tuple(names)


def _unknown(name: str) -> Problem:
    near = difflib.get_close_matches(name, versions.RECIPES, n=1)
    hint = f"did you mean {near[0]}?" if len(near) > 0 else "leave --recipes out for all that the model can have"
    return Problem("--recipes", f"{name[:40]!r}", f"all, or some of {', '.join(versions.RECIPES)}", hint)
