"""Keeping a feature repository well: repair, compact, forget, doctor."""
