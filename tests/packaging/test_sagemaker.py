"""Packages for SageMaker: requests, environments and instances, what is refused, each rule broken."""

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
from llmcompile.errors import OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact, open_artifact
from llmcompile.packaging.neuron_env import IMAGES
from llmcompile.packaging.sagemaker import TARGET, SageMakerOptions, api, hosts, toolkit
from llmcompile.packaging.target import KINDS, Finding, Package, Request, Serving
from trees import tree_of

if TYPE_CHECKING:
    from conftest import Run

Files = dict[str, bytes]
ROLE = "arn:aws:iam::123456789012:role/serving"
FULL: dict[str, Any] = {"s3_uri": "s3://bucket/llama", "role_arn": ROLE, "region": "us-east-1"}
VLLM, TGI, DJL = "optimum-0.4.4", "optimum-0.3.0", "lmi-0.34"
CONFIG = "model/neuron_config.json"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where artifacts are made, once each."""
    return tmp_path_factory.mktemp("sagemaker")


@pytest.fixture(scope="session")
def optimum(run: Run, folder: Path) -> Artifact:
    """A decoder of optimum-neuron 0.4.5 for two NeuronCores: batch 2, 16 tokens, bf16."""
    return open_artifact(serving_artifacts.make("neuron-optimum", folder / "optimum", run))


@pytest.fixture(scope="session")
def split(run: Run, folder: Path) -> Artifact:
    """A decoder in LMI's own layout."""
    return open_artifact(serving_artifacts.make("neuron-lmi-split", folder / "split", run))


@pytest.fixture(scope="session")
def engine(run: Run, folder: Path) -> Artifact:
    """A TensorRT-LLM engine of two ranks, built on an A100."""
    return open_artifact(serving_artifacts.make("trtllm-engine", folder / "engine", run))


def of_release(artifact: Artifact, version: str, **changed: Any) -> Artifact:
    """The artifact as another release of optimum-neuron would have made it."""
    release = version.removeprefix("optimum-")
    record = json.loads(artifact.tree.read("neuron_config.json"))
    record |= {"optimum_neuron_version": release, "neuronxcc_version": IMAGES[release].compiler, **changed}
    files = {path: artifact.tree.read(path) for path in artifact.tree.files}
    return replace(artifact, tree=tree_of(files | {"neuron_config.json": json.dumps(record).encode()}))


def plan(artifact: Artifact, version: str = VLLM, runtime: str | None = None, **options: Any) -> Package:
    """A package; of optimum-neuron's decoders as the release made them."""
    if version.startswith("optimum-"):
        artifact = of_release(artifact, version)
    return TARGET.plan(artifact, SageMakerOptions(**options), Request(version, runtime))


def package(artifact: Artifact, version: str = VLLM, runtime: str | None = None, **options: Any) -> Files:
    """The files of a package."""
    made = plan(artifact, version, runtime, **options)
    source = of_release(artifact, version) if version.startswith("optimum-") else artifact
    links = {path: source.tree.read(name) for path, name in made.links.items()}
    return {path: text.encode() for path, text in made.texts.items()} | links


def findings(files: Files, version: str | None = VLLM, runtime: str | None = None) -> list[Finding]:
    """What the lint says."""
    return list(TARGET.lint(tree_of(files), Serving(version, runtime)))


def failed(files: Files, version: str | None = VLLM, runtime: str | None = None) -> set[str]:
    """Rules that failed."""
    return {found.rule for found in findings(files, version, runtime) if found.status == "failed"}


def request(files: Files, name: str) -> Any:
    """The content of a request."""
    return json.loads(files[name])


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_request_to_create_a_model(optimum: Artifact) -> None:
    """As one would type it for the image of optimum-neuron 0.4.4 in us-east-1."""
    variables = {
        "SM_ON_MODEL": "/opt/ml/model",
        "SM_ON_BATCH_SIZE": "2",
        "SM_ON_SEQUENCE_LENGTH": "16",
        "SM_ON_TENSOR_PARALLEL_SIZE": "2",
    }

    files = package(optimum, **FULL)

    assert request(files, "environment.json") == variables
    assert request(files, "create_model.json") == {
        "ModelName": "org-tiny-llama",
        "PrimaryContainer": {
            "Image": "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-vllm-inference-neuronx:"
            "0.11.0-optimum0.4.4-neuronx-py310-sdk2.26.1-ubuntu22.04",
            "ModelDataSource": {
                "S3DataSource": {
                    "S3Uri": "s3://bucket/llama/",
                    "S3DataType": "S3Prefix",
                    "CompressionType": "None",
                }
            },
            "Environment": variables,
        },
        "ExecutionRoleArn": ROLE,
    }


def test_the_seed_names_of_text_generation_inference(optimum: Artifact) -> None:
    """SageMaker's image of optimum-neuron 0.3.0 starts without HF_MODEL_ID, and takes MODEL_ID."""
    assert request(package(optimum, TGI), "environment.json") == {
        "MODEL_ID": "/opt/ml/model",
        "MAX_BATCH_SIZE": "2",
        "MAX_TOTAL_TOKENS": "16",
        "MAX_INPUT_TOKENS": "8",
        "MAX_BATCH_PREFILL_TOKENS": "16",
        "HF_NUM_CORES": "2",
        "HF_AUTO_CAST_TYPE": "bf16",
    }


def test_an_endpoint_has_the_smallest_instance_that_fits(optimum: Artifact) -> None:
    """Two NeuronCores are one Inferentia2."""
    variant = request(package(optimum), "create_endpoint_config.json")["ProductionVariants"][0]

    assert variant == {
        "VariantName": "AllTraffic",
        "ModelName": "org-tiny-llama",
        "InitialInstanceCount": 1,
        "InstanceType": "ml.inf2.xlarge",
        "VolumeSizeInGB": 64,
        "ModelDataDownloadTimeoutInSeconds": 600,
        "ContainerStartupHealthCheckTimeoutInSeconds": 3600,
        "InferenceAmiVersion": "al2-ami-sagemaker-inference-neuron-2",
    }


def test_an_endpoint_is_created_of_its_configuration(optimum: Artifact) -> None:
    """All three have the name that was asked for."""
    files = package(optimum, model_name="llama-3")

    assert request(files, "create_endpoint.json") == {"EndpointName": "llama-3", "EndpointConfigName": "llama-3"}
    assert request(files, "create_endpoint_config.json")["EndpointConfigName"] == "llama-3"
    assert request(files, "create_model.json")["ModelName"] == "llama-3"


def test_an_archive_is_asked_for_by_its_url(optimum: Artifact) -> None:
    """The commands make and upload it, with its members at the root."""
    made = plan(optimum, tar=True, **FULL)
    container = json.loads(made.texts["create_model.json"])["PrimaryContainer"]

    assert container["ModelDataUrl"] == "s3://bucket/llama/model.tar.gz"
    assert "ModelDataSource" not in container
    assert made.next[0] == "tar -C {output}/model -czf model.tar.gz ."
    assert failed({path: text.encode() for path, text in made.texts.items()} | {"model/x": b""}).isdisjoint(
        {"requests", "model-data"}
    )


def test_an_optimization_job_compiles_for_the_same(optimum: Artifact) -> None:
    """Written where the model's place before the compilation is said; LMI's options are texts."""
    files = package(optimum, source_s3_uri="s3://bucket/hf", **FULL)

    assert request(files, "create_optimization_job.json") == {
        "OptimizationJobName": "org-tiny-llama",
        "RoleArn": ROLE,
        "ModelSource": {"S3": {"S3Uri": "s3://bucket/hf/"}},
        "DeploymentInstanceType": "ml.inf2.xlarge",
        "OptimizationConfigs": [
            {
                "ModelCompilationConfig": {
                    "Image": "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.29.0-neuronx-sdk2.19.1",
                    "OverrideEnvironment": {
                        "OPTION_TENSOR_PARALLEL_DEGREE": "2",
                        "OPTION_DTYPE": "bf16",
                        "OPTION_MAX_ROLLING_BATCH_SIZE": "2",
                        "OPTION_N_POSITIONS": "16",
                    },
                }
            }
        ],
        "OutputConfig": {"S3OutputLocation": "s3://bucket/llama-optimized/"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 36000},
    }


def test_an_engine_is_a_package_for_lmi_on_the_gpu_it_was_built_on(engine: Artifact) -> None:
    """Compute capability 8.0 is an A100, which is p4d; the model's folder is LMI's own package."""
    made = plan(engine, "lmi-0.34", "1.2.1", **FULL)
    variant = json.loads(made.texts["create_endpoint_config.json"])["ProductionVariants"][0]

    assert variant["InstanceType"] == "ml.p4d.24xlarge"
    assert "model/serving.properties" in made.texts
    assert any(path.startswith("model/tensorrt_llm/1/rank") for path in made.links)


def test_the_container_can_be_tried_on_a_host(optimum: Artifact) -> None:
    """With the same variables, and the model where SageMaker puts it."""
    files = package(optimum, port=9000, **FULL)
    service = yaml.safe_load(files["docker-compose.yaml"])["services"]["model"]

    assert service["ports"] == ["9000:8080"]
    assert service["volumes"] == ["./model:/opt/ml/model"]
    assert service["devices"] == ["/dev/neuron0"]
    assert files[".env"].decode().splitlines()[0] == "SM_ON_MODEL=/opt/ml/model"


def test_a_region_that_has_no_such_image_is_noted(optimum: Artifact) -> None:
    """AWS lists optimum-neuron's vLLM image in eleven regions."""
    there, elsewhere = (plan(optimum, **{**FULL, "region": region}).notes for region in ("eu-west-1", "eu-west-2"))

    assert not any("AWS's list" in note for note in there)
    assert any("not in eu-west-2" in note for note in elsewhere)


def test_the_runtime_of_the_manifest_counts_for_its_release(engine: Artifact) -> None:
    """A package for an image of one's own stays right when it is looked at later."""
    files = package(engine, DJL, "1.2.1")
    record = {"package": {"version": DJL, "runtime": "1.2.1"}}

    assert failed(files, DJL) == {"lmi"}
    assert failed(files | {"llmcompile.json": json.dumps(record).encode()}, None) == set()


def test_nothing_is_invented(optimum: Artifact) -> None:
    """No role, no image and no place are written that were not given; the lint notes them."""
    files = package(optimum)

    assert request(files, "create_model.json")["PrimaryContainer"].keys() == {"Environment"}
    assert {found.rule for found in findings(files) if found.status == "note"} == {"image", "role", "model-data"}
    assert failed(files) == set()


@pytest.mark.parametrize("version", TARGET.serves["neuron-optimum"][:7])
def test_a_package_for_every_release_lints_clean(version: str, optimum: Artifact) -> None:
    """No rule fails, and each has a finding."""
    found = findings(package(optimum, version, **FULL), version)

    assert [item for item in found if item.status == "failed"] == []
    assert {item.rule for item in found} == TARGET.rules.keys()


def test_a_package_for_lmi_lints_clean(split: Artifact) -> None:
    """Ours and LMI's rules; the instance has NeuronCores."""
    found = findings(package(split, DJL), DJL)

    assert [item for item in found if item.status == "failed"] == []
    assert {item.rule for item in found} == TARGET.rules.keys()


def test_a_package_is_known_and_its_release_is_in_its_image(optimum: Artifact) -> None:
    """Without a manifest, the request's image says what serves."""
    files = package(optimum, **FULL)

    assert TARGET.detect(tree_of(files))
    assert next(found for found in findings(files, None) if found.rule == "release").status == "ok"


def test_the_release_is_that_of_the_artifact(optimum: Artifact) -> None:
    """The image with the same optimum-neuron is chosen."""
    assert TARGET.choose("neuron-optimum", None, of_release(optimum, "optimum-0.4.2")) == "optimum-0.4.2"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - TARGET.serves.keys()))
def test_what_no_image_serves_is_refused_with_what_to_type(kind: Any) -> None:
    """Each kind has its own reason, and a command."""
    with pytest.raises(UnsupportedError) as caught:
        TARGET.choose(kind, None)

    assert "llmcompile" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"model_name": "org/llama"}, "--model-name"),
        ({"model_name": "a" * 64}, "--model-name"),
        ({"role_arn": "serving"}, "--role-arn"),
        ({"s3_uri": "bucket/llama"}, "--s3-uri"),
        ({"image_uri": "a b"}, "--image-uri"),
        ({"image_uri": "a" * 256}, "--image-uri"),
        ({"region": "mars-1"}, "--region"),
        ({"instance_type": "ml.inf9.xlarge"}, "--instance-type"),
        ({"max_batch_size": 3}, "--max-batch-size"),
        ({"max_total_tokens": 17}, "--max-total-tokens"),
        ({"max_input_tokens": 4}, "--max-input-tokens"),
        ({"port": 70000}, "--port"),
        ({"source_s3_uri": "s3://bucket/hf/"}, "--source-s3-uri"),
    ],
)
def test_an_option_that_sagemaker_would_refuse_is_refused(
    options: dict[str, Any], flag: str, optimum: Artifact
) -> None:
    """By its flag, before anything is written."""
    with pytest.raises(OptionsError) as caught:
        plan(optimum, **options)

    assert caught.value.problems[0].subject == flag


def test_an_instance_with_too_few_cores_is_refused(optimum: Artifact) -> None:
    """Named with one that has enough."""
    with pytest.raises(OptionsError) as caught:
        TARGET.plan(
            replace(of_release(optimum, VLLM, tp_degree=24, checkpoint_id="org/model"), tp=24),
            SageMakerOptions(instance_type="ml.inf2.xlarge"),
            Request(VLLM),
        )

    assert caught.value.problems[0].hint == "add --instance-type ml.inf2.48xlarge"


def test_more_cores_than_any_instance_has_are_refused(optimum: Artifact) -> None:
    """inf2 ends at 24."""
    artifact = replace(of_release(optimum, VLLM, tp_degree=32, checkpoint_id="org/model"), tp=32)

    with pytest.raises(UnsupportedError, match="32 accelerators"):
        TARGET.plan(artifact, SageMakerOptions(), Request(VLLM))


def test_another_release_is_refused_with_the_one_to_ask_for(optimum: Artifact) -> None:
    """In the words of this target."""
    with pytest.raises(UnsupportedError) as caught:
        TARGET.plan(optimum, SageMakerOptions(), Request("optimum-0.4.4"))

    assert caught.value.problems[0].hint == "add --target-version optimum-0.4.5"


def test_lmis_refusal_names_the_release_as_this_target_does(run: Run, folder: Path) -> None:
    """--lmi-version is no flag of `package sagemaker`."""
    artifact = open_artifact(serving_artifacts.make("ft", folder / "ft", run))

    with pytest.raises(UnsupportedError) as caught:
        plan(artifact, "lmi-0.22")

    assert caught.value.problems[0].hint == "add --target-version lmi-0.24"


def test_lmi_takes_no_limits_of_other_images(split: Artifact) -> None:
    """Its own are in serving.properties."""
    with pytest.raises(OptionsError, match="--max-total-tokens"):
        plan(split, DJL, max_total_tokens=8)


def test_an_optimization_job_is_for_what_is_compiled(run: Run, folder: Path) -> None:
    """A Hugging Face folder has no compilation to repeat."""
    artifact = open_artifact(serving_artifacts.make("hf", folder / "hf", run))
    version = TARGET.choose("hf", None, artifact)

    with pytest.raises(OptionsError, match="not compiled"):
        plan(artifact, version, source_s3_uri="s3://bucket/hf/", **FULL)


# --- encoders ---------------------------------------------------------------------------------------------------------

ENCODER = "transformers-4.55.4"
SECTION = {
    "compiler_type": "neuronx-cc",
    "compiler_version": "2.21.18209.0+043b1bf7",
    "static_batch_size": 1,
    "static_sequence_length": 128,
    "task": "feature-extraction",
}


def encoder(optimum: Artifact, task: str = "feature-extraction", **changed: Any) -> Artifact:
    """A sentence encoder as optimum-neuron lays it out."""
    config = {"model_type": "bert", "neuron": {**SECTION, **changed}}
    files = {"model.neuron": b"graph", "config.json": json.dumps(config).encode(), "tokenizer.json": b"{}"}
    return replace(optimum, tree=tree_of(files), task=task, tp=1)


def encoder_files(optimum: Artifact, **options: Any) -> Files:
    """The files of its package."""
    artifact = encoder(optimum)
    made = TARGET.plan(artifact, SageMakerOptions(**options), Request(ENCODER))
    links = {path: artifact.tree.read(name) for path, name in made.links.items()}
    return {path: text.encode() for path, text in made.texts.items()} | links


def test_an_encoder_is_served_by_hugging_faces_inference_image(optimum: Artifact) -> None:
    """It is told the task alone: the shapes are in config.json."""
    files = encoder_files(optimum, **FULL)
    found = findings(files, ENCODER)

    assert TARGET.choose("neuron-optimum", None, encoder(optimum)) == ENCODER
    assert request(files, "environment.json") == {"HF_TASK": "feature-extraction"}
    assert request(files, "create_model.json")["PrimaryContainer"]["Image"] == (
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-inference-neuronx:"
        "2.8.0-transformers4.55.4-neuronx-py310-sdk2.26.0-ubuntu22.04"
    )
    assert [item for item in found if item.status == "failed"] == []
    assert {item.rule for item in found} == TARGET.rules.keys()
    assert failed(files, None) == set()


@pytest.mark.parametrize(
    ("artifact", "found"),
    [
        (lambda optimum: optimum, "no model.neuron"),
        (lambda optimum: encoder(optimum, "image-classification"), "image-classification"),
        (lambda optimum: encoder(optimum, compiler_version="2.21.33363.0"), "neuronx-cc 2.21.18209.0 of the image"),
        (lambda optimum: encoder(optimum, static_sequence_length=None), "static_sequence_length"),
    ],
)
def test_what_the_inference_image_does_not_load_is_refused(
    artifact: Callable[[Artifact], Artifact], found: str, optimum: Artifact
) -> None:
    """Decoders, other tasks, newer compilers, and models without shapes of texts."""
    with pytest.raises(UnsupportedError, match=found):
        TARGET.plan(artifact(optimum), SageMakerOptions(), Request(ENCODER))


def test_an_encoder_takes_no_limits(optimum: Artifact) -> None:
    """Its shapes are fixed."""
    with pytest.raises(OptionsError, match="--max-batch-size"):
        encoder_files(optimum, max_batch_size=1)


def test_an_older_compilers_encoder_loads(optimum: Artifact) -> None:
    """Only a newer one is refused."""
    TARGET.plan(encoder(optimum, compiler_version="2.16.372.0"), SageMakerOptions(), Request(ENCODER))


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (lambda files: everywhere("HF_MODEL_ID", "org/model")(files), "model"),
        (lambda files: everywhere("HF_TASK", "text-generation")(files), "variables"),
        (lambda files: everywhere("MAX_BATCH_SIZE", "1")(files), "variables"),
        (lambda files: {path: files[path] for path in files if path != "model/model.neuron"}, "files"),
        (lambda files: {path: files[path] for path in files if path != "model/tokenizer.json"}, "files"),
        (
            lambda files: files | {"model/config.json": files["model/config.json"].replace(b"2.21.18", b"2.22.18")},
            "compiler",
        ),
        (lambda files: files | {"model/config.json": files["model/config.json"].replace(b"128", b"null")}, "sequence"),
        (lambda files: change(*VARIANT, "InstanceType", to="ml.g5.xlarge")(files), "instance"),
    ],
)
def test_a_broken_package_of_an_encoder_fails_by_the_rules_name(
    changed: Callable[[Files], Files], rule: str, optimum: Artifact
) -> None:
    """A good package, changed in one way, fails that rule and no other."""
    assert failed(changed(encoder_files(optimum, **FULL)), ENCODER) == {rule}


# --- the API ----------------------------------------------------------------------------------------------------------


def faults(content: object, shape: str) -> list[str]:
    """What the API would refuse."""
    return [fault.path for fault in api.check(content, shape)]


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"1A": "x"}, "1A (name)"),
        ({"A-B": "x"}, "A-B (name)"),
        ({"A" * 1025: "x"}, f"{'A' * 40} (name)"),
        ({"A": "x" * 1025}, "A"),
        ({"A": "ä" * 513}, "A"),
        ({"A": 1}, "A"),
        ({"A": None}, "A"),
        ({"A": True}, "A"),
        ({f"A{number}": "" for number in range(101)}, ""),
    ],
)
def test_an_environment_that_the_api_refuses(variables: dict[str, Any], path: str) -> None:
    """Names, lengths in bytes, texts, and a hundred at most."""
    assert faults(variables, "EnvironmentMap") == [path]


def test_an_environment_at_its_limits_is_taken() -> None:
    """A hundred variables; a value of 1024 bytes, of any characters."""
    assert faults({f"A{number}": "" for number in range(100)}, "EnvironmentMap") == []
    assert faults({"_a1": "ä" * 512, "B": " \n"}, "EnvironmentMap") == []


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({f"A{number}": "x" for number in range(25)}, False),
        ({f"A{number}": "x" for number in range(26)}, True),
        ({"A": "x" * 256}, False),
        ({"A": "x" * 257}, True),
    ],
)
def test_the_environment_of_an_optimization_job_is_shorter(variables: dict[str, str], wrong: bool) -> None:
    """25 variables, 256 characters."""
    assert (faults(variables, "OptimizationJobEnvironmentVariables") != []) == wrong


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({}, "ModelName"),
        ({"ModelName": "-a"}, "ModelName"),
        ({"ModelName": "a", "Modelname": "b"}, "Modelname"),
        ({"ModelName": "a", "PrimaryContainer": []}, "PrimaryContainer"),
        ({"ModelName": "a", "PrimaryContainer": {"Image": "a b"}}, "PrimaryContainer.Image"),
        ({"ModelName": "a", "PrimaryContainer": {"Mode": "Single"}}, "PrimaryContainer.Mode"),
        ({"ModelName": "a", "EnableNetworkIsolation": 1}, "EnableNetworkIsolation"),
    ],
)
def test_a_request_that_the_api_refuses(content: dict[str, Any], path: str) -> None:
    """Missing, misspelled and mistyped members are named by their path."""
    assert faults(content, "CreateModelInput") == [path]


@pytest.mark.parametrize(
    ("family", "ranks", "capability", "name"),
    [
        ("inf2", 1, "", "ml.inf2.xlarge"),
        ("inf2", 8, "", "ml.inf2.24xlarge"),
        ("trn1", 8, "", "ml.trn1.32xlarge"),
        ("trn2", 64, "", "ml.trn2.48xlarge"),
        ("gpu", 4, "8.9", "ml.g6.12xlarge"),
        ("gpu", 8, "9.0", "ml.p5.48xlarge"),
        ("gpu", 16, "", None),
        ("gpu", 1, "12.0", None),
    ],
)
def test_the_smallest_instance(family: str, ranks: int, capability: str, name: str | None) -> None:
    """By what AWS sells."""
    found = hosts.smallest(family, ranks, capability)

    assert (None if found is None else found.name) == name


def test_an_image_of_china_has_another_domain() -> None:
    """amazonaws.com.cn."""
    assert hosts.image_uri("cn-north-1", "a:b") == "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/a:b"


# --- each rule, broken ------------------------------------------------------------------------------------------------


def change(name: str, *path: str | int, to: Any) -> Callable[[Files], Files]:
    """Change a member of a request."""

    def made(files: Files) -> Files:
        content = request(files, name)
        at = content
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = to
        return files | {name: json.dumps(content).encode()}

    return made


def everywhere(name: str, value: str) -> Callable[[Files], Files]:
    """Set a variable in each of the three files."""

    def made(files: Files) -> Files:
        variables = {**request(files, "environment.json"), name: value}
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        files = change("create_model.json", "PrimaryContainer", "Environment", to=variables)(files)
        return files | {"environment.json": json.dumps(variables).encode(), ".env": lines.encode()}

    return made


def config(**changed: Any) -> Callable[[Files], Files]:
    """Change neuron_config.json."""
    return lambda files: files | {CONFIG: json.dumps(json.loads(files[CONFIG]) | changed).encode()}


def without(path: str) -> Callable[[Files], Files]:
    """Take a file out."""
    return lambda files: {name: content for name, content in files.items() if name != path}


def add(path: str, content: bytes) -> Callable[[Files], Files]:
    """Add or replace a file."""
    return lambda files: files | {path: content}


def service(**changed: Any) -> Callable[[Files], Files]:
    """Change the container of docker-compose.yaml."""

    def made(files: Files) -> Files:
        content = yaml.safe_load(files["docker-compose.yaml"])
        content["services"]["model"] |= changed
        return files | {"docker-compose.yaml": yaml.safe_dump(content).encode()}

    return made


VARIANT = ("create_endpoint_config.json", "ProductionVariants", 0)
BROKEN: dict[str, Callable[[Files], Files]] = {
    "requests": change("create_endpoint.json", "EndpointName", to="a_b"),
    "environment": change("environment.json", "MAX_BATCH_SIZE", to="1"),
    "dotenv": lambda files: files | {".env": files[".env"] + b"MAX_BATCH_SIZE=2"},
    "image": change("create_model.json", "PrimaryContainer", "Image", to="ghcr.io/huggingface/neuronx-tgi:0.0.28"),
    "model-data": change("create_model.json", "PrimaryContainer", "ModelDataUrl", to="s3://bucket/model.tar.gz"),
    "file-names": add("model/" + "a" * 256, b""),
    "names": change("create_endpoint.json", "EndpointConfigName", to="another"),
    "instance": change(*VARIANT, "InstanceType", to="ml.trn2.48xlarge"),
    "compose": service(volumes=["./model:/data"]),
    "devices": service(devices=[]),
    "secrets": everywhere("HF_TOKEN", "x"),
    "variables": everywhere("SM_ON_BATCH_SIZE", "2"),
    "model": everywhere("MODEL_ID", "/data"),
    "files": without("model/model.pt"),
    "release": config(optimum_neuron_version="0.2.0"),
    "compiler": config(neuronxcc_version="2.15.143.0"),
    "batch": everywhere("MAX_BATCH_SIZE", "4"),
    "sequence": everywhere("MAX_TOTAL_TOKENS", "17"),
    "input": everywhere("MAX_INPUT_TOKENS", "16"),
    "prefill": everywhere("MAX_BATCH_PREFILL_TOKENS", "7"),
    "cores": everywhere("HF_NUM_CORES", "1"),
    "dtype": everywhere("HF_AUTO_CAST_TYPE", "fp32"),
}
NOTED: dict[str, Callable[[Files], Files]] = {
    "role": change("create_model.json", "ExecutionRoleArn", to=None),
    "timeouts": change(*VARIANT, to={"VariantName": "a", "ModelName": "org-tiny-llama"}),
}
BROKEN_LMI: dict[str, Callable[[Files], Files]] = {
    "precedence": everywhere("OPTION_TENSOR_PARALLEL_DEGREE", "4"),
    "lmi": lambda files: (
        files | {"model/serving.properties": files["model/serving.properties"].replace(b"=bf16", b"=bfloat16")}
    ),
}


def test_every_rule_is_broken_here() -> None:
    """A rule that was never seen failing is none; two only note what a person may have left out."""
    assert {*BROKEN, *NOTED, *BROKEN_LMI} == TARGET.rules.keys()


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_package_fails_by_the_rules_name(rule: str, optimum: Artifact) -> None:
    """A good package, changed in one way, fails that rule and no other."""
    assert failed(BROKEN[rule](package(optimum, TGI, **FULL)), TGI) == {rule}


@pytest.mark.parametrize("rule", NOTED)
def test_what_may_be_left_out_is_a_note(rule: str, optimum: Artifact) -> None:
    """SageMaker takes the request, and a person should look."""
    files = package(optimum, TGI, **FULL)
    if rule == "role":
        content = request(files, "create_model.json")
        del content["ExecutionRoleArn"]
        files["create_model.json"] = json.dumps(content).encode()
    else:
        files = NOTED[rule](files)

    assert {found.status for found in findings(files, TGI) if found.rule == rule} == {"note"}


@pytest.mark.parametrize("rule", BROKEN_LMI)
def test_a_broken_package_for_lmi_fails_by_the_rules_name(rule: str, split: Artifact) -> None:
    """A variable that the file overrules, and what LMI's own rules say."""
    assert failed(BROKEN_LMI[rule](package(split, DJL)), DJL) == {rule}


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (add("create_model.json", b"{"), "requests"),
        (add("create_model.json", b"[]"), "requests"),
        (add("create_model.json", b'{"ModelName": "a", "ModelName": "b"}'), "requests"),
        (add("create_model.json", b"[" * 100000), "requests"),
        (change(*VARIANT, "InstanceType", to="ml.trn1.2xlarge.big"), "requests"),
        (change(*VARIANT, "ContainerStartupHealthCheckTimeoutInSeconds", to=3601), "requests"),
        (change(*VARIANT, "ModelDataDownloadTimeoutInSeconds", to="600"), "requests"),
        (change(*VARIANT, "InstanceType", to="ml.g5.xlarge"), "instance"),
        (change(*VARIANT, "ModelName", to="another"), "names"),
        (change("environment.json", "MAX_BATCH_SIZE", to=2), "environment"),
        (change("create_model.json", "PrimaryContainer", "Environment", to={"A": "x" * 1025}), "requests"),
        (everywhere("HF_MODEL_ID", "/opt/ml/model"), "variables"),
        (add("docker-compose.yaml", b"services: 1"), "compose"),
    ],
)
def test_other_ways_to_break_a_package(changed: Callable[[Files], Files], rule: str, optimum: Artifact) -> None:
    """Each is named by the rule that a reader would look under."""
    assert rule in failed(changed(package(optimum, TGI, **FULL)), TGI)


def test_a_prefix_without_its_slash_would_match_other_keys(optimum: Artifact) -> None:
    """s3://bucket/llama is also the prefix of s3://bucket/llama-2/."""
    source = {"S3Uri": "s3://bucket/llama", "S3DataType": "S3Prefix", "CompressionType": "None"}
    files = change("create_model.json", "PrimaryContainer", "ModelDataSource", "S3DataSource", to=source)(
        package(optimum, **FULL)
    )

    assert failed(files) == {"model-data"}


def test_32_kib_of_variables_are_the_most(optimum: Artifact) -> None:
    """Names and values together."""
    files = package(optimum, TGI, **FULL)
    for number in range(33):
        files = everywhere(f"NOTE_{number}", "x" * 1000)(files)

    assert failed(files, TGI) == {"environment"}


def test_hf_model_id_is_what_older_start_scripts_want(optimum: Artifact) -> None:
    """That of 0.2.0 stops without HF_MODEL_ID; that of 0.3.0 stops without MODEL_ID."""
    files = package(optimum, TGI)
    variables = {name: value for name, value in request(files, "environment.json").items() if name != "MODEL_ID"}
    variables["HF_MODEL_ID"] = "/opt/ml/model"
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    files = change("create_model.json", "PrimaryContainer", "Environment", to=variables)(files)
    files |= {"environment.json": json.dumps(variables).encode(), ".env": lines.encode()}

    assert "variables" in failed(files, TGI)
    assert "variables" not in failed(files, "optimum-0.2.0")


LMI_IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.29.0-neuronx-sdk2.19.1"
TGI_IMAGE = (
    "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-tgi-inference:"
    "2.5.1-optimum3.3.4-neuronx-py310-ubuntu22.04"
)
HUB = {"HF_MODEL_ID": "org/model", "MAX_BATCH_SIZE": "4", "MAX_TOTAL_TOKENS": "2048"}
ARCHIVE = {"ModelDataUrl": "s3://bucket/model.tar.gz"}


def alone(member: str = "PrimaryContainer", *containers: dict[str, Any]) -> Files:
    """Nothing but a request to create a model."""
    value: object = containers[0] if member == "PrimaryContainer" else list(containers)
    content = {"ModelName": "a", member: value, "ExecutionRoleArn": ROLE}
    return {"create_model.json": json.dumps(content).encode()}


@pytest.mark.parametrize(
    ("container", "rules"),
    [
        ({"Image": LMI_IMAGE, **ARCHIVE}, {"file-names", "lmi"}),
        ({"Image": LMI_IMAGE, "Environment": {"HF_MODEL_ID": "org/model"}}, {"file-names", "lmi"}),
        ({"Image": TGI_IMAGE, "Environment": HUB}, {"file-names", "files"}),
        ({"Image": TGI_IMAGE, **ARCHIVE, "Environment": HUB | {"HF_MODEL_ID": "/opt/ml/model"}}, {"files"}),
        ({"Image": f"a.com/{toolkit.REPOSITORY}", **ARCHIVE, "Environment": {"HF_TASK": "fill-mask"}}, {"files"}),
    ],
)
def test_a_model_elsewhere_is_not_looked_for_here(container: dict[str, Any], rules: set[str]) -> None:
    """In S3, or on the hub: what is about its files is skipped."""
    found = findings(alone("PrimaryContainer", container), None)

    assert [item for item in found if item.status == "failed"] == []
    assert rules <= {item.rule for item in found if item.status == "skipped"}
    assert {item.rule for item in found} == TARGET.rules.keys()


def test_a_model_of_the_hub_is_noted() -> None:
    """It is not compiled ahead of time; and something says where it is."""
    found = findings(alone("PrimaryContainer", {"Image": TGI_IMAGE, "Environment": HUB}), None)

    assert [item.status for item in found if item.rule == "model"] == ["note"]
    assert [item.status for item in found if item.rule == "model-data"] == ["ok"]


def test_a_model_that_is_nowhere_fails() -> None:
    """No place in S3, no hub id, and no folder."""
    assert "file-names" in failed(alone("PrimaryContainer", {"Image": TGI_IMAGE}), None)


def test_the_first_of_several_containers_is_looked_at() -> None:
    """Containers stands in PrimaryContainer's place."""
    container = {"Image": TGI_IMAGE, **ARCHIVE, "Environment": HUB}
    found = findings(alone("Containers", container, {"Image": "a.com/b:c", "Environment": {"HF_TOKEN": "x"}}), None)

    assert {item.subject for item in found if item.rule == "model-data"} == {
        "create_model.json: Containers[0].ModelDataUrl"
    }
    assert [item.status for item in found if item.rule == "image"] == ["note", "ok"]
    assert [item.subject for item in found if item.status == "failed"] == ["create_model.json: Containers[1]: HF_TOKEN"]


def test_containers_are_checked_as_the_api_does() -> None:
    """Each of them."""
    assert faults({"ModelName": "a", "Containers": [{}, {"Image": "a b"}]}, "CreateModelInput") == [
        "Containers[1].Image"
    ]


def test_a_file_that_is_not_there_is_not_named() -> None:
    """Without an environment, the request is where one is missed."""
    found = findings(alone("Containers", {"Image": TGI_IMAGE, **ARCHIVE}), None)

    assert not any("environment.json" in item.subject for item in found)


def test_the_model_folder_is_named_once() -> None:
    """As a path in the package, whatever the package is called."""
    files = {**alone("PrimaryContainer", {"Image": LMI_IMAGE}), "model/serving.properties": b"engine=Python\n"}

    subjects = [found.subject for found in findings(files, "lmi-0.29") if found.rule == "lmi"]

    assert [subject for subject in subjects if "package" in subject] == []
    assert "model" in {subject.partition(":")[0] for subject in subjects}


@given(
    st.dictionaries(
        st.sampled_from([*api.REQUESTS, "environment.json", ".env", "docker-compose.yaml", CONFIG, "llmcompile.json"]),
        st.binary(max_size=200)
        | st.sampled_from([b"{}", b"[]", b'{"PrimaryContainer": {"Environment": {"A": 1}}}', b'{"A": null}']),
    ),
    st.sampled_from([None, VLLM, TGI, DJL, ENCODER, "optimum-0.0.24"]),
)
def test_any_bytes_give_findings_and_nothing_else(files: Files, version: str | None) -> None:
    """A folder of nonsense has a finding for every rule."""
    tree = tree_of(files)
    TARGET.detect(tree)

    assert {found.rule for found in TARGET.lint(tree, Serving(version))} == TARGET.rules.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["ModelName", "PrimaryContainer", "Tags", "x"]), JSON),
    st.dictionaries(st.sampled_from(["ProductionVariants", "EndpointConfigName"]), JSON | st.lists(JSON)),
)
def test_any_json_gives_findings_and_nothing_else(model: dict[str, Any], endpoint: dict[str, Any]) -> None:
    """Requests of any shape are read without a traceback."""
    files = {
        "create_model.json": json.dumps(model).encode(),
        "create_endpoint_config.json": json.dumps(endpoint).encode(),
    }

    assert {found.rule for found in TARGET.lint(tree_of(files), Serving(VLLM))} == TARGET.rules.keys()
