"""Deliberate mistakes, as data, and the command that shows that the tests notice each of them.

``tests/mutants/<part>.yaml`` lists mistakes, each with the promise that it breaks and the tests that must fail on it:

    - name: centre-never-moves
      file: components/pretrain/objectives/dino.py
      old: exact text, once in the file
      new: the text that replaces it
      tests: [tests/unit/test_pretrain_objectives_dino.py]
      promise: the teacher's centre follows the batches, so that no prototype takes all
"""
