"""Evaluation: what a model can do, measured and put beside what was published.

A task or a table of the report is a module of `tasks/`, named in `task.py`. Its MODEL says whether it measures a
"language" model (`api.Model`) or a "reward" model (`api.reward_model.RewardModel`). It has three functions:
`measure(model, settings, cache)` gives a result of plain JSON values, `table(result)` the text, `plot(result, path)`
the picture.

task      the tasks and tables by name, their settings, and a cache on disk: an interrupted evaluation goes on
runner    from a path to a table and a picture: what the command and notebooks call
accuracy  shares of preference pairs in the right order, with confidence intervals
tasks/    perplexity (Table 3), preferences (Table 4), passkey, entropy
"""
