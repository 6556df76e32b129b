"""Our numbers beside the published ones: takes the public tables, gives one page; a file per paper."""
