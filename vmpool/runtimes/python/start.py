"""Starts the runtime as a module: a program is compiled at every start, a module only once (runtimes.Compile). Its name
and folder are taken back, because a function may have a module of that name."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import runtime

del sys.modules["runtime"], sys.path_importer_cache[sys.path.pop(0)]
runtime.main()
