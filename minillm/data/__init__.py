"""Data: tokenizers, and the stories that the bundled models are trained on.

Reading order:

    bpe              learn merges from words, apply them to a word
    pretokenize      cut a text into words, write bytes as characters
    bpe_tokenizer    BPETokenizer: the two put together, from training to text and back
    tokenizer_json   its file format; bos_eos: what the files beside it say
    tokenizer        the interface of any tokenizer, and load_tokenizer
    stream           decode token by token
    stories/         the corpus
"""

from minillm.data.stream import StreamDecoder
from minillm.data.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

__all__ = ["BPETokenizer", "StreamDecoder", "Tokenizer", "load_tokenizer"]
