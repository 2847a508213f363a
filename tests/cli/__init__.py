"""The command `limpyd-jobs`: in this process where that will do, in a terminal where it draws."""
