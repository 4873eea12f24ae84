"""The boot sector of the guest that is tried before a machine is run in hardware.

Made from `trial.S` beside this file: `as --32 -o trial.o trial.S` and then
`ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o trial trial.o`.
"""

from __future__ import annotations

#: What it writes to its serial port when it has come through.
WORD = b"freezeframe"
#: How QEMU ends then: the guest writes 0x10 to the port of `isa-debug-exit`.
EXIT_CODE = 2 * 0x10 + 1

_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cea117c0000fb8b1e6c0483c303f4a16c0429d878f8fa66bf001000000f22df6631c0"
    "66b9000c0000fc6766f3ab66c70600100320000066c70600200330000066c7060030830000000f20e06683c8200f"
    "22e066b9800000c00f32660d000100000f30660f0116f87c0f20c0660d010000800f22c0ea857c080066b810008e"
    "d88ed0bc0070000041b8c800000031c00fa2b950c30000486bc003505bffc975f641ffc875e8bece7c000066baf8"
    "03ac84c07403eeebf866baf400b810000000eff4ebfd667265657a656672616d65008db600000000000000000000"
    "0000ffff0000009baf00ffff00000093cf001700e07c"
)
BOOT_SECTOR = _CODE + bytes(510 - len(_CODE)) + b"\x55\xaa"
