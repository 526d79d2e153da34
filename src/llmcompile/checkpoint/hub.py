"""Where a model is: a local folder, or a repository of the Hugging Face hub; the only file that uses the network."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmcompile.checkpoint.folder import AUXILIARY, WEIGHT_FILES
from llmcompile.errors import CheckpointError, NetworkError

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?:@[\w./-]+)?")


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


def locate(model: str, *, revision: str | None, token: str | None) -> Located:
    """Find a model, downloading a hub repository's files as far as they are not cached yet.

    Args:
        model: Local folder, or org/name, or org/name@revision.
        revision: Branch, tag or commit; not beside an @revision.
        token: Hub token; None for the one huggingface_hub finds itself.

    Raises:
        CheckpointError: No such folder or repository, no weights in it, or no access.
        NetworkError: The hub cannot be reached or failed; what was downloaded is kept and continued.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        if revision is not None:
            raise CheckpointError("--revision", f"{revision}, with the local folder {model}", "a hub id", "drop it")
        return Located(folder, folder.absolute().name if folder.name != "" else folder.resolve().name, None, None)
    if _HUB_ID.fullmatch(model) is None or model.startswith("."):
        raise CheckpointError(model, "no such folder", "a local folder or a hub id like org/name", "check --model")
    repo, _, inline = model.partition("@")
    if inline != "" and revision is not None and inline != revision:
        raise CheckpointError("--revision", f"{revision}, and {inline} in {model}", "one revision", "drop --revision")
    return _download(repo, inline if inline != "" else revision, token)


def _download(repo: str, revision: str | None, token: str | None) -> Located:
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(repo, revision):
        info = HfApi(token=token).model_info(repo, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        wanted = wanted_files(names)
        if len(wanted) == 0:
            raise CheckpointError(
                repo, f"no weights among {', '.join(names[:8])}", f"one of {', '.join(WEIGHT_FILES)}", "check --model"
            )
        root = snapshot_download(repo, revision=info.sha, token=token, allow_patterns=_literal(wanted))
    return Located(Path(root), repo, revision, info.sha)


def wanted_files(names: Sequence[str]) -> list[str]:
    """The files of a repository that a conversion needs: config, tokenizer, code, and one format of weights."""
    top = [name for name in names if "/" not in name]
    best = next((name for name in WEIGHT_FILES if name in top), None)
    if best is None:
        return []
    stem, ending = best.removesuffix(".index.json").rsplit(".", 1)
    weights = [name for name in top if fnmatch.fnmatchcase(name, f"{stem}-*-of-*.{ending}")]
    weights = [best, *weights] if best.endswith(".index.json") else [best]
    auxiliary = [
        name
        for name in top
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in AUXILIARY) and not name.endswith(".index.json")
    ]
    return sorted({*weights, *auxiliary})


def _literal(names: Sequence[str]) -> list[str]:
    """Names as patterns that match nothing else."""
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in names]


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    subject = repo if revision is None else f"{repo}@{revision}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            subject, "a gated repository", "access", "accept its terms on the hub, then pass --token or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(subject, "no such revision", "a branch, tag or commit", "check --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            subject,
            "no such repository, or a private one",
            "a local folder or a hub id like org/name",
            "check --model; for a private repository pass --token or set HF_TOKEN",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise NetworkError(subject, f"the hub answered with status {status}", "", _RETRY) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise NetworkError(subject, "the hub cannot be reached, and the files are not cached", "", _RETRY) from error
    except OSError as error:
        # requests' and httpx's failures are OSErrors or have an __cause__ that is; a full disk is one as well.
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise NetworkError(subject, f"the connection failed ({type(error).__name__})", "", _RETRY) from error


_RETRY = "run the same command again: what was downloaded is kept"
