"""The lint of what images of Hugging Face serve: their variables, beside the model that they are to load.

Sources of what is demanded: `neuron_env`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from llmcompile.packaging.documents import json_object, packaged
from llmcompile.packaging.neuron_env import (
    DTYPES,
    FIXES,
    HUB_ID,
    PREFIX,
    REFERENCES,
    SAGEMAKER,
    SECRET_VALUES,
    SECRETS,
    TABLE,
    Fact,
    Image,
    Record,
    devices_for,
    known,
    read_record,
    same_version,
    text_of,
)
from llmcompile.packaging.target import Finding, Serving
from llmcompile.writing import MANIFEST

if TYPE_CHECKING:
    from llmcompile.packaging.compose import Service
    from llmcompile.packaging.tree import Tree

_VERSION = "--target-version V says which image"
_SHELL = "a shell may set it; set it in .env to have it checked"


@dataclass(frozen=True)
class Served:
    """What the rules look at.

    Attributes:
        where: Name of the file with the variables.
        variables: As the image will see them.
        tree: The model's folder.
        folder: Its name in the package.
        mount: Its path in the container.
        image: Where it is known.
        runtime: Version of neuronx-cc, where the user said so.
        record: What the model was compiled for, where its files say so.
        release: Of optimum-neuron, as the package's manifest says; None where it does not.
        sagemaker: Whether SageMaker's script starts the image.
        away: Where the model is, where it is not in the package and need not be; else None.
    """

    where: str
    variables: Mapping[str, str]
    tree: Tree
    folder: str
    mount: str
    image: Image | None
    runtime: str | None
    record: Record | None
    release: str | None
    sagemaker: bool
    away: str | None = None

    def names(self, fact: Fact) -> tuple[str, ...]:
        """The variables of a fact; of every generation where the image is not known."""
        if self.image is not None:
            return self.image.names(fact, sagemaker=self.sagemaker)
        every = [name for names in TABLE[fact].values() for name in names]
        return tuple(dict.fromkeys([*every, *(name for name, said in SAGEMAKER.items() if said == fact)]))


def served(
    where: str,
    variables: Mapping[str, str],
    tree: Tree,
    *,
    folder: str,
    mount: str,
    image: Image | None,
    runtime: str | None,
    sagemaker: bool = False,
    away: str | None = None,
) -> Served:
    """Gather what the rules look at from a package."""
    inner = tree if folder in ("", ".") else tree.under(folder)
    manifest = json_object(tree, MANIFEST)
    artifact = None if manifest is None else manifest.get("artifact")
    versions = artifact.get("versions") if isinstance(artifact, dict) else None
    release = text_of(versions.get("optimum-neuron")) if isinstance(versions, dict) else None
    record = read_record(inner)
    look = Served(where, variables, inner, folder, mount, image, runtime, record, release, sagemaker, away)
    if hub(look) is not None:
        return replace(look, record=None, away=f"{hub(look)} on the hub")
    return look


def hub(look: Served) -> str | None:
    """The model's hub id, where its variable is one."""
    said = value(look, "model")
    return said[1] if said is not None and HUB_ID.fullmatch(said[1]) is not None else None


def packaged_version(tree: Tree) -> str | None:
    """The release a package was made for, as its manifest says."""
    return text_of(packaged(tree).get("version"))


def packaged_runtime(tree: Tree, serving: Serving) -> str | None:
    """The runtime's version: as it was said, else as the manifest says for the same release."""
    package = packaged(tree)
    if serving.runtime_version is not None or len(package) == 0:
        return serving.runtime_version
    return text_of(package.get("runtime")) if serving.version in (None, package.get("version")) else None


def lint(look: Served) -> Iterator[Finding]:
    """At least one finding for each rule of `RULES` but "secrets"."""
    for rule, check in _CHECKS.items():
        yield from check(rule, look)


def devices(servers: Sequence[tuple[Service, Served]], file: str) -> Iterator[Finding]:
    """Findings of "devices" for the containers of `file` and what each serves."""
    wrong, counted = 0, []
    taken: dict[str, str] = {}
    for service, look in servers:
        subject = f"{file}: {service.name}"
        own = {device for device in service.devices if re.fullmatch(r"/dev/neuron\d{1,3}", device) is not None}
        cores = None if look.record is None else look.record.cores
        needed = len(own)
        if cores is not None and look.record is not None:
            needed = devices_for(cores, look.record.target)
            counted.append(f"{service.name}: {needed} for {cores} NeuronCores")
        if len(own) != needed:
            wrong += 1
            hint = f"list {needed} of /dev/neuron0, /dev/neuron1, ..."
            expected = f"{needed}, for {cores} NeuronCores"
            yield Finding("devices", "failed", subject, f"{len(own)} devices", expected, hint)
        for device in sorted(own & taken.keys()):
            wrong += 1
            found = f"{device}, which {taken[device]} has too"
            yield Finding("devices", "failed", subject, found, "a device for one container", "choose another")
        taken |= dict.fromkeys(own, service.name)
    if wrong == 0 and counted == []:
        why = "no container" if len(servers) == 0 else "the model does not say its cores"
        yield Finding("devices", "skipped", file, why)
    elif wrong == 0:
        yield Finding("devices", "ok", file, ", ".join(counted))


def secrets(files: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Findings of "secrets" for the variables of each file."""
    found = [
        (where, name)
        for where, variables in files.items()
        for name, value in variables.items()
        if (SECRETS.search(name) is not None and value != "" and REFERENCES.fullmatch(value) is None)
        or SECRET_VALUES.search(value) is not None
    ]
    for where, name in found:
        hint = f"take {name} out, and pass it when the container starts: docker run -e {name}, or a secret's store"
        yield Finding("secrets", "failed", f"{where}: {name}", "a value", "none: the file is copied and shown", hint)
    if found == []:
        yield Finding("secrets", "ok", ", ".join(files), "no token and no key")


def value(look: Served, fact: Fact) -> tuple[str, str] | None:
    """The first variable of a fact that is set, and its value."""
    return next(((name, look.variables[name]) for name in look.names(fact) if name in look.variables), None)


def _variables(rule: str, look: Served) -> Iterator[Finding]:
    if look.image is None:
        yield Finding(rule, "skipped", look.where, "the image is not known", "", _VERSION)
        return
    wrong = 0
    for name in look.variables:
        fact = known(name)
        if fact is None:
            if not name.startswith(PREFIX) or not look.image.vllm or name in look.image.arguments:
                pass
            elif look.image.strict:
                wrong += 1
                found = f"an argument that optimum-cli neuron serve of {look.image.release} does not take"
                yield Finding(rule, "failed", f"{look.where}: {name}", found, "", "take it out, or use 0.4.2 or later")
            else:
                yield Finding(rule, "note", f"{look.where}: {name}", "goes to vLLM as it is", "an argument of vLLM")
            continue
        taken = look.names(fact)
        if name in taken or (name in SAGEMAKER and look.sagemaker and look.image.model_variable in SAGEMAKER):
            continue
        wrong += 1
        successor = " and ".join(taken)
        found = f"not read by the image with optimum-neuron {look.image.release}"
        hint = f"rename it to {successor}" if successor != "" else "take it out"
        yield Finding(rule, "failed", f"{look.where}: {name}", found, successor, hint)
    derives = look.image.derives(sagemaker=look.sagemaker)
    needed: tuple[Fact, ...] = ("model",) if derives else ("model", "batch", "sequence")
    for name in (name for fact in needed for name in look.names(fact) if name not in look.variables):
        wrong += 1
        yield Finding(rule, "failed", look.where, f"no {name}", f"{name}=...", f"add {name}")
    if wrong == 0:
        names = ", ".join(name for name in look.variables if known(name) is not None)
        yield Finding(rule, "ok", look.where, names)


def _model(rule: str, look: Served) -> Iterator[Finding]:
    said = value(look, "model")
    if said is None:
        yield Finding(rule, "failed", look.where, "no variable of the model", "", "see the rule variables")
        return
    name, path = said
    if hub(look) is not None:
        expected = f"{look.mount}: a model that was compiled ahead of time"
        hint = "package an export, or see that the hub's cache has it compiled for this image"
        yield Finding(rule, "note", f"{look.where}: {name}", f"{path}, fetched from the hub", expected, hint)
        return
    if REFERENCES.fullmatch(path) is not None:
        yield Finding(rule, "skipped", f"{look.where}: {name}", path, "", _SHELL)
        return
    fits = path.rstrip("/") == look.mount
    expected = f"{look.mount}, where {look.folder}/ is mounted"
    hint = "" if fits else f"{name}={look.mount}"
    yield Finding(rule, "ok" if fits else "failed", f"{look.where}: {name}", path, expected, hint)


def _files(rule: str, look: Served) -> Iterator[Finding]:
    record, files = look.record, look.tree.files
    if record is None and look.away is not None:
        yield Finding(rule, "skipped", look.folder, f"not in the package: {look.away}")
        return
    if record is None:
        found = "neither neuron_config.json nor a section neuron in config.json"
        yield Finding(rule, "failed", look.folder, found, "a Neuron export", FIXES.format(release="of the image"))
        return
    if record.kind == "encoder":
        yield Finding(rule, "failed", f"{look.folder}/config.json", "an encoder", "a decoder", "serve it otherwise")
        return
    if look.image is not None and record.kind != look.image.layout:
        words = {"split": "a split checkpoint with NEFFs", "traced": "neuron_config.json and model.pt"}
        yield Finding(
            rule,
            "failed",
            look.folder,
            words[record.kind],
            words[look.image.layout],
            FIXES.format(release=look.image.release),
        )
        return
    missing = list(_missing(record, look.tree))
    for path, why in missing:
        yield Finding(rule, "failed", f"{look.folder}/{path}", "no such file", why, "copy the artifact again")
    if record.kind == "split" and look.tree.matching("graphs/*.hlo.pb") != ():
        yield Finding(
            rule,
            "failed",
            f"{look.folder}/compiled",
            "NEFFs of other graphs than transformers-neuronx makes",
            "NEFFs named by the hash of its own graphs; it stops at one it does not find",
            FIXES.format(release="0.3.0 or later"),
        )
        return
    if missing == []:
        yield Finding(rule, "ok", look.folder, f"{len(files)} files, {record.cores} ranks")


TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _missing(record: Record, tree: Tree) -> Iterator[tuple[str, str]]:
    if "config.json" not in tree.files:
        yield "config.json", "the model's configuration"
    if all(name not in tree.files for name in TOKENIZERS):
        yield "tokenizer.json", "a tokenizer beside the model"
    if record.kind == "traced":
        if "model.pt" not in tree.files:
            yield "model.pt", "the compiled graphs"
        for rank in range(min(record.cores or 0, 1024)) if record.weights is None else ():
            path = f"checkpoint/weights/tp{rank}_sharded_checkpoint.safetensors"
            if path not in tree.files:
                yield path, f"the weights of rank {rank} of {record.cores}"
    else:
        if tree.matching("compiled/*.neff") == ():
            yield "compiled/*.neff", "the compiled graphs"
        if record.weights is None and tree.matching("checkpoint/*") == ():
            yield "checkpoint", "the weights"


def _release(rule: str, look: Served) -> Iterator[Finding]:
    record, image = look.record, look.image
    if image is None or record is None:
        why = "the image is not known" if image is None else "the model does not say what made it"
        yield Finding(rule, "skipped", look.folder, why, "", _VERSION)
        return
    if record.kind != "traced":
        yield Finding(rule, "ok", f"{look.folder}/{record.path}", "transformers-neuronx: any release", "")
        return
    subject = f"{look.folder}/{record.path}: optimum_neuron_version"
    made = look.release if record.release is None else record.release
    if record.release is None:
        found = "missing" if made is None else f"missing; the manifest says {made}"
        yield Finding(rule, "failed", subject, found, image.release, FIXES.format(release=image.release))
        return
    fits = record.release == image.release
    hint = "" if fits else f"use the image with optimum-neuron {made}, or export again with {image.release}"
    yield Finding(rule, "ok" if fits else "failed", subject, record.release, image.release, hint)


def _compiler(rule: str, look: Served) -> Iterator[Finding]:
    record, image = look.record, look.image
    has = look.runtime if look.runtime is not None else None if image is None else image.compiler
    if has is None or record is None or record.compiler is None:
        why = "the image is not known" if has is None else "the model does not say which compiled it"
        yield Finding(rule, "skipped", look.folder, why, "", "--runtime-version V says which neuronx-cc the image has")
        return
    subject = f"{look.folder}/{record.path}"
    fits = same_version(record.compiler, has)
    if not fits and record.kind == "split" and _numbers(record.compiler) < _numbers(has):
        yield Finding(rule, "note", subject, record.compiler, f"{has}, or older: it loads", "look at its first answers")
        return
    hint = "" if fits else f"export again with neuronx-cc {has}, or choose an image with {record.compiler}"
    yield Finding(rule, "ok" if fits else "failed", subject, record.compiler, has, hint)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version.partition("+")[0]))


def _compiled(
    fact: Fact, compiled: Callable[[Record], int | None], what: str
) -> Callable[[str, Served], Iterator[Finding]]:
    def check(rule: str, look: Served) -> Iterator[Finding]:
        said = [(name, look.variables[name]) for name in look.names(fact) if name in look.variables]
        limit = None if look.record is None else compiled(look.record)
        if said == []:
            derived = look.image is not None and look.image.derives(sagemaker=look.sagemaker)
            found = f"not set: the image takes the model's {what}" if derived else "not set"
            yield Finding(rule, "ok" if derived else "skipped", look.where, found, "", "" if derived else _VERSION)
            return
        if limit is None:
            yield Finding(rule, "skipped", look.where, f"the model does not say its {what}", "", "see the rule files")
            return
        for name, text in said:
            yield _bounded(rule, f"{look.where}: {name}", text, limit, look, exact=fact == "cores")

    return check


def _bounded(rule: str, subject: str, text: str, limit: int, look: Served, *, exact: bool) -> Finding:
    if REFERENCES.fullmatch(text) is not None:
        return Finding(rule, "skipped", subject, text, f"{limit}, compiled", _SHELL)
    if re.fullmatch(r"[0-9]{1,18}", text) is None or int(text) == 0:
        return Finding(rule, "failed", subject, text, "a whole number", f"{limit} was compiled")
    number, equal = int(text), exact or look.image is None or look.image.equal
    if number == limit:
        return Finding(rule, "ok", subject, text, f"{limit}, compiled")
    if number > limit:
        return Finding(rule, "failed", subject, text, f"at most {limit}, compiled", f"lower it to {limit}")
    if equal:
        return Finding(
            rule, "failed", subject, text, f"{limit}, compiled: this image takes nothing less", f"set {limit}"
        )
    return Finding(rule, "note", subject, text, f"{limit}, compiled: the rest is never used", f"set {limit}")


def _input(rule: str, look: Served) -> Iterator[Finding]:
    if look.image is not None and look.image.vllm:
        yield Finding(rule, "ok", look.where, "vLLM has no such limit")
        return
    if "MAX_INPUT_TOKENS" in look.variables and "MAX_INPUT_LENGTH" in look.variables:
        found = "MAX_INPUT_TOKENS and MAX_INPUT_LENGTH"
        yield Finding(rule, "failed", look.where, found, "one of them: the launcher stops at both", "take one out")
        return
    longest, total = value(look, "input"), value(look, "sequence")
    if longest is None:
        found = "not set: the image takes half of a sequence"
        yield Finding(rule, "ok", look.where, found)
        return
    most = total[1] if total is not None else "" if look.record is None else str(look.record.sequence)
    if not (longest[1].isdecimal() and most.isdecimal()):
        status: Literal["failed", "skipped"] = "skipped" if most == "" else "failed"
        yield Finding(
            rule, status, f"{look.where}: {longest[0]}", longest[1], "a whole number", "see the rule sequence"
        )
        return
    fits = 0 < int(longest[1]) < int(most)
    hint = "" if fits else f"at most {int(most) - 1}"
    yield Finding(
        rule, "ok" if fits else "failed", f"{look.where}: {longest[0]}", longest[1], f"fewer than {most}", hint
    )


def _prefill(rule: str, look: Served) -> Iterator[Finding]:
    if look.image is not None and look.image.vllm:
        yield Finding(rule, "ok", look.where, "vLLM has no such limit")
        return
    tokens, longest, batch = (value(look, fact) for fact in ("prefill", "input", "batch"))
    if tokens is None:
        yield Finding(rule, "ok", look.where, "not set: the image computes it")
        return
    subject = f"{look.where}: {tokens[0]}"
    if not tokens[1].isdecimal():
        yield Finding(rule, "failed", subject, tokens[1], "a whole number", "batch size x longest prompt")
    elif longest is None or batch is None or not longest[1].isdecimal() or not batch[1].isdecimal():
        yield Finding(rule, "skipped", subject, tokens[1], "", "see the rules batch and input")
    elif int(tokens[1]) < int(longest[1]):
        expected = f"at least {longest[1]}, the longest prompt: the router stops"
        yield Finding(rule, "failed", subject, tokens[1], expected, f"set {int(longest[1]) * int(batch[1])}")
    else:
        best = int(longest[1]) * int(batch[1])
        expected = f"{batch[1]} x {longest[1]} = {best}"
        fits = int(tokens[1]) == best
        yield Finding(rule, "ok" if fits else "note", subject, tokens[1], expected, "" if fits else f"set {best}")


def _dtype(rule: str, look: Served) -> Iterator[Finding]:
    said = value(look, "dtype")
    if said is None:
        yield Finding(rule, "ok", look.where, "not set: the model's own")
        return
    subject = f"{look.where}: {said[0]}"
    old = look.image is not None and look.image.layout == "split"
    if said[1] not in DTYPES or (old and said[1] not in DTYPES.values()):
        yield Finding(rule, "failed", subject, said[1], "fp32, fp16 or bf16", "spell it so")
    elif look.record is None or look.record.dtype is None:
        yield Finding(rule, "skipped", subject, said[1], "", "the model does not say its element type")
    else:
        fits = DTYPES[said[1]] == look.record.dtype
        hint = "" if fits else f"{said[0]}={look.record.dtype}"
        yield Finding(rule, "ok" if fits else "failed", subject, said[1], f"{look.record.dtype}, compiled", hint)


_CHECKS: Mapping[str, Callable[[str, Served], Iterator[Finding]]] = MappingProxyType(
    {
        "variables": _variables,
        "model": _model,
        "files": _files,
        "release": _release,
        "compiler": _compiler,
        "batch": _compiled("batch", lambda record: record.batch, "batch size"),
        "sequence": _compiled("sequence", lambda record: record.sequence, "sequence length"),
        "input": _input,
        "prefill": _prefill,
        "cores": _compiled("cores", lambda record: record.cores, "cores"),
        "dtype": _dtype,
    }
)
