"""What a measured case is: its sizes, its contenders, the truth they are checked against, and its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Case", "Contender", "Outputs", "from_config", "own_contenders", "widths"]

Outputs = dict[str, Tensor]
Kind = TypeVar("Kind", bound="Case")


@dataclass(frozen=True)
class Contender:
    """One implementation of a case.

    Attributes:
        label: what tables call it.
        call: runs it once on the case's inputs and returns every output by name.
        precision: float32 matrix precision it runs under.
        compiled: True if its first call compiles for the sizes at hand.
        own: True for fastcsm itself.
        check: compared with the truth in place of ``call``, where that draws its own noise or returns less.
        memory: measured for extra memory in place of ``call``, where that does more than is asked about.
        limit: largest error let pass, for a contender that is not exact by choice.
        scale: factor of the measured seconds, where ``call`` is a part of the work; the label says so.
    """

    label: str
    call: Callable[[], Outputs]
    precision: str = "highest"
    compiled: bool = False
    own: bool = False
    check: Callable[[], Outputs] | None = None
    memory: Callable[[], Outputs] | None = None
    scale: float = 1.0
    limit: float | None = None


@dataclass(frozen=True)
class Case:
    """One measurement: a dataclass of sizes, which :meth:`config` turns into JSON."""

    op = ""
    most_rounds = 1000
    warmup = 2
    #: Contenders that the suite leaves out, because their first call compiles for long.
    slow: ClassVar[tuple[str, ...]] = ()

    def config(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def title(self) -> str:
        raise NotImplementedError

    def operations(self) -> float:
        """Floating-point operations in matrix products that the op cannot do without."""
        raise NotImplementedError

    def bytes(self) -> float:
        """Bytes that the op must move once: inputs and parameters read, outputs written."""
        raise NotImplementedError

    def matrix_shape(self) -> tuple[int, int, int]:
        """(m, k, n) of the case's largest kind of product, at which the matrix rate is measured too."""
        raise NotImplementedError

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        """By name; the first is the baseline that ratios refer to, and plain PyTorch for the check."""
        raise NotImplementedError

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        """Outputs in float64, and the scale of errors where it is not the output's own norm."""
        raise NotImplementedError

    def parts(self) -> Mapping[str, Callable[[], object]]:
        """Parts of the work that all contenders share, timed by themselves, by label."""
        return {}

    def variants(self) -> list[Self]:
        """What ``fastcsm bench --op`` measures for these sizes."""
        return [self]

    def suite(self) -> list[Self]:
        """What ``fastcsm bench`` measures, when it measures everything in two minutes."""
        return self.variants()

    def quick(self) -> Self:
        """A case of the same kind that takes seconds."""
        raise NotImplementedError

    def warm(self) -> Self:
        """A tiny case that runs the same code, before memory is measured."""
        raise NotImplementedError


def from_config(kind: type[Kind], config: Mapping[str, Any]) -> Kind:
    """The inverse of :meth:`Case.config`."""
    known = {field.name for field in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known})


def widths(hidden: Sequence[int]) -> str:
    """ "2 x 128" for equal widths, else all of them."""
    if len(set(hidden)) == 1:
        return f"{len(hidden)} x {hidden[0]}"
    return " x ".join(map(str, hidden))


def own_contenders(
    call: Callable[[], Outputs], precisions: Sequence[str], **options: Any
) -> dict[str, Contender]:
    """fastcsm's rows, one for each precision."""
    found = {}
    for precision in precisions:
        suffix, quoted = ("", "") if precision == "highest" else (f"_{precision}", f', "{precision}"')
        found[f"fastcsm{suffix}"] = Contender(
            f"fastcsm{quoted}", call, precision=precision, own=True, **options
        )
    return found
