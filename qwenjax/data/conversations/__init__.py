"""Chat, preference and prompt data: one schema, and other formats converted to it (docs/data.md).

schema      rows of the three kinds, and their validation
files       reading and writing rows
turns       turns, calls and tools of other formats, parsed into ours
formats     the known formats, row by row
convert     files of any known format to one of our schema, with counts of every row's fate
docstrings  the standard library's docstrings as rows
encode      rows to token ids and loss masks
store       encodes a file once, into a folder; folder reads it
"""
