"""A checkpoint folder is opened only if its files are all there, agree with each other and lie inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import models
from llmcompile.checkpoint.folder import auxiliary_files, contained, open_checkpoint
from llmcompile.errors import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548118077\n"
A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.arange(4, dtype=np.int16)}
SHARDS = {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B}
PLACES = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def folder_of(root: Path, files: Mapping[str, Mapping[str, np.ndarray]], index: object = None) -> Path:
    """A checkpoint of those safetensors files and, where given, that `weight_map`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text('{"model_type": "gpt2"}')
    for name, tensors in files.items():
        save_file(dict(tensors), root / name)
    if index is not None:
        (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return root


def refusal(root: Path) -> CheckpointError:
    """The error that opening `root` ends in."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    return caught.value


def test_single_file_is_opened(tmp_path: Path) -> None:
    """A folder with model.safetensors alone is a checkpoint of its tensors."""
    root = folder_of(tmp_path, {"model.safetensors": A | B})

    checkpoint = open_checkpoint(root)

    assert {name: stored.shape for name, stored in checkpoint.tensors.items()} == {"a": (2, 3), "b": (4,)}


def test_shards_are_opened_together(tmp_path: Path) -> None:
    """Every shard's tensors are known, each with the shard it lies in."""
    root = folder_of(tmp_path, SHARDS, PLACES)

    checkpoint = open_checkpoint(root)

    assert {name: stored.file for name, stored in checkpoint.tensors.items()} == PLACES


def test_files_are_in_name_order(tmp_path: Path) -> None:
    """Files are listed by name, whatever the order of the index."""
    root = folder_of(tmp_path, SHARDS, dict(reversed(PLACES.items())))

    checkpoint = open_checkpoint(root)

    assert [file.name for file in checkpoint.files] == sorted(SHARDS)


def test_file_is_known_by_size_and_time(tmp_path: Path) -> None:
    """A weight file's bytes and time of change are noted, to tell later whether it was exchanged."""
    root = folder_of(tmp_path, {"model.safetensors": A})
    status = (root / "model.safetensors").stat()

    (file,) = open_checkpoint(root).files

    assert (file.size_bytes, file.modified_ns) == (status.st_size, status.st_mtime_ns)


def test_config_is_config_json(tmp_path: Path) -> None:
    """The checkpoint's config is what config.json says."""
    root = folder_of(tmp_path, {"model.safetensors": A})

    checkpoint = open_checkpoint(root)

    assert dict(checkpoint.config) == {"model_type": "gpt2"}


@pytest.mark.parametrize(
    ("pickle", "sharded", "kind"),
    [(False, False, "safetensors"), (False, True, "safetensors"), (True, False, "pickle"), (True, True, "pickle")],
)
def test_format_is_that_of_the_files(tmp_path: Path, pickle: bool, sharded: bool, kind: str) -> None:
    """Each way transformers saves a model is recognised."""
    models.save("gpt2", tmp_path, pickle=pickle, sharded=sharded)

    checkpoint = open_checkpoint(tmp_path)

    assert checkpoint.format == kind


@pytest.mark.parametrize("family", models.FAMILIES)
def test_tensors_are_those_the_library_lists(tmp_path: Path, family: str) -> None:
    """Of every family, a sharded checkpoint holds the names and shapes that the safetensors library sees."""
    models.save(family, tmp_path, sharded=True)
    expected = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            expected.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118

    checkpoint = open_checkpoint(tmp_path)

    assert {name: stored.shape for name, stored in checkpoint.tensors.items()} == expected


def test_safetensors_are_preferred_to_a_pickle(tmp_path: Path) -> None:
    """Where both formats are present the safetensors are read, and the pickle is not even opened."""
    root = folder_of(tmp_path, {"model.safetensors": A})
    (root / "pytorch_model.bin").write_bytes(b"not a pickle")

    checkpoint = open_checkpoint(root)

    assert [file.name for file in checkpoint.files] == ["model.safetensors"]


def test_sharded_safetensors_are_preferred_to_a_pickle(tmp_path: Path) -> None:
    """Shards of safetensors are read rather than a whole pickle."""
    root = folder_of(tmp_path, SHARDS, PLACES)
    (root / "pytorch_model.bin").write_bytes(b"not a pickle")

    checkpoint = open_checkpoint(root)

    assert checkpoint.format == "safetensors"


def test_whole_file_is_preferred_to_shards(tmp_path: Path) -> None:
    """model.safetensors is read rather than an index beside it, as transformers does."""
    root = folder_of(tmp_path, {"model.safetensors": A, **SHARDS}, PLACES)

    checkpoint = open_checkpoint(root)

    assert [file.name for file in checkpoint.files] == ["model.safetensors"]


def test_absent_folder_is_refused(tmp_path: Path) -> None:
    """A folder that is not there is called by its path."""
    error = refusal(tmp_path / "absent")

    assert str(error).startswith(str(tmp_path / "absent"))


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """The path of a weight file is no checkpoint folder."""
    save_file(A, tmp_path / "model.safetensors")

    error = refusal(tmp_path / "model.safetensors")

    assert "no such folder" in str(error)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    """Weights without config.json are refused, naming config.json."""
    save_file(A, tmp_path / "model.safetensors")

    error = refusal(tmp_path)

    assert "config.json: No such file or directory" in str(error)


def test_folder_without_weights_lists_what_there_is(tmp_path: Path) -> None:
    """A folder without weights is refused with the names that are in it, and those looked for."""
    root = folder_of(tmp_path, {"adapter_model.safetensors": A})

    error = refusal(root)

    assert "no weights among adapter_model.safetensors, config.json; expected one of model.safetensors" in str(error)


@pytest.mark.parametrize(
    ("record", "hint"),
    [('{"source": {"model": "org/name"}}', "give --model org/name"), ("{}", "give the model it was made from")],
)
def test_an_artifact_is_no_model(tmp_path: Path, record: str, hint: str) -> None:
    """It is called one, and the model it was made from is what to give."""
    root = folder_of(tmp_path, {})
    (root / "llmcompile.json").write_text(record)

    error = refusal(root)

    assert "an artifact of llmcompile: llmcompile.json is there; expected a model" in str(error)
    assert error.problems[0].hint == hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_lfs_pointer_is_recognised(tmp_path: Path, name: str) -> None:
    """A git-lfs pointer in place of a file is called one, with the command that fetches the file."""
    root = folder_of(tmp_path, {})
    (root / "pytorch_model.bin").write_bytes(POINTER)
    (root / name).write_bytes(POINTER)

    (problem,) = refusal(root).problems

    assert (name in problem.subject, "git-lfs pointer" in problem.found, "git lfs pull" in problem.hint) == (True,) * 3


def test_lfs_pointer_in_place_of_the_index_is_recognised(tmp_path: Path) -> None:
    """A git-lfs pointer in place of an index is called one."""
    root = folder_of(tmp_path, {})
    (root / "model.safetensors.index.json").write_bytes(POINTER)

    error = refusal(root)

    assert "model.safetensors.index.json: a git-lfs pointer" in str(error)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not valid JSON"),
        (b"[]", "a JSON list"),
        (b'{"vocab_size": NaN}', "the value NaN"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "the key 'vocab_size' twice"),
        (b'{"vocab_size": ', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b" " * (17 << 20), "at most 16777216"),
    ],
    ids=["empty", "list", "nan", "twice", "cut", "binary", "deep", "huge"],
)
def test_broken_config_is_refused(tmp_path: Path, text: bytes, why: str) -> None:
    """A config.json that is no plain JSON object of sensible size is refused with the reason."""
    root = folder_of(tmp_path, {"model.safetensors": A})
    (root / "config.json").write_bytes(text)

    error = refusal(root)

    assert why in str(error)


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    """All shards that are absent are named at once."""
    root = folder_of(tmp_path, {}, PLACES)

    error = refusal(root)

    assert [problem.subject for problem in error.problems] == sorted(SHARDS)


def test_damaged_and_missing_shards_are_named_together(tmp_path: Path) -> None:
    """One truncated and one absent shard make two problems of one error."""
    root = folder_of(tmp_path, {}, PLACES)
    (root / "model-00001-of-00002.safetensors").write_bytes(b"\1\0")

    error = refusal(root)

    assert [problem.found for problem in error.problems] == ["2 bytes", "No such file or directory"]


def test_folder_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    """A folder with a shard's name is refused as a shard that cannot be read."""
    root = folder_of(tmp_path, {"model-00001-of-00002.safetensors": A}, PLACES)
    (root / "model-00002-of-00002.safetensors").mkdir()

    error = refusal(root)

    assert "model-00002-of-00002.safetensors: not a regular file" in str(error)


def test_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path: Path) -> None:
    """An index that puts a tensor in the wrong shard is refused, naming both shards."""
    root = folder_of(tmp_path, SHARDS, {"a": PLACES["b"], "b": PLACES["a"]})

    error = refusal(root)

    assert f"a: in {PLACES['a']}; expected {PLACES['b']}, by model.safetensors.index.json" in str(error)


def test_tensor_in_no_shard_is_refused(tmp_path: Path) -> None:
    """A tensor that only the index knows is named."""
    root = folder_of(tmp_path, SHARDS, {**PLACES, "c": PLACES["a"]})

    error = refusal(root)

    assert [(problem.subject, problem.found) for problem in error.problems] == [("c", "in no shard")]


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """A tensor that two shards hold is refused, naming both."""
    root = folder_of(tmp_path, {PLACES["a"]: A, PLACES["b"]: A | B}, PLACES)

    error = refusal(root)

    assert f"a: in both {PLACES['a']} and {PLACES['b']}" in str(error)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_index_without_weight_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    """An index whose weight_map is absent, empty or no object is refused."""
    root = folder_of(tmp_path, SHARDS)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    error = refusal(root)

    assert "no weight_map" in str(error)


@pytest.mark.parametrize("place", [None, 1, ["model.safetensors"], {}])
def test_place_that_is_no_name_is_refused(tmp_path: Path, place: object) -> None:
    """An index that gives anything but a file name for a tensor is refused, naming the tensor."""
    root = folder_of(tmp_path, SHARDS, {"a": place})

    error = refusal(root)

    assert "a in model.safetensors.index.json" in str(error)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "sub/../../x.safetensors", "/etc/passwd", "..\\x.safetensors", "C:\\x", "a\0b", "", ".."],
)
def test_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """An index that points out of the folder is refused even where such a file exists."""
    save_file(A, tmp_path / "x.safetensors")
    root = folder_of(tmp_path / "root", SHARDS, {**PLACES, "c": name})

    error = refusal(root)

    assert "a path that leaves the checkpoint folder" in str(error)


def test_symlink_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A weight file that is a symbolic link to a file elsewhere is refused."""
    save_file(A, tmp_path / "x.safetensors")
    root = folder_of(tmp_path / "root", {})
    (root / "model.safetensors").symlink_to(tmp_path / "x.safetensors")

    error = refusal(root)

    assert "a path that leaves the checkpoint folder" in str(error)


def test_config_that_is_a_symlink_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A config.json that is a symbolic link to a file elsewhere is refused."""
    (tmp_path / "secret.json").write_text("{}")
    root = folder_of(tmp_path / "root", {"model.safetensors": A})
    (root / "config.json").unlink()
    (root / "config.json").symlink_to(tmp_path / "secret.json")

    error = refusal(root)

    assert "a path that leaves the checkpoint folder" in str(error)


def test_symlinked_folder_inside_is_refused_when_it_leads_out(tmp_path: Path) -> None:
    """A shard in a subfolder that is a link to another folder is refused."""
    (tmp_path / "elsewhere").mkdir()
    save_file(A, tmp_path / "elsewhere" / "x.safetensors")
    root = folder_of(tmp_path / "root", {}, {"a": "sub/x.safetensors"})
    (root / "sub").symlink_to(tmp_path / "elsewhere")

    error = refusal(root)

    assert "a path that leaves the checkpoint folder" in str(error)


def test_symlink_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """A weight file may be a link to another file of the folder."""
    root = folder_of(tmp_path, {"weights.safetensors": A})
    (root / "model.safetensors").symlink_to("weights.safetensors")

    checkpoint = open_checkpoint(root)

    assert list(checkpoint.tensors) == ["a"]


def test_link_to_the_folder_itself_is_followed(tmp_path: Path) -> None:
    """The folder may be reached through a link."""
    folder_of(tmp_path / "root", {"model.safetensors": A})
    (tmp_path / "link").symlink_to("root")

    checkpoint = open_checkpoint(tmp_path / "link")

    assert list(checkpoint.tensors) == ["a"]


def hub_cache(tmp_path: Path) -> tuple[Path, Path]:
    """The snapshot and the blobs of a hub cache whose snapshot links to its blobs."""
    snapshot, blobs = tmp_path / "models--org--tiny" / "snapshots" / "0123abc", tmp_path / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    folder_of(snapshot, {"model.safetensors": A})
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / f"blob-of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    return snapshot, blobs


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """In the hub's cache, snapshots/<commit>/<name> may link to ../../blobs/<etag>."""
    snapshot, _ = hub_cache(tmp_path)

    checkpoint = open_checkpoint(snapshot)

    assert list(checkpoint.tensors) == ["a"]


def test_links_of_the_hub_cache_lead_to_its_own_blobs_only(tmp_path: Path) -> None:
    """In the hub's cache, a link to another repository's blobs is refused."""
    snapshot, blobs = hub_cache(tmp_path / "mine")
    _, others = hub_cache(tmp_path / "others")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(others / "blob-of-model.safetensors")

    error = refusal(snapshot)

    assert blobs.is_dir()
    assert "a path that leaves the checkpoint folder" in str(error)


def test_blob_that_is_a_link_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    """In the hub's cache, a blob that is itself a link to elsewhere is refused."""
    snapshot, blobs = hub_cache(tmp_path)
    (blobs / "blob-of-model.safetensors").rename(tmp_path / "elsewhere")
    (blobs / "blob-of-model.safetensors").symlink_to(tmp_path / "elsewhere")

    error = refusal(snapshot)

    assert "a path that leaves the checkpoint folder" in str(error)


def test_name_in_a_subfolder_is_inside(tmp_path: Path) -> None:
    """A file of a subfolder is a file of the folder."""
    assert contained(tmp_path, "sub/x.safetensors") == tmp_path / "sub" / "x.safetensors"


def test_shard_in_a_subfolder_is_opened(tmp_path: Path) -> None:
    """An index may name files of a subfolder."""
    root = folder_of(tmp_path, {}, {"a": "sub/x.safetensors"})
    (root / "sub").mkdir()
    save_file(A, root / "sub" / "x.safetensors")

    checkpoint = open_checkpoint(root)

    assert checkpoint.tensors["a"].file == "sub/x.safetensors"


def test_auxiliary_files_are_configuration_tokenizer_and_code() -> None:
    """What an artifact carries along is configuration, tokenizer and code; no weights, index or manifest of ours."""
    names = [
        ".gitattributes",
        "README.md",
        "config.json",
        "llmcompile.json",
        "merges.txt",
        "model.safetensors",
        "model.safetensors.index.json",
        "modeling_tiny.py",
        "optimizer.pt",
        "pytorch_model.bin.index.json",
        "sentencepiece.model",
        "tokenizer.json",
    ]

    found = auxiliary_files(names)

    assert found == ("config.json", "merges.txt", "modeling_tiny.py", "sentencepiece.model", "tokenizer.json")


def test_tokenizer_is_carried_along(tmp_path: Path) -> None:
    """The tokenizer saved beside a model is among the checkpoint's auxiliary files."""
    models.save("llama", tmp_path)
    models.add_tokenizer(tmp_path)

    checkpoint = open_checkpoint(tmp_path)

    assert {"tokenizer.json", "tokenizer_config.json"} <= set(checkpoint.auxiliary)
