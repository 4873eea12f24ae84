"""Read images back, or compare one with a device."""

from __future__ import annotations

from collections.abc import Sequence

from freezeframe.app.restore import choose_disk
from freezeframe.app.session import listed_images, opened_images
from freezeframe.block.open import open_source
from freezeframe.core.errors import FreezeframeError, NoSuchImage, RepositoryDamaged, UsageError
from freezeframe.core.progress import Progress
from freezeframe.repo.repository import Repository
from freezeframe.restore.verify import Damage, merge, verify_against, verify_images
from freezeframe.store.base import Kind


def verify_named(
    repository: Repository,
    names: Sequence[str],
    progress: Progress,
    *,
    threads: int | None = None,
) -> list[Damage]:
    """Read the named images back (all where none is named); return what is damaged.

    Raises `NoSuchImage` where there is nothing to verify: that all is well would be no
    true answer.
    """
    damage: list[Damage] = []

    def tell(error: RepositoryDamaged) -> None:
        what = "a snapshot" if error.kind == Kind.SNAPSHOTS else f"its {error.kind}"
        damage.append(Damage("the repository", "any", 0, 0, what, error.message))

    with listed_images(repository, names, progress, on_damage=tell) as found:
        if not found and not damage:
            raise NoSuchImage("the repository holds no image yet: there is nothing to verify")
        whole = []
        for snapshot, image in found:
            if isinstance(image, FreezeframeError):
                damage.append(
                    Damage(snapshot.short_id, "all", 0, 0, "the image itself", image.message)
                )
            else:
                whole.append(image)
        return merge(damage + verify_images(whole, progress, threads=threads))


def verify_device(
    repository: Repository,
    names: Sequence[str],
    device: str,
    progress: Progress,
    *,
    disk: str = "",
    partition: int | None = None,
    threads: int | None = None,
) -> list[Damage]:
    """Compare an image (the latest where none is named) with a device or file."""
    if len(names) > 1:
        raise UsageError("--against compares one image")
    with opened_images(repository, tuple(names) or ("latest",), progress) as (image,):
        record = choose_disk(image, disk)
        start, length = 0, record.size
        if partition is not None:
            region = record.partition(partition)
            if region is None:
                raise UsageError(f"disk {record.name} has no partition {partition}")
            start, length = region.start, region.length
        with open_source(device) as reader:
            return merge(
                verify_against(
                    image, record, reader, progress, threads=threads, start=start, length=length
                )
            )
