"""Documents in: from files, folders, TensorFlow Datasets, Hugging Face. Knows no tokenizer.

documents    what there is to read, cut into slices; reading them
slices       Document, Slice, Report; from rows to documents
files        readers of files, one per format
records      readers of data sets by row number
arguments    the command-line options of reading
"""
