"""Best-of-n: a policy answers n times, and the answer that a reward model scores highest is taken.

The simplest use of a reward model, and what PPO is compared with: it moves away from the policy by at most
log n - (n-1)/n nats (Stiennon et al., arXiv 2009.01325; an upper bound, arXiv 2401.01879), without any training.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwenjax.api.model import Completion, Model
from qwenjax.api.reward_model import RewardModel
from qwenjax.chat_format import chatml
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.generate.stops import Stop


def best(scores: Sequence[float], ended: Sequence[bool]) -> int:
    """The index of the highest score among the answers that ended, the first of equal ones.

    One that was cut off, or stopped by anything but <|im_end|>, is scored as if it ended there, so it is taken only
    if none ended.

    Raises:
      ValueError: there is no score, or one that is no finite number.
    """
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"scores {list(scores)}: wanted finite numbers, at least one")
    return max(range(len(scores)), key=lambda i: (bool(ended[i]) or not any(ended), scores[i], -i))


def divergence(n: int) -> float:
    """KL divergence, nats, of the best of n from the policy, at most; it is reached if no two answers are equal."""
    return math.log(n) - (n - 1) / n


class Chosen(NamedTuple):
    """The best answer to one conversation, and the scores of all, in the order of their seeds."""

    completion: Completion
    index: int
    scores: list[float]
    ended: int  # how many answers ended by themselves
    tokens: int  # of all answers


class BestOf(NamedTuple):
    """How answers are chosen."""

    judge: RewardModel
    n: int

    def check(self, model: Model, policy: Greedy | Sample) -> None:
        """Raises ValueError if the reward model reads other ids than the policy writes, or all n would be the same."""
        mine, theirs = model.vocabulary, self.judge.tokenizer
        if mine.fingerprint != theirs.fingerprint:
            raise ValueError(
                f"the reward model's vocabulary is {theirs.name} ({theirs.fingerprint[:8]}), the policy's {mine.name} "
                f"({mine.fingerprint[:8]}): it must be one that was trained from this policy or its relatives"
            )
        if self.n > 1 and isinstance(policy, Greedy):
            raise ValueError(f"the best of {self.n} equal answers: without sampling all are the same; --temperature=1")

    def answers(
        self,
        model: Model,
        conversations: Sequence[Sequence[chatml.Message]],
        policy: Greedy | Sample,
        max_new_tokens: int,
        stop: Sequence[Stop],
        seeds: Sequence[int],
    ) -> list[Chosen]:
        """The best answer to each conversation; answer i draws with seed n * seed + i.

        Raises:
          ValueError: see `check`; or a conversation and its answer are longer than the reward model reads.
        """
        self.check(model, policy)
        n, prompts = self.n, [model.encode_chat(messages) for messages in conversations]
        stops = [*chatml.stop_sequences(model.vocabulary), *stop]
        drawn = [(seed * n + i) % (1 << 32) for seed in seeds for i in range(n)]
        repeated = [ids for ids in prompts for _ in range(n)]
        made = model.complete(repeated, policy, max_new_tokens, stops, drawn)
        read = [[*ids, *one.ids, model.vocabulary.im_end] for ids, one in zip(repeated, made)]
        scores = [float(score) for score in self.judge.score_ids(read)]
        chosen = []
        for first in range(0, len(made), n):
            some, answers = scores[first : first + n], made[first : first + n]
            ended = [one.stop == (model.vocabulary.im_end,) for one in answers]
            index, tokens = best(some, ended), sum(len(one.ids) for one in answers)
            chosen.append(Chosen(answers[index], index, some, sum(ended), tokens))
        return chosen


def conversation(model: Model, row: dict[str, Any]) -> list[chatml.Message]:
    """What a reward model is shown of a row: its 'messages', or its 'prompt' as what a user says to a chat model.

    Raises:
      ValueError: a text for a model that goes on with texts, and does not answer them.
    """
    if "messages" in row:
        return row["messages"]
    if not model.habits.chat:
        raise ValueError(
            "a reward model scores answers in conversations, and nothing beside the weights says that this model was "
            'trained to chat: give a chat model, or rows with "messages"'
        )
    return [{"role": "user", "content": row["prompt"]}]
