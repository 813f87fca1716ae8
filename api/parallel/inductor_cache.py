"""Where inductor caches what it compiles for programs: in the user's private directory."""

from __future__ import annotations

import os

from ...ir.plan.program import Kernels


def use_inductor_cache(kernels: Kernels) -> None:
    """Keep inductor's kernels beside those of compressors, unless its own variable names a folder.

    Its default is a folder that all users of the machine can write to. Raises BuildError where the
    private directory is not the user's alone.
    """
    from ...runtime.compression.backends.native import cache_directory, private

    if kernels == "inductor" and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache_directory().parent / "inductor"
        private(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
