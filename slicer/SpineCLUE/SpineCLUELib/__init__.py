"""The parts of the module that need no 3D Slicer: which command is run, and what it left behind."""
