"""What ``fastcsm evaluate`` prints."""

from __future__ import annotations

from typing import Any

from ..models.model import no_density


def evaluation(result: dict[str, Any]) -> str:
    """The tables of an evaluation, from what its JSON holds."""
    lines = [
        f"{result['run']} at step {result['step']}: {result['samples']} {result['split']} rows of "
        f"{result['data']}, {result['dimensions']} dimensions",
        f"model space: {result['model_space']}",
        "sigma, losses, nats and nats/dim are of rows there",
    ]
    if result["levels"]:
        lines.append("sigma^2-weighted loss per dimension, mean +- standard error over samples")
        lines.append(f"{'sigma':>8}  {'csm':>20}  {'denoising':>20}")
    for row in result["levels"]:
        lines.append(f"{row['sigma']:8.4f}  {_cell(row['csm']):>20}  {_cell(row['denoising']):>20}")
    if result["likelihood"]:
        lines += ["", *_likelihood(result["likelihood"], result["log_volume"])]
    if result.get("draws"):
        lines += ["", _draws(result["draws"])]
    if result["ood"]:
        lines += ["", *_ood(result["ood"], result["data"])]
    if result.get("picture"):
        lines += ["", f"see {result['picture']}"]
    return "\n".join(lines)


def _cell(value: dict[str, float] | None, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.{digits}f} +- {value['standard_error']:.{digits}f}"


def _likelihood(rows: list[dict[str, Any]], log_volume: float) -> list[str]:
    lines = [
        "negative log-likelihood in nats: mean +- standard error over rows that have a density; trimmed:",
        "mean without the 1% of rows of the largest nats; to it and to the median a row without a density is",
        "larger than any; worst: the largest that there is; error: as estimated, mean and largest",
        f"{'method':>10}  {'of':>13}  {'nats':>20}  {'trimmed':>9}  {'median':>9}  {'worst':>9}  "
        f"{'no density':>13}  {'error':>8}  {'largest':>8}",
    ]
    for row in rows:
        nats, error = row["nats"], row["error"]
        robust = [nats and nats[name] for name in ("trimmed_mean", "median", "worst")]
        cells = [f"{'-':>9}" if value is None else f"{value:9.3f}" for value in robust]
        cells.append(f"{row['diverged']:>4} of {row['samples']:<5}")
        cells += [f"{error[name]:8.1e}" if error else f"{'-':>8}" for name in ("mean", "largest")]
        lines.append(f"{_name(row)}  {_cell(nats, 3):>20}  {'  '.join(cells)}")
    worst = max(rows, key=lambda row: row["diverged"])
    if worst["diverged"]:
        lines.append(
            f"diverged, and left out of the means: {no_density(worst['diverged'], worst['samples'])}"
        )
    return lines + _in_units(rows, log_volume)


def _in_units(rows: list[dict[str, Any]], log_volume: float) -> list[str]:
    """The same likelihoods of rows as they are given, and a dimension."""
    columns = {
        "nats_as_given": ("as given", 3),
        "nats_of_logits": ("of logits", 3),
        "nats_per_dimension": ("nats/dim", 4),
        "bits_per_dimension": ("bits/dim", 4),
    }
    shown = [name for name in columns if any(row.get(name) for row in rows)]
    lines = [
        "",
        f"as given: nats of the rows as given, which are nats {log_volume:+.4f} (log of a unit's volume)",
        "  ".join([f"{'method':>10}", f"{'of':>13}", *(f"{columns[name][0]:>21}" for name in shown)]),
    ]
    for row in rows:
        cells = [f"{_cell(row.get(name), columns[name][1]):>21}" for name in shown]
        lines.append("  ".join([_name(row), *cells]))
    return lines


def _name(row: dict[str, Any]) -> str:
    of = f"x + {row['noise']:.3g} z" if row["noise"] else "x"
    return f"{row['method']:>10}  {of:>13}"


def _draws(draws: dict[str, Any]) -> str:
    rate = f"{draws['per_second']:.{0 if draws['per_second'] >= 10 else 2}f}"
    return f"draws by {draws['method']}: {rate} a second ({draws['samples']} in {draws['seconds']:.2f} s)"


def _ood(ood: dict[str, Any], data: str) -> list[str]:
    lines = [
        f"AUROC of {data} above {ood['data']}, {ood['samples']} rows of it; log q of rows as given",
        f"  h(x) = sum of scores: {ood['auroc']['score_sum']:.4f}",
        f"  log q(x), {ood['method']}: {ood['auroc']['log_likelihood']:.4f}",
    ]
    if ood["diverged"]:
        lines.append(f"  {ood['diverged']} rows have no density and count as the strangest")
    return lines
