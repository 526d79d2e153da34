"""Our adapter, options and registry against what the wheels of optimum-neuron 0.3.0 to 0.4.5 have.

The wheels' side is recorded in tests/golden/neuron/optimum; with OPTIMUM_NEURON_WHEEL it is read from a wheel anew.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from llmcompile.cli import app
from llmcompile.exporters.neuron import optimum_registry as registry
from llmcompile.exporters.neuron import optimum_requests as requests
from llmcompile.exporters.neuron import optimum_worker as worker
from llmcompile.exporters.neuron.options import INSTANCE_TYPES, NeuronOptions, Shapes
from llmcompile.exporters.options import BuildOptions

GOLDEN = Path(__file__).parents[2] / "golden" / "neuron" / "optimum"
WHEEL = os.environ.get("OPTIMUM_NEURON_WHEEL")


def _recorded() -> dict[str, dict[str, Any]]:
    files = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("[0-9]*.json"))]
    return {file["version"]: file for file in files}


RECORDED = _recorded()
NEWEST = RECORDED["0.4.5"]
OPTIONS = NeuronOptions(
    build=BuildOptions(model="m", output=Path("o")),
    shapes=Shapes(batch_size=1, sequence_length=8, height=64, width=64, num_beams=2),
)


def release(version: str) -> tuple[int, int, int]:
    """A version as three numbers."""
    first, second, third = (int(number) for number in version.split("."))
    return first, second, third


def content(config: dict[str, Any], task: str, version: str) -> dict[str, Any]:
    """What the worker is asked for a model."""
    made = requests.make_request(
        OPTIONS,
        task,
        Path("m"),
        Path("o"),
        source=requests.source_of(config, task),
        release=release(version),
        target="trn1",
        folder=Path("f"),
        environ={},
    )
    return dict(made.content)


def test_the_newest_release_that_was_read_is_the_newest_recorded() -> None:
    """LAST_READ decides which errors of theirs are expected."""
    assert max(release(version) for version in RECORDED) == requests.LAST_READ


@pytest.mark.parametrize("version", RECORDED)
def test_every_argument_we_pass_is_one_of_main_export(version: str) -> None:
    """And every one that must be given is given."""
    function = RECORDED[version]["functions"]["main_export"]
    asked = content({"model_type": "bert"}, "feature-extraction", version)

    passed = {"model_name_or_path", "output", "submodels", *asked["arguments"]}

    assert passed <= function["arguments"].keys()
    assert {name for name, default in function["arguments"].items() if default is None} <= passed
    assert function["keywords"] is True


@pytest.mark.parametrize("version", RECORDED)
def test_what_we_tell_the_compiler_is_splatted_into_a_function_that_takes_it(version: str) -> None:
    """compiler_kwargs go to convert.export as they are; 0.3.0 knows no instance type there."""
    asked = content({"model_type": "bert"}, "feature-extraction", version)

    assert asked["arguments"]["compiler_kwargs"].keys() <= RECORDED[version]["functions"]["compile"]["arguments"].keys()


@pytest.mark.parametrize("version", RECORDED)
def test_shapes_of_a_pipeline_are_those_optimum_deals_out(version: str) -> None:
    """By name; the others have defaults."""
    dealt = RECORDED[version]["functions"]["build_stable_diffusion_components_mandatory_shapes"]["arguments"]
    asked = content({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0"}, "text-to-image", version)

    assert asked["shapes"].keys() <= dealt.keys()
    assert RECORDED[version]["functions"]["normalize_diffusers_input_shapes"]["arguments"] == {"args": None}


class Kind:
    """A class that records what it is asked for."""

    asked: dict[str, Any]

    def get_neuron_config(self, **arguments: Any) -> Any:
        """As the vendor's, with any argument."""
        self.asked = arguments
        return arguments


@pytest.mark.parametrize("version", RECORDED)
def test_a_decoder_is_asked_for_with_arguments_of_its_release(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them by name, and every one that must be given."""
    functions = RECORDED[version]["functions"]
    asked = content({"model_type": "llama"}, "text-generation", version)
    kind = Kind()
    monkeypatch.setattr(worker, "accepts", lambda function, names: None)

    class Config:
        torch_dtype = "torch.bfloat16"

    worker.ADAPTERS[asked["generation"]](kind, asked, Config())

    takes = functions["get_neuron_config"]["arguments"]
    assert kind.asked.keys() <= takes.keys()
    assert {name for name, default in takes.items() if default is None} <= kind.asked.keys()
    export = {"model_id", "config", "neuron_config", "load_weights"}
    assert export <= functions["export"]["arguments"].keys()
    assert {name for name, default in functions["export"]["arguments"].items() if default is None} <= export
    assert functions["get_neuron_model_class"]["arguments"].keys() == {"model_type", "task", "mode"}


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0"])
def test_the_cast_type_of_an_old_release_is_always_said(version: str) -> None:
    """Its own default compares a torch.dtype with a string, and is fp32."""
    assert "auto_cast_type" in RECORDED[version]["functions"]["get_neuron_config"]["arguments"]
    assert "auto_cast_type" not in RECORDED["0.4.1"]["functions"]["get_neuron_config"]["arguments"]


def test_every_generation_has_an_adapter() -> None:
    """By the same names on both sides."""
    assert list(worker.ADAPTERS) == [requests.dotted(first) for first in requests.GENERATIONS]
    assert inspect.signature(worker.called).parameters.keys() == {"function", "arguments"}


# The registry


def _tasks(version: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Model type, task and shapes by the wheel; the two halves of an encoder-decoder under its own name."""
    for model, tasks in RECORDED[version]["tasks"]["transformers"].items():
        name = model.removesuffix("-encoder").removesuffix("-decoder")
        for task, shapes in tasks.items():
            yield name, task, tuple(shapes)
    for model, task in RECORDED[version]["decoders"]:
        yield model, task, ("batch_size", "sequence_length")


def test_the_registry_is_the_wheels() -> None:
    """Every model type and task of 0.4.5 with the shapes it needs, and no others."""
    ours = {
        (model, task): shapes for (model, task), shapes in registry.SHAPES.items() if model not in registry.PIPELINES
    }

    assert ours == {(model, task): shapes for model, task, shapes in _tasks("0.4.5")}
    assert {(model, task) for model, tasks in registry.SUPPORTED.items() for task in tasks} == ours.keys()


@pytest.mark.parametrize("version", RECORDED)
def test_what_came_later_is_known(version: str) -> None:
    """FIRST_RELEASE says which tasks a release does not have yet."""
    # optimum before 2.0 turned the underscores of a model type into hyphens; its classification of every pixel is gone.
    spelled = {"mobilenet-v2": "mobilenet_v2"}
    has = {(spelled.get(model, model), task) for model, task, _ in _tasks(version)}

    expected = {
        (model, task)
        for model, tasks in registry.SUPPORTED.items()
        for task in tasks
        if registry.FIRST_RELEASE.get((model, task), (0, 3, 0)) <= release(version)
    }
    assert has - {("mobilenet_v2", "image-segmentation")} == expected


TRACED = json.loads((GOLDEN / "traced.json").read_text())


@pytest.mark.parametrize("model", [name for name in TRACED if name != registry.SENTENCE_TRANSFORMERS])
def test_a_traced_encoder_takes_and_answers_what_the_wheel_says(model: str) -> None:
    """In that order, for every task it has."""
    assert TRACED[model] == {
        task: [
            list(registry.traced_inputs(model, {})),
            list(registry.traced_outputs(model, task)),
        ]
        for task in registry.SUPPORTED[model]
    }


def test_a_sentence_encoder_takes_and_answers_what_the_wheel_says() -> None:
    """Without token types, whatever the model."""
    library = registry.SENTENCE_TRANSFORMERS
    inputs, outputs = TRACED[library]["feature-extraction"]

    assert registry.traced_inputs("bert", {}, library) == tuple(inputs)
    assert registry.traced_outputs("bert", "feature-extraction", library) == tuple(outputs)


def test_deberta_takes_token_types_where_it_has_any() -> None:
    """Its configuration says how many; none by default."""
    assert "token_type_ids" in registry.traced_inputs("deberta", {"type_vocab_size": 2})
    assert "token_type_ids" not in registry.traced_inputs("deberta", {"type_vocab_size": 0})


def test_decoders_are_the_wheels() -> None:
    """Those with a class for neuronx-distributed."""
    assert set(registry.DECODERS) == {model for model, _ in NEWEST["decoders"]}


def test_instance_types_are_the_wheels() -> None:
    """And each has an instruction set."""
    (option,) = (option for option in NEWEST["options"] if option["names"] == ["--instance_type"])

    assert set(option["choices"]) == set(INSTANCE_TYPES) == requests.TARGETS.keys()


# The command line

NOT_OURS = ("--lora_", "--controlnet_ids", "--ip_adapter_")
"""Adapters of diffusion models, which the user's guide of this command does not name."""


def _spellings() -> set[str]:
    command: Any = get_command(app)
    for name in ("export", "neuron"):
        command = command.commands[name]
    return {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("version", ["0.3.0", "0.4.5"])
def test_every_option_of_optimum_cli_is_one_of_ours(version: str) -> None:
    """In its own spelling and in the other one."""
    theirs = [name for option in RECORDED[version]["options"] for name in option["names"] if name.startswith("-")]
    wanted = [name for name in theirs if not name.startswith(NOT_OURS)]
    twins = [f"--{name[2:].replace('_', '-')}" for name in wanted if name.startswith("--")]
    twins += [f"--{name[2:].replace('-', '_')}" for name in wanted if name.startswith("--")]

    assert [name for name in (*wanted, *twins) if name not in _spellings()] == []


# A wheel at hand


@pytest.mark.skipif(WHEEL is None, reason="OPTIMUM_NEURON_WHEEL names no wheel")
def test_a_wheel_is_as_it_was_recorded() -> None:
    """`pip download --no-deps optimum-neuron==0.4.5` gives one."""
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)

    found = make.record(Path(str(WHEEL)))

    assert found == RECORDED[found["version"]]
