"""Rollouts on disk: shards of whole episodes, random windows of them, cached encodings, and the policies that fill them."""
