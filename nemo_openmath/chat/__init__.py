"""The one place that knows how a conversation is written: prompts, tags, tool blocks, token ids and who made them.

transcript.py       a conversation: spans by author, segments for the reader
encode.py           a transcript as token ids with its loss mask
tokenizer.py        a model's tokenizer; chat_template.py: its template; same_tokenizer.py: whether two are one
prompts.py          the prompts as shipped, or the user's own files of them
blocks.py           the blocks between the model's own words
model_files.py      JSON files of a model folder
"""

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
