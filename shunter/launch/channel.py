"""What the processes of a crew tell each other: small JSON values by key, through torch's store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from shunter.config.errors import ShunterError
from shunter.launch.place import Place

JOIN = 120.0  # seconds to reach the store


class Gone(Exception):
    """The store does not answer: the process that held it has ended, or the network has."""


class Channel:
    """No call waits for a value that is not there. Not encrypted, and open to whoever reaches the port, as
    torch's store is: for networks that one trusts."""

    def __init__(self, place: Place) -> None:
        """Raises ShunterError where the store cannot be reached or made."""
        holds = place.rank == 0 and not place.agent
        try:
            self._tcp = TCPStore(
                place.address,
                place.port,
                is_master=holds,
                timeout=timedelta(seconds=JOIN),
                wait_for_workers=False,
            )
        except (DistError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ShunterError(
                f"the store of rank 0 cannot be {'made' if holds else 'reached'} ({reason})",
                where=f"{place.address}:{place.port}",
                mend="Choose a free port, and let firewalls pass what goes between the machines.",
            ) from None
        self._store = PrefixStore("shunter", self._tcp)

    def put(self, key: str, value: Any) -> None:
        """Set a value. Raises Gone, as all calls do."""
        try:
            self._store.set(key, json.dumps(value))
        except (DistError, RuntimeError) as error:
            raise Gone(str(error)) from None

    def get(self, key: str) -> Any:
        """The value, None when there is none."""
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except (DistError, RuntimeError) as error:
            raise Gone(str(error)) from None

    def get_all(self, keys: list[str]) -> list[Any]:
        """Values that are known to be there."""
        try:
            return [json.loads(each) for each in self._store.multi_get(keys)]
        except (DistError, RuntimeError) as error:
            raise Gone(str(error)) from None

    def count(self, key: str) -> int:
        """How many have called this."""
        try:
            return int(self._store.add(key, 1))
        except (DistError, RuntimeError) as error:
            raise Gone(str(error)) from None
