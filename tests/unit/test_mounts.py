"""What is mounted: the kernel's words, as findmnt reads them."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.system.mounts import all_mounts, own_mounts, parse_mountinfo, parse_swaps
from freezeframe.system.run import run

LINES = r"""
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
29 1 8:2 / /srv/with\040blank\134 ro,relatime shared:1 - xfs /dev/sda2 rw,logdev=/dev/sdb1,noquota
40 1 0:39 /@ /b ro - btrfs /dev/sdc ro,space_cache=v2,subvolid=5,subvol=/@
nonsense
"""


def test_mountinfo() -> None:
    first, second, third = parse_mountinfo(LINES, namespace=7)
    assert (first.device, first.root, first.point) == ("98:0", "/mnt1", "/mnt2")
    assert (first.kind, first.source, first.namespace) == ("ext3", "/dev/root", 7)
    assert second.point == "/srv/with blank\\"
    # This mount of it is read-only; the filesystem is not.
    assert not second.read_only
    assert second.second_devices == ("/dev/sdb1",)
    assert second.option("logdev") == "/dev/sdb1"
    assert third.read_only
    assert third.option("space_cache") == "v2"


@settings(deadline=None)
@given(st.text())
def test_anything_is_survived(text: str) -> None:
    parse_mountinfo(text)
    parse_swaps(text)


def test_as_findmnt_sees_it() -> None:
    told = run(["findmnt", "--json", "--list", "-o", "TARGET,MAJ:MIN,FSTYPE"]).stdout
    theirs = {(m["target"], m["maj:min"], m["fstype"]) for m in json.loads(told)["filesystems"]}
    ours = {(m.point, m.device, m.kind) for m in own_mounts()}
    # Others on this machine may mount and unmount meanwhile; the root stays.
    assert len(ours & theirs) >= 5
    assert "/" in {m.point for m in all_mounts()}


def test_swaps() -> None:
    text = "Filename\tType\tSize\n/dev/dm-1   partition\t1\t0\t-2\n/swap\\040file file 1 0 -3\n"
    assert [(s.path, s.kind) for s in parse_swaps(text)] == [
        ("/dev/dm-1", "partition"),
        ("/swap file", "file"),
    ]
