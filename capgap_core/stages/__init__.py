"""One file per stage: its recipe, its inputs and ``run``, which only writes into ``out_dir``."""
