"""Other people's next-item models, run in an environment of their own (``make peers``)."""
