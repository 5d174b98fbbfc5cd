"""What libraries say as they are imported, kept out of our own processes' output."""

from __future__ import annotations

import logging

# diffusers imports torchao and bitsandbytes wherever they are installed. They then name their own kernels that this
# machine cannot load, which no user asked for, and what of torch they should call in another way.
_LOGGERS = ("torchao", "bitsandbytes", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def quieten_quantizers() -> None:
    """Has the libraries that quantise say errors alone. Must be called before diffusers is imported."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
