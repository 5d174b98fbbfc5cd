"""What the README's numbers come from, with memory as the server's models have it."""

import os

from plugin.ops.huge_pages import ask_for_huge_pages
from plugin.quiet import quieten_quantizers

quieten_quantizers()
ask_for_huge_pages(os.environ)  # here, because torch reads what it says once, before anything else can
