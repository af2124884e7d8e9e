"""Compiled code packed into one file that a runner keeps, and that another process unpacks.

`sdopt cache pack FILE` compiles levels and packs what Triton and Inductor stored;
`use` puts such a file in force for this process and its children. What a file holds runs as code:
trust it as you trust code.
"""

from sdopt.compile_cache.place import use

__all__ = ["use"]
