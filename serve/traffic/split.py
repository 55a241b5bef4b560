"""Who answers: weights of the versions of one model, sticky by a key."""

from __future__ import annotations

import math
import random
import sys
from bisect import bisect
from collections.abc import Mapping
from hashlib import blake2b
from itertools import accumulate

from edgesmith.errors import UsageError

__all__ = ["Split"]

_2_64 = float(1 << 64)


class Split:
    """The shares of one model's versions. Never changed: another split takes its place.

    A key's version is drawn by weighted rendezvous hashing: each version draws an exponential waiting time for the key
    at a rate of its weight, and the shortest wins. Where one weight is changed, keys move to or from that version
    alone, and no more of them than the change says; equal salts give equal answers on every server.

    Args:
        name: The model.
        weights: Version → weight, 0 or more; a version with 0 has no share.
        salt: Of the hash.
        rng: Draws for requests without a key.

    Attributes:
        shares: Version → share, in the order given, each above 0; together 1.
        control: The version with the largest share, the first of several: what others are compared with.

    Raises:
        UsageError: There is no weight above 0, or one is no number, negative, or too small or large to be a share.

    Source: Schindelhauer & Schomaker, Weighted distributed hash tables, SPAA 2005 (the logarithmic method).
    """

    def __init__(self, name: str, weights: Mapping[str, float], *, salt: str, rng: random.Random) -> None:
        if not weights:
            raise UsageError(f"the split of {name} names no version")
        self.name = name
        self.shares = _shares(name, weights)
        self.control = max(self.shares, key=lambda version: self.shares[version])
        self._versions = tuple(self.shares)
        self._bounds = tuple(accumulate(self.shares.values()))[:-1]
        self._salt, self._rng = salt, rng
        seed = blake2b(salt.encode(), digest_size=32).digest()
        self._hashes = [
            (version, share, blake2b(f"{name}\0{version}\0".encode(), digest_size=8, key=seed))
            for version, share in self.shares.items()
        ]

    def choose(self, key: str | None = None) -> str:
        """The version of a key, or one drawn by the weights."""
        if key is None:
            return self._versions[bisect(self._bounds, self._rng.random())]
        data = key.encode("utf-8", "surrogatepass")
        best, shortest = self._versions[0], math.inf
        for version, share, begun in self._hashes:
            hashed = begun.copy()
            hashed.update(data)
            wait = -math.log((int.from_bytes(hashed.digest(), "little") + 1) / _2_64) / share
            if wait < shortest:
                best, shortest = version, wait
        return best

    def without(self, version: str) -> Split:
        """The same split with a version's share given to the others, each in proportion."""
        left = {other: share for other, share in self.shares.items() if other != version}
        return Split(self.name, left, salt=self._salt, rng=self._rng)


def _shares(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    for version, weight in weights.items():
        # An integer may be larger than any float, and is compared all the same.
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= sys.float_info.max:
            raise UsageError(
                f"the weight of {name}:{version} is {str(weight)[:40]}; it must be a number of 0 or more",
                mend="Give 0 to a version that is to get nothing.",
            )
    total = sum(float(weight) for weight in weights.values())
    if not 0 < total < math.inf:
        raise UsageError(
            f"the weights of {name} add up to {total:g}", mend="Give shares in per cent, such as 95 and 5."
        )
    shares = {version: weight / total for version, weight in weights.items() if weight}
    if lost := [version for version, share in shares.items() if not share]:
        raise UsageError(
            f"the weight of {name}:{lost[0]} is too small beside the others", mend="Give 0, or more of them."
        )
    return shares
