"""Rollouts on disk: shards of whole episodes, random windows of them, cached encodings, policies that fill them."""
