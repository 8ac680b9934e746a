"""Evaluation: what a model can do, measured and put beside what was published.

A module of `tasks/`, named in `task.TASKS`, is a task or a table of the report. Its MODEL says whether it measures a
"language" model or a "reward" model; `measure(model, settings, cache)` gives a result of plain JSON values,
`table(result)` the text, `plot(result, path)` the picture.
"""
