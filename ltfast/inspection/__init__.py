"""Looks at a data set before anything is trained: counts, sizes, unreadable files, duplicates, and suggestions.

Each file has one kind of finding; `ltfast.inspection.look` collects them, and `text` and `picture` show them.
"""
