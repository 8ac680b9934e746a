"""What an experiment takes on a TPU slice, found by compiling its step here.

topology  slices by name: devices to compile for, and what a chip can do
hlo       a compiled program's costs, read from its text
estimate  the experiment's step compiled and priced
report    the result for people and for machines
command   the command line
"""
