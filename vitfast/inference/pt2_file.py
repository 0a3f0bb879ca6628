"""``.pt2`` files: programs of ``torch.export`` and packages of AOTInductor, with a manifest of what they depend on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vitfast
from vitfast.errors import UserError, one_line
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.ops.library import build_info

MANIFEST = "vitfast.json"  # within a program of torch.export
_PREFIX = "vitfast_"  # of the manifest's keys in the metadata of an AOTInductor package
_ANY = "any"
_ADVICE = "export the model again on this machine, or as .vit, which runs on every machine"


class Pt2Program(nn.Module):
    """A program from a ``.pt2`` file; it takes images ``[B, in_chans, H, W]`` and returns what the model returned.

    Attributes:
        manifest: versions and instruction set that the program was made for.
    """

    def __init__(self, run: Callable[[Tensor], Any], manifest: dict[str, str]) -> None:
        super().__init__()
        self._run = run
        self.manifest = manifest
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        return self._run(images)


def write_pt2(model: nn.Module, path: Path, images: Tensor, *, aot: bool) -> None:
    """Writes a model; arguments and errors as in ``vitfast.export``."""
    program = exported_program(model, images)
    manifest = _manifest(model, aot=aot)
    if not aot:
        with open(path, "wb") as file:  # torch.export.save warns of other suffixes in a path
            torch.export.save(program, file, extra_files={MANIFEST: json.dumps(manifest)})
        return
    options = {"aot_inductor.metadata": {f"{_PREFIX}{key}": value for key, value in manifest.items()}}
    with tempfile.TemporaryDirectory() as folder:  # the package contains its file's name
        package = os.path.join(folder, "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=options)
        shutil.copyfile(package, path)


def exported_program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Exports a model for any batch size.

    Args:
        model: in evaluation mode.
        images: two or more; a batch of one would be specialized.

    Raises:
        UserError: the program takes only batches of one size.
    """
    given = images[:2] if len(images) > 1 else images.expand(2, -1, -1, -1)
    program = torch.export.export(model, (given.contiguous(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    names = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name in names)
    if isinstance(shape[0], int):
        raise UserError("the model's forward fixes the number of images; export the model that was accelerated")
    for name, tensor in program.state_dict.items():
        if isinstance(tensor, nn.Parameter):
            # with a bias that requires a gradient, torch's attention returns other strides than it does here without
            program.state_dict[name] = nn.Parameter(tensor.detach(), requires_grad=False)
    return program


def load_pt2(path: Path) -> Pt2Program:
    """Loads a ``.pt2`` file after a check of its manifest; errors as in ``vitfast.load``."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give one that vitfast.export wrote")
    not_ours = f"{path} is not a .pt2 file of vitfast.export, or is damaged"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            manifest_name = next((name for name in names if name.endswith(f"extra/{MANIFEST}")), None)
            record = None if manifest_name is None else json.loads(archive.read(manifest_name))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(f"{not_ours}: {one_line(error)}") from error
    is_compiled = any("/data/aotinductor/" in name for name in names)
    try:
        if is_compiled:
            loader: Any = torch._C._aoti.AOTIModelPackageLoader
            metadata = loader.load_metadata_from_package(str(path), "model")
            record = {key[len(_PREFIX) :]: value for key, value in metadata.items() if key.startswith(_PREFIX)}
        if not isinstance(record, dict) or not {"torch", "instruction_set"} <= record.keys():
            raise UserError(f"{not_ours}: it has no manifest; torch.export.load reads programs of others")
        manifest = {str(key): str(value) for key, value in record.items()}
        check_manifest(path, manifest, is_compiled=is_compiled)
        if is_compiled:
            return Pt2Program(torch._inductor.aoti_load_package(str(path)), manifest)
        module: Any = torch.export.load(path).module()
    except UserError:
        raise
    except Exception as error:  # torch raises errors of many classes
        raise UserError(f"{not_ours}: {one_line(error)}") from error
    return Pt2Program(lambda images: module(images), manifest)


def check_manifest(path: Path, manifest: Mapping[str, str], *, is_compiled: bool) -> None:
    """Checks that a program runs on this machine.

    Args:
        path: for messages.
        manifest: of the file.
        is_compiled: an AOTInductor package, which needs the same minor version of torch; a program of ``torch.export``
            also runs with newer ones.

    Raises:
        UserError: it does not; the message says what to do.
    """
    made, here = (_minor_version(version) for version in (manifest["torch"], torch.__version__))
    if made > here or (is_compiled and made < here):
        needed = ".".join(map(str, made))
        raise UserError(
            f"{path} was made by torch {manifest['torch']}, and this is torch {torch.__version__}; "
            f"install torch=={needed}.*{'' if is_compiled else ' or newer'}, or {_ADVICE}"
        )
    wanted = manifest["instruction_set"]
    active = build_info()["cpu"]["instruction_set"]
    if wanted not in (_ANY, active):
        raise UserError(
            f"{path} holds weights packed for the instruction set {wanted}, and this process uses {active}; "
            f"{_ADVICE}, or set VITFAST_ISA={wanted} if this processor has it"
        )
    if wanted != _ANY and manifest.get("vitfast") != vitfast.__version__:
        raise UserError(
            f"{path} calls operators of vitfast {manifest.get('vitfast')}, and this is vitfast {vitfast.__version__}; "
            f"install vitfast=={manifest.get('vitfast')}, or {_ADVICE}"
        )
    if is_compiled and manifest.get("cpu_capability") != torch.backends.cpu.get_cpu_capability():
        raise UserError(
            f"{path} was compiled for processors with {manifest.get('cpu_capability')}, and torch uses "
            f"{torch.backends.cpu.get_cpu_capability()} here; {_ADVICE}"
        )


def is_accelerated(model: nn.Module) -> bool:
    """Whether a model or a part of it was accelerated."""
    return any(isinstance(module, AcceleratedModel) for module in model.modules())


def _manifest(model: nn.Module, *, aot: bool) -> dict[str, str]:
    """What a program depends on; ``check_manifest`` compares it where the file is loaded."""
    instruction_set = build_info()["cpu"]["instruction_set"] if is_accelerated(model) else _ANY
    manifest = {"vitfast": vitfast.__version__, "torch": str(torch.__version__), "instruction_set": instruction_set}
    return {**manifest, "cpu_capability": torch.backends.cpu.get_cpu_capability()} if aot else manifest


def _minor_version(version: str) -> tuple[int, int]:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError as error:
        raise UserError(f"the manifest's torch version is {version!r:.60}; export the model again") from error
