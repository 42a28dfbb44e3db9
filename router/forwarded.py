"""What proxies before this one say of a client, believed as far as `--trusted-hops` goes. Pure.

With N trusted hops the client's address is the Nth from the right of x-forwarded-for: each trusted proxy
appended whom it saw, and what stands further left anybody may have written. As Envoy's xff_num_trusted_hops.
"""

from __future__ import annotations

from ipaddress import ip_address

MAX_HOPS = 16
_MAX_ADDRESS = 45  # an IPv6 address with an IPv4 one in it


def trusted_address(chain: bytes, hops: int) -> bytes:
    """Return the address that the outermost of `hops` trusted proxies saw; empty if it cannot be told.

    A chain too short, or anything but an address at that place, says nothing. Only the right end is looked at,
    whatever the length of the rest.
    """
    entries = chain.rsplit(b",", hops)
    if len(entries) < hops:
        return b""
    entry = entries[-hops][: 2 * _MAX_ADDRESS].strip(b" \t")
    if len(entry) > _MAX_ADDRESS or b"%" in entry:  # a zone means something on another host only
        return b""
    try:
        return str(ip_address(entry.decode("ascii"))).encode()
    except ValueError:  # UnicodeDecodeError among them
        return b""
