"""Text Generation Inference for Neuron, and its successor, optimum-neuron's vLLM: .env, docker-compose.yaml, the model.

An image loads what the same release of optimum-neuron made, so the release of a package is that of optimum-neuron.
Sources of the variables and of what an image demands: `neuron_env`. The files, and several containers behind nginx,
follow huggingface/optimum-neuron@213224e6:benchmark/vllm/data-parallel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError, OptionsError
from llmcompile.packaging import neuron_env
from llmcompile.packaging.neuron_env import DECODERS, IMAGES, Image, Record
from llmcompile.packaging.target import Finding, Kind, Package, Request, Serving, Target, flag, without_rtx

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact
    from llmcompile.packaging.tree import Tree

ENV, COMPOSE, NGINX = ".env", "docker-compose.yaml", "nginx.conf"
FOLDER, MOUNT = "data", "/data"
_REFERENCE = re.compile(r"[a-z0-9][a-zA-Z0-9._\-/:@]{0,254}")
_OTHERS = ("create_model.json", "serving.properties", "serve.yaml")
"""What only packages of other servers have at their root."""
_BALANCER = "nginx:1.28-alpine"


@dataclass(frozen=True, kw_only=True)
class TgiOptions:
    """What may be asked of a package for Text Generation Inference."""

    image: str | None = flag(
        None, "--image", help="Image to run; default: the one with the release of optimum-neuron that made the model."
    )
    max_batch_size: int | None = flag(
        None, "--max-batch-size", help="Sequences at once; default: those compiled for.", minimum=1
    )
    max_total_tokens: int | None = flag(
        None, "--max-total-tokens", help="Tokens of a sequence; default: those compiled for.", minimum=2
    )
    max_input_tokens: int | None = flag(
        None, "--max-input-tokens", help="Tokens of a prompt; default: half of a sequence's.", minimum=1
    )
    served_model_name: str | None = flag(
        None, "--served-model-name", help="Name in requests, from optimum-neuron 0.4.1 on; default: the model's."
    )
    port: int = flag(8080, "--port", help="Port on the host.", minimum=1)
    replicas: int = flag(1, "--replicas", help="Containers, each with its own devices, behind nginx.", minimum=1)


def plan(artifact: Artifact, options: TgiOptions, request: Request) -> Package:
    """Lay out a package.

    Raises:
        UnsupportedError: The model is no decoder, or the image would refuse it.
        OptionsError: A limit contradicts what was compiled.
    """
    from llmcompile.packaging import compose, dotenv
    from llmcompile.writing import MANIFEST

    image = IMAGES[request.version]
    record = neuron_env.servable(artifact, image, request.runtime_version)
    if options.port > 65535:
        raise OptionsError("--port", str(options.port), "at most 65535", "choose another port")
    if options.image is not None and _REFERENCE.fullmatch(options.image) is None:
        raise OptionsError("--image", repr(options.image), "a reference like registry/name:tag", "check the name")
    limits = neuron_env.Limits(
        batch=options.max_batch_size, sequence=options.max_total_tokens, input=options.max_input_tokens
    )
    named = options.served_model_name
    if named is None and neuron_env.TABLE["name"][image.column] != ():
        named = served_name(artifact.model)
    variables = neuron_env.environment(record, image, limits, model=MOUNT, name=named, task=artifact.task)
    reference = image.docker if options.image is None else options.image
    texts = {ENV: dotenv.write(variables), COMPOSE: compose.write(_services(image, record, reference, options))}
    if options.replicas > 1:
        texts[NGINX] = _nginx(image, options.replicas)
    return Package(
        texts=texts,
        links={f"{FOLDER}/{path}": path for path in artifact.tree.files if path != MANIFEST},
        runtime=image.compiler if request.runtime_version is None else request.runtime_version,
        notes=_notes(image, record, options),
        next=("cd {output} && docker compose up", _question(image, options.port)),
    )


def served_name(model: str) -> str:
    """A name for requests: the last part of a hub id or folder."""
    return re.sub(r"[^A-Za-z0-9._\-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-") or "model"


def _services(image: Image, record: Record, reference: str, options: TgiOptions) -> dict[str, dict[str, Any]]:
    assert record.cores is not None
    devices = neuron_env.devices_for(record.cores, record.target)
    word = "vllm" if image.vllm else "tgi"
    made: dict[str, dict[str, Any]] = {}
    for replica in range(options.replicas):
        name = word if options.replicas == 1 else f"{word}-{replica + 1}"
        made[name] = {
            "image": reference,
            "env_file": [ENV],
            **({"ports": [f"{options.port}:{image.port}"]} if options.replicas == 1 else {}),
            "devices": [f"/dev/neuron{replica * devices + number}" for number in range(devices)],
            "volumes": [f"./{FOLDER}:{MOUNT}"],
        }
    if options.replicas > 1:
        made["loadbalancer"] = {
            "image": _BALANCER,
            "ports": [f"{options.port}:80"],
            "volumes": [f"./{NGINX}:/etc/nginx/nginx.conf:ro"],
            "depends_on": [*made],
        }
    return made


def _nginx(image: Image, replicas: int) -> str:
    """nginx.conf: the least busy replica; answers are passed on as they come, since they are streamed."""
    word = "vllm" if image.vllm else "tgi"
    servers = "".join(f"        server {word}-{number}:{image.port};\n" for number in range(1, replicas + 1))
    return (
        "events {}\nhttp {\n    upstream replicas {\n        least_conn;\n"
        f"{servers}    }}\n    server {{\n        listen 80;\n        location / {{\n"
        "            proxy_pass http://replicas;\n            proxy_http_version 1.1;\n"
        "            proxy_buffering off;\n            proxy_read_timeout 600s;\n        }\n    }\n}\n"
    )


def _notes(image: Image, record: Record, options: TgiOptions) -> tuple[str, ...]:
    notes = [neuron_env.fetched(record)]
    if not image.vllm:
        notes.append("the image skips its own checks, since every variable is set; the lint makes them")
    if options.image is not None:
        notes.append(f"checked for the image with optimum-neuron {image.release}; {options.image} was not seen")
    if options.replicas > 1:
        notes.append(f"{options.replicas} containers with devices of their own, in the order of their numbers")
    return tuple(notes)


def _question(image: Image, port: int) -> str:
    if image.vllm:
        return f"curl http://localhost:{port}/v1/models"
    return f"curl http://localhost:{port}/info"


RULES: Mapping[str, str] = MappingProxyType(
    {
        "dotenv": "Every line of .env is one that docker and docker compose read alike.",
        "compose": "docker-compose.yaml has a container with an image, .env and the model's folder.",
        **neuron_env.RULES,
        "devices": neuron_env.DEVICES,
        "ports": "A port leads to where the image listens.",
        "replicas": "nginx knows every container, and no other.",
    }
)


def detect(tree: Tree) -> bool:
    """Whether an image in docker-compose.yaml, or a .env, with it or alone, is for one of these."""
    from llmcompile.packaging import compose, dotenv

    file = compose.find(tree)
    if not tree.files.keys().isdisjoint(_OTHERS):
        return False
    try:
        text = "" if file is None else tree.text(file)
        env = tree.text(ENV) if ENV in tree.files else ""
    except CheckpointError:
        return False
    facts = {neuron_env.known(name) for name in dotenv.compose_pairs(env)} - {None}
    if file is None:
        return "model" in facts
    if facts != set() or (ENV in tree.files and "neuron" in text):
        return True
    try:
        services = compose.read(text, dotenv.compose_pairs(env))
    except ValueError:
        return False
    return any(neuron_env.serves_neuron(service.image or "") for service in services)


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """Every rule's findings."""
    from llmcompile.packaging import tgi_rules

    return tgi_rules.lint(tree, serving)


_GPU = (
    "docker run --gpus all -p 8080:80 -v $PWD:/data ghcr.io/huggingface/text-generation-inference:3.3.7 "
    "--model-id /data"
)
_OTHER = "llmcompile export neuron --model MODEL --via optimum OUTPUT"
REFUSALS: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        "ft": (
            "it does not read FasterTransformer's files",
            "llmcompile package triton, or llmcompile package lmi",
        ),
        "trtllm-engine": (
            "its images for TensorRT-LLM build their engine themselves",
            "llmcompile package triton, or llmcompile package lmi",
        ),
        "trtllm-checkpoint": (
            "it is not an engine, and these images load none",
            "llmcompile build trtllm --from-checkpoint ARTIFACT ENGINE, then llmcompile package triton",
        ),
        "neuron-sdk-2.16": (
            "transformers-neuronx looks for NEFFs by the hash of the HLO that it lowers itself, and stops where one is "
            "missing; these are of other graphs",
            f"{_OTHER}; or llmcompile package lmi, which compiles it again when it starts",
        ),
        "neuron-lmi-split": ("the layout is LMI's", "llmcompile package lmi"),
        "neuron-lmi-cache": ("the layout is LMI's", "llmcompile package lmi"),
        "neuron-nxd": ("optimum-neuron does not load the layout nxd", _OTHER),
        "neuron-lowered": (
            "it is not compiled",
            "llmcompile export neuron --from-lowered ARTIFACT COMPILED; for this server: " + _OTHER,
        ),
        "hf": ("the images for Neuron would compile it when they start; those for GPUs take the folder as it is", _GPU),
        **without_rtx("its images for Neuron run compiled graphs, those for GPUs checkpoints"),
    }
)

TARGET = Target(
    name="tgi",
    title="Text Generation Inference",
    help="Package a Neuron decoder for Text Generation Inference or optimum-neuron's vLLM: .env, docker-compose.yaml.",
    options=TgiOptions,
    releases=tuple(IMAGES),
    version_flag=None,
    serves={"neuron-optimum": DECODERS},
    refusals=REFUSALS,
    plan=plan,
    rules=RULES,
    detect=detect,
    lint=lint,
    prefer=neuron_env.prefer,
)
