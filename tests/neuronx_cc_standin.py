#!/usr/bin/env python3
"""A stand-in for neuronx-cc: its documented command line, input rules, log and errors, and a NEFF without a program.

`install` puts one named neuronx-cc into a folder. It reads the HLO it is given, refuses what the vendor's page says is
refused, and writes a container with a well-formed header and archive, so that everything around the compiler runs.

Environment of its own:
    NEURONX_CC_STANDIN          what goes wrong: one of `FAILURES`, or GRAPH=FAILURE for one graph alone
    NEURONX_CC_STANDIN_VERSION  the version it says it is (default `VERSION`)
    NEURONX_CC_STANDIN_LOG      a folder that is told of every call, in calls.jsonl

Source: aws-neuron/aws-neuron-sdk@81ce03ae:compiler/neuronx-cc/api-reference-guide/index.rst (flags),
compiler/error-codes (texts); the wording of F137, XCG815, XTP003, NCC_EARG002 and NCC_EVRF009 is from public logs
(aws-neuron-sdk issues 706, 825, 1003, 1014 and others). The vendor's program was never run here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmcompile import hlo
from llmcompile.hlo.fields import ModuleField
from llmcompile.hlo.wire import Message

VERSION = "2.21.33363.0+82129205"
TARGETS = ("inf2", "trn1", "trn1n", "trn2")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "--framework": ("XLA",),
    "--target": TARGETS,
    "--model-type": ("generic", "transformer", "unet-inference"),
    "--auto-cast": ("none", "matmult", "all"),
    "--auto-cast-type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    "--distribution-strategy": ("llm-training",),
    "--logical-nc-config": ("1", "2"),
    "--optlevel": ("1", "2", "3"),
    "--verbose": ("info", "warning", "error", "critical", "debug", "35"),
}
"""Flags that take one of some values; 35 is what the vendor's frameworks say."""
CHOICES_2_27: Mapping[str, tuple[str, ...]] = {
    "--native-int64": ("default", "enabled", "disabled"),
    "--implicit-integer-downcast": ("default", "all", "none"),
}
TEXTS = ("--logfile", "--output")
SWITCHES = (
    "--enable-mixed-precision-accumulation",
    "--disable-mixed-precision-accumulation",
    "--enable-saturate-infinity",
    "--enable-fast-context-switch",
    "--enable-fast-loading-neuron-binaries",
)
ALIASES = {"-lnc": "--logical-nc-config", "--lnc": "--logical-nc-config", "-O": "--optlevel"}
CUSTOM_CALLS = (
    *("AwsNeuronErf", "AwsNeuronGelu", "AwsNeuronGeluApprxTanh", "AwsNeuronGeluBackward", "AwsNeuronSilu"),
    *("AwsNeuronSiluBackward", "AwsNeuronRmsNorm", "AwsNeuronSoftmax", "AwsNeuronSoftmaxBackward"),
    *("AwsNeuronCollectiveMatmul", "AwsNeuronIntMatmult", "AwsNeuronArgMax", "AwsNeuronArgMin"),
    *("AwsNeuronTopK", "AwsNeuronDropoutMaskV1", "AwsNeuronCustomNativeKernel", "AwsNeuronCustomOp"),
    *("AwsNeuronDevicePrint", "ResizeNearest", "ResizeBilinear", "ResizeNearestGrad"),
    *("AwsNeuronLNCShardingConstraint", "AwsNeuronTransferWithStaticRing"),
    *("AwsNeuronModuleMarkerStart-Forward", "AwsNeuronModuleMarkerStart-Backward"),
    *("AwsNeuronModuleMarkerEnd-Forward", "AwsNeuronModuleMarkerEnd-Backward", "NeuronBoundaryMarker-Start"),
    *("NeuronBoundaryMarker-End"),
)
MEMORY_GIB = {"inf2": 16, "trn1": 16, "trn1n": 16, "trn2": 24}
MESSAGES = {
    "F137": "[F137] neuronx-cc was forcibly killed - This most commonly occurs due to insufficient system memory. "
    "Using a smaller data type, dimensions, batch size, or a larger instance type may help.",
    "F134": "[F134] neuronx-cc terminated abnormally - Please open a support ticket at "
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/new",
    "TEN404": "[TEN404] Internal tensorizer error: BirCodeGenLoop:tensor size must be more than 0",
    "XCG815": "[XCG815] Estimated peak HBM usage (17.28) exceeds 16GB. Neff won't be able to load on chip",
    "XTP003": "[XTP003] Too many instructions: Number of instructions (10046893) is over the threshold (5000000).",
    "NCC_EOOM001": "[NCC_EOOM001] The combined memory needed for the model's activation tensors exceeds the "
    "high-bandwidth memory limit.",
    "NCC_EVRF007": "[NCC_EVRF007] The number of instructions generated exceeds the limit.",
    "NCC_EXTP004": "[NCC_EXTP004] The number of instructions generated exceeds the limit.",
    "NCC_EVRF001": "[NCC_EVRF001] An unsupported operator was used.",
    "NCC_EUOC002": "[NCC_EUOC002] An unsupported operator was used.",
    "NCC_ISMP902": "[NCC_ISMP902] Something this table does not know.",
}
"""What a compilation that fails says; each is a value of NEURONX_CC_STANDIN, and ends with exit code 70."""
FAILURES = (
    *MESSAGES,
    "oom",
    "oom-137",
    "70",
    "no-file",
    "empty",
    "truncated",
    "damaged",
    "other-version",
    "hang",
    "slow",
)


class Refused(Exception):
    """The text of an error and the exit code."""

    def __init__(self, text: str, code: int = 70) -> None:
        super().__init__(text)
        self.code = code


def install(folder: Path, version: str = VERSION) -> Path:
    """Write an executable neuronx-cc into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "neuronx-cc"
    program.write_text(
        f'#!/bin/sh\nNEURONX_CC_STANDIN_VERSION="${{NEURONX_CC_STANDIN_VERSION:-{version}}}"\n'
        "export NEURONX_CC_STANDIN_VERSION\n"
        f'exec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n'
    )
    program.chmod(0o755)
    return program


def calls(folder: Path) -> list[dict[str, object]]:
    """What the folder named by NEURONX_CC_STANDIN_LOG was told of: words, environment, folder, graph, start, end."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def graph(opcode: str = "add", dtype: str = "f32", dims: tuple[int, ...] = (2, 3), first_id: int = 1) -> bytes:
    """A serialized module of one operation on one parameter, to compile in tests."""
    shape = hlo.Shape(dtype, dims)
    parameter = hlo.Instruction.make("parameter", shape, id=first_id)
    result = hlo.Instruction.make(opcode, shape, id=first_id + 1, operand_ids=(first_id, first_id))
    computation = hlo.Computation(Message()).with_id(first_id + 2).with_name(f"main.{first_id + 2}")
    whole = computation.with_instructions([parameter, result], root_id=first_id + 1)
    module = hlo.Module(Message().with_text(ModuleField.NAME, "main"))
    return hlo.serialize(module.with_computations([whole], entry_id=whole.id))


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def log(text: str, level: str = "INFO") -> None:
    """One line as the compiler logs it."""
    say(f"2026-11-21T12:00:00Z {level} {os.getpid()} {text}")


def main(words: Sequence[str]) -> int:
    """Be neuronx-cc; returns the exit code."""
    version = os.environ.get("NEURONX_CC_STANDIN_VERSION", VERSION)
    if list(words) in (["--version"], ["-V"]):
        say(f"NeuronX Compiler version {version}\n\nPython version 3.11.9\nHWM version {version}\nNumPy version 1.26.4")
        return 0
    start, graph = time.time(), ""
    try:
        flags, models = parse(words, version)
        graph = Path(models[0]).name.split(".")[0]
        compile_model(Path(models[0]), flags, version, how_it_goes(graph))
    except Refused as refused:
        log(f"[neuronx-cc]: {refused}", "ERROR")
        say(f"\nDiagnostic information:\n  NeuronX Compiler version {version}\n\n  Python version 3.11.9")
        return refused.code
    finally:
        note({"words": list(words), "graph": graph, "start": start, "end": time.time()})
    say("\nCompiler status PASS")
    return 0


def how_it_goes(graph: str) -> str:
    """What NEURONX_CC_STANDIN says of a graph."""
    only, _, how = os.environ.get("NEURONX_CC_STANDIN", "").rpartition("=")
    assert how in ("", *FAILURES), f"NEURONX_CC_STANDIN: {how}"
    return how if only in ("", graph) else ""


def note(call: dict[str, object]) -> None:
    """Tell the folder of NEURONX_CC_STANDIN_LOG."""
    if "NEURONX_CC_STANDIN_LOG" in os.environ:
        line = json.dumps({**call, "environment": dict(os.environ), "folder": str(Path.cwd())}) + "\n"
        with (Path(os.environ["NEURONX_CC_STANDIN_LOG"]) / "calls.jsonl").open("a") as file:
            file.write(line)


def parse(words: Sequence[str], version: str) -> tuple[dict[str, str], list[str]]:
    """The flags by their long names, and the files."""
    if len(words) == 0 or words[0] != "compile":
        raise Refused("usage: neuronx-cc <command> [parameters]; commands: compile, list-operators", 2)
    release = tuple(int(part) for part in version.split(".")[:2])
    choices = {**CHOICES, **(CHOICES_2_27 if release >= (2, 27) else {})}
    flags: dict[str, str] = {}
    files, unknown = [], []
    rest = list(words[1:])
    while rest != []:
        word = rest.pop(0)
        short = re.fullmatch(r"-O(\d+)", word)
        name, equals, value = ("-O", "=", short[1]) if short is not None else word.partition("=")
        name = ALIASES.get(name, name)
        if not word.startswith("-"):
            files.append(word)
        elif name in SWITCHES and equals == "":
            flags[name] = ""
        elif name in choices or name in TEXTS:
            if equals == "" and rest == []:
                raise Refused(f"neuronx-cc compile: error: argument {name}: expected one argument", 2)
            flags[name] = value if equals != "" else rest.pop(0)
        else:
            unknown.append(word)
    if unknown != []:
        listed = " ".join(unknown)
        raise Refused(f"[NCC_EARG002] Illegal argument(s) - the following argument(s) are unrecognized: {listed}")
    check_values(flags, files, choices)
    return flags, files


def check_values(flags: Mapping[str, str], files: Sequence[str], choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a value that is none of a flag's, and combinations the vendor's pages exclude."""
    for name, value in flags.items():
        parts = value.split(",") if name == "--implicit-integer-downcast" else [value]
        allowed = choices.get(name, (value,))
        if parts != [value] or value in ("dot", "scatter", "all_reduce", "reduce_scatter", "pow"):
            allowed = ("dot", "scatter", "all_reduce", "reduce_scatter", "pow")
        if any(part not in allowed for part in parts):
            listed = ", ".join(repr(choice) for choice in allowed)
            raise Refused(f"neuronx-cc compile: error: argument {name}: invalid choice: {value!r} ({listed})", 2)
    for name in ("--framework", "--target"):
        if name not in flags:
            raise Refused(f"neuronx-cc compile: error: the following arguments are required: {name}", 2)
    if len(files) != 1:
        raise Refused(f"neuronx-cc compile: error: {len(files)} model files; XLA takes one", 2)
    if flags["--target"] != "trn2" and flags.get("--logical-nc-config", "1") != "1":
        raise Refused(
            f"[NCC_EARG001] Unsupported Logical Neuron Core (LNC) configuration: "
            f"{flags['--logical-nc-config']} on {flags['--target']}"
        )


def compile_model(path: Path, flags: Mapping[str, str], version: str, how: str) -> None:
    """Read, check, log, and write the file of --output."""
    logfile = Path(flags.get("--logfile", "log-neuron-cc.txt"))
    logfile.write_text("the whole log\n")
    if flags.get("--optlevel", "2") == "2":
        log(
            "Compilation is optimized for best performance and compilation time. For faster compilation use -O1", "USER"
        )
    try:
        data = path.read_bytes()
        module = hlo.parse(data)
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be read as HLO: {error}") from error
    refusal = next(refusals(module, flags, version), None)
    if refusal is not None:
        raise Refused(refusal)
    log("[sg0000/Tensorizer/BirCodeGenLoop]: Running BirCodeGenLoop")
    log("[sg0000/Tensorizer/BirCodeGenLoop]: BirCodeGenLoop finished after 8.984 seconds")
    log(f"[Tensorizer]: BirCodeGen estimate #instances={sum(module.opcodes.values())} in sg0000")
    misbehave(how)
    log("[root/Tensorizer/Tensorizer]: Tensorizer finished after 0.153 seconds", "USER")
    log("[job.Frontend.0]: Job #0 finished")
    sys.stdout.write(".....")
    log("[pipeline.Pipeline.0]: Finished pipeline compilePipeline", "INFO")
    Path("neuronxcc-working").mkdir(exist_ok=True)
    if how == "no-file":
        return
    written = neff(data, flags, "2.15.128.0" if how == "other-version" else version)
    cut = {"empty": b"", "truncated": written[:-7], "damaged": written[:-7] + b"damaged"}
    Path(flags.get("--output", "file.neff")).write_bytes(cut.get(how, written))


def misbehave(how: str) -> None:
    """Fail in the way that NEURONX_CC_STANDIN says."""
    if how in MESSAGES:
        raise Refused(MESSAGES[how])
    if how == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "oom-137":
        raise Refused("Killed", 137)
    elif how == "70":
        for number in range(40):
            log(f'  File "neuronxcc/driver/Job.py", line {number}, in neuronxcc.driver.Job.SingleInputJob.run', "ERROR")
        raise Refused("An Internal Compiler Error has occurred")
    elif how == "slow":
        time.sleep(0.4)
    elif how == "hang":
        child = subprocess.Popen(["sleep", "300"])
        (Path(os.environ["NEURONX_CC_STANDIN_LOG"]) / f"pids-{os.getpid()}").write_text(f"{os.getpid()} {child.pid}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(300)


def refusals(module: hlo.Module, flags: Mapping[str, str], version: str) -> Iterator[str]:
    """What the compiler refuses of a module, by its documented codes."""
    target = flags["--target"]
    ids = [instruction.id for instruction in module.instructions]
    if max(ids) > 2**31 - 1 or len(set(ids)) < len(ids):
        yield "Check failed: instruction ids are not unique 32-bit numbers (pytorch/xla#9685)"
    if not module.message.has(ModuleField.HOST_PROGRAM_SHAPE):
        yield "Check failed: proto.has_host_program_shape()  No program shape found in the proto"
    shapes = [*(parameter.shape for parameter in module.parameters), *module.results]
    if not all(shape.is_row_major for shape in shapes):
        yield "[TEN404] Internal tensorizer error: a parameter or result that is not row-major"
    for instruction in module.instructions:
        yield from refusals_of(instruction, target)
    size = sum(shape.size_bytes for shape in shapes)
    if size > MEMORY_GIB[target] << 30:
        yield (
            f"[NCC_EVRF009] Size of total input and output tensors exceeds HBM limit of {target}. "
            f"Needed {size:,} bytes vs. available {MEMORY_GIB[target] << 30:,} bytes."
        )
    integer_dots = [
        instruction.name
        for computation in module.computations
        for instruction in computation.instructions
        if instruction.opcode == "dot"
        and computation.by_id[instruction.operand_ids[0]].shape.dtype in ("s32", "u32", "s64", "u64")
    ]
    if target == "trn2" and integer_dots != [] and "--implicit-integer-downcast" not in flags:
        yield f"[NCC_EVRF035] Opcode (dot) does not support 32-bit or 64-bit integer operands: {integer_dots[0]}"


def refusals_of(instruction: hlo.Instruction, target: str) -> Iterator[str]:
    """What the compiler refuses of one instruction."""
    where = f"instruction '{instruction.name}' has shape '{instruction.shape}'"
    for shape in instruction.shape.leaves:
        if shape.is_dynamic:
            yield f"[NCC_EMOD025] Dynamic shape is not supported: {where}."
        if shape.dtype in ("c64", "c128"):
            yield f"[NCC_EVRF004] Complex data types are not supported on the Neuron device: {where}"
        if shape.dtype in ("f8e4m3fnuz", "f8e4m3b11fnuz", "f8e5m2fnuz"):
            yield f"[NCC_EVRF005] Unsupported F8E4M3FNUZ, F8E4M3B11FNUZ, or F8E5M2FNUZ data type: {where}"
        if shape.dtype == "f8e4m3fn":
            yield f"[NCC_EVRF051] F8E4M3FN is not supported on {target}: {where}"
        if shape.dtype in ("f64", "s4", "u4", "s2", "u2", "s1", "u1", "f4e2m1fn"):
            yield f"[NCC_ESPP004] a data type that is not supported for code generation: {where}"
    call = instruction.custom_call_target
    if instruction.opcode == "custom-call" and call not in CUSTOM_CALLS:
        yield f"[NCC_EHCA005] a custom call instruction with a target name that is not recognized: {call}"
    if instruction.opcode in ("triangular-solve", "cholesky", "fft", "sort", "infeed", "outfeed"):
        yield f"[NCC_EUOC002] An unsupported operator was used: {instruction.opcode}"


def neff(model: bytes, flags: Mapping[str, str], version: str) -> bytes:
    """A container for a module: info.json names the version, hlo_stats.json the module's hash."""
    lnc = int(flags.get("--logical-nc-config", "2" if flags["--target"] == "trn2" else "1"))
    files = {
        "info.json": {"tool_version": version.partition("+")[0]},
        "neff.json": {"nodes": [{"node_name": "model", "kelf": "kelf-0.json"}]},
        "kelf-0.json": {"graph": "sg00"},
        "hlo_stats.json": {"sha256": hashlib.sha256(model).hexdigest()},
        "sg00/def.json": {"var": {}},
    }
    plain = "--enable-fast-loading-neuron-binaries" in flags
    archive = tar({name: json.dumps(content).encode() for name, content in files.items()})
    payload = archive if plain else gzip.compress(archive, mtime=0)
    return header(payload, pkg_version=1 if plain else 2, lnc=lnc, cores=lnc) + payload


def tar(files: Mapping[str, bytes]) -> bytes:
    """An archive of some files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def header(payload: bytes, *, pkg_version: int = 2, lnc: int = 1, cores: int = 1, feature_bits: int = 0x100) -> bytes:
    """The 1024 bytes before an archive."""
    digest = hashlib.sha256(payload).digest() if pkg_version == 1 else hashlib.md5(payload).digest()
    fields = (pkg_version, 1024, len(payload), 2, 0, b"2.0.56.0", cores, digest, uuid.uuid4().bytes, b"model.neff")
    return struct.pack("<QQQQQ128sI32s16s256sI64sQI468s", *fields, cores, bytes([cores]), feature_bits, lnc, b"")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
