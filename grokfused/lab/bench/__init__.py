"""Measures optimizer steps: cases, who takes them, how they are timed, and what is made of the times.

The command is ``grokfused bench``; ``bench/`` in the repository holds a pytest-benchmark suite over the same
cases and implementations, and the runs that were recorded.
"""
