"""Numbers that the report and the releases published, which tables of ours stand beside."""

# Table 3: perplexity by window length, on arXiv papers that were not published. The rows with T = 8192 and of 72B are
# from the README of the releases.
TABLE_3 = {
    "Qwen-7B (T=2048)": {
        "plain": {1024: 4.23, 2048: 3.78, 4096: 39.35, 8192: 469.81, 16384: 2645.09},
        "+ ntk": {1024: 4.23, 2048: 3.78, 4096: 3.59, 8192: 3.66, 16384: 5.71},
        "+ ntk + logn": {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.56, 16384: 4.62},
        "+ ntk + logn + window": {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.49, 16384: 4.32},
    },
    "Qwen-14B (T=2048)": {
        "plain": {2048: 3.46, 4096: 22.79, 8192: 334.65, 16384: 3168.35},
        "+ ntk + logn + window": {2048: 3.46, 4096: 3.29, 8192: 3.18, 16384: 3.42},
    },
    "Qwen-1.8B (T=8192)": {
        "plain": {1024: 5.00, 2048: 4.48, 4096: 4.13, 8192: 3.89, 16384: 17.42, 32768: 433.85},
        "+ ntk + logn + window": {1024: 5.00, 2048: 4.48, 4096: 4.14, 8192: 3.93, 16384: 3.82, 32768: 3.83},
    },
    "Qwen-7B (T=8192)": {
        "plain": {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.31, 16384: 7.27, 32768: 181.49},
        "+ ntk + logn + window": {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.33, 16384: 3.22, 32768: 3.17},
    },
    "Qwen-72B (T=32768)": {"plain": {8192: 2.83, 16384: 2.73, 32768: 2.72}},
}

# Table 4: accuracy in percent of the preference model after pretraining (PMP) and of the reward model (RM). The report
# does not state the size of the model.
TABLE_4 = {
    "Qwen Helpful-base": (62.68, 74.78),
    "Qwen Helpful-online": (61.62, 69.71),
    "Anthropic Helpful-base": (76.52, 73.98),
    "Anthropic Helpful-online": (65.43, 64.57),
    "OpenAI Summ.": (69.60, 69.99),
    "Stanford SHP": (60.05, 60.10),
    "OpenAI PRM800K": (70.59, 70.52),
}
