"""Which disks are imaged, and how, where the user left it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.app import choose as chosen
from freezeframe.app.choose import choose, how_taken
from freezeframe.core.errors import TrackingUnavailable, UsageError
from freezeframe.image.manifest import Mode
from freezeframe.repo.repository import Repository
from freezeframe.system.disks import Disk
from freezeframe.system.sysfs import Node
from freezeframe.testing.repositories import local_repository, memory_repository

MOUNTED = "mounted read-write at /srv"


class Machine:
    """Disks by path: who uses each, which the repository lies on, which can be taken out."""

    def __init__(self, **disks: tuple[str, ...]) -> None:
        self.holders = {f"/dev/{name}": holders for name, holders in disks.items()}
        self.own: set[str] = set()
        self.removable: set[str] = set()

    def node(self, path: str | Path) -> Node | None:
        name = Path(path).name
        number = f"8:{ord(name[-1])}"
        return Node(name, number, Path("/sys/none"), 0) if str(path).startswith("/dev") else None

    def nodes(self) -> list[Node]:
        found = [self.node(path) for path, holders in self.holders.items() if holders]
        return [node for node in found if node is not None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(sda=(MOUNTED, "swap"), sdb=(), sdc=("open for writing by dd",))
    monkeypatch.setattr(chosen, "source_holders", lambda path: made.holders.get(str(path), ()))
    monkeypatch.setattr(chosen, "disks_in_use", made.nodes)
    monkeypatch.setattr(
        chosen,
        "disks_beneath",
        lambda _place, nodes: [node for node in nodes if node.path in made.own],
    )
    monkeypatch.setattr(
        chosen, "describe_disk", lambda path: _disk(str(path), str(path) in made.removable)
    )
    monkeypatch.setattr("freezeframe.app.choose.sysfs.node_of", made.node)
    monkeypatch.setattr(chosen, "untrackable", lambda _node: "")
    return made


def _disk(path: str, removable: bool) -> Disk:
    return Disk(
        name=Path(path).name, path=path, size=1, logical_sector=512, physical_sector=512,
        model="", serial="", wwn="", removable=removable, rotational=False, read_only=False,
        diskseq=1, partitions=(), mounts=(), holders=(), made_of=(),
    )  # fmt: skip


@pytest.fixture
def repository() -> Repository:
    return memory_repository()


def test_what_is_in_use_is_imaged_online(machine: Machine, repository: Repository) -> None:
    choice = choose(repository, ["/dev/sda"])
    assert (choice.mode, choice.reasons) == (
        Mode.ONLINE,
        (f"/dev/sda: online, because it is {MOUNTED}",),
    )


def test_what_nobody_uses_is_imaged_offline(machine: Machine, repository: Repository) -> None:
    choice = choose(repository, ["/dev/sdb"])
    assert (choice.mode, choice.reasons) == (Mode.OFFLINE, ("/dev/sdb: offline, nobody uses it",))


def test_one_in_use_takes_all_with_it(machine: Machine, repository: Repository) -> None:
    choice = choose(repository, ["/dev/sdb", "/dev/sda"])
    assert choice.mode is Mode.ONLINE
    assert choice.paths == ("/dev/sdb", "/dev/sda")
    assert "/dev/sdb: online" in choice.reasons


def test_a_file_in_use_is_left_to_who_opens_it(machine: Machine, repository: Repository) -> None:
    machine.holders["disk.raw"] = ("open for writing by qemu",)
    assert choose(repository, ["disk.raw"]).mode is Mode.OFFLINE


def test_the_user_decides(machine: Machine, repository: Repository) -> None:
    assert choose(repository, ["/dev/sda"], offline=True).mode is Mode.OFFLINE
    assert choose(repository, ["/dev/sdb"], online=True).mode is Mode.ONLINE
    with pytest.raises(UsageError):
        choose(repository, ["/dev/sda"], offline=True, online=True)


def test_no_disk_named_means_those_in_use(machine: Machine, tmp_path: Path) -> None:
    machine.own = {"/dev/sdc"}
    choice = choose(local_repository(tmp_path), [])
    assert choice.paths == ("/dev/sda",)
    assert "/dev/sdc: left out, the repository lies on it" in choice.reasons


def test_removable_ones_must_be_named(machine: Machine, repository: Repository) -> None:
    machine.removable = {"/dev/sda"}
    choice = choose(repository, [])
    assert choice.paths == ("/dev/sdc",)
    assert any("removable" in reason for reason in choice.reasons)
    assert choose(repository, ["/dev/sda"]).paths == ("/dev/sda",)


def test_nothing_left_is_an_error_that_says_why(machine: Machine, tmp_path: Path) -> None:
    machine.own = {"/dev/sda", "/dev/sdc"}
    with pytest.raises(UsageError, match="the repository lies on it"):
        choose(local_repository(tmp_path), [])


def test_how_one_disk_would_be_taken(machine: Machine) -> None:
    assert how_taken("/dev/sdb", ()).text == "offline, exclusively"
    taken = how_taken("/dev/sda", ())
    assert (taken.mode, taken.text, taken.holders) == (
        Mode.ONLINE,
        f"online: {MOUNTED}",
        (MOUNTED, "swap"),
    )


def test_why_one_disk_would_not_be_taken(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.own = {"/dev/sda"}
    machine.holders["disk.raw"] = ("open for writing by qemu",)
    refused = [
        how_taken("/dev/sda", (), repository="/srv/repo"),
        how_taken("/dev/sdc", ("libbpf1", "BTF")),
        how_taken("disk.raw", ()),
    ]
    assert [taken.mode for taken in refused] == [None, None, None]
    assert refused[0].text == f"not while it is {MOUNTED}: the repository lies on it"
    assert "lacks libbpf1, BTF" in refused[1].text
    assert "only devices" in refused[2].text
    # Without a word about the repository nobody can know.
    assert how_taken("/dev/sda", ()).mode is Mode.ONLINE


def test_a_disk_that_cannot_be_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_node: Node, _disk: object) -> None:
        raise TrackingUnavailable("its writes cannot be seen", hint="image it offline")

    monkeypatch.setattr(chosen, "describe", lambda _node: None)
    monkeypatch.setattr(chosen, "refuse_untrackable", refuse)
    node = Node("nvme0n1", "259:0", Path("/sys/none"), 0)
    assert chosen.untrackable(node) == "its writes cannot be seen"
