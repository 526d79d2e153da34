"""What SageMaker has: instances with their accelerators, regions with their registries, and LMI's images.

Sources: aws/sagemaker-python-sdk@a248126:sagemaker-core/src/sagemaker/core/image_uri_config (accounts, tags);
instance types are those of botocore 1.44.5's ProductionVariantInstanceType; NeuronCores are those of
aws-neuron/aws-neuron-sdk@81ce03ae:about-neuron/arch/neuron-hardware, a core of trn2 being two physical ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Instance:
    """An instance type.

    Attributes:
        name: With "ml." before it.
        family: inf2, trn1, trn1n, trn2, or "gpu".
        accelerators: NeuronCores or GPUs.
        capability: Compute capability of its GPUs; empty for others.
        disk: Whether it has a volume whose size is asked for, and no disks of its own.
    """

    name: str
    family: str
    accelerators: int
    capability: str = ""
    disk: bool = False


def _gpus(family: str, capability: str, sizes: Mapping[str, int]) -> tuple[Instance, ...]:
    return tuple(Instance(f"ml.{family}.{size}", "gpu", count, capability) for size, count in sizes.items())


_ONE = dict.fromkeys(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), 1)
_G = _ONE | {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}
INSTANCES: Mapping[str, Instance] = MappingProxyType(
    {
        made.name: made
        for made in (
            Instance("ml.inf2.xlarge", "inf2", 2, disk=True),
            Instance("ml.inf2.8xlarge", "inf2", 2, disk=True),
            Instance("ml.inf2.24xlarge", "inf2", 12, disk=True),
            Instance("ml.inf2.48xlarge", "inf2", 24, disk=True),
            Instance("ml.trn1.2xlarge", "trn1", 2),
            Instance("ml.trn1.32xlarge", "trn1", 32),
            Instance("ml.trn1n.32xlarge", "trn1n", 32),
            Instance("ml.trn2.48xlarge", "trn2", 64),
            *_gpus("g5", "8.6", _G),
            *_gpus("g6", "8.9", _G),
            *_gpus("g6e", "8.9", _G),
            *_gpus("g4dn", "7.5", _ONE | {"12xlarge": 4}),
            *_gpus("p3", "7.0", {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8}),
            *_gpus("p4d", "8.0", {"24xlarge": 8}),
            *_gpus("p4de", "8.0", {"24xlarge": 8}),
            *_gpus("p5", "9.0", {"4xlarge": 1, "48xlarge": 8}),
            *_gpus("p5e", "9.0", {"48xlarge": 8}),
            *_gpus("p5en", "9.0", {"48xlarge": 8}),
            *_gpus("p6-b200", "10.0", {"48xlarge": 8}),
            *_gpus("p6-b300", "10.3", {"48xlarge": 8}),
        )
    }
)
SAME_CODE = ("inf2", "trn1", "trn1n")
"""Families that run one another's graphs.

Source: huggingface/optimum-neuron@v0.4.5:optimum/neuron/utils/instance.py.
"""


def smallest(family: str, accelerators: int, capability: str = "") -> Instance | None:
    """The first instance of the table that has so many accelerators; None where no one has."""
    fitting = [
        made
        for made in INSTANCES.values()
        if made.family == family and made.accelerators >= accelerators and capability in ("", made.capability)
    ]
    return min(fitting, key=lambda made: made.accelerators) if fitting != [] else None


_MOST = "763104351884"
ACCOUNTS: Mapping[str, str] = {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
} | dict.fromkeys(
    (
        "ap-northeast-1",
        "ap-northeast-2",
        "ap-south-1",
        "ap-southeast-1",
        "ap-southeast-2",
        "ca-central-1",
        "eu-central-1",
        "eu-north-1",
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
        "sa-east-1",
        "us-east-1",
        "us-east-2",
        "us-west-1",
        "us-west-2",
    ),
    _MOST,
)
"""Region -> account of its registry. Those of AWS's closed partitions are left out."""
VLLM_REGIONS = (
    "ap-northeast-1",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "eu-central-1",
    "eu-west-1",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-2",
)
"""Where the SDK lists optimum-neuron's vLLM image. Source: huggingface-vllm-neuronx.json there."""
LMI_TAGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lmi": {
            "0.36": "0.36.0-lmi27.0.0-cu130",
            "0.35": "0.35.0-lmi17.0.0-cu128",
            "0.34": "0.34.0-lmi16.0.0-cu128",
            "0.33": "0.33.0-lmi15.0.0-cu128",
            "0.32": "0.32.0-lmi14.0.0-cu126",
            "0.31": "0.31.0-lmi13.0.0-cu124",
            "0.30": "0.30.0-lmi12.0.0-cu124",
            "0.29": "0.29.0-lmi11.0.0-cu124",
            "0.28": "0.28.0-lmi10.0.0-cu124",
        },
        "tensorrtllm": {
            "0.33": "0.33.0-tensorrtllm0.21.0-cu128",
            "0.32": "0.32.0-tensorrtllm0.12.0-cu125",
            "0.30": "0.30.0-tensorrtllm0.12.0-cu125",
            "0.29": "0.29.0-tensorrtllm0.11.0-cu124",
            "0.28": "0.28.0-tensorrtllm0.9.0-cu122",
            "0.27": "0.27.0-tensorrtllm0.8.0-cu122",
            "0.26": "0.26.0-tensorrtllm0.7.1-cu122",
            "0.25": "0.25.0-tensorrtllm0.5.0-cu122",
        },
        "neuronx": {
            "0.29": "0.29.0-neuronx-sdk2.19.1",
            "0.28": "0.28.0-neuronx-sdk2.18.2",
            "0.27": "0.27.0-neuronx-sdk2.18.1",
            "0.26": "0.26.0-neuronx-sdk2.16.0",
            "0.25": "0.25.0-neuronx-sdk2.15.0",
            "0.24": "0.24.0-neuronx-sdk2.14.1",
            "0.23": "0.23.0-neuronx-sdk2.12.0",
            "0.22": "0.22.1-neuronx-sdk2.10.0",
        },
        "fastertransformer": {
            "0.24": "0.24.0-fastertransformer5.3.0-cu118",
            "0.23": "0.23.0-fastertransformer5.3.0-cu118",
            "0.22": "0.22.1-fastertransformer5.3.0-cu118",
            "0.21": "0.21.0-fastertransformer5.3.0-cu117",
        },
    }
)
"""Kind of LMI's image -> its release -> tag in the repository djl-inference, as far as the SDK lists it."""


def image_uri(region: str, repository: str) -> str:
    """Where an image is in a region; `repository` has its tag."""
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{repository}"
