"""The vendor's builder is found, checked, run and checked again; a stand-in takes its place.

Neither tensorrt_llm nor a GPU was ever at hand: these tests hold us to the recorded contract, not to the vendor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trtllm_standin as standin
from llmcompile.errors import ToolchainError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.processes import Line
from llmcompile.exporters.trtllm import toolchain as tools
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.exporters.trtllm.toolchain import Contents, Gpu, Toolchain
from watching import alive, wait_for

RECORDED = [("0.10.0", "0.10"), ("0.13.0", "0.13"), ("0.16.0", "0.16"), ("0.21.0", "0.21"), ("1.2.1", "1.2")]
H100 = Gpu(0, "NVIDIA H100", 90, "580.65.06", 80 << 30)
FLOAT16 = Contents(dtype="float16")
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", 80, "580.65.06", 80 << 30)


def options(**given: Any) -> TrtllmOptions:
    """Options of some model."""
    return TrtllmOptions(build=BuildOptions(model="org/name", output=Path("out")), **given)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toolchain]:
    """Install the stand-in and find it."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")

    def found(version: str = "1.2.1", release: str = "1.2", **given: Any) -> Toolchain:
        return tools.find(standin.install(tmp_path / f"env-{version}", version, release, **given), None)

    return found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder a build runs in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def build(found: Toolchain, asked: TrtllmOptions, tmp_path: Path, ranks: int = 1) -> list[Line]:
    """Build a checkpoint of dummy ranks into tmp_path/engine; returns the log."""
    if not (tmp_path / "checkpoint").exists():
        standin.checkpoint(tmp_path / "checkpoint", ranks)
    lines: list[Line] = []
    tools.build_engine(
        found,
        asked,
        checkpoint=tmp_path / "checkpoint",
        output=tmp_path / "engine",
        folder=tmp_path / "work",
        on_line=lines.append,
    )
    return lines


def words(work: Path) -> list[str]:
    """What the stand-in was called with last."""
    return list(json.loads((work / "standin.json").read_text())["words"])


# Find


@pytest.mark.parametrize(("version", "release"), RECORDED)
def test_version_program_and_flags_are_found(version: str, release: str, make: Callable[..., Toolchain]) -> None:
    """By a child interpreter's metadata, the program beside it and its --help."""
    found = make(version, release)

    assert (found.version, found.tensorrt) == (version, "10.13.3")
    assert found.executable == found.python.parent / "trtllm-build"
    assert {"--checkpoint_dir", "--max_batch_size", "--max_multimodal_len"} <= found.flags


def test_the_vendors_package_is_not_imported(make: Callable[..., Toolchain]) -> None:
    """Neither here nor, to find it, in the child."""
    make()

    assert "tensorrt_llm" not in sys.modules


def test_without_tensorrt_llm_the_three_ways_on_are_said() -> None:
    """Stop after the checkpoint, a container of the version, pip: each as it is typed."""
    with pytest.raises(ToolchainError) as caught:
        tools.find(Path(sys.executable), None, version="0.21.0", checkpoint="llama")

    [problem] = caught.value.problems
    assert "not installed" in problem.found
    assert "--stop-after checkpoint" in problem.hint
    assert "--from-checkpoint llama`" in problem.hint
    assert "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3" in problem.hint
    assert "pip install tensorrt_llm==0.21.0" in problem.hint


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    """By its flag."""
    with pytest.raises(ToolchainError, match=r"--toolchain-python: .*not an executable file"):
        tools.find(tmp_path / "python", None)


def test_the_interpreter_beside_a_given_program_is_asked(tmp_path: Path) -> None:
    """--trtllm-build alone is enough."""
    python = standin.install(tmp_path / "env", "1.2.1", "1.2")

    assert tools.find(None, python.parent / "trtllm-build").python == python


def test_help_lists_what_its_option_lines_begin_with() -> None:
    """Aliases too; flags that a sentence mentions are not the program's."""
    text = (
        "usage: x [--a A]\n\noptions:\n  -h, --help  show\n"
        "  --a A, --alias A\n                        see --b and ``--c``\n  --d {x,y}   or --e\n"
    )

    assert tools.parse_help(text) == {"--a", "--alias", "--d"}


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index, name, capability, driver and memory; a line that is none is passed over."""
    standin.nvidia_smi(tmp_path, "0, NVIDIA A100-SXM4-80GB, 8.0, 580.65.06, 81920", "1, broken, [N/A], 1, 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert tools.visible_gpus() == (A100,)


def test_hidden_gpus_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES decides."""
    standin.nvidia_smi(tmp_path, "0, L4, 8.9, 580.1, 24576", "1, L4, 8.9, 580.1, 24576")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert [gpu.index for gpu in tools.visible_gpus()] == [1]


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvidia-smi, no GPU, no error."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert tools.visible_gpus() == ()


# Check


def ready(**given: Any) -> Toolchain:
    """A toolchain that lacks nothing."""
    whole: dict[str, Any] = {"python": Path("/x/python3"), "version": "1.2.1", "executable": Path("/x/trtllm-build")}
    return Toolchain(**{**whole, "gpus": (A100,), **given})


def test_a_ready_machine_has_no_problem() -> None:
    """The right version, program and GPU."""
    assert tools.check(ready(), options(), Contents(dtype="bfloat16")) == []


@pytest.mark.parametrize(
    ("found", "asked", "subject", "text"),
    [
        ({"version": "0.21.0"}, {}, "--trtllm-version", "1.2.1, and 0.21.0 is in"),
        ({"executable": None}, {}, "trtllm-build", "not beside"),
        ({"version": "1.3.0", "executable": None}, {}, "tensorrt_llm", "engines were removed in July 2026"),
        ({"gpus": ()}, {}, "GPU", "none visible"),
        ({}, {"build_workers": 2}, "--build-workers", "2, and 1 GPU visible"),
        ({"gpus": (Gpu(0, "A100", 80, "550.54", 1),)}, {}, "driver", "550.54"),
        ({"gpus": (A100, Gpu(1, "L4", 89, "580.1", 1))}, {}, "GPU", "different kinds"),
        ({"flags": frozenset({"--max_seq_len"})}, {"engine": (("--strip_plan", ""),)}, "--strip_plan", "--help"),
    ],
)
def test_what_would_stop_a_build_is_said_first(
    found: dict[str, Any], asked: dict[str, Any], subject: str, text: str
) -> None:
    """Version, program, GPU, workers, recipe, layout, driver, flags: each in its own problem."""
    [problem] = tools.check(ready(**found), options(**asked), FLOAT16)

    assert problem.subject == subject
    assert text in problem.found


@pytest.mark.parametrize(
    ("gpu", "contents", "text"),
    [
        (A100, {"recipe": "fp8"}, "cannot run fp8"),
        (A100, {"kv_cache": "fp8"}, "without an FP8 KV cache"),
        (H100, {"recipe": "w8a16", "wo_layout": "sm80"}, "other bytes than the sm80 layout"),
        (H100, {"recipe": "w4a16_gptq"}, "other bytes than the sm80 layout"),
        (H100, {"recipe": "w8a16"}, ""),
    ],
)
def test_what_the_checkpoint_demands_is_held_against_the_gpu(gpu: Gpu, contents: dict[str, Any], text: str) -> None:
    """Its recipe, its cache and its layout, whatever the options say."""
    problems = tools.check(ready(gpus=(gpu,)), options(), Contents(dtype="float16", **contents))

    assert [text in problem.found for problem in problems] == ([] if text == "" else [True])


def test_what_a_checkpoint_demands_is_in_its_config() -> None:
    """Element type, recipe and cache; whether integers are written is known from the tensors."""
    quantization = {"quant_algo": "W4A16", "kv_cache_quant_algo": "FP8"}

    found = tools.contents_of({"dtype": "bfloat16", "quantization": quantization}, integers=True)

    assert found == Contents(dtype="bfloat16", recipe="w4a16", wo_layout="sm80", kv_cache="fp8")


def test_a_candidate_of_1_3_that_still_has_the_program_builds() -> None:
    """The program decides, not the number alone."""
    assert tools.check(ready(version="1.3.0rc5"), options(), FLOAT16) == []


def test_more_ranks_than_gpus_are_built_and_not_run() -> None:
    """Ranks are built one after the other on one GPU; running them takes a GPU for each."""
    assert tools.check(ready(), options(tp=2), FLOAT16) == []
    assert tools.check_run(ready(), 2) is not None
    assert tools.check_run(ready(), 1) is None


# Build


@pytest.mark.parametrize(("version", "release"), RECORDED)
def test_an_engine_is_built_with_each_recorded_release(
    version: str, release: str, make: Callable[..., Toolchain], work: Path, tmp_path: Path
) -> None:
    """The stand-in knows exactly the release's flags, and the folder passes our check."""
    engine = (("--max_batch_size", "8"), ("--gemm_plugin", "float16"), ("--use_fused_mlp", "enable"))
    found, asked = make(version, release), options(trtllm_version=version, engine=engine)
    config = standin.checkpoint(tmp_path / "checkpoint", 2)

    build(found, asked, tmp_path)

    facts = tools.check_engine_dir(tmp_path / "engine", config, found)
    assert (facts.trtllm_version, facts.tensorrt_version, facts.ranks) == (version, "10.13.3", 2)
    assert facts.size_bytes == 2 * len(b"engine of rank 0")
    assert ("enable" in words(work)) == (release != "0.10")


def test_the_log_is_live_and_says_how_far_it_is(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """Every line is handed on; those that mean progress say so in a few words."""
    lines = build(make(), options(), tmp_path)

    assert any("Set gemm_plugin" in line.text and line.progress is None for line in lines)
    assert [line.progress for line in lines if line.progress is not None] == [
        "building Unnamed Network 0",
        "built Unnamed Network 0 in 00:00:36",
        "writing rank 0",
        "written in 00:00:28",
        "all engines built in 00:01:59",
    ]


def test_kernel_timings_of_one_build_begin_the_next(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """model.cache stays in the work folder; the first build has none to read."""
    found = make()
    build(found, options(), tmp_path)
    first = words(work)
    build(found, options(), tmp_path)

    assert "--input_timing_cache" not in first
    assert words(work)[words(work).index("--input_timing_cache") + 1] == str(work / "model.cache")
    assert (work / "model.cache").read_bytes() == b"timings"


SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LLMCOMPILE_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"),
    *("OPENAI_KEY", "GITHUB_PAT", "SSH_PRIVATE_KEY", "DB_PASS", "NETRC_AUTH", "DB_PWD", "KEY", "db_password"),
    *("DOCKER_AUTH_CONFIG", "SSH_AUTH_SOCK", "GPG_PASSPHRASE"),
)


def test_tokens_do_not_reach_the_builder(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_TOKEN and its like, and our own variables, are dropped; others are kept."""
    for name in SECRETS:
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    lines = build(make(), options(), tmp_path)

    seen = json.loads((work / "standin.json").read_text())["environment"]
    assert "hf_secret" not in seen.values()
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"
    assert not any("hf_secret" in line.text for line in lines)


def test_tokens_do_not_reach_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first of that name on PATH, and gets the builder's environment."""
    standin.script(tmp_path / "nvidia-smi", f'env > "{tmp_path}/seen"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    tools.visible_gpus()

    assert "hf_secret" not in (tmp_path / "seen").read_text()


def test_a_log_without_an_end_of_line_comes_in_pieces(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three million characters are not held at once, and the error shows the beginning of each piece."""
    found, lines = make(), list[Line]()
    monkeypatch.setenv("TRTLLM_STANDIN", "babble")
    standin.checkpoint(tmp_path / "checkpoint")

    with pytest.raises(ToolchainError) as caught:
        tools.build_engine(
            found,
            options(),
            checkpoint=tmp_path / "checkpoint",
            output=tmp_path / "engine",
            folder=work,
            on_line=lines.append,
        )

    assert sum(line.text.count("x") for line in lines if set(line.text) == {"x"}) == 3_000_000
    assert max(len(line.text) for line in lines) <= 1 << 17
    assert len(caught.value.problems[0].hint) < 30_000


def test_a_failed_build_shows_its_last_twenty_lines(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its exit code, and the command to repeat it."""
    monkeypatch.setenv("TRTLLM_STANDIN", "fail")

    with pytest.raises(ToolchainError, match="trtllm-build: exit code 1") as caught:
        build(make(), options(), tmp_path)

    hint = caught.value.problems[0].hint
    assert "line 39" in hint
    assert "line 20" in hint
    assert "line 19" not in hint
    assert "--checkpoint_dir" in hint


def test_a_builder_that_a_signal_ended_is_said_so(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the signal's name, or the shell's number for it."""
    monkeypatch.setenv("TRTLLM_STANDIN", "die")

    with pytest.raises(ToolchainError, match=r"killed by SIGSEGV|exit code 139"):
        build(make(), options(), tmp_path)


def test_a_build_past_its_time_is_stopped_with_all_its_processes(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--build-timeout ends the workers too."""
    found = make()
    monkeypatch.setenv("TRTLLM_STANDIN", "hang")

    with pytest.raises(ToolchainError, match="still running after 1 s"):
        build(found, options(build_timeout_seconds=1.0), tmp_path)

    wait_for(lambda: not any(alive(int(pid)) for pid in (work / "pids").read_text().split()))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_whatever_ends_us_ends_the_builder(
    kind: type[BaseException],
    make: Callable[..., Toolchain],
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt, or a SIGTERM that the command line turns into an exception, leaves no process behind."""
    found = make()
    monkeypatch.setenv("TRTLLM_STANDIN", "hang")

    def stop(number: int, frame: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    try:
        with pytest.raises(kind):
            build(found, options(), tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    wait_for(lambda: not any(alive(int(pid)) for pid in (work / "pids").read_text().split()))


def test_a_killed_run_leaves_no_builder_behind(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 the builder and its workers end, so that the next run does not race with them."""
    found = make()
    standin.checkpoint(tmp_path / "checkpoint")
    monkeypatch.setenv("TRTLLM_STANDIN", "hang")
    words = [str(found.python.parent / "trtllm-build"), "--checkpoint_dir", str(tmp_path / "checkpoint")]
    words += ["--output_dir", str(tmp_path / "engine")]
    call = (
        "from pathlib import Path; from llmcompile.exporters.trtllm import toolchain as t; "
        f"t._run({words!r}, Path({str(work)!r}), None, lambda line: None)"
    )
    killed = subprocess.Popen([sys.executable, "-c", call])
    wait_for(lambda: (work / "pids").exists() and len((work / "pids").read_text().split()) == 2)
    pids = [int(pid) for pid in (work / "pids").read_text().split()]
    running = [alive(pid) for pid in pids]

    killed.kill()
    killed.wait()

    assert running == [True, True]
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_a_program_that_cannot_start_is_said_so(work: Path, tmp_path: Path) -> None:
    """Exit code 6, not our traceback."""
    with pytest.raises(ToolchainError, match="cannot be started"):
        build(ready(), options(), tmp_path)


def test_an_encoder_decoder_model_is_two_builds(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """The decoder begins with one token and knows the encoder's longest input."""
    engine = (("--max_encoder_input_len", "1024"), ("--max_seq_len", "201"), ("--max_batch_size", "4"))
    for part in ("encoder", "decoder"):
        standin.checkpoint(tmp_path / "checkpoint" / part, architecture=f"{part.title()}Model")
    build(make(), options(engine=engine), tmp_path)

    assert (tmp_path / "engine" / "encoder" / "rank0.engine").exists()
    assert (tmp_path / "engine" / "decoder" / "rank0.engine").exists()
    decoder = words(work)
    assert decoder[decoder.index("--max_input_len") + 1] == "1"
    assert decoder[decoder.index("--max_encoder_input_len") + 1] == "1024"
    assert dict(tools.part_settings(engine, "encoder")) == {
        "--max_input_len": "1024",
        "--max_batch_size": "4",
        "--paged_kv_cache": "disable",
    }


# The API, in the child


def test_the_api_builds_through_the_vendors_classes(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """Sizes reach BuildConfig, plugins PluginConfig, the KV cache its enumeration; each rank says how far it is."""
    engine = (("--max_batch_size", "8"), ("--gemm_plugin", "fp8"), ("--kv_cache_type", "paged"))
    found = make(program=False)
    lines = build(found, options(builder="api", engine=engine), tmp_path, ranks=2)

    written = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert written["build_config"] == {"max_batch_size": 8, "gemm": "fp8", "kv": "paged"}
    assert "rank 1: saving" in [line.progress for line in lines]
    assert (tmp_path / "engine" / "rank1.engine").exists()


def test_the_api_builds_ranks_at_the_same_time(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """--build-workers 2 is two processes."""
    build(make(program=False), options(builder="api", build_workers=2), tmp_path, ranks=2)

    assert {path.name for path in (tmp_path / "engine").glob("*.engine")} == {"rank0.engine", "rank1.engine"}


def test_a_failure_of_the_api_shows_its_traceback(
    make: Callable[..., Toolchain], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's last lines, exit code 6."""
    standin.checkpoint(tmp_path / "checkpoint", architecture="NoSuchModel")

    with pytest.raises(ToolchainError, match=r"worker\.py: exit code 1") as caught:
        build(make(program=False), options(builder="api"), tmp_path)

    assert "KeyError: 'NoSuchModel'" in caught.value.problems[0].hint


def test_a_failure_of_the_api_can_be_repeated(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """The command in the hint needs no file of ours that is gone, and fails as it did."""
    standin.checkpoint(tmp_path / "checkpoint", architecture="NoSuchModel")
    with pytest.raises(ToolchainError) as caught:
        build(make(program=False), options(builder="api"), tmp_path)
    first = caught.value.problems[0].hint.splitlines()[0]

    again = subprocess.run(first.removeprefix("to repeat it: "), shell=True, capture_output=True, text=True)

    assert again.returncode == 1
    assert "KeyError: 'NoSuchModel'" in again.stderr


def test_our_modules_do_not_shadow_those_of_the_child(make: Callable[..., Toolchain]) -> None:
    """`import options` in the vendor's process is not ours: the worker's own folder leaves its path."""
    found = make()
    (found.python.parent.parent / "site" / "tensorrt_llm" / "runtime.py").write_text("import options\n")

    with pytest.raises(ToolchainError) as caught:
        tools.run_engine(
            found,
            engine=write_engine(found.python.parent.parent / "engine"),
            prompts=[[1]],
            end_id=2,
            logits=found.python.parent.parent / "logits",
            folder=found.python.parent,
            timeout_seconds=60,
            on_line=lambda line: None,
        )

    assert "No module named 'options'" in caught.value.problems[0].hint


def write_engine(folder: Path) -> Path:
    """Write an engine of one rank."""
    standin.save(folder, 0, {"mapping": {"world_size": 1}}, {}, "1.2.1")
    return folder


def test_an_engine_is_run_in_the_child(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """Each prompt's context logits come back as a .npy file."""
    found = make()
    build(found, options(), tmp_path)

    files = tools.run_engine(
        found,
        engine=tmp_path / "engine",
        prompts=[[1, 2, 3], [4]],
        end_id=2,
        logits=tmp_path / "logits",
        folder=work,
        timeout_seconds=60,
        on_line=lambda line: None,
    )

    assert [path.name for path in files] == ["0.npy", "1.npy"]
    assert all(path.exists() for path in files)


# Check the result


@pytest.mark.parametrize(("how", "state"), [("half", "absent"), ("empty", "empty")])
def test_an_engine_folder_that_is_not_whole_is_refused(
    how: str,
    state: str,
    make: Callable[..., Toolchain],
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every rank has a file with bytes in it."""
    found = make()
    config = standin.checkpoint(tmp_path / "checkpoint", 2)
    monkeypatch.setenv("TRTLLM_STANDIN", how)
    build(found, options(), tmp_path)

    with pytest.raises(ToolchainError, match=rf"rank\d\.engine: {state}"):
        tools.check_engine_dir(tmp_path / "engine", config, found)


def test_an_engine_of_another_mapping_is_refused(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """Two ranks were asked for, the engine has one."""
    found = make()
    build(found, options(), tmp_path)
    config = standin.checkpoint(tmp_path / "other", 2)

    with pytest.raises(ToolchainError, match=r"\(1, 1, 1\); expected \(2, 2, 1\)"):
        tools.check_engine_dir(tmp_path / "engine", config, found)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_an_engine_folder_without_its_config_is_refused(content: str, tmp_path: Path) -> None:
    """config.json is an object with version, pretrained_config and build_config."""
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ToolchainError, match=r"config\.json"):
        tools.check_engine_dir(tmp_path, {}, ready())


def test_facts_name_the_gpu_the_engine_is_bound_to(make: Callable[..., Toolchain], work: Path, tmp_path: Path) -> None:
    """The manifest has its name, capability and driver."""
    build(make(), options(), tmp_path)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())

    facts = tools.check_engine_dir(tmp_path / "engine", config, ready())

    assert (facts.gpu, facts.sm, facts.driver) == ("NVIDIA A100-SXM4-80GB", 80, "580.65.06")
