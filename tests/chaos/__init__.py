"""`make chaos`: a stack whose parts are killed, stopped and restarted under load, and the count after it."""
