"""The reference ranker and how it is judged: examples, inputs, DCN-v2, full-catalogue evaluation."""
