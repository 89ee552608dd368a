"""What an encoder is judged by. A task is a block of ``<line>.tasks``; a kind of task is a module of this room."""
