"""Whether an artifact still is what its manifest says, and whether its numbers are the model's."""

from __future__ import annotations

from pathlib import Path

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.checkpoint.hub import locate
from llmcompile.errors import CheckpointError, Problem
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import View
from llmcompile.writing import MANIFEST, hash_file

_RESTORE = "copy the artifact again from where it was built, or rebuild it"


def verify(
    artifact: Path,
) -> tuple[records.Manifest | records.PackageManifest | records.ReportManifest, list[Problem]]:
    """Compare the files of an artifact, of a package or of a report, with its manifest, byte for byte.

    Returns:
        The manifest and every difference.

    Raises:
        CheckpointError: There is no manifest, or it is not one of ours.
    """
    manifest = records.read_any(artifact / MANIFEST)
    listed = {record.path: record for record in manifest.files}
    present = {str(path.relative_to(artifact)) for path in artifact.rglob("*") if not path.is_dir()}
    problems = [
        Problem(path, "not in the manifest", "no such file", "move it away")
        for path in sorted(present - {*listed, MANIFEST})
    ]
    for path, record in listed.items():
        if path not in present:
            problems.append(Problem(path, "missing", f"{record.bytes} bytes", _RESTORE))
            continue
        size = (artifact / path).stat().st_size
        if size != record.bytes:
            problems.append(Problem(path, f"{size} bytes", f"{record.bytes} bytes", _RESTORE))
        elif (digest := hash_file(artifact / path).sha256) != record.sha256:
            problems.append(Problem(path, f"sha256 {digest}", record.sha256, _RESTORE))
    return manifest, problems


def verify_numbers(
    artifact: Path,
    model: str,
    view: View,
    *,
    revision: str | None,
    token: str | None,
    atol: float | None,
    rtol: float | None,
) -> validating.Validated:
    """Run the numeric validation of FasterTransformer files or of a checkpoint for TensorRT-LLM, ours or anybody's.

    Args:
        artifact: An artifact, or the folder in it that holds the tensors.
        model: Folder or hub id of the model it was made from.
        view: Shown every check.
        revision: Revision of a hub id.
        token: Hub token.
        atol: As in `BuildOptions`.
        rtol: As in `BuildOptions`.

    Raises:
        CheckpointError: No such folder, or the model's own troubles.
    """
    kind, folder = _find(artifact)
    if kind == "tensorrt-rtx":
        from llmcompile.pipeline import rtx

        source = open_checkpoint(locate(model, revision=revision, token=token).root)
        return rtx.verify_numbers(folder, records.read(folder / MANIFEST), source, view, atol=atol, rtol=rtol)
    if kind == "neuron":
        return _neuron_numbers(folder, model, view, revision=revision, token=token, atol=atol, rtol=rtol)
    located = locate(model, revision=revision, token=token)
    checkpoint = open_checkpoint(located.root)
    architecture = lookup(checkpoint.config, checkpoint.tensors)
    dims = architecture.dims(checkpoint.config)
    if kind == "llmapi":
        from llmcompile.validation import llmapi

        unified = validating.llmapi_subject(checkpoint, dims, folder=folder, eval_text=None, overflow_accepted=False)
        return validating.run(llmapi, unified, 1, view, atol, rtol, False)
    if kind == "trtllm":
        from llmcompile.validation import trtllm

        converted = validating.trtllm_subject(
            checkpoint, architecture, dims, folder=folder, eval_text=None, overflow_accepted=False
        )
        return validating.run(trtllm, converted, trtllm.ranks(folder), view, atol, rtol, False)
    from llmcompile.validation import ft

    ranks = int(folder.name.removesuffix("-gpu"))
    settings = _ini(folder / "config.ini")
    subject = validating.ft_subject(
        checkpoint,
        architecture,
        dims,
        folder=folder,
        ranks=ranks,
        dtype=settings.get("weight_data_type", "fp32"),
        encoder_only=architecture.name == "t5" and "decoder_start_token_id" not in settings,
        int8=settings.get("int8", "").lower() == "true",
        overflow_accepted=False,
    )
    return validating.run(ft, subject, ranks, view, atol, rtol, False)


def _neuron_numbers(
    folder: Path,
    model: str,
    view: View,
    *,
    revision: str | None,
    token: str | None,
    atol: float | None,
    rtol: float | None,
) -> validating.Validated:
    """Execute the graphs of a Neuron artifact beside the model, or compare its split weights with the model's.

    Raises:
        CheckpointError: It has no manifest, or nothing that can be compared here.
    """
    from llmcompile.pipeline import neuron

    manifest = records.read(folder / MANIFEST)
    if manifest.neuron is None or manifest.neuron.via != "xla":
        found = "model.neuron alone, which only a Neuron device runs"
        raise CheckpointError(str(folder), found, "an artifact of our own lowering", "drop --deep")
    checkpoint = open_checkpoint(locate(model, revision=revision, token=token).root)
    return neuron.verify_numbers(folder, manifest, checkpoint, view, atol=atol, rtol=rtol)


def _find(artifact: Path) -> tuple[str, Path]:
    """What kind of artifact it is, and the folder with its tensors."""
    for folder in (artifact, *sorted(artifact.glob("*-gpu"))):
        if folder.name.removesuffix("-gpu").isdigit() and (folder / "config.ini").is_file():
            return "ft", folder.absolute()
    for folder in (artifact, artifact / "checkpoint"):
        for part in (folder, folder / "encoder"):
            if (part / "config.json").is_file() and (part / "rank0.safetensors").is_file():
                return "trtllm", folder.absolute()
    if (artifact / "config.json").is_file() and any(artifact.glob("model*.safetensors")):
        return "llmapi", artifact.absolute()
    if any(artifact.glob("graphs/*.hlo.pb")) or (artifact / "model.neuron").is_file():
        return "neuron", artifact.absolute()
    if any(artifact.glob("onnx/*.onnx")) or any(artifact.glob("engine/*.engine")):
        return "tensorrt-rtx", artifact.absolute()
    raise CheckpointError(
        str(artifact),
        "neither a <ranks>-gpu folder with config.ini, nor rank0.safetensors or model.safetensors beside config.json, "
        "nor graphs/, nor onnx/",
        "a FasterTransformer artifact, a TensorRT-LLM checkpoint, a Neuron artifact or one for TensorRT for RTX",
        "check the path; an engine without its checkpoint cannot be run here",
    )


def _ini(path: Path) -> dict[str, str]:
    """The keys of all sections of a config.ini, lower-cased; only to tell which kind of artifact it is."""
    pairs = (line.split("=", 1) for line in path.read_text(errors="replace").splitlines() if "=" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}
