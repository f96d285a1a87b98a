"""The one place that knows how a conversation is written: prompts, tags, tool blocks, token ids and who made them."""

from nemo_openmath.chat.encode import Encoded, encode, encode_many
from nemo_openmath.chat.prompts import Template, load_template
from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.chat.transcript import OPENING, Author, Kind, Segment, Span, Transcript
from nemo_openmath.core.tokenizer import RENDERED, Message

__all__ = [
    "OPENING",
    "RENDERED",
    "Author",
    "ChatTokenizer",
    "Encoded",
    "Kind",
    "Message",
    "Segment",
    "Span",
    "Template",
    "Transcript",
    "encode",
    "encode_many",
    "load_template",
]
