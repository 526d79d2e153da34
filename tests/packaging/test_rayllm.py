"""RayLLM packages: the entry and mirror of an artifact, and a lint that sees every way they would not load."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError, LlmCompileError, OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact, open_artifact
from llmcompile.packaging.rayllm import TARGET, RayLLMOptions
from llmcompile.packaging.rayllm.schema import read_entry
from llmcompile.packaging.target import KINDS, Finding, Package, Request, Serving
from llmcompile.packaging.tree import planned
from trees import encoded, tree_of

Files = dict[str, bytes]
GOLDEN = Path(__file__).parents[1] / "golden" / "rayllm" / "outcomes.json"
RECORDED = json.loads(GOLDEN.read_text())["entries"]
REGISTRY = {
    name.removeprefix("registry "): case["entry"] for name, case in RECORDED.items() if name.startswith("registry ")
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUCKET = "s3://models/tiny/"
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "torch_dtype": "float16",
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
ENGINE = {
    "version": "1.2.1",
    "pretrained_config": {"architecture": "LlamaForCausalLM", "mapping": {"tp_size": 2, "pp_size": 1}},
    "build_config": {"max_batch_size": 4, "max_seq_len": 128, "max_input_len": 96},
}


def artifact(kind: str, files: Files, model: Mapping[str, Any], **facts: Any) -> Artifact:
    """An artifact in fp16, with a tokenizer that has a chat template, but for what is given."""
    tokenizer = {"tokenizer_config.json": encoded({"chat_template": CHATML}), "tokenizer.json": b"{}"}
    standard: dict[str, Any] = {
        "path": Path("org--tiny"),
        "kind": kind,
        "manifest": None,
        "tree": tree_of({"config.json": encoded(model), **tokenizer, **files}),
        "sha256": {},
        "config": model,
        "model": "org/tiny",
        "commit": None,
        "tp": 1,
        "pp": 1,
        "dtype": "fp16",
        "task": None,
        "batch_size": None,
        "sequence_length": 512,
        "input_length": None,
        "beam_width": None,
        "compiler": None,
        "quantization": None,
        "engine": {},
    }
    return Artifact(**{**standard, **facts})


def decoder(model: Mapping[str, Any] = LLAMA, files: Files | None = None, **facts: Any) -> Artifact:
    """A Hugging Face checkpoint of two million parameters."""
    weights = {"model.safetensors": b"0" * 4_000_000} if files is None else files
    return artifact("hf", weights, model, **facts)


def encoder(model: Mapping[str, Any] = BERT, **facts: Any) -> Artifact:
    """A checkpoint of an encoder."""
    return artifact("hf", {"model.safetensors": b"0" * 4_000}, model, dtype="fp32", **facts)


def engine(config: Mapping[str, Any] = ENGINE, **facts: Any) -> Artifact:
    """An engine of two ranks."""
    files = {"engine/config.json": encoded(config), "engine/rank0.engine": b"zero", "engine/rank1.engine": b"one"}
    standard: dict[str, Any] = {
        "tp": 2,
        "batch_size": 4,
        "sequence_length": 128,
        "input_length": 96,
        "compiler": "1.2.1",
        "commit": COMMIT,
        "engine": config,
    }
    return artifact("trtllm-engine", files | {"model.cache": b"times"}, LLAMA, **{**standard, **facts})


def made(of: Artifact, version: str = "0.5.0", runtime: str | None = None, **options: Any) -> tuple[Package, Files]:
    """A package and its files, as they would be written; for a bucket unless another place is given."""
    if not {"bucket_uri", "model_local_path"} & options.keys():
        options["bucket_uri"] = BUCKET
    if of.kind == "trtllm-engine" and runtime is None:
        runtime = of.compiler
    package = TARGET.plan(of, RayLLMOptions(**options), Request(version, runtime))
    files = planned("package", package.texts, package.links, package.folders, of.tree)
    return package, {name: files.read(name) for name in files.files}


def entry_of(files: Mapping[str, bytes]) -> Any:
    """The content of the one entry."""
    (name,) = (name for name in files if "/" not in name and name.endswith(".yaml") and name != "serve.yaml")
    return yaml.safe_load(files[name])


def findings(files: Files, version: str | None = "0.5.0", runtime: str | None = None) -> list[Finding]:
    """What the lint says."""
    return list(TARGET.lint(tree_of(files), Serving(version, runtime)))


def failed(found: list[Finding]) -> set[str]:
    """Rules that failed."""
    return {finding.rule for finding in found if finding.status == "failed"}


def statuses(found: list[Finding], rule: str) -> set[str]:
    """What a rule found."""
    return {finding.status for finding in found if finding.rule == rule}


# What is written


def test_entry_of_an_engine() -> None:
    """An engine's entry has num_workers = tp x pp, the built batch, and what is left of a sequence for an answer."""
    package, files = made(engine(), accelerator_type="a10")

    assert set(files) == {
        "org--tiny-tp2-fp16.yaml",
        "serve.yaml",
        "mirror/config.json",
        "mirror/rank0.engine",
        "mirror/rank1.engine",
        "mirror/hash",
    }
    assert entry_of(files) == {
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": 1,
                "initial_replicas": 1,
                "max_replicas": 8,
                "target_num_ongoing_requests_per_replica": 24,
                "metrics_interval_s": 10.0,
                "look_back_period_s": 30.0,
                "smoothing_factor": 0.6,
                "downscale_delay_s": 300.0,
                "upscale_delay_s": 15.0,
            },
            "max_concurrent_queries": 64,
            "ray_actor_options": {"resources": {"accelerator_type_a10": 0.01}},
        },
        "engine_config": {
            "model_id": "org/tiny",
            "type": "TRTLLMEngine",
            "s3_mirror_config": {"bucket_uri": "s3://models/tiny/"},
            "scheduler_policy": "MAX_UTILIZATION",
            "logger_level": "INFO",
            "model_type": "InflightFusedBatching",
            "max_num_sequences": 4,
            "max_total_tokens": 32,
            "generation": {
                "prompt_format": {
                    "system": "<|im_start|>system\n{instruction}<|im_end|>\n",
                    "assistant": "<|im_start|>assistant\n{instruction}<|im_end|>\n",
                    "trailing_assistant": "<|im_start|>assistant\n",
                    "user": "<|im_start|>user\n{instruction}<|im_end|>\n",
                    "default_system_message": "",
                    "system_in_user": False,
                    "add_system_tags_even_if_message_is_empty": False,
                    "strip_whitespace": False,
                },
                "stopping_sequences": [],
            },
        },
        "scaling_config": {
            "num_workers": 2,
            "num_gpus_per_worker": 1,
            "num_cpus_per_worker": 8,
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": {"accelerator_type_a10": 0.01},
        },
    }
    assert package.runtime == "1.2.1"


def test_mirror_of_an_engine() -> None:
    """The mirror has the engine's config.json, not the model's, and the commit, written last."""
    package, files = made(engine())

    assert json.loads(files["mirror/config.json"]) == ENGINE
    assert files["mirror/hash"] == COMMIT.encode() + b"\n"
    assert package.last == ("mirror/hash",)


def test_serve_config() -> None:
    """serve.yaml names the entry in its engine's list."""
    expected = {"name": "ray-llm", "route_prefix": "/", "import_path": "rayllm.backend:router_application"}
    for of, argument, name in (
        (engine(), "trtllm_models", "./org--tiny-tp2-fp16.yaml"),
        (decoder(), "models", "./org--tiny-2m-fp16.yaml"),
        (encoder(), "embedding_models", "./org--tiny-1k-fp32.yaml"),
    ):
        _, files = made(of)

        content = yaml.safe_load(files["serve.yaml"])
        assert content == {"applications": [{**expected, "args": {argument: [name]}}]}


def test_entry_of_a_decoder() -> None:
    """A checkpoint's entry is for vLLM, one worker, the model's own length, and its chat template."""
    package, files = made(decoder())

    config = entry_of(files)["engine_config"]
    assert (config["type"], config["max_total_tokens"]) == ("VLLMEngine", 512)
    assert "engine_kwargs" not in config
    assert config["generation"]["prompt_format"]["trailing_assistant"] == "<|im_start|>assistant\n"
    assert entry_of(files)["scaling_config"]["num_workers"] == 1
    assert entry_of(files)["deployment_config"]["ray_actor_options"] == {}
    assert package.runtime == "0.2.5"


def test_mirror_of_a_checkpoint() -> None:
    """Of a checkpoint's files the mirror has one format of the weights, and no others that vLLM would read for them."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    weights = {
        "model.safetensors.index.json": encoded(index),
        "model-00001-of-00002.safetensors": b"a",
        "model-00002-of-00002.safetensors": b"b",
        "consolidated.safetensors": b"c",
        "pytorch_model.bin": b"d",
        "README.md": b"e",
        "model.gguf": b"f",
    }

    package, _ = made(decoder(files=weights))

    assert set(package.links.values()) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert all(path == f"mirror/{source}" for path, source in package.links.items())


def test_entry_of_an_encoder() -> None:
    """An encoder's entry is for EmbeddingEngine, without generation."""
    _, files = made(encoder())

    assert entry_of(files)["engine_config"] == {
        "model_id": "org/tiny",
        "type": "EmbeddingEngine",
        "s3_mirror_config": {"bucket_uri": "s3://models/tiny/"},
        "max_total_tokens": 512,
        "max_batch_size": 1,
    }


def test_engine_asked_for() -> None:
    """--engine decides where a checkpoint could be for two."""
    _, files = made(decoder({**BERT, "architectures": ["LlamaForCausalLM"]}), engine="EmbeddingEngine")

    assert entry_of(files)["engine_config"]["type"] == "EmbeddingEngine"


def test_google_storage() -> None:
    """A gs:// bucket is a gcs_mirror_config, and the commands are gsutil's, hash last."""
    package, files = made(decoder(), bucket_uri="gs://models/tiny")

    assert entry_of(files)["engine_config"]["gcs_mirror_config"] == {"bucket_uri": "gs://models/tiny/"}
    assert package.next == (
        "gsutil -m rsync -x hash {output}/mirror gs://models/tiny",
        "gsutil cp {output}/mirror/hash gs://models/tiny/hash",
        "cd {output} && serve run serve.yaml",
    )


def test_commands_of_s3() -> None:
    """All files but hash are copied first."""
    package, _ = made(decoder())

    assert package.next == (
        "aws s3 sync --exclude hash {output}/mirror s3://models/tiny",
        "aws s3 cp {output}/mirror/hash s3://models/tiny/hash",
        "cd {output} && serve run serve.yaml",
    )


@pytest.mark.parametrize(("of", "key"), [(engine(), "model_local_path"), (decoder(), "hf_model_id")])
def test_local_path(of: Artifact, key: str) -> None:
    """A path on every node goes where the engine looks for it, and no bucket is named."""
    _, files = made(of, model_local_path="/models/tiny/")

    config = entry_of(files)["engine_config"]
    assert config[key] == "/models/tiny"
    assert "s3_mirror_config" not in config


def test_options_of_vllm() -> None:
    """The batch, the length, remote code and the dtype of newer configurations reach engine_kwargs."""
    model = {**{key: LLAMA[key] for key in LLAMA if key != "torch_dtype"}, "dtype": "bfloat16"}

    _, files = made(decoder(model), max_batch_size=8, max_total_tokens=100, trust_remote_code=True, num_workers=2)

    config = entry_of(files)["engine_config"]
    assert config["engine_kwargs"] == {"trust_remote_code": True, "max_num_seqs": 8, "dtype": "bfloat16"}
    assert config["max_total_tokens"] == 100
    assert entry_of(files)["scaling_config"]["num_workers"] == 2


def test_scaled_context() -> None:
    """RoPE scaling lengthens what vLLM grants."""
    _, files = made(decoder({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}))

    assert entry_of(files)["engine_config"]["max_total_tokens"] == 2048


def test_replicas() -> None:
    """With no replica at least there is one at first."""
    _, files = made(decoder(), min_replicas=0, max_replicas=3)

    scaling = entry_of(files)["deployment_config"]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["initial_replicas"], scaling["max_replicas"]) == (0, 1, 3)


@pytest.mark.parametrize(
    ("model_id", "size", "name"),
    [
        ("org/llama", 13_476_831_232, "org--llama-7b-fp16.yaml"),
        ("org/llama", 5_400_000_000, "org--llama-2.7b-fp16.yaml"),
        ("org/llama", 2_200_000_000, "org--llama-1.1b-fp16.yaml"),
        ("org/llama", 137_953_296_384, "org--llama-69b-fp16.yaml"),
        ("org/gpt2", 248_000_000, "org--gpt2-124m-fp16.yaml"),
        ("meta-llama/Llama-2-7b-chat-hf", 13_476_831_232, "meta-llama--Llama-2-7b-chat-hf-fp16.yaml"),
    ],
)
def test_file_name(model_id: str, size: int, name: str) -> None:
    """The name has the parameters, counted from the weights, unless the model's own name says them."""
    of = decoder()
    sizes = {**of.tree.files, "model.safetensors": size}
    of = replace(of, tree=replace(of.tree, files=sizes))

    package = TARGET.plan(of, RayLLMOptions(bucket_uri=BUCKET, model_id=model_id, commit=COMMIT), Request("0.5.0"))

    assert name in package.texts


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("org--tiny", "org/tiny"),
        (f"models--meta-llama--Llama-2-7b/snapshots/{COMMIT}", "meta-llama/Llama-2-7b"),
    ],
)
def test_model_id_of_a_folder(folder: str, expected: str) -> None:
    """A folder called org--name, or one of the hub's cache, says what the model is called."""
    _, files = made(decoder(path=Path("/somewhere") / folder))

    assert entry_of(files)["engine_config"]["model_id"] == expected


def test_commit_of_a_cached_folder() -> None:
    """The hub's cache names its folders by commits."""
    _, files = made(decoder(path=Path(f"/cache/models--org--tiny/snapshots/{COMMIT}")))

    assert files["mirror/hash"].decode() == f"{COMMIT}\n"


def test_hash_of_files() -> None:
    """Without a commit the hash is made of the files: equal ones give equal hashes, others do not."""
    one, same = made(decoder()), made(decoder())
    other = made(decoder(files={"model.safetensors": b"1" * 4_000_000}))

    assert one[1]["mirror/hash"] == same[1]["mirror/hash"] != other[1]["mirror/hash"]
    assert any("--commit HASH" in note for note in one[0].notes)


def test_no_chat() -> None:
    """A base model has prompt_format null, which RayLLM 0.5.0 takes for completions only."""
    base = decoder(files={"model.safetensors": b"0", "tokenizer_config.json": b"{}"})

    _, files = made(base, no_chat=True)

    assert entry_of(files)["engine_config"]["generation"] == {"prompt_format": None, "stopping_sequences": []}
    assert failed(findings(files)) == set()


def given_format(folder: Path, content: object) -> str:
    """A file for --prompt-format."""
    (folder / "format.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "format.yaml")


FORMAT = {
    "system": "{instruction}\n",
    "assistant": "A: {instruction}\n",
    "trailing_assistant": "A:",
    "user": "Q: {instruction}\n",
}


@pytest.mark.parametrize("content", [FORMAT, {"engine_config": {"generation": {"prompt_format": FORMAT}}}])
def test_prompt_format_of_a_file(tmp_path: Path, content: object) -> None:
    """--prompt-format takes a prompt_format, or the entry that has one."""
    base = decoder(files={"model.safetensors": b"0", "tokenizer_config.json": b"{}"})

    _, files = made(base, prompt_format=given_format(tmp_path, content))

    assert entry_of(files)["engine_config"]["generation"]["prompt_format"] == FORMAT


def test_texts_are_written_in_quotes() -> None:
    """Line breaks of a prompt_format are escapes in double quotes, as in RayLLM's registry."""
    package, _ = made(decoder())

    assert '      user: "<|im_start|>user\\n{instruction}<|im_end|>\\n"\n' in package.texts["org--tiny-2m-fp16.yaml"]


def test_several_ends_are_noted() -> None:
    """A model that ends answers by several tokens is told of, since vLLM knows one."""
    ends = {"generation_config.json": encoded({"eos_token_id": [2, 32000]}), "model.safetensors": b"0"}

    package, _ = made(decoder(files=ends))

    assert any("[2, 32000]" in note for note in package.notes)


def test_ends_that_are_nested_too_deeply_are_none() -> None:
    """A note is all that depends on the file."""
    package, _ = made(decoder(files={"generation_config.json": b"[" * 100_000, "model.safetensors": b"0"}))

    assert not any("generation_config.json" in note for note in package.notes)


@pytest.mark.parametrize("of", [engine(), decoder(), encoder()])
def test_entries_follow_the_schema(of: Artifact) -> None:
    """What is written is read by the strict schema, and passes every rule."""
    package, files = made(of)
    (name,) = (name for name in package.texts if name.startswith("org--"))

    assert read_entry(package.texts[name], name).engine_config.model_id == "org/tiny"
    assert failed(findings(files, runtime=package.runtime)) == set()


PACKAGED: dict[str, Callable[[], tuple[Package, Files]]] = {
    "engine": lambda: made(engine(), accelerator_type="a10"),
    "engine on a path": lambda: made(engine(), model_local_path="/models/tiny", no_chat=True),
    "decoder": lambda: made(decoder(), trust_remote_code=True, num_workers=2, max_batch_size=8),
    "decoder in Google's storage": lambda: made(decoder(), bucket_uri="gs://models/tiny", min_replicas=0),
    "encoder": lambda: made(encoder()),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_rayllm_takes_what_is_written(name: str) -> None:
    """RayLLM's own models took these entries, and Ray Serve made deployments of them; see tests/golden/rayllm."""
    recorded = RECORDED[f"packaged {name}"]

    assert entry_of(PACKAGED[name]()[1]) == recorded["entry"]
    assert recorded["outcome"]["accepted"]
    assert recorded["outcome"]["deployment"] == "made"


def test_the_older_release() -> None:
    """RayLLM 0.4.0 serves decoders, and its package is clean for it."""
    _, files = made(decoder(), "0.4.0")

    assert failed(findings(files, "0.4.0")) == set()


# What is refused

REFUSED: dict[str, tuple[Callable[[], object], type[LlmCompileError], str]] = {
    "no place": (lambda: made(decoder(), bucket_uri=None), OptionsError, "neither is given"),
    "two places": (
        lambda: made(decoder(), bucket_uri=BUCKET, model_local_path="/models"),
        OptionsError,
        "both are given",
    ),
    "a bucket of another kind": (
        lambda: made(decoder(), bucket_uri="https://models"),
        OptionsError,
        "'https://models'",
    ),
    "a bucket of one letter": (
        lambda: made(decoder(), bucket_uri="s3://b/x/"),
        OptionsError,
        "3 to 63 characters",
    ),
    "a bucket with a key in it": (
        lambda: made(decoder(), bucket_uri="s3://key:secret@b/"),
        OptionsError,
        "s3://BUCKET",
    ),
    "an engine in Google's storage": (
        lambda: made(engine(), bucket_uri="gs://models/tiny/"),
        OptionsError,
        "all that TRTLLMEngine reads",
    ),
    "a relative path": (lambda: made(decoder(), model_local_path="models"), OptionsError, "an absolute path"),
    "an engine for another engine": (lambda: made(engine(), engine="VLLMEngine"), OptionsError, "TRTLLMEngine of"),
    "a checkpoint for TensorRT-LLM": (
        lambda: made(decoder(), engine="TRTLLMEngine"),
        OptionsError,
        "VLLMEngine or EmbeddingEngine",
    ),
    "an encoder for the older release": (lambda: made(encoder(), "0.4.0"), UnsupportedError, "BertModel"),
    "an engine the older release has not": (
        lambda: made(encoder(), "0.4.0", engine="EmbeddingEngine"),
        OptionsError,
        "VLLMEngine of RayLLM 0.4.0",
    ),
    "other workers than ranks": (lambda: made(engine(), num_workers=4), OptionsError, "tp 2 x pp 1 = 2"),
    "workers that do not divide the heads": (
        lambda: made(decoder(), num_workers=3),
        OptionsError,
        "4 attention heads / 3",
    ),
    "workers of an encoder": (lambda: made(encoder(), num_workers=2), OptionsError, "one process"),
    "a batch the engine was not built for": (lambda: made(engine(), max_batch_size=5), OptionsError, "at most 4"),
    "tokens the engine was not built for": (lambda: made(engine(), max_total_tokens=129), OptionsError, "at most 128"),
    "tokens beyond the context": (lambda: made(decoder(), max_total_tokens=513), OptionsError, "at most 512"),
    "tokens beyond an encoder's": (lambda: made(encoder(), max_total_tokens=513), OptionsError, "at most 512"),
    "fewer replicas than replicas": (
        lambda: made(decoder(), min_replicas=3, max_replicas=2),
        OptionsError,
        "--max-replicas",
    ),
    "a commit that is none": (lambda: made(decoder(), commit="main"), OptionsError, "40 hexadecimal digits"),
    "another commit": (lambda: made(engine(), commit="f" * 40), OptionsError, "which the artifact was made of"),
    "an accelerator with a dash": (lambda: made(decoder(), accelerator_type="a-10"), OptionsError, "letters"),
    "a model id without an organisation": (lambda: made(decoder(), model_id="tiny"), OptionsError, "ORG/NAME"),
    "a model id that leaves the folder": (lambda: made(decoder(), model_id="../tiny"), OptionsError, "ORG/NAME"),
    "a model id with two dashes": (lambda: made(decoder(), model_id="org/a--b"), OptionsError, "single dashes"),
    "a folder without an organisation": (
        lambda: made(decoder(path=Path("/tiny"))),
        OptionsError,
        "--model-id ORG/NAME",
    ),
    "an engine without the image's version": (
        lambda: TARGET.plan(engine(), RayLLMOptions(bucket_uri=BUCKET), Request("0.5.0")),
        UnsupportedError,
        "--runtime-version 1.2.1",
    ),
    "an engine of another version": (lambda: made(engine(), runtime="0.6.1"), UnsupportedError, "the image has 0.6.1"),
    "an encoder and a decoder": (
        lambda: made(engine(tree=tree_of({"engine/encoder/config.json": b"{}", "engine/decoder/config.json": b"{}"}))),
        UnsupportedError,
        "engine/decoder and engine/encoder",
    ),
    "a rank that is not there": (
        lambda: made(engine(tp=3)),
        CheckpointError,
        "no engine/rank2.engine",
    ),
    "an architecture vLLM does not know": (
        lambda: made(decoder({**LLAMA, "architectures": ["Gemma3ForCausalLM"]})),
        UnsupportedError,
        "package ray-serve",
    ),
    "an architecture the older vLLM does not know": (
        lambda: made(decoder({**LLAMA, "architectures": ["MixtralForCausalLM"]}), "0.4.0"),
        UnsupportedError,
        "its vLLM 0.2.1",
    ),
    "no weights": (lambda: made(decoder(files={"a.txt": b""})), CheckpointError, "no weights"),
    "weights of the index that are not there": (
        lambda: made(decoder(files={"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'})),
        CheckpointError,
        "no b.safetensors",
    ),
    "an index that is none": (
        lambda: made(decoder(files={"model.safetensors.index.json": b"[]"})),
        CheckpointError,
        "no weight_map",
    ),
    "an index nested too deeply": (
        lambda: made(decoder(files={"model.safetensors.index.json": b"[" * 100_000})),
        CheckpointError,
        "no weight_map",
    ),
    "no chat template": (
        lambda: made(decoder(files={"model.safetensors": b"0", "tokenizer_config.json": b"{}"})),
        UnsupportedError,
        "--no-chat for a base model",
    ),
    "no chat in the older release": (lambda: made(decoder(), "0.4.0", no_chat=True), OptionsError, "0.5.0, the first"),
    "a prompt format and none": (
        lambda: made(decoder(), prompt_format="x.yaml", no_chat=True),
        OptionsError,
        "with --no-chat",
    ),
    "a prompt format that is not there": (
        lambda: made(decoder(), prompt_format="/nowhere/x.yaml"),
        OptionsError,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """What cannot be served is refused before anything is written, with what to type."""
    call, kind, part = REFUSED[name]

    with pytest.raises(kind) as raised:
        call()

    text = "\n".join(f"{problem} {problem.hint}" for problem in raised.value.problems)
    assert part in text
    assert all(problem.hint != "" for problem in raised.value.problems)


@pytest.mark.parametrize(
    "content", [None, [], {}, {**FORMAT, "user": "Q"}, {"system": "{instruction}"}, {**FORMAT, "bos": "<s>"}]
)
def test_prompt_format_that_is_none(tmp_path: Path, content: object) -> None:
    """A file for --prompt-format is held to the schema."""
    with pytest.raises(OptionsError, match=r"format\.yaml"):
        made(decoder(), prompt_format=given_format(tmp_path, content))


def test_every_contradiction_is_told_at_once() -> None:
    """Options that contradict each other are all named."""
    with pytest.raises(OptionsError) as raised:
        made(decoder(), bucket_uri=None, commit="x", accelerator_type="-")

    assert len(raised.value.problems) == 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TARGET.serves])
def test_kinds_that_are_refused(kind: Any) -> None:
    """A kind that no release serves is refused, with a command."""
    with pytest.raises(UnsupportedError) as raised:
        TARGET.choose(kind, None)

    assert "llmcompile" in raised.value.problems[0].hint


def test_engines_are_for_the_newest_release() -> None:
    """RayLLM 0.4.0 has no TRTLLMEngine."""
    with pytest.raises(UnsupportedError, match=r"0\.4\.0 does not serve"):
        TARGET.choose("trtllm-engine", "0.4.0")


# The lint

Breaker = Callable[[Files], None]


def change(*keys: str, to: Any) -> Breaker:
    """Change a value of the entry."""

    def broken(files: Files) -> None:
        (name,) = (name for name in files if name.startswith("org--"))
        content = copy.deepcopy(entry_of(files))
        inner = content
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = to
        files[name] = yaml.safe_dump(content).encode()

    return broken


def without(*keys: str) -> Breaker:
    """Take a key of the entry away."""

    def broken(files: Files) -> None:
        (name,) = (name for name in files if name.startswith("org--"))
        content = copy.deepcopy(entry_of(files))
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        files[name] = yaml.safe_dump(content).encode()

    return broken


def config(**values: Any) -> Breaker:
    """Change the mirror's config.json."""

    def broken(files: Files) -> None:
        files["mirror/config.json"] = encoded({**json.loads(files["mirror/config.json"]), **values})

    return broken


def file(name: str, content: bytes) -> Breaker:
    """Put a file there."""
    return lambda files: files.update({name: content})


def serve(**values: Any) -> Breaker:
    """Change the application of serve.yaml."""

    def broken(files: Files) -> None:
        content = yaml.safe_load(files["serve.yaml"])
        content["applications"][0].update(values)
        files["serve.yaml"] = yaml.safe_dump(content).encode()

    return broken


def renamed(files: Files) -> None:
    """Call the entry something else."""
    (name,) = (name for name in files if name.startswith("org--"))
    files["model.yaml"] = files.pop(name)
    files["serve.yaml"] = files["serve.yaml"].replace(name.encode(), b"model.yaml")


def aliases(depth: int) -> bytes:
    """YAML of a few hundred bytes that is 9 to the power of `depth` words once its aliases are followed."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "".join(f"{line}\n" for line in lines).encode()


_PROMPT = ("engine_config", "generation", "prompt_format")
_TEMPLATE = encoded({"chat_template": CHATML.replace("im_start", "im_begin")})
BROKEN: dict[str, list[tuple[str, Breaker]]] = {
    "yaml": [
        ("vllm", file("other.yaml", b"engine_config: [")),
        ("vllm", file("other.yaml", aliases(9) + b"engine_config: {model_id: *a8}")),
    ],
    "schema": [
        ("vllm", without("scaling_config", "num_workers")),
        ("trtllm", change("engine_config", "max_tokens", to=3)),
        ("vllm", without("engine_config", "model_id")),
        ("vllm", change("deployment_config", "autoscaling_config", "max_replicas", to=0)),
        ("vllm", change("scaling_config", "num_gpus_per_worker", to=2)),
    ],
    "ignored-keys": [
        ("vllm", change("deployment_config", "num_replicas", to=2)),
        ("trtllm", change("engine_config", "generation", "stop", to=[])),
    ],
    "choices": [
        ("trtllm", change("engine_config", "scheduler_policy", to="FASTEST")),
        ("trtllm", change("engine_config", "logger_level", to="LOUD")),
        ("trtllm", change("engine_config", "model_type", to="V1")),
        ("vllm", change("scaling_config", "placement_strategy", to="TIGHT")),
    ],
    "file-name": [("vllm", renamed)],
    "serve-config": [
        ("vllm", serve(args={"models": ["./other.yaml"]})),
        ("vllm", serve(args={"trtllm_models": ["./org--tiny-2m-fp16.yaml"]})),
        ("vllm", serve(args={"models": ["./org--tiny-2m-fp16.yaml"] * 2})),
        ("vllm", serve(args={"models": ["./org--tiny-2m-fp16.yaml"], "llm_configs": []})),
        ("vllm", serve(import_path="rayllm.backend:application")),
    ],
    "engine": [
        ("vllm", lambda files: files.update({"mirror/rank0.engine": b"zero"})),
    ],
    "deployment": [
        ("vllm", without("deployment_config")),
        ("trtllm", without("deployment_config", "ray_actor_options")),
    ],
    "workers": [
        ("trtllm", change("scaling_config", "num_workers", to=4)),
        ("trtllm", lambda files: files.__delitem__("mirror/rank1.engine")),
        ("trtllm", file("mirror/rank2.engine", b"two")),
        ("vllm", change("scaling_config", "num_workers", to=3)),
        ("vllm", change("scaling_config", "num_gpus_per_worker", to=0)),
        ("embedding", change("scaling_config", "num_workers", to=2)),
    ],
    "mirror-names": [
        ("trtllm", file("mirror/engine/model.cache", b"")),
        ("vllm", file("mirror/original/config.json", b"{}")),
    ],
    "hash": [
        ("vllm", lambda files: files.__delitem__("mirror/hash")),
        ("vllm", file("mirror/hash", b"main\n")),
        ("vllm", file("mirror/hash", b"0" * 200)),
        ("trtllm", file("llmcompile.json", encoded({"artifact": {"source": {"commit": "f" * 40}}}))),
    ],
    "config": [
        ("vllm", lambda files: files.__delitem__("mirror/config.json")),
        ("vllm", file("mirror/config.json", b"{")),
    ],
    "bucket": [
        ("vllm", change("engine_config", "gcs_mirror_config", to={"bucket_uri": "gs://models/tiny/"})),
        ("vllm", change("engine_config", "s3_mirror_config", "bucket_uri", to="gs://models/tiny/")),
        ("trtllm", change("engine_config", "s3_mirror_config", "bucket_uri", to="s3://models")),
        ("trtllm", without("engine_config", "s3_mirror_config")),
        ("trtllm", change("engine_config", "model_local_path", to="models/tiny")),
    ],
    "prompt-format": [
        ("trtllm", change(*_PROMPT, "user", to="<|im_start|>user\n")),
        ("trtllm", change(*_PROMPT, "user", to="{system}{instruction}")),
        ("trtllm", change(*_PROMPT, "system", to="{instruction} {")),
        ("trtllm", without("engine_config", "generation", "prompt_format")),
        ("vllm", change(*_PROMPT, "bos", to="<s>")),
    ],
    "chat-template": [
        ("vllm", file("mirror/tokenizer_config.json", _TEMPLATE)),
        ("vllm", change(*_PROMPT, "trailing_assistant", to="")),
    ],
    "max-total-tokens": [
        ("vllm", change("engine_config", "max_total_tokens", to=513)),
        ("vllm", without("engine_config", "max_total_tokens")),
        ("trtllm", change("engine_config", "max_total_tokens", to=129)),
        ("embedding", change("engine_config", "max_total_tokens", to=513)),
    ],
    "batch": [("trtllm", change("engine_config", "max_num_sequences", to=5))],
    "runtime": [("trtllm", config(version="0.6.1"))],
    "loads": [
        ("vllm", config(architectures=["Gemma3ForCausalLM"])),
        ("vllm", config(hidden_size=128)),
        ("vllm", config(quantization_config={"quant_method": "fp8"})),
        ("vllm", config(rope_scaling={"rope_type": "llama3", "factor": 8.0})),
        ("vllm", config(rope_parameters={"rope_theta": 500000.0})),
        ("vllm", file("mirror/tokenizer.json", b'{"model": {"merges": [["a", "b"]]}}')),
        ("sharded", file("mirror/consolidated.safetensors", b"")),
        ("sharded", lambda files: files.__delitem__("mirror/model-1.safetensors")),
        ("vllm", lambda files: files.__delitem__("mirror/model.safetensors")),
        ("embedding", file("mirror/model.safetensors", b"")),
        ("embedding", config(hidden_size=768)),
        ("embedding", config(type_vocab_size=1)),
    ],
}
"""Rule -> ways to break a good package that it alone must see."""
ONLY_NOTED = {"file-name"}


def good(name: str) -> tuple[Files, str | None]:
    """A package that every rule passes, and the image's runtime."""
    index = {
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
        "model-1.safetensors": b"a",
    }
    of = {"vllm": decoder, "trtllm": engine, "embedding": encoder, "sharded": lambda: decoder(files=index)}[name]()
    package, files = made(of)
    return files, package.runtime


def test_every_rule_is_broken() -> None:
    """Each rule of the target has a package that breaks it."""
    assert BROKEN.keys() == TARGET.rules.keys()


@pytest.mark.parametrize("name", ["vllm", "trtllm", "embedding", "sharded"])
def test_good_packages(name: str) -> None:
    """A package as it is written passes every rule, and every rule says something."""
    files, runtime = good(name)

    found = findings(files, runtime=runtime)

    assert failed(found) == set()
    assert {finding.rule for finding in found} == TARGET.rules.keys()


@pytest.mark.parametrize(("rule", "way"), [(rule, way) for rule, ways in BROKEN.items() for way in range(len(ways))])
def test_broken_packages(rule: str, way: int) -> None:
    """A package broken in one way fails the rule for it, and no other."""
    name, breaker = BROKEN[rule][way]
    files, runtime = good(name)
    breaker(files)

    found = findings(files, runtime=runtime)

    if rule in ONLY_NOTED:
        assert failed(found) == set()
        assert statuses(found, rule) == {"note"}
    else:
        assert failed(found) == {rule}
        assert all(finding.expected != "" for finding in found if finding.status == "failed")


@pytest.mark.parametrize("rule", ["batch", "max-total-tokens"])
def test_without_a_limit_nothing_is_called_right(rule: str) -> None:
    """An engine's config.json that does not say what it was built for is compared with nothing."""
    files, runtime = good("trtllm")
    config(build_config={"plugin_config": {}})(files)

    assert statuses(findings(files, runtime=runtime), rule) == {"skipped"}


@pytest.mark.parametrize("name", REGISTRY)
def test_entries_of_the_registry(name: str) -> None:
    """Every entry of RayLLM's own registry is recognised and passes."""
    files = {f"models/{name}.yaml": yaml.safe_dump(REGISTRY[name]).encode()}

    assert TARGET.detect(tree_of(files))
    assert failed(findings(files)) == set()


def test_the_whole_registry() -> None:
    """A folder of entries is linted entry by entry."""
    files = {f"models/{name}.yaml": yaml.safe_dump(entry).encode() for name, entry in REGISTRY.items()}

    found = findings(files)

    assert failed(found) == set()
    assert len([finding for finding in found if finding.rule == "schema"]) == 15


def test_what_is_none_of_its_packages() -> None:
    """Other YAML, and a serve config of ray.serve.llm, are not RayLLM's."""
    other = b"applications:\n- import_path: ray.serve.llm:build_openai_app\n"

    assert not TARGET.detect(
        tree_of({"serve.yaml": other, "config.yaml": b"a: 1\n", "mirror/x.yaml": b"engine_config: 1"})
    )


def test_nothing_to_lint() -> None:
    """In a folder that is none, every rule says that there is no entry."""
    found = findings({"a.txt": b""})

    assert {finding.rule for finding in found} == TARGET.rules.keys()
    assert {finding.status for finding in found} == {"skipped"}


def test_release_of_the_manifest() -> None:
    """Release and runtime come from llmcompile.json where they are not given."""
    files, _ = good("trtllm")
    record = {"package": {"target": "rayllm", "version": "0.5.0", "runtime": "1.2.1"}}

    assert statuses(findings(files, version=None), "runtime") == {"skipped"}
    assert statuses(findings({**files, "llmcompile.json": encoded(record)}, version=None), "runtime") == {"ok"}


def test_release_that_nothing_says() -> None:
    """Rules that depend on the release are skipped, with the flag to add."""
    files, _ = good("vllm")

    skipped = [finding for finding in findings(files, version=None) if finding.rule == "loads"]

    assert [(finding.status, finding.hint) for finding in skipped] == [("skipped", "add --target-version 0.5.0")]


def test_engines_of_the_older_release() -> None:
    """RayLLM 0.4.0 knows VLLMEngine alone."""
    files, runtime = good("embedding")

    assert failed(findings(files, "0.4.0", runtime)) == {"engine"}


def test_no_chat_in_the_older_release() -> None:
    """RayLLM 0.4.0 demands a prompt_format."""
    files, _ = made(decoder(), no_chat=True)[1], None

    assert failed(findings(files, "0.4.0")) == {"prompt-format"}


@pytest.mark.parametrize(("runtime", "status"), [("0.2.4", "ok"), ("0.2.6", "failed"), ("0.6.3", "failed")])
def test_vllm_of_the_image(runtime: str, status: str) -> None:
    """RayLLM 0.5.0 asks for vLLM before 0.2.6."""
    files, _ = good("vllm")

    assert statuses(findings(files, runtime=runtime), "runtime") == {status}


def test_old_engines() -> None:
    """An engine's degrees and lengths are also read from the builder_config of releases up to 0.8."""
    old = {
        "builder_config": {
            "tensor_parallel": 2,
            "pipeline_parallel": 1,
            "max_batch_size": 4,
            "max_input_len": 96,
            "max_output_len": 32,
        }
    }
    files, runtime = good("trtllm")
    files["mirror/config.json"] = encoded(old)

    found = findings(files, runtime=runtime)

    assert failed(found) == set()
    assert {finding.found for finding in found if finding.rule == "max-total-tokens"} == {"32 of 128"}


def test_templates_that_cannot_be_expressed() -> None:
    """Where no prompt_format can render the template, a difference is noted, not failed."""
    files, runtime = good("vllm")
    dated = encoded({"chat_template": "{{ strftime_now('%d') }}" + CHATML})
    files["mirror/tokenizer_config.json"] = dated

    found = findings(files, runtime=runtime)

    assert failed(found) == set()
    assert statuses(found, "chat-template") == {"note"}


def test_a_type_that_is_not_written() -> None:
    """An entry without a type is noted: RayLLM goes by the list it is in."""
    files, runtime = good("trtllm")
    without("engine_config", "type")(files)

    found = findings(files, runtime=runtime)

    assert failed(found) == set()
    assert statuses(found, "schema") == {"note"}


def test_a_bucket_without_a_slash_at_the_end() -> None:
    """TRTLLMEngine takes every key with the prefix, so a prefix without a slash is noted."""
    files, runtime = good("trtllm")
    change("engine_config", "s3_mirror_config", "bucket_uri", to="s3://models/tiny")(files)

    assert statuses(findings(files, runtime=runtime), "bucket") == {"note"}


_bytes = st.binary(max_size=40) | st.sampled_from(
    [b"engine_config: 1", b"engine_config: {type: VLLMEngine}", b"{}", b"[]", b"null", b'{"build_config": 1}']
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "a.yaml",
                "serve.yaml",
                "llmcompile.json",
                "mirror/config.json",
                "mirror/hash",
                "mirror/tokenizer_config.json",
                "mirror/rank0.engine",
            ]
        ),
        _bytes,
    )
)
@settings(max_examples=80, deadline=None)
def test_any_files(files: Files) -> None:
    """Any bytes give findings of every rule."""
    found = findings(files)

    assert {finding.rule for finding in found} == TARGET.rules.keys()


_values = st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})


def _paths(content: object, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(content, dict):
        return [before]
    return [before, *(path for key in content for path in _paths(content[key], (*before, key)))]


@given(st.sampled_from(["vllm", "trtllm", "embedding"]), st.data())
@settings(max_examples=80, deadline=None)
def test_any_value_anywhere(name: str, data: st.DataObject) -> None:
    """Any value at any place of an entry or of the mirror's config.json is a finding, never a crash."""
    files, runtime = good(name)
    value = data.draw(_values)
    place = data.draw(st.sampled_from(_paths(entry_of(files))[1:]))
    change(*place, to=value)(files)
    key = data.draw(st.sampled_from(sorted(json.loads(files["mirror/config.json"]))))
    config(**{key: data.draw(_values)})(files)

    assert {finding.rule for finding in findings(files, runtime=runtime)} == TARGET.rules.keys()


def test_a_folder_on_disk(tmp_path: Path) -> None:
    """A folder as a person has it is opened, packaged and linted."""
    folder = tmp_path / "org--tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))

    package, files = made(open_artifact(folder))

    assert "org--tiny-50-fp16.yaml" in package.texts
    assert failed(findings(files)) == set()
