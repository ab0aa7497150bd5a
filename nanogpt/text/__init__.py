"""Text as a model sees it: corpora, characters as ids, windows."""
