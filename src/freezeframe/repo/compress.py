"""Zstandard, as the repository uses it. No object here is to be shared between threads."""

from __future__ import annotations

import zstandard
from zstandard import ZstdCompressionParameters, ZstdCompressor, ZstdDecompressor

from freezeframe.repo.crypto import Buffer

#: Level for what is small and kept as text: indexes, snapshots, locks.
_TEXT_LEVEL = 3
#: zstandard's numbers of its strategies `fast` and `lazy`.
_FAST, _DOUBLE_FAST, _LAZY = 1, 2, 4
#: A frame may ask a reader for no more history than this, in bytes.
_LARGEST_WINDOW = 1 << 27


class NotCompressed(Exception):
    """The bytes are no zstandard frame, or one that would become too long."""


def chunk_compressor(level: int | None = None) -> ZstdCompressor:
    """Return a compressor for blobs: at `level`, or (None) with the parameters chosen for us.

    Chosen on /usr in chunks of 1 MiB, processor time of one thread, sizes against what restic
    0.14 stored of the same bytes: level 1 gives 1.047 times at 508 MiB/s and level 3 0.974
    times at 304. The strategy of level 1 with a window of the whole chunk and a shortest match
    of 6 instead of 7 gives 1.8 % less for 4 % more time; twice its hash entries 1.5 % less
    for another 5 %, of all such steps the one that saves most bytes a millisecond; a shortest
    match of 5 instead 1.2 % for 7 %. Literals left uncoded gain 10 % of speed and lose 8 %
    of size. What cannot be compressed passes at 1860 MiB/s as it is, so looking for it
    beforehand gains nothing. A checksum would be one more pass over what a MAC and a SHA-256
    already answer for.
    """
    return _compressor(
        level,
        ZstdCompressionParameters(
            strategy=_FAST,
            window_log=20,
            hash_log=15,
            chain_log=6,
            search_log=1,
            min_match=6,
            target_length=0,
        ),
    )


def small_compressor(level: int | None = None) -> ZstdCompressor:
    """Return a compressor for blobs of 64 KiB (granules) and less: at `level`, or ours.

    For a chunk that is divided: on /usr in granules it makes 0.98 of the parameters for
    chunks, at 0.9 of their speed.
    """
    return _compressor(
        level,
        ZstdCompressionParameters(
            strategy=_DOUBLE_FAST,
            window_log=16,
            hash_log=13,
            chain_log=13,
            search_log=1,
            min_match=5,
            target_length=0,
        ),
    )


def close_compressor(level: int | None = None) -> ZstdCompressor:
    """Return a compressor for granules that are stored again night after night.

    Less history means larger frames, so they are looked at more closely. On the granules that
    pgbench changes in a night (heap, indexes, log), against the parameters for chunks: the
    same strategy with a shortest match of 4 gives 0.84 times at the same 510 MiB/s, lazy
    matching 0.76 times at 117; what comes after that costs more and gains nothing (level 9:
    0.76 times at 54).
    """
    return _compressor(
        level,
        ZstdCompressionParameters(
            strategy=_LAZY,
            window_log=16,
            hash_log=14,
            chain_log=14,
            search_log=1,
            min_match=5,
            target_length=4,
        ),
    )


def _compressor(level: int | None, ours: ZstdCompressionParameters) -> ZstdCompressor:
    """Return a compressor at `level`, or with our parameters where that is None."""
    if level is not None:
        return ZstdCompressor(level=level)
    return ZstdCompressor(compression_params=ours)


def decompressor() -> ZstdDecompressor:
    """Return a decompressor for `decompress`."""
    return ZstdDecompressor(max_window_size=_LARGEST_WINDOW)


def compress_text(data: bytes) -> bytes:
    """Compress JSON into one frame."""
    return ZstdCompressor(level=_TEXT_LEVEL).compress(data)


def decompress(context: ZstdDecompressor, frame: Buffer, limit: int) -> bytes:
    """Return the content of exactly one frame, if it is no longer than `limit` bytes.

    Never allocates much more than `limit`. Raises `NotCompressed`.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if size > limit:
            raise NotCompressed(f"it would become {size} bytes, more than {limit}")
        if size >= 0:
            return context.decompress(frame, allow_extra_data=False)
        return _decompress_unsized(context, frame, limit)
    except zstandard.ZstdError as error:
        raise NotCompressed(f"it does not decompress: {error}") from error


def _decompress_unsized(context: ZstdDecompressor, frame: Buffer, limit: int) -> bytes:
    """Read a frame that does not tell its content's size, as streaming writers make them."""
    with context.stream_reader(frame, read_across_frames=False) as reader:
        data = reader.read(limit + 1)
    if len(data) > limit:
        raise NotCompressed(f"it would become more than {limit} bytes")
    return data
