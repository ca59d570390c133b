"""What measures and compares this project; nothing here is part of the installed package."""
