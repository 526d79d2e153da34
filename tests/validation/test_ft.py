"""Broken artifacts must be caught by their numbers alone: no manifest lies beside what these tests break."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

from llmcompile.validation import ft

if TYPE_CHECKING:
    from conftest import Result, Run

GOLDEN = Path(__file__).parents[1] / "golden" / "ft"
RANKS = 2
Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A family: its golden checkpoint, changes to its config.json, and what its runtime gives."""

    golden: str
    outputs: tuple[str, ...] = ("logits",)
    patch: tuple[tuple[str, Any], ...] = ()
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")


T5_OUTPUTS = ("encoder_hidden_states", "logits")
CASES = {
    "gpt2": Case("gpt2-a"),
    "opt": Case("opt-a"),
    "opt-post-norm-projected": Case("opt-b"),
    "bloom": Case("bloom-a"),
    "gptj": Case("gptj-a"),
    # Two rotated channels are the same pair in both layouts; four are not.
    "gptneox": Case("gptneox-a", patch=(("rotary_pct", 0.5),), dtypes=("fp32", "fp16")),
    "gptneox-sequential": Case("gptneox-b", dtypes=("fp32", "fp16")),
    "llama": Case("llama-a"),
    "llama-gqa": Case("llama-gqa-a"),
    "bert": Case("bert-a", outputs=("last_hidden_state",)),
    "t5-tied-relu": Case("t5-a", outputs=T5_OUTPUTS),
    "t5-untied-gated": Case("t5-b", outputs=T5_OUTPUTS),
    "mt5": Case("mt5-a", outputs=T5_OUTPUTS),
}
UNREAD = {
    "gptneox": ("attention.dense.bias", "mlp.dense_4h_to_h.bias"),
    "t5-tied-relu": ("shared.weight.bin",),
    "t5-untied-gated": ("shared.weight.bin",),
    "mt5": ("shared.weight.bin",),
}
"""Files the vendor's converter writes and no runtime opens; only the manifest can speak for their bytes."""

every_family = pytest.mark.parametrize("family", CASES)


@dataclass(frozen=True)
class Artifact:
    """A `2-gpu` folder to break, and the model it was made from."""

    family: str
    folder: Path
    model: Path
    bits: str

    def names(self) -> list[str]:
        """Every weight file."""
        return sorted(path.name for path in self.folder.glob("*.bin"))

    def load(self, name: str, *shape: int) -> Matrix:
        """The bit patterns of a file, of which one side of `shape` may be -1."""
        return np.fromfile(self.folder / name, self.bits).reshape(shape)

    def store(self, name: str, values: Matrix) -> None:
        """Write bit patterns."""
        (self.folder / name).write_bytes(np.ascontiguousarray(values).tobytes())

    def setting(self, key: str) -> str:
        """The first value of a key in config.ini."""
        return next(v for k, v in self._pairs() if k == key)

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for line in (self.folder / "config.ini").read_text().splitlines():
            if "=" in line:
                key, value = line.split("=", 1)
                yield key.strip(), value.strip()

    def configure(self, **settings: object) -> None:
        """Change keys of config.ini, in every section that has them."""
        path = self.folder / "config.ini"
        lines = path.read_text().splitlines()
        for key, value in settings.items():
            found = [i for i, line in enumerate(lines) if line.split("=")[0].strip() == key]
            assert found != [], key
            for i in found:
                lines[i] = f"{key} = {value}"
        path.write_text("\n".join(lines) + "\n")


Build = Callable[..., Artifact]


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`built(family, dtype)` is the whole, untouched artifact, made once."""
    made: dict[tuple[str, str], Artifact] = {}

    def build(family: str, dtype: str = "fp32") -> Artifact:
        if (family, dtype) not in made:
            case, root = CASES[family], tmp_path_factory.mktemp(f"{family}-{dtype}")
            model = GOLDEN / case.golden / "hf"
            if case.patch != ():
                model = Path(shutil.copytree(model, root / "hf"))
                config = json.loads((model / "config.json").read_text())
                (model / "config.json").write_text(json.dumps(config | dict(case.patch)))
            options = ("--tp", RANKS, "--dtype", dtype, "--no-validate", "--quiet")
            result = run("partition", "ft", "--model", model, *options, root / "out")
            assert result.code == 0, result.err
            bits = "<u4" if dtype == "fp32" else "<u2"
            made[family, dtype] = Artifact(family, root / "out" / f"{RANKS}-gpu", model, bits)
        return made[family, dtype]

    return build


@pytest.fixture
def copied(built: Build, tmp_path: Path) -> Build:
    """`copied(family, dtype)` is a copy to break: the rank files and config.ini, without the manifest."""

    def copy(family: str, dtype: str = "fp32") -> Artifact:
        whole = built(family, dtype)
        folder = Path(shutil.copytree(whole.folder, tmp_path / whole.folder.name))
        return Artifact(family, folder, whole.model, whole.bits)

    return copy


Verify = Callable[[Artifact], "Result"]


@pytest.fixture
def verify(run: Run) -> Verify:
    """Compare an artifact's numbers with its model's."""
    return lambda artifact: run("verify", "--deep", "--model", artifact.model, artifact.folder)


def assert_wrong_numbers(result: Result, family: str) -> None:
    """The command ended with 7 and named an output and the position in it."""
    assert result.code == 7, result.err
    assert any(f"error: {output}[" in result.err for output in CASES[family].outputs), result.err


def assert_names(result: Result, name: str) -> None:
    """The command ended with 7 and named a file or a key."""
    assert result.code == 7, result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert any(name in line for line in errors), result.err


# Attention, as full matrices whatever the files are


@dataclass(frozen=True)
class Attention:
    """One attention of one layer: its q, k, v as columns of all heads, and the rows of its output projection."""

    artifact: Artifact
    files: tuple[str, ...]
    output: str
    rows: int
    grouped: tuple[int, int, int] | None = None

    def load(self) -> list[Matrix]:
        """q, k and v of all ranks: each (rows, heads * size)."""
        parts: list[list[Matrix]] = [[], [], []]
        for rank in range(RANKS):
            for part, columns in enumerate(self._load_rank(rank)):
                parts[part].append(columns)
        return [np.concatenate(part, axis=1) for part in parts]

    def store(self, parts: list[Matrix]) -> None:
        """Write q, k and v, each rank its share of the columns."""
        split = [np.split(part, RANKS, axis=1) for part in parts]
        for rank in range(RANKS):
            mine = [part[rank] for part in split]
            if len(self.files) == 3:
                for name, columns in zip(self.files, mine, strict=True):
                    self.artifact.store(f"{name}.{rank}.bin", columns)
            else:
                self.artifact.store(f"{self.files[0]}.{rank}.bin", np.concatenate(mine, axis=1))

    def _load_rank(self, rank: int) -> list[Matrix]:
        if len(self.files) == 3:
            return [self.artifact.load(f"{name}.{rank}.bin", self.rows, -1) for name in self.files]
        fused = self.artifact.load(f"{self.files[0]}.{rank}.bin", self.rows, -1)
        if self.grouped is None:
            return np.split(fused, 3, axis=1)
        query, key, _ = (columns // RANKS for columns in self.grouped)
        return np.split(fused, [query, query + key], axis=1)

    def load_output(self) -> Matrix:
        """The output projection of all ranks: (heads * size, hidden)."""
        width = sum(part.shape[1] for part in self.load()[:1])
        shares = [self.artifact.load(f"{self.output}.{rank}.bin", width // RANKS, -1) for rank in range(RANKS)]
        return np.concatenate(shares)

    def store_output(self, rows: Matrix) -> None:
        """Write the output projection, each rank its share of the rows."""
        for rank, share in enumerate(np.split(rows, RANKS)):
            self.artifact.store(f"{self.output}.{rank}.bin", share)


def attention(artifact: Artifact, kind: str = "self", layer: int = 0, tensor: str = "weight") -> Attention:
    """The attention of a layer; `kind` is "self", or for T5 also "decoder" or "cross"."""
    config = json.loads((artifact.model / "config.json").read_text())
    hidden = int(config.get("hidden_size") or config.get("n_embd") or config["d_model"])
    if "t5" in artifact.family:
        stack = "encoder" if kind == "self" else "decoder"
        sub = f"{stack}.block.{layer}.layer." + ("1.EncDecAttention" if kind == "cross" else "0.SelfAttention")
        files = (f"{sub}.qkv.weight",) if kind == "decoder" else tuple(f"{sub}.{part}.weight" for part in "qkv")
        return Attention(artifact, files, f"{sub}.o.weight", hidden)
    rows = hidden if tensor == "weight" else 1
    if artifact.family == "bert":
        prefix = f"model.encoder.layer.{layer}.attention"
        files = tuple(f"{prefix}.self.{part}.{tensor}" for part in ("query", "key", "value"))
        return Attention(artifact, files, f"{prefix}.output.dense.weight", rows)
    prefix = f"model.layers.{layer}.attention"
    grouped = None
    if "num_key_value_heads" in config:
        size = hidden // config["num_attention_heads"]
        grouped = (hidden, size * config["num_key_value_heads"], size * config["num_key_value_heads"])
    return Attention(artifact, (f"{prefix}.query_key_value.{tensor}",), f"{prefix}.dense.weight", rows, grouped)


def head_size(artifact: Artifact) -> int:
    """Channels of a head, by config.ini."""
    return int(artifact.setting("d_kv" if "t5" in artifact.family else "size_per_head"))


ATTENTION_KINDS = [
    pytest.param(family, kind, id=f"{family}-{kind}")
    for family in CASES
    for kind in (("self", "decoder", "cross") if "t5" in family else ("self",))
]
every_attention = pytest.mark.parametrize(("family", "kind"), ATTENTION_KINDS)


# Controls


@pytest.mark.parametrize(
    ("family", "dtype"), [(family, dtype) for family, case in CASES.items() for dtype in case.dtypes]
)
def test_an_untouched_copy_passes(family: str, dtype: str, copied: Build, verify: Verify) -> None:
    """What nobody touched passes, in every element type."""
    artifact = copied(family, dtype)

    result = verify(artifact)

    assert result.code == 0, result.err


# Attention


@every_attention
def test_swapped_q_and_k_are_caught(family: str, kind: str, copied: Build, verify: Verify) -> None:
    """A fused or separate projection with k where q belongs gives other numbers."""
    artifact = copied(family)
    block = attention(artifact, kind)
    q, k, v = block.load()
    if q.shape == k.shape:
        block.store([k, q, v])
    else:
        for rank in range(RANKS):
            mine = [np.split(part, RANKS, axis=1)[rank] for part in (k, q, v)]
            artifact.store(f"{block.files[0]}.{rank}.bin", np.concatenate(mine, axis=1))

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_attention
def test_swapped_k_and_v_are_caught(family: str, kind: str, copied: Build, verify: Verify) -> None:
    """A projection with v where k belongs gives other numbers."""
    artifact = copied(family)
    block = attention(artifact, kind)
    q, k, v = block.load()
    block.store([q, v, k])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_attention
def test_ranks_that_cut_heads_in_half_are_caught(family: str, kind: str, copied: Build, verify: Verify) -> None:
    """Columns of q, k, v and rows of the output, all moved by half a head, are each complete but not the model."""
    artifact = copied(family)
    block, half = attention(artifact, kind), head_size(artifact) // 2
    block.store_output(np.roll(block.load_output(), -half, axis=0))
    block.store([np.roll(part, -half, axis=1) for part in block.load()])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_attention
def test_a_qkv_boundary_half_a_head_off_is_caught(family: str, kind: str, copied: Build, verify: Verify) -> None:
    """Only the columns of q, k and v moved by half a head."""
    artifact = copied(family)
    block, half = attention(artifact, kind), head_size(artifact) // 2
    block.store([np.roll(part, -half, axis=1) for part in block.load()])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@pytest.mark.parametrize("family", ["gptj", "gptneox", "gptneox-sequential", "llama", "llama-gqa"])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_other_rotary_layout_is_caught(family: str, layer: int, copied: Build, verify: Verify) -> None:
    """Halves where the runtime pairs neighbours (GPT-J), and neighbours where it pairs halves (NeoX, LLaMA)."""
    artifact = copied(family)
    size, rotary = head_size(artifact), int(artifact.setting("rotary_embedding"))
    assert rotary >= 4
    neighbours = np.arange(rotary).reshape(2, rotary // 2).T.reshape(-1)
    halves = np.arange(rotary).reshape(rotary // 2, 2).T.reshape(-1)
    order = np.concatenate([halves if family == "gptj" else neighbours, np.arange(rotary, size)])
    block = attention(artifact, layer=layer)
    q, k, v = block.load()
    turned = [part.reshape(part.shape[0], -1, size)[:, :, order].reshape(part.shape) for part in (q, k)]
    block.store([*turned, v])
    if "neox" in family:
        biases = attention(artifact, layer=layer, tensor="bias")
        q, k, v = biases.load()
        turned = [part.reshape(1, -1, size)[:, :, order].reshape(part.shape) for part in (q, k)]
        biases.store([*turned, v])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


def test_interleaved_kv_heads_are_caught(copied: Build, verify: Verify) -> None:
    """KV heads dealt out in another order than consecutive query heads need are caught."""
    artifact = copied("llama-gqa")
    block, size = attention(artifact), head_size(artifact)
    q, k, v = block.load()
    heads = k.shape[1] // size
    order = np.arange(heads).reshape(2, heads // 2).T.reshape(-1)
    block.store([q, *(part.reshape(-1, heads, size)[:, order].reshape(part.shape) for part in (k, v))])

    result = verify(artifact)

    assert_wrong_numbers(result, "llama-gqa")


# Every file


def remembered(patch: pytest.MonkeyPatch) -> None:
    """Run the model once for each set of tokens: what it gives does not depend on the files that are broken."""
    run, known = ft.run_reference, dict[tuple[str, ...], Any]()

    def once(config_dir: Path, weights: Any, **arguments: Any) -> Any:
        key = (
            str(config_dir),
            *(str(value.tolist() if isinstance(value, Tensor) else value) for value in arguments.values()),
        )
        if key not in known:
            known[key] = run(config_dir, weights, **arguments)
        return known[key]

    patch.setattr(ft, "run_reference", once)


def missed(artifact: Artifact, verify: Verify, mutations: dict[str, dict[str, Matrix]]) -> list[str]:
    """The names of the mutations after which the artifact still passes; each is undone before the next."""
    survivors = []
    with pytest.MonkeyPatch.context() as patch:
        remembered(patch)
        for name, files in mutations.items():
            before = {file: (artifact.folder / file).read_bytes() for file in files}
            for file, values in files.items():
                artifact.store(file, values)
            if verify(artifact).code != 7:
                survivors.append(name)
            for file, content in before.items():
                (artifact.folder / file).write_bytes(content)
    return survivors


def read_by_the_runtime(artifact: Artifact, name: str) -> bool:
    """Whether a runtime opens this file."""
    return not any(pattern in name for pattern in UNREAD.get(artifact.family, ()))


@every_family
def test_each_skipped_bias_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """Every bias file of every layer and rank, set to zero, shows, but where no number depends on it."""
    artifact = copied(family)
    biases = [name for name in artifact.names() if ".bias" in name and read_by_the_runtime(artifact, name)]
    zeroed = {name: {name: artifact.load(name, -1) * 0} for name in biases}

    survivors = missed(artifact, verify, zeroed)

    # A key bias adds the same to all scores of a query, and the softmax takes it out again.
    assert survivors == [name for name in biases if "self.key.bias" in name]


@every_family
def test_each_skipped_norm_and_matrix_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """Every other file of every layer, of rank 0 where there are several, set to zero, shows."""
    artifact = copied(family)
    others = [name for name in artifact.names() if ".bias" not in name and not name.endswith(".1.bin")]
    others = [name for name in others if read_by_the_runtime(artifact, name)]
    zeroed = {name: {name: artifact.load(name, -1) * 0} for name in others}

    survivors = missed(artifact, verify, zeroed)

    assert survivors == []


@every_family
def test_each_exchange_of_two_ranks_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """Rank 0's and rank 1's file of one tensor, exchanged, for every tensor that is split."""
    artifact = copied(family)
    tensors = [name.removesuffix(".1.bin") for name in artifact.names() if name.endswith(".1.bin")]
    files = [(f"{name}.0.bin", f"{name}.1.bin") for name in tensors]
    exchanged = {a: {a: artifact.load(b, -1), b: artifact.load(a, -1)} for a, b in files}

    survivors = missed(artifact, verify, exchanged)

    assert len(tensors) > 0
    assert survivors == [name for name in exchanged if "self.key.bias" in name]


@every_family
def test_each_transposed_matrix_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """Every rank's matrix of the first layer, and outside the layers, written the other way in as many bytes."""
    artifact = copied(family)
    first = [
        name for name in artifact.names() if not any(f"{word}.1." in name for word in ("layers", "layer", "block"))
    ]
    matrices = {name: sides for name in first if len(sides := shape_of(artifact, name)) == 2}
    transposed = {
        name: {name: artifact.load(name, *sides).T}
        for name, sides in matrices.items()
        if read_by_the_runtime(artifact, name)
    }

    survivors = missed(artifact, verify, transposed)

    assert len(transposed) > 0
    assert survivors == []


def shape_of(artifact: Artifact, name: str) -> tuple[int, ...]:
    """A file's shape, from its size and the model's hidden size; one side for a vector."""
    config = json.loads((artifact.model / "config.json").read_text())
    hidden = int(config.get("hidden_size") or config.get("n_embd") or config["d_model"])
    elements = (artifact.folder / name).stat().st_size // np.dtype(artifact.bits).itemsize
    if ".bias" in name or "norm" in name or elements % hidden != 0 or elements == hidden:
        return (elements,)
    return (hidden, elements // hidden)


@pytest.mark.parametrize("family", [family for family in CASES if family != "t5-untied-gated"])
def test_a_transposed_square_output_projection_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """A square matrix fits either way round; each rank then has a whole share, of the transpose."""
    artifact = copied(family)
    block = attention(artifact)
    whole = block.load_output()
    assert whole.shape[0] == whole.shape[1]
    block.store_output(whole.T)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_family
def test_layers_in_another_order_are_caught(family: str, copied: Build, verify: Verify) -> None:
    """Layer 0's output projection in layer 1's place and the other way round."""
    artifact = copied(family)
    if family == "mt5":
        pytest.skip("the golden has one layer")
    first, second = attention(artifact, layer=0), attention(artifact, layer=1)
    rows = first.load_output(), second.load_output()
    first.store_output(rows[1])
    second.store_output(rows[0])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


# Files that are not what they should be


def largest(artifact: Artifact) -> str:
    """The name of the largest file a runtime opens."""
    names = [name for name in artifact.names() if read_by_the_runtime(artifact, name)]
    return max(names, key=lambda name: ((artifact.folder / name).stat().st_size, name))


@every_family
def test_a_truncated_file_is_named(family: str, copied: Build, verify: Verify) -> None:
    """A file that lacks its last element is named."""
    artifact = copied(family)
    name = largest(artifact)
    artifact.store(name, artifact.load(name, -1)[:-1])

    result = verify(artifact)

    assert_names(result, name)


@every_family
def test_a_longer_file_is_named(family: str, copied: Build, verify: Verify) -> None:
    """A file with one element too many is named, though the vendor's loader reads it in silence."""
    artifact = copied(family)
    name = largest(artifact)
    artifact.store(name, np.append(artifact.load(name, -1), artifact.load(name, -1)[:1]))

    result = verify(artifact)

    assert_names(result, name)


@every_family
def test_a_missing_file_is_named(family: str, copied: Build, verify: Verify) -> None:
    """A file that is not there is named."""
    artifact = copied(family)
    name = next(name for name in artifact.names() if name.endswith(".1.bin"))
    (artifact.folder / name).unlink()

    result = verify(artifact)

    assert_names(result, name)


@every_family
def test_a_file_of_a_third_rank_is_named(family: str, copied: Build, verify: Verify) -> None:
    """A file no rank of this folder opens is named."""
    artifact = copied(family)
    name = next(name for name in artifact.names() if name.endswith(".1.bin"))
    stranger = name.replace(".1.bin", ".2.bin")
    shutil.copy(artifact.folder / name, artifact.folder / stranger)

    result = verify(artifact)

    assert_names(result, stranger)


@every_family
def test_fp16_bytes_labelled_fp32_are_caught(family: str, copied: Build, verify: Verify) -> None:
    """Files half as long as their label says are named, and the label with them."""
    artifact = copied(family, "fp16")
    artifact.configure(weight_data_type="fp32")

    result = verify(artifact)

    assert_names(result, ".bin")
    assert "weight_data_type" in result.err


@every_family
def test_fp16_bytes_labelled_bf16_are_caught(family: str, copied: Build, verify: Verify) -> None:
    """Both types have two bytes, so only the numbers tell."""
    artifact = copied(family, "fp16")
    artifact.configure(weight_data_type="bf16")

    result = verify(artifact)

    assert_wrong_numbers(result, family)


# config.ini


@pytest.mark.parametrize("epsilon", ["1e-3", "1.1e-5", "2e-6"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "opt-post-norm-projected", "bloom", "llama", "llama-gqa"])
def test_a_wrong_norm_epsilon_is_named(family: str, epsilon: str, copied: Build, verify: Verify) -> None:
    """One that no number would show is named as well."""
    artifact = copied(family)
    artifact.configure(layernorm_eps=epsilon)

    result = verify(artifact)

    assert_names(result, "layernorm_eps")


def test_a_missing_norm_epsilon_is_caught_where_the_default_is_far_off(
    copied: Build, verify: Verify, tmp_path: Path
) -> None:
    """GPT-2's converter leaves it out; the runtime's 1e-6 is another model than one of 1e-2."""
    artifact = copied("gpt2")
    model = Path(shutil.copytree(artifact.model, tmp_path / "hf"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-2}))
    path = artifact.folder / "config.ini"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "layernorm_eps" not in line))

    result = verify(replace(artifact, model=model))

    assert_wrong_numbers(result, "gpt2")


@pytest.mark.parametrize("family", [family for family in CASES if "t5" not in family])
def test_half_the_heads_of_twice_the_size_are_caught(family: str, copied: Build, verify: Verify) -> None:
    """head_num and size_per_head that multiply to the same width fit every file."""
    artifact = copied(family)
    heads, size = int(artifact.setting("head_num")), head_size(artifact)
    artifact.configure(head_num=heads // 2, size_per_head=size * 2)
    if family == "llama-gqa":
        artifact.configure(kv_head_num=int(artifact.setting("kv_head_num")) // 2)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_family
def test_a_wrong_head_count_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """Twice as many heads do not fit the files."""
    artifact = copied(family)
    key = "num_heads" if "t5" in family else "head_num"
    artifact.configure(**{key: 2 * int(artifact.setting(key))})

    result = verify(artifact)

    assert_names(result, ".bin")


@pytest.mark.parametrize(
    ("family", "rotary"), [("gptj", 8), ("gptj", 2), ("gptneox", 8), ("gptneox-sequential", 4), ("llama", 4)]
)
def test_a_wrong_rotary_embedding_is_caught(family: str, rotary: int, copied: Build, verify: Verify) -> None:
    """Another number of rotated channels gives other numbers."""
    artifact = copied(family)
    assert int(artifact.setting("rotary_embedding")) != rotary
    artifact.configure(rotary_embedding=rotary)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


def test_a_sequential_residual_declared_parallel_is_caught(copied: Build, verify: Verify) -> None:
    """With use_gptj_residual 1 the runtime opens sums of biases that are not there."""
    artifact = copied("gptneox-sequential")
    artifact.configure(use_gptj_residual=1)

    result = verify(artifact)

    assert_names(result, "mlp.attention.bias.sum.bin")


def test_a_parallel_residual_declared_sequential_is_caught(copied: Build, verify: Verify) -> None:
    """With use_gptj_residual 0 the sums of biases are files nobody opens."""
    artifact = copied("gptneox")
    artifact.configure(use_gptj_residual=0)

    result = verify(artifact)

    assert_names(result, "mlp.attention.bias.sum.bin")


def test_a_parallel_residual_declared_sequential_is_caught_by_its_numbers(copied: Build, verify: Verify) -> None:
    """Even where the sums are removed, so that every file fits."""
    artifact = copied("gptneox")
    artifact.configure(use_gptj_residual=0)
    for path in artifact.folder.glob("*bias.sum.bin"):
        path.unlink()

    result = verify(artifact)

    assert_wrong_numbers(result, "gptneox")


@pytest.mark.parametrize(("family", "tied"), [("t5-tied-relu", "False"), ("t5-untied-gated", "True"), ("mt5", "True")])
def test_a_wrong_tie_word_embeddings_is_caught(family: str, tied: str, copied: Build, verify: Verify) -> None:
    """It alone decides whether the logits are scaled by d_model ** -0.5."""
    artifact = copied(family)
    artifact.configure(tie_word_embeddings=tied)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("opt", {"activation_type": "Gelu"}),
        ("opt", {"layernorm_type": "post_layernorm"}),
        ("opt-post-norm-projected", {"layernorm_type": "pre_layernorm"}),
        ("bert", {"activation_type": "relu"}),
        ("t5-tied-relu", {"feed_forward_proj": "gelu"}),
        ("t5-untied-gated", {"feed_forward_proj": "gated-relu"}),
        ("mt5", {"feed_forward_proj": "gated-silu"}),
        ("bloom", {"use_attention_linear_bias": "False"}),
    ],
)
def test_a_wrong_structure_is_caught(family: str, settings: dict[str, str], copied: Build, verify: Verify) -> None:
    """Another activation, order of norms or position bias gives other numbers."""
    artifact = copied(family)
    artifact.configure(**settings)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@every_family
def test_a_forgotten_layer_is_caught(family: str, copied: Build, verify: Verify) -> None:
    """With one layer less in config.ini, the files of the last are never opened."""
    artifact = copied(family)
    key = "num_layers" if "t5" in family else "num_layer"
    layers = int(artifact.setting(key))
    if layers == 1:
        pytest.skip("the golden has one layer")
    artifact.configure(**{key: layers - 1})

    result = verify(artifact)

    assert_names(result, f".{layers - 1}.")


# The vendor's own mistakes


def test_neox_sequential_biases_divided_by_the_ranks_are_caught(copied: Build, verify: Verify) -> None:
    """The converter divides them; the runtime adds them once, after the all-reduce."""
    artifact = copied("gptneox-sequential")
    for path in sorted(artifact.folder.glob("*.dense*bias.bin")):
        (np.fromfile(path, "<f4") / np.float32(RANKS)).tofile(path)

    result = verify(artifact)

    assert_wrong_numbers(result, "gptneox-sequential")


def test_a_neox_parallel_bias_sum_that_is_whole_is_caught(copied: Build, verify: Verify) -> None:
    """The parallel layer adds the sum on every rank before the all-reduce, so there it must be divided."""
    artifact = copied("gptneox")
    for path in sorted(artifact.folder.glob("*bias.sum.bin")):
        (np.fromfile(path, "<f4") * np.float32(RANKS)).tofile(path)

    result = verify(artifact)

    assert_wrong_numbers(result, "gptneox")


def test_a_transposed_bloom_lm_head_is_caught(copied: Build, verify: Verify) -> None:
    """The converter writes it transposed, and the runtime prefers it to the embedding."""
    artifact = copied("bloom")
    embedding = artifact.load("model.wte.bin", -1, 32)
    artifact.store("model.lm_head.weight.bin", embedding.T)

    result = verify(artifact)

    assert_wrong_numbers(result, "bloom")


def test_a_missing_llama_lm_head_is_named(copied: Build, verify: Verify) -> None:
    """The converter leaves it out of tied models; the runtime has no other head."""
    artifact = copied("llama")
    (artifact.folder / "model.lm_head.weight.bin").unlink()

    result = verify(artifact)

    assert_names(result, "model.lm_head.weight.bin")


# 16-bit files, against a reference rounded alike


SIXTEEN_BITS = [(family, dtype) for family, case in CASES.items() for dtype in ("fp16", "bf16") if dtype in case.dtypes]


@pytest.mark.parametrize(("family", "dtype"), SIXTEEN_BITS)
def test_swapped_q_and_k_are_caught_in_16_bits(family: str, dtype: str, copied: Build, verify: Verify) -> None:
    """Rounding hides no exchange."""
    artifact = copied(family, dtype)
    block = attention(artifact)
    q, k, v = block.load()
    block.store([np.roll(q, -head_size(artifact), axis=1), k, v] if q.shape != k.shape else [k, q, v])

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@pytest.mark.parametrize(("family", "dtype"), SIXTEEN_BITS)
def test_one_skipped_vector_is_caught_in_16_bits(family: str, dtype: str, copied: Build, verify: Verify) -> None:
    """The bias (or, without any, the norm) of the last layer, set to zero."""
    artifact = copied(family, dtype)
    vectors = [name for name in artifact.names() if ".1." in name and ("bias.bin" in name or "norm" in name)]
    vectors = [name for name in vectors if read_by_the_runtime(artifact, name)]
    name = next(iter(vectors), "encoder.final_layer_norm.weight.bin")
    artifact.store(name, artifact.load(name, -1) * 0)

    result = verify(artifact)

    assert_wrong_numbers(result, family)


@pytest.mark.parametrize(
    ("family", "dtype"),
    # A projected embedding is stored as one rounded product, so its reference cannot be rounded alike.
    [(family, dtype) for family, dtype in SIXTEEN_BITS if "projected" not in family],
)
def test_cut_instead_of_rounded_weights_are_caught(family: str, dtype: str, copied: Build, verify: Verify) -> None:
    """One matrix whose elements are all one unit in the last place off."""
    artifact = copied(family, dtype)
    name = attention(artifact).files[0] + ".0.bin"
    artifact.store(name, artifact.load(name, -1) ^ np.uint16(1))

    result = verify(artifact)

    assert_wrong_numbers(result, family)


# What numbers cannot show, bytes do


@pytest.mark.parametrize(
    ("family", "pattern"), [("bert", "*self.key.bias.0.bin"), ("gptneox", "*attention.dense.bias.bin")]
)
def test_what_no_number_depends_on_is_caught_by_its_bytes(
    family: str, pattern: str, built: Build, run: Run, tmp_path: Path
) -> None:
    """A key bias before a softmax and a file no runtime opens are covered by the manifest alone."""
    whole = built(family)
    artifact = Path(shutil.copytree(whole.folder.parent, tmp_path / "artifact"))
    path = next(artifact.rglob(pattern))
    path.write_bytes(bytes(path.stat().st_size))

    result = run("verify", "--deep", "--model", whole.model, artifact)

    assert_names(result, path.name)


def test_an_embedding_row_that_was_not_fed_is_caught_by_its_bytes(built: Build, run: Run, tmp_path: Path) -> None:
    """Numbers cover the tokens that were fed; of an untied embedding the manifest covers the rest."""
    whole = built("llama")
    artifact = Path(shutil.copytree(whole.folder.parent, tmp_path / "artifact"))
    path = artifact / whole.folder.name / "model.wte.weight.bin"
    rows = np.fromfile(path, "<u4").reshape(-1, 32)
    rows[0] = 0
    rows.tofile(path)

    result = run("verify", "--deep", "--model", whole.model, artifact)

    assert_names(result, path.name)


def test_a_bloom_whose_residual_follows_the_norm_is_rejected(run: Run, tmp_path: Path) -> None:
    """The vendor's post_layernorm is another model; a build of it ends in OUTPUT.rejected."""
    model = Path(shutil.copytree(GOLDEN / "bloom-a" / "hf", tmp_path / "hf"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"apply_residual_connection_post_layernorm": True}))

    result = run("partition", "ft", "--model", model, "--tp", RANKS, tmp_path / "out")

    assert_wrong_numbers(result, "bloom")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "out.rejected"}


# The vendor's own folders

EXPECTED = sorted(GOLDEN.glob("*/expected-*.json"))


@pytest.mark.parametrize("expected", EXPECTED, ids=[f"{path.parent.name}-{path.stem[9:]}" for path in EXPECTED])
def test_the_vendors_own_folder_passes_or_shows_its_quirk(expected: Path, run: Run, tmp_path: Path) -> None:
    """Files with the vendor's hashes and its config.ini text are what the runtime needs, but for the known quirks."""
    golden = json.loads(expected.read_text())
    model, ranks = expected.parent / "hf", golden["tensor_parallel"]
    options: list[object] = ["--tp", ranks, "--dtype", golden["weight_data_type"], "--no-validate", "--quiet"]
    if "-act_scale" in golden["command"]:
        options += ["--act-scales", model / "act_scales.pt"]
    assert run("partition", "ft", "--model", model, *options, tmp_path / "out").code == 0
    folder = tmp_path / "out" / golden["output_dir"]
    (folder / "config.ini").write_text(golden["config_ini"])
    _make_quirks(golden, folder)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.bin")}
    assert found == {name: file["sha256"] for name, file in golden["files"].items()}

    result = run("verify", "--deep", "--model", model, folder)

    quirky = golden["quirk"] is not None and ranks > 1
    assert result.code == (7 if quirky else 0), result.err


def _make_quirks(golden: dict[str, Any], folder: Path) -> None:
    if golden["variant"] == "bloom-b":
        embedding = np.fromfile(folder / "model.wte.bin", "<u2").reshape(-1, golden["hf_config"]["hidden_size"])
        (folder / "model.lm_head.weight.bin").write_bytes(embedding.T.tobytes())
    if golden["variant"] == "gptneox-b":
        for path in folder.glob("*.dense*bias.bin"):
            (np.fromfile(path, "<f4") / np.float32(golden["tensor_parallel"])).tofile(path)
