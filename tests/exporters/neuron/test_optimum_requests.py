"""Which option reaches which argument of optimum-neuron, and which is refused or noted: it would be passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.errors import LlmCompileError, OptionsError, UnsupportedError
from llmcompile.exporters.neuron import optimum_requests as requests
from llmcompile.exporters.neuron.optimum_requests import Request, Source
from llmcompile.exporters.neuron.options import NeuronOptions, Shapes
from llmcompile.exporters.options import BuildOptions

NEWEST = (0, 4, 5)
BERT: dict[str, Any] = {"model_type": "bert"}
T5: dict[str, Any] = {"model_type": "t5", "is_encoder_decoder": True}
LLAMA: dict[str, Any] = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2}
PIPELINE: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.2",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "image_encoder": [None, None],
    "vae": ["diffusers", "AutoencoderKL"],
}
FLUX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.35.2",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
}
TOKENS = Shapes(batch_size=1, sequence_length=128)
IMAGE = Shapes(batch_size=2, height=512, width=640)
GENERATE, FEATURES, PICTURE = "text-generation", "feature-extraction", "text-to-image"


def options(shapes: Shapes = TOKENS, build: dict[str, Any] | None = None, **asked: Any) -> NeuronOptions:
    """Options for some model."""
    common = BuildOptions(model="org/name", output=Path("out"), **({} if build is None else build))
    return NeuronOptions(build=common, shapes=shapes, **asked)


def ask(
    config: dict[str, Any],
    task: str,
    asked: NeuronOptions | None = None,
    *,
    release: tuple[int, int, int] = NEWEST,
    target: str = "inf2",
    environ: dict[str, str] | None = None,
) -> Request:
    """The request for a model in /models/it."""
    return requests.make_request(
        options() if asked is None else asked,
        task,
        Path("/models/it"),
        Path("/made/artifact"),
        source=requests.source_of(config, task),
        release=release,
        target=target,
        folder=Path("/job"),
        environ={} if environ is None else environ,
    )


def refused(
    config: dict[str, Any],
    task: str,
    asked: NeuronOptions,
    *,
    release: tuple[int, int, int] = NEWEST,
    devices: int = 0,
    environ: dict[str, str] | None = None,
) -> list[LlmCompileError]:
    """What stands in the way of a model and a task."""
    source = requests.source_of(config, task)
    given = {} if environ is None else environ
    return requests.obstacles(asked, task, source, release, given, devices=devices)


def only(errors: list[LlmCompileError], kind: type[LlmCompileError]) -> tuple[str, str]:
    """Subject and hint of the single problem there is."""
    ((error,), problems) = (errors, errors[0].problems)
    assert type(error) is kind
    assert len(problems) == 1
    return problems[0].subject, problems[0].hint


# Encoders, encoder-decoders, vision, audio, diffusion: main_export


def argument(request: Request, name: str) -> Any:
    """An argument of main_export."""
    arguments = request.content["arguments"]
    assert isinstance(arguments, dict)
    return arguments[name]


def test_an_encoder_with_nothing_special_is_asked_for_with_every_default_said() -> None:
    """Paths are absolute; weights stay apart; validation is ours; the hub's cache is left alone; the task is said."""
    request = ask(BERT, FEATURES)

    assert request.content == {
        "action": "export",
        "model": "/models/it",
        "unet": None,
        "output": "/made/artifact",
        "arguments": {
            "compiler_kwargs": {"auto_cast": None, "auto_cast_type": None, "instance_type": "inf2"},
            "torch_dtype": "float32",
            "tensor_parallel_size": 1,
            "task": "feature-extraction",
            "dynamic_batch_size": False,
            "cache_dir": None,
            "disable_neuron_cache": True,
            "compiler_workdir": None,
            "inline_weights_to_neff": False,
            "optlevel": "2",
            "trust_remote_code": False,
            "subfolder": "",
            "local_files_only": True,
            "do_validation": False,
            "output_attentions": False,
            "output_hidden_states": False,
            "library_name": "transformers",
        },
        "shapes": {"batch_size": 1, "sequence_length": 128},
        "normalize": False,
    }
    assert request.notes == ()


ARGUMENTS: tuple[tuple[dict[str, Any], str, Any], ...] = (
    ({"torch_dtype": "bfloat16"}, "torch_dtype", "bfloat16"),
    ({"optlevel": 1}, "optlevel", "1"),
    ({"optlevel": 3}, "optlevel", "3"),
    ({"dynamic_batch_size": True}, "dynamic_batch_size", True),
    ({"dynamic_batch_size": True}, "inline_weights_to_neff", True),
    ({"inline_weights": True}, "inline_weights_to_neff", True),
    ({"disable_neuron_cache": False}, "disable_neuron_cache", False),
    ({"compiler_workdir": Path("/kept")}, "compiler_workdir", "/kept/trace"),
    ({"subfolder": "onnx"}, "subfolder", "onnx"),
    ({"build": {"cache_dir": Path("/cache")}}, "cache_dir", "/cache"),
    ({"build": {"trust_remote_code": True}}, "trust_remote_code", True),
)


@pytest.mark.parametrize(("given", "name", "value"), ARGUMENTS, ids=[f"{row[1]}={row[2]}" for row in ARGUMENTS])
def test_an_option_reaches_its_argument(given: dict[str, Any], name: str, value: object) -> None:
    """Of main_export."""
    assert argument(ask(BERT, FEATURES, options(**given)), name) == value


CASTS: tuple[tuple[dict[str, Any], str | None, str | None], ...] = (
    ({}, None, None),
    ({"auto_cast_type": "fp16"}, None, None),
    ({"auto_cast": "none", "auto_cast_type": "bf16"}, None, None),
    ({"auto_cast": "matmul"}, "matmul", "bf16"),
    ({"auto_cast": "all", "auto_cast_type": "tf32"}, "all", "tf32"),
)


@pytest.mark.parametrize(("given", "cast", "kind"), CASTS)
def test_casting_reaches_the_compiler_as_optimum_infers_it(
    given: dict[str, Any], cast: str | None, kind: str | None
) -> None:
    """None for "none", and then no type either: infer_compiler_kwargs of 0.4.5."""
    compiler = argument(ask(BERT, FEATURES, options(**given)), "compiler_kwargs")

    assert compiler == {"auto_cast": cast, "auto_cast_type": kind, "instance_type": "inf2"}


@pytest.mark.parametrize("wanted", ["output_attentions", "output_hidden_states"])
def test_optional_outputs_of_an_encoder_decoder_are_asked_for(wanted: str) -> None:
    """T5 has both."""
    request = ask(
        T5, "text2text-generation", options(Shapes(batch_size=1, sequence_length=8, num_beams=4), **{wanted: True})
    )

    assert argument(request, wanted) is True


SHAPES: tuple[tuple[dict[str, Any], str, Shapes, dict[str, int | None]], ...] = (
    (
        T5,
        "text2text-generation",
        Shapes(batch_size=1, sequence_length=8, num_beams=4),
        {"batch_size": 1, "sequence_length": 8, "num_beams": 4},
    ),
    (
        BERT,
        "multiple-choice",
        Shapes(batch_size=1, sequence_length=8, num_choices=3),
        {"batch_size": 1, "sequence_length": 8, "num_choices": 3},
    ),
    ({"model_type": "vit"}, "image-classification", Shapes(batch_size=5), {"batch_size": 5}),
    (
        {"model_type": "wav2vec2"},
        "audio-classification",
        Shapes(batch_size=1, audio_sequence_length=16000),
        {"batch_size": 1, "audio_sequence_length": 16000},
    ),
    (
        {"model_type": "clip"},
        "feature-extraction",
        Shapes(text_batch_size=2, image_batch_size=1, sequence_length=77, num_channels=3, width=224, height=225),
        {
            "text_batch_size": 2,
            "image_batch_size": 1,
            "sequence_length": 77,
            "num_channels": 3,
            "width": 224,
            "height": 225,
        },
    ),
    (
        PIPELINE,
        PICTURE,
        IMAGE,
        {"batch_size": 2, "height": 512, "width": 640, "num_images_per_prompt": 1, "sequence_length": None},
    ),
    (
        PIPELINE,
        PICTURE,
        Shapes(batch_size=2, height=512, width=640, num_images_per_prompt=4, sequence_length=64),
        {"batch_size": 2, "height": 512, "width": 640, "num_images_per_prompt": 4, "sequence_length": 64},
    ),
)


@pytest.mark.parametrize(
    ("config", "task", "shapes", "asked"), SHAPES, ids=[f"{row[1]}-{index}" for index, row in enumerate(SHAPES)]
)
def test_shapes_go_by_the_names_the_model_has_for_them(
    config: dict[str, Any], task: str, shapes: Shapes, asked: dict[str, int | None]
) -> None:
    """Those that it needs and no others."""
    assert ask(config, task, options(shapes)).content["shapes"] == asked


def test_a_shape_the_model_does_not_have_is_noted() -> None:
    """--width of a text model changes nothing."""
    request = ask(BERT, FEATURES, options(Shapes(batch_size=1, sequence_length=8, width=32)))

    assert request.notes == ("--width is not used: bert has no such shape, or has it in its config",)
    assert request.content["shapes"] == {"batch_size": 1, "sequence_length": 8}


def test_shapes_that_are_needed_and_were_not_given_are_refused_together() -> None:
    """Each by its flag."""
    with pytest.raises(OptionsError) as caught:
        ask(T5, "text2text-generation", options(Shapes(batch_size=1)))

    assert [problem.subject for problem in caught.value.problems] == ["--sequence-length", "--num-beams"]


def test_a_pipeline_is_dealt_out_by_optimum_and_takes_another_unet() -> None:
    """Its library is said, since a folder does not tell; the parts come from model_index.json."""
    request = ask(PIPELINE, PICTURE, options(IMAGE, unet=Path("/models/unet")))

    assert request.content["normalize"] is True
    assert request.content["unet"] == "/models/unet"
    assert argument(request, "library_name") == "diffusers"
    assert request.modules == (
        "text_encoder/model.neuron",
        "unet/model.neuron",
        "vae_encoder/model.neuron",
        "vae_decoder/model.neuron",
    )
    assert request.files[:2] == ("model_index.json", "scheduler/scheduler_config.json")


def test_hidden_states_of_a_pipelines_texts_are_asked_for() -> None:
    """optimum-neuron refuses attentions there, and takes hidden states."""
    asked = options(IMAGE, output_hidden_states=True)

    assert refused(PIPELINE, PICTURE, asked) == []
    assert argument(ask(PIPELINE, PICTURE, asked), "output_hidden_states") is True


def test_flux_has_weights_of_their_own_beside_two_of_its_parts() -> None:
    """From 0.4.3 on, one file for each core."""
    request = ask(FLUX, PICTURE, options(IMAGE, num_cores=2))

    assert request.shards == tuple(
        f"{part}/weights/tp{rank}_sharded_checkpoint.safetensors"
        for part in ("text_encoder_2", "transformer")
        for rank in (0, 1)
    )
    assert ask(FLUX, PICTURE, options(IMAGE), release=(0, 4, 2)).shards == ()
    assert argument(request, "compiler_workdir") == "/job/trace"


def test_flags_that_a_sharded_part_ignores_are_noted() -> None:
    """Its compiler arguments are fixed: get_compiler_args of 0.4.5."""
    (note,) = ask(FLUX, PICTURE, options(IMAGE, auto_cast="all")).notes

    assert note.startswith("text_encoder_2 and transformer: compiled with -O1 --auto-cast none")


def test_weights_of_sdxl_go_into_the_neff() -> None:
    """Whatever was asked: export_models of 0.4.5 warns in the middle of the compilation."""
    (note,) = ask({**PIPELINE, "_class_name": "StableDiffusionXLPipeline"}, PICTURE, options(IMAGE)).notes

    assert "SDXL" in note


def test_a_text_model_with_modules_is_sentence_transformers_business() -> None:
    """Where its package is there, and for features alone."""
    assert requests.source_of(BERT, FEATURES, sentence_transformers=True).library == "sentence_transformers"
    assert requests.source_of(BERT, "fill-mask", sentence_transformers=True).library == "transformers"
    assert requests.source_of(BERT, FEATURES).library == "transformers"


def test_what_the_artifact_must_record_is_what_was_asked() -> None:
    """The section "neuron" of its config.json."""
    asked = options(auto_cast="matmul", auto_cast_type="fp16", optlevel=3, torch_dtype="float16")

    assert ask(BERT, FEATURES, asked, target="trn1n").recorded == {
        "auto_cast": "matmul",
        "auto_cast_type": "fp16",
        "instance_type": "trn1n",
        "optlevel": "3",
        "dynamic_batch_size": False,
        "task": "feature-extraction",
        "inline_weights_to_neff": False,
        "torch_dtype": "float16",
        "static_batch_size": 1,
        "static_sequence_length": 128,
    }


# Decoders


def test_a_decoder_is_asked_for_by_its_sizes() -> None:
    """The folder itself is the model, so that the weights are in the artifact."""
    request = ask(LLAMA, GENERATE, options(num_cores=2), target="trn2")

    assert request.content == {
        "action": "decoder",
        "generation": "0.4.1",
        "model": "/models/it",
        "unet": None,
        "output": "/made/artifact",
        "task": "text-generation",
        "batch_size": 1,
        "sequence_length": 128,
        "tensor_parallel_size": 2,
        "instance_type": "trn2",
        "dtype": None,
        "trust_remote_code": False,
    }
    assert request.modules == ("model.pt",)
    assert request.shards == (
        "checkpoint/weights/tp0_sharded_checkpoint.safetensors",
        "checkpoint/weights/tp1_sharded_checkpoint.safetensors",
    )
    assert request.recorded == {"batch_size": 1, "sequence_length": 128, "tp_degree": 2, "target": "trn2"}


DTYPES: tuple[tuple[dict[str, Any], str | None], ...] = (
    ({}, None),
    ({"auto_cast_type": "fp16"}, "float16"),
    ({"auto_cast_type": "bf16"}, "bfloat16"),
    ({"torch_dtype": "float32", "auto_cast": "matmul", "auto_cast_type": "bf16"}, "float32"),
    ({"auto_cast": "matmul", "auto_cast_type": "bf16"}, "bfloat16"),
    ({"auto_cast": "matmul"}, None),
)


@pytest.mark.parametrize(("given", "dtype"), DTYPES)
def test_the_cast_type_of_a_decoder_is_its_element_type(given: dict[str, Any], dtype: str | None) -> None:
    """optimum-neuron drops the option; a dtype that was given goes first."""
    request = ask(LLAMA, GENERATE, options(**given))

    assert request.content["dtype"] == dtype
    assert request.recorded.get("torch_dtype") == dtype


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"optlevel": 1}, "-O1 is not used: optimum-neuron compiles decoders with -O2"),
        ({"auto_cast": "all"}, "--auto-cast all is not used"),
        ({"inline_weights": True}, "--inline-weights-neff is not used"),
        ({"shapes": Shapes(batch_size=1, sequence_length=8, num_beams=2)}, "--num-beams is not used"),
    ],
)
def test_what_a_decoder_ignores_is_noted(given: dict[str, Any], note: str) -> None:
    """optimum-neuron says nothing of it."""
    (said,) = ask(LLAMA, GENERATE, options(**given)).notes

    assert said.startswith(note)


def test_the_decoder_inside_a_model_of_images_is_meant() -> None:
    """Llama 4's text part has a model type of its own."""
    config = {"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}

    assert requests.source_of(config, GENERATE).model_type == "llama4_text"
    assert requests.source_of(config, "image-classification").model_type == "llama4"


# Releases


@pytest.mark.parametrize(
    ("release", "generation"),
    [((0, 3, 0), "0.3.0"), ((0, 3, 9), "0.3.0"), ((0, 4, 0), "0.4.0"), ((0, 4, 1), "0.4.1"), ((0, 4, 5), "0.4.1")],
)
def test_a_release_is_asked_as_its_generation(release: tuple[int, int, int], generation: str) -> None:
    """0.4.0 still takes a cast type; 0.4.1 takes the dtype from the configuration."""
    assert ask(LLAMA, GENERATE, release=release).content["generation"] == generation


def test_a_release_that_was_not_read_is_asked_as_the_newest() -> None:
    """The worker looks at its signatures first."""
    assert ask(LLAMA, GENERATE, release=(1, 0, 0)).content["generation"] == "0.4.1"


def test_the_oldest_release_is_not_told_an_instance_type() -> None:
    """Its convert.export has no such argument, and it compiles for the host."""
    request = ask(BERT, FEATURES, release=(0, 3, 0))

    assert argument(request, "compiler_kwargs") == {"auto_cast": None, "auto_cast_type": None}
    assert "NEURON_PLATFORM_TARGET_OVERRIDE" not in request.environment
    assert "instance_type" not in request.recorded


# Environment


@pytest.mark.parametrize(("target", "code"), [("inf2", "trn1"), ("trn1", "trn1"), ("trn1n", "trn1"), ("trn2", "trn2")])
def test_the_target_is_in_the_environment(target: str, code: str) -> None:
    """As the instruction set that the instance type has."""
    assert ask(BERT, FEATURES, target=target).environment["NEURON_PLATFORM_TARGET_OVERRIDE"] == code


def test_neuronx_distributed_works_in_a_folder_of_the_job() -> None:
    """It deletes that folder, so it is one below what the user named."""
    assert ask(LLAMA, GENERATE).environment["BASE_COMPILE_WORK_DIR"] == "/job/nxd/"
    kept = ask(LLAMA, GENERATE, options(compiler_workdir=Path("/kept")))
    assert kept.environment["BASE_COMPILE_WORK_DIR"] == "/kept/nxd/"


def test_the_token_is_in_the_environment_and_nowhere_else() -> None:
    """And only where the hub is asked at all."""
    asked = options(build={"token": "hf_secret"}, disable_neuron_cache=False)

    request = ask(BERT, FEATURES, asked)

    assert request.environment["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in str(request.content)
    assert "hf_secret" not in str(ask(BERT, FEATURES, options(build={"token": "hf_secret"})).environment)


def test_the_hub_is_off_where_its_cache_is_not_wanted() -> None:
    """Everything is on this machine by then."""
    assert ask(BERT, FEATURES).environment["HF_HUB_OFFLINE"] == "1"


def test_the_cache_of_neffs_is_left_alone_offline() -> None:
    """It would fail after the compilation; said, since it was asked for."""
    request = ask(BERT, FEATURES, options(disable_neuron_cache=False), environ={"HF_HUB_OFFLINE": "1"})

    assert argument(request, "disable_neuron_cache") is True
    assert request.notes == ("HF_HUB_OFFLINE is set: the hub's cache of NEFFs is left alone",)


def test_the_compile_cache_is_a_variable() -> None:
    """NEURON_COMPILE_CACHE_URL, which libneuronxla reads."""
    request = ask(LLAMA, GENERATE, options(compile_cache=Path("/neffs")))

    assert request.environment["NEURON_COMPILE_CACHE_URL"] == "/neffs"


def test_compiler_flags_of_the_environment_are_noted() -> None:
    """Where they are allowed."""
    request = ask(BERT, FEATURES, options(allow_env_flags=True), environ={"NEURON_CC_FLAGS": "--verbose=info"})

    assert request.notes == ("NEURON_CC_FLAGS is set and adds to every compilation: --verbose=info",)


# Refused


def test_a_plain_export_is_not_refused() -> None:
    """Of any kind."""
    assert refused(BERT, FEATURES, options()) == []
    assert refused(LLAMA, GENERATE, options(num_cores=2)) == []
    assert refused(FLUX, PICTURE, options(IMAGE, num_cores=4)) == []


def test_a_task_the_model_has_not_names_those_it_has() -> None:
    """What to type next."""
    (error,) = refused(LLAMA, "fill-mask", options())

    assert type(error) is UnsupportedError
    assert str(error) == "llama, fill-mask: not in optimum-neuron 0.4.5; expected --task text-generation"


def test_an_unknown_model_names_its_neighbours() -> None:
    """And the other way."""
    (error,) = refused({"model_type": "distilbart"}, FEATURES, options())

    assert "distilbert" in error.problems[0].expected
    assert "--via xla" in error.problems[0].hint


def test_a_model_that_came_later_names_the_release() -> None:
    """smollm3 is in 0.4.0 and not in 0.3.0."""
    (error, _) = refused({"model_type": "smollm3"}, GENERATE, options(), release=(0, 3, 0))

    assert error.problems[0].expected == "optimum-neuron 0.4.0 or later"
    assert refused({"model_type": "smollm3"}, GENERATE, options(), release=(0, 4, 0)) == []


def test_what_a_newer_release_exports_is_its_own_business() -> None:
    """Its registry was not read; it says itself what it lacks."""
    assert refused({"model_type": "gemma3_text"}, GENERATE, options(), release=(0, 5, 0)) == []


OPTIONS: tuple[tuple[dict[str, Any], str, dict[str, Any], str], ...] = (
    (BERT, FEATURES, {"num_cores": 2}, "--num-cores"),
    (BERT, FEATURES, {"output_attentions": True}, "--output-attentions"),
    (BERT, FEATURES, {"output_hidden_states": True}, "--output-hidden-states"),
    (BERT, FEATURES, {"unet": Path("/u")}, "--unet"),
    (BERT, FEATURES, {"compiler": Path("/bin/neuronx-cc")}, "--neuronx-cc"),
    (BERT, FEATURES, {"compile_workers": 2}, "--compile-workers"),
    (PIPELINE, PICTURE, {"shapes": IMAGE, "output_attentions": True}, "--output-attentions"),
    (FLUX, PICTURE, {"shapes": IMAGE, "unet": Path("/u")}, "--unet"),
    (FLUX, PICTURE, {"shapes": IMAGE, "instance_type": "trn2"}, "--instance-type"),
    (LLAMA, GENERATE, {"dynamic_batch_size": True}, "--dynamic-batch-size"),
    (LLAMA, GENERATE, {"buckets": (64,)}, "--buckets"),
    (LLAMA, GENERATE, {"auto_cast_type": "tf32"}, "--auto-cast-type"),
    (LLAMA, GENERATE, {"subfolder": "sub"}, "--subfolder"),
    (LLAMA, GENERATE, {"output_hidden_states": True}, "--output-hidden-states"),
)


@pytest.mark.parametrize(
    ("config", "task", "asked", "flag"), OPTIONS, ids=[f"{row[3]}-{index}" for index, row in enumerate(OPTIONS)]
)
def test_an_option_that_would_be_passed_over_is_refused(
    config: dict[str, Any], task: str, asked: dict[str, Any], flag: str
) -> None:
    """By its name, with what to type instead."""
    subject, hint = only(refused(config, task, options(**asked)), OptionsError)

    assert subject == flag
    assert hint != ""


def test_compiler_flags_of_the_environment_are_refused() -> None:
    """They change the artifact and are recorded nowhere; unless they are allowed."""
    flags = {"NEURON_CC_FLAGS": "-O1"}

    assert only(refused(BERT, FEATURES, options(), environ=flags), OptionsError)[0] == "NEURON_CC_FLAGS"
    assert refused(BERT, FEATURES, options(allow_env_flags=True), environ=flags) == []


def test_the_oldest_release_needs_a_device() -> None:
    """torch_neuronx.trace has no cpu_backend there."""
    assert only(refused(BERT, FEATURES, options(), release=(0, 3, 0)), OptionsError)[0] == "optimum-neuron"
    assert refused(BERT, FEATURES, options(), release=(0, 3, 0), devices=1) == []
    asked = options(instance_type="trn1")
    assert only(refused(BERT, FEATURES, asked, release=(0, 3, 0), devices=1), OptionsError)[0] == "--instance-type"


@pytest.mark.parametrize("cores", [1, 3, 6, 9])
def test_heads_that_divide_or_are_divided_are_let_through(cores: int) -> None:
    """Three key and value heads."""
    config = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3}

    assert refused(config, GENERATE, options(num_cores=cores)) == []


@pytest.mark.parametrize("cores", [2, 4, 8])
def test_heads_that_0_4_5_cannot_split_are_refused(cores: int) -> None:
    """split_with_sizes fails in its gqa.py; later releases may have it mended."""
    config = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3}

    problems = refused(config, GENERATE, options(num_cores=cores))[0].problems

    assert [problem.expected for problem in problems] == ["one of 1, 3, 6, 9, 12, 15, 18, 21"]
    assert refused(config, GENERATE, options(num_cores=cores), release=(0, 4, 6)) == []


@given(heads=st.integers(1, 64), cores=st.integers(1, 64))
def test_a_decoder_is_refused_exactly_where_heads_and_cores_do_not_divide(heads: int, cores: int) -> None:
    """Either way round; heads of a model without grouped queries are its attention heads."""
    problems = refused({"model_type": "llama", "num_attention_heads": heads}, GENERATE, options(num_cores=cores))

    assert (problems == []) == (max(heads, cores) % min(heads, cores) == 0)


# Files that go along


def test_code_goes_along_where_it_may_run() -> None:
    """And nowhere else."""
    names = ["config.json", "modeling_x.py", "tokenizer.json"]

    assert requests.carried(names, ["config.json"], decoder=False, code=False) == ()
    assert requests.carried(names, ["config.json"], decoder=False, code=True) == ("modeling_x.py",)


def test_a_decoder_takes_its_tokenizer_along() -> None:
    """What is there already stays."""
    names = ["config.json", "generation_config.json", "modeling_x.py", "tokenizer.json"]

    carried = requests.carried(names, ["config.json", "model.pt"], decoder=True, code=False)

    assert carried == ("generation_config.json", "tokenizer.json")


def test_parts_of_a_model_are_told_by_its_config() -> None:
    """A part that model_index.json has as null is none."""
    assert Source("t5", "transformers", T5).parts == ("encoder", "decoder")
    assert requests.source_of(PIPELINE, PICTURE).parts == ("text_encoder", "unet", "vae_encoder", "vae_decoder")
