"""Work in: resolving a request, accepting it, putting its Celery message."""
