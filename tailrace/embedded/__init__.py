"""The embedded stack: every process of Tailrace on this machine, started, watched and stopped together."""
