"""The compile cache: graphs that were compiled before, in the layout of Neuron's own persistent cache.

    <root>/neuronxcc-<version>/MODULE_<key>+<flags>/
        model.hlo_module.pb     the graph
        compile_flags.json      the flags, a JSON list
        model.neff              the executable
        model.done              empty; there once the others are whole

The key is the first 20 digits of sha256(graph + flags), the second part the first 8 of md5(compile_flags.json), as the
vendor's libraries have them. They hash what *they* lower, with the flags as they spell them, so they find none of our
entries and we none of theirs: the layout is shared, not the entries.

An entry is used only when its graph and flags are those asked for byte for byte, and the NEFF's own hash and compiler
version hold; anything else is as if it were not there. A failure (the vendor's `model.log`) is never remembered.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:about-neuron/arch/neuron-features/neuron-caching.rst (names of folders);
huggingface/optimum-neuron@0ea1b657:optimum/neuron/cache/canonicalization.py (both hashes).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcompile.errors import OptionsError, ToolchainError
from llmcompile.exporters.neuron.neff import Neff, check_neff
from llmcompile.writing import output_errors

HLO, FLAGS, NEFF, DONE = "model.hlo_module.pb", "compile_flags.json", "model.neff", "model.done"
_URLS = ("s3:/", "http:/", "https:/", "gs:/")
"""How a URL begins once it went through `Path`."""


def module_name(hlo: bytes, flags: Sequence[str]) -> str:
    """Name of an entry's folder.

    Args:
        hlo: The serialized HloModuleProto.
        flags: What decides the NEFF besides it: no paths.
    """
    key = hashlib.sha256(hlo + "".join(flags).encode()).hexdigest()[:20]
    return f"MODULE_{key}+{hashlib.md5(_listed(flags), usedforsecurity=False).hexdigest()[:8]}"


def compiled_name(hlo: bytes) -> str:
    """Name of a graph's NEFF in the compiled/ folder of transformers-neuronx and what was built on it.

    Source: aws-neuron/transformers-neuronx, hash_hlo and NeuronBaseSerializer.save_compiler_artifacts.
    """
    return f"{hashlib.sha256(hlo).hexdigest()[:20]}.neff"


def _listed(flags: Sequence[str]) -> bytes:
    return json.dumps(list(flags)).encode()


@dataclass(frozen=True)
class Entry:
    """A compiled graph.

    Attributes:
        hlo: The serialized HloModuleProto.
        flags: What it was compiled with, less paths.
        neff: The executable.
    """

    hlo: bytes
    flags: tuple[str, ...]
    neff: Path


def dump(folder: Path, version: str, entries: Iterable[Entry]) -> tuple[Path, ...]:
    """Write a cache of some entries and no others, for an artifact.

    Args:
        folder: What will hold neuronxcc-<version>.
        version: Of the compiler, as it says it.
        entries: In any order.

    Returns:
        The NEFFs, in the order of the entries.

    Raises:
        OutputError: The disk is full or the place cannot be written to.
    """
    made = []
    for entry in entries:
        place = _versioned(folder, version) / module_name(entry.hlo, entry.flags)
        with output_errors(place, len(entry.hlo) + entry.neff.stat().st_size):
            place.mkdir(parents=True)
            _fill(place, entry.hlo, entry.flags, entry.neff)
        made.append(place / NEFF)
    return tuple(made)


def _versioned(folder: Path, version: str) -> Path:
    return folder / f"neuronxcc-{version}"


def _fill(place: Path, hlo: bytes, flags: Sequence[str], neff: Path) -> None:
    (place / HLO).write_bytes(hlo)
    (place / FLAGS).write_bytes(_listed(flags))
    shutil.copyfile(neff, place / NEFF)
    (place / DONE).touch()


class Claim:
    """The right to compile a graph for a cache, until `release`; the kernel takes it back when its process dies.

    The lock is on a file beside the entry, which stays and holds nothing: whoever removed it could remove another's.
    """

    def __init__(self, descriptor: int | None) -> None:
        """Hold a lock; None where there can be none: the cache is read-only, or its file system knows no locks."""
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another compile; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Cache:
    """A compile cache of one version of the compiler; may be shared by processes and machines, and be read-only."""

    def __init__(self, root: Path, version: str) -> None:
        """Use a folder, which is made with the first entry.

        Args:
            root: The cache.
            version: Of the compiler, as it says it: "2.21.33363.0+82129205".

        Raises:
            OptionsError: It is a URL or a file.
        """
        if str(root).startswith(_URLS):
            found = f"{root}: a URL"
            raise OptionsError("--compile-cache", found, "a folder", "mount it, or copy it: aws s3 sync URL FOLDER")
        if root.exists() and not root.is_dir():
            raise OptionsError("--compile-cache", f"{root}: not a folder", "a folder")
        self._folder = _versioned(root, version)
        self._version = version

    def get(self, hlo: bytes, flags: Sequence[str], target: Path) -> Neff | None:
        """Copy a graph's NEFF to `target`; what is verified is the copy, so that nobody can change it in between.

        Args:
            hlo: The serialized HloModuleProto.
            flags: What decides the NEFF besides it.
            target: The file to make or replace, in a folder that exists.

        Returns:
            What the NEFF says of itself; None where there is no whole entry.
        """
        entry = self._folder / module_name(hlo, flags)
        part = target.with_name(target.name + ".part")
        try:
            if not (entry / DONE).exists() or (entry / HLO).read_bytes() != hlo:
                return None
            if (entry / FLAGS).read_bytes() != _listed(flags):
                return None
            shutil.copyfile(entry / NEFF, part)
            neff = check_neff(part, compiler_version=self._version)
            os.replace(part, target)
        except (OSError, ToolchainError):
            # Another may be replacing it; and whatever is wrong with `target`, the compiler's output will meet again.
            part.unlink(missing_ok=True)
            return None
        return neff

    def claim(self, hlo: bytes, flags: Sequence[str]) -> Claim | None:
        """Take the right to compile a graph; None while another process, or another claim of ours, has it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f".{module_name(hlo, flags)}.lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return Claim(None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return Claim(None)
        return Claim(descriptor)

    def put(self, hlo: bytes, flags: Sequence[str], neff: Path) -> str | None:
        """Add a compiled graph, in the place of a damaged entry if there is one; for who holds the claim.

        Args:
            hlo: The serialized HloModuleProto.
            flags: What decides the NEFF besides it.
            neff: The verified executable; copied.

        Returns:
            Why it was not added; None when it was. A cache that is full or read-only stops nobody.
        """
        entry = self._folder / module_name(hlo, flags)
        fresh, stale = (entry.with_name(f".{entry.name}.{word}") for word in ("new", "old"))
        try:
            for path in (fresh, stale):
                # What a killed process left: nobody else writes here while we hold the claim.
                if path.exists():
                    shutil.rmtree(path)
            fresh.mkdir(parents=True)
            _fill(fresh, hlo, flags, neff)
            if entry.exists():
                os.rename(entry, stale)
            os.rename(fresh, entry)
            shutil.rmtree(stale, ignore_errors=True)
        except OSError as error:
            return f"{error.filename or entry}: {error.strerror}"
        return None
