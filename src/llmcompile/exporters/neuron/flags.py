"""neuronx-cc's command line: what decides the NEFF by our options, and what NEURON_CC_FLAGS adds.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:compiler/neuronx-cc/api-reference-guide/index.rst.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from llmcompile.errors import OptionsError, Problem, collected
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.exporters.neuron.signature import ENCODER
from llmcompile.exporters.processes import has_password

VARIABLE = "NEURON_CC_FLAGS"
FRAMEWORK = "--framework=XLA"
LNC: Mapping[str, int] = MappingProxyType({"inf2": 1, "trn1": 1, "trn1n": 1, "trn2": 2})
"""Target -> physical cores that a logical core is made of: the default of compiler and runtime."""
_INTEGER_FLAGS_SINCE = (2, 27)
"""neuronx-cc of SDK 2.32. Source: aws-neuron/aws-neuron-sdk@81ce03ae:release-notes/components/compiler.rst."""
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"-O": "--optlevel", "-lnc": "--lnc", "--logical-nc-config": "--lnc", "-o": "--output"}
)
_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "--target": "--instance-type",
        "--auto-cast": "--auto-cast",
        "--auto-cast-type": "--auto-cast-type",
        "--optlevel": "-O1, -O2 or -O3",
    }
)
"""Flags of the compiler that an option of ours sets -> that option."""
_OURS = (*_OPTIONS, "--framework", "--model-type", "--lnc", "--output", "--native-int64", "--implicit-integer-downcast")
_WITHOUT_EFFECT = (
    *("--cache_dir", "--no_cache", "--retry_failed_compilation", "--log_level"),
    *("--verbose", "--logfile", "--logfile-verbose"),
)
"""Those that the vendor's wrapper takes, not the compiler, and those that change only the log.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:about-neuron/arch/neuron-features/neuron-caching.rst, its last sentence.
"""


def arguments(
    options: NeuronOptions, kind: str, target: str, *, release: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """The flags that decide a graph's NEFF; no paths, and none that concern the log.

    Args:
        options: What is asked.
        kind: A kind of graph, as in `signature.py`.
        target: The instance family: "inf2", "trn1", "trn1n" or "trn2".
        release: The compiler's first two numbers; None where it is not known yet, and the newest flags are left out.
    """
    words = [FRAMEWORK, f"--target={target}", "--model-type=transformer"]
    words.append(f"--auto-cast={'matmult' if options.auto_cast == 'matmul' else options.auto_cast}")
    if options.auto_cast != "none":
        words.append(f"--auto-cast-type={options.cast_type}")
    words.append(f"--optlevel={options.optlevel}")
    if LNC[target] != 1:
        words.append(f"--lnc={LNC[target]}")
    elif kind != ENCODER:
        # Masked slots hold the least number, which becomes infinite in a cast, and NaN in a transpose on the matrix
        # engine; the vendor's own decoders are compiled with it for these targets (aws-neuron-sdk#1303).
        words.append("--enable-saturate-infinity")
    if release is not None and release >= _INTEGER_FLAGS_SINCE:
        # The release after 2.27 has other defaults; integers of ours have 32 bits either way.
        words += ["--native-int64=disabled"] if target == "trn2" else []
        words.append("--implicit-integer-downcast=all")
    return tuple(words)


def environment_flags(environ: Mapping[str, str], ours: Sequence[str] = ()) -> tuple[str, ...]:
    """The flags that NEURON_CC_FLAGS adds to ours: they change what is compiled, and belong into the record.

    Args:
        environ: The environment.
        ours: What `arguments` gave; a flag that repeats one of these adds nothing.

    Raises:
        OptionsError: A flag contradicts ours, names a file or holds a password; every reason.
    """
    try:
        flags = list(_flags(shlex.split(environ.get(VARIABLE, ""))))
    except ValueError as error:
        found = f"{environ[VARIABLE]}: {error}"
        raise OptionsError(VARIABLE, found, "flags as a shell would split them", f"unset {VARIABLE}") from error
    given = {flag.name: flag.value for flag in _flags(ours)}
    extras = [flag for flag in flags if flag.name not in _WITHOUT_EFFECT and given.get(flag.name) != flag.value]
    problems = [problem for flag in extras for problem in _problems(flag, given)]
    if len(problems) > 0:
        raise collected(OptionsError, problems)
    return tuple(word for flag in extras for word in flag.words)


class _Flag(NamedTuple):
    name: str
    value: str
    words: tuple[str, ...]


def _flags(words: Sequence[str]) -> Iterator[_Flag]:
    """Flags under their long names; the word behind one without "=" is its value, unless it is a flag too."""
    rest = list(words)
    while len(rest) > 0:
        word = rest.pop(0)
        level = re.fullmatch(r"-O=?(\d+)", word)
        name, equals, value = ("-O", "=", level[1]) if level is not None else word.partition("=")
        taken = [word]
        if equals == "" and word.startswith("-") and len(rest) > 0 and not rest[0].startswith("-"):
            value = rest.pop(0)
            taken.append(value)
        yield _Flag(_ALIASES.get(name, name), value, tuple(taken))


def _problems(flag: _Flag, given: Mapping[str, str]) -> Iterator[Problem]:
    typed = " ".join(flag.words)
    if any(has_password(word) for word in flag.words):
        yield Problem(VARIABLE, f"{flag.name} with a password in its URL", "no secret on a command line")
    elif not flag.name.startswith("-"):
        yield Problem(VARIABLE, typed, "flags of neuronx-cc", f"unset {VARIABLE}")
    elif flag.name in given or flag.name in _OURS:
        said = f"{flag.name} {given[flag.name]}".strip() if flag.name in given else "what llmcompile's options say"
        option = _OPTIONS.get(flag.name)
        way = f"unset {VARIABLE}" if option is None else f"unset {VARIABLE}, and say it with {option}"
        yield Problem(VARIABLE, typed, said, way)
