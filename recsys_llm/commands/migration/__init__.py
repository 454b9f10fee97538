"""``recsys-llm migrate``: from one version of a view to the next, without ever mixing the two."""
