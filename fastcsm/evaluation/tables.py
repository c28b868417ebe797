"""What ``fastcsm evaluate`` prints."""

from __future__ import annotations

from typing import Any

from ..models.model import no_density


def evaluation(result: dict[str, Any]) -> str:
    """The tables of an evaluation, from what its JSON holds."""
    lines = [
        f"{result['run']} at step {result['step']}: {result['samples']} {result['split']} rows of "
        f"{result['data']}, {result['dimensions']} dimensions",
        f"model space: {result['model_space']}; sigma, losses, nats and nats/dim are of rows there",
    ]
    if result["levels"]:
        lines.append("sigma^2-weighted loss per dimension, mean +- standard error over samples")
        lines.append(f"{'sigma':>8}  {'csm':>20}  {'denoising':>20}")
    for row in result["levels"]:
        lines.append(f"{row['sigma']:8.4f}  {_cell(row['csm']):>20}  {_cell(row['denoising']):>20}")
    if result["likelihood"]:
        lines += ["", *_likelihood(result["likelihood"], result["log_volume"])]
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
        "negative log-likelihood, mean +- standard error over samples; error: largest estimate, nats",
        f"as given: nats of the rows as given, which are nats {log_volume:+.4f} (log of a unit's volume)",
        f"{'method':>10}  {'of':>13}  {'nats':>20}  {'as given':>12}  {'nats/dim':>20}  {'bits/dim':>18}  "
        f"{'error':>8}  diverged",
    ]
    for row in rows:
        of = f"x + {row['noise']:.3g} z" if row["noise"] else "x"
        as_given = f"{row['nats_as_given']['mean']:.3f}" if row["nats_as_given"] else "-"
        error = f"{row['error']['largest']:.1e}" if row["error"] else "-"
        lines.append(
            f"{row['method']:>10}  {of:>13}  {_cell(row['nats'], 3):>20}  {as_given:>12}  "
            f"{_cell(row['nats_per_dimension']):>20}  {_cell(row.get('bits_per_dimension')):>18}  "
            f"{error:>8}  {row['diverged']} of {row['samples']}"
        )
    worst = max(rows, key=lambda row: row["diverged"])
    if worst["diverged"]:
        lines.append(
            f"diverged, and left out of the means: {no_density(worst['diverged'], worst['samples'])}"
        )
    return lines


def _ood(ood: dict[str, Any], data: str) -> list[str]:
    lines = [
        f"AUROC of {data} above {ood['data']}, {ood['samples']} rows of it",
        f"  h(x) = sum of scores: {ood['auroc']['score_sum']:.4f}",
        f"  log q(x), {ood['method']}: {ood['auroc']['log_likelihood']:.4f}",
    ]
    if ood["diverged"]:
        lines.append(f"  {ood['diverged']} rows have no density and count as the strangest")
    return lines
