"""The settings a peer is tried with, so that it runs at its best for each frame length."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from bench.form import window
from bench.testpmd import TestpmdPair

Setting = tuple[int, int, bool]  # slots of a ring as a power of two, burst, zero-copy client

_ALL: Sequence[Setting] = [*itertools.product((10, 11, 12), (32, 64), (False, True))]
_USUAL: Setting = (11, 64, False)


def best(
    start: Callable[[int, int, bool], AbstractContextManager[TestpmdPair]], lens: Sequence[int], quick: bool
) -> dict[int, Setting]:
    """memif's best setting for each length, by the median of a few windows each; `quick`: the usual one, untried."""
    if quick:
        return dict.fromkeys(lens, _USUAL)
    rates: dict[int, dict[Setting, tuple[bool, float]]] = {len_: {} for len_ in lens}
    for setting in _ALL:
        with start(*setting) as pair:
            for len_ in lens:
                rates[len_][setting] = _median(pair, len_)
    return {len_: max(found, key=lambda setting: found[setting]) for len_, found in rates.items()}


def _median(pair: TestpmdPair, len_: int) -> tuple[bool, float]:
    """Near before far: a rate of one class says nothing beside one of the other."""
    pair.resume()
    pair.set_len(len_)
    windows = [window(pair, 0.15) for _ in range(5)]
    near = [one.rate for one in windows if one.near]
    return bool(near), statistics.median(near or [one.rate for one in windows])
