"""The clients that the generator drives: one file per way of asking.

Each is built from a `Command` and a `Window`, starts its connections, and tells the window what
completed. None of them opens the window or reads a CPU clock: `loadtest.generator` does.
"""
