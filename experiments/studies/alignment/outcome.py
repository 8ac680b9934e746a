"""What came of an experiment: claims with bounds, over seeds; tables for people; curves as a PNG."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qwenjax.common import figures

PANELS = {
    "score": "reward model (proxy)",
    "gold": "gold reward model",
    "kl": "KL, nats per response",
    "lm_loss": "loss on held-out text",
}


class Wanted(NamedTuple):
    """A claim about one seed's result: a number that it must reach, or stay below."""

    what: str
    number: Callable[[dict], float]  # of a seed's result; KeyError: that part was not run
    sign: str  # '>=' or '<='
    bound: float
    over: Callable[[Sequence[float]], float] = statistics.median  # min: every seed must show it


class Claim(NamedTuple):
    """How a claim came out."""

    what: str
    value: float
    sign: str
    bound: float
    values: list[float]  # by seed

    @property
    def holds(self) -> bool:
        """False also of a number that is none."""
        return self.value >= self.bound if self.sign == ">=" else self.value <= self.bound


def check(wanted: Sequence[Wanted], results: Sequence[dict]) -> list[Claim]:
    """The claims about which there is anything in these results, one for each seed."""
    claims = []
    for what, number, sign, bound, over in wanted:
        values = []
        for result in results:
            try:
                values.append(float(number(result)))
            except KeyError:  # an arm that was not asked for
                continue
        if values:
            value = math.nan if any(map(math.isnan, values)) else over(values)
            claims.append(Claim(what, value, sign, bound, values))
    return claims


def claims_table(claims: Sequence[Claim]) -> str:
    """Markdown."""
    rows = []
    for claim in claims:
        seeds = " ".join(f"{value:.3g}" for value in claim.values)
        verdict = "PASS" if claim.holds else "FAIL"
        rows.append((verdict, claim.what, f"{claim.sign} {claim.bound:g}", f"{claim.value:.3g}", seeds))
    return "\n".join(figures.markdown(("", "claim", "wanted", "found", "by seed"), rows))


def table(result: dict) -> str:
    """The result for people: claims, accuracies and arms."""
    found = [Claim(*(claim[name] for name in Claim._fields)) for claim in result["claims"]]
    seeds = result["seeds"]
    rows = []
    accuracies = {name: [by] for name, by in result["floors"].items()}
    accuracies |= {f"RM {name}": [seed["accuracy"][name] for seed in seeds] for name in seeds[0]["accuracy"]}
    for name, of in accuracies.items():
        shares = (statistics.median(by[edge] for by in of) for edge in of[0])
        rows.append((name, *(f"{share:.3f}" for share in shares)))
    lines = [claims_table(found), "", *figures.markdown(("accuracy, by gap", "0.5", "1", "2"), rows)]
    for arm in seeds[0]["arms"]:
        medians = numbers([seed["arms"][arm] for seed in seeds])
        rows = [(name, f"{value:.4g}") for name, value in medians.items()]
        lines += ["", *figures.markdown((f"{arm}, median of {len(seeds)} seeds", ""), rows)]
    return "\n".join(lines)


def numbers(arms: Sequence[dict]) -> dict[str, float]:
    """Medians of an arm's numbers over the seeds, nested ones by their path."""
    found = {}
    for name, value in arms[0].items():
        if name == "curves":
            continue
        of = [arm[name] for arm in arms]
        if isinstance(value, dict):
            found |= {f"{name}: {inner}": number for inner, number in numbers(of).items()}
        else:
            found[name] = statistics.median(of)
    return found


def draw(seeds: Sequence[dict], path: Path) -> None:
    """Draws the evaluations of the arms of seeds (`curves` of their results) over PPO's iterations."""
    panels = {name: PANELS[name] for name in PANELS if name in next(iter(seeds[0]["arms"].values()))["curves"]}
    figure, axes = figures.canvas(3.5 * len(panels), 3.4, len(panels))
    for axis, (name, title) in zip(axes, panels.items()):
        of = {arm: [seed["arms"][arm]["curves"] for seed in seeds] for arm in seeds[0]["arms"]}
        figures.curves(axis, {arm: [dict(zip(one["step"], one[name])) for one in found] for arm, found in of.items()})
        axis.set(title=title, xlabel="iteration")
    figures.save(figure, path)
