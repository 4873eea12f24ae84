"""The results of restore drills, kept in the repository beside the images they are of.

Each is a small snapshot of its own, as restic knows them, with a tag that is not an image's:
`drill.json` and what the machine wrote to its consoles. Nothing of the image changes. Its path
is not a disk's, so that a policy of `restic forget`, which goes by host and paths, never counts
a drill among the images; it names the image by its tree, which keeps its id when tags are
changed or the image is copied to another repository; and its time is just before the image's,
so that `latest` remains an image for everybody.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.core.units import CHUNK, MIB
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import content_ids, decode_tree, encode_tree, file_node
from freezeframe.repo.writer import BlobWriter

TAG = "freezeframe-drill"
PATH = "/freezeframe-drill"
NAME, CONSOLE = "drill.json", "console.txt"
_PASSED, _FAILED, _OF, _AT = "passed", "failed", "tree-", "at-"
_AT_FORM = "%Y%m%dT%H%M%S%z"
#: Of what a machine wrote, the end is kept.
_LONGEST = MIB
_LARGEST_RECORD = MIB


class Drill(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One time that an image was started, to see whether it would."""

    format: int = 1
    #: The image's id at that time, and its tree, which tells for ever.
    image: str
    tree: str
    #: When it was started.
    started: dt.datetime
    passed: bool
    #: What showed that the machine was up: `a login prompt on the serial console`.
    sign: str = ""
    #: Why it was not.
    reason: str = ""
    #: From the start of the virtual machine to that.
    seconds: float
    #: `bios` or `uefi`; `kvm` or `emulation`.
    firmware: str
    accelerator: str
    #: The machine the drill was run on.
    host: str
    program: str


@dataclass(frozen=True, slots=True)
class DrillEntry:
    """A drill as the list of snapshots tells of it, without reading it."""

    snapshot: Snapshot
    passed: bool

    #: When it was.
    time: dt.datetime


def save_drill(
    repository: Repository, index: Index, image: Snapshot, drill: Drill, console: str
) -> Snapshot:
    """Keep the result for an image and what the machine wrote; durable on return.

    The caller holds a lock. Raises `StoreError` where the repository cannot be written.
    """
    text = console.encode(errors="replace")[-_LONGEST:]
    record = msgspec.json.format(msgspec.json.encode(drill), indent=1) + b"\n"
    with BlobWriter(repository, index, uploaders=1) as writer:
        handle = writer.handle()
        nodes = []
        for name, data in ((CONSOLE, text), (NAME, record)):
            parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
            ids = [handle.put(BlobKind.DATA, part).hex() for part in parts]
            nodes.append(file_node(name, ids, len(data)))
        tree = handle.put(BlobKind.TREE, encode_tree(nodes))
        writer.flush()
        return repository.save_snapshot(
            Snapshot.new(
                time=_time_of_snapshot(image.time, drill.started),
                tree=tree.hex(),
                paths=[PATH],
                tags=[
                    TAG,
                    _PASSED if drill.passed else _FAILED,
                    _OF + image.tree,
                    _AT + drill.started.strftime(_AT_FORM),
                ],
                program_version=drill.program,
            )
        )


def _time_of_snapshot(image: dt.datetime, started: dt.datetime) -> dt.datetime:
    """Return a time before the image's, and the nearer to it the later the drill was.

    In that order restic sees them, whatever it keeps of them.
    """
    hours = max((started - image) / dt.timedelta(hours=1), 0.0)
    return image - dt.timedelta(hours=1) / (1 + hours)


def drills_by_tree(snapshots: Sequence[Snapshot]) -> dict[str, list[DrillEntry]]:
    """Sort the drills among some snapshots by the trees of their images, oldest first."""
    found: dict[str, list[DrillEntry]] = {}
    for snapshot in snapshots:
        tags = snapshot.tags or []
        trees = [tag.removeprefix(_OF) for tag in tags if tag.startswith(_OF)]
        times = [tag.removeprefix(_AT) for tag in tags if tag.startswith(_AT)]
        if TAG in tags and trees and times:
            try:
                time = dt.datetime.strptime(times[0], _AT_FORM)
            except ValueError:
                continue
            found.setdefault(trees[0], []).append(DrillEntry(snapshot, _PASSED in tags, time))
    for entries in found.values():
        entries.sort(key=lambda entry: entry.time)
    return found


def read_drill(repository: Repository, index: Index, entry: DrillEntry) -> Drill:
    """Read a result. Raises `RepositoryDamaged`, `FreezeframeError` for a newer format."""
    blobs = BlobReader(repository, index)
    snapshot = entry.snapshot
    tree = blobs.read(BlobKind.TREE, bytes.fromhex(snapshot.tree))
    node = next((node for node in decode_tree(tree) if node.name == NAME), None)
    if node is None or node.size > _LARGEST_RECORD:
        raise RepositoryDamaged("snapshot", snapshot.short_id, f"it holds no {NAME}")
    data = b"".join(blobs.read(BlobKind.DATA, row.tobytes()) for row in content_ids(node))
    try:
        drill = msgspec.json.decode(data, type=Drill)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryDamaged("snapshot", snapshot.short_id, f"its {NAME}: {error}") from error
    if drill.format > 1:
        raise FreezeframeError(
            f"drill {snapshot.short_id} has format {drill.format}; this program reads 1",
            hint="use a newer freezeframe",
        )
    return drill
