"""Whether a machine has come up, as seen from outside: no program of ours runs in it.

Signs that count, in this order of weight: a login prompt on a serial console, on a virtio
console (systemd starts one by itself where the kernel has the driver), on the text screen of a
PC; or the guest agent answers. Signs of failure end the wait early.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.boot.qmp import Qmp, QmpFailed, ping_agent

_LOGIN = re.compile(r"^\S+ login: *", re.MULTILINE)
#: What is written where a machine will never ask for a login.
_FAILED = (
    "Kernel panic",
    "emergency mode",
    "Give root password for maintenance",
    "\n(initramfs)",
    "grub rescue>",
    "No bootable device",
    "No bootable option or device was found",
    "Operating system not found",
    "Missing operating system",
)
#: The text screen of a PC: 25 lines of 80 characters, each with an attribute.
_SCREEN_AT, _COLUMNS, _LINES = 0xB8000, 80, 25
#: Seconds between two looks at consoles, and at what takes QEMU a moment to tell.
_OFTEN, _SELDOM = 0.1, 2.0

_CONSOLES = (("serial", "the serial console"), ("virtio", "the virtio console (hvc0)"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a machine did."""

    #: What showed that it is up; empty where it did not come up.
    sign: str
    #: Why it did not; empty where it did.
    reason: str
    #: From the start of the virtual machine, in seconds.
    seconds: float
    #: All that it wrote to its consoles, and its last text screen.
    text: str


def watch_options(folder: Path, *, screen: bool) -> list[str]:
    """Return QEMU's options for consoles that are watched and a screen nobody sees.

    With `screen` it has a graphics adapter that stays in text mode where the machine lets it:
    one that is not on the PCI bus, so that no driver takes it over.
    """
    return [
        "-display", "none", "-vga", "none",
        *(("-device", "isa-vga") if screen else ()),
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        "-chardev", f"file,id=serial,path={folder}/serial", "-device", "isa-serial,chardev=serial",
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=virtio,path={folder}/virtio", "-device", "virtconsole,chardev=virtio",
        "-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ]  # fmt: skip


def watch(
    machine: subprocess.Popen[bytes], folder: Path, timeout: float, tick: Callable[[], None]
) -> Outcome:
    """Wait until the machine is up, has failed, or `timeout` seconds have passed.

    `folder` is that of `watch_options`. `tick` is called ten times a second.
    """
    started = time.monotonic()
    screen = ""
    qmp: Qmp | None = None
    looked = started
    try:
        while True:
            stopped = machine.poll() is not None
            now = time.monotonic()
            sign, reason = _consoles(folder)
            if not sign and now - looked > _SELDOM:
                looked = now
                try:
                    qmp = qmp or Qmp(folder / "qmp")
                    screen = _screen(qmp, folder) or screen
                except QmpFailed:
                    qmp = None
                sign, why = _look(screen, "the screen")
                reason = reason or why
                if not sign and ping_agent(folder / "agent"):
                    sign = "its guest agent answers"
            if not sign and not reason:
                if stopped:
                    reason = "the virtual machine stopped by itself"
                elif now - started > timeout:
                    reason = f"no sign of life within {timeout:.0f} s"
            if sign or reason:
                text = _all_text(folder, screen)
                return Outcome(sign, "" if sign else reason, now - started, text)
            tick()
            time.sleep(_OFTEN)
    finally:
        if qmp is not None:
            qmp.close()


def _consoles(folder: Path) -> tuple[str, str]:
    failed = ""
    for name, called in _CONSOLES:
        sign, reason = _look(_text(folder / name), called)
        if sign:
            return sign, ""
        failed = failed or reason
    return "", failed


def _look(text: str, where: str) -> tuple[str, str]:
    """Return (sign, reason) of what a console shows; both empty where it tells nothing yet."""
    if _LOGIN.search(text):
        return f"a login prompt on {where}", ""
    failed = next((word for word in _FAILED if word in text), "")
    return "", f"{where} says: {failed.strip()}" if failed else ""


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _screen(qmp: Qmp, folder: Path) -> str:
    """Return the text screen; whatever is no text comes out as spaces and nonsense."""
    place = folder / "screen"
    size = 2 * _COLUMNS * _LINES
    qmp.execute("pmemsave", val=_SCREEN_AT, size=size, filename=str(place))
    raw = place.read_bytes()[::2]
    lines = [raw[at : at + _COLUMNS].decode("cp437") for at in range(0, len(raw), _COLUMNS)]
    text = "\n".join(re.sub(r"[^\x20-\x7e]", " ", line).rstrip() for line in lines)
    return text.strip("\n")


def _all_text(folder: Path, screen: str) -> str:
    parts = []
    for name, called in (*_CONSOLES, ("", "the screen")):
        text = _text(folder / name) if name else screen
        if text.strip():
            parts.append(f"--- {called}\n{text}\n")
    return "".join(parts)
