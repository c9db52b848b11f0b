"""What runs in a process of its own, maybe under another interpreter.

`child_main.py` is the script; it loads `run_NAME.py` by its path and calls its `quantize`. Only
`run_bcquant.py` imports bcquant.
"""
