"""What a training loop reads: row r of a run is f(seed, r), so a batch is a pure function of the step.

order            which window of which source row r is: pure index arithmetic
packing          sequences of known lengths into rows of one length
text             pretraining: rows of text, held-out rows, and `Batches`, which reads batches of any mixture ahead
conversations    SFT; and what all chat data has in common: order, proportions, held-out rows
preferences      reward models and DPO
prompts          PPO, GRPO and REINFORCE

`text` and conversations share one form of batch; each `batch_shapes` describes the arrays of its batches.
"""
