"""How every view shows a token."""

from ..text import Tokenizer, visible


def token_label(tokenizer: Tokenizer | None, token: int) -> str:
    """The text of a token with nothing hidden in it; its id where there is no text for it."""
    if tokenizer is None or token >= tokenizer.size:
        return f"#{token}"
    return visible(tokenizer.piece(token))
