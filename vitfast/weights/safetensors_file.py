"""``.safetensors`` files, the format that vitfast itself writes."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitfast.errors import UserError


def read_safetensors_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads all tensors and the metadata.

    Raises:
        UserError: the file is damaged, cut short or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); download or copy it again") from error
