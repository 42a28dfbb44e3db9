"""Networks with real NATs on one machine: namespaces joined by veth pairs, translated by nftables.

    private host ── its NAT ──┐
    private host ── its NAT ──┼── a switch, 10.99.0.0/24: the internet as it were
    public host ──────────────┘

Kinds of NAT: `masquerade` keeps ports where it can, so all see one address; `random` has another port for each
destination (symmetric); `static` maps every port to its host, who is reached unasked (full cone); `blocked` lets no
UDP through. All drop what comes unasked, as those at home do. Names have the process in them that made them: what
one that was killed has left behind is removed by the next. Needs root, `ip` and `nft`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

PREFIX = "routerlab"
KINDS = ("masquerade", "random", "static", "blocked")
STOP_S = 5.0
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_IP = shutil.which("ip", path=_PATH) or "ip"
_NFT = shutil.which("nft", path=_PATH) or "nft"
_RULES = """
table ip lab {{
  chain out {{
    type nat hook postrouting priority srcnat
    {outward}
  }}
  chain back {{
    type nat hook prerouting priority dstnat
    {inward}
  }}
  chain local {{
    type filter hook input priority filter
    iifname "out" drop
  }}
  chain through {{
    type filter hook forward priority filter
    {filter}
  }}
}}
"""
_UNASKED = 'iifname "out" ct state new drop'
# kind: (outward, inward, filter); {host} and {public} are addresses
_NATS = {
    "masquerade": ('oifname "out" masquerade', "", _UNASKED),
    "random": ('oifname "out" masquerade random,fully-random', "", _UNASKED),
    "static": ('oifname "out" snat to {public}', 'iifname "out" dnat to {host}', ""),
    "blocked": ('oifname "out" masquerade', "", f"meta l4proto udp drop\n    {_UNASKED}"),
}
# IPCTNL_MSG_CT_DELETE without a filter: every connection that is tracked.
_FORGET = (
    "import socket, struct; s = socket.socket(16, 3, 12); "
    "s.send(struct.pack('=IHHIIBBH', 20, 0x102, 5, 1, 0, 0, 0, 0)); "
    "code = struct.unpack_from('=IHHIIi', s.recv(256))[5]; raise SystemExit(code and 1)"
)


def missing() -> str:
    """Return what keeps this machine from having a lab; empty if nothing does."""
    if os.geteuid() != 0:
        return "namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool, path=_PATH) is None:
            return f"{tool} is not installed"
    try:
        with Lab() as lab:
            lab.host("try", "masquerade")
    except (subprocess.CalledProcessError, OSError) as failure:
        said = getattr(failure, "stderr", "") or str(failure)
        return f"namespaces with a NAT cannot be made here: {said.strip()}"
    return ""


class Lab:
    """A context manager; hosts are added while it is entered."""

    def __init__(self) -> None:
        self._prefix = f"{PREFIX}-{os.getpid()}-{_born(os.getpid())}-{id(self):x}-"
        self._spaces: list[str] = []
        self._processes: list[subprocess.Popen] = []
        self._own: dict[str, str] = {}
        self._public: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._last = 1

    def __enter__(self) -> Self:
        sweep()
        try:
            self._net = self._make("net")
            _ip("link add br0 type bridge", "addr add 10.99.0.1/24 dev br0", "link set br0 up", space=self._net)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    # -- building --------------------------------------------------------------------------------------

    def host(self, name: str, nat: str = "") -> str:
        """Add a host, on the public network or behind a NAT of its own; return its name."""
        assert not nat or nat in KINDS, nat
        assert name not in self._own, name
        self._last += 1
        public = f"10.99.0.{self._last}"
        self._kinds[name] = nat
        if not nat:
            self._own[name] = self._public[name] = public
            self._plug(self._make(name), "eth0", public)
            return name
        inner, outer = f"10.{100 + self._last}.0.2", f"10.{100 + self._last}.0.1"
        self._own[name], self._public[name] = inner, public
        space, gate = self._make(name), self._make(f"{name}.nat")
        self._plug(gate, "out", public)
        _ip(f"link add in netns {gate} type veth peer name eth0 netns {space}")
        _ip(f"addr add {outer}/24 dev in", "link set in up", space=gate)
        _ip(f"addr add {inner}/24 dev eth0", "link set eth0 up", f"route add default via {outer}", space=space)
        outward, inward, kept = _NATS[nat]
        rules = _RULES.format(outward=outward.format(public=public), inward=inward.format(host=inner), filter=kept)
        self._in(gate, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._in(gate, _NFT, "-f", "-", text_in=rules)
        return name

    def _make(self, name: str) -> str:
        space = self._prefix + name
        self._spaces.append(space)
        _ip(f"netns add {space}")
        _ip("link set lo up", space=space)
        return space

    def _plug(self, space: str, device: str, address: str) -> None:
        """Connect a namespace to the switch."""
        port = f"p{self._last}"
        _ip(f"link add {device} netns {space} type veth peer name {port} netns {self._net}")
        _ip(f"link set {port} master br0", f"link set {port} up", space=self._net)
        _ip(f"addr add {address}/24 dev {device}", f"link set {device} up", "route add default via 10.99.0.1", space=space)

    # -- using -----------------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Return the host's own address."""
        return self._own[name]

    def public(self, name: str) -> str:
        """Return the address at which the public network sees it: its NAT's."""
        return self._public[name]

    def run(self, name: str, *argv: object, **more: object) -> subprocess.Popen:
        """Start a program on a host; it is ended with the lab. `more` is Popen's."""
        command = [_IP, "netns", "exec", self._prefix + name, *map(str, argv)]
        process = subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, **more})
        self._processes.append(process)
        return process

    def call(self, name: str, *argv: object, within_s: float = 10.0) -> subprocess.CompletedProcess:
        """Run a program on a host to its end."""
        command = [_IP, "netns", "exec", self._prefix + name, *map(str, argv)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_s, check=False)

    def forget(self, name: str) -> None:
        """Have the host's NAT forget every mapping, as one does that restarts or has too many."""
        self._in(self._gate(name), sys.executable, "-c", _FORGET)

    def renumber(self, name: str) -> None:
        """Give the host's NAT another public address, as a provider does over night; mappings are lost. Not `static`'s."""
        assert self._kinds[name] != "static"
        old, gate = self._public[name], self._gate(name)
        self._last += 1
        self._public[name] = new = f"10.99.0.{self._last}"
        _ip(f"addr del {old}/24 dev out", f"addr add {new}/24 dev out", "route replace default via 10.99.0.1", space=gate)
        self.forget(name)

    def set_timeouts(self, name: str, seconds: int) -> None:
        """Have the host's NAT forget UDP that is quiet for so long."""
        for which in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            self._in(self._gate(name), "sh", "-c", f"echo {seconds} > /proc/sys/net/netfilter/{which}")

    def _gate(self, name: str) -> str:
        assert self._kinds[name], f"{name} has no NAT"
        return f"{self._prefix}{name}.nat"

    def _in(self, space: str, *argv: str, text_in: str = "") -> None:
        subprocess.run([_IP, "netns", "exec", space, *argv], input=text_in, capture_output=True, text=True, timeout=10, check=True)

    # -- the end ---------------------------------------------------------------------------------------

    def _remove(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._processes.clear()
        for space in self._spaces:
            _delete(space)
        self._spaces.clear()


def sweep() -> list[str]:
    """Remove what labs have left behind whose process is gone; return the names."""
    gone = []
    for space in _spaces():
        found = re.fullmatch(rf"{PREFIX}-(\d+)-(\d+)-.*", space)
        if found is not None and _born(int(found[1])) != int(found[2]):
            _delete(space)
            gone.append(space)
    return gone


def spaces_of(pid: int) -> list[str]:
    """Return the namespaces of labs that this process has made."""
    return [space for space in _spaces() if space.startswith(f"{PREFIX}-{pid}-")]


def _spaces() -> list[str]:
    listed = subprocess.run([_IP, "netns", "list"], capture_output=True, text=True, timeout=10, check=False).stdout
    return [line.split()[0] for line in listed.splitlines() if line]


def _delete(space: str) -> None:
    """End what runs there, all of it started by a lab, and remove the namespace."""
    listed = subprocess.run([_IP, "netns", "pids", space], capture_output=True, text=True, timeout=10, check=False).stdout
    for pid in listed.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run([_IP, "netns", "del", space], capture_output=True, timeout=10, check=False)


def _born(pid: int) -> int:
    """Return when a process began, in ticks since the machine did; 0 if there is none. Pids come again."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _ip(*commands: str, space: str = "") -> None:
    """Run commands of `ip`, in a namespace if one is named."""
    where = ["-n", space] if space else []
    subprocess.run(
        [_IP, *where, "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, timeout=10, check=True
    )
