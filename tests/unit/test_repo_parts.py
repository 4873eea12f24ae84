"""Sealing, compression, polynomials, pack headers: the parts of the format."""

from __future__ import annotations

import contextlib
import json
import os
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.repo.compress import NotCompressed, decompress, decompressor
from freezeframe.repo.crypto import OVERHEAD, MasterKey, SealBroken, Sealer
from freezeframe.repo.pack import (
    BlobKind,
    Entry,
    PackBroken,
    decode_header,
    encode_header,
    header_length,
    open_header,
    seal_header,
)
from freezeframe.repo.polynomial import DEGREE, is_irreducible, random_irreducible
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY, BlobSealer, same_bytes
from freezeframe.repo.sealed import decode, open_text, seal_text
from freezeframe.repo.structs import ConfigFile, IndexFile, KeyFile, LockFile

KEY = MasterKey.random()


# -- sealing ---------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_what_is_sealed_opens(plain: bytes) -> None:
    parts = Sealer(KEY).seal(plain)
    assert sum(map(len, parts)) == len(plain) + OVERHEAD
    assert Sealer(KEY).open(b"".join(parts)) == plain
    assert Sealer(KEY).open(memoryview(b"".join(parts))) == plain


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    sealed = b"".join(Sealer(KEY).seal(b"some plain bytes"))
    for bit in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            Sealer(KEY).open(broken)
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            Sealer(KEY).open(sealed[:length])


def test_another_key_does_not_open() -> None:
    sealed = b"".join(Sealer(KEY).seal(b"plain"))
    with pytest.raises(SealBroken):
        Sealer(MasterKey.random()).open(sealed)


def test_nonces_differ_and_one_sealer_serves_many() -> None:
    sealer = Sealer(KEY)
    sealed = [sealer.seal(b"the same") for _ in range(50)]
    assert len({nonce for nonce, _, _ in sealed}) == 50
    assert all(Sealer(KEY).open_parts(*parts) == b"the same" for parts in sealed)


def test_keys_are_not_printed() -> None:
    assert KEY.encrypt.hex() not in repr(KEY)
    assert repr(KEY.encrypt) not in repr(KEY)


# -- compression -----------------------------------------------------------------------


def test_a_frame_that_would_become_too_long_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(NotCompressed, match="50000000"):
        decompress(decompressor(), bomb, 1 << 20)


def test_a_frame_that_hides_its_length_is_bounded_all_the_same() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    bomb = stream.compress(bytes(50_000_000)) + stream.flush()
    assert zstandard.frame_content_size(bomb) == -1
    with pytest.raises(NotCompressed, match="more than 1048576"):
        decompress(decompressor(), bomb, 1 << 20)
    stream = zstandard.ZstdCompressor().compressobj()
    honest = stream.compress(b"abc" * 1000) + stream.flush()
    assert decompress(decompressor(), honest, 3000) == b"abc" * 1000


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 3), st.randoms(use_true_random=False))
def test_broken_frames_are_only_ever_refused(content: bytes, cuts: int, rnd: random.Random) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(content))
    for _ in range(cuts):
        frame[rnd.randrange(len(frame))] = rnd.randrange(256)
    with contextlib.suppress(NotCompressed):
        assert len(decompress(decompressor(), bytes(frame), 4096)) <= 4096


# -- blobs -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [None, 1, 3, 19])
def test_blobs_that_compress_and_blobs_that_do_not(level: int | None) -> None:
    sealer = BlobSealer(KEY, level=level)
    text = sealer.seal(b"all work and no play " * 5000)
    assert text.uncompressed == 105_000
    assert text.length < 1000
    noise = sealer.seal(os.urandom(100_000))
    assert noise.uncompressed == 0
    assert noise.length == 100_000 + OVERHEAD
    assert sealer.seal(b"").length == OVERHEAD


class _FaultyCompressor:
    """A compressor on a machine with a bad memory."""

    def compress(self, plain: bytes) -> bytes:
        changed = bytearray(plain)
        changed[len(changed) // 2] ^= 4
        return zstandard.ZstdCompressor().compress(bytes(changed))


@pytest.mark.parametrize("length", [300, 64 << 10, 65 << 10, 1 << 20])
def test_a_faulty_compressor_is_noticed_before_anything_is_stored(length: int) -> None:
    sealer = BlobSealer(KEY)
    sealer._compressor = _FaultyCompressor()  # type: ignore[assignment]
    sealer._small_compressor = _FaultyCompressor()  # type: ignore[assignment]
    with pytest.raises(FreezeframeError, match="does not open as it was") as caught:
        sealer.seal(b"ab" * (length // 2))
    assert "memory" in caught.value.hint


def test_every_blob_is_decompressed_again_where_that_was_asked_for() -> None:
    sealer = BlobSealer(KEY, decompress_every=1)
    sealer.seal(b"abc" * 50_000)
    sealer._compressor = _FaultyCompressor()  # type: ignore[assignment]
    with pytest.raises(FreezeframeError, match="does not open as it was"):
        sealer.seal(b"abd" * 50_000)


def test_a_lasting_fault_is_noticed_within_sixteen_blobs() -> None:
    sealer = BlobSealer(KEY)
    sealer.seal(b"abc" * 50_000)
    sealer._compressor = _FaultyCompressor()  # type: ignore[assignment]

    def sixteen() -> None:
        for number in range(DECOMPRESS_EVERY):
            sealer.seal(b"%d" % number * 100_000)

    with pytest.raises(FreezeframeError, match="does not open as it was"):
        sixteen()


class _FaultySealer:
    """Encryption with a bit that is wrong now and then: here, in whatever it is given."""

    def __init__(self, real: Sealer) -> None:
        self._real = real

    def seal(self, plain: bytes) -> tuple[bytes, bytes, bytes]:
        return self._real.seal(bytes([plain[0] ^ 1]) + bytes(plain[1:]))

    def open_parts(self, nonce: bytes, ciphertext: bytes, tag: bytes) -> bytes:
        return self._real.open_parts(nonce, ciphertext, tag)


def test_every_blob_is_decrypted_again() -> None:
    sealer = BlobSealer(KEY)
    sealer.seal(b"abc" * 50_000)
    sealer._sealer = _FaultySealer(sealer._sealer)  # type: ignore[assignment]
    with pytest.raises(FreezeframeError, match="does not open as it was"):
        sealer.seal(b"abd" * 50_000)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_same_bytes(one: bytes, other: bytes) -> None:
    assert same_bytes(one, memoryview(bytearray(one)))
    assert same_bytes(one, other) == (one == other)


def test_one_differing_byte_is_seen_wherever_it_is() -> None:
    data = os.urandom(37)
    for position in range(37):
        other = bytearray(data)
        other[position] ^= 128
        assert not same_bytes(data, other)


# -- polynomials -----------------------------------------------------------------------


def test_irreducible_polynomials_are_those_without_a_factor() -> None:
    def product(one: int, other: int) -> int:
        total = 0
        while other:
            total ^= one * (other & 1)
            one, other = one << 1, other >> 1
        return total

    small = range(2, 1 << 5)
    products = {product(one, other) for one in small for other in small}
    for polynomial in range(2, 1 << 6):
        assert is_irreducible(polynomial) == (polynomial not in products), bin(polynomial)


def test_their_number_is_what_gauss_says() -> None:
    # Degrees 1 to 10: https://oeis.org/A001037
    expected = [2, 1, 2, 3, 6, 9, 18, 30, 56, 99]
    for degree, count in enumerate(expected, 1):
        found = sum(map(is_irreducible, range(1 << degree, 1 << degree + 1)))
        assert found == count


def test_a_polynomial_known_to_be_irreducible() -> None:
    # The one in restic/chunker's own tests and documentation.
    assert is_irreducible(0x3DA3358B4DC173)
    assert not is_irreducible(0x3DA3358B4DC173 ^ 2)
    assert random_irreducible().bit_length() == DEGREE + 1


# -- pack headers ----------------------------------------------------------------------

_entries = st.lists(
    st.tuples(
        st.sampled_from(BlobKind),
        st.binary(min_size=32, max_size=32),
        st.integers(OVERHEAD, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
    ),
    max_size=20,
)


def _with_offsets(rows: list[tuple[BlobKind, bytes, int, int]]) -> list[Entry]:
    entries, offset = [], 0
    for kind, blob_id, length, uncompressed in rows:
        entries.append(Entry(kind, blob_id, offset, length, uncompressed))
        offset += length
    return entries


@given(_entries)
def test_headers_round_trip(rows: list[tuple[BlobKind, bytes, int, int]]) -> None:
    entries = _with_offsets(rows)
    assert decode_header(encode_header(entries)) == entries
    parts = seal_header(Sealer(KEY), entries)
    body = sum(entry.length for entry in entries)
    sealed = b"".join(parts)
    size = body + len(sealed)
    if entries:
        length = header_length(sealed[-4:], size)
        assert open_header(Sealer(KEY), sealed[:length], size) == entries
    with pytest.raises(PackBroken):
        open_header(Sealer(KEY), sealed[:-4], size + 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        entries = decode_header(data)
    except PackBroken:
        return
    assert encode_header(entries) == data


@given(st.binary(max_size=6), st.integers(0, 1 << 40))
def test_any_tail_gives_a_length_that_can_be(tail: bytes, size: int) -> None:
    try:
        length = header_length(tail, size)
    except PackBroken:
        return
    assert OVERHEAD < length <= size - 4


# -- sealed JSON -----------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_sealed_texts(text: bytes) -> None:
    assert open_text(Sealer(KEY), seal_text(Sealer(KEY), text), "index", "x") == text
    bare = seal_text(Sealer(KEY), b"{" + text, compress=False)
    assert open_text(Sealer(KEY), bare, "index", "x") == b"{" + text


@pytest.mark.parametrize("plain", [b"", b"\x02", b"\x02nonsense", b"\x01{}", b" {}"])
def test_unknown_encodings_are_named(plain: bytes) -> None:
    sealed = b"".join(Sealer(KEY).seal(plain))
    with pytest.raises(RepositoryDamaged, match="index/x"):
        open_text(Sealer(KEY), sealed, "index", "x")


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["packs", "blobs", "id", "type", "time", "version", "N"]), inner
            )
        ),
        max_leaves=20,
    ),
    st.sampled_from([IndexFile, KeyFile, LockFile, ConfigFile]),
)
def test_any_json_is_a_document_or_damage(document: object, shape: type[object]) -> None:
    with contextlib.suppress(RepositoryDamaged):
        decode(json.dumps(document).encode(), shape, "index", "x")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b'{"packs":', b"{}" * 2, b""])
def test_what_is_no_json_is_damage(text: bytes) -> None:
    with pytest.raises(RepositoryDamaged):
        decode(text, IndexFile, "index", "x")
