"""A hub repository becomes a local folder with what a conversion needs, or an error that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import hub_server
import models
from hub_server import COMMIT, Fault, Hub
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.checkpoint.hub import Located, locate, wanted_files
from llmcompile.errors import CheckpointError

TOKEN = "hf_kVqzjTeLRMSecretSecretSecret"
WEIGHTS = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
SMALL = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": WEIGHTS}
SCRIPT = """
import json, sys, traceback
from llmcompile.checkpoint import hub
from llmcompile.errors import LlmCompileError

asked = json.load(sys.stdin)
try:
    found = getattr(hub, asked["function"])(asked["model"], revision=asked["revision"], token=asked["token"])
    answer = {}
    if found is not None:
        located, checkpoint = (found, None) if asked["function"] == "locate" else found
        answer = {"root": str(located.root), "label": located.label, "commit": located.commit}
        if checkpoint is not None:
            answer["tensors"] = {name: [*t.shape, t.offset] for name, t in checkpoint.tensors.items()}
except LlmCompileError as error:
    (problem,) = error.problems
    answer = {"error": type(error).__name__, "text": str(error), "hint": problem.hint}
    traceback.print_exc()
print(json.dumps(answer))
"""


def named(*names: str) -> dict[str, bytes]:
    """Files whose content is their name: the hub's cache keeps equal contents once."""
    return {name: name.encode() for name in names}


@dataclass(frozen=True)
class Outcome:
    """How a call in a process of its own ended: what it returned or raised, and all it printed."""

    answer: dict[str, Any]
    printed: str


def call(
    hub: Hub,
    home: Path,
    function: str = "locate",
    *,
    model: str = "org/tiny",
    revision: str | None = None,
    token: str | None = None,
    **environment: str,
) -> Outcome:
    """Call `locate` or `peek` in a process that takes `hub` for the Hugging Face hub."""
    asked = json.dumps({"function": function, "model": model, "revision": revision, "token": token})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        input=asked,
        env={**hub.environment(home), **environment},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr)


def test_only_what_is_needed_is_downloaded(tmp_path: Path) -> None:
    """Of a repository in five formats, config, tokenizer, code and safetensors are downloaded, and no more."""
    needed = {**SMALL, **named("merges.txt", "modeling_tiny.py", "tokenizer.json", "tokenizer.model")}
    unused = [".gitattributes", "README.md", "onnx/model.onnx", "onnx/config.json", "optimizer.pt", "tf_model.h5"]
    weights = ["flax_model.msgpack", "pytorch_model.bin", "rust_model.ot", "model.fp16.safetensors"]

    with Hub({**needed, **named(*unused, *weights)}) as hub:
        call(hub, tmp_path / "home")

    assert hub.downloaded == sorted(needed)


def test_shards_of_one_format_are_downloaded(tmp_path: Path) -> None:
    """Of a repository sharded in both formats, the index and shards of safetensors are downloaded."""
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]

    with Hub(named("config.json", *shards, *others)) as hub:
        call(hub, tmp_path / "home")

    assert hub.downloaded == ["config.json", *shards]


def test_pickle_is_downloaded_where_there_is_nothing_else(tmp_path: Path) -> None:
    """Of a repository without safetensors the pickle is downloaded."""
    with Hub({"config.json": b"{}", "pytorch_model.bin": b"x", "tf_model.h5": b"x"}) as hub:
        call(hub, tmp_path / "home")

    assert hub.downloaded == ["config.json", "pytorch_model.bin"]


def test_name_with_wildcards_is_taken_literally(tmp_path: Path) -> None:
    """A file whose name holds a wildcard is downloaded as itself."""
    with Hub({**SMALL, "vocab[1].json": b"{}", "what?.txt": b"x"}) as hub:
        call(hub, tmp_path / "home")

    assert "vocab[1].json" in hub.downloaded


def test_repository_without_weights_downloads_nothing(tmp_path: Path) -> None:
    """A repository without weights is refused before anything is downloaded."""
    with Hub({"config.json": b"{}", "tf_model.h5": b"x"}) as hub:
        outcome = call(hub, tmp_path / "home")

    assert (outcome.answer["error"], hub.downloaded) == ("CheckpointError", [])


def test_downloaded_model_is_a_checkpoint(tmp_path: Path) -> None:
    """The folder that a download ends in, links into the hub's cache and all, is opened as a checkpoint."""
    saved = models.save("gpt2", tmp_path / "saved", sharded=True)

    with Hub({path.name: path.read_bytes() for path in saved.iterdir()}) as hub:
        outcome = call(hub, tmp_path / "home")

    assert open_checkpoint(Path(outcome.answer["root"])).tensors == open_checkpoint(saved).tensors


def test_commit_is_the_one_the_hub_resolved(tmp_path: Path) -> None:
    """A model found without a revision is known by id and by the commit that the hub resolved."""
    with Hub(SMALL) as hub:
        outcome = call(hub, tmp_path / "home")

    assert (outcome.answer["label"], outcome.answer["commit"]) == ("org/tiny", COMMIT)


def test_files_are_those_of_the_resolved_commit(tmp_path: Path) -> None:
    """Files are asked for by commit, so that a branch that moves meanwhile mixes nothing."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", revision="main")

    files = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert all(path.startswith(f"/org/tiny/resolve/{COMMIT}/") for path in files)


@pytest.mark.parametrize(
    ("model", "revision"), [("org/tiny@v1.0", None), ("org/tiny", "v1.0"), ("org/tiny@v1.0", "v1.0")]
)
def test_revision_is_asked_for(tmp_path: Path, model: str, revision: str | None) -> None:
    """A revision behind an @, beside the model, or both alike, is what the hub is asked for."""
    with Hub(SMALL, revisions=("v1.0",)) as hub:
        call(hub, tmp_path / "home", model=model, revision=revision)

    assert hub.requests[0].path == "/api/models/org/tiny/revision/v1.0"


def test_cached_model_is_not_downloaded_again(tmp_path: Path) -> None:
    """A second run asks for no file's content."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home")
        hub.requests.clear()
        call(hub, tmp_path / "home")

    assert hub.downloaded == []


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_model_is_found_offline(revision: str | None, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE a cached model is found without a request, by the same words."""
    with Hub(SMALL) as hub:
        first = call(hub, tmp_path / "home", revision=revision)
        hub.requests.clear()
        second = call(hub, tmp_path / "home", revision=revision, HF_HUB_OFFLINE="1")

    assert (second.answer, hub.requests) == (first.answer, [])


def test_uncached_model_offline_is_a_network_error(tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE a model that is not cached is a NetworkError that says so."""
    with Hub(SMALL) as hub:
        outcome = call(hub, tmp_path / "home", HF_HUB_OFFLINE="1")

    assert (outcome.answer["error"], "not cached" in outcome.answer["text"]) == ("NetworkError", True)


BIG = bytes(range(256)) * (12 << 12)
"""12 MiB: more than one of the 10 MiB pieces that huggingface_hub writes to disk."""


def test_reset_in_a_body_is_a_network_error(tmp_path: Path) -> None:
    """A connection reset in the middle of a file is a NetworkError whose hint is to run the command again."""
    with Hub({**SMALL, "model.safetensors": BIG}, resets={"model.safetensors": 11 << 20}) as hub:
        outcome = call(hub, tmp_path / "home")

    assert (outcome.answer["error"], "run the same command again" in outcome.answer["hint"]) == ("NetworkError", True)


def test_download_is_resumed_after_a_reset(tmp_path: Path) -> None:
    """The run after a reset asks for the rest of the file only."""
    with Hub({**SMALL, "model.safetensors": BIG}, resets={"model.safetensors": 11 << 20}) as hub:
        call(hub, tmp_path / "home")
        hub.requests.clear()
        call(hub, tmp_path / "home")

    asked = [r.headers.get("range") for r in hub.requests if r.method == "GET" and "resolve" in r.path]
    assert asked == [f"bytes={10 << 20}-"]


def test_resumed_file_is_whole(tmp_path: Path) -> None:
    """A file that was downloaded in two runs has the bytes it has on the hub."""
    with Hub({**SMALL, "model.safetensors": BIG}, resets={"model.safetensors": 11 << 20}) as hub:
        call(hub, tmp_path / "home")
        outcome = call(hub, tmp_path / "home")

    assert (Path(outcome.answer["root"]) / "model.safetensors").read_bytes() == BIG


LISTING_FAULTS: dict[str, tuple[Fault, str, str, str]] = {
    "gated, unknown": (hub_server.GATED_UNKNOWN, "CheckpointError", "gated", "accept its terms"),
    "gated, known": (hub_server.GATED_KNOWN, "CheckpointError", "gated", "accept its terms"),
    "bad token": (hub_server.BAD_TOKEN, "CheckpointError", "401", "--token"),
    "forbidden": (hub_server.FORBIDDEN, "CheckpointError", "403", "--token"),
    "no repository": (hub_server.NO_REPOSITORY, "CheckpointError", "no such repository", "--model"),
    "status alone": (Fault(401), "CheckpointError", "401", "--token"),
    "no revision": (hub_server.NO_REVISION, "CheckpointError", "no such revision", "--revision"),
    "too many requests": (hub_server.TOO_MANY, "NetworkError", "429", "run the same command again"),
    "unavailable": (hub_server.UNAVAILABLE, "NetworkError", "503", "run the same command again"),
}


@pytest.mark.parametrize("fault", LISTING_FAULTS)
def test_fault_is_the_right_error_with_a_hint(tmp_path: Path, fault: str) -> None:
    """Each way the hub refuses its listing is an error of the right class, with its cause and a way out."""
    answer, kind, text, hint = LISTING_FAULTS[fault]

    with Hub(SMALL, listing_fault=answer) as hub:
        outcome = call(hub, tmp_path / "home")

    found = outcome.answer
    assert (found["error"], text in found["text"], hint in found["hint"]) == (kind, True, True)


FILE_FAULTS: dict[str, tuple[Fault, str, str]] = {
    "gated": (hub_server.GATED_UNKNOWN, "CheckpointError", "accept its terms"),
    "gone": (hub_server.NO_ENTRY, "NetworkError", "run the same command again"),
    "too many requests": (hub_server.TOO_MANY, "NetworkError", "run the same command again"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_fault_of_a_file_is_the_right_error_with_a_hint(tmp_path: Path, fault: str) -> None:
    """Each way the hub refuses a file it has listed is an error of the right class, with a way out."""
    answer, kind, hint = FILE_FAULTS[fault]

    with Hub(SMALL, file_faults={"model.safetensors": answer}) as hub:
        outcome = call(hub, tmp_path / "home")

    assert (outcome.answer["error"], hint in outcome.answer["hint"]) == (kind, True)


def test_unreachable_hub_is_a_network_error(tmp_path: Path) -> None:
    """A hub that refuses connections is a NetworkError whose hint is to run the command again."""
    with Hub(SMALL) as hub:
        pass

    outcome = call(hub, tmp_path / "home")

    assert (outcome.answer["error"], "run the same command again" in outcome.answer["hint"]) == ("NetworkError", True)


def test_token_is_sent_in_the_authorization_header(tmp_path: Path) -> None:
    """Listing and files are asked for with the token as bearer."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", token=TOKEN)

    assert {request.headers.get("authorization") for request in hub.requests} == {f"Bearer {TOKEN}"}


def test_token_is_sent_nowhere_else(tmp_path: Path) -> None:
    """No address and no other header holds the token."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", token=TOKEN)

    elsewhere = [
        text
        for request in hub.requests
        for text in (request.target, *(value for name, value in request.headers.items() if name != "authorization"))
    ]
    assert all(TOKEN not in text for text in elsewhere)


def test_token_is_not_stored(tmp_path: Path) -> None:
    """The token given for one run is written to no file of the cache."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", token=TOKEN)

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in written)


@pytest.mark.parametrize("fault", ["gated, known", "bad token", "no repository", "unavailable"])
def test_token_is_in_no_error(tmp_path: Path, fault: str) -> None:
    """Neither the message, nor its hint, nor the traceback behind it holds the token."""
    with Hub(SMALL, listing_fault=LISTING_FAULTS[fault][0]) as hub:
        outcome = call(hub, tmp_path / "home", token=TOKEN)

    assert "error" in outcome.answer
    assert TOKEN not in outcome.printed


def test_token_of_the_environment_is_used(tmp_path: Path) -> None:
    """Without a token given, HF_TOKEN is sent."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", HF_TOKEN=TOKEN)

    assert hub.requests[0].headers.get("authorization") == f"Bearer {TOKEN}"


def test_peek_sees_what_opening_sees(tmp_path: Path) -> None:
    """Headers read by range requests hold the tensors that the downloaded files hold."""
    saved = models.save("gpt2", tmp_path / "saved", sharded=True)
    tensors = open_checkpoint(saved).tensors

    with Hub({path.name: path.read_bytes() for path in saved.iterdir()}) as hub:
        outcome = call(hub, tmp_path / "home", "peek")

    assert outcome.answer["tensors"] == {name: [*stored.shape, stored.offset] for name, stored in tensors.items()}


def test_peek_reads_no_weights(tmp_path: Path) -> None:
    """To see the headers, only the first bytes of a weight file are asked for."""
    with Hub(SMALL) as hub:
        call(hub, tmp_path / "home", "peek")

    asked = [r.headers.get("range", "everything") for r in hub.requests if r.path.endswith("model.safetensors")]
    header = len(WEIGHTS) - 24
    assert all(int(span.removeprefix("bytes=").partition("-")[2]) < header for span in asked)


def test_peek_refuses_a_hub_that_knows_no_ranges(tmp_path: Path) -> None:
    """A whole file in answer to a range request is a NetworkError, not taken for the range."""
    with Hub(SMALL, ranges=False) as hub:
        outcome = call(hub, tmp_path / "home", "peek")

    assert (outcome.answer["error"], "whole file" in outcome.answer["text"]) == ("NetworkError", True)


def test_peek_leaves_pickles_to_a_download(tmp_path: Path) -> None:
    """A repository of pickles cannot be peeked at."""
    with Hub({"config.json": b"{}", "pytorch_model.bin": b"x"}) as hub:
        outcome = call(hub, tmp_path / "home", "peek")

    assert outcome.answer == {}


@pytest.mark.parametrize("fault", ["gated, unknown", "no repository", "unavailable"])
def test_peek_meets_faults_as_a_download_does(tmp_path: Path, fault: str) -> None:
    """Each way the hub refuses its listing is the same error to a dry run."""
    answer, kind, _, hint = LISTING_FAULTS[fault]

    with Hub(SMALL, listing_fault=answer) as hub:
        outcome = call(hub, tmp_path / "home", "peek")

    assert (outcome.answer["error"], hint in outcome.answer["hint"]) == (kind, True)


@pytest.mark.parametrize(
    "content", [WEIGHTS[:-1], WEIGHTS[:20], b"\2\0\0", b""], ids=["data", "header", "length", "all"]
)
def test_peek_refuses_truncated_files(tmp_path: Path, content: bytes) -> None:
    """A file that is truncated on the hub is a CheckpointError before it is downloaded."""
    with Hub({**SMALL, "model.safetensors": content}) as hub:
        outcome = call(hub, tmp_path / "home", "peek")

    assert outcome.answer["error"] == "CheckpointError"


def test_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    """A folder that exists is the model, called by its name."""
    folder = tmp_path / "my-model"
    folder.mkdir()

    located = locate(str(folder), revision=None, token=None)

    assert located == Located(folder, "my-model", None, None)


def test_local_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path that exists is a folder even where it reads like a hub id."""
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    located = locate("org/tiny", revision=None, token=None)

    assert (located.root, located.label) == (Path("org/tiny"), "tiny")


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leading ~ stands for the home folder."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))

    located = locate("~/tiny", revision=None, token=None)

    assert located.root == tmp_path / "tiny"


def test_current_folder_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model `.` is called what its folder is called."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")

    located = locate(".", revision=None, token=None)

    assert located.label == "tiny"


def test_local_folder_has_no_revisions(tmp_path: Path) -> None:
    """A revision beside a local folder is refused."""
    with pytest.raises(CheckpointError, match="--revision: main, with the local folder"):
        locate(str(tmp_path), revision="main", token=None)


NO_IDS = ("./absent", "../absent", "/no/such/folder", "a/b/c", "a b", "org/tiny/", "@main")
NO_PATHS = ("b" * 300 + " c", "~no-such-user/x", "a\0")
"""What the file system does not take."""


@pytest.mark.parametrize("model", [*NO_IDS, *NO_PATHS])
def test_what_is_neither_folder_nor_id_is_refused(model: str) -> None:
    """A path that does not exist, and reads like no hub id, is refused without asking the hub."""
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(model, revision=None, token=None)


def test_two_revisions_are_refused() -> None:
    """A revision behind the @ and another one beside it are refused without asking the hub."""
    with pytest.raises(CheckpointError, match=r"--revision: v2, and v1 in org/tiny@v1; expected one revision"):
        locate("org/tiny@v1", revision="v2", token=None)


def test_subfolders_are_not_wanted() -> None:
    """Files of subfolders, such as other precisions or ONNX, are not wanted."""
    found = wanted_files(["config.json", "model.safetensors", "fp16/model.safetensors", "onnx/config.json"])

    assert found == ["config.json", "model.safetensors"]


def test_weights_in_subfolders_are_no_weights() -> None:
    """A repository whose weights all lie in subfolders has none."""
    assert wanted_files(["config.json", "fp16/model.safetensors"]) == []
