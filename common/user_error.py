"""The base of the errors that a user can cause, whose message is all that is shown of them."""


class UserError(Exception):
    """Something that the user has to change; the message names it and says how."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in the place of the traceback, as the command line does."""
        return [f"error: {self}"]
