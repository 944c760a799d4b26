"""The preflight check of this machine and of the way to the server."""

import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedimaging.errors import StudyError
from fedimaging.site.finding import Finding
from fedimaging.site.folder import SiteFolder
from fedimaging.training.workbench import resolve_device

_LEAST_DISK_GB = 1.0
_LEAST_MEMORY_GB = 2.0  # PyTorch and MONAI alone take a third of this
_CLOCK_SECONDS = 120.0  # the server refuses a hospital whose clock is two and a half minutes off
_SOON_DAYS = 30
_PATIENCE_SECONDS = 10.0


def check_machine(folder: SiteFolder) -> Iterator[Finding]:
    """Disk, memory, device, the authority's certificate, TLS to the server, clock."""
    yield _disk(folder.path)
    yield _memory()
    yield _device(folder.settings.device)
    yield from _server(folder)


def _disk(path: Path) -> Finding:
    free = shutil.disk_usage(path).free / 1e9
    writable = os.access(path, os.W_OK)
    text = f"{free:.1f} GB free for ledger, log and decoded scans" if writable else f"{path} cannot be written by this user"
    return Finding("disk", writable and free >= _LEAST_DISK_GB, text)


def _memory() -> Finding:
    free = free_memory_gb()
    if free is None:
        return Finding("memory", None, "this system does not tell how much is free")
    return Finding("memory", free >= _LEAST_MEMORY_GB, f"{free:.1f} GB free; at least {_LEAST_MEMORY_GB:g} GB are needed")


def free_memory_gb(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """What this process can still have: of the machine, or of its container where that has less. None: not told."""
    try:
        facts = dict(line.split(":", 1) for line in proc.read_text(encoding="utf-8").splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((cgroup / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no container, or one without a limit ("max")
    return free / 1e9


def _device(name: str) -> Finding:
    import torch

    try:
        device = resolve_device(name)
    except StudyError:
        return Finding("device", False, f"site.yaml says device: {name}, which this machine does not have; take auto or cpu")
    if device.type != "cuda":
        threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
        return Finding("device", True, device.type + threads)
    free, whole = torch.cuda.mem_get_info(device)
    text = f"{torch.cuda.get_device_name(device)}, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    return Finding("device", True, text)


def _server(folder: SiteFolder) -> Iterator[Finding]:
    """The certificate on this disk, the handshake with it, and what the server's answer says of our clock."""
    host, _, port = folder.settings.server.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(folder.ca_file))
    except OSError as error:  # also ssl.SSLError, for a file that holds no certificate
        why = "it is missing; the operator has it" if isinstance(error, FileNotFoundError) else f"it cannot be used ({error})"
        yield Finding("authority", False, f"{folder.ca_file.name}: {why}")
        return
    yield Finding("authority", True, f"{folder.ca_file.name} can be read")
    link = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_PATIENCE_SECONDS, context=context)
    try:
        link.connect()
        yield _handshake(link, folder.settings.server)
        began = time.time()
        link.request("GET", "/")
        yield _clock(link.getresponse().headers["date"], (began + time.time()) / 2)
    except (OSError, http.client.HTTPException) as error:
        yield Finding("server", False, f"{folder.settings.server}: {_why_not(error)}")
        yield Finding("clock", None, "can be compared once the server answers")
    finally:
        link.close()


def _handshake(link: http.client.HTTPSConnection, server: str) -> Finding:
    assert isinstance(link.sock, ssl.SSLSocket)
    certificate = link.sock.getpeercert() or {}
    days = int((ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400)
    text = f"{server} answers by {link.sock.version()} with a certificate of the authority, valid for {days} days"
    return Finding("server", True if days > _SOON_DAYS else None, text)


def _why_not(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not to be trusted ({error.verify_message}): another server, another authority, or a wrong "
            "clock here; compare ca.crt with the operator's"
        )
    if isinstance(error, socket.gaierror):
        return "this name is not known here; check site.yaml, or the hospital's DNS"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; is the server running, and the port right?"
    if isinstance(error, TimeoutError):
        return f"no answer in {_PATIENCE_SECONDS:.0f} s; does the firewall let this machine out to it?"
    return f"{error or type(error).__name__}"


def _clock(theirs: str | None, ours: float) -> Finding:
    """Compare with the Date of the server's answer."""
    try:
        date = parsedate_to_datetime(theirs or "")
    except ValueError:
        return Finding("clock", None, "the server's answer has no date to compare with")
    ahead = (datetime.fromtimestamp(ours, UTC) - date.astimezone(UTC)).total_seconds()
    if abs(ahead) <= _CLOCK_SECONDS:
        return Finding("clock", True, "agrees with the server's to two minutes")
    off = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    why = "the server lets nobody in who is two and a half minutes off, and a year's budget is counted by it"
    return Finding("clock", False, f"{off}; set it (NTP): {why}")
