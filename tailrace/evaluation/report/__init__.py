"""A run as one HTML file: figures, pictures and all samples to browse, with nothing that is loaded from elsewhere.

``page`` puts it together from ``report.html``, ``report.css`` and ``report.js``, which are beside it.
"""

from tailrace.evaluation.report.page import render, write

__all__ = ["render", "write"]
