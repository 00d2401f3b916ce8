"""The studies of docs/results.md: data made ready for them, and what is read from their finished runs."""
