"""What a model can do, measured: of an `api.Model`, beside what was published.

A task or table is a module with three functions, named in `tasks.py`: `measure(model, settings, parts)` gives a result
of plain JSON values, `table(result)` its text, `draw(result, path)` its picture.

parts.py       results that survive an interruption
perplexity.py  Table 3: perplexity by context length, with and without context extension
passkey.py     a number hidden in a long text: depth x length
"""
