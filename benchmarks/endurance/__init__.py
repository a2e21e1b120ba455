"""Long and large: 200 sessions of 5 classes, 100,000 images in a table, 200 runs in one folder.

``python -m benchmarks.endurance`` measures seconds, memory, file handles, temporary files and bytes, says what grows
faster than it may, and ends with status 1 where something does. The numbers stand in docs/reliability.md.
"""
