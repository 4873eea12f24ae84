"""The commands, one file each: parse, call `app`, render."""
