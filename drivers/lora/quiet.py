"""A link that is up and hears nothing says so, and takes it back when something comes."""

from collections.abc import Callable

from gateway.sdk.driver import Context


class Quiet:
    """Watches whether anything comes in at all.

    Args:
        after_s: without anything for so long it is said.
        say: told text and remedy; ("", "") takes them back. Default: the remark of the link.
    """

    def __init__(
        self, context: Context, after_s: float, text: str, remedy: str, say: Callable[[str, str], None] | None = None
    ) -> None:
        self._context, self._after_s, self._text, self._remedy = context, after_s, text, remedy
        self._say = say or (lambda text, remedy: context.note("", text, remedy))
        self._heard_s = context.monotonic_s()
        self._said = False

    def heard(self) -> None:
        """Something came, readable or not."""
        self._heard_s = self._context.monotonic_s()
        if self._said:
            self._said = False
            self._say("", "")

    def look(self) -> None:
        """Say it when it is time."""
        if not self._said and self._context.monotonic_s() - self._heard_s > self._after_s:
            self._said = True
            self._say(self._text, self._remedy)
