"""`llmcompile partition ft` from the outside: the vendor's bytes, the refusals with their exit codes, the options."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from conftest import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "ft"
EXPECTED = sorted(GOLDEN.glob("*/expected-*.json"))
IDS = [f"{path.parent.name}-{path.stem[9:]}" for path in EXPECTED]
QUIRKS = {
    "bloom-b": ("model.lm_head.weight.bin",),
    "gptneox-b": tuple(
        f"model.layers.{layer}.{name}.bias.bin" for layer in (0, 1) for name in ("attention.dense", "mlp.dense_4h_to_h")
    ),
}
"""Files in which the converter is wrong; tests/golden/ft/README.md."""


def options_of(golden: dict[str, Any], model: Path) -> list[object]:
    """The options of the vendor's command, in our words."""
    scales = ["--act-scales", model / "act_scales.pt"] if "-act_scale" in golden["command"] else []
    named = ["--model-name", golden["command"].split("-m_n ")[1]] if "-m_n " in golden["command"] else []
    return ["--tp", golden["tensor_parallel"], "--dtype", golden["weight_data_type"], *scales, *named]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GPT-2 checkpoint to spoil."""
    return Path(shutil.copytree(GOLDEN / "gpt2-a" / "hf", tmp_path / "model"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


# Goldens


@pytest.mark.parametrize("expected", EXPECTED, ids=IDS)
def test_the_bytes_are_the_vendors_where_it_is_right(expected: Path, run: Run, output: Path) -> None:
    """Every file but the known quirks has the vendor's name and hash."""
    golden = json.loads(expected.read_text())
    model = expected.parent / "hf"
    quirks = QUIRKS.get(golden["variant"], ()) if golden["tensor_parallel"] > 1 else ()

    result = run("partition", "ft", "-m", model, *options_of(golden, model), "--no-validate", "--quiet", output)

    assert result.code == 0, result.err
    folder = output / golden["output_dir"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.bin")}
    wanted = {name: file["sha256"] for name, file in golden["files"].items()}
    assert {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)} == set(quirks)


@pytest.mark.parametrize("expected", EXPECTED, ids=IDS)
def test_the_manifest_names_exactly_the_files_that_deviate(expected: Path, run: Run, output: Path) -> None:
    """Whatever differs from the vendor's folder is in `deviations`, and nothing else is."""
    golden = json.loads(expected.read_text())
    model = expected.parent / "hf"
    run("partition", "ft", "-m", model, *options_of(golden, model), "--no-validate", "--quiet", output)
    folder = output / golden["output_dir"]
    present = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = {name: file["sha256"] for name, file in golden["files"].items()}
    wanted["config.ini"] = hashlib.sha256(golden["config_ini"].encode()).hexdigest()
    found = {name: hashlib.sha256(content).hexdigest() for name, content in present.items()}
    different = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}

    manifest = json.loads((output / "llmcompile.json").read_text())

    named = {Path(deviation["path"]).name for deviation in manifest["deviations"]}
    # A tied BLOOM is also named where the checkpoint repeats no head: nothing is there in either folder.
    assert named - different <= {"model.lm_head.weight.bin"}
    assert different - named == set()


@pytest.mark.parametrize(
    "variant",
    [
        "gpt2-b",
        "opt-b",
        "opt-int8",
        "bloom-b",
        "gptj-a",
        "gptneox-b",
        "llama-a",
        "llama-gqa-a",
        "bert-b",
        "t5-b",
        "mt5-a",
    ],
)
def test_a_build_is_validated_unless_told_otherwise(variant: str, run: Run, output: Path) -> None:
    """Each family passes its own validation, and the manifest says so."""
    model = GOLDEN / variant / "hf"
    scales = ["--act-scales", model / "act_scales.json"] if variant == "opt-int8" else []

    result = run("partition", "ft", "--model", model, "--tp", 2, *scales, output)

    assert result.code == 0, result.err
    assert "all values close" in result.err
    assert json.loads((output / "llmcompile.json").read_text())["validation"]["passed"] is True


def test_an_encoder_only_artifact_has_no_decoder(run: Run, output: Path) -> None:
    """--encoder-only writes no decoder file and validates the encoder's hidden states."""
    result = run("partition", "ft", "--model", GOLDEN / "t5-b" / "hf", "--tp", 2, "--encoder-only", output)

    assert result.code == 0, result.err
    assert list((output / "2-gpu").glob("decoder*")) == []
    assert "encoder_hidden_states" in result.err


def test_the_artifact_carries_the_config_along(run: Run, output: Path) -> None:
    """OUTPUT holds config.json beside the rank files and the manifest."""
    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)

    assert {path.name for path in output.iterdir()} == {"1-gpu", "config.json", "llmcompile.json"}


# Refusals


def patch_config(model: Path, **changes: object) -> None:
    """Change keys of config.json."""
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_header(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of model.safetensors and leave its data."""
    path = model / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def weights_gone(model: Path) -> None:
    """No weights."""
    (model / "model.safetensors").unlink()


def weights_truncated(model: Path) -> None:
    """The last 100 bytes are missing."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def weights_are_a_pointer(model: Path) -> None:
    """What git clone leaves without git-lfs."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    (model / "model.safetensors").write_text(text)


def index_lies(model: Path) -> None:
    """An index that places a tensor in a shard that does not hold it."""
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    (model / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    weight_map[names[0]] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_leaves(model: Path) -> None:
    """An index that names a file outside the folder."""
    shutil.copy(model / "model.safetensors", model.parent / "elsewhere.safetensors")
    names = sorted(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_missing(model: Path) -> None:
    """An index whose shard is not there."""
    names = sorted(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def header_has_nan(model: Path) -> None:
    """A header whose offset is NaN."""
    rewrite_header(model, lambda header: json.dumps(header | {"__metadata__": {"a": float("nan")}}).encode())


def offsets_overlap(model: Path) -> None:
    """Two tensors of one size at one place."""

    def change(header: dict[str, Any]) -> None:
        first, second = "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"
        header[first]["data_offsets"] = header[second]["data_offsets"]

    rewrite_header(model, change)


class Payload:
    """What would run a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def pickle_is_malicious(model: Path) -> None:
    """A PyTorch archive whose pickle calls a function."""
    (model / "model.safetensors").unlink()
    with zipfile.ZipFile(model / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Payload(model / "owned")}, protocol=2))
        archive.writestr("archive/version", "3\n")


def class_unknown(model: Path) -> None:
    """A class near one we have."""
    patch_config(model, architectures=["GPT2LMHeadModle"], model_type="gpt2x")


def tensor_unknown(model: Path) -> None:
    """One tensor more than the family has."""
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "transformer.h.0.attn.extra.weight": np.zeros(3, "f4")}, model / "model.safetensors")


def tensor_misshapen(model: Path) -> None:
    """A config.json of another width."""
    patch_config(model, n_positions=77)


REFUSALS = [
    (weights_gone, 3, "no weights among", "check --model"),
    (weights_truncated, 3, "model.safetensors", "truncated: download or copy it again"),
    (weights_are_a_pointer, 3, "a git-lfs pointer", "git lfs pull"),
    (index_lies, 3, "model-00002-of-00002.safetensors, by model.safetensors.index.json", "download both again"),
    (index_leaves, 3, "a path that leaves the checkpoint folder", "do not use a checkpoint you do not trust"),
    (shard_missing, 3, "model-00001-of-00001.safetensors", "missing shard"),
    (header_has_nan, 3, "the value NaN", "download it again"),
    (offsets_overlap, 3, "transformer.h.0.ln_1", "damaged"),
    (pickle_is_malicious, 3, "holds more than tensors", "do not unpickle it"),
    (class_unknown, 4, "GPT2LMHeadModle", "GPT2LMHeadModel"),
    (tensor_unknown, 5, "transformer.h.0.attn.extra.weight", "config.json's architectures"),
    (tensor_misshapen, 5, "wpe.weight", "check the revision of config.json"),
]


@pytest.mark.parametrize(("spoil", "code", "text", "hint"), REFUSALS, ids=[case[0].__name__ for case in REFUSALS])
def test_a_spoiled_checkpoint_is_refused(
    spoil: Callable[[Path], None], code: int, text: str, hint: str, model: Path, run: Run, output: Path
) -> None:
    """It ends with the class's code, says what and what to do, and leaves nothing behind."""
    spoil(model)

    result = run("partition", "ft", "--model", model, output)

    assert (result.code, text in result.err, hint in result.err) == (code, True, True), result.err
    assert [path.name for path in output.parent.iterdir() if path.name.startswith("out")] == []


def test_a_malicious_pickle_does_not_run(model: Path, run: Run, output: Path) -> None:
    """Its function is not called."""
    pickle_is_malicious(model)

    run("partition", "ft", "--model", model, output)

    assert not (model / "owned").exists()


@pytest.mark.parametrize(
    ("variant", "changes", "options", "code", "text", "hint"),
    [
        (
            "llama-a",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            [],
            4,
            "rope_scaling",
            "cannot represent",
        ),
        ("llama-a", {"rope_theta": 5e5}, [], 4, "rope_theta", "cannot represent"),
        ("llama-a", {"attention_bias": True}, [], 4, "attention_bias", "cannot represent"),
        ("gptneox-a", {}, ["--dtype", "bf16"], 4, "no bf16", "--dtype"),
        ("gpt2-a", {"activation_function": "swish"}, [], 4, "activation", "cannot represent"),
        ("gpt2-a", {}, ["--encoder-only"], 4, "--encoder-only", "drop --encoder-only"),
        ("gpt2-a", {}, ["--pp", 9], 4, "9 stages for 2 layers", "--pp 2"),
        ("gpt2-a", {}, ["--tp", 3], 5, "/ 3 ranks = 1.33", "degrees that divide this model: 1, 2, 4"),
        ("llama-gqa-a", {}, ["--tp", 8], 5, "4 kv_heads / 8 ranks = 0.50", "1, 2, 4"),
        ("gpt2-a", {}, ["--max-memory", "1MiB"], 10, "bytes needed to convert", "--max-memory"),
    ],
)
def test_what_cannot_be_done_is_refused(
    variant: str,
    changes: dict[str, object],
    options: list[object],
    code: int,
    text: str,
    hint: str,
    run: Run,
    tmp_path: Path,
    output: Path,
) -> None:
    """The refusal has its class's code, says what and what would work, and writes nothing."""
    model = Path(shutil.copytree(GOLDEN / variant / "hf", tmp_path / "model"))
    patch_config(model, **changes)

    result = run("partition", "ft", "--model", model, *options, output)

    assert (result.code, text in result.err, hint in result.err) == (code, True, True), result.err
    assert [path.name for path in output.parent.iterdir() if path.name.startswith("out")] == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--atol", "-1"], "--atol"),
        (["--rtol", "nan"], "--rtol"),
        (["--no-validate", "--atol", "1"], "drop --no-validate"),
        (["--tp", "0"], "--tp"),
        (["--workers", "0"], "--workers"),
        (["--dtype", "int4"], "--dtype"),
        (["--max-memory", "much"], "is not a size"),
        (["--model-name", "a\nb"], "--model-name"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_flags_that_make_no_sense_are_refused(options: list[str], text: str, run: Run, output: Path) -> None:
    """The exit code is 2, the flag is named, and nothing is written."""
    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", *options, output)

    assert (result.code, text in result.err) == (2, True), result.err
    assert [path.name for path in output.parent.iterdir() if path.name.startswith("out")] == []


def test_a_model_is_required(run: Run, output: Path) -> None:
    """Without --model the exit code is 2."""
    result = run("partition", "ft", output)

    assert (result.code, "--model" in result.err) == (2, True)


# OUTPUT


def test_an_existing_output_is_refused(run: Run, output: Path) -> None:
    """An artifact is not replaced without --force."""
    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)

    assert (result.code, "--force" in result.err) == (8, True)


def test_force_replaces_an_artifact(run: Run, output: Path) -> None:
    """With --force the new artifact is there, whole, and nothing beside it."""
    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--tp", 2, "--no-validate", "--force", output)

    assert result.code == 0
    assert [path.name for path in sorted(output.parent.iterdir())] == ["out"]
    assert {path.name for path in output.iterdir()} == {"2-gpu", "config.json", "llmcompile.json"}


def test_force_keeps_the_old_artifact_where_the_new_one_fails(run: Run, output: Path) -> None:
    """A build that is rejected leaves what was there."""
    model = GOLDEN / "gpt2-a" / "hf"
    run("partition", "ft", "--model", model, "--no-validate", output)
    before = (output / "llmcompile.json").read_bytes()

    result = run("partition", "ft", "--model", model, "--dtype", "fp16", "--atol", 0, "--force", output)

    assert result.code == 7
    assert (output / "llmcompile.json").read_bytes() == before


@pytest.mark.parametrize("force", [["--force"], []])
def test_a_strangers_folder_is_never_replaced(force: list[str], run: Run, output: Path) -> None:
    """A folder without our manifest is refused, with --force too, and untouched."""
    output.mkdir()
    (output / "thesis.tex").write_text("all my work")

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", *force, output)

    assert (result.code, "not an artifact of llmcompile" in result.err) == (8, True)
    assert (output / "thesis.tex").read_text() == "all my work"


def test_a_strangers_file_in_an_artifact_stops_force(run: Run, output: Path) -> None:
    """A file the manifest does not list is named and kept."""
    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)
    (output / "thesis.tex").write_text("all my work")

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", "--force", output)

    assert (result.code, "thesis.tex" in result.err) == (8, True)
    assert (output / "thesis.tex").exists()


def test_a_stale_work_directory_is_named(run: Run, output: Path) -> None:
    """What an earlier run left is neither used nor removed without being asked."""
    stale = output.with_name("out.partial")
    stale.mkdir()

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--no-validate", output)

    assert (result.code, str(stale) in result.err, "--resume" in result.err) == (8, True, True)
    assert not output.exists()


# Dry run


def test_a_dry_run_writes_nothing(run: Run, output: Path) -> None:
    """Not even OUTPUT's parents."""
    before = set(output.parent.iterdir())

    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--dry-run", output / "deep" / "down")

    assert result.code == 0
    assert set(output.parent.iterdir()) == before


def test_a_dry_run_prints_the_plan(run: Run, output: Path) -> None:
    """Family facts, files, bytes, memory and disk are on stdout."""
    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--tp", 2, "--dry-run", output)

    for text in ("hidden 32", "norm_eps 1e-05", "tensor files", "2-gpu/", "memory", "disk", "config.ini"):
        assert text in result.out


def test_a_dry_run_shows_all_problems_at_once(model: Path, run: Run, output: Path) -> None:
    """A refusal, a plan's problems, a shortage and an occupied OUTPUT are all in one answer."""
    patch_config(model, scale_attn_weights=False, n_positions=77)
    output.mkdir()
    (output / "thesis.tex").write_text("all my work")
    options = ("--tp", 3, "--max-memory", "1MiB", "--dry-run")

    result = run("partition", "ft", "--model", model, *options, output)

    assert result.code == 4
    for text in ("scale_attn_weights", "/ 3 ranks", "wpe.weight", "bytes needed to convert", "not an artifact"):
        assert text in result.err


# Options


@pytest.mark.parametrize(
    "spelling",
    ["--tp", "--tensor-parallel-degree", "--tensor_parallel_degree", "--tensor-para-size", "--tensor_para_size"],
)
def test_the_degree_has_the_fields_spellings(spelling: str, run: Run, output: Path) -> None:
    """Each spelling sets --tp."""
    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", spelling, 4, "--no-validate", output)

    assert (output / "4-gpu").is_dir()


@pytest.mark.parametrize(
    "flags",
    [
        ["--dry_run"],
        ["--dry-run", "--weight_data_type", "fp16"],
        ["--dry-run", "--pipeline_parallel_degree", "2"],
        ["--dry-run", "--max_memory", "8GiB"],
        ["--dry-run", "--allow_overflow", "--trust_remote_code", "--log_format", "json", "--model_name", "x"],
        ["--dry-run", "--disable_validation"],
    ],
)
def test_underscores_are_taken(flags: list[str], run: Run, output: Path) -> None:
    """Options the field's tools spell with underscores take them."""
    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", *flags, output)

    assert result.code == 0, result.err


@pytest.mark.parametrize("flag", ["--no-validate", "--disable-validation", "--disable_validation"])
def test_validation_can_be_disabled(flag: str, run: Run, output: Path) -> None:
    """Each spelling leaves the manifest without a verdict."""
    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", flag, output)

    assert (result.code, "Validating" in result.err) == (0, False)
    assert json.loads((output / "llmcompile.json").read_text())["validation"] is None


def test_a_variable_beats_the_default(run: Run, output: Path) -> None:
    """LLMCOMPILE_TP and LLMCOMPILE_VALIDATE are taken where no flag is given."""
    environment = {"LLMCOMPILE_TP": "4", "LLMCOMPILE_VALIDATE": "0", "LLMCOMPILE_DTYPE": "fp16"}

    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", output, env=environment)

    options = json.loads((output / "llmcompile.json").read_text())["options"]
    assert (options["tp"], options["validate"], options["dtype"]) == (4, False, "fp16")


def test_a_flag_beats_a_variable(run: Run, output: Path) -> None:
    """--tp 2 wins over LLMCOMPILE_TP=4."""
    environment = {"LLMCOMPILE_TP": "4", "LLMCOMPILE_VALIDATE": "1"}

    run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", "--tp", 2, "--no-validate", output, env=environment)

    options = json.loads((output / "llmcompile.json").read_text())["options"]
    assert (options["tp"], options["validate"]) == (2, False)


def test_model_and_output_come_from_variables_too(run: Run, output: Path) -> None:
    """LLMCOMPILE_MODEL and LLMCOMPILE_OUTPUT stand for --model and OUTPUT."""
    environment = {"LLMCOMPILE_MODEL": str(GOLDEN / "gpt2-a" / "hf"), "LLMCOMPILE_OUTPUT": str(output)}

    result = run("partition", "ft", "--no-validate", env=environment)

    assert (result.code, output.is_dir()) == (0, True)


def test_a_variable_that_makes_no_sense_is_refused(run: Run, output: Path) -> None:
    """LLMCOMPILE_TP=many ends with 2."""
    result = run("partition", "ft", "--model", GOLDEN / "gpt2-a" / "hf", output, env={"LLMCOMPILE_TP": "many"})

    assert (result.code, "LLMCOMPILE_TP" in result.err or "--tp" in result.err) == (2, True)


def test_the_options_in_the_manifest_are_resolved(run: Run, output: Path) -> None:
    """The dtype nobody asked for is the checkpoint's own, by name."""
    run("partition", "ft", "--model", GOLDEN / "opt-a" / "hf", "--no-validate", output)

    assert json.loads((output / "llmcompile.json").read_text())["options"]["dtype"] == "fp16"
