"""Conversations as token ids, for any tokenizer that has the control tokens.

chatml  Qwen's format (report §A.1.1): prompts, history truncation, stop sequences; which tokens carry loss in training
react   tools in ReAct form: written into ChatML turns, and read from a model's answer
"""
