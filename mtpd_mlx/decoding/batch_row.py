"""A row of the Batch of MLX: its text is held by the decoder that rounds of several texts go on with, or, where the row has
been alone and another decoder is faster then (rounds over fixed buffers), by that one. Called by batch.py."""

from collections.abc import Callable

from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.speculative.one_by_one import same_text
from mtpd_mlx.speculative.sampling import Sampling

FREE = 2  # decoders of rows that are alone no longer, which the next such row takes


class Alone:
    """`open_decoder`: a decoder of one text that samples so; opening one may take long, so they are used again."""

    def __init__(self, open_decoder: Callable[[Sampling], Decoder | PlainDecoder], first: Decoder | PlainDecoder):
        self._open = open_decoder
        self._free: list[tuple[Sampling, Decoder | PlainDecoder]] = [(Sampling(), first)]

    def take(self, sampling: Sampling) -> Decoder | PlainDecoder:
        for place, (known, decoder) in enumerate(self._free):
            if same_text(known, sampling):
                del self._free[place]
                return decoder
        return self._open(sampling)

    def give(self, sampling: Sampling, decoder: Decoder | PlainDecoder) -> None:
        decoder.rewind_to(0)
        self._free = [(sampling, decoder), *self._free][:FREE]


class Row:
    """alone: None where the row's own decoder is as fast as any."""

    def __init__(self, sampling: Sampling, decoder: ChoosingDecoder, alone: Alone | None):
        self.sampling, self._decoder, self._alone = sampling, decoder, alone
        self._other: Decoder | PlainDecoder | None = None  # what holds the text, while it is not the decoder

    @property
    def length(self) -> int:
        return self._decoder.length if self._other is None else self._other.length

    @property
    def at_home(self) -> bool:
        """The row's own decoder has the text."""
        return self._other is None

    @property
    def ready(self) -> bool:
        """A round can go on with the caches as they are: nothing was taken back, and the text is at home."""
        return self.at_home and self._decoder.settles_at_once

    @property
    def decoder(self) -> ChoosingDecoder:
        """The row's own decoder, which has the text from now on."""
        if self._other is not None:
            assert self._alone is not None
            other, self._other = self._other, None
            _move(other, self._decoder)
            self._alone.give(self.sampling, other)
        return self._decoder

    def by_itself(self) -> ChoosingDecoder | Decoder | PlainDecoder:
        """The decoder to drive while the row is alone, which has the text from now on."""
        if self._alone is None:
            return self._decoder
        if self._other is None:
            other = self._alone.take(self.sampling)
            _move(self._decoder, other)
            self._other = other
        return self._other


def _move(holder: Decoder | PlainDecoder, to: Decoder | PlainDecoder) -> None:
    """The text of `holder` goes on in `to`."""
    host = holder.settled()
    if host.tokens:
        to.resume(list(host.tokens), host.caches, host.head_caches)
    else:
        to.rewind_to(0)
    if holder is not to:
        host.clear()
