"""What this machine can do at most, measured in the rounds of a case: the floor of its contenders' times.

The peak of an arithmetic is that of the library's widest multiply-add or dot product, of operands that stay
in registers, on all threads, at its fastest: nothing that multiplies in that arithmetic is faster. Where the
library is missing, torch.mm's fastest round stands in, and the result says so. The bandwidth is that of
copies which move as many bytes as the case, so that what fits a cache is held to the cache's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from time import perf_counter
from typing import Any

import torch

from fastcsm.backends import CPU

from .case import Case, Contender
from .measure import at_precision, quartiles

Counted = tuple[float, Callable[[], object]]
Loop = Callable[[str, int], float]
#: Turns of the loop in registers, some milliseconds, and how often it runs in a round.
TURNS, LOOPS = 1 << 19, 10
#: Bytes that copies read and write in a round, at most.
COPIED = 1 << 27


class Fastest:
    """A call that runs ``work`` so many times; ``rate`` is the most that it did a second, in all calls.

    Short pieces are at their fastest even where a neighbour takes the processor now and then.
    """

    def __init__(self, work: Callable[[], float], times: int):
        self._work, self._times, self.rate = work, times, 0.0

    def __call__(self) -> None:
        for _ in range(self._times):
            start = perf_counter()
            done = self._work()
            self.rate = max(self.rate, done / (perf_counter() - start))


def peak_loop() -> Loop | str:
    """The library's loop, (arithmetic, turns) -> operations done; or why there is none."""
    missing = CPU().missing()
    return missing[0] if missing else torch.ops.fastcsm_cpu.peak


@cache
def peak(loop: Loop, arithmetic: str, threads: int) -> Fastest:
    """The loop, whose rate is the fastest of all cases so far: the machine's does not depend on the case."""
    return Fastest(partial(loop, arithmetic, TURNS), LOOPS)


def copies(moved: float) -> Fastest:
    """Copies that read and write so many bytes each, as far as they are not over the limit."""
    numbers = max(1, min(int(moved) // 8, COPIED // 8))
    source, target = torch.ones(numbers), torch.empty(numbers)

    def copy() -> float:
        target.copy_(source)
        return 8.0 * numbers

    return Fastest(copy, min(1000, COPIED // (8 * numbers)))


def matrix_calls(arithmetic: str, dtype: str, square: int, shape: tuple[int, int, int]) -> dict[str, Counted]:
    """Plain torch.mm at a good size and at the case's own m, k, n: {shape: (operations, call)}.

    Tensors are of the case's dtype; bfloat16 arithmetic on float32 tensors is that of "medium" precision.
    """
    calls: dict[str, Counted] = {}
    precision = "highest" if arithmetic == dtype else "medium"
    for m, k, n in ((square,) * 3, shape):
        a, b, out = (torch.randn(size).to(getattr(torch, dtype)) for size in ((m, k), (k, n), (m, n)))
        product = partial(torch.mm, a, b, out=out)
        calls[f"{m} x {k} x {n}"] = 2.0 * m * k * n, at_precision(precision, product)
    return calls


class Limits:
    """The machine's limits for a case and the arithmetic of its contenders.

    Attributes:
        case: the case.
        calls: to be timed in its rounds, by name.
    """

    def __init__(self, case: Case, contenders: Iterable[Contender], square: int):
        self.case = case
        self._operations, self._bytes = case.operations(), case.bytes()
        self._products = {
            arithmetic: matrix_calls(arithmetic, case.dtype, square, case.matrix_shape())
            for arithmetic in sorted({case.arithmetic(contender) for contender in contenders})
        }
        loop = peak_loop()
        self._why = loop if isinstance(loop, str) else ""
        self._peaks: dict[str, Fastest] = {}
        if not isinstance(loop, str):
            # What may round to bfloat16 may as well multiply in float32, and does where that is faster.
            wanted = {*self._products, *(["float32"] if "bfloat16" in self._products else [])}
            self._peaks = {a: peak(loop, a, torch.get_num_threads()) for a in wanted}
        self._copies = copies(self._bytes)
        self.calls: dict[str, Callable[[], object]] = {"copy": self._copies}
        for arithmetic, products in self._products.items():
            self.calls |= {f"{arithmetic} {shape}": call for shape, (_, call) in products.items()}
        self.calls |= {f"{arithmetic} peak": call for arithmetic, call in self._peaks.items()}

    def measured(self, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
        """What the rounds say: entries of a result.

        "peaks" and "bandwidth" are the fastest, operations and bytes a second; "matrix_rates" by arithmetic
        and shape are medians, as contenders' times are.
        """
        rates, peaks = {}, {arithmetic: fastest.rate for arithmetic, fastest in self._peaks.items()}
        for arithmetic, products in self._products.items():
            times = {shape: seconds[f"{arithmetic} {shape}"] for shape in products}
            rates[arithmetic] = {
                shape: count / quartiles(times[shape])["median"] for shape, (count, _) in products.items()
            }
            if self._why:
                peaks[arithmetic] = max(count / min(times[shape]) for shape, (count, _) in products.items())
            elif arithmetic == "bfloat16":
                peaks[arithmetic] = max(peaks[arithmetic], peaks["float32"])
        return {
            "operations": self._operations,
            "bytes": self._bytes,
            "peaks": {arithmetic: peaks[arithmetic] for arithmetic in self._products},
            **({"peaks_of_mm": self._why} if self._why else {}),
            "matrix_rates": rates,
            "bandwidth": self._copies.rate,
        }

    def shares(self, contender: Contender, seconds: float, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of a contender's row that took ``seconds``, given what was :meth:`measured`."""
        arithmetic = self.case.arithmetic(contender)
        operations = self._operations if contender.operations is None else contender.operations
        products = operations / measured["peaks"][arithmetic]
        floor = max(products, self._bytes / measured["bandwidth"])
        mm = operations / max(measured["matrix_rates"][arithmetic].values())
        own = {} if contender.operations is None else {"operations": operations}
        shares = {"floor_multiple": seconds / floor, "mm_multiple": seconds / mm}
        return {"arithmetic": arithmetic, "floor_seconds": floor, **shares, **own}
