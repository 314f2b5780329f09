"""Training a transformer on codes: `codeprior.training.loop.train` is the verb, the other files are what it needs."""
