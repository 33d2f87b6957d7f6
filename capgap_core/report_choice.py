"""Composes what a run says of its candidates, and of how one of them became the assistant."""

from capgap_core.facts import Candidate, Facts, Score
from capgap_core.markdown import table


def choice(facts: Facts) -> str:
    """Return the candidates with their t, and how the assistant was chosen, or that it was asked for."""
    kind = "m" if facts["metric_scale"] == "raw" else "(m - chance)/(teacher - chance)"
    rows = [
        [
            f"{c['scale']:g}" + (" (target)" if c["target"] else ""), f"{c['achieved']:.4f}",
            with_error({"value": c["metric"], "stderr": c["stderr"]}), f"{c['tradeoff']:.4f}",
            _taken(facts, c), _wins(c),
        ]
        for c in sorted(facts["candidates"], key=lambda c: (c["target"], -c["scale"]))
    ]  # fmt: skip
    header = ["scale", "achieved", f"m ({facts['metric']}, selection)", "t", "", "chosen for λ"]
    margin = "There was no second candidate." if facts["margin"] is None else f"Tie margin {facts['margin']:.4f}."
    margin = margin if facts["best"] is None else "The assistant was asked for."
    beyond = facts["target_from"]
    target = (
        "No λ puts the target's own t first." if beyond is None else f"Beyond λ = {beyond:.3g} the target's t is first."
    )
    return f"t = {kind} + λ(1 - achieved scale), λ = {facts['lam']:g}. {margin} {target}\n\n{table(header, rows)}"


def _taken(facts: Facts, candidate: Candidate) -> str:
    """Return what became of a candidate."""
    if candidate["target"]:
        return "never chosen"
    if facts["best"] is None:
        return "**chosen**" if candidate["chosen"] else ""
    best = "best t" if candidate["chosen"] else ""
    return ", ".join(filter(None, ["**asked for**" if candidate["scale"] == facts["chosen"] else "", best]))


def _wins(candidate: Candidate) -> str:
    if candidate["target"]:
        return "–"
    low, high = candidate["wins_from"], candidate["wins_to"]
    if low is None:
        return "never"
    return f"{low:.3g} and more" if high is None else f"{low:.3g} to {high:.3g}"


def with_error(score: Score) -> str:
    """Return a value with its standard error, where one is known."""
    return f"{score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")
