"""The generations of TensorRT-LLM's backend for Triton: which there are, and which a version is of."""

from __future__ import annotations

GENERATIONS: tuple[str, ...] = (
    "1.2",
    "1.1",
    "1.0",
    "0.21",
    "0.20",
    "0.19",
    "0.18",
    "0.17",
    "0.16",
    "0.15",
    "0.14",
    "0.13",
    "0.12",
    "0.11",
    "0.10",
    "0.9",
)
"""Releases of TensorRT-LLM whose backend for Triton serves engines, newest first; those before differ more."""


def has(generation: str, since: str) -> bool:
    """Whether a generation is `since` or newer."""
    return GENERATIONS.index(generation) <= GENERATIONS.index(since)


def generation_of(version: str) -> str | None:
    """The generation of a version of TensorRT-LLM: "0.17.0.post1" is of "0.17"; None for one that is not known."""
    release = ".".join(version.split(".")[:2])
    return release if release in GENERATIONS else None
