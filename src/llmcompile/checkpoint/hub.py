"""Where a model is: a local folder, or a repository of the Hugging Face hub; the only file that uses the network."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmcompile.checkpoint.folder import (
    AUXILIARY,
    WEIGHT_FILES,
    Checkpoint,
    WeightFile,
    auxiliary_files,
    contained,
    read_object,
)
from llmcompile.checkpoint.headers import Stored, parse_safetensors
from llmcompile.errors import CheckpointError, NetworkError

PIPELINE = "model_index.json"
"""What a pipeline of several models, each in a folder of its own, has in the place of config.json."""
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?:@[\w./-]+)?")
DATA_FILES = (".jsonl", ".parquet", ".txt")
"""Endings of files of data that can be read, the ones to be preferred first."""
DATA_FLAG = "--calib-dataset"


@dataclass(frozen=True)
class Located:
    """A model on this machine.

    Attributes:
        root: Its folder.
        label: Hub id, or the folder's name.
        revision: Revision as it was asked for; None for a local folder.
        commit: Commit the hub resolved it to; None for a local folder.
    """

    root: Path
    label: str
    revision: str | None
    commit: str | None


@dataclass(frozen=True)
class _Asked:
    """What is looked for on the hub, in the words of messages: the flag it is given by, and what it may be locally."""

    flag: str
    local: str


_MODEL = _Asked("--model", "folder")
_DATASET = _Asked(DATA_FLAG, "file")


@dataclass(frozen=True)
class Data:
    """A file of data.

    Attributes:
        label: The file's name; of a dataset on the hub, org/name@commit:file.
        path: Where it is on this machine; None where it was only looked for.
    """

    label: str
    path: Path | None


def locate(
    model: str, *, revision: str | None, token: str | None, cache_dir: Path | None = None, whole: bool = False
) -> Located:
    """Find a model, downloading a hub repository's files as far as they are not cached yet.

    Args:
        model: Local folder, or org/name, or org/name@revision.
        revision: Branch, tag or commit; not beside an @revision.
        token: Hub token; None for the one huggingface_hub finds itself.
        cache_dir: Where downloads are kept; None for huggingface_hub's own place.
        whole: Take every file, also of folders, as a pipeline of several models needs.

    Raises:
        CheckpointError: No such folder or repository, no weights in it, or no access.
        NetworkError: The hub cannot be reached or failed; what was downloaded is kept and continued.
    """
    from huggingface_hub import constants, snapshot_download

    local = _local(model, revision)
    if local is not None:
        return local
    repo, revision = _repository(model, revision)
    with _hub_errors(repo, revision):
        if constants.HF_HUB_OFFLINE:
            root = Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True))
            return Located(root, repo, revision, root.name)
        _, sizes = _list(repo, revision, token)
        patterns = None if whole or PIPELINE in sizes else _literal(_wanted(repo, sizes))
        # By the revision that was asked for, so that it is found again with the hub switched off.
        root = Path(
            snapshot_download(repo, revision=revision, cache_dir=cache_dir, token=token, allow_patterns=patterns)
        )
    return Located(root, repo, revision, root.name)


def peek(
    model: str, *, revision: str | None, token: str | None, cache_dir: Path | None = None
) -> tuple[Located, Checkpoint] | None:
    """Read the headers of a hub repository's safetensors by range requests, downloading no weights.

    Returns:
        Where the model is, its folder being a name only, and what it holds; None for a local folder, or a repository
        that can only be read once it is here: one of pickles, or with the hub switched off.

    Raises:
        CheckpointError: As for `locate`, and for headers that lie.
        NetworkError: As for `locate`.
    """
    from huggingface_hub import constants, hf_hub_download

    if _local(model, revision) is not None or constants.HF_HUB_OFFLINE:
        return None
    repo, revision = _repository(model, revision)
    with _hub_errors(repo, revision):
        commit, sizes = _list(repo, revision, token)
        wanted = _wanted(repo, sizes)
        weights = [name for name in wanted if name.endswith(".safetensors")]
        if len(weights) == 0:
            return None
        root = Path(hf_hub_download(repo, "config.json", revision=commit, cache_dir=cache_dir, token=token)).parent
        tensors: dict[str, Stored] = {}
        for name in weights:
            found = parse_safetensors(_ranges(repo, commit, name, token), sizes[name], name)
            tensors.update({tensor.name: tensor for tensor in found})
    checkpoint = Checkpoint(
        root=root,
        config=MappingProxyType(read_object(root, "config.json")),
        format="safetensors",
        files=tuple(WeightFile(name, root / name, sizes[name], 0) for name in weights),
        tensors=MappingProxyType(tensors),
        auxiliary=auxiliary_files(wanted),
    )
    return Located(root, repo, revision, commit), checkpoint


def locate_data(dataset: str, *, token: str | None, cache_dir: Path | None = None, download: bool = True) -> Data:
    """Find a file of data, downloading it from a dataset repository of the hub where it is not cached yet.

    Args:
        dataset: Local file, or org/name[@revision][:file]. Without the name of a file, the repository's first one that
            can be read is taken, of those with "train" in their name where there are any.
        token: Hub token; None for the one huggingface_hub finds itself.
        cache_dir: Where downloads are kept; None for huggingface_hub's own place.
        download: Whether to fetch the file, and not only to look whether it is there.

    Raises:
        CheckpointError: No such repository or file, or no access.
        NetworkError: As for `locate`.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    path = _expanded(dataset)
    if _exists(path) or (path.suffix in DATA_FILES and ":" not in dataset) or path.is_absolute():
        return Data(path.name, path)
    name, _, file = dataset.partition(":")
    repo, revision = _repository(name, None, _DATASET)
    with _hub_errors(repo, revision, _DATASET):
        if constants.HF_HUB_OFFLINE:
            root = Path(
                snapshot_download(
                    repo, revision=revision, cache_dir=cache_dir, local_files_only=True, repo_type="dataset"
                )
            )
            names = [str(found.relative_to(root)) for found in root.rglob("*") if found.is_file()]
            file = _data_file(repo, names, file)
            return Data(f"{repo}@{root.name}:{file}", contained(root, file))
        info = HfApi(token=token).dataset_info(repo, revision=revision)
        file = _data_file(repo, [sibling.rfilename for sibling in info.siblings or ()], file)
        if not download:
            return Data(f"{repo}@{info.sha}:{file}", None)
        # By the revision that was asked for, so that it is found again with the hub switched off.
        found = Path(
            hf_hub_download(repo, file, repo_type="dataset", revision=revision, cache_dir=cache_dir, token=token)
        )
    commit = found.parents[len(Path(file).parts) - 1].name
    return Data(f"{repo}@{commit}:{file}", found)


def _data_file(repo: str, names: Sequence[str], wanted: str) -> str:
    """The file of data among the names of a dataset repository."""
    readable = sorted(name for name in names if name.endswith(DATA_FILES))
    if wanted != "" and (wanted not in names or not wanted.endswith(DATA_FILES)):
        listed = ", ".join(readable[:8]) if len(readable) > 0 else ", ".join(sorted(names)[:8])
        raise CheckpointError(
            f"{repo}: {wanted}", "no file of data of that name", f"one of {listed}", f"check {DATA_FLAG}"
        )
    if wanted != "":
        return wanted
    if len(readable) == 0:
        found = f"no file of data among {', '.join(sorted(names)[:8])}"
        raise CheckpointError(repo, found, f"one that ends in {', '.join(DATA_FILES)}", "choose another dataset")
    return min(
        readable,
        key=lambda name: ("train" not in name, next(i for i, end in enumerate(DATA_FILES) if name.endswith(end)), name),
    )


def _local(model: str, revision: str | None) -> Located | None:
    folder = _expanded(model)
    if not _exists(folder):
        return None
    if revision is not None:
        raise CheckpointError("--revision", f"{revision}, with the local folder {model}", "a hub id", "drop it")
    return Located(folder, folder.absolute().name if folder.name != "" else folder.resolve().name, None, None)


def _expanded(name: str) -> Path:
    """A path with the user's folder for ~; as it is for a user that there is none of."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; none has a name that the file system does not take."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _repository(model: str, revision: str | None, asked: _Asked = _MODEL) -> tuple[str, str | None]:
    """Repository and revision of a hub id."""
    if _HUB_ID.fullmatch(model) is None or model.startswith(".") or ".." in model or "--" in model:
        expected = f"a local {asked.local} or a hub id like org/name"
        raise CheckpointError(model, f"no such {asked.local}", expected, f"check {asked.flag}")
    repo, _, inline = model.partition("@")
    if inline != "" and revision is not None and inline != revision:
        raise CheckpointError("--revision", f"{revision}, and {inline} in {model}", "one revision", "drop --revision")
    return repo, inline if inline != "" else revision


def _list(repo: str, revision: str | None, token: str | None) -> tuple[str, dict[str, int]]:
    """The commit a revision stands for, and its files with their bytes."""
    from huggingface_hub import HfApi

    info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    return str(info.sha), sizes


def _wanted(repo: str, sizes: Mapping[str, int]) -> list[str]:
    wanted = wanted_files(list(sizes))
    if len(wanted) == 0:
        names = ", ".join(list(sizes)[:8])
        raise CheckpointError(repo, f"no weights among {names}", f"one of {', '.join(WEIGHT_FILES)}", "check --model")
    return wanted


def _ranges(repo: str, commit: str, name: str, token: str | None) -> Callable[[int, int], bytes]:
    """A reader of byte ranges of one file on the hub."""
    from huggingface_hub import hf_hub_url, utils

    http: Any = utils  # re-exports its session and its error check without declaring so
    url = hf_hub_url(repo, name, revision=commit)

    def read(offset: int, length: int) -> bytes:
        headers = http.build_hf_headers(token=token) | {"Range": f"bytes={offset}-{offset + length - 1}"}
        response = http.get_session().get(url, headers=headers, timeout=30)
        if response.status_code == 416:
            return b""  # `offset` is past the end of the file
        http.hf_raise_for_status(response)
        if response.status_code != 206:
            raise NetworkError(f"{repo}: {name}", "the hub sent the whole file for a range of it", "", _NO_RANGES)
        return bytes(response.content[:length])

    return read


def wanted_files(names: Sequence[str]) -> list[str]:
    """The files of a repository that a conversion needs: config, tokenizer, code, and one format of weights."""
    top = [name for name in names if "/" not in name]
    weights = _weights(top)
    if len(weights) == 0:
        return []
    auxiliary = [
        name
        for name in top
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in AUXILIARY) and not name.endswith(".index.json")
    ]
    return sorted({*weights, *auxiliary})


def _weights(top: Sequence[str]) -> list[str]:
    """The best format of weights among the names of a repository: Hugging Face's, or else Meta's."""
    best = next((name for name in WEIGHT_FILES if name in top), None)
    if best is None:
        meta = [name for name in top if fnmatch.fnmatchcase(name, "consolidated.*.pth")]
        return meta if "params.json" in top else []
    stem, ending = best.removesuffix(".index.json").rsplit(".", 1)
    shards = [name for name in top if fnmatch.fnmatchcase(name, f"{stem}-*-of-*.{ending}")]
    return [best, *shards] if best.endswith(".index.json") else [best]


def _literal(names: Sequence[str]) -> list[str]:
    """Names as patterns that match nothing else."""
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in names]


@contextmanager
def _hub_errors(repo: str, revision: str | None, asked: _Asked = _MODEL) -> Iterator[None]:
    from huggingface_hub import constants, errors

    retry = (
        f"no {asked.local} of this name is here; if it is a {asked.local}, check {asked.flag}, or write ./NAME; "
        "if it is a hub id, run the same command again: what was downloaded is kept"
    )
    subject = repo if revision is None else f"{repo}@{revision}"
    try:
        yield
    except errors.HFValidationError as error:
        raise CheckpointError(subject, "not a hub id", "one like org/name", f"check {asked.flag}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            subject, "a gated repository", "access", "accept its terms on the hub, then pass --token or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(subject, "no such revision", "a branch, tag or commit", _REVISIONS[asked.flag]) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            subject,
            "no such repository, or a private one",
            f"a local {asked.local} or a hub id like org/name",
            f"check {asked.flag}; for a private repository pass --token or set HF_TOKEN",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        # Before HfHubHTTPError, which LocalEntryNotFoundError was until huggingface_hub 1.0.
        hint = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else retry
        raise NetworkError(subject, "the hub cannot be reached, and the files are not cached", "", hint) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        if status in (401, 403):
            raise CheckpointError(
                subject, f"the hub refused access with status {status}", "access", "check --token or HF_TOKEN"
            ) from error
        raise NetworkError(subject, f"the hub answered with status {status}", "", retry) from error
    except OSError as error:
        # requests' and httpx's failures are OSErrors or have an __cause__ that is; a full disk is one as well.
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise NetworkError(subject, f"the connection failed ({type(error).__name__})", "", retry) from error


_REVISIONS: Mapping[str, str] = MappingProxyType(
    {_MODEL.flag: "check --revision", _DATASET.flag: f"check what follows the @ of {DATA_FLAG}"}
)
_NO_RANGES = "a proxy may drop the Range header: leave out --dry-run, or download the model and pass its folder"
