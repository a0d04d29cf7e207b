"""Images as bits: lossless by bits-back coding, through a denoiser's noise levels."""

from sfumato.codec.container import Container, Header
from sfumato.codec.lattice import Asker, Lattice
from sfumato.codec.lossless import Lossless

__all__ = ["Asker", "Container", "Header", "Lattice", "Lossless"]
