"""One file for each revision, numbered in their order."""
