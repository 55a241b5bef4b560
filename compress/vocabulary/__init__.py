"""Leaving out tokens that a corpus never uses; `compress.vocabulary.trim.trim_vocabulary` is the way in."""
