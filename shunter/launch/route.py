"""Which of this machine's addresses another machine is reached from."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def own_address(towards: str, port: int) -> str:
    """The address of this machine that packets to `towards` carry. Nothing is sent.

    Raises OSError when the name is not known or no route leads there.
    """
    family, kind, _, _, address = socket.getaddrinfo(towards, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def is_loopback(address: str) -> bool:
    """Whether an address reaches only its own machine."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_of(address: str) -> str | None:
    """Name of the interface that has an address, such as `eth0`; None when that cannot be found out."""
    if is_loopback(address):
        return "lo"
    if ":" in address:
        wanted = ipaddress.ip_address(address.partition("%")[0]).exploded.replace(":", "")
        try:
            lines = Path("/proc/net/if_inet6").read_text().splitlines()
        except OSError:
            return None
        return next((line.split()[-1] for line in lines if line.split()[0] == wanted), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, asked)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def variables(towards: str, port: int) -> dict[str, str]:
    """What tells gloo and NCCL to use the interface that leads to rank 0's machine.

    Without it gloo asks for the address of the machine's own name, which on many machines is a loopback
    address that the others cannot reach.
    """
    try:
        name = interface_of(own_address(towards, port))
    except OSError:
        return {}
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}
