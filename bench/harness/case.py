"""What a measured case is: its sizes, its contenders, the truth they are checked against, and its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

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
        operations: those that this way cannot do without, where they are not :meth:`Case.operations`.
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
    operations: float | None = None


@dataclass(frozen=True)
class Case:
    """One measurement: a dataclass of sizes, which :meth:`config` turns into JSON."""

    op = ""
    dtype = "float32"
    most_rounds = 1000
    warmup = 2
    #: Contenders that the suite leaves out, because their first call compiles for long.
    slow: ClassVar[tuple[str, ...]] = ()
    #: The largest sizes, and widths, of a case that takes seconds, and of one that is only to run the code.
    quick_sizes: ClassVar[Mapping[str, int]] = {}
    warm_sizes: ClassVar[Mapping[str, int]] = {}

    def config(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def title(self) -> str:
        raise NotImplementedError

    def operations(self) -> float:
        """The least floating-point operations that any of the contenders does in matrix products."""
        raise NotImplementedError

    def bytes(self) -> float:
        """Bytes that the op must move once: inputs and parameters read, outputs written."""
        raise NotImplementedError

    def matrix_shape(self) -> tuple[int, int, int]:
        """(m, k, n) of the case's largest kind of product, at which torch.mm is measured too."""
        raise NotImplementedError

    def arithmetic(self, contender: Contender) -> str:
        """float64, float32 or bfloat16: in which the contender's products may be done at the fastest."""
        rounded = self.dtype == "float32" and contender.precision != "highest"
        return "bfloat16" if rounded else self.dtype

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        """By name; the first is the baseline that ratios refer to, and plain PyTorch for the check."""
        raise NotImplementedError

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        """Outputs in float64, and the scale of errors where it is not the output's own norm."""
        raise NotImplementedError

    def parts(self) -> Mapping[str, Callable[[], object]]:
        """Parts of the work that all contenders share, timed by themselves, by label."""
        return {}

    def variants(self) -> Sequence[Case]:
        """What ``fastcsm bench --op`` measures for these sizes."""
        return [self]

    def suite(self) -> Sequence[Case]:
        """What ``fastcsm bench`` measures, when it measures everything in two minutes."""
        return self.variants()

    def quick(self: Kind) -> Kind:
        """A case of the same kind that takes seconds."""
        return self._at_most(self.quick_sizes)

    def warm(self: Kind) -> Kind:
        """A tiny case that runs the same code, before memory is measured."""
        return self._at_most(self.warm_sizes)

    def _at_most(self: Kind, sizes: Mapping[str, int]) -> Kind:
        found: dict[str, Any] = {}
        for name, most in sizes.items():
            own = getattr(self, name)
            found[name] = min(own, most) if isinstance(own, int) else tuple(min(w, most) for w in own)
        return replace(self, **found)


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
        found[f"fastcsm{suffix}"] = Contender(f"fastcsm{quoted}", call, precision, own=True, **options)
    return found
