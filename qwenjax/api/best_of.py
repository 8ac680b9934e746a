"""Best-of-n: a model answers n times, and the answer with the highest score of a reward model is taken.

The baseline for PPO: it moves away from the policy by at most log n - (n-1)/n nats of KL (Stiennon et al., arXiv
2009.01325; an upper bound, arXiv 2401.01879).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwenjax.api.model import Completion, Model
from qwenjax.api.reward_model import RewardModel
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.generate.stops import Stop
from qwenjax.tokenizer.base import check_same


def best(scores: Sequence[float], ended: Sequence[bool]) -> int:
    """Index of the highest score among the answers that ended, or among all if none did; of equal scores, the first.

    Raises:
      ValueError: no scores, or one that is not finite.
    """
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"scores {list(scores)}: wanted finite numbers, at least one")
    return max(range(len(scores)), key=lambda i: (bool(ended[i]) or not any(ended), scores[i], -i))


def divergence(n: int) -> float:
    """Upper bound of the KL divergence, nats, of the best of n from the policy; reached if no two answers are equal."""
    return math.log(n) - (n - 1) / n


class Chosen(NamedTuple):
    """The best answer to one conversation, and the scores of all answers in the order of their seeds."""

    completion: Completion
    index: int
    scores: list[float]
    ended: int  # how many answers ended their turn
    tokens: int  # of all answers


class BestOf(NamedTuple):
    """Chooses among n answers by a reward model."""

    reward_model: RewardModel
    n: int

    def check(self, model: Model, sampling: Greedy | Sample) -> None:
        """Raises ValueError for a reward model of another vocabulary, or if all n answers would be the same."""
        ours, theirs = model.vocabulary, self.reward_model.tokenizer
        advice = "use a reward model that was trained from this model or its relatives"
        check_same(ours, theirs.fingerprint, "the reward model", advice, other=theirs.name)
        if self.n > 1 and isinstance(sampling, Greedy):
            raise ValueError(f"--best-of={self.n}: greedy answers are all the same; use --temperature=1")

    def answers(
        self,
        model: Model,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        sampling: Greedy | Sample,
        max_new_tokens: int,
        stop: Sequence[Stop],
        seeds: Sequence[int],
    ) -> list[Chosen]:
        """The best answer to each conversation; answer i draws with seed n * seed + i. Raises ValueError as `check`."""
        self.check(model, sampling)
        n, prompts = self.n, [model.encode_chat(messages) for messages in conversations]
        stops, end = [*model.vocabulary.turn_stops(), *stop], model.vocabulary.turn_end
        answer_seeds = [(seed * n + i) % (1 << 32) for seed in seeds for i in range(n)]
        repeated = [ids for ids in prompts for _ in range(n)]
        completions = model.complete(repeated, sampling, max_new_tokens, stops, answer_seeds)
        texts = [[*ids, *one.ids, end] for ids, one in zip(repeated, completions)]
        scores = [float(score) for score in self.reward_model.score_ids(texts)]
        chosen = []
        for first in range(0, len(completions), n):
            own, answers = scores[first : first + n], completions[first : first + n]
            ended = [one.stop == (end,) for one in answers]
            index, tokens = best(own, ended), sum(len(one.ids) for one in answers)
            chosen.append(Chosen(answers[index], index, own, sum(ended), tokens))
        return chosen


def conversation(model: Model, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a request: its 'messages', or its 'prompt' as the user's turn, for a chat model only."""
    if "messages" in row:
        return row["messages"]
    if not model.generation_defaults.chat:
        raise ValueError('this model has no chat template to answer in: give a chat model, or requests with "messages"')
    return [{"role": "user", "content": row["prompt"]}]
