"""Manifests, comparison, plans, digests and the pull: what a load does, whatever the bytes travel over."""
