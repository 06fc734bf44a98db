"""What is said about a model: its figures, and how far an exported file is from it."""
