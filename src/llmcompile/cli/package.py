"""`llmcompile package ...`: an artifact as a server loads it. The commands are made from the targets' own tables."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from llmcompile.cli import params
from llmcompile.packaging.target import Flag, Target, flags
from llmcompile.packaging.targets import TARGETS

app = typer.Typer(help="Arrange an artifact as a server loads it, and lint it.", no_args_is_help=True)

_ArtifactArg = Annotated[
    Path,
    typer.Argument(
        metavar="ARTIFACT",
        help="What to package: an artifact of llmcompile, or a Hugging Face folder.",
        envvar="LLMCOMPILE_ARTIFACT",
    ),
]
_PlacesArg = Annotated[
    list[Path], typer.Argument(metavar="[ARTIFACT] OUTPUT", help="What to package, and the directory to create.")
]
_RuntimeVersionOpt = Annotated[
    str | None,
    typer.Option(
        "--runtime-version",
        "--runtime_version",
        envvar="LLMCOMPILE_RUNTIME_VERSION",
        metavar="VERSION",
        help="Version of TensorRT-LLM, neuronx-cc or vLLM in your image, where it is not the release's own.",
        rich_help_panel=params.PACKAGE,
    ),
]
_CopyOpt = Annotated[
    bool,
    typer.Option(
        "--copy",
        envvar="LLMCOMPILE_COPY",
        help="Copy the weights, also where they could be shared with the artifact.",
        rich_help_panel=params.SAFETY,
    ),
]


@app.callback()
def group() -> None:
    """Arrange an artifact as a server loads it, and lint it."""


def _spellings(*names: str) -> tuple[str, ...]:
    """Each name, and the long ones with underscores besides."""
    return tuple(dict.fromkeys([*names, *("--" + name[2:].replace("-", "_") for name in names if name[:2] == "--")]))


def _version_opt(target: Target[Any]) -> Any:
    own = () if target.version_flag is None else (target.version_flag,)
    served = {release for releases in target.serves.values() for release in releases}
    releases = ", ".join(release for release in target.releases if release in served)
    return Annotated[
        str | None,
        typer.Option(
            *_spellings("--target-version", *own),
            envvar="LLMCOMPILE_TARGET_VERSION",
            metavar="VERSION",
            help=f"Release of {target.title}: {releases}. The one that fits best, by default.",
            rich_help_panel=params.PACKAGE,
        ),
    ]


def _convert_opt(name: str) -> Any:
    return Annotated[
        Path | None,
        typer.Option(
            *_spellings(name),
            envvar=_variable(name),
            metavar="FILE",
            help="Convert this file; it stands in ARTIFACT's place.",
            rich_help_panel=params.SOURCE,
        ),
    ]


def _variable(name: str) -> str:
    return "LLMCOMPILE_" + name.removeprefix("--").replace("-", "_").upper()


def _option(field: str, hint: Any, flag: Flag) -> Any:
    """The annotation of one of a target's options."""
    if len(flag.choices) > 0:
        kind = Enum(field, {choice: choice for choice in flag.choices}, type=str)  # type: ignore[misc]
        hint = kind | None if "None" in str(hint) else kind
    elif str(hint).startswith("tuple"):
        hint = list[str]
    return Annotated[
        hint,
        typer.Option(
            *_spellings(*flag.names),
            envvar=_variable(flag.names[0]),
            help=flag.help,
            metavar=flag.metavar,
            min=flag.minimum,
            rich_help_panel=params.PACKAGE,
        ),
    ]


def from_environment(text: str, environment: Mapping[str, str]) -> tuple[str, str | None, Any]:
    """What --package NAME[@VERSION] asks for: the server, its release, and the options its variables hold.

    Raises:
        OptionsError: No such server, or a variable that is no value of its option.
    """
    from llmcompile.errors import OptionsError

    name, _, version = text.partition("@")
    if name not in TARGETS:
        expected = f"NAME or NAME@VERSION, NAME one of {', '.join(TARGETS)}"
        raise OptionsError("--package", text, expected, "llmcompile package --help says what they are")
    target = TARGETS[name]
    hints = get_type_hints(target.options)
    given = {
        field: _parsed(variable, environment[variable], str(hints[field]), made)
        for field, made in flags(target.options).items()
        if (variable := _variable(made.names[0])) in environment
    }
    return name, version if version != "" else None, target.options(**given)


_ON, _OFF = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")
"""What a variable of a switch may hold: the words that typer takes."""


def _parsed(variable: str, text: str, hint: str, flag: Flag) -> Any:
    """A variable's value as its option has it.

    Raises:
        OptionsError: It is none.
    """
    from llmcompile.errors import OptionsError

    problem = OptionsError(variable, repr(text), f"a value of {flag.names[0]}", f"correct or unset {variable}")
    if len(flag.choices) > 0 and text not in flag.choices:
        raise problem
    if "tuple" in hint:
        return tuple(text.split())
    if "bool" in hint:
        if text.lower() not in (*_ON, *_OFF):
            raise problem
        return text.lower() in _ON
    number = float if "float" in hint else int if "int" in hint else None
    if number is None:
        return text
    try:
        value = number(text)
    except ValueError:
        raise problem from None
    if flag.minimum is not None and value < flag.minimum:
        raise problem
    return value


def _command(target: Target[Any]) -> Callable[..., None]:
    """The function behind `llmcompile package NAME`: its parameters are the target's options and what all have."""
    settings = {made.name: made for made in fields(target.options)}
    hints = get_type_hints(target.options)
    converts = {name.removeprefix("--").replace("-", "_"): name for name in target.converts}

    def package(**given: Any) -> None:
        from llmcompile.cli.console import Console

        with Console(
            command=f"package {target.name}",
            json=given["json"],
            quiet=given["quiet"],
            log_format=given["log_format"].value,
        ) as console:
            chosen = {name: _plain(given[name]) for name in settings}
            convert = [(flag, given[name]) for name, flag in converts.items() if given[name] is not None]
            artifact, output = _places(given, convert)
            console.package(
                target.name,
                artifact,
                output,
                target.options(**chosen),
                convert=convert[0] if len(convert) > 0 else None,
                target_version=given["target_version"],
                runtime_version=given["runtime_version"],
                copy=given["copy"],
                force=given["force"],
                resume=given["resume"],
                dry_run=given["dry_run"],
            )

    places: dict[str, Any] = {"artifact": _ArtifactArg, "output": params.OutputArg}
    if len(converts) > 0:
        places = {"places": _PlacesArg}
    required = {**places}
    optional: dict[str, tuple[Any, Any]] = {
        "target_version": (_version_opt(target), None),
        "runtime_version": (_RuntimeVersionOpt, None),
        **{name: (_convert_opt(flag), None) for name, flag in converts.items()},
        **{
            name: (_option(name, hints[name], flag), _default(settings[name].default))
            for name, flag in flags(target.options).items()
        },
        "copy": (_CopyOpt, False),
        "dry_run": (params.DryRunOpt, False),
        "resume": (params.ResumeOpt, False),
        "force": (params.ForceOpt, False),
        "json": (params.JsonOpt, False),
        "quiet": (params.QuietOpt, False),
        "log_format": (params.LogFormatOpt, params.LogFormat.text),
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, annotation=hint) for name, hint in required.items()]
    parameters += [
        inspect.Parameter(name, kind, annotation=hint, default=value) for name, (hint, value) in optional.items()
    ]
    package.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    package.__annotations__ = {made.name: made.annotation for made in parameters}
    return package


def _default(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return tuple(value) if isinstance(value, list) else value


def _places(given: dict[str, Any], convert: list[tuple[str, Path]]) -> tuple[Path | None, Path]:
    """ARTIFACT and OUTPUT; where another system's file is converted, OUTPUT alone.

    Raises:
        OptionsError: There are more or fewer.
    """
    from llmcompile.errors import OptionsError

    if "places" not in given:
        return given["artifact"], given["output"]
    places = given["places"]
    wanted = ("OUTPUT",) if len(convert) > 0 else ("ARTIFACT", "OUTPUT")
    if len(convert) > 1:
        names = " and ".join(name for name, _ in convert)
        raise OptionsError(names, "both", "one of them", f"drop {convert[1][0]}")
    if len(places) != len(wanted):
        found = f"{len(places)} path{'' if len(places) == 1 else 's'}: {' '.join(str(path) for path in places)}"
        raise OptionsError(" ".join(wanted), found, " ".join(wanted), "see llmcompile package --help")
    return (None, places[0]) if len(convert) > 0 else (places[0], places[1])


for _target in TARGETS.values():
    app.command(_target.name, help=_target.help)(_command(_target))
