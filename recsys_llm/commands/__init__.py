"""What the commands of ``recsys-llm`` do, one module each."""
