"""The tour that ``tailrace demo`` gives: questions through the queue, live and cut and resumed streams, a table."""
