"""Meta's folder of params.json and consolidated pickles is one checkpoint, whose shares fit or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import Checkpoint, open_checkpoint
from llmcompile.checkpoint.reader import Reader
from llmcompile.errors import CheckpointError

PARAMS = {"dim": 8, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 4, "norm_eps": 1e-5}
FFN = 24
SHAPES = {
    "tok_embeddings.weight": (20, 8),
    "output.weight": (20, 8),
    "norm.weight": (8,),
    "layers.0.attention_norm.weight": (8,),
    "layers.0.ffn_norm.weight": (8,),
    "layers.0.attention.wq.weight": (8, 8),
    "layers.0.attention.wk.weight": (4, 8),
    "layers.0.attention.wv.weight": (4, 8),
    "layers.0.attention.wo.weight": (8, 8),
    "layers.0.feed_forward.w1.weight": (FFN, 8),
    "layers.0.feed_forward.w3.weight": (FFN, 8),
    "layers.0.feed_forward.w2.weight": (8, FFN),
    "rope.freqs": (1,),
}
AXES = dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0) | {"wo": 1, "w2": 1}


def whole() -> dict[str, torch.Tensor]:
    """The weights of a model, in float32."""
    numbers = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=numbers) for name, shape in SHAPES.items()}


def shares(ranks: int, *, embedding: int = 1) -> list[dict[str, torch.Tensor]]:
    """The weights in as many files, the embedding divided along the axis given."""
    axes = {**AXES, "tok_embeddings": embedding}
    files: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in whole().items():
        axis = axes.get(name.removesuffix(".weight").rpartition(".")[2])
        for rank, file in enumerate(files):
            file[name] = tensor.clone() if axis is None else tensor.chunk(ranks, axis)[rank].clone()
    return files


def folder(root: Path, files: list[dict[str, torch.Tensor]], **params: Any) -> Path:
    """A checkpoint of those files."""
    (root / "params.json").write_text(json.dumps({**PARAMS, **params}))
    for rank, file in enumerate(files):
        torch.save(file, root / f"consolidated.{rank:02d}.pth")
    return root


def values(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    with Reader(checkpoint.files) as reader:
        return {name: torch.from_numpy(reader.read(stored)) for name, stored in checkpoint.tensors.items()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("embedding", [0, 1])
def test_shares_are_joined(tmp_path: Path, ranks: int, embedding: int) -> None:
    """The tensors of several files are those of one, wherever the embedding is divided."""
    checkpoint = open_checkpoint(folder(tmp_path, shares(ranks, embedding=embedding)))

    found = values(checkpoint)

    assert found.keys() == SHAPES.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole().items())
    assert {name: stored.shape for name, stored in checkpoint.tensors.items()} == SHAPES


@pytest.mark.parametrize("name", ["layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w2.weight"])
@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 7), (5, 8), (3, 3), (0, 8)])
def test_rows_of_shares_are_read(tmp_path: Path, name: str, first: int, last: int) -> None:
    """Any rows of a divided tensor are those of the whole one, over the seams too."""
    checkpoint = open_checkpoint(folder(tmp_path, shares(4)))

    with Reader(checkpoint.files) as reader:
        rows = reader.read_rows(checkpoint.tensors[name], first, last)

    assert torch.equal(torch.from_numpy(rows), whole()[name][first:last])


def test_place_is_that_of_the_first_share(tmp_path: Path) -> None:
    """A divided tensor lies where its first share does."""
    stored = open_checkpoint(folder(tmp_path, shares(2))).tensors["output.weight"]

    assert (stored.file, stored.offset) == (stored.shards[0].file, stored.shards[0].offset)
    assert [shard.file for shard in stored.shards] == ["consolidated.00.pth", "consolidated.01.pth"]


def test_family_is_metas(tmp_path: Path) -> None:
    """The folder is found to be Meta's LLaMA, and every tensor is expected or ignored."""
    checkpoint = open_checkpoint(folder(tmp_path, shares(2)))
    architecture = lookup(checkpoint.config, checkpoint.tensors)
    dims = architecture.dims(checkpoint.config)

    expected = {
        tensor.name_at(layer, expert): tensor.stored_shape(dims)
        for tensor, layer, expert in architecture.expected(dims)
    }

    assert architecture.name == "meta_llama"
    assert expected == {name: shape for name, shape in SHAPES.items() if name != "rope.freqs"}
    assert architecture.why_ignored("rope.freqs") is not None
    assert (dims.sizes["vocab"], dims.sizes["ffn"], dims.sizes["positions"]) == (20, FFN, 2048)
    assert (dims.facts["rotary_base"], dims.facts["rope_scaling"]) == (10000.0, None)


def test_rotary_rows_have_an_order_of_their_own(tmp_path: Path) -> None:
    """Both halves of a rotated pair lie side by side; every backend knows one half behind the other."""
    architecture = lookup(open_checkpoint(folder(tmp_path, shares(1))).config)

    orders = {t.roles[0]: (t.out, t.order) for t in architecture.tensors if t.order != ""}

    assert orders == {
        "attn.q.weight": ("heads half pair", "heads pair half"),
        "attn.k.weight": ("kv_heads half pair", "kv_heads pair half"),
    }


def test_scaled_rotary_embedding_is_llama_3s(tmp_path: Path) -> None:
    """The flag of params.json stands for Meta's constants."""
    config = open_checkpoint(folder(tmp_path, shares(1), use_scaled_rope=True, rope_theta=500000.0)).config

    facts = lookup(config).dims(config).facts

    assert facts["rope_scaling"] == "llama3"
    assert json.loads(str(facts["rope_config"]))["factor"] == 8.0


def test_vocabulary_of_params_json_wins(tmp_path: Path) -> None:
    """A size that is given is not replaced, so that a wrong one is found by the plan."""
    assert open_checkpoint(folder(tmp_path, shares(1), vocab_size=21)).config["vocab_size"] == 21


def test_width_that_contradicts_the_formula_is_refused(tmp_path: Path) -> None:
    """The width of w1 must be what multiple_of and ffn_dim_multiplier make of it."""
    config = open_checkpoint(folder(tmp_path, shares(2), ffn_dim_multiplier=2.0)).config

    with pytest.raises(CheckpointError, match="an MLP 44 wide; expected 24, as w1 is stored"):
        lookup(config).dims(config)


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"multiple_of": 0}, "multiple_of"),
        ({"dim": 10**400}, "dim"),
        ({"dim": 0}, "dim"),
        ({"n_heads": 0}, "n_heads"),
        ({"n_heads": -4}, "n_heads"),
        ({"n_kv_heads": 0}, "n_kv_heads"),
        ({"n_layers": 0}, "n_layers"),
        ({"head_dim": 3}, "head_dim"),
        ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": -1.0}, "ffn_dim_multiplier"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_scaling_factor": 0.0}, "rope_scaling_factor"),
        ({"use_scaled_rope": 1}, "use_scaled_rope"),
    ],
)
def test_parameters_that_no_model_has_are_refused(tmp_path: Path, params: dict[str, Any], key: str) -> None:
    """An absurd number of params.json is an error that names the key and the file."""
    config = open_checkpoint(folder(tmp_path, shares(1), **params)).config

    with pytest.raises(CheckpointError) as caught:
        lookup(config).dims(config)

    assert [problem.subject for problem in caught.value.problems] == [f"params.json: {key}"]


def test_epsilon_that_is_absent_is_that_of_metas_code(tmp_path: Path) -> None:
    """ModelArgs.norm_eps is 1e-5 where params.json says nothing; the fact says so to every backend."""
    checkpoint = open_checkpoint(folder(tmp_path, shares(1)))
    config = {key: value for key, value in checkpoint.config.items() if key != "norm_eps"}

    assert lookup(config).dims(config).facts["norm_eps"] == 1e-5


def test_frequencies_of_llama_1_are_ignored(tmp_path: Path) -> None:
    """Every layer of the first LLaMA keeps a copy of them, which is known to be computed again."""
    files = shares(2)
    for file in files:
        file["layers.0.attention.inner_attention.rope.freqs"] = torch.ones(4)
    checkpoint = open_checkpoint(folder(tmp_path, files))

    (name,) = checkpoint.tensors.keys() - SHAPES.keys()

    assert lookup(checkpoint.config).why_ignored(name) == "recomputed from rope_theta"


def test_huggingface_folder_is_not_metas(tmp_path: Path) -> None:
    """Where there is a config.json, params.json is a file like any other."""
    folder(tmp_path, shares(1))
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match="no weights among"):
        open_checkpoint(tmp_path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    """Files must be numbered without a hole."""
    folder(tmp_path, shares(2))
    (tmp_path / "consolidated.00.pth").unlink()

    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth; expected consolidated\.00\.pth"):
        open_checkpoint(tmp_path)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """The parameters alone are no checkpoint."""
    with pytest.raises(CheckpointError, match=r"no consolidated\.\*\.pth"):
        open_checkpoint(folder(tmp_path, []))


def test_share_that_is_absent_is_named(tmp_path: Path) -> None:
    """A tensor that one of the files lacks cannot be joined."""
    files = shares(2)
    del files[1]["output.weight"]

    with pytest.raises(CheckpointError, match=r"output\.weight"):
        open_checkpoint(folder(tmp_path, files))


def test_share_of_another_file_alone_is_named(tmp_path: Path) -> None:
    """A tensor that the first file lacks is not dropped without a word."""
    files = shares(2)
    del files[0]["output.weight"]

    with pytest.raises(CheckpointError, match=r"output\.weight: in consolidated\.01\.pth"):
        open_checkpoint(folder(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("norm.weight", torch.zeros(9)),
        ("output.weight", torch.zeros(10, 9)),
        ("output.weight", torch.zeros(10, 8, dtype=torch.float16)),
    ],
)
def test_shares_that_do_not_fit_are_named(tmp_path: Path, name: str, share: torch.Tensor) -> None:
    """Shares of another width or type, and norms of another size, are refused."""
    files = shares(2)
    files[1][name] = share

    with pytest.raises(CheckpointError, match=rf"{name}: .*expected shares that fit"):
        open_checkpoint(folder(tmp_path, files))
