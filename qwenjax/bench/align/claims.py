"""What an experiment must show, as numbers with bounds: medians over seeds, and a table of PASS and FAIL."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple


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


def table(claims: Sequence[Claim]) -> str:
    """For people, and as markdown."""
    lines = ["| | claim | wanted | found | by seed |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        seeds = " ".join(f"{value:.3f}" for value in claim.values)
        verdict = "PASS" if claim.holds else "FAIL"
        lines.append(f"| {verdict} | {claim.what} | {claim.sign} {claim.bound:g} | {claim.value:.3f} | {seeds} |")
    return "\n".join(lines)
