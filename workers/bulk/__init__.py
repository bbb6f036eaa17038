"""What becomes of batches: their rows are checked, dealt in slices, sent, and written to files."""
