"""The stages with one loss: pretraining, fine-tuning, reward models, DPO. `train.rl` has the others."""
