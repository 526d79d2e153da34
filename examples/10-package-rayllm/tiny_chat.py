"""Make the tiny LLaMA with heads that vLLM's kernels are for, and with a chat template.

Usage: python tiny_chat.py FOLDER chatml|alternating
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_llama

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "alternating": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else m['content'] + eos_token }}{% endfor %}"
    ),
}

if __name__ == "__main__":
    folder, name = Path(sys.argv[1]), sys.argv[2]
    tiny_llama.CONFIG.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64})
    tiny_llama.make_model(folder)
    tiny_llama.make_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATES[name]}, indent=2))
