"""Users and passwords of addresses are in no message, however they are written."""

from __future__ import annotations

import warnings

import pytest

from pipeline.errors import Notice, UserError, command_line, masked
from pipeline.settings import Section, Source

ADDRESSES = [
    "https://me:secret@host/a.jpg",
    "HTTPS://me:secret@HOST/a.jpg",
    "https://secret@host/a.jpg",
    "https://a.secret@host.org/a.jpg",
    "https://me:se/cret/secret@host/a.jpg",
    "https://me:se@cr/et@secret@host/a.jpg",
    "https://me:#secret?@host/a.jpg",
    "https://me:my secret@host/a.jpg",
    "https://my name:a secret @host/a.jpg",
    "https://me:p%40%2Fsecret@host/a.jpg",
    "https://me:12/secret@host/a.jpg",
    "https://to/secret@host/a.jpg",
    "https://:secret@[::1]:80/a.jpg",
    "https://me@mail.org:secret@host/a.jpg",
    f"https://me:{'secret' * 1000}@host/a.jpg",
    "https:/me:secret@host/a.jpg",
    "https:\\\\me:secret@host/a.jpg",
    "https%3A//me:secret@host/a.jpg",
    "//me:secret@host/a.jpg",
    "me:secret@host/a.jpg",
    "ssh://git:secret@host/a.git",
    "s3://key:secret@bucket/a.jpg",
    "https://me:a\nsecret@host/a.jpg",
]
HARMLESS = [
    "https://cdn.host.org/npm/package@1.0/a@2x.png",
    "https://host.org/a.jpg?token=abc&mail=me@host.org",
    "http://127.0.0.1:8000/a.jpg",
    "http://localhost/a@2x.jpg",
    "package:skimage/data/a@2x.png",
    "data/own/a@2x.png",
    "data/own/12:30@home.png",
    "~/pictures/me@home.jpg",
    "/data/me@home/a.jpg",
]


class WithSource(Section):
    """A section with a source."""

    source: Source


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
def test_user_and_password_are_masked_and_refused(address: str) -> None:
    for text in (
        repr(address),
        f"image 'a' from {address!r}: {address!r} answered 404. Write to me@host.org",
        f"[{address!r}, {address!r}]",
        f"Failed to parse: ({address!r})",
    ):
        for shown in (masked(text), str(UserError(text)), str(Notice(text))):
            assert "secret" not in shown
            assert "…@" in shown
    if "\n" not in address:
        assert "secret" not in str(UserError(f"{address}: there is no file {address}"))
    with pytest.raises(ValueError, match="with a user or a password in it is refused"):
        WithSource(source=address)


@pytest.mark.parametrize("address", HARMLESS)
def test_address_without_user_is_shown_and_taken(address: str) -> None:
    for text in (address, f"{address} answered 404", f"no file {address!r}: correct it"):
        assert masked(text) == text
    assert WithSource(source=address).source == address


LONG = ["://" * 99999 + " @", "a:" * 99999, "@ " + "a:" * 99999, "'" * 99999 + "@", "a." * 99999]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_masking_takes_linear_time(text: str) -> None:
    """Never timed: where it is quadratic, this takes minutes."""
    masked(text)


def test_notice_is_a_plain_line_and_other_warnings_are_as_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        warnings.simplefilter("always")
        warnings.warn(Notice("a.png: its end is missing"), stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)

    before = warnings.showwarning
    with pytest.warns(UserWarning, match="another"), pytest.raises(SystemExit):
        command_line(main)
    assert warnings.showwarning is before
    assert capsys.readouterr().err == "warning: a.png: its end is missing\n"
