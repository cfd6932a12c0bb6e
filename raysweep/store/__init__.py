"""Finished stages and trial records, by id, on a disk or in a bucket; it alone knows a path."""
