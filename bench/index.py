"""Add a made-up index of many chunks to a repository, to see what a backup needs with it.

Usage: python bench/index.py REPOSITORY [--chunks 1000000]   (password: FREEZEFRAME_PASSWORD)

The repository is left useless for anything else: the packs have the right names and sizes
and hold nothing (they are one hole each), so that programs which look for them find them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from freezeframe.core.units import KIB, MIB
from freezeframe.repo.crypto import MasterKey, Sealer
from freezeframe.repo.sealed import seal_text

#: What a repository of a real disk has: chunks stored in about half their size, 16 MiB a pack.
_BLOBS_A_PACK = 32
_PACKS_A_FILE = 1500


def add_index(repo: Path, chunks: int, password: str, seed: int = 1) -> None:
    """Write index files that list `chunks` chunks nobody has, and the packs they name."""
    sealer = Sealer(_master_key(repo, password))
    rng = random.Random(seed)
    packs: list[str] = []
    for pack, count in _packs(chunks, rng):
        packs.append(_pack(repo, pack, count, rng))
        if len(packs) == _PACKS_A_FILE:
            _write(repo, sealer, packs)
            packs = []
    if packs:
        _write(repo, sealer, packs)


def _master_key(repo: Path, password: str) -> MasterKey:
    """Have restic open the repository: it needs no part of ours that may change."""
    env = dict(os.environ, RESTIC_PASSWORD=password)
    command = ["restic", "-q", "--no-cache", "-r", str(repo), "cat", "masterkey"]
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    key = json.loads(done.stdout)
    return MasterKey(
        base64.b64decode(key["encrypt"]),
        base64.b64decode(key["mac"]["k"]),
        base64.b64decode(key["mac"]["r"]),
    )


def _packs(chunks: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    for first in range(0, chunks, _BLOBS_A_PACK):
        yield rng.randbytes(32).hex(), min(_BLOBS_A_PACK, chunks - first)


def _pack(repo: Path, name: str, count: int, rng: random.Random) -> str:
    """Make the pack's file; return its JSON."""
    offset, blobs = 0, []
    for _ in range(count):
        length = rng.randrange(64 * KIB, 960 * KIB)
        blobs.append(
            f'{{"id":"{rng.randbytes(32).hex()}","type":"data","offset":{offset},'
            f'"length":{length},"uncompressed_length":{MIB}}}'
        )
        offset += length
    path = repo / "data" / name[:2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    # Blobs, then the header: 41 bytes an entry, sealed, and its length.
    os.truncate(path, offset + 41 * count + 36)
    return f'{{"id":"{name}","blobs":[{",".join(blobs)}]}}'


def _write(repo: Path, sealer: Sealer, packs: list[str]) -> None:
    sealed = seal_text(sealer, f'{{"packs":[{",".join(packs)}]}}'.encode())
    (repo / "index" / hashlib.sha256(sealed).hexdigest()).write_bytes(sealed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Add a made-up index to a repository.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    options = parser.parse_args()
    add_index(options.repository, options.chunks, os.environ["FREEZEFRAME_PASSWORD"])


if __name__ == "__main__":
    main()
