"""``recsys-llm doctor``: what is wrong with a feature repository, before its users notice."""

from recsys_llm.commands.operations.doctor.examination import examine
from recsys_llm.commands.operations.doctor.findings import Finding, Limits

__all__ = ["Finding", "Limits", "examine"]
