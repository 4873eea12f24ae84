"""Sealing: AES-256 in counter mode, then Poly1305 over the ciphertext.

Sealed bytes are nonce (16) ‖ ciphertext ‖ tag (16). The nonce is the whole initial counter.
The tag is Poly1305-AES: its one-time key is r ‖ AES-128_k(nonce). As in restic's design
document, section "Keys, Encryption and MAC".
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128, AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305

NONCE = 16
TAG = 16
#: Bytes a sealed message is longer than its plain one.
OVERHEAD = NONCE + TAG

Buffer = bytes | bytearray | memoryview


class SealBroken(Exception):
    """The tag does not fit: other key, or other bytes. The caller knows what it was."""


@dataclass(frozen=True, slots=True, repr=False)
class MasterKey:
    """What everything of a repository is sealed with, or what a password derives."""

    #: 32 bytes, AES-256.
    encrypt: bytes
    #: 16 bytes, AES-128.
    mac_k: bytes
    #: 16 bytes; the bits Poly1305 does not use are ignored.
    mac_r: bytes

    @classmethod
    def random(cls) -> MasterKey:
        """Draw a new one."""
        return cls(os.urandom(32), os.urandom(16), os.urandom(16))


class Sealer:
    """Seals and opens with one key. Not to be shared between threads."""

    def __init__(self, key: MasterKey) -> None:
        self._encrypt = AES256(key.encrypt)
        self._mac_r = key.mac_r
        # Single blocks in ECB mode carry nothing over, so one context serves all nonces.
        self._one_time = Cipher(AES128(key.mac_k), ECB()).encryptor()

    def seal(self, plain: Buffer) -> tuple[bytes, bytes, bytes]:
        """Return nonce, ciphertext and tag, apart, so that they can be written unjoined."""
        nonce = os.urandom(NONCE)
        ciphertext = Cipher(self._encrypt, CTR(nonce)).encryptor().update(plain)
        return nonce, ciphertext, Poly1305.generate_tag(self._tag_key(nonce), ciphertext)

    def open(self, sealed: Buffer) -> bytes:
        """Return the plain bytes. Raises `SealBroken`."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise SealBroken(f"{len(view)} bytes are too few to be sealed")
        return self.open_parts(bytes(view[:NONCE]), view[NONCE:-TAG], bytes(view[-TAG:]))

    def open_parts(self, nonce: bytes, ciphertext: Buffer, tag: bytes) -> bytes:
        """Return the plain bytes of what `seal` returned. Raises `SealBroken`."""
        try:
            Poly1305.verify_tag(self._tag_key(nonce), ciphertext, tag)
        except InvalidSignature:
            raise SealBroken("its authentication tag does not fit") from None
        return Cipher(self._encrypt, CTR(nonce)).decryptor().update(ciphertext)

    def _tag_key(self, nonce: bytes) -> bytes:
        return self._mac_r + self._one_time.update(nonce)
