raise KeyError("not importable")
