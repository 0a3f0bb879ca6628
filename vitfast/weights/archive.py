"""Zip archives, which both ``.npz`` files and torch's own are, before anything is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

from vitfast.errors import UserError

# Weights hardly shrink: even a file of which most is a zeroed head stays below the ratio. Up to the first limit the
# ratio does not matter.
_HARMLESS_BYTES = 256 << 20
_MAX_RATIO = 20


def check_archive(path: Path) -> list[str]:
    """Returns the names in an archive, all of which together unpack to a size that goes with the file's.

    Raises:
        UserError: the archive is damaged, or is a decompression bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path} is damaged or cut short: its table of contents cannot be read ({error}); download or copy it again"
        ) from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > max(_HARMLESS_BYTES, _MAX_RATIO * size):
        raise UserError(
            f"{path} is refused: its {size:,} bytes claim to unpack to {unpacked:,}, more than weights ever shrink "
            f"(a decompression bomb); nothing was unpacked"
        )
    return [member.filename for member in members]
