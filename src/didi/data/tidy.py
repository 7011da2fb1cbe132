"""Repairs of prose: uniform quotation marks, dashes and blanks, and the errors of a news archive."""

import html
import re
import unicodedata

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″", '"'),
        **dict.fromkeys("‐‑−", "-"),
        **dict.fromkeys("‒―", "—"),
        "…": "...",
        "\t": " ",
        "\r": "\n",
    }
)
_BLANKS = re.compile(r"[^\S\n]+")
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")

# Names with letters that the news archive lost, where the original is unambiguous.
_LOST = {
    "Sinn F��in": "Sinn Féin",
    "F��il": "Fáil",
    "D��il": "Dáil",
    "Garda��": "Gardaí",
    "garda��": "gardaí",
    "S��och��na": "Síochána",
    "Gr��co": "Gréco",
}
# The archive changed the letter after a lost quotation mark, by a rule that is not one to one.
_OPENINGS = {
    r'"g(?=h(?:a[tn]|e|is|rough|oroughly|ug)|wo\b)': '"t',
    r'"l(?=ery\b)': '"v',
    r'"T(?=y\b|ost\b|aybe\b|eet\b|uslim|any\b)': '"M',
    r'"A(?=nly\b|bvious|ur\b|bsolete|nce\b|pen\b|ffensive|ver[a-z]{4})': '"O',
    r'"L(?=ave\b|uman|er\b|ero\b|orrend)': '"h',
    r'"H(?=ederal|or\b|eminist)': '"F',
    r'(?<=[a-z] )"A(?= [a-z])': '"a',
}
# The headline of another article if it can be separated from the next sentence, else only "READ MORE:".
_STARTS = "In|The|On|But|He|She|It|They|We|At|An|As|For|After|While|When|If|This|That|There|According"
_READ_MORE = re.compile(rf"READ MORE:(?: [^.!\"]{{5,90}}?(?=[?]? (?:(?:{_STARTS})\b|\"|$)))?[?]?")
_BOILERPLATE = re.compile(
    r"Send Facebook Twitter Google\+ .*?Permalink http://\S+|"  # buttons inside a text
    r"https?://\S*|pic\.twitter\.com/\S+|www\.\S+|Media playback is not supported on this device|"
    r"Source:[ -].*?news (?:agency|agencies)|"
    r"Share this slide:.*$|Do you have information you want to share with the Huffington Post\?.*$|"
    r"The views expressed in this article are the author's own.*$|The views do not necessarily reflect those of.*$|"
    r"Follow us on Facebook, on Twitter.*$|\bShare this with\b|"
    r"\([A-Za-z ]*(?:China Daily|Xinhua)[^()]*\)\s*$|\S+@\S+\.(?:com|cn|uk|org)\b(?:\.\w+)?"
)


def tidy(text: str) -> str:
    """Prose with uniform typography: NFC, straight quotation marks, spaced dashes, single blanks, separate paragraphs.

    Args:
        text: a document; a blank line ends a paragraph.

    Returns:
        The document with its wrapped lines joined, one blank line between paragraphs.
    """
    text = unicodedata.normalize("NFC", html.unescape(text)).replace("``", '"').replace("''", '"')
    text = _UNSEEN.sub("", text.replace("\x85", "...").translate(_PLAIN))
    return "\n\n".join(
        paragraph for block in re.split(r"\n\s*\n", text) if (paragraph := _paragraph(" ".join(block.split("\n"))))
    )


def _paragraph(text: str) -> str:
    text = _BLANKS.sub(" ", text).strip()
    text = re.sub(r"(?:\. ?){2,}\.", "...", text)  # an ellipsis, with or without spaces
    text = re.sub(r"(?<!\.)\.\.(?!\.)", ".", text)
    text = re.sub(r"([-_=*~])\1{2,}", " ", text)  # horizontal rules
    text = re.sub(r"(?<=\d)–(?=\d)", "-", text)
    text = re.sub(r" ?(?:--|[—–]) ?", " — ", text)
    text = re.sub(r" +([,;:?!)\]]|\.(?![.\w]))", r"\1", text)
    text = re.sub(r"([(\[]) +", r"\1", text)
    text = re.sub(r"\(\)|\[\]", "", text)
    text = re.sub(r",(?: ?,)+", ",", text)
    text = re.sub(r"^[\s,;:]+|^\.\s+", "", text)
    return _BLANKS.sub(" ", text).strip()


def mend_news(text: str) -> str:
    """An article of ``news`` with its original characters, where they can be inferred.

    The archive lost all characters that are not ASCII: closing quotation marks, apostrophes and dashes became a
    quotation mark with a question mark, non-breaking spaces a hyphen, accented letters a replacement character.

    Args:
        text: an article.

    Returns:
        The article without buttons, addresses and notes on its source; empty if letters cannot be recovered.
    """
    for damaged, original in _LOST.items():
        text = text.replace(damaged, original)
    text = re.sub(r'"�\??', '"', text)
    if "�" in text or re.search(r"(?<=[a-zA-Z])\?(?=[a-z])", text):
        return ""
    text = _BOILERPLATE.sub(" ", text)
    text = _READ_MORE.sub("", text)
    text = re.sub(r'"(?=(?:t|s|re|ve|ll|d|m)\b)(?<=[a-zA-Z]")', "'", text)  # doesn"t
    text = re.sub(r'([,.!?])"\?\s*', r'\1" ', text)
    text = re.sub(r'((?:^|[\s(])"[^"\n]{1,200}[\w)%])"\?\s*', r'\1" ', text)  # closes an opened quotation
    text = re.sub(r'(?<=s)"\?\s*', "' ", text)  # teachers"?unions
    text = re.sub(r'\s"\?\s*', " — ", text)
    text = text.replace('"?', '" ')
    text = re.sub(r'" " ?(?=[a-z])', '" — ', text)
    text = re.sub(r"\b([Yy]ou|[Tt]hey|[Ww]e)'r\b", r"\1're", text)
    text = re.sub(r"\b([Yy]ou|[Tt]hey|[Ww]e)'re (?=(?:got|been|had|seen|done|gone|always been)\b)", r"\1've ", text)
    text = re.sub(r"(?<=[\w.,:;!?\")])- (?!and\b|or\b|to\b)", " ", text)
    text = re.sub(r"(?<= )-(?=[a-zA-Z])|(?<=[.!?,])-(?=[\w\"])", " ", text)
    text = re.sub(r"(?<=[.!?]) (?:—|-) (?=[\"A-Z])", " ", text)
    return re.sub(r'" ([,.;:])', r'"\1', _openings(text))


def _openings(text: str) -> str:
    """Repair the letter after an opening quotation mark, where the original is unambiguous."""
    for damaged, original in _OPENINGS.items():
        text = re.sub(damaged, original, text)
    text = re.sub(r'(?<=[.!?] )"[a-z]', lambda match: match[0].upper(), text)
    return re.sub(r'(?<= )"[a-z](?=\w* (?:of |the |and )?[A-Z])', lambda match: match[0].upper(), text)


def mend_brown(text: str) -> str:
    """A text of the Brown corpus with closing quotation marks as in print, without codes for degrees."""
    text = re.sub(r"\*&?0(?=[ FC-])", "", text)  # a sign for degrees
    return re.sub(r'" ?--(?=\s*(?:\n|$))', '--"', re.sub(r'"([?!])(?=\s|$)', r'\1"', text))
