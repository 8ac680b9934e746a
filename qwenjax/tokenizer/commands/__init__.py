"""The subcommands of `python -m qwenjax.tokenizer`, a module each; see `qwenjax.common.command_line` for their form."""
