"""Data sets: real formats in, YOLO format out, and scenes drawn here."""
