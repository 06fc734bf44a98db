"""Ultralytics trainers, subclassed: the student's and the amplifier's."""
