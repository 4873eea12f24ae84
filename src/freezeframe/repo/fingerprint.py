"""A fast sum of a chunk, to tell whether it is what an earlier image has.

GMAC (NIST SP 800-38D) with one nonce and a key that is derived from the repository's master
key and never leaves it: a universal hash. For two different chunks of 1 MiB, chosen by
somebody who knows neither the key nor any sum, the chance that their sums agree is below
2^-111 (a polynomial of degree 2^16 over a field of 2^128). GMAC wants a new nonce each time
because tags that an attacker sees would betray the key; these are only ever stored sealed.
It takes a fifth of the time of SHA-256, which still names every blob, and is the fastest
such function whose call lets other threads go on.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from freezeframe.repo.crypto import Buffer, MasterKey

#: Bytes of a sum.
LENGTH = 16
_PURPOSE = b"freezeframe: sums of chunks, version 1"
_NONCE = bytes(12)


class Fingerprinter:
    """Makes sums of chunks for one repository. Thread-safe."""

    def __init__(self, key: MasterKey) -> None:
        material = key.encrypt + key.mac_k + key.mac_r
        self._cipher = Cipher(AES256(hmac.digest(material, _PURPOSE, "sha256")), GCM(_NONCE))

    def sum(self, chunk: Buffer) -> bytes:
        """Return the sum of a chunk: 16 bytes, the same for the same bytes and repository."""
        context = self._cipher.encryptor()
        context.authenticate_additional_data(chunk)
        context.finalize()
        return context.tag
