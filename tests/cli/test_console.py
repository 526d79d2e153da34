"""What is printed where: one JSON document, silence, log lines, no colour, and never a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmcompile.cli.console import Console, _quality_line, _validated_line
from llmcompile.cli.params import size
from llmcompile.exporters.processes import Line
from llmcompile.packaging.manifest import Comparison, Validation
from llmcompile.pipeline.validating import quality_record
from llmcompile.validation.checks import Quality

if TYPE_CHECKING:
    from conftest import Run

MODEL = Path(__file__).parents[1] / "golden" / "ft" / "gpt2-a" / "hf"
SECRET = "hf_thisMustNeverBeSeen"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


ENDINGS = {
    "success": (["--no-validate"], 0),
    "dry run": (["--dry-run"], 0),
    "refused dry run": (["--dry-run", "--tp", "3"], 5),
    "refusal": (["--tp", "3"], 5),
    "options": (["--no-validate", "--atol", "1"], 2),
    "mismatch": (["--dtype", "fp16", "--atol", "0"], 7),
}
every_ending = pytest.mark.parametrize(("options", "code"), ENDINGS.values(), ids=list(ENDINGS))


@every_ending
def test_json_is_one_document(options: list[str], code: int, run: Run, output: Path) -> None:
    """Stdout is one JSON object that holds the exit code, however the command ends."""
    result = run("partition", "ft", "--model", MODEL, *options, "--json", output)

    document = json.loads(result.out)
    assert (result.code, document["exit_code"], document["command"]) == (code, code, "partition ft")


def test_a_failures_json_has_the_problems(run: Run, output: Path) -> None:
    """Each problem has its fields."""
    result = run("partition", "ft", "--model", MODEL, "--tp", 3, "--json", output)

    error = json.loads(result.out)["error"]
    assert error["category"] == "plan"
    assert error["problems"][0]["subject"] == "--tp 3"
    assert "degrees that divide" in error["problems"][0]["hint"]


def test_a_success_has_the_manifest_in_its_json(run: Run, output: Path) -> None:
    """The report's manifest is the file's."""
    result = run("partition", "ft", "--model", MODEL, "--no-validate", "--json", output)

    assert json.loads(result.out)["manifest"] == json.loads((output / "llmcompile.json").read_text())


def test_a_rejection_has_its_place_in_its_json(run: Run, output: Path) -> None:
    """The report says where the rejected artifact is kept."""
    result = run("partition", "ft", "--model", MODEL, "--dtype", "fp16", "--atol", 0, "--json", output)

    document = json.loads(result.out)
    assert (document["output"], document["rejected"]) == (None, f"{output}.rejected")


def test_a_dry_run_has_the_plan_in_its_json(run: Run, output: Path) -> None:
    """Files with their bytes, and what the machine needs."""
    result = run("partition", "ft", "--model", MODEL, "--tp", 2, "--dry-run", "--json", output)

    plan = json.loads(result.out)["plan"]
    assert plan["files"]["2-gpu/model.wpe.bin"] == 24 * 32 * 4
    assert plan["output_bytes"] == sum(plan["files"].values())
    assert plan["memory_bytes"] > 0


@pytest.mark.parametrize("options", [[], ["--deep"]])
def test_verify_has_json_too(options: list[str], run: Run, output: Path) -> None:
    """One document, with the exit code."""
    run("partition", "ft", "--model", MODEL, "--no-validate", output)

    result = run("verify", *options, "--json", output)

    assert json.loads(result.out)["exit_code"] == 0


def test_a_failed_verify_has_json_too(run: Run, output: Path) -> None:
    """One document, with the problem."""
    run("partition", "ft", "--model", MODEL, "--no-validate", output)
    (output / "config.json").unlink()

    result = run("verify", "--json", output)

    assert json.loads(result.out)["error"]["problems"][0]["subject"] == "config.json"


@pytest.mark.parametrize("options", [["--no-validate"], [], ["--dry-run"]])
def test_quiet_is_silent(options: list[str], run: Run, output: Path) -> None:
    """Nothing on stdout or stderr where all is well."""
    result = run("partition", "ft", "--model", MODEL, *options, "--quiet", output)

    assert result == type(result)(0, "", "")


def test_quiet_verify_is_silent(run: Run, output: Path) -> None:
    """Nothing on stdout or stderr where all is well, numbers included."""
    run("partition", "ft", "--model", MODEL, "--no-validate", output)

    result = run("verify", "--deep", "--quiet", output)

    assert result == type(result)(0, "", "")


def test_quiet_still_shows_errors(run: Run, output: Path) -> None:
    """Errors are not messages to be hidden."""
    result = run("partition", "ft", "--model", MODEL, "--tp", 3, "--quiet", output)

    assert (result.code, "error:" in result.err, result.out) == (5, True, "")


@every_ending
def test_log_lines_are_json(options: list[str], code: int, run: Run, output: Path) -> None:
    """Each line of stderr is an object with a time, a level, an event and a message."""
    result = run("partition", "ft", "--model", MODEL, *options, "--log-format", "json", output)

    records = [json.loads(line) for line in result.err.splitlines()]
    assert result.code == code
    assert all({"ts", "level", "event", "message"} <= record.keys() for record in records)


def test_errors_are_log_lines_with_their_fields(run: Run, output: Path) -> None:
    """The error's line has subject, found, expected and hint."""
    result = run("partition", "ft", "--model", MODEL, "--tp", 3, "--log-format", "json", output)

    errors = [record for line in result.err.splitlines() if (record := json.loads(line))["level"] == "error"]
    assert {"subject", "found", "expected", "hint"} <= errors[0].keys()


@every_ending
def test_no_color_means_no_escape_codes(
    options: list[str], code: int, run: Run, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR wins even where a terminal is forced."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")

    result = run("partition", "ft", "--model", MODEL, *options, output)

    assert [line for line in (result.out + result.err).splitlines() if "\x1b[3" in line or "\x1b[9" in line] == []


@every_ending
def test_a_pipe_gets_no_escape_codes(options: list[str], code: int, run: Run, output: Path) -> None:
    """What is not a terminal gets plain text."""
    result = run("partition", "ft", "--model", MODEL, *options, output)

    assert "\x1b" not in result.out + result.err


@every_ending
@pytest.mark.parametrize("given", ["flag", "HF_TOKEN", "LLMCOMPILE_TOKEN"])
@pytest.mark.parametrize("form", [[], ["--json", "--log-format", "json"]])
def test_the_token_is_never_seen(
    options: list[str], code: int, given: str, form: list[str], run: Run, output: Path
) -> None:
    """Neither on stdout nor stderr nor in any file that is left, however the command ends."""
    flags = ["--token", SECRET] if given == "flag" else []
    variables = {} if given == "flag" else {given: SECRET}

    result = run("partition", "ft", "--model", MODEL, *options, *flags, *form, output, env=variables)

    left = b"".join(path.read_bytes() for path in output.parent.rglob("*") if path.is_file())
    assert (result.code, SECRET in result.out + result.err, SECRET.encode() in left) == (code, False, False)


def test_help_does_not_show_the_token(run: Run) -> None:
    """--help names the variable and not its value."""
    result = run("partition", "ft", "--help", env={"HF_TOKEN": SECRET})

    assert (result.code, SECRET in result.out) == (0, False)


def test_the_summary_ends_with_the_next_command(run: Run, output: Path) -> None:
    """A person is told what to type next."""
    result = run("partition", "ft", "--model", MODEL, "--no-validate", output)

    assert f"llmcompile verify {output}" in result.out


def test_names_are_not_markup(run: Run, tmp_path: Path) -> None:
    """Square brackets in a path are printed as they are."""
    output = tmp_path / "[bold]out[red]"

    result = run("partition", "ft", "--model", MODEL, "--no-validate", output)

    assert (result.code, "[bold]out[red]" in result.out) == (0, True)


def test_the_version_is_printed(run: Run) -> None:
    """`--version` says name and version and ends with 0."""
    result = run("--version")

    assert (result.code, result.out.split()[0]) == (0, "llmcompile")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1048576", 1 << 20),
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5k", 1536),
        ("8 gib", 8 << 30),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    """Binary units, decimal ones with a B, or plain bytes."""
    assert size(text) == expected


# The builder's log


LOG = (
    Line("[I] Set gemm_plugin to None."),
    Line("[I] Build TensorRT engine a", "building a"),
    Line("[I] Build TensorRT engine a", "building a"),
    Line("\x1b[31m[W] red"),
)


def console(**given: object) -> Console:
    """A console that shows a build."""
    words = {"command": "build trtllm", "json": False, "quiet": False, "log_format": "text", **given}
    return Console(**words)  # type: ignore[arg-type]


def test_a_log_is_shown_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal: every line with its escapes spelt out, and progress as it changes."""
    with console() as shown:
        for line in LOG:
            shown.building(line)

    assert capsys.readouterr().err.splitlines() == [
        "  [I] Set gemm_plugin to None.",
        "  [I] Build TensorRT engine a",
        "build: building a",
        "  [I] Build TensorRT engine a",
        "  \\x1b[31m[W] red",
    ]


def test_a_log_is_one_live_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how far the build is, and is taken away; the log itself is not shown."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")

    with console() as shown:
        for line in LOG:
            shown.building(line)

    printed = capsys.readouterr().err
    assert ("building a" in printed, "gemm_plugin" in printed, "red" in printed) == (True, False, False)
    assert shown._live is None


def test_a_quiet_log_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on either stream."""
    with console(quiet=True) as shown:
        for line in LOG:
            shown.building(line)

    assert capsys.readouterr() == ("", "")


# What was proved


def compared(output: str, **details: object) -> Comparison:
    """A comparison that passed."""
    return Comparison(
        input="tokens", reference="the model in float32", output=output, passed=True, details=details or {"ratio": 1.01}
    )


def test_outputs_without_a_distance_are_named() -> None:
    """Perplexity has no largest difference of elements."""
    made = (compared("logits", max_abs=1e-6, atol=1e-5), compared("perplexity"))

    line = _validated_line(Validation(passed=True, executor="x", comparisons=made, notes=()))

    assert line == "logits max abs 1.0e-06 (atol 1.0e-05); perplexity within its limits, on tokens"


def test_a_validation_that_skipped_all_says_so() -> None:
    """Its notes say why."""
    assert (
        _validated_line(Validation(passed=True, executor="x", comparisons=(), notes=("a",))) == "nothing was compared"
    )


def test_a_validations_notes_are_shown(run: Run, output: Path) -> None:
    """What was left out of it is said in the summary too."""
    result = run("partition", "ft", "--model", MODEL, output)

    notes = json.loads((output / "llmcompile.json").read_text())["validation"]["notes"]
    assert [note for note in notes if note not in result.out] == []


def test_a_perplexity_is_not_rounded_to_the_models() -> None:
    """321.4 beside 320.6 is neither recorded nor printed as 321."""
    figures = {"perplexity_model": 320.6421, "perplexity": 321.4321, "kl": 0.12345, "top1": 0.9}
    found = Quality(text="a text", recipe="FP8", tokens=7, **figures, largest_error=0.1, largest_logit=3.0)

    record = quality_record(found, digits=3)
    line = _quality_line(Validation(passed=True, executor="x", comparisons=(), notes=(), quality=record))

    assert (record.perplexity_model, record.perplexity, record.kl) == (320.642, 321.432, 0.123)
    assert line.startswith("perplexity 321.4, the model's 320.6;")
