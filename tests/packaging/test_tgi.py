"""Packages for Text Generation Inference and optimum-neuron's vLLM: their files, their refusals, each rule broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import serving_artifacts
from llmcompile.errors import CheckpointError, OptionsError, UnsupportedError
from llmcompile.packaging import neuron_env
from llmcompile.packaging.artifact import Artifact, open_artifact
from llmcompile.packaging.neuron_env import IMAGES, TABLE
from llmcompile.packaging.target import KINDS, Finding, Request, Serving
from llmcompile.packaging.tgi import TARGET, TgiOptions
from llmcompile.packaging.tree import planned
from trees import tree_of

if TYPE_CHECKING:
    from conftest import Run

Files = dict[str, bytes]
VLLM, TGI, OLD = "0.4.5", "0.3.0", "0.0.24"
CONFIG = "data/neuron_config.json"
OURS = b'{"package": {"version": "0.3.0"}}'


@pytest.fixture(scope="session")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of optimum-neuron 0.4.5 for two NeuronCores: batch 2, 16 tokens, bf16."""
    return serving_artifacts.make("neuron-optimum", tmp_path_factory.mktemp("tgi"), run)


@pytest.fixture(scope="session")
def artifact(built: Path) -> Artifact:
    """The same, opened."""
    return open_artifact(built)


def of_release(artifact: Artifact, release: str, **changed: Any) -> Artifact:
    """The artifact as another release of optimum-neuron would have made it."""
    record = json.loads(artifact.tree.read("neuron_config.json"))
    record |= {"optimum_neuron_version": release, "neuronxcc_version": IMAGES[release].compiler, **changed}
    files = {path: artifact.tree.read(path) for path in artifact.tree.files}
    return replace(artifact, tree=tree_of(files | {"neuron_config.json": json.dumps(record).encode()}))


def package(artifact: Artifact, options: TgiOptions | None = None, release: str = VLLM) -> Files:
    """The files of a package."""
    made = TARGET.plan(artifact, TgiOptions() if options is None else options, Request(release))
    links = {path: artifact.tree.read(source) for path, source in made.links.items()}
    return {path: text.encode() for path, text in made.texts.items()} | links


def findings(files: Files, release: str | None = VLLM, runtime: str | None = None) -> list[Finding]:
    """What the lint says."""
    return list(TARGET.lint(tree_of(files), Serving(release, runtime)))


def failed(files: Files, release: str | None = VLLM, runtime: str | None = None) -> set[str]:
    """Rules that failed."""
    return {found.rule for found in findings(files, release, runtime) if found.status == "failed"}


def variables(files: Files) -> dict[str, str]:
    """Name -> value of .env, read here."""
    lines = files[".env"].decode().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_release_is_that_of_the_artifact(artifact: Artifact) -> None:
    """Nothing is asked for, and the image with the same optimum-neuron is chosen."""
    assert TARGET.choose("neuron-optimum", None, of_release(artifact, "0.4.2")) == "0.4.2"


def test_the_vllm_image_is_told_what_was_compiled(artifact: Artifact) -> None:
    """Each variable that the start script makes an argument of."""
    assert package(artifact)[".env"].decode() == (
        "SM_ON_MODEL=/data\n"
        "SM_ON_SERVED_MODEL_NAME=org--tiny-llama\n"
        "SM_ON_BATCH_SIZE=2\n"
        "SM_ON_SEQUENCE_LENGTH=16\n"
        "SM_ON_TENSOR_PARALLEL_SIZE=2\n"
    )


def test_text_generation_inference_is_told_everything(artifact: Artifact) -> None:
    """The variables of its generation; half of a sequence may be the prompt."""
    files = package(of_release(artifact, TGI), release=TGI)

    assert files[".env"].decode() == (
        "MODEL_ID=/data\n"
        "MAX_BATCH_SIZE=2\n"
        "MAX_TOTAL_TOKENS=16\n"
        "MAX_INPUT_TOKENS=8\n"
        "MAX_BATCH_PREFILL_TOKENS=16\n"
        "HF_NUM_CORES=2\n"
        "HF_AUTO_CAST_TYPE=bf16\n"
    )


def test_the_container_has_the_model_and_a_device_for_two_cores(artifact: Artifact) -> None:
    """docker-compose.yaml is what one would write by hand."""
    content = yaml.safe_load(package(of_release(artifact, TGI), release=TGI)["docker-compose.yaml"])

    assert content == {
        "services": {
            "tgi": {
                "image": "ghcr.io/huggingface/text-generation-inference:3.3.7-neuron",
                "env_file": [".env"],
                "ports": ["8080:80"],
                "devices": ["/dev/neuron0"],
                "volumes": ["./data:/data"],
            }
        }
    }


def test_five_cores_take_three_devices(artifact: Artifact) -> None:
    """Two NeuronCores are on a device, and the last is half used."""
    five = of_release(artifact, VLLM, tp_degree=5, checkpoint_id="org/model")

    content = yaml.safe_load(package(five)["docker-compose.yaml"])

    assert content["services"]["vllm"]["devices"] == ["/dev/neuron0", "/dev/neuron1", "/dev/neuron2"]


def test_32_cores_of_trainium2_take_eight_devices(artifact: Artifact) -> None:
    """Four of them are on a device, as in optimum-neuron's own example of LLaMA 70B."""
    many = of_release(artifact, VLLM, tp_degree=32, target="trn2", checkpoint_id="org/model")

    files = package(many)

    assert len(yaml.safe_load(files["docker-compose.yaml"])["services"]["vllm"]["devices"]) == 8
    assert failed(files) == set()


def test_an_embedding_decoder_is_served_by_the_release_that_can(artifact: Artifact) -> None:
    """optimum-cli neuron serve has --task from 0.4.5 on."""
    embeds = replace(artifact, task="feature-extraction")

    assert variables(package(embeds))["SM_ON_TASK"] == "embed"
    assert failed(package(embeds)) == set()
    with pytest.raises(UnsupportedError, match="a decoder for feature-extraction"):
        package(of_release(embeds, "0.4.4"), release="0.4.4")


def test_weights_that_are_on_the_hub_are_noted(artifact: Artifact) -> None:
    """An export may have its graphs alone."""
    made = TARGET.plan(of_release(artifact, VLLM, checkpoint_id="org/model"), TgiOptions(), Request(VLLM))

    assert "fetches org/model" in made.notes[0]


def test_replicas_have_devices_of_their_own_behind_nginx(artifact: Artifact) -> None:
    """Three containers, each reached by its name alone."""
    files = package(artifact, TgiOptions(replicas=3, port=9000))
    services = yaml.safe_load(files["docker-compose.yaml"])["services"]

    assert [services[f"vllm-{number}"]["devices"] for number in (1, 2, 3)] == [
        ["/dev/neuron0"],
        ["/dev/neuron1"],
        ["/dev/neuron2"],
    ]
    assert [name for name, service in services.items() if "ports" in service] == ["loadbalancer"]
    assert services["loadbalancer"]["ports"] == ["9000:80"]
    assert files["nginx.conf"].decode().count("server vllm-") == 3
    assert failed(files) == set()


def test_the_model_is_all_of_the_artifact(artifact: Artifact) -> None:
    """Every file but our manifest is taken over, as it is."""
    made = TARGET.plan(artifact, TgiOptions(), Request(VLLM))

    assert made.links == {f"data/{path}": path for path in artifact.tree.files if path != "llmcompile.json"}


@pytest.mark.parametrize("release", TARGET.serves["neuron-optimum"])
def test_a_package_for_every_release_lints_clean(release: str, artifact: Artifact) -> None:
    """No rule fails, and each has a finding."""
    found = findings(package(of_release(artifact, release), release=release), release)

    assert [item for item in found if item.status == "failed"] == []
    assert {item.rule for item in found} == TARGET.rules.keys()


def test_a_package_is_known_and_its_release_is_in_its_image(artifact: Artifact) -> None:
    """Without a manifest, the tag of the image says the release."""
    files = package(artifact)

    assert TARGET.detect(tree_of(files))
    assert "skipped" not in {found.status for found in findings(files, release=None)}


def test_less_than_compiled_is_taken_where_the_image_takes_it(artifact: Artifact) -> None:
    """Text Generation Inference compares with "at most" from optimum-neuron 0.2.0 on."""
    options = TgiOptions(max_batch_size=1, max_total_tokens=10, max_input_tokens=9)
    files = package(of_release(artifact, TGI), options, TGI)

    assert variables(files)["MAX_BATCH_PREFILL_TOKENS"] == "9"
    assert failed(files, TGI) == set()


def test_the_same_input_gives_the_same_bytes(artifact: Artifact) -> None:
    """Nothing of the clock or of this machine is in a package."""
    assert package(artifact) == package(artifact)
    assert not any(str(artifact.path).encode() in content for content in package(artifact).values())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - TARGET.serves.keys()))
def test_what_no_image_serves_is_refused_with_what_to_type(kind: Any) -> None:
    """Each kind has its own reason, and a command."""
    with pytest.raises(UnsupportedError) as caught:
        TARGET.choose(kind, None)

    assert KINDS[kind] in caught.value.problems[0].found
    assert "llmcompile" in caught.value.problems[0].hint or "docker run" in caught.value.problems[0].hint


def test_a_release_that_loads_another_layout_is_refused() -> None:
    """transformers-neuronx's images do not load what NxD made."""
    with pytest.raises(UnsupportedError, match=r"0\.0\.28 does not serve a Neuron export of optimum-neuron"):
        TARGET.choose("neuron-optimum", "0.0.28")


def test_an_image_with_another_optimum_neuron_is_refused(artifact: Artifact) -> None:
    """NeuronConfig.from_dict raises where the versions differ at all."""
    with pytest.raises(UnsupportedError) as caught:
        TARGET.plan(artifact, TgiOptions(), Request("0.4.4"))

    assert caught.value.problems[0].hint == "add --target-version 0.4.5"


def test_an_image_with_another_compiler_is_refused(artifact: Artifact) -> None:
    """It raises, too, where neuronx-cc is another."""
    with pytest.raises(UnsupportedError, match=r"neuronx-cc 2\.22\.1 of the image"):
        TARGET.plan(artifact, TgiOptions(), Request(VLLM, "2.22.1"))


def test_an_encoder_is_refused(artifact: Artifact) -> None:
    """These images generate text."""
    files = {path: artifact.tree.read(path) for path in artifact.tree.files if path != "neuron_config.json"}

    with pytest.raises(UnsupportedError, match="no decoder"):
        TARGET.plan(replace(artifact, tree=tree_of(files)), TgiOptions(), Request(VLLM))


def test_a_record_without_a_size_is_refused(artifact: Artifact) -> None:
    """What was compiled for cannot be guessed."""
    with pytest.raises(CheckpointError, match="batch_size"):
        TARGET.plan(of_release(artifact, VLLM, batch_size=None), TgiOptions(), Request(VLLM))


@pytest.mark.parametrize(
    ("release", "options", "flag"),
    [
        (VLLM, {"max_batch_size": 3}, "--max-batch-size"),
        (VLLM, {"max_batch_size": 1}, "--max-batch-size"),
        (VLLM, {"max_total_tokens": 17}, "--max-total-tokens"),
        (VLLM, {"max_total_tokens": 15}, "--max-total-tokens"),
        (VLLM, {"max_input_tokens": 4}, "--max-input-tokens"),
        (TGI, {"max_batch_size": 3}, "--max-batch-size"),
        (TGI, {"max_total_tokens": 17}, "--max-total-tokens"),
        (TGI, {"max_input_tokens": 16}, "--max-input-tokens"),
        (TGI, {"served_model_name": "mine"}, "--served-model-name"),
        ("0.4.0", {"served_model_name": "mine"}, "--served-model-name"),
        (VLLM, {"port": 70000}, "--port"),
        (VLLM, {"image": "an image"}, "--image"),
        (VLLM, {"served_model_name": "a\nb"}, "SM_ON_SERVED_MODEL_NAME"),
    ],
)
def test_an_option_that_contradicts_the_artifact_is_refused(
    release: str, options: dict[str, Any], flag: str, artifact: Artifact
) -> None:
    """By its flag, before anything is written."""
    with pytest.raises(OptionsError) as caught:
        TARGET.plan(of_release(artifact, release), TgiOptions(**options), Request(release))

    assert caught.value.problems[0].subject.startswith(flag)


# --- the table of variables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("0.0.22", {"HF_BATCH_SIZE", "MAX_BATCH_SIZE", "HF_SEQUENCE_LENGTH", "MAX_TOTAL_TOKENS", "MAX_INPUT_LENGTH"}),
        ("0.0.23", {"MAX_BATCH_SIZE", "MAX_TOTAL_TOKENS", "MAX_INPUT_LENGTH"}),
        ("0.0.24", {"MAX_BATCH_SIZE", "MAX_TOTAL_TOKENS", "MAX_INPUT_TOKENS"}),
        ("0.3.0", {"MAX_BATCH_SIZE", "MAX_TOTAL_TOKENS", "MAX_INPUT_TOKENS"}),
        ("0.4.5", {"SM_ON_BATCH_SIZE", "SM_ON_SEQUENCE_LENGTH"}),
    ],
)
def test_sizes_have_the_names_of_the_generation(release: str, names: set[str]) -> None:
    """As tgi_env.py at the release's tag reads them, or the vLLM image's start script."""
    facts = ("batch", "sequence", "input")

    assert {name for fact in facts for name in TABLE[fact][IMAGES[release].column]} == names


@pytest.mark.parametrize(
    ("reference", "release"),
    [
        ("ghcr.io/huggingface/optimum-neuron-vllm:0.4.5", "0.4.5"),
        ("ghcr.io/huggingface/text-generation-inference:3.3.6-neuron", "0.3.0"),
        ("ghcr.io/huggingface/text-generation-inference:3.3.4-neuron", "0.2.0"),
        ("ghcr.io/huggingface/text-generation-inference:3.3.2-neuron", "0.1.0"),
        ("ghcr.io/huggingface/text-generation-inference:3.1.1-neuron", "0.0.28"),
        ("ghcr.io/huggingface/neuronx-tgi:0.0.23", "0.0.23"),
        (
            "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-tgi-inference:"
            "2.7.0-optimum3.3.6-neuronx-py310-ubuntu22.04",
            "0.3.0",
        ),
        ("ghcr.io/huggingface/text-generation-inference:3.3.7", None),
        ("nginx", None),
    ],
)
def test_an_image_is_known_by_its_tag(reference: str, release: str | None) -> None:
    """Each registry's own way of naming a release."""
    found = neuron_env.image_of(reference)

    assert (None if found is None else found.release) == release


def test_versions_of_the_compiler_are_compared_without_a_build_that_one_lacks() -> None:
    """PyPI says 2.21.33363.0, the compiler itself 2.21.33363.0+82129205."""
    assert neuron_env.same_version("2.21.33363.0+82129205", "2.21.33363.0")
    assert not neuron_env.same_version("2.21.33363.0+82129205", "2.21.33363.0+00000000")
    assert not neuron_env.same_version("2.21.33363.0", "2.21.18209.0")


# --- each rule, broken ------------------------------------------------------------------------------------------------


def env(name: str, value: str | None) -> Callable[[Files], Files]:
    """Set a variable of .env, or take it out."""

    def change(files: Files) -> Files:
        pairs: dict[str, str | None] = {**variables(files), name: value}
        lines = "".join(f"{name}={value}\n" for name, value in pairs.items() if value is not None)
        return files | {".env": lines.encode()}

    return change


def service(**changed: Any) -> Callable[[Files], Files]:
    """Change the first container of docker-compose.yaml."""

    def change(files: Files) -> Files:
        content = yaml.safe_load(files["docker-compose.yaml"])
        first = next(iter(content["services"]))
        content["services"][first] |= changed
        return files | {"docker-compose.yaml": yaml.safe_dump(content).encode()}

    return change


def config(**changed: Any) -> Callable[[Files], Files]:
    """Change neuron_config.json."""
    return lambda files: files | {CONFIG: json.dumps(json.loads(files[CONFIG]) | changed).encode()}


def without(path: str) -> Callable[[Files], Files]:
    """Take a file out."""
    return lambda files: {name: content for name, content in files.items() if name != path}


def content(path: str, text: str) -> Callable[[Files], Files]:
    """Replace a file."""
    return lambda files: files | {path: text.encode()}


BROKEN: dict[str, Callable[[Files], Files]] = {
    "dotenv": lambda files: files | {".env": files[".env"].replace(b"MODEL_ID=/data\n", b"MODEL_ID=/data\nX='1'\n")},
    "compose": service(env_file=["other.env"]),
    "secrets": env("HF_TOKEN", "abc"),
    "variables": env("SM_ON_BATCH_SIZE", "2"),
    "model": env("MODEL_ID", "/model"),
    "files": without("data/model.pt"),
    "release": config(optimum_neuron_version="0.2.0"),
    "compiler": config(neuronxcc_version="2.15.143.0"),
    "batch": env("MAX_BATCH_SIZE", "3"),
    "sequence": env("MAX_TOTAL_TOKENS", "17"),
    "input": env("MAX_INPUT_TOKENS", "16"),
    "prefill": env("MAX_BATCH_PREFILL_TOKENS", "7"),
    "cores": env("HF_NUM_CORES", "1"),
    "dtype": env("HF_AUTO_CAST_TYPE", "fp16"),
    "devices": service(devices=["/dev/neuron0", "/dev/neuron1"]),
    "ports": service(ports=["8080:8080"]),
    "replicas": content("nginx.conf", "http { upstream x {\n server tgi-9:80;\n } }\n"),
}


def test_every_rule_is_broken_here() -> None:
    """A rule that was never seen failing is none."""
    assert BROKEN.keys() == TARGET.rules.keys()


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_package_fails_by_the_rules_name(rule: str, artifact: Artifact) -> None:
    """A good package, changed in one way, fails that rule and no other."""
    files = package(of_release(artifact, TGI), release=TGI)

    assert failed(BROKEN[rule](files), TGI) == {rule}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (env("MAX_BATCH_SIZE", "two"), "batch"),
        (env("MAX_BATCH_SIZE", "0"), "batch"),
        (env("MAX_INPUT_LENGTH", "8"), "input"),
        (env("MAX_INPUT_LENGTH", "8"), "variables"),
        (env("HF_BATCH_SIZE", "2"), "variables"),
        (env("HF_SEQUENCE_LENGTH", "16"), "variables"),
        (env("HF_MODEL_ID", "/data"), "variables"),
        (env("MODEL_ID", None), "variables"),
        (env("MODEL_ID", "hf_abcdefghijklmnopqrstuvwxyz"), "secrets"),
        (env("HF_AUTO_CAST_TYPE", "float8"), "dtype"),
        (service(environment={"HUGGING_FACE_HUB_TOKEN": "x"}), "secrets"),
        (service(environment=["MAX_BATCH_SIZE=4"]), "batch"),
        (service(devices=[]), "devices"),
        (service(ports=[]), "ports"),
        (service(image=None), "compose"),
        (service(image="ghcr.io/huggingface/text-generation-inference:3.3.4-neuron"), "compose"),
        (content("docker-compose.yaml", "services: [\n"), "compose"),
        (content("docker-compose.yaml", "[" * 5000), "compose"),
        (lambda files: without("docker-compose.yaml")(files) | {"llmcompile.json": OURS}, "compose"),
        (without("data/tokenizer.json"), "files"),
        (without("data/config.json"), "files"),
        (without("data/checkpoint/weights/tp1_sharded_checkpoint.safetensors"), "files"),
        (without(CONFIG), "files"),
        (content(CONFIG, "{"), "files"),
        (config(optimum_neuron_version=None), "release"),
    ],
)
def test_other_ways_to_break_a_package(change: Callable[[Files], Files], rule: str, artifact: Artifact) -> None:
    """Each is named by the rule that a reader would look under."""
    files = package(of_release(artifact, TGI), release=TGI)
    changed = change(files)
    if "data/tokenizer.json" not in changed:
        changed = without("data/tokenizer_config.json")(changed)

    assert rule in failed(changed, TGI)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (env("SM_ON_BATCH_SIZE", "1"), "batch"),
        (env("SM_ON_SEQUENCE_LENGTH", "8"), "sequence"),
        (env("SM_ON_TENSOR_PARALLEL_SIZE", "1"), "cores"),
        (env("MAX_BATCH_SIZE", "2"), "variables"),
        (env("HF_NUM_CORES", "2"), "variables"),
        (env("SM_ON_DTYPE", "bfloat16"), "variables"),
        (config(optimum_neuron_version="0.4.4"), "release"),
        (config(neuronxcc_version="2.21.18209.0"), "compiler"),
    ],
)
def test_the_vllm_image_takes_nothing_but_what_was_compiled(
    change: Callable[[Files], Files], rule: str, artifact: Artifact
) -> None:
    """optimum-cli neuron serve raises where a size differs; Text Generation Inference's names it does not read."""
    assert failed(change(package(artifact))) == {rule}


@pytest.mark.parametrize(
    ("release", "status"), [("0.4.5", "note"), ("0.4.2", "note"), ("0.4.1", "failed"), ("0.4.0", "failed")]
)
def test_what_the_command_does_not_know_goes_to_vllm_or_stops_it(release: str, status: str, artifact: Artifact) -> None:
    """Unknown arguments are passed on from 0.4.2 on; before, the parser stops."""
    files = env("SM_ON_MAX_LOGPROBS", "5")(package(of_release(artifact, release), release=release))

    assert {found.status for found in findings(files, release) if found.rule == "variables"} - {"ok"} == {status}


def test_an_old_name_is_named_with_its_successor(artifact: Artifact) -> None:
    """HF_BATCH_SIZE of 0.0.22 is MAX_BATCH_SIZE of today."""
    files = env("HF_BATCH_SIZE", "2")(package(of_release(artifact, TGI), release=TGI))

    assert [found.hint for found in findings(files, TGI) if found.status == "failed"] == ["rename it to MAX_BATCH_SIZE"]


def test_a_runtime_that_was_said_counts(artifact: Artifact) -> None:
    """--runtime-version is the compiler of an image of one's own."""
    assert failed(package(artifact), runtime="2.22.0.0") == {"compiler"}


# --- somebody else's packages -----------------------------------------------------------------------------------------


def old_package(**changed: str) -> Files:
    """What a user of the image 0.0.24 has: a split checkpoint, NEFFs, and quoted nothing."""
    section = {
        "task": "text-generation",
        "batch_size": 4,
        "num_cores": 2,
        "auto_cast_type": "fp16",
        "sequence_length": 2048,
        "compiler_type": "neuronx-cc",
        "compiler_version": "2.14.227.0",
        "checkpoint_id": None,
        "checkpoint_revision": None,
    }
    pairs = {
        "MODEL_ID": "/data/llama",
        "HF_NUM_CORES": "2",
        "HF_AUTO_CAST_TYPE": "fp16",
        "MAX_BATCH_SIZE": "4",
        "MAX_INPUT_TOKENS": "1024",
        "MAX_TOTAL_TOKENS": "2048",
        **changed,
    }
    compose = {
        "services": {
            "tgi-1": {
                "image": "ghcr.io/huggingface/neuronx-tgi:0.0.24",
                "env_file": ".env",
                "ports": ["8081:80"],
                "devices": ["/dev/neuron0"],
                "volumes": ["./data:/data"],
            }
        }
    }
    return {
        ".env": "".join(f"{name}={value}\n" for name, value in pairs.items()).encode(),
        "docker-compose.yaml": yaml.safe_dump(compose).encode(),
        "data/llama/config.json": json.dumps({"model_type": "llama", "neuron": section}).encode(),
        "data/llama/tokenizer.json": b"{}",
        "data/llama/checkpoint/pytorch_model.bin/p0.w": b"x",
        "data/llama/compiled/0123456789abcdef0123.neff": b"x",
    }


def test_a_package_of_transformers_neuronx_lints_clean() -> None:
    """A model in a folder below the mounted one, exported by optimum-neuron 0.0.24 itself."""
    found = findings(old_package(), release=None)

    assert [item for item in found if item.status in ("failed", "note")] == []
    assert {item.rule for item in found} == TARGET.rules.keys()


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"MAX_BATCH_SIZE": "2"}, "batch"),
        ({"MAX_TOTAL_TOKENS": "1025"}, "sequence"),
        ({"HF_AUTO_CAST_TYPE": "float16"}, "dtype"),
    ],
)
def test_the_old_images_compare_texts(changed: dict[str, str], rule: str) -> None:
    """tgi_env.py of 0.0.24 compares str(config) with the variable."""
    assert failed(old_package(**changed), release=None) == {rule}


def test_a_model_of_an_older_compiler_loads_in_an_old_image() -> None:
    """transformers-neuronx refuses newer compilers alone."""
    older = old_package()
    older["data/llama/config.json"] = older["data/llama/config.json"].replace(b"2.14.227.0", b"2.13.66.0")
    newer = old_package()
    newer["data/llama/config.json"] = newer["data/llama/config.json"].replace(b"2.14.227.0", b"2.15.128.0")

    assert failed(older, release=None) == set()
    assert failed(newer, release=None) == {"compiler"}


def test_our_own_graphs_are_not_those_of_transformers_neuronx() -> None:
    """It looks NEFFs up by the hash of its own HLO, and stops."""
    files = old_package() | {"data/llama/graphs/token_generation.hlo.pb": b"x"}

    assert failed(files, release=None) == {"files"}


def test_two_containers_cannot_share_a_device() -> None:
    """The second would wait for the first for ever."""
    files = old_package()
    content = yaml.safe_load(files["docker-compose.yaml"])
    content["services"]["tgi-2"] = content["services"]["tgi-1"]
    files["docker-compose.yaml"] = yaml.safe_dump(content).encode()

    assert failed(files, release=None) == {"devices"}


def said(files: Files, rule: str, release: str | None = None) -> list[Finding]:
    """What the lint says by one rule."""
    return [found for found in findings(files, release) if found.rule == rule]


def interpolated(env: str, *services: str, environment: Any = None) -> Files:
    """The old package with variables in docker-compose.yaml, some of them from .env."""
    files = old_package()
    made = {
        name: {
            "image": "ghcr.io/huggingface/neuronx-tgi:${TAG:-0.0.24}",
            "environment": environment or {"MODEL_ID": "${MODEL}", "HF_NUM_CORES": "2", "MAX_BATCH_SIZE": "$BATCH"},
            "ports": [f"${{PORT:-{8080 + number}}}:80"],
            "devices": [f"/dev/neuron{number}"],
            "volumes": ["./data:/data"],
        }
        for number, name in enumerate(services or ("tgi",))
    }
    return files | {".env": env.encode(), "docker-compose.yaml": yaml.safe_dump({"services": made}).encode()}


INTERPOLATED = "# what compose puts in\nexport MODEL='/data/llama'\nBATCH=\"4\" # sequences\n"


def test_variables_in_the_compose_file_are_read_with_those_of_dotenv() -> None:
    """Compose alone reads this .env, so its quotes, export and comments are right."""
    found = findings(interpolated(INTERPOLATED), None)

    assert [item for item in found if item.status in ("failed", "note")] == []
    assert {item.rule for item in found} == TARGET.rules.keys()


def test_a_value_of_dotenv_is_checked_where_it_goes() -> None:
    """Five sequences were not compiled."""
    files = interpolated(INTERPOLATED.replace('"4"', '"5"'))

    assert [(item.subject, item.found) for item in said(files, "batch") if item.status == "failed"] == [
        ("docker-compose.yaml: tgi: MAX_BATCH_SIZE", "5")
    ]


def test_variables_in_a_list_are_read_too() -> None:
    """KEY=VALUE, and a name alone, which has the value of .env."""
    listed = ["MODEL_ID=${MODEL}", "HF_NUM_CORES=2", "MAX_BATCH_SIZE"]

    assert failed(interpolated(INTERPOLATED + "MAX_BATCH_SIZE=5\n", environment=listed), None) == {"batch"}


def test_every_container_of_the_model_is_counted() -> None:
    """Two, by their images, though neither has an env_file."""
    files = interpolated(INTERPOLATED, "one", "two")

    assert [item.found for item in said(files, "replicas")] == ["2 containers, no nginx"]
    assert [item.status for item in said(files, "devices")] == ["ok"]


def test_no_container_of_the_model_is_no_replica() -> None:
    """Nothing is right about none."""
    files = old_package() | {"docker-compose.yaml": b"services: {db: {image: postgres}}"}

    assert [item.status for item in said(files, "replicas")] == ["skipped"]
    assert "compose" in failed(files, None)


def test_a_token_from_the_shell_is_no_secret_in_the_file() -> None:
    """A reference to a variable is none; a default behind it is."""
    variables = {"MODEL_ID": "${MODEL}", "HF_NUM_CORES": "2", "HF_TOKEN": "${HF_TOKEN:-}"}

    assert failed(interpolated(INTERPOLATED, environment=variables), None) == set()
    assert failed(interpolated(INTERPOLATED, environment=variables | {"HF_TOKEN": "${HF_TOKEN:-abc}"}), None) == {
        "secrets"
    }


def test_what_a_shell_will_set_is_skipped() -> None:
    """A name that .env has not."""
    files = interpolated("")

    assert [item.status for item in said(files, "batch")] == ["skipped"]
    assert [item.status for item in said(files, "model")] == ["skipped"]


def test_another_file_of_variables_is_read() -> None:
    """env_file may name any."""
    files = old_package()
    compose = yaml.safe_load(files["docker-compose.yaml"])
    compose["services"]["tgi-1"]["env_file"] = ["./model.env"]
    files |= {"docker-compose.yaml": yaml.safe_dump(compose).encode(), "model.env": files.pop(".env")}

    assert failed(files, None) == set()
    assert failed(files | {"model.env": files["model.env"].replace(b"SIZE=4", b"SIZE=5")}, None) == {"batch"}


def test_a_model_of_the_hub_is_noted() -> None:
    """The image fetches it; there is nothing to look at here."""
    service = {"env_file": ".env", "ports": ["8080:80"], "devices": ["/dev/neuron0"]}
    compose = yaml.safe_dump(
        {"services": {"tgi": {"image": "ghcr.io/huggingface/neuronx-tgi:0.0.24", **service}}}
    ).encode()
    files = {".env": b"MODEL_ID=meta-llama/Llama-2-7b-hf\nMAX_BATCH_SIZE=4\n", "docker-compose.yaml": compose}

    assert failed(files, None) == set()
    assert [item.status for item in said(files, "model")] == ["note"]
    assert [item.status for item in said(files, "files")] == ["skipped"]


def test_a_folder_of_the_host_is_not_looked_for_here() -> None:
    """A volume with a path from the root."""
    files = {name: content for name, content in old_package().items() if not name.startswith("data/")}
    files["docker-compose.yaml"] = files["docker-compose.yaml"].replace(b"./data:", b"/srv/models:")

    assert [item.status for item in said(files, "files")] == ["skipped"]
    assert failed(files, None) == set()


@pytest.mark.parametrize(
    ("files", "known"),
    [
        ({"docker-compose.yaml": b"services: {a: {image: 'ghcr.io/huggingface/neuronx-tgi:0.0.99'}}"}, True),
        ({"compose.yaml": b"services: {a: {image: 'ghcr.io/huggingface/optimum-neuron-vllm:latest'}}"}, True),
        ({"compose.yaml": b"services: {a: {image: 'djl-inference:0.29.0-neuronx-sdk2.19.1'}}"}, False),
        ({"compose.yaml": b"services: {a: {image: postgres}}"}, False),
        ({"compose.yaml": b"["}, False),
        ({".env": b"export MODEL_ID=org/model\n"}, True),
        ({".env": b"MAX_BATCH_SIZE=4\n"}, False),
        ({".env": b"MODEL_ID=org/model\n", "serving.properties": b""}, False),
    ],
)
def test_a_folder_is_known_by_its_image_or_its_model(files: Files, known: bool) -> None:
    """Either file may be missing; a .env alone names its model."""
    assert TARGET.detect(tree_of(files)) == known


def test_a_dotenv_alone_fails_nothing() -> None:
    """A container takes it with --env-file, and mounts the model."""
    assert failed({".env": b"MODEL_ID=/data\nMAX_BATCH_SIZE=4\n"}, "0.0.24") == set()


@given(
    st.dictionaries(
        st.sampled_from([".env", "docker-compose.yaml", "nginx.conf", CONFIG, "data/config.json", "llmcompile.json"]),
        st.binary(max_size=200)
        | st.sampled_from([b"{}", b"[]", b"services: {a: {env_file: .env}}", b'{"neuron": {}}']),
    ),
    st.sampled_from([None, *IMAGES]),
)
def test_any_bytes_give_findings_and_nothing_else(files: Files, release: str | None) -> None:
    """A folder of nonsense has a finding for every rule."""
    tree = tree_of(files)
    TARGET.detect(tree)

    assert {found.rule for found in TARGET.lint(tree, Serving(release))} == TARGET.rules.keys()


def test_a_planned_package_lints_as_a_written_one(artifact: Artifact) -> None:
    """The pipeline lints before it writes."""
    made = TARGET.plan(artifact, TgiOptions(), Request(VLLM))
    tree = planned("out", made.texts, made.links, made.folders, artifact.tree)

    assert [found for found in TARGET.lint(tree, Serving(VLLM)) if found.status == "failed"] == []
