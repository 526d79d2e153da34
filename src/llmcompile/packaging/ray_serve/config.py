"""The two files of a package: the LLMConfig by itself, and the Serve config file with the same LLMConfig in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import yaml

from llmcompile.errors import OptionsError
from llmcompile.packaging.ray_serve import RayServeOptions
from llmcompile.packaging.ray_serve.releases import (
    ALIASES,
    IMPORTS_BOTO3,
    NODES,
    UNLABELLED,
    accelerators,
    azure_form,
    minor,
    schemes,
)

BUILDER = "ray.serve.llm:build_openai_app"
UNLIMITED = 49
"""Since 2.49 the LLM builder lets a replica take any number of requests; before, 20."""


def files(config: Mapping[str, Any], release: str) -> dict[str, str]:
    """serve.yaml and <org>--<name>.yaml.

    The LLMConfig stands in serve.yaml itself: a path there is resolved in the working directory of the Ray node that
    builds the application (tried with ray 2.60.0: where `ray start` was typed), which is not the package.
    """
    model_id = config["model_loading_config"]["model_id"]
    arguments = {"llm_configs": [config]}
    application = {"name": "llm", "route_prefix": "/", "import_path": BUILDER, "args": arguments}
    return {
        "serve.yaml": f"# Ray Serve {release}\n{_dump({'applications': [application]})}",
        f"{file_name(model_id)}.yaml": f"# LLMConfig of Ray Serve {release}\n{_dump(config)}",
    }


def file_name(model_id: str) -> str:
    """How files and folders of a model are called: "org--name"."""
    return model_id.replace("/", "--")


def check_model_id(model_id: str, subject: str) -> str:
    """A model's id that can stand in a URL and in a file's name.

    Raises:
        OptionsError: It cannot.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*", model_id, re.ASCII) is None:
        expected = "letters, digits, '.', '_' and '-', parts joined by '/'"
        raise OptionsError(subject, repr(model_id), expected, "add --model-id ORG/NAME")
    return model_id


def checked_accelerator(name: str, release: str) -> str:
    """The accelerator as LLMConfig holds it.

    Raises:
        OptionsError: The release has none of this name, or vLLM's plug-in for it was not verified.
    """
    known = accelerators(release)
    name = ALIASES.get(name, name)
    if name == "aws-neuron-core":
        found = "vLLM on Neuron was not verified with Ray Serve"
        raise OptionsError("--accelerator-type aws-neuron-core", found, hint="llmcompile package tgi ARTIFACT OUTPUT")
    if name not in known:
        folded = {word.lower(): word for word in known}
        near = [folded[word] for word in get_close_matches(name.lower(), folded, 3)]
        hint = f"did you mean {' or '.join(near)}?" if len(near) > 0 else "leave --accelerator-type out for any GPU"
        raise OptionsError("--accelerator-type", name, f"one of {', '.join(known)} in Ray {release}", hint)
    return name


def accelerator_notes(name: str | None) -> tuple[str, ...]:
    """What must be done on the nodes for an accelerator."""
    if name not in UNLABELLED:
        return ()
    return (
        f"Ray labels a node A100, not {name}, by itself: start these nodes with "
        f"""--resources '{{"accelerator_type:{name}": 1}}', or package with --accelerator-type A100.""",
    )


def checked_bucket(uri: str, release: str) -> str:
    """A bucket's URI.

    Raises:
        OptionsError: The release cannot read it.
    """
    known = schemes(release)
    if not uri.startswith(known) or uri.rstrip("/").endswith(":") or re.search(r"\s", uri) is not None:
        hint = "write the bucket and the folder in it, like s3://bucket/models/name"
        raise OptionsError("--bucket-uri", uri, f"a URI of {', '.join(known)} in Ray {release}", hint)
    form = azure_form(uri)
    if form is not None:
        raise OptionsError("--bucket-uri", uri, form, "Ray Serve takes the account from the host's name")
    if "?" in uri or re.match(r"\w+://[^/@]*:[^/@]*@", uri) is not None:
        found = "a query or a password in the URI"
        raise OptionsError("--bucket-uri", found, "bucket and folder alone", "give credentials to the nodes instead")
    return uri.rstrip("/")


def checked_path(path: str) -> str:
    """A folder as the nodes see it.

    Raises:
        OptionsError: It is not absolute.
    """
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        hint = "a hub id needs no package: write it into the LLMConfig; for a bucket there is --bucket-uri"
        raise OptionsError("--model-source", path, "an absolute path, as the nodes see the folder", hint)
    return path


def check_sources(options: RayServeOptions) -> None:
    """Refuse two places to load from.

    Raises:
        OptionsError: A bucket and a path.
    """
    if options.bucket_uri is not None and options.model_source is not None:
        found = f"{options.bucket_uri} and {options.model_source}"
        raise OptionsError("--bucket-uri and --model-source", found, "one of them", "drop --model-source")


def replicas(options: RayServeOptions, fewest: int, most: int, release: str, target: float | None) -> dict[str, Any]:
    """deployment_config's autoscaling_config; num_replicas would not undo the LLM builder's own range before 2.49.

    Args:
        options: What was asked; --min-replicas and --max-replicas replace `fewest` and `most`.
        fewest: Where nothing was asked.
        most: Where nothing was asked.
        release: Of Ray.
        target: Requests per replica, where nothing was asked.

    Raises:
        OptionsError: The range is empty, or nothing says when to leave its lower end.
    """
    least = fewest if options.min_replicas is None else options.min_replicas
    greatest = max(most, least, 1) if options.max_replicas is None else options.max_replicas
    wanted = target if options.target_ongoing_requests is None else options.target_ongoing_requests
    if least > greatest:
        hint = f"add --max-replicas {least}, or lower --min-replicas"
        raise OptionsError("--max-replicas", str(greatest), f"at least --min-replicas {least}", hint)
    if wanted is not None and wanted <= 0:
        raise OptionsError("--target-ongoing-requests", str(wanted), "more than 0", "add --target-ongoing-requests 24")
    if options.max_ongoing_requests is not None and options.max_ongoing_requests < 1:
        found = str(options.max_ongoing_requests)
        raise OptionsError("--max-ongoing-requests", found, "at least 1", "leave it out for the release's own")
    if least < greatest and wanted is None:
        default = "1000000000" if minor(release) >= UNLIMITED else "2"
        found = f"{least} to {greatest} replicas without --target-ongoing-requests"
        expected = f"a number; Ray {release} would take {default}"
        raise OptionsError("--max-replicas", found, expected, "add --target-ongoing-requests 24")
    made: dict[str, Any] = {"min_replicas": least, "max_replicas": greatest}
    return made if wanted is None else {**made, "target_ongoing_requests": whole(wanted)}


def whole(number: float) -> float:
    """A number as a person writes it: 24, not 24.0."""
    return int(number) if float(number).is_integer() else number


def bucket_notes(uri: str, release: str) -> tuple[str, ...]:
    """What must be on the nodes to read a bucket."""
    for scheme, (since, packages) in NODES.items():
        if uri.startswith(scheme) and minor(release) >= since:
            return (f"The nodes need {packages} to read {scheme}: pip install {packages}.",)
    return ()


def request_notes(config: Mapping[str, Any], release: str) -> tuple[str, ...]:
    """What a release does about the number of requests where the LLMConfig says nothing."""
    if "max_ongoing_requests" in config["deployment_config"] or minor(release) >= UNLIMITED:
        return ()
    return (f"Ray {release} gives a replica at most 20 requests at once; --max-ongoing-requests says more.",)


def commands(release: str, bucket: str | None) -> tuple[str, ...]:
    """What to type next; the hash file goes up last, as the mark that the mirror is complete."""
    first, last = IMPORTS_BOTO3
    boto3 = " boto3" if first <= minor(release) <= last else ""
    serve = (f'pip install "ray[serve,llm]=={release}.*"{boto3}', "serve run {output}/serve.yaml")
    if bucket is None:
        return serve
    if bucket.startswith("s3://"):
        upload = (
            f"aws s3 cp --recursive --exclude hash {{output}}/mirror {bucket}",
            f"aws s3 cp {{output}}/mirror/hash {bucket}/hash",
        )
    elif bucket.startswith("gs://"):
        upload = (
            f"gcloud storage rsync --exclude '^hash$' {{output}}/mirror {bucket}",
            f"gcloud storage cp {{output}}/mirror/hash {bucket}/hash",
        )
    else:
        upload = (
            f"upload every file of {{output}}/mirror but hash to {bucket}",
            f"upload {{output}}/mirror/hash to {bucket}/hash",
        )
    return (*upload, *serve)


def _dump(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
