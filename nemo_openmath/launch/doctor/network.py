"""Interfaces, the way to other nodes, InfiniBand, proxies, and the variables of NCCL and gloo."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence

from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("network")
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_SHOWN = re.compile(r"(NCCL|GLOO|UCX|MELLANOX|CUDA_DEVICE_MAX)_?\w*")
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


def look_at_interfaces(system: System) -> Iterator[Finding]:
    """Yield the interfaces that are up, and the one of the default route."""
    names = [name for name in system.names("sys/class/net") if name != "lo"]
    up = [name for name in names if system.text(f"sys/class/net/{name}/operstate") in ("up", "unknown")]
    routes = [line.split() for line in system.text("proc/net/route").splitlines()[1:]]
    default = next((route[0] for route in routes if len(route) > 1 and route[1] == "00000000"), None)
    if not up:
        yield GROUP.not_here("interfaces", "none but the loopback is up")
    else:
        shown = ", ".join(f"{name} (default route)" if name == default else name for name in up)
        yield GROUP.green("interfaces", shown, up=len(up))
    yield from variables(system.environment, ["lo", *names], infiniband=bool(system.names("sys/class/infiniband")))


def variables(environment: Mapping[str, str], interfaces: Sequence[str], *, infiniband: bool) -> Iterator[Finding]:
    """Yield findings about the variables of NCCL, gloo and CUDA that are set."""
    shown = {name: value for name, value in sorted(environment.items()) if _SHOWN.fullmatch(name)}
    for name in _INTERFACES:
        wanted = [word for word in environment.get(name, "").split(",") if word]
        if wanted and not wanted[0].startswith("^"):
            missing = [word for word in wanted if not _names_one(word, interfaces, gloo=name != "NCCL_SOCKET_IFNAME")]
            if missing:
                text = f"{missing[0]} is no interface here ({', '.join(interfaces)})"
                yield GROUP.red(name, text, "name one that every node has, or leave the variable out")
    if infiniband and environment.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        remedy = "leave it out: without InfiniBand, gradients go over TCP"
        yield GROUP.yellow("NCCL_IB_DISABLE", "is set, and InfiniBand is here", remedy)
    if shown:
        yield GROUP.green("variables", ", ".join(f"{name}={value}" for name, value in shown.items())[:300], **shown)
    else:
        yield GROUP.not_here("variables", "none of NCCL or gloo is set")


def _names_one(word: str, interfaces: Sequence[str], *, gloo: bool) -> bool:
    """Whether a word names an interface. For NCCL it is a prefix, unless it begins with =."""
    if gloo or word.startswith("="):
        return word.removeprefix("=") in interfaces
    return any(interface.startswith(word) for interface in interfaces)


def look_at_names(system: System) -> Iterator[Finding]:
    """Yield what this machine's name resolves to, and in a job the way to its first node."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError as error:
        yield host_name(name, [], str(error), cluster=system.on_cluster)
    else:
        yield host_name(name, addresses, cluster=system.on_cluster)
    head = system.environment.get("SLURM_LAUNCH_NODE_IPADDR")
    if not head:
        yield GROUP.not_here("route to the first node", "not in a job")
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((head, 9))  # sends nothing: the kernel looks for the route
        except OSError as error:
            remedy = "name an interface that reaches it in GLOO_SOCKET_IFNAME"
            yield GROUP.red("route to the first node", f"none to {head}: {error.strerror}", remedy)
        else:
            yield GROUP.green("route to the first node", f"to {head} from {probe.getsockname()[0]}")


def host_name(name: str, addresses: Sequence[str], error: str = "", *, cluster: bool) -> Finding:
    """Return the finding about a machine's name and the addresses that it resolves to. ``cluster``: whether others
    must find this machine by it."""
    remedy = "add its address to /etc/hosts or DNS, or name the interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    if not addresses:
        text = f"{name} does not resolve ({error})"
        return (GROUP.red if cluster else GROUP.yellow)("host name", text, remedy)
    text = f"{name} is {', '.join(addresses[:3])}"
    if cluster and all(address.startswith("127.") or address == "::1" for address in addresses):
        return GROUP.yellow("host name", f"{text}: other nodes are told an address of their own", remedy)
    return GROUP.green("host name", text)


def look_at_infiniband(system: System) -> Iterator[Finding]:
    """Yield the ports of InfiniBand and RoCE devices, and those that are down."""
    ports: list[str] = []
    down: list[str] = []
    for device in system.names("sys/class/infiniband"):
        for port in system.names(f"sys/class/infiniband/{device}/ports"):
            folder = f"sys/class/infiniband/{device}/ports/{port}"
            state = system.text(f"{folder}/state").partition(": ")[2] or "?"
            rate = system.text(f"{folder}/rate").partition(" (")[0]
            kind = system.text(f"{folder}/link_layer") or "?"
            (ports if state == "ACTIVE" else down).append(f"{device}/{port} {state.lower()} {rate} {kind}".strip())
    if not ports and not down:
        yield GROUP.not_here("InfiniBand", "no device")
        return
    if not ports:
        yield GROUP.red("InfiniBand", f"no port is active: {', '.join(down)}", "check cables and the subnet manager")
    elif down:
        text = f"{len(ports)} ports active, {len(down)} not: {', '.join(down)}"
        yield GROUP.yellow("InfiniBand", text, "check the cable; NCCL_IB_HCA names the ports to use", active=len(ports))
    else:
        yield GROUP.green("InfiniBand", f"{len(ports)} ports active, such as {ports[0]}", active=len(ports))
    if not os.path.exists("/dev/infiniband"):
        text = "devices of the node, and no /dev/infiniband"
        yield GROUP.red(
            "RDMA in the container", text, "pass the devices (--device=/dev/infiniband, MELLANOX_VISIBLE_DEVICES=all)"
        )


def look_at_proxies(system: System) -> Iterator[Finding]:
    """Yield whether a proxy would be asked for the machine's own servers."""
    yield proxies(system.environment)


def proxies(environment: Mapping[str, str]) -> Finding:
    """Return the finding about the proxies that are set."""
    names = [name for name in _PROXIES if environment.get(name)]
    if not names:
        return GROUP.green("proxies", "none")
    own = (environment.get("no_proxy", "") + "," + environment.get("NO_PROXY", "")).split(",")
    missing = [name for name in ("127.0.0.1", "localhost") if name not in own and "*" not in own]
    text = ", ".join(dict.fromkeys(name.lower() for name in names))
    if missing:
        remedy = "export no_proxy=127.0.0.1,localhost and the names of the nodes"
        return GROUP.yellow("proxies", f"{text}, also for {' and '.join(missing)}: servers are asked there", remedy)
    return GROUP.green("proxies", f"{text}, not for this machine")


PROBES = (
    Probe("network", "interfaces", look_at_interfaces),
    Probe(
        "network", "host name", look_at_names, 8.0, "the name service hangs: put the names of the nodes in /etc/hosts"
    ),
    Probe("network", "InfiniBand", look_at_infiniband),
    Probe("network", "proxies", look_at_proxies),
)
