#!/usr/bin/env bash
# The half of a CI job that needs no GPU, as workflow.yml and Dockerfile run it. Their other half is a build on a GPU host.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export WORK="${WORK:-$(mktemp -d)}"
cd "$WORK"

python "$here/../tiny_llama.py" tiny-llama

# In a CI job every option may come from the environment.
export LLMCOMPILE_MODEL=tiny-llama LLMCOMPILE_TP=2 LLMCOMPILE_QUANTIZATION=w8a16
"$here/entrypoint.sh" checkpoint

# What the job uploads.
find model -type f | sort

# What the manifest proves to the next job.
python - <<'EOF'
import json

manifest = json.load(open("model/llmcompile.json"))
print("validated:", manifest["validation"]["passed"], "by", manifest["validation"]["executor"])
EOF
