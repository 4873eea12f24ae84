"""Open the images of a repository as the user named them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged, StoreError
from freezeframe.core.progress import Progress, Silent
from freezeframe.image.reader import ImageReader, find_image, images
from freezeframe.repo.index import Index
from freezeframe.repo.repository import OnDamage, Repository
from freezeframe.repo.snapshots import Snapshot


@contextmanager
def opened_images(
    repository: Repository, names: Sequence[str], progress: Progress | None = None
) -> Iterator[tuple[ImageReader, ...]]:
    """Hold a shared lock and open the named images."""
    with _reading(repository, progress or Silent()) as (index, found):
        wanted = [find_image(found, name) for name in names]
        yield tuple(ImageReader(repository, index, snapshot) for snapshot in wanted)


@contextmanager
def listed_images(
    repository: Repository,
    names: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    on_damage: OnDamage | None = None,
) -> Iterator[list[tuple[Snapshot, ImageReader | FreezeframeError]]]:
    """Hold a shared lock and open the named images, all where none is named.

    One that is damaged gives its error, and the others are there all the same. What cannot
    even be listed (a damaged snapshot or index) is told to `on_damage`, or as a note.
    """
    with _reading(repository, progress or Silent(), on_damage) as (index, found):
        wanted = [find_image(found, name) for name in names] or found
        yield [(snapshot, _open(repository, index, snapshot)) for snapshot in wanted]


@contextmanager
def _reading(
    repository: Repository, progress: Progress, on_damage: OnDamage | None = None
) -> Iterator[tuple[Index, list[Snapshot]]]:
    """Lock, and load what there is: a damaged index or snapshot is told, and left out.

    What the damage costs shows where it matters, by the image it hits.
    """

    def tell(error: RepositoryDamaged) -> None:
        progress.note(f"{error.message}; going on without it")

    with reading_lock(repository, progress):
        index = repository.load_index(progress, on_damage=on_damage or tell)
        yield index, images(repository, on_damage=on_damage or tell)


@contextmanager
def reading_lock(repository: Repository, progress: Progress) -> Iterator[None]:
    """Hold a shared lock to read; go on without one where the store takes none."""
    with ExitStack() as stack:
        try:
            stack.enter_context(repository.lock())
        except StoreError as error:
            # On read-only media nobody else writes; and a full disk must not keep its images.
            progress.note(f"reading without a lock: {error.message}")
        yield


def _open(
    repository: Repository, index: Index, snapshot: Snapshot
) -> ImageReader | FreezeframeError:
    try:
        return ImageReader(repository, index, snapshot)
    except FreezeframeError as error:
        return error


def index_for_writing(repository: Repository, progress: Progress) -> Index:
    """Load the index, without what lies in packs that are gone or cut short: stored anew."""
    index = repository.load_index(progress)
    index.drop_incomplete_packs(repository.pack_sizes())
    return index
