"""Chat, preference and prompt data: one schema, and everybody else's formats into it (docs/data.md).

schema   rows of the three kinds, and their validation
files    reading and writing them
turns    other people's turns, calls and tools, as ours
formats  the formats that are known, row by row
convert  files of any of them to one of ours, with an account of every row
"""
