"""Compiled code packed into one file that a runner keeps, and that another process unpacks.

`python -m sdopt.compile_cache pack FILE` compiles levels and packs what Triton and Inductor stored;
`use` puts such a file in force for this process and its children. What a file holds runs as code:
trust it as you trust code.
"""

from sdopt.compile_cache.archive import Manifest, pack, read
from sdopt.compile_cache.identity import made_here, misfit
from sdopt.compile_cache.place import pointed_at, use

__all__ = ["Manifest", "made_here", "misfit", "pack", "pointed_at", "read", "use"]
