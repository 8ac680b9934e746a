"""The data commands, a module each: its docstring and `EXAMPLES` are the help, `arguments` and `run` the work."""
