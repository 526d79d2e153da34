"""What `llmcompile export neuron` may be asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from llmcompile.errors import OptionsError, Problem, collected
from llmcompile.exporters.options import BuildOptions

TASKS = (
    "feature-extraction",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "text-generation",
    "text2text-generation",
    "image-classification",
    "audio-classification",
    "automatic-speech-recognition",
    "text-to-image",
)
ENCODER_TASKS = TASKS[:6]
"""Tasks that our own lowering has besides text-generation; the others go through optimum-neuron."""
SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "default": "feature-extraction",
        "sentence-similarity": "feature-extraction",
        "masked-lm": "fill-mask",
        "sequence-classification": "text-classification",
        "causal-lm": "text-generation",
        "seq2seq-lm": "text2text-generation",
        "summarization": "text2text-generation",
        "translation": "text2text-generation",
        "stable-diffusion": "text-to-image",
        "stable-diffusion-xl": "text-to-image",
        "latent-consistency": "text-to-image",
    }
)
"""Other names of tasks. Source: optimum@v2.0.0:optimum/exporters/tasks.py (TasksManager.map_from_synonym)."""
LAYOUTS = ("nxd", "optimum", "sdk-2.16", "lmi-split", "lmi-cache")
INSTANCE_TYPES = ("inf2", "trn1", "trn1n", "trn2")
AUTO_CASTS = ("none", "matmul", "all")
CAST_TYPES = ("bf16", "fp16", "tf32")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The static sizes a model is compiled for; None for one that was not given.

    Attributes:
        batch_size: Sequences, or images, at once.
        sequence_length: Tokens; of a decoder, prompt and answer together.
        num_beams: Beams of an encoder-decoder's search.
        num_choices: Answers of multiple-choice.
        num_channels: Channels of an image.
        width: Of an image, in pixels.
        height: Of an image, in pixels.
        num_images_per_prompt: Images made at once for a prompt.
        image_size: Side of a square image, in pixels.
        patch_size: Side of a patch, in pixels.
        text_batch_size: Texts at once, of a model of texts and images.
        image_batch_size: Images at once, of such a model.
        audio_sequence_length: Samples of audio.
    """

    batch_size: int | None = None
    sequence_length: int | None = None
    num_beams: int | None = None
    num_choices: int | None = None
    num_channels: int | None = None
    width: int | None = None
    height: int | None = None
    num_images_per_prompt: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    text_batch_size: int | None = None
    image_batch_size: int | None = None
    audio_sequence_length: int | None = None

    def given(self) -> dict[str, int]:
        """Those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class NeuronOptions:
    """Options of the Neuron backend.

    Attributes:
        build: Those every build command has.
        task: One of `TASKS`; None to infer it from config.json.
        shapes: Static sizes.
        via: "xla" for our own lowering, "optimum" for optimum-neuron, "auto" for the latter where it is whole.
        layout: One of `LAYOUTS`; None for what the newest runtime loads.
        auto_cast: What the compiler casts: "none", "matmul" or "all".
        auto_cast_type: To what: "bf16", "fp16" or "tf32"; None for bf16. Of a decoder that is not cast, its dtype.
        torch_dtype: Element type of weights and arithmetic; None for float32 of an encoder, a decoder's own.
        dynamic_batch_size: Whether an encoder takes any multiple of its batch at run time.
        num_cores: Tensor parallel degree.
        buckets: Lengths of prompts a decoder has a graph for, ascending; None for powers of two.
        optlevel: The compiler's, 1 to 3.
        instance_type: One of `INSTANCE_TYPES`; None for the host's, or trn1 where it has no device.
        output_hidden_states: Whether every layer's states are outputs.
        output_attentions: Whether attention weights are outputs.
        unet: Folder of another UNet for a diffusion model.
        subfolder: Folder of the model inside the checkpoint, for optimum-neuron.
        inline_weights: Whether optimum-neuron puts the weights into the NEFF.
        disable_neuron_cache: Whether optimum-neuron leaves the hub's cache of NEFFs alone.
        allow_env_flags: Whether NEURON_CC_FLAGS, which changes what is compiled, may be set.
        stop_after: "lower" to stop before compiling.
        from_lowered: An OUTPUT of --stop-after lower to go on from.
        compiler: neuronx-cc; None for the one on PATH.
        compiler_workdir: Where the compiler's working files are kept; None for a temporary folder.
        compile_cache: Folder of the Neuron compile cache; None for none.
        compile_workers: Graphs compiled at once; None for what memory allows.
        toolchain_python: Interpreter that has optimum-neuron and the SDK.
    """

    backend: ClassVar[Literal["neuron"]] = "neuron"

    build: BuildOptions
    task: str | None = None
    shapes: Shapes = Shapes()
    via: str = "auto"
    layout: str | None = None
    auto_cast: str = "none"
    auto_cast_type: str | None = None
    torch_dtype: str | None = None
    dynamic_batch_size: bool = False
    num_cores: int = 1
    buckets: tuple[int, ...] | None = None
    optlevel: int = 2
    instance_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    unet: Path | None = None
    subfolder: str = ""
    inline_weights: bool = False
    disable_neuron_cache: bool = True
    allow_env_flags: bool = False
    stop_after: str | None = None
    from_lowered: Path | None = None
    compiler: Path | None = None
    compiler_workdir: Path | None = None
    compile_cache: Path | None = None
    compile_workers: int | None = None
    toolchain_python: Path | None = None

    def __post_init__(self) -> None:
        problems = list(_contradictions(self))
        if len(problems) > 0:
            raise collected(OptionsError, problems)

    @property
    def cast_type(self) -> str:
        """What the compiler casts to, where it casts."""
        return "bf16" if self.auto_cast_type is None else self.auto_cast_type

    @property
    def weights_dtype(self) -> str | None:
        """Element type of a decoder's weights and arithmetic, by our names; None for the checkpoint's own.

        --auto_cast_type has meant this for decoders: optimum-neuron@v0.0.24:optimum/neuron/modeling_decoder.py.
        """
        if self.torch_dtype is not None:
            return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[self.torch_dtype]
        return self.auto_cast_type if self.auto_cast == "none" and self.auto_cast_type in ("bf16", "fp16") else None


def _contradictions(options: NeuronOptions) -> Iterator[Problem]:
    words = (
        ("--task", options.task, TASKS),
        ("--via", options.via, ("auto", "xla", "optimum")),
        ("--layout", options.layout, LAYOUTS),
        ("--auto-cast", options.auto_cast, AUTO_CASTS),
        ("--auto-cast-type", options.auto_cast_type, CAST_TYPES),
        ("--torch-dtype", options.torch_dtype, DTYPES),
        ("--instance-type", options.instance_type, INSTANCE_TYPES),
        ("--stop-after", options.stop_after, ("lower",)),
    )
    for flag, value, allowed in words:
        if value == "inf1":
            yield Problem(
                flag,
                "inf1, whose compiler neuron-cc ended in 2023",
                "inf2, trn1, trn1n or trn2",
                "--instance-type inf2",
            )
        elif value is not None and value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
            yield Problem(flag, value, f"one of {', '.join(allowed)}", f"{flag} {[*near, *allowed][0]}")
    for name, size in options.shapes.given().items():
        if size < 1:
            yield Problem(f"--{name.replace('_', '-')}", str(size), "1 or more")
    if options.num_cores < 1:
        yield Problem("--num-cores", str(options.num_cores), "1 or more")
    if options.optlevel not in (1, 2, 3):
        yield Problem("-O", str(options.optlevel), "1, 2 or 3")
    longest = options.shapes.sequence_length
    for bucket in options.buckets if options.buckets is not None else ():
        if bucket < 1 or (longest is not None and bucket > longest):
            yield Problem("--buckets", str(bucket), f"1 to --sequence-length {longest}", f"leave {bucket} out")
    if options.via == "optimum":
        for flag, given in (
            ("--stop-after", options.stop_after is not None),
            ("--from-lowered", options.from_lowered is not None),
            ("--layout", options.layout not in (None, "optimum")),
        ):
            if given:
                found = "with --via optimum, which compiles as it lowers and has a layout of its own"
                yield Problem(flag, found, "--via xla", f"drop {flag}, or use --via xla")
    named = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(str(options.torch_dtype))
    if named is not None and options.auto_cast == "none" and options.auto_cast_type not in (None, named):
        found = f"{options.auto_cast_type} with --torch-dtype {options.torch_dtype}, and nothing is cast"
        hint = "drop one of them, or add --auto-cast matmul"
        yield Problem("--auto-cast-type", found, named, hint)
    if options.stop_after is not None and options.from_lowered is not None:
        yield Problem("--stop-after", "lower with --from-lowered", "one of them", "drop --stop-after")
