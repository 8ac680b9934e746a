"""Vocabularies made and compared (report §2.2).

    train        documents -> a sentencepiece model, or byte-level BPE that continues another vocabulary
    extend       a list of words -> extra tokens for a vocabulary that exists
    compression  Figure 3: tokens per language of any vocabularies, relative to one of them
    figure       the same as bars

Learning merges is `text/merges.py`; reading other people's vocabularies `text/foreign.py`. This file imports nothing.
"""
