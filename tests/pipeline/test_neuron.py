"""A Neuron export from end to end: every layout, both halves, interruption, damage, and what ends with which code."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import models
import neuronx_cc_standin as standin
from llmcompile import hlo

if TYPE_CHECKING:
    from conftest import Result, Run

SHAPES = ("--batch_size", 1, "--sequence_length", 16)
META = Path(__file__).parents[1] / "golden/trtllm/llama_meta_mp2/hf"
LAYOUTS = ("nxd", "sdk-2.16", "lmi-split", "lmi-cache")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A neuronx-cc that reads its input and writes a NEFF without a program."""
    return standin.install(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder of one layer."""
    return models.save("llama", tmp_path_factory.mktemp("llama") / "model", config={"num_hidden_layers": 1})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of one layer."""
    return models.save("bert", tmp_path_factory.mktemp("bert") / "model", config={"num_hidden_layers": 1})


def lower(run: Run, model: Path, output: Path, *words: object) -> Result:
    """An export by our own lowering that stops before compiling."""
    return run("export", "neuron", "-m", model, *SHAPES, "--via", "xla", "--stop-after", "lower", *words, output)


@pytest.fixture(scope="module")
def lowered(run: Run, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder lowered for two cores; not to be changed."""
    output = tmp_path_factory.mktemp("lowered") / "out"
    result = lower(run, llama, output, "--num_cores", 2)
    assert result.code == 0, result.err
    return output


@pytest.fixture
def copied(lowered: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(lowered, tmp_path / "lowered"))


def manifest(folder: Path) -> Mapping[str, Any]:
    """Its record."""
    found: Mapping[str, Any] = json.loads((folder / "llmcompile.json").read_text())
    return found


def compiled(folder: Path) -> list[object]:
    """The graphs that the stand-in was asked to compile."""
    return [call["graph"] for call in standin.calls(folder) if "compile" in str(call["words"])]


def names(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_lowered_has_graphs_weights_and_commands(lowered: Path) -> None:
    """Everything that the other half needs."""
    assert names(lowered) >= {
        "graphs/context_encoding_16.hlo.pb",
        "graphs/context_encoding_16.json",
        "graphs/token_generation.hlo.pb",
        "graphs/token_generation.json",
        "weights/tp0_sharded_checkpoint.safetensors",
        "weights/tp1_sharded_checkpoint.safetensors",
        "compile.sh",
        "compile_commands.json",
        "config.json",
        "neuron_config.json",
    }


def test_the_weights_are_parameters_by_their_names(lowered: Path) -> None:
    """Each graph's signature names the tensors of the ranks' files, with their shapes."""
    signature = json.loads((lowered / "graphs/token_generation.json").read_text())

    with safe_open(lowered / "weights/tp1_sharded_checkpoint.safetensors", framework="np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert {(item["name"], tuple(item["shape"])) for item in signature["weights"]} <= set(stored.items())


def test_the_record_says_that_it_was_proved(lowered: Path) -> None:
    """The verdict, the graphs, the target, and no compiler yet."""
    found = manifest(lowered)

    assert found["validation"]["passed"] is True
    assert (found["neuron"]["status"], found["neuron"]["compiler"], found["neuron"]["ranks"]) == ("lowered", None, 2)
    assert [graph["name"] for graph in found["neuron"]["graphs"]] == ["context_encoding_16", "token_generation"]


def test_the_same_export_gives_the_same_bytes(run: Run, llama: Path, lowered: Path, tmp_path: Path) -> None:
    """Graphs, weights and record."""
    assert lower(run, llama, tmp_path / "out", "--num_cores", 2).code == 0

    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(lowered)} == {
        name: (lowered / name).read_bytes() for name in names(lowered)
    }


def test_the_commands_compile_it_without_llmcompile(copied: Path, compiler: Path) -> None:
    """compile.sh, called from elsewhere, leaves a NEFF beside each graph."""
    path = f"{compiler.parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["sh", copied / "compile.sh"], env={"PATH": path}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert {"graphs/context_encoding_16.neff", "graphs/token_generation.neff"} <= names(copied)


def test_what_the_commands_compiled_is_taken(run: Run, copied: Path, compiler: Path, tmp_path: Path) -> None:
    """After compile.sh, say in AWS's container, --from-lowered needs no compiler; a damaged NEFF is refused."""
    path = f"{compiler.parent}:/usr/bin:/bin"
    subprocess.run(["sh", copied / "compile.sh"], env={"PATH": path}, capture_output=True, check=True)
    words = ("export", "neuron", "--from-lowered", copied)
    result = run(*words, tmp_path / "out", env={"PATH": "/nowhere"})
    with (copied / "graphs/token_generation.neff").open("r+b") as file:
        file.truncate(2000)
    damaged = run(*words, tmp_path / "damaged", env={"PATH": "/nowhere"})

    assert (result.code, damaged.code) == (0, 6), result.err
    assert manifest(tmp_path / "out")["neuron"]["compiler"] == standin.VERSION.partition("+")[0]
    assert any("compile.sh" in note for note in manifest(tmp_path / "out")["notes"])
    assert "token_generation.neff" in damaged.err
    assert run("verify", tmp_path / "out").code == 0


def test_the_other_half_compiles_what_was_lowered(run: Run, lowered: Path, compiler: Path, tmp_path: Path) -> None:
    """With the compiler's version, each NEFF and the verdict of the first half in the record."""
    output = tmp_path / "out"
    result = run("export", "neuron", "--from-lowered", lowered, "--neuronx-cc", compiler, output)

    assert result.code == 0, result.err
    found = manifest(output)
    assert (found["neuron"]["status"], found["neuron"]["compiler"]) == ("compiled", standin.VERSION)
    assert found["validation"] == manifest(lowered)["validation"]
    assert "compile.sh" not in names(output)
    assert run("verify", output).code == 0


def test_the_other_half_needs_neither_torch_nor_the_model(lowered: Path, compiler: Path, tmp_path: Path) -> None:
    """None of torch, transformers, jax and safetensors is imported."""
    heavy = ("torch", "transformers", "jax", "safetensors", "numpy.testing")
    program = (
        "import sys\nfrom llmcompile.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        f"finally:\n    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    words = ["export", "neuron", "--from-lowered", lowered, "--neuronx-cc", compiler, "--quiet", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_decoder_is_laid_out(layout: str, run: Run, llama: Path, compiler: Path, tmp_path: Path) -> None:
    """Compiled graphs and weights are where the layout has them, and nowhere else."""
    output = tmp_path / "out"
    words = ("-m", llama, *SHAPES, "--via", "xla", "--neuronx-cc", compiler, "--layout", layout, "--num_cores", 2)
    result = run("export", "neuron", *words, output)

    assert result.code == 0, result.err
    found = names(output)
    compiled = [graph["neff"] for graph in manifest(output)["neuron"]["graphs"]]
    assert {name for name in found if name.endswith(".neff")} == set(compiled)
    assert all(name.startswith("graphs/" if layout == "nxd" else "compiled/") for name in compiled)
    assert ("weights/tp1_sharded_checkpoint.safetensors" in found) == (layout == "nxd")
    split = {"sdk-2.16": "checkpoint/pytorch_model.bin/", "nxd": "nowhere/"}.get(layout, "pytorch_model.bin/")
    assert (f"{split}key_to_filename.json" in found) == (layout != "nxd")
    assert ("checkpoint/config.json" in found) == (layout == "sdk-2.16")
    assert run("verify", "--deep", output).code == 0


def test_the_2_16_layout_says_what_it_was_compiled_for(run: Run, llama: Path, compiler: Path, tmp_path: Path) -> None:
    """config.json has the section "neuron", and generation_config.json is there."""
    output = tmp_path / "out"
    words = ("-m", llama, *SHAPES, "--via", "xla", "--neuronx-cc", compiler, "--layout", "sdk-2.16", "--no-validate")
    assert run("export", "neuron", *words, output).code == 0

    section = json.loads((output / "config.json").read_text())["neuron"]
    assert section == {
        "task": "text-generation",
        "batch_size": 1,
        "num_cores": 1,
        "auto_cast_type": "fp32",
        "sequence_length": 16,
        "compiler_type": "neuronx-cc",
        "compiler_version": standin.VERSION,
        "checkpoint_id": str(llama),
        "checkpoint_revision": None,
    }
    assert (output / "generation_config.json").is_file()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_encoder_is_laid_out(layout: str, run: Run, bert: Path, compiler: Path, tmp_path: Path) -> None:
    """Likewise, on one core."""
    output = tmp_path / "out"
    words = ("-m", bert, *SHAPES, "--task", "feature-extraction", "--via", "xla", "--neuronx-cc", compiler)
    result = run("export", "neuron", *words, "--layout", layout, output)

    assert result.code == 0, result.err
    assert run("verify", "--deep", output).code == 0


def sealed(folder: Path) -> None:
    """Write the sha256 of every file into the record, so that only numbers tell what was changed."""
    record = dict(manifest(folder))
    record["files"] = [
        {"path": item["path"], "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for item in record["files"]
        for content in [(folder / item["path"]).read_bytes()]
    ]
    (folder / "llmcompile.json").write_text(json.dumps(record))


Change = Callable[[list[hlo.Instruction], hlo.Module], list[hlo.Instruction]]


def rewritten(folder: Path, graph: str, change: Change) -> None:
    """Change the entry of a graph."""
    path = folder / "graphs" / f"{graph}.hlo.pb"
    module = hlo.parse(path.read_bytes())
    entry = module.entry
    changed = entry.with_instructions(change(list(entry.instructions), module), root_id=entry.root_id)
    path.write_bytes(hlo.serialize(module.with_computation(changed)))


def without_a_sum(instructions: list[hlo.Instruction], module: hlo.Module) -> list[hlo.Instruction]:
    """The first all-reduce hands on its own rank's share."""
    place = next(index for index, one in enumerate(instructions) if one.opcode == "all-reduce")
    old = instructions[place]
    instructions[place] = hlo.Instruction.make("copy", old.shape, id=old.id, operand_ids=old.operand_ids)
    return instructions


def with_a_stale_cache(instructions: list[hlo.Instruction], module: hlo.Module) -> list[hlo.Instruction]:
    """The first cache comes out as it went in: its new slot is never written."""
    cache = next(one for one in instructions if one.name.startswith("k_cache_0"))
    root = next(index for index, one in enumerate(instructions) if one.id == module.entry.root_id)
    operands = list(instructions[root].operand_ids)
    operands[1] = cache.id  # behind the logits
    instructions[root] = instructions[root].with_operands(operands)
    return instructions


def with_a_cast(instructions: list[hlo.Instruction], module: hlo.Module) -> list[hlo.Instruction]:
    """The result of every product is rounded to bfloat16."""
    fresh = module.fresh_ids()
    rounded: dict[int, int] = {}
    changed = []
    for one in instructions:
        changed.append(one.with_operands([rounded.get(id, id) for id in one.operand_ids]))
        if one.opcode == "dot":
            rounded[one.id] = next(fresh)
            changed.append(hlo.reduce_precision(one, rounded[one.id], exponent_bits=8, mantissa_bits=7))
    return changed


def with_another_position(instructions: list[hlo.Instruction], module: hlo.Module) -> list[hlo.Instruction]:
    """Positions count from 1."""
    fresh = module.fresh_ids()
    place = next(index for index, one in enumerate(instructions) if one.name.startswith("position_ids"))
    position = instructions[place]
    later = hlo.Instruction.make("add", position.shape, id=next(fresh), operand_ids=(position.id, position.id))
    return [
        *instructions[: place + 1],
        later,
        *(
            one.with_operands([later.id if id == position.id else id for id in one.operand_ids])
            for one in instructions[place + 1 :]
        ),
    ]


CHANGES: Mapping[str, tuple[str, Change]] = {
    "a missing all-reduce": ("token_generation", without_a_sum),
    "a missing all-reduce of a prompt": ("context_encoding_16", without_a_sum),
    "a stale cache": ("token_generation", with_a_stale_cache),
    "a wrong position": ("token_generation", with_another_position),
    "a wrong cast": ("context_encoding_16", with_a_cast),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_graph_ends_with_7(change: str, run: Run, llama: Path, copied: Path) -> None:
    """Its bytes are what the record says, and its numbers are not the model's."""
    rewritten(copied, *CHANGES[change])
    sealed(copied)

    result = run("verify", "--deep", copied, "--model", llama)

    assert result.code == 7
    assert "logits" in result.err


def test_a_wrong_split_ends_with_7(run: Run, llama: Path, copied: Path) -> None:
    """The two ranks' shares of one matrix exchanged."""
    paths = [copied / f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(2)]
    first, second = (load_file(path) for path in paths)
    name = "layers.0.self_attn.o_proj.o_proj.weight"
    first[name], second[name] = second[name], first[name]
    for path, tensors in zip(paths, (first, second), strict=True):
        save_file(tensors, path)
    sealed(copied)

    result = run("verify", "--deep", copied, "--model", llama)

    assert result.code == 7
    assert "logits" in result.err


def test_a_wrong_split_file_ends_with_7(run: Run, llama: Path, tmp_path: Path) -> None:
    """Two tensors of the model's split weights exchanged in the table of names."""
    output = tmp_path / "out"
    assert lower(run, llama, output, "--layout", "lmi-split", "--no-validate").code == 0
    path = output / "pytorch_model.bin" / "key_to_filename.json"
    table = json.loads(path.read_text())
    one, other = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv")
    table[one], table[other] = table[other], table[one]
    path.write_text(json.dumps(table))
    sealed(output)

    result = run("verify", "--deep", output, "--model", llama)

    assert result.code == 7
    assert "k_proj" in result.err


def test_a_prediction_beyond_atol_ends_with_7_before_the_compiler_is_paid(
    run: Run, bert: Path, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--auto-cast all --auto-cast-type bf16 costs more than the --atol given, so nothing is compiled."""
    monkeypatch.setenv("NEURONX_CC_STANDIN_LOG", str(tmp_path))
    words = ("-m", bert, *SHAPES, "--task", "feature-extraction", "--via", "xla", "--neuronx-cc", compiler)
    result = run("export", "neuron", *words, "--auto_cast", "all", "--atol", "1e-4", tmp_path / "out")

    assert result.code == 7, result.err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.rejected").is_dir()
    assert compiled(tmp_path) == []


def test_a_graph_without_room_on_a_core_ends_with_5(run: Run, tmp_path: Path, llama: Path) -> None:
    """The caches alone are larger than the memory of a core: said by the plan, from headers."""
    words = ("--batch_size", 4096, "--sequence_length", 65536, "--via", "xla", "--stop-after", "lower")
    result = run("export", "neuron", "-m", llama, *words, tmp_path / "out")

    assert result.code == 5
    assert "NCC_EOOM001" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_compilation_resumes_without_lowering_again(
    run: Run, llama: Path, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler fails on one graph; --resume compiles that one alone."""
    words = ("-m", llama, *SHAPES, "--via", "xla", "--neuronx-cc", compiler, "--no-validate", tmp_path / "out")
    monkeypatch.setenv("NEURONX_CC_STANDIN_LOG", str(tmp_path))
    monkeypatch.setenv("NEURONX_CC_STANDIN", "token_generation=XTP003")
    failed = run("export", "neuron", *words, "--compile-workers", 1)
    monkeypatch.delenv("NEURONX_CC_STANDIN")
    before = len(compiled(tmp_path))

    resumed = run("export", "neuron", *words, "--resume")

    assert (failed.code, resumed.code) == (6, 0), resumed.err
    assert "Lowering" not in resumed.err
    assert not (tmp_path / "out.partial").exists()
    assert "Too many instructions" in failed.err
    assert len(compiled(tmp_path)) == before + 1


def test_a_compile_cache_is_used_by_the_next_run(run: Run, lowered: Path, compiler: Path, tmp_path: Path) -> None:
    """The second run compiles nothing, and its record says where the NEFFs came from."""
    words = ("--from-lowered", lowered, "--neuronx-cc", compiler, "--compile-cache", tmp_path / "cache")
    first, second = (run("export", "neuron", *words, tmp_path / name) for name in ("first", "second"))

    assert (first.code, second.code) == (0, 0), second.err
    assert [graph["cached"] for graph in manifest(tmp_path / "first")["neuron"]["graphs"]] == [False, False]
    assert [graph["cached"] for graph in manifest(tmp_path / "second")["neuron"]["graphs"]] == [True, True]


def test_a_lowered_file_that_changed_is_refused(run: Run, copied: Path, compiler: Path, tmp_path: Path) -> None:
    """Its sha256 is not the record's: exit code 7, and nothing is compiled."""
    path = copied / "weights/tp0_sharded_checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    result = run("export", "neuron", "--from-lowered", copied, "--neuronx-cc", compiler, tmp_path / "out")

    assert result.code == 7
    assert "tp0_sharded_checkpoint" in result.err
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../escape", "bytes": 0, "sha256": "0" * 64},
        {"path": "/etc/passwd", "bytes": 0, "sha256": "0" * 64},
    ],
    ids=["upwards", "absolute"],
)
def test_a_record_that_leads_out_of_its_folder_is_refused(
    change: Mapping[str, Any], run: Run, copied: Path, compiler: Path, tmp_path: Path
) -> None:
    """No path from a record may leave the artifact."""
    found = dict(manifest(copied))
    found["files"] = [*found["files"], change]
    (copied / "llmcompile.json").write_text(json.dumps(found))

    result = run("export", "neuron", "--from-lowered", copied, "--neuronx-cc", compiler, tmp_path / "out")

    assert result.code == 3
    assert "leads out of the folder" in result.err


@pytest.mark.parametrize(
    "words",
    [("--num_cores", 4), ("--task", "fill-mask"), ("--layout", "lmi-split"), ("--auto_cast", "all"), ("--width", 3)],
    ids=str,
)
def test_what_was_decided_when_lowering_cannot_be_changed(
    words: tuple[object, ...], run: Run, lowered: Path, compiler: Path, tmp_path: Path
) -> None:
    """The flag by name, and what the graphs were lowered for."""
    result = run("export", "neuron", "--from-lowered", lowered, "--neuronx-cc", compiler, *words, tmp_path / "out")

    assert result.code == 2
    assert "lowered for" in result.err


def test_what_is_compiled_is_not_compiled_again(run: Run, lowered: Path, compiler: Path, tmp_path: Path) -> None:
    """--from-lowered of a finished artifact is a mistake, said by name."""
    words = ("--neuronx-cc", compiler)
    assert run("export", "neuron", "--from-lowered", lowered, *words, tmp_path / "one").code == 0

    result = run("export", "neuron", "--from-lowered", tmp_path / "one", *words, tmp_path / "two")

    assert result.code == 3
    assert "compiled already" in result.err


def test_bfloat16_is_validated_as_stored(run: Run, llama: Path, tmp_path: Path) -> None:
    """Weights, caches and arithmetic of 16 bits; HF_AUTO_CAST_TYPE's way of saying so."""
    result = lower(run, llama, tmp_path / "out", "--auto_cast_type", "bf16", "--num_cores", 2)

    assert result.code == 0, result.err
    assert manifest(tmp_path / "out")["options"]["dtype"] == "bf16"
    with safe_open(tmp_path / "out/weights/tp0_sharded_checkpoint.safetensors", framework="pt") as file:
        assert str(file.get_tensor("embed_tokens.weight").dtype) == "torch.bfloat16"


def test_prompts_have_a_graph_for_each_bucket(run: Run, llama: Path, tmp_path: Path) -> None:
    """--buckets 4,8 and the sequence length itself."""
    result = lower(run, llama, tmp_path / "out", "--buckets", "4,8")

    assert result.code == 0, result.err
    names_of = [graph["name"] for graph in manifest(tmp_path / "out")["neuron"]["graphs"]]
    assert names_of == ["context_encoding_4", "context_encoding_8", "context_encoding_16", "token_generation"]


def test_four_cores_share_two_key_heads(run: Run, llama: Path, tmp_path: Path) -> None:
    """Each pair of ranks has a copy of one, and the logits are still the model's."""
    result = lower(run, llama, tmp_path / "out", "--num_cores", 4)

    assert result.code == 0, result.err
    assert manifest(tmp_path / "out")["validation"]["passed"] is True


def test_metas_own_files_are_lowered_and_proved(run: Run, tmp_path: Path) -> None:
    """Two consolidated pickles, cut in another way than for the two cores, beside transformers' model."""
    result = lower(run, META, tmp_path / "out", "--num_cores", 2)

    assert result.code == 0, result.err
    found = manifest(tmp_path / "out")
    assert (found["model"]["architecture"], found["validation"]["passed"]) == ("meta_llama", True)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_metas_own_files_have_no_names_for_a_split_layout(layout: str, run: Run, tmp_path: Path) -> None:
    """Said by the plan, before anything is lowered."""
    result = lower(run, META, tmp_path / "out", "--layout", layout)

    assert result.code == 4
    assert f"--layout: {layout}" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing_and_loads_no_torch(llama: Path, tmp_path: Path) -> None:
    """The plan is from headers alone."""
    program = (
        "import sys\nfrom llmcompile.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n    heavy = ('torch', 'transformers', 'jax')\n"
        "    print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    words = ["export", "neuron", "-m", llama, *SHAPES, "--via", "xla", "--stop-after", "lower", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words), tmp_path / "out"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr
    assert "a core with its caches" in done.stdout
    assert list(tmp_path.iterdir()) == []
