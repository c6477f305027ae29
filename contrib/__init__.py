"""Which frameworks have an adapter of ours?"""
