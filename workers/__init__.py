"""The Celery app and its tasks: provider calls, streaming, lease renewal, the ledger drain.

Nothing imports this room: work reaches it by Celery task name.
"""
