"""``make bench``: speed and size against the targets, everything in one run on one machine. See ``__main__.py``."""
