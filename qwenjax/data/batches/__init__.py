"""What a training loop reads: row r of a run is f(seed, r), so a batch is a pure function of the step.

order        which window of which source row r is: pure index arithmetic
packing      items of known lengths into bins of one capacity
text         pretraining rows, batches read ahead, held-out rows
mixture      what the three kinds of chat data have in common: order, proportions, held-out rows
conversations, preferences, prompts    what SFT; reward models and DPO; PPO, GRPO and REINFORCE read
"""
