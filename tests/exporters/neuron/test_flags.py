"""The compiler's flags follow from the options, and NEURON_CC_FLAGS adds to them or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import neuronx_cc_standin as standin
from llmcompile.errors import OptionsError
from llmcompile.exporters.neuron.flags import arguments, environment_flags
from llmcompile.exporters.neuron.options import INSTANCE_TYPES, NeuronOptions
from llmcompile.exporters.neuron.signature import CONTEXT, ENCODER, GENERATION
from llmcompile.exporters.options import BuildOptions


def options(**given: Any) -> NeuronOptions:
    """Options of some model."""
    return NeuronOptions(build=BuildOptions(model="org/name", output=Path("out")), **given)


def test_an_encoder_by_default() -> None:
    """Nothing is cast, and nothing is left to the compiler's own defaults."""
    assert arguments(options(), ENCODER, "inf2") == (
        "--framework=XLA",
        "--target=inf2",
        "--model-type=transformer",
        "--auto-cast=none",
        "--optlevel=2",
    )


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"auto_cast": "matmul"}, {"--auto-cast=matmult", "--auto-cast-type=bf16"}),
        ({"auto_cast": "all", "auto_cast_type": "tf32"}, {"--auto-cast=all", "--auto-cast-type=tf32"}),
        ({"auto_cast": "all", "auto_cast_type": "fp16"}, {"--auto-cast=all", "--auto-cast-type=fp16"}),
        ({"optlevel": 1}, {"--optlevel=1"}),
        ({"optlevel": 3}, {"--optlevel=3"}),
    ],
)
def test_options_are_said_as_the_compiler_spells_them(given: dict[str, Any], flags: set[str]) -> None:
    """What the guide calls matmul is matmult; a type goes along where something is cast."""
    assert flags <= set(arguments(options(**given), ENCODER, "trn1"))


def test_a_type_goes_along_only_with_a_cast() -> None:
    """Of a decoder --auto_cast_type means its own element type."""
    words = arguments(options(auto_cast_type="fp16"), GENERATION, "trn1")

    assert not any(word.startswith("--auto-cast-type") for word in words)


def test_logical_cores_are_said_where_there_is_a_choice() -> None:
    """Two physical cores to one on trn2, which is the default of its runtime, too; trn1 takes no such flag but 1."""
    assert "--lnc=2" in arguments(options(), ENCODER, "trn2")
    assert not any("lnc" in word for word in arguments(options(), ENCODER, "trn1"))


@pytest.mark.parametrize("kind", [CONTEXT, GENERATION])
def test_decoders_saturate_infinities_where_that_matters(kind: str) -> None:
    """Not on trn2, where the flag does nothing, and not in encoders."""
    assert "--enable-saturate-infinity" in arguments(options(), kind, "inf2")
    assert "--enable-saturate-infinity" not in arguments(options(), kind, "trn2")
    assert "--enable-saturate-infinity" not in arguments(options(), ENCODER, "inf2")


def test_integers_are_pinned_for_compilers_that_know_the_flags() -> None:
    """From 2.27 on, since the release after it has other defaults; native ones only where trn2 could have them."""
    pinned = ("--native-int64=disabled", "--implicit-integer-downcast=all")

    assert arguments(options(), ENCODER, "trn2", release=(2, 27))[-2:] == pinned
    assert arguments(options(), ENCODER, "trn1", release=(2, 28))[-1:] == pinned[1:]
    assert not {*pinned} & {*arguments(options(), ENCODER, "trn2", release=(2, 26))}
    assert not {*pinned} & {*arguments(options(), ENCODER, "trn2")}


@pytest.mark.parametrize("version", ["2.21.33363.0", "2.27.5334.0"])
@pytest.mark.parametrize("target", INSTANCE_TYPES)
@pytest.mark.parametrize("kind", [ENCODER, CONTEXT, GENERATION])
@pytest.mark.parametrize("auto_cast", ["none", "matmul", "all"])
def test_every_flag_is_one_the_documentation_has(version: str, target: str, kind: str, auto_cast: str) -> None:
    """The stand-in's table is the vendor's page; it refuses anything else."""
    release = (2, int(version.split(".")[1]))
    words = arguments(options(auto_cast=auto_cast), kind, target, release=release)

    flags, files = standin.parse(["compile", "x.hlo.pb", *words, "--output=x", "--verbose=info"], version)

    assert (flags["--target"], files) == (target, ["x.hlo.pb"])


# NEURON_CC_FLAGS


@pytest.mark.parametrize(
    ("text", "extras"),
    [
        ("", ()),
        ("--enable-fast-context-switch", ("--enable-fast-context-switch",)),
        ("--distribution-strategy llm-training", ("--distribution-strategy", "llm-training")),
        ("--tensorizer-options='--a=1 --b '", ("--tensorizer-options=--a=1 --b ",)),
        ("-x --y z", ("-x", "--y", "z")),
        ("--cache_dir=s3://bucket --no_cache --retry_failed_compilation --log_level INFO", ()),
        ("--verbose=35 --logfile /tmp/log", ()),
        ("--optlevel 2 --target=trn1 -O2 --auto-cast none", ()),
    ],
)
def test_plain_extras_are_handed_on(text: str, extras: tuple[str, ...]) -> None:
    """Not what the vendor's wrapper takes, what concerns the log alone, or what we say ourselves."""
    ours = arguments(options(), ENCODER, "trn1")

    assert environment_flags({"NEURON_CC_FLAGS": text}, ours) == extras


def test_an_unset_variable_adds_nothing() -> None:
    """Other variables do not matter."""
    assert environment_flags({"NEURON_CC": "-O1"}) == ()


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ("--target trn1", "--target trn1", "--instance-type"),
        ("--auto-cast=all", "--auto-cast=all", "--auto-cast"),
        ("--auto-cast-type fp16", "--auto-cast-type fp16", "--auto-cast-type"),
        ("-O1", "-O1", "-O1, -O2 or -O3"),
        ("--optlevel=3", "--optlevel=3", "-O1, -O2 or -O3"),
        ("-lnc 1", "-lnc 1", "unset"),
        ("--logical-nc-config=1", "--logical-nc-config=1", "unset"),
        ("--model-type unet-inference", "--model-type unet-inference", "unset"),
        ("--output elsewhere.neff", "--output elsewhere.neff", "unset"),
        ("model.pb", "model.pb", "unset"),
        ("--x 'open", "No closing quotation", "unset"),
    ],
)
def test_what_contradicts_ours_is_refused(text: str, found: str, hint: str) -> None:
    """By the words as they are typed, with the option that says the same."""
    with pytest.raises(OptionsError) as caught:
        environment_flags({"NEURON_CC_FLAGS": text}, arguments(options(), ENCODER, "trn2"))

    [problem] = caught.value.problems
    assert problem.subject == "NEURON_CC_FLAGS"
    assert found in problem.found
    assert hint in problem.hint


def test_a_password_is_neither_passed_on_nor_shown() -> None:
    """A command line can be read by everybody on the machine."""
    with pytest.raises(OptionsError) as caught:
        environment_flags({"NEURON_CC_FLAGS": "--x=https://me:hunter2@host/ --y ftp://me:hunter2@host"})

    assert len(caught.value.problems) == 2
    assert "hunter2" not in str(caught.value)
