"""Reinforcement learning from scores: tasks ppo, grpo and reinforce. `task.RL` is what the loop runs."""
