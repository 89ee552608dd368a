"""Shards of a release on several machines: handed out as a commit, made by runs of their own, collected by hashes."""
