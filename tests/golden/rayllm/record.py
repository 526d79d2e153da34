"""Record what RayLLM's own models say of entries and conversations; see README.md for how it is run.

Usage: python record.py OUTCOMES.json STUB...: reads the cases in it and writes the outcomes beside them. Modules called
STUB are not there: every name in them is an empty class.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any


class _Stub(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        methods = {
            "__init__": lambda self, *args, **kwargs: None,
            "__getattr__": lambda self, name: self,
            "__call__": lambda self, *args, **kwargs: self,
        }
        return type(name, (), methods)


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        known = name.split(".")[0] in sys.argv[2:]
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main() -> None:
    """Write the outcomes."""
    sys.meta_path.append(_Stubs())
    # The packages' own __init__ would start tracing and ask AWS for secrets.
    root = next(path for path in sys.path if os.path.isdir(os.path.join(path, "rayllm")))
    for name in ("rayllm", "rayllm.backend"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split("."))]
        sys.modules[name] = package

    from rayllm.backend.llm.embedding.embedding_models import EmbeddingApp
    from rayllm.backend.llm.trtllm.trtllm_models import TRTLLMApp
    from rayllm.backend.llm.vllm.vllm_models import VLLMApp
    from rayllm.common.models import Message, PromptFormat

    apps = {"models": VLLMApp, "trtllm_models": TRTLLMApp, "embedding_models": EmbeddingApp}
    file = Path(sys.argv[1])
    cases = json.loads(file.read_text())
    for case in cases["entries"].values():
        try:
            app = apps[case["list"]].parse_obj(case["entry"])
        except (ValueError, KeyError) as error:
            # A KeyError is a mistake of RayLLM's own: its check of `user` looks at a value that was refused before.
            items = error.errors() if hasattr(error, "errors") else []
            where = sorted({".".join(map(str, item["loc"])) for item in items})
            case["outcome"] = {"accepted": False, "where": where}
            continue
        generation = getattr(app.engine_config, "generation", None)
        made = getattr(generation, "prompt_format", None)
        case["outcome"] = {"accepted": True, "deployment": _deployment(app), "prompt_format": type(made).__name__}
    for case in cases["prompts"]:
        made = PromptFormat.parse_obj(case["format"])
        messages = [Message(role=role, content=content) for role, content in case["messages"]]
        case["prompt"] = made.generate_prompt(messages)
    file.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


def _deployment(app: Any) -> str:
    """What becomes of an entry when rayllm/backend/server/run.py makes a deployment of it."""
    from rayllm.backend.server.run import get_llm_base_client

    try:
        get_llm_base_client([app])
    except Exception as error:
        return type(error).__name__
    return "made"


if __name__ == "__main__":
    main()
