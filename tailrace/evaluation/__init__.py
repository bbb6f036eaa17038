"""Evaluation runs: a dataset × prompts × models × samples, fanned out as batches, scored and reported.

A run is a folder of files; nothing of it is kept elsewhere but the completions that the server keeps anyway. Everything
here speaks HTTP through ``tailrace.Client``. Needs the extra ``tailrace[eval]``.
"""
