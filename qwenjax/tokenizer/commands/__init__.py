"""The subcommands of `python -m qwenjax.tokenizer`, a module each; see `qwenjax.cli` for their form."""
