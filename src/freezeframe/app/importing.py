"""Import images that other programs made as images of ours."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from freezeframe.app.backup import BackupResult, Imported, as_text, backup_offline
from freezeframe.backup.foreign import partclone, qemu
from freezeframe.core.errors import UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import Origin
from freezeframe.repo.repository import Repository

#: Formats that QEMU shows as raw files.
_SHOWN = frozenset(qemu.FORMATS) - {"raw"}


def import_images(
    repository: Repository,
    paths: Sequence[Path],
    progress: Progress,
    *,
    host: str = "",
    form: str = "",
    work: Path | None = None,
    threads: int | None = None,
) -> BackupResult:
    """Import files, or a folder of Clonezilla, as one image: each is one of its disks.

    `form` is taken for recognised where it is empty. `work` is where disks of partclone and
    Clonezilla are unpacked (sparse); others are read where they lie. Raises `UsageError`,
    `NotUnderstood`, `ToolMissing`, `ToolFailed`; whatever fails, no image appears.
    """
    if not paths:
        raise UsageError("nothing to import was named", hint="name files, or a Clonezilla folder")
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
    with ExitStack() as stack:
        made = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="freezeframe-import-", dir=work)
        )
        found = [
            disk
            for number, path in enumerate(paths)
            for disk in _disks(path, form, Path(made, str(number)), stack, progress)
        ]
        formats = list(dict.fromkeys(each for _, _, each in found))
        modified = max(path.stat().st_mtime for path in paths)
        imported = Imported(
            Origin(
                format=", ".join(formats),
                paths=tuple(as_text(path.absolute()) for path in paths),
                modified=dt.datetime.fromtimestamp(modified, dt.UTC),
            ),
            host or paths[0].stem or "imported",
            {str(raw): as_text(name.absolute()) for raw, name, _ in found},
            frozenset(str(raw) for raw, _, kind in found if kind in _SHOWN),
        )
        return backup_offline(
            repository,
            [str(raw) for raw, _, _ in found],
            progress,
            threads=threads,
            imported=imported,
        )


def _disks(
    path: Path, form: str, folder: Path, stack: ExitStack, progress: Progress
) -> Iterator[tuple[Path, Path, str]]:
    """Give the raw file of each disk, what it is called, and the format it had."""
    folder.mkdir()
    if path.is_dir():
        if not partclone.is_clonezilla(path):
            raise UsageError(
                f"{path} is no folder of Clonezilla", hint="it would hold a file called `parts`"
            )
        for disk in partclone.disks_of(path):
            raw = folder / f"{disk.name}.raw"
            partclone.rebuild_disk(disk, raw, progress)
            yield raw, path / disk.name, "clonezilla"
        return
    if form in ("", "partclone") and partclone.is_partclone(path):
        raw = folder / "partition.raw"
        progress.start(f"unpack {path.name}", 0)
        with raw.open("xb") as file:
            file.truncate(partclone.partclone_size(path))
        partclone.restore_stream([path], raw, 0)
        yield raw, path, "partclone"
        return
    kind = form or qemu.format_of(path)
    if kind not in qemu.FORMATS:
        raise UsageError(
            f"{path} has the format {kind}, which cannot be imported",
            hint=f"known are {', '.join(qemu.FORMATS)}, partclone and Clonezilla",
        )
    if kind == "raw":
        yield path, path, kind
        return
    yield stack.enter_context(qemu.shown_raw(path.absolute(), kind, folder)), path, kind
