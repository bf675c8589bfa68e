"""Starts the runtime as a module: a program is compiled at every start, a module only once (runtimes.Compile). It takes
the place of this program, because a function may have a module of its name."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import runtime

sys.modules["__main__"] = sys.modules.pop("runtime")
del sys.path_importer_cache[sys.path.pop(0)]
runtime.main()
