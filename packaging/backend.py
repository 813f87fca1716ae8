"""setuptools' build backend, with archives that depend on the source alone.

Wheels and source archives hold their files in the order of names, with one time (SOURCE_DATE_EPOCH, or
1980), one owner and the permissions 644, or 755 where the owner may execute a file: whatever the umask,
the clock and the user of the machine.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]
EARLIEST = 315532800  # 1980: zip files know no earlier time


def build_wheel(wheel_directory: str, *settings: Any, **more: Any) -> str:
    """Build a wheel; gives its name."""
    name = build_meta.build_wheel(wheel_directory, *settings, **more)
    rewrite_zip(Path(wheel_directory, name))
    return name


def build_sdist(sdist_directory: str, *settings: Any, **more: Any) -> str:
    """Build a source archive; gives its name."""
    name = build_meta.build_sdist(sdist_directory, *settings, **more)
    rewrite_tar(Path(sdist_directory, name))
    return name


def seconds() -> int:
    return max(int(os.environ.get("SOURCE_DATE_EPOCH", EARLIEST)), EARLIEST)


def permissions(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


def rewrite_zip(path: Path) -> None:
    """The same files in an archive that depends on them alone; RECORD stays last, as it must."""
    with zipfile.ZipFile(path) as archive:
        files = [(info, archive.read(info)) for info in archive.infolist() if not info.is_dir()]
    files.sort(key=lambda file: (file[0].filename.endswith(".dist-info/RECORD"), file[0].filename))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in files:
            plain = zipfile.ZipInfo(info.filename, time.gmtime(seconds())[:6])
            plain.external_attr = (0o100000 | permissions(info.external_attr >> 16)) << 16
            plain.create_system, plain.compress_type = 3, zipfile.ZIP_DEFLATED
            archive.writestr(plain, data)


def rewrite_tar(path: Path) -> None:
    """The same files in an archive that depends on them alone."""
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
        files = [(m, archive.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in files:
            plain = tarfile.TarInfo(member.name)
            plain.size, plain.mtime, plain.mode = len(data), seconds(), permissions(member.mode)
            archive.addfile(plain, io.BytesIO(data))
    with path.open("wb") as file, gzip.GzipFile("", "wb", mtime=seconds(), fileobj=file) as packer:
        packer.write(packed.getvalue())
