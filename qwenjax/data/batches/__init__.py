"""What a training loop reads: row r of a run is f(seed, r), so a batch is a pure function of the step.

`order` says which window of which source row r is. `text`, `conversations`, `preferences` and `prompts` are the kinds
of batches; each `batch_shapes` describes the arrays, and those of text and of conversations are the same.
"""
