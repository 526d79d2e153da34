"""Names of files, releases and rules of packages for SageMaker: what `--help` needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmcompile.packaging import neuron_env

ENVIRONMENT, ENV, COMPOSE = "environment.json", ".env", "docker-compose.yaml"
MODEL, CONFIG = "create_model.json", "create_endpoint_config.json"
ENDPOINT, JOB = "create_endpoint.json", "create_optimization_job.json"
FOLDER, MOUNT, PROPERTIES = "model", "/opt/ml/model", "serving.properties"
ARCHIVE = "model.tar.gz"
OPTIMUM, DJL, ENCODERS = "optimum-", "lmi-", "transformers-"
"""Before a release of optimum-neuron, of LMI, and of transformers in Hugging Face's inference image."""
NAME_BYTES = 255
"""Of a file or folder. Source: botocore 1.44.5, documentation of S3ModelDataSource.CompressionType."""

TRANSFORMERS = "4.55.4"
"""Release in Hugging Face's inference image, by which it is named."""

RULES: Mapping[str, str] = MappingProxyType(
    {
        "requests": "Each request is JSON that SageMaker's API takes: members, lengths, counts, choices.",
        "environment": "The environment is texts, says the same in each file, and is short enough.",
        "dotenv": "Every line of .env is one that docker and docker compose read alike.",
        "image": "The request names an image, and it is the one that serves this model.",
        "role": "The request names a role.",
        "model-data": "The request says where the model is: an S3 prefix that ends in /, or a tar.gz.",
        "file-names": "Every file of the model has a name that SageMaker can make a file of.",
        "names": "The requests name one another's results.",
        "instance": "The instance has the accelerators that the model was built for.",
        "timeouts": "Loading and starting have time.",
        "compose": "The container to try it with has .env and the model where SageMaker puts it.",
        "devices": neuron_env.DEVICES,
        **neuron_env.RULES,
        "precedence": "No variable says otherwise than serving.properties.",
        "lmi": "The model's folder is a package for LMI that its own rules pass.",
    }
)
