"""What people call partition types, and which of them are never looked into."""

from __future__ import annotations

#: GPT type GUID (lower case) -> name.
GPT_TYPE_NAMES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI System",
    "024dee41-33e7-11d3-9d69-0008c781f39f": "MBR partition scheme",
    "d3bfe2de-3daf-11df-ba40-e3a556d89593": "Intel Fast Flash",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "f4019732-066e-4e12-8273-346c5641494f": "Sony boot partition",
    "bfbfafe7-a34f-448a-9a5b-6213eb736c22": "Lenovo boot partition",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC PReP boot",
    "7412f7d5-a156-4b13-81dc-867174929325": "ONIE boot",
    "d4e6e2cd-4469-46f3-b5cb-1bff57afc149": "ONIE config",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Microsoft LDM metadata",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "Microsoft LDM data",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery environment",
    "37affc90-ef7d-4e96-91c3-2d7ae055b174": "IBM General Parallel Fs",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Microsoft Storage Spaces",
    "75894c1e-3aeb-11d3-b7c1-7b03a0000000": "HP-UX data",
    "e2a1e728-32e3-11d6-a682-7b03a0000000": "HP-UX service",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux server data",
    "44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "Linux root (ARM)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM-64)",
    "77055800-792c-4f94-b39a-98c91b762bb6": "Linux root (LoongArch-64)",
    "700bda43-7a34-4507-b179-eeb93d7a7ca3": "Linux root (MIPS-64 LE)",
    "c31c45e6-3f39-412e-80fb-4809c4980599": "Linux root (PPC64LE)",
    "60d5a7fe-8e7d-435c-b714-3dd8162144e1": "Linux root (RISC-V-32)",
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224": "Linux root (RISC-V-64)",
    "5eead9a9-fe09-4a1e-a1d7-520d00531306": "Linux root (S390X)",
    "8da63339-0007-60c0-c436-083ac8230908": "Linux reserved",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux variable data",
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": "Linux temporary data",
    "75250d76-8cc6-458e-bd66-bd47cc81a812": "Linux /usr (x86)",
    "8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
    "7d0359a3-02b3-4f0a-865c-654403e70625": "Linux /usr (ARM)",
    "b0e01050-ee5f-4390-949a-9101b17104e9": "Linux /usr (ARM-64)",
    "e611c702-575c-4cbe-9a46-434fa0bf7e3f": "Linux /usr (LoongArch-64)",
    "c97c1f32-ba06-40b4-9f22-236061b08aa8": "Linux /usr (MIPS-64 LE)",
    "15bb03af-77e7-4d4a-b12b-c0d084f7491c": "Linux /usr (PPC64LE)",
    "b933fb22-5c3f-4f91-af90-e2bb0fa50702": "Linux /usr (RISC-V-32)",
    "beaec34b-8442-439b-a40b-984381ed097d": "Linux /usr (RISC-V-64)",
    "8a4f5770-50aa-4ed3-874a-99b710db6fea": "Linux /usr (S390X)",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "773f91ef-66d4-49b5-bd83-d683bf40ad16": "Linux user's home",
    "516e7cb4-6ecf-11d6-8ff8-00022d09712b": "FreeBSD data",
    "83bd6b9d-7f41-11dc-be0b-001560b84f0f": "FreeBSD boot",
    "516e7cb5-6ecf-11d6-8ff8-00022d09712b": "FreeBSD swap",
    "516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
    "516e7cb8-6ecf-11d6-8ff8-00022d09712b": "FreeBSD Vinum",
    "48465300-0000-11aa-aa11-00306543ecac": "Apple HFS/HFS+",
    "7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
    "55465300-0000-11aa-aa11-00306543ecac": "Apple UFS",
    "52414944-0000-11aa-aa11-00306543ecac": "Apple RAID",
    "52414944-5f4f-11aa-aa11-00306543ecac": "Apple RAID offline",
    "426f6f74-0000-11aa-aa11-00306543ecac": "Apple boot",
    "4c616265-6c00-11aa-aa11-00306543ecac": "Apple label",
    "5265636f-7665-11aa-aa11-00306543ecac": "Apple TV recovery",
    "53746f72-6167-11aa-aa11-00306543ecac": "Apple Core storage",
    "69646961-6700-11aa-aa11-00306543ecac": "Apple Silicon boot",
    "52637672-7900-11aa-aa11-00306543ecac": "Apple Silicon recovery",
    "6a82cb45-1dd2-11b2-99a6-080020736631": "Solaris boot",
    "6a85cf4d-1dd2-11b2-99a6-080020736631": "Solaris root",
    "6a898cc3-1dd2-11b2-99a6-080020736631": "Solaris /usr & Apple ZFS",
    "6a87c46f-1dd2-11b2-99a6-080020736631": "Solaris swap",
    "6a8b642b-1dd2-11b2-99a6-080020736631": "Solaris backup",
    "6a8ef2e9-1dd2-11b2-99a6-080020736631": "Solaris /var",
    "6a90ba39-1dd2-11b2-99a6-080020736631": "Solaris /home",
    "6a9283a5-1dd2-11b2-99a6-080020736631": "Solaris alternate sector",
    "6a945a3b-1dd2-11b2-99a6-080020736631": "Solaris reserved 1",
    "6a9630d1-1dd2-11b2-99a6-080020736631": "Solaris reserved 2",
    "6a980767-1dd2-11b2-99a6-080020736631": "Solaris reserved 3",
    "6a96237f-1dd2-11b2-99a6-080020736631": "Solaris reserved 4",
    "6a8d2ac7-1dd2-11b2-99a6-080020736631": "Solaris reserved 5",
    "49f48d32-b10e-11dc-b99b-0019d1879648": "NetBSD swap",
    "49f48d5a-b10e-11dc-b99b-0019d1879648": "NetBSD FFS",
    "49f48d82-b10e-11dc-b99b-0019d1879648": "NetBSD LFS",
    "2db519c4-b10f-11dc-b99b-0019d1879648": "NetBSD concatenated",
    "2db519ec-b10f-11dc-b99b-0019d1879648": "NetBSD encrypted",
    "49f48daa-b10e-11dc-b99b-0019d1879648": "NetBSD RAID",
    "fe3a2a5d-4f32-41a7-b725-accc3285a309": "ChromeOS kernel",
    "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec": "ChromeOS root fs",
    "2e0a753d-9e48-43b0-8337-b15192cb1b5e": "ChromeOS reserved",
    "85d5e45a-237c-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD data",
    "85d5e45e-237c-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD boot",
    "85d5e45b-237c-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD swap",
    "0394ef8b-237e-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD UFS",
    "85d5e45d-237c-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD ZFS",
    "85d5e45c-237c-11e1-b4b3-e89a8f7fc3a7": "MidnightBSD Vinum",
    "45b0969e-9b03-4f30-b4c6-b4b80ceff106": "Ceph Journal",
    "45b0969e-9b03-4f30-b4c6-5ec00ceff106": "Ceph Encrypted Journal",
    "4fbd7e29-9d25-41b8-afd0-062c0ceff05d": "Ceph OSD",
    "4fbd7e29-9d25-41b8-afd0-5ec00ceff05d": "Ceph crypt OSD",
    "89c57f98-2fe5-4dc0-89c1-f3ad0ceff2be": "Ceph disk in creation",
    "89c57f98-2fe5-4dc0-89c1-5ec00ceff2be": "Ceph crypt disk in creation",
    "aa31e02a-400f-11db-9590-000c2911d1b8": "VMware VMFS",
    "9d275380-40ad-11db-bf97-000c2911d1b8": "VMware Diagnostic",
    "381cfccc-7288-11e0-92ee-000c2911d0b2": "VMware Virtual SAN",
    "77719a0c-a4a0-11e3-a47e-000c29745a24": "VMware Virsto",
    "9198effc-31c0-11db-8f78-000c2911d1b8": "VMware Reserved",
    "824cc7a0-36a8-11e3-890a-952519ad3f61": "OpenBSD data",
    "cef5a9ad-73bc-4601-89f3-cdeeeee321a1": "QNX6 file system",
    "c91818f9-8025-47af-89d2-f030d7000c2c": "Plan 9 partition",
    "5b193300-fc78-40cd-8002-e86c45580b47": "HiFive FSBL",
    "2e54b353-1271-4842-806f-e436d6af6985": "HiFive BBL",
    "42465331-3ba3-10f1-802a-4861696b7521": "Haiku BFS",
    "6828311a-ba55-42a4-bcde-a89bb5edecae": "Marvell Armada 3700 Boot partition",
}

#: MBR type -> name.
MBR_TYPE_NAMES = {
    0x01: "FAT12",
    0x02: "XENIX root",
    0x03: "XENIX usr",
    0x04: "FAT16 <32M",
    0x05: "Extended",
    0x06: "FAT16",
    0x07: "HPFS/NTFS/exFAT",
    0x08: "AIX",
    0x09: "AIX bootable",
    0x0A: "OS/2 Boot Manager",
    0x0B: "W95 FAT32",
    0x0C: "W95 FAT32 (LBA)",
    0x0E: "W95 FAT16 (LBA)",
    0x0F: "W95 Ext'd (LBA)",
    0x10: "OPUS",
    0x11: "Hidden FAT12",
    0x12: "Compaq diagnostics",
    0x14: "Hidden FAT16 <32M",
    0x16: "Hidden FAT16",
    0x17: "Hidden HPFS/NTFS",
    0x18: "AST SmartSleep",
    0x1B: "Hidden W95 FAT32",
    0x1C: "Hidden W95 FAT32 (LBA)",
    0x1E: "Hidden W95 FAT16 (LBA)",
    0x24: "NEC DOS",
    0x27: "Hidden NTFS WinRE",
    0x39: "Plan 9",
    0x3C: "PartitionMagic recovery",
    0x41: "PPC PReP Boot",
    0x42: "SFS",
    0x4D: "QNX4.x",
    0x4E: "QNX4.x 2nd part",
    0x4F: "QNX4.x 3rd part",
    0x50: "OnTrack DM",
    0x51: "OnTrack DM6 Aux1",
    0x52: "CP/M",
    0x53: "OnTrack DM6 Aux3",
    0x54: "OnTrackDM6",
    0x55: "EZ-Drive",
    0x63: "GNU HURD or SysV",
    0x64: "Novell Netware 286",
    0x65: "Novell Netware 386",
    0x70: "DiskSecure Multi-Boot",
    0x75: "PC/IX",
    0x80: "Old Minix",
    0x81: "Minix / old Linux",
    0x82: "Linux swap / Solaris",
    0x83: "Linux",
    0x84: "OS/2 hidden or Intel hibernation",
    0x85: "Linux extended",
    0x86: "NTFS volume set",
    0x87: "NTFS volume set",
    0x88: "Linux plaintext",
    0x8E: "Linux LVM",
    0x9F: "BSD/OS",
    0xA0: "IBM Thinkpad hibernation",
    0xA5: "FreeBSD",
    0xA6: "OpenBSD",
    0xA7: "NeXTSTEP",
    0xA8: "Darwin UFS",
    0xA9: "NetBSD",
    0xAB: "Darwin boot",
    0xAF: "HFS / HFS+",
    0xB7: "BSDI fs",
    0xB8: "BSDI swap",
    0xBB: "Boot Wizard hidden",
    0xBC: "Acronis FAT32 LBA",
    0xBE: "Solaris boot",
    0xBF: "Solaris",
    0xDA: "Non-FS data",
    0xDB: "CP/M / CTOS / ...",
    0xDE: "Dell Utility",
    0xDF: "BootIt",
    0xE1: "DOS access",
    0xE3: "DOS R/O",
    0xEA: "Linux extended boot",
    0xEB: "BeOS fs",
    0xEE: "GPT",
    0xEF: "EFI (FAT-12/16/32)",
    0xF0: "Linux/PA-RISC boot",
    0xF2: "DOS secondary",
    0xF8: "EBBR protective",
    0xFB: "VMware VMFS",
    0xFC: "VMware VMKCORE",
    0xFD: "Linux raid autodetect",
    0xFF: "BBT",
}

#: Partitions that hold boot code, or volumes that begin anywhere in them. An old
#: filesystem's signature may still lie inside: their bytes are kept, whatever it says.
GPT_TYPES_OPAQUE = frozenset(
    (
        "024dee41-33e7-11d3-9d69-0008c781f39f",  # an MBR inside
        "21686148-6449-6e6f-744e-656564454649",  # BIOS boot
        "9e1a2d38-c612-4316-aa26-8b49521e5a8b",  # PReP boot
        "e3c9e316-0b5c-4db8-817d-f92df00215ae",  # Microsoft reserved: LDM may use it
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",  # LDM metadata
        "af9b60a0-1431-4f62-bc68-3311714a69ad",  # LDM data: many volumes
        "e75caf8f-f680-4cee-afa3-b001e56efc2d",  # Storage Spaces
        "516e7cb4-6ecf-11d6-8ff8-00022d09712b",  # FreeBSD, with a disklabel inside
        "83bd6b9d-7f41-11dc-be0b-001560b84f0f",  # FreeBSD boot
        "fe3a2a5d-4f32-41a7-b725-accc3285a309",  # ChromeOS kernel
        "8da63339-0007-60c0-c436-083ac8230908",  # Linux reserved
    )
)
MBR_TYPE_CODES_OPAQUE = frozenset(
    f"0x{code:02x}"
    for code in (
        0x39,  # Plan 9: partitions inside
        0x41,  # PReP boot
        0x42,  # LDM: Windows dynamic disks, many volumes
        0x50,
        0x51,
        0x53,
        0x54,
        0x55,  # disk managers that move sectors
        0x63,  # System V and Hurd: slices inside
        0x81,  # Minix: partitions inside
        0xA5,
        0xA6,
        0xA9,
        0xB7,  # BSD: a disklabel inside
        0xBE,
        0xBF,  # Solaris: slices inside
        0xDA,  # no filesystem, says its maker
        0xEE,
        0xF8,  # protective: another table inside
    )
)


def gpt_type_name(guid: str) -> str:
    """Return the name of a GPT type GUID (lower case); empty where it has none."""
    return GPT_TYPE_NAMES.get(guid, "")


def mbr_type_name(code: int) -> str:
    """Return the name of an MBR type; empty where it has none."""
    return MBR_TYPE_NAMES.get(code, "")
