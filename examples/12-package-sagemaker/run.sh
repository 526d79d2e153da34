#!/usr/bin/env bash
# Package a Neuron decoder for SageMaker: the requests of its API, and what they would have been refused for.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

# A decoder as optimum-neuron 0.4.4 exports it, for four NeuronCores, four sequences and 256 tokens.
python "$examples/tiny_llama.py" tiny-llama
python "$examples/tiny_neuron.py" tiny-llama 0.4.4 tiny-neuron

# AWS's own image for it in the region, the smallest instance with so many cores, and the commands to type.
llmcompile package sagemaker tiny-neuron endpoint --model-name tiny-llama --region us-east-1 \
    --s3-uri s3://bucket/tiny-llama/ --role-arn arn:aws:iam::123456789012:role/serving
ls -a endpoint | grep -v '^\.\.*$'
cat endpoint/create_model.json endpoint/create_endpoint_config.json

# Names and sizes that the API or the image would refuse.
llmcompile package sagemaker tiny-neuron another --model-name tiny_llama 2>&1 || echo "exit code $?"
llmcompile package sagemaker tiny-neuron another --max-batch-size 2 2>&1 || echo "exit code $?"
llmcompile package sagemaker tiny-neuron another --instance-type ml.inf2.xlarge 2>&1 || echo "exit code $?"

# Somebody edits the environment by hand: a number is no text, and the image has no such variable.
python - <<'EDIT'
import json

model = json.load(open("endpoint/create_model.json"))
model["PrimaryContainer"]["Environment"] |= {"SM_ON_BATCH_SIZE": 8, "HF_NUM_CORES": "4"}
json.dump(model, open("endpoint/create_model.json", "w"))
EDIT
llmcompile lint endpoint || echo "exit code $?"

# A Hugging Face folder is served by LMI's image; serving.properties is in the model's folder.
llmcompile package sagemaker tiny-llama by-lmi --quiet
ls by-lmi/model
