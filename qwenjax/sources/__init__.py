"""Documents in: from files, folders, TensorFlow Datasets, Hugging Face. Knows no tokenizer."""
