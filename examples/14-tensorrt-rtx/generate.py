"""Greedy tokens of an ONNX decoder on CPU, with numpy and onnxruntime alone.

Usage: python generate.py MODEL.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
caches = {
    value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float16 if "float16" in value.type else np.float32)
    for value in session.get_inputs()
    if value.name.startswith("past_key_values.")
}
names = [value.name for value in session.get_outputs()]
fed, said = np.array([[256, 72, 105]]), []
for _ in range(5):
    past = next(iter(caches.values())).shape[2]
    total = past + fed.shape[1]
    given = {
        "input_ids": fed,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total)[None],
    }
    found = dict(zip(names, session.run(None, {**given, **caches}), strict=True))
    said.append(int(found["logits"][0, -1].argmax()))
    fed = np.array([said[-1:]])
    caches = {name: found[name.replace("past_key_values", "present")] for name in caches}
print("tokens", said)
