"""Makes a package for SageMaker: requests, environment, and the model as its image takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompile.errors import LlmCompileError, OptionsError, Problem, UnsupportedError, collected
from llmcompile.packaging import compose, dotenv, neuron_env
from llmcompile.packaging.lmi import TARGET as LMI
from llmcompile.packaging.lmi import LmiOptions
from llmcompile.packaging.neuron_env import IMAGES, Limits
from llmcompile.packaging.sagemaker import FAMILIES, PORT, SageMakerOptions
from llmcompile.packaging.sagemaker.hosts import (
    ACCOUNTS,
    INSTANCES,
    LMI_TAGS,
    VLLM_REGIONS,
    Instance,
    image_uri,
    smallest,
)
from llmcompile.packaging.sagemaker.names import (
    ARCHIVE,
    COMPOSE,
    CONFIG,
    DJL,
    ENCODERS,
    ENDPOINT,
    ENV,
    ENVIRONMENT,
    FOLDER,
    JOB,
    MODEL,
    MOUNT,
    OPTIMUM,
    TRANSFORMERS,
)
from llmcompile.packaging.target import KINDS, Package, Request
from llmcompile.writing import MANIFEST

if TYPE_CHECKING:
    from llmcompile.packaging.artifact import Artifact

_STARTUP_SECONDS = 3600
"""The most that SageMaker waits. Source: huggingface/optimum-neuron@v0.4.5:notebooks/sagemaker."""
_BYTES_PER_SECOND = 50 << 20
"""Of a download from S3: a careful guess."""
_JOB_SECONDS = 36000
"""Of an optimization job. Source: aws/sagemaker-python-sdk, ModelBuilder.optimize: max_runtime_in_sec."""
_NEURON_AMI = "al2-ami-sagemaker-inference-neuron-2"
_QUANTIZE = (("W4A16_AWQ", "awq"), ("FP8", "fp8"), ("W8A8_SQ", "smoothquant"))
"""Beginning of an engine's recipe -> LMI's word. Source: djl-serving's lmi docs, option.quantize of TensorRT-LLM."""


@dataclass(frozen=True)
class _Served:
    """What a container is given.

    Attributes:
        environment: Its variables.
        inner: The model's folder.
        repository: Of AWS's image, with its tag; None where it has none.
        public: Image that starts alike, for any host; None where there is none.
        instance: The smallest that fits; None where none does.
        ami: Of the host, where it must be a certain one.
        regions: That AWS's list has the image in; empty for all.
    """

    environment: Mapping[str, str]
    inner: Package
    repository: str | None
    public: str | None
    instance: Instance | None
    ami: str | None
    regions: tuple[str, ...] = ()


def plan(artifact: Artifact, options: SageMakerOptions, request: Request) -> Package:
    """Lay out a package.

    Raises:
        OptionsError: An option contradicts the artifact, or is not what SageMaker's API takes.
        UnsupportedError: The image would refuse the model.
    """
    _check(options)
    kinds = {OPTIMUM: _optimum, DJL: _lmi, ENCODERS: _encoder}
    made = next(serve for prefix, serve in kinds.items() if request.version.startswith(prefix))(
        artifact, options, request
    )
    name = _name(artifact.model) if options.model_name is None else options.model_name
    uri = options.image_uri
    if uri is None and options.region is not None and made.repository is not None:
        uri = image_uri(options.region, made.repository)
    instance = _instance(artifact, options, made)
    size = sum(artifact.tree.files[source] for source in made.inner.links.values())
    requests: dict[str, Mapping[str, Any]] = {
        ENVIRONMENT: dict(made.environment),
        MODEL: _create_model(name, uri, options, made.environment),
        CONFIG: _create_config(name, instance, made.ami, size),
        ENDPOINT: {"EndpointName": name, "EndpointConfigName": name},
    }
    if options.source_s3_uri is not None:
        requests[JOB] = _create_job(artifact, name, instance, options)
    _check_requests(requests)
    texts = {file: json.dumps(content, indent=2) + "\n" for file, content in requests.items()}
    texts[ENV] = dotenv.write(made.environment)
    local = made.public if uri is None else uri
    if local is not None:
        texts[COMPOSE] = compose.write({"model": _service(artifact, local, options, request)})
    texts |= {f"{FOLDER}/{path}": text for path, text in made.inner.texts.items()}
    return Package(
        texts=texts,
        links={f"{FOLDER}/{path}": source for path, source in made.inner.links.items()},
        folders=tuple(f"{FOLDER}/{path}" for path in made.inner.folders),
        last=tuple(f"{FOLDER}/{path}" for path in made.inner.last),
        runtime=made.inner.runtime,
        notes=(*made.inner.notes, *_notes(request, options, made, uri)),
        next=_next(options),
    )


def _check(options: SageMakerOptions) -> None:
    from llmcompile.packaging.sagemaker import api

    problems = []
    for name, value, shape, example in (
        ("--model-name", options.model_name, "ModelName", "letters, digits and hyphens, at most 63"),
        ("--role-arn", options.role_arn, "RoleArn", "arn:aws:iam::123456789012:role/NAME"),
        ("--image-uri", options.image_uri, "ContainerImage", "ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"),
        ("--s3-uri", options.s3_uri, "S3ModelUri", "s3://BUCKET/PREFIX/"),
        ("--source-s3-uri", options.source_s3_uri, "S3Uri", "s3://BUCKET/PREFIX/"),
    ):
        if value is not None and any(True for _ in api.check(value, shape)):
            problems.append(Problem(name, repr(value)[:90], example, "correct it"))
    if options.region is not None and options.region not in ACCOUNTS:
        known = ", ".join(sorted(ACCOUNTS))
        problems.append(Problem("--region", options.region, f"one of {known}", "give --image-uri instead"))
    if options.port > 65535:
        problems.append(Problem("--port", str(options.port), "at most 65535", "choose another port"))
    if options.source_s3_uri is not None:
        for needed, value in (
            ("--role-arn", options.role_arn),
            ("--s3-uri", options.s3_uri),
            ("--region", options.region),
        ):
            if value is None:
                problems.append(Problem("--source-s3-uri", f"without {needed}", f"{needed} too", f"add {needed}"))
    if problems != []:
        raise collected(OptionsError, problems)


def _optimum(artifact: Artifact, options: SageMakerOptions, request: Request) -> _Served:
    """By the image with the release of optimum-neuron that made the model."""
    image = IMAGES[request.version.removeprefix(OPTIMUM)]
    try:
        record = neuron_env.servable(artifact, image, request.runtime_version)
    except LlmCompileError as error:
        raise _in_our_words(error, "--target-version ", OPTIMUM) from error
    limits = Limits(batch=options.max_batch_size, sequence=options.max_total_tokens, input=options.max_input_tokens)
    environment = neuron_env.environment(record, image, limits, model=MOUNT, task=artifact.task, sagemaker=True)
    links = {path: path for path in artifact.tree.files if path != MANIFEST}
    runtime = image.compiler if request.runtime_version is None else request.runtime_version
    assert artifact.manifest is not None
    assert artifact.manifest.neuron is not None
    family = artifact.manifest.neuron.target
    assert record.cores is not None
    return _Served(
        environment=environment,
        inner=Package(texts={}, links=links, runtime=runtime, notes=(neuron_env.fetched(record),)),
        repository=image.sagemaker,
        public=image.docker if image.vllm else None,
        instance=smallest(family, record.cores),
        ami=_NEURON_AMI if image.vllm else None,
        regions=VLLM_REGIONS if image.vllm else (),
    )


def _encoder(artifact: Artifact, options: SageMakerOptions, request: Request) -> _Served:
    """By Hugging Face's inference image, which runs a pipeline of transformers."""
    from llmcompile.packaging.sagemaker import toolkit

    for name, value in (
        ("--max-batch-size", options.max_batch_size),
        ("--max-total-tokens", options.max_total_tokens),
        ("--max-input-tokens", options.max_input_tokens),
    ):
        if value is not None:
            raise OptionsError(name, "an encoder has the shapes that it was compiled for", "", f"leave {name} out")
    environment = toolkit.environment(artifact, request.runtime_version)
    links = {path: path for path in artifact.tree.files if path != MANIFEST}
    runtime = toolkit.COMPILER if request.runtime_version is None else request.runtime_version
    assert artifact.manifest is not None
    assert artifact.manifest.neuron is not None
    return _Served(
        environment=environment,
        inner=Package(texts={}, links=links, runtime=runtime),
        repository=toolkit.REPOSITORY,
        public=None,
        instance=smallest(artifact.manifest.neuron.target, 1),
        ami=None,
    )


def _in_our_words(error: LlmCompileError, flag: str, prefix: str) -> LlmCompileError:
    """The error of another target, whose hint names a release by its own flag."""
    return collected(
        type(error),
        [
            Problem(
                problem.subject,
                problem.found,
                problem.expected,
                problem.hint.replace(flag, f"--target-version {prefix}"),
            )
            for problem in error.problems
        ],
    )


def _lmi(artifact: Artifact, options: SageMakerOptions, request: Request) -> _Served:
    """By LMI, whose own package the model's folder is."""
    for name, value in (
        ("--max-total-tokens", options.max_total_tokens),
        ("--max-input-tokens", options.max_input_tokens),
    ):
        if value is not None:
            raise OptionsError(name, "LMI takes what was built", "", f"leave {name} out")
    release = request.version.removeprefix(DJL)
    asked = Request(release, request.runtime_version)
    try:
        inner = LMI.plan(artifact, LmiOptions(max_batch_size=options.max_batch_size), asked)
    except LlmCompileError as error:
        raise _in_our_words(error, "--lmi-version ", DJL) from error
    tag = LMI_TAGS[FAMILIES[artifact.kind]].get(release)
    if artifact.kind.startswith("neuron"):
        assert artifact.manifest is not None
        assert artifact.manifest.neuron is not None
        instance = smallest(artifact.manifest.neuron.target, artifact.tp * artifact.pp)
    else:
        built = None if artifact.manifest is None else artifact.manifest.engine
        capability = "" if built is None or built.compute_capability is None else built.compute_capability
        instance = smallest("gpu", artifact.tp * artifact.pp, capability)
    repository = None if tag is None else f"djl-inference:{tag}"
    return _Served({}, inner, repository, None, instance, None)


def _name(model: str) -> str:
    """A name for SageMaker: the last part of a hub id or folder, as far as its letters go."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-")
    return plain[:63].strip("-") or "model"


def _instance(artifact: Artifact, options: SageMakerOptions, made: _Served) -> Instance:
    ranks = artifact.tp * artifact.pp
    if options.instance_type is None:
        if made.instance is None:
            found = f"no instance of SageMaker with {ranks} accelerators of the kind it was built for"
            raise UnsupportedError(str(artifact.path), found, "", "add --instance-type, or build for fewer ranks")
        return made.instance
    chosen = INSTANCES.get(options.instance_type)
    if chosen is None:
        known = ", ".join(INSTANCES)
        raise OptionsError("--instance-type", options.instance_type, f"one of {known}", "choose one of these")
    if chosen.accelerators < ranks:
        found = f"{chosen.name} has {chosen.accelerators} accelerators"
        hint = "leave it out" if made.instance is None else f"add --instance-type {made.instance.name}"
        raise OptionsError("--instance-type", found, f"at least {ranks}: the model's ranks", hint)
    return chosen


def _create_model(
    name: str, uri: str | None, options: SageMakerOptions, environment: Mapping[str, str]
) -> Mapping[str, Any]:
    container: dict[str, Any] = {} if uri is None else {"Image": uri}
    if options.s3_uri is not None and options.tar:
        container["ModelDataUrl"] = _archive(options.s3_uri)
    elif options.s3_uri is not None:
        prefix = f"{options.s3_uri.rstrip('/')}/"
        container["ModelDataSource"] = {
            "S3DataSource": {"S3Uri": prefix, "S3DataType": "S3Prefix", "CompressionType": "None"}
        }
    container["Environment"] = dict(environment)
    role = {} if options.role_arn is None else {"ExecutionRoleArn": options.role_arn}
    return {"ModelName": name, "PrimaryContainer": container, **role}


def _archive(uri: str) -> str:
    return uri if uri.endswith(".tar.gz") else f"{uri.rstrip('/')}/{ARCHIVE}"


def _create_config(name: str, instance: Instance, ami: str | None, size: int) -> Mapping[str, Any]:
    seconds = min(max(600, -(-size // _BYTES_PER_SECOND)), 3600)
    gigabytes = min(512, 64 + 2 * (size >> 30))
    return {
        "EndpointConfigName": name,
        "ProductionVariants": [
            {
                "VariantName": "AllTraffic",
                "ModelName": name,
                "InitialInstanceCount": 1,
                "InstanceType": instance.name,
                **({"VolumeSizeInGB": gigabytes} if instance.disk else {}),
                "ModelDataDownloadTimeoutInSeconds": seconds,
                "ContainerStartupHealthCheckTimeoutInSeconds": _STARTUP_SECONDS,
                **({} if ami is None else {"InferenceAmiVersion": ami}),
            }
        ],
    }


def _create_job(artifact: Artifact, name: str, instance: Instance, options: SageMakerOptions) -> Mapping[str, Any]:
    """A job in which LMI's image compiles the model for what this artifact was compiled for."""
    assert options.s3_uri is not None
    assert options.region is not None
    family = FAMILIES[artifact.kind]
    if family not in ("neuronx", "tensorrtllm"):
        found = f"{KINDS[artifact.kind]} is not compiled"
        raise OptionsError("--source-s3-uri", found, "a TensorRT-LLM engine or a Neuron export", "leave it out")
    tags = LMI_TAGS[family]
    quantize = next((word for begin, word in _QUANTIZE if (artifact.quantization or "").startswith(begin)), None)
    if artifact.quantization is not None and quantize is None:
        found = f"LMI has no word for {artifact.quantization}"
        expected = ", ".join(begin for begin, _ in _QUANTIZE)
        raise UnsupportedError("--source-s3-uri", found, expected, "leave it out")
    record = neuron_env.read_record(artifact.tree) if family == "neuronx" else None
    dtype = artifact.dtype if record is None or record.dtype is None else record.dtype
    said: Mapping[str, object] = {
        "OPTION_TENSOR_PARALLEL_DEGREE": artifact.tp,
        "OPTION_PIPELINE_PARALLEL_DEGREE": artifact.pp if family == "tensorrtllm" else None,
        "OPTION_DTYPE": dtype,
        "OPTION_MAX_ROLLING_BATCH_SIZE": artifact.batch_size,
        "OPTION_N_POSITIONS": artifact.sequence_length if family == "neuronx" else None,
        "OPTION_MAX_INPUT_LEN": artifact.input_length if family == "tensorrtllm" else None,
        "OPTION_QUANTIZE": quantize,
    }
    config = {
        "Image": image_uri(options.region, f"djl-inference:{next(iter(tags.values()))}"),
        "OverrideEnvironment": {key: str(value) for key, value in said.items() if value is not None},
    }
    step = "ModelCompilationConfig" if quantize is None else "ModelQuantizationConfig"
    return {
        "OptimizationJobName": name,
        "RoleArn": options.role_arn,
        "ModelSource": {"S3": {"S3Uri": f"{options.source_s3_uri.rstrip('/')}/" if options.source_s3_uri else ""}},
        "DeploymentInstanceType": instance.name,
        "OptimizationConfigs": [{step: config}],
        "OutputConfig": {"S3OutputLocation": f"{_prefix(options.s3_uri)}-optimized/"},
        "StoppingCondition": {"MaxRuntimeInSeconds": _JOB_SECONDS},
    }


def _prefix(uri: str) -> str:
    return uri.removesuffix(f"/{ARCHIVE}").rstrip("/")


def _check_requests(requests: Mapping[str, Mapping[str, Any]]) -> None:
    """What is made of options is what the API takes; anything else would be refused a step later.

    Raises:
        OptionsError: A request is not.
    """
    from llmcompile.packaging.sagemaker import api

    problems = [
        Problem(f"{file}: {fault.path}", fault.found, fault.expected, "change the option it was made of")
        for file, shape in api.REQUESTS.items()
        if file in requests
        for fault in api.check(requests[file], shape)
    ]
    if problems != []:
        raise collected(OptionsError, problems)


def _service(artifact: Artifact, image: str, options: SageMakerOptions, request: Request) -> Mapping[str, Any]:
    """The container as SageMaker would start it, to try it on a host that has the accelerators."""
    ranks = artifact.tp * artifact.pp
    neuron = artifact.kind.startswith("neuron")
    target = None if artifact.manifest is None or artifact.manifest.neuron is None else artifact.manifest.neuron.target
    gpus = {"driver": "nvidia", "count": ranks, "capabilities": ["gpu"]}
    return {
        "image": image,
        **({"command": ["serve"]} if request.version.startswith(DJL) else {}),
        "env_file": [ENV],
        "ports": [f"{options.port}:{PORT}"],
        **(
            {"devices": [f"/dev/neuron{number}" for number in range(neuron_env.devices_for(ranks, target))]}
            if neuron
            else {"deploy": {"resources": {"reservations": {"devices": [gpus]}}}, "shm_size": "12gb"}
        ),
        "volumes": [f"./{FOLDER}:{MOUNT}"],
    }


def _notes(request: Request, options: SageMakerOptions, made: _Served, uri: str | None) -> tuple[str, ...]:
    notes = []
    left_out = [
        words
        for words, value in (("an image", uri), ("a role", options.role_arn), ("a place in S3", options.s3_uri))
        if value is None
    ]
    if left_out != []:
        notes.append(f"{MODEL} has no {', no '.join(word.partition(' ')[2] for word in left_out)}: write it in")
    if made.repository is None and options.image_uri is None:
        notes.append(f"AWS's list has no image for {request.version}: build your own, and give --image-uri")
    if uri is not None and made.regions != () and options.image_uri is None and options.region not in made.regions:
        notes.append(f"AWS's list has this image in {', '.join(made.regions)}, and not in {options.region}")
    if options.image_uri is not None:
        notes.append(f"checked for {request.version}; {options.image_uri} was not seen")
    if options.instance_type is None:
        notes.append("the instance is the smallest with enough accelerators; its memory was not counted")
    return tuple(notes)


def _next(options: SageMakerOptions) -> tuple[str, ...]:
    place = "s3://BUCKET/PREFIX/" if options.s3_uri is None else options.s3_uri
    upload = (
        (f"tar -C {{output}}/{FOLDER} -czf {ARCHIVE} .", f"aws s3 cp {ARCHIVE} {_archive(place)}")
        if options.tar
        else (f"aws s3 sync {{output}}/{FOLDER} {place.rstrip('/')}/",)
    )
    return (
        *upload,
        f"aws sagemaker create-model --cli-input-json file://{{output}}/{MODEL}",
        f"aws sagemaker create-endpoint-config --cli-input-json file://{{output}}/{CONFIG}",
        f"aws sagemaker create-endpoint --cli-input-json file://{{output}}/{ENDPOINT}",
    )


def prefer(artifact: Artifact, serving: Sequence[str]) -> str | None:
    """The image with the release of optimum-neuron that made the artifact; of LMI what that target prefers."""
    from llmcompile.packaging.sagemaker import toolkit

    if artifact.kind == "neuron-optimum" and toolkit.is_encoder(artifact.tree):
        return f"{ENCODERS}{TRANSFORMERS}"
    if artifact.kind == "neuron-optimum":
        made = neuron_env.made_by(artifact)
        return f"{OPTIMUM}{made}" if f"{OPTIMUM}{made}" in serving else None
    own = [name.removeprefix(DJL) for name in serving if name.startswith(DJL)]
    preferred = None if LMI.prefer is None else LMI.prefer(artifact, own)
    return None if preferred is None else f"{DJL}{preferred}"
