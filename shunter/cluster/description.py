"""A cluster as a person writes it: kinds of devices, groups of nodes, links by name, and which joins what."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shunter.cluster.device import DeviceKind
from shunter.config.base import Config

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Link(Config):
    """What one device sends another through; in each direction at once."""

    latency: float = Field(ge=0, description="Seconds from sending to arrival of an empty message.")
    bandwidth: float = Field(gt=0, description="Bytes a second in one direction.")
    type: str = Field("", description="NVLink, PCIe, InfiniBand, RoCE, Ethernet, ...; equal ones can talk.")
    spread: float | None = Field(
        None, ge=0, description="Of a measured one: half the range between quartiles over the median."
    )
    source: str = Field("", description="Where the numbers come from.")


class Package(Config):
    """Neighbouring devices of a node with a link of their own, such as the two dies of one package."""

    size: int = Field(ge=2, description="Devices in a package.")
    link: str = Field(description="Name of the link inside it.")


class NodeGroup(Config):
    """Equal nodes."""

    count: int = Field(1, ge=1, description="How many of them.")
    device: str = Field(description="Name of the kind of device.")
    devices: int = Field(ge=1, description="Devices in each node.")
    inside: str | None = Field(None, description="Name of the link between two devices of a node.")
    package: Package | None = Field(None, description="Devices closer to each other than to the rest.")
    between: str | None = Field(
        None, description="Name of the link between two nodes of this group, through which they leave it too."
    )
    nics: int = Field(
        1, ge=1, description="Links of that kind a node has; devices that send at once share them."
    )
    price_per_hour: float | None = Field(None, ge=0, description="Of one node, in any currency.")
    source: str = Field("", description="Where the numbers come from.")


class Pair(Config):
    """A link that differs from what the groups say."""

    ends: list[str] = Field(
        min_length=2,
        max_length=2,
        description="Two groups, two nodes (`group.0`) or two devices (`group.0/3`); both ways.",
    )
    link: str = Field(description="Name of the link, from the first to the second.")
    back: str | None = Field(None, description="Name of the link of the way back, where it is another one.")


class Collective(Config):
    """A measured collective over one group."""

    op: str = Field(description="all_reduce, all_gather, reduce_scatter, all_to_all or send.")
    ranks: int = Field(ge=2, description="Ranks of the group.")
    latency: float = Field(ge=0, description="Seconds of a call with next to nothing to send.")
    bandwidth: float = Field(gt=0, description="Bytes a second and rank that leave it, in long calls.")
    spread: float = Field(0.0, ge=0, description="Half the range between quartiles over the median.")


class Measured(Config):
    """Where and when `shunter probe` made this file."""

    fingerprint: str = Field(description="Of the machine and the versions; another one measures anew.")
    date: str = Field(description="Day of the measurement.")
    machine: str = Field("", description="The machine in words.")
    quick: bool = Field(False, description="Whether it was the short form, with wider spreads.")
    collectives: list[Collective] = Field([], description="Collectives by size of group.")


class Description(Config):
    """A cluster's file."""

    name: str = Field(min_length=1, description="What the cluster is called.")
    devices: dict[Name, DeviceKind] = Field(min_length=1, description="Kinds of devices by name.")
    links: dict[Name, Link] = Field({}, description="Links by name.")
    nodes: dict[Name, NodeGroup] = Field(min_length=1, description="Groups of equal nodes by name.")
    between: str | None = Field(None, description="Name of the link between nodes of different groups.")
    pairs: list[Pair] = Field([], description="Links that differ from these, from coarse to fine.")
    measured: Measured | None = Field(None, description="Set by `shunter probe`.")
