"""Pure shapes and rules, with no I/O: requests, chunks, log items, key names, fingerprints, errors, tables.

Every other room builds on this one and it builds on none of them, so all of it is tested with plain values.
"""
