"""What the program says of chunks that are stored finely."""

from __future__ import annotations

from pathlib import Path

from freezeframe.testing.inprocess import MIB, Program


def test_show_tells_how_many_chunks_are_fine(program: Program, disk: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    assert "64 KiB" not in program("show", "latest").out
    assert "fine" not in _disk(program)
    with disk.open("r+b") as file:
        file.seek(2 * MIB)
        number = next(n for n in range(2, 64) if file.seek(n * MIB) and any(file.read(MIB)))
        file.seek(number * MIB)
        block = bytearray(file.read(MIB))
        at = next(at for at, byte in enumerate(block) if byte)
        file.seek(number * MIB + at)
        file.write(bytes([block[at] ^ 1]))
    program("backup", "--offline", "--check-all", disk)
    shown = " ".join(program("show", "latest").out.split())
    assert f"1 of {disk.stat().st_size // MIB} chunks of 1 MiB changed" in shown
    assert _disk(program)["fine"] == str(number)
    program("verify", "latest", "--against", disk)


def test_the_manifest_says_how_many_blocks_were_decompressed_again(
    program: Program, disk: Path
) -> None:
    program("init")
    for options, expected in (((), 16), (("--check-all",), 1)):
        program("backup", "--offline", *options, disk)
        manifest = program("--json", "show", "latest").record("image")["manifest"]
        assert manifest["proof"]["decompressed_one_in"] == expected  # type: ignore[index]


def _disk(program: Program) -> dict[str, object]:
    manifest = program("--json", "show", "latest").record("image")["manifest"]
    return manifest["disks"][0]  # type: ignore[index,no-any-return]
