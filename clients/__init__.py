"""What stands between people and the server: the HTTP front with its page, batches of requests, and the demo.

The Python client that all of them use is a package of its own, in `python/`; what runs elsewhere has folders of its own
too (`typescript/`, `comfyui/`).
"""
