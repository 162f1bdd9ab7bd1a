"""The exercises, one file each: book.py says what is in one."""
