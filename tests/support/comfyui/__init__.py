"""A stand-in of the interface that ComfyUI documents for custom nodes, for tests: ComfyUI itself is under the GPL.

It is written from ComfyUI's public documentation; each part names its page on docs.comfy.org (August 2026). Where a
page is silent, the part says so and what it does instead. What it cannot show: that ComfyUI does what its pages say,
how its page in the browser draws and converts values, and whatever the pages leave out.
"""
