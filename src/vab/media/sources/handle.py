"""What is given as media, opened when it is first needed: as an image, a film, or a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vab.media.clock import may_restart
from vab.media.container import MediaError, Opener, OpenFile, open_media
from vab.media.image import open_image, read_pixels, upright_size
from vab.media.muxing import tags
from vab.media.sources.film import Film, is_moving, moving_film
from vab.media.sources.given import InMemory
from vab.utils.remote import NamedBytes, RemoteFile


@dataclass(frozen=True)
class Header:
    """What a file says of itself before a pass has read it."""

    has_video: bool = False  # other than cover art or one frame beside longer sound
    has_audio: bool = False
    sound_found: bool = False  # True: the audio is known not to be empty
    seconds: float = 0.0  # 0 if it does not say
    size: tuple[int, int] = (0, 0)  # width, height: of an image upright, of a video not
    codec: str = ""  # of the video
    sound_end: float | None = None  # seconds on the container's clock
    audio_format: tuple[int, str] = (0, "")  # sample rate, and layout as FFmpeg calls it
    may_restart: bool = False  # its clock, in the middle
    made_with: dict[str, Any] | None = None


class Handle:
    """A source of media; a container that is open and in no pass is kept for the next one.

    Every method raises ``MediaError`` for a file that is missing, a folder, empty, or not media.
    """

    def __init__(self, source: Path | RemoteFile | InMemory) -> None:
        # A file has nothing in memory. Of what is no local file the path is a name, and leads nowhere.
        memory = source if isinstance(source, InMemory) else InMemory(str(source))
        self.path = Path(memory.name)
        self._source = source
        self._still = memory.image
        self._film = memory.film
        self._sound_beside = memory.film is not None and memory.content is not None
        self._image: Image.Image | None = None  # open, its pixels not read yet
        self._idle: list[OpenFile] = []  # one at most

    @cached_property
    def _opener(self) -> Opener | None:
        """What opens a source that is no local file."""
        if isinstance(self._source, RemoteFile):
            return self._source.opener(MediaError)
        content = self._source.content if isinstance(self._source, InMemory) else None
        return None if content is None else partial(NamedBytes, content, str(self.path))

    def close(self) -> None:
        """Let go of the open file."""
        while self._idle:
            self._idle.pop().container.close()
        if self._image is not None:
            self._image.close()
            self._image = None

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of a still image, upright; None for all else. A moving image is a film."""
        if self._film is None and self._still is None:
            self._image = open_image(self.path, self._opener)
        if self._image is not None and is_moving(self._image):  # what FFmpeg does not read
            self._image.close()
            self._image = None
            self._film = moving_film(self.path, self._opener)
        still = self._still or self._image
        return None if still is None else upright_size(still)

    @property
    def film(self) -> Film | None:
        """The picture, if it is no stream of a container: frames in memory, or a moving image."""
        return self._film if self.image_size is None else None

    @property
    def has_container(self) -> bool:
        """False for an image, and for a film without sound."""
        return self.image_size is None and (self._film is None or self._sound_beside)

    @cached_property
    def header(self) -> Header:
        """The facts that can be told at once."""
        if self.image_size is not None:
            return Header(size=self.image_size)
        if self.film is not None:
            sound = self._container_header() if self._sound_beside else Header()
            size = self.film.size()
            return replace(
                sound, has_video=True, sound_found=True, seconds=self.film.nominal_seconds, size=size
            )
        return self._container_header()

    def _container_header(self) -> Header:
        """The facts of a container, which stays open for the first pass."""
        file = self._open()
        file.drop_cover(self._open)
        made_with = tags.unpack(file.container.metadata)
        if file.audio is not None:
            made_with = made_with or tags.unpack(file.audio.metadata)  # as Ogg has it
        sound = None if file.audio is None else file.audio.codec_context
        context = None if file.video is None else file.video.codec_context
        self._idle.append(file)
        return Header(
            file.video is not None,
            file.audio is not None,
            file.sound_found,
            file.nominal_seconds,
            (0, 0) if context is None else (context.width, context.height),
            "" if context is None else context.codec.canonical_name,
            file.nominal_sound_end,
            (0, "") if sound is None else (sound.sample_rate, sound.layout.name),
            may_restart(file.container),
            made_with,
        )

    @contextmanager
    def lend(self, seek: bool = False, fresh: bool = False) -> Iterator[OpenFile]:
        """Lend the open file for one pass, at its beginning unless the pass is going to ``seek``.

        ``fresh``: no pass may have used it. Passes may overlap: while one has the open file, another opens
        it again.
        """
        # 1. Take the idle file if it can be used again, else open another.
        file = self._idle.pop() if self._idle else None
        if file is not None and file.used and (fresh or not file.reset(rewind=not seek)):
            file.container.close()
            file = None
        if file is None:
            file = self._open()

        # 2. Keep it for the next pass, unless it cannot rewind or another pass has left one.
        file.used = True
        try:
            yield file
        finally:
            if file.can_rewind and not self._idle:
                self._idle.append(file)
            else:
                file.container.close()

    def _open(self) -> OpenFile:
        return OpenFile(open_media(self.path, self._opener))

    def read_image(self, size: int | None) -> np.ndarray:
        """The pixels of a still image, uint8 [H,W,3]; ``size`` as in ``image.read_pixels``."""
        image = self._image or self._still or open_image(self.path, self._opener)
        self._image = None  # reading closes it
        if image is None:
            raise MediaError(f"{self.path}: is no longer an image")
        return read_pixels(self.path, image, size)
