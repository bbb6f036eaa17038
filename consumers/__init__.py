"""Work out: finding a completion, following its chunk log live or late, collecting it."""
