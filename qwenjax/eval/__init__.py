"""What a model can do, measured: of an `api.Model` or a `RewardModel`, beside what was published.

A task or table is a module, named in `tasks.py`. MODEL says whether it measures a "language" or a "reward" model, and
there are three functions: `measure(model, settings, parts)` gives a result of plain JSON values, `table(result)` its
text, `draw(result, path)` its picture.

run.py         one measurement, from a path to a table and a picture
parts.py       results that survive an interruption
perplexity.py  Table 3: perplexity by context length, with and without context extension
preferences.py Table 4: pairs of responses that a reward model puts in the right order, set by set
passkey.py     a number hidden in a long text: depth x length
entropy.py     how widely attention looks, by length
accuracy.py    shares of such pairs, by gap, with intervals
"""
