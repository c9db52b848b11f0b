"""Where a model loads: one file a program, each with its rules; nothing is loaded to find out.

A rule is a fact with its source in a comment. What the project's own tests prove by loading such a
file says "tested"; what rests on reading the other program's rules says "by its rules"; what is
not known is "unknown".
"""
