"""Log-probabilities of long texts: in pieces as at once, together as alone."""

import itertools
from dataclasses import replace

import eval_doubles as doubles
import jax
import numpy as np
import pytest

from qwenjax.api import scoring
from qwenjax.eval.tasks.perplexity import ROWS, variant

TEXTS = [np.random.default_rng(n).integers(0, 256, n).tolist() for n in (30, 5, 1, 8)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(scoring, "PIECE", 16)


@pytest.mark.parametrize("row", [ROWS[0], ROWS[-1]])
def test_pieces_and_neighbours_change_nothing(row):
    """30 tokens, past 2 T, read 16 at a time, and short texts side by side, against a forward pass over each alone."""
    model = doubles.model(variant(doubles.CONFIG, row))
    for text, found in list(zip(TEXTS, model.likelihoods(TEXTS)))[:2]:
        scores = np.asarray(model.logits([text]))[0, :-1, :256]  # without the padding rows of the vocabulary
        expected = np.asarray(jax.nn.log_softmax(scores, axis=-1))
        targets = np.array(text[1:], int)
        np.testing.assert_allclose(found.logprobs, expected[np.arange(len(targets)), targets], atol=2e-4)
        np.testing.assert_array_equal(found.greedy, scores.argmax(axis=-1) == targets)


def test_the_rows_differ_only_beyond_the_training_length():
    long, short = TEXTS[0], TEXTS[3]  # 30 and 8 tokens; T is 8
    found = [doubles.model(variant(doubles.CONFIG, row)).likelihoods([long, short]) for row in ROWS]
    for one, other in itertools.pairwise(found):
        assert np.abs(one[0].logprobs - other[0].logprobs).max() > 1e-3
        np.testing.assert_array_equal(one[1].logprobs, other[1].logprobs)


def test_attention_scores_of_a_call_are_bounded(monkeypatch):
    monkeypatch.undo()
    for heads, length in ((9, 1024), (40, 32_768), (64, 1 << 20)):
        piece = scoring._piece(heads, length)
        assert piece == scoring.PIECE or 4 * heads * length * piece <= scoring.SCORES or piece == 16
        assert piece & (piece - 1) == 0
    assert scoring._piece(40, 32_768) == 128


def test_progress_counts_every_token_once():
    told = []
    doubles.model().likelihoods(TEXTS, told.append)
    assert sum(told) == sum(map(len, TEXTS))


@pytest.mark.parametrize("text", [[], [3, 256], [-1]])
def test_what_the_tokenizer_does_not_have_is_refused(text):
    with pytest.raises(ValueError, match="ids 0 to 255"):
        doubles.model().likelihoods([[1, 2], text])


def test_without_a_tokenizer_all_rows_of_the_embedding_count():
    model = replace(doubles.model(), tokenizer=None)
    (found,) = model.likelihoods([[1, 263, 5]])
    assert np.isfinite(found.logprobs).all()
