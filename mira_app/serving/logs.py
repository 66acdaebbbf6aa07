"""What the server says of itself, as text or as JSON, one object a line; secrets are taken out before it is written."""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import quote

import param

FORMATS = ("text", "json")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = ("mira_app", "mira_core")
HANDLE_THEMSELVES = ("panel.io.logging", "bokeh.util.logconfig", "optuna.logging")  # modules that set up their logger
HIDDEN = "***"
SHORTEST = 6  # letters of a secret; shorter ones are in too many words

# Repetitions are bounded, so that a request that is made to be slow is not.
_NAMES = r"[\w.-]{0,40}(?:token|secret|passw(?:or)?d|api[_-]?key|session-id)|code|state|sig|signature"
_PATTERNS = (
    # ?token=..., also in an address that is a part of another: %3Ftoken%3D...
    (rf"((?:[?&;]|%(?:25)?(?:3F|26))(?:{_NAMES})(?:=|%(?:25)?3D))(?:(?!%(?:25)?26)[^\s&;#\"'<>)])+", rf"\1{HIDDEN}"),
    # postgresql://user:...@host; a password may hold an @
    (r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@\"']{0,200}):[^\s\"'<>]{0,500}@", rf"\1:{HIDDEN}@"),
    # headers, as they are sent and as Python shows them, to the end of the value
    (r"(\b(?:(?:proxy-)?authorization|(?:set-)?cookie)(?:['\"]\s{0,4}[:=,]|\s{0,4}[:=])\s{0,4})"
     r"(?:b?'[^']*'|b?\"[^\"]*\"|[^\r\n]+)", rf"\1{HIDDEN}"),
    (r"(\bbearer )[\w.~+/=-]{6,}", rf"\1{HIDDEN}"),
    # password=..., as drivers of databases say it
    (r"((?:password|passwd|secret|token)['\"]?\s{0,4}[=:]\s{0,4})(?:'[^']*'|\"[^\"]*\"|[^\s,;&)\"']+)", rf"\1{HIDDEN}"),
)  # fmt: skip
PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), by) for pattern, by in _PATTERNS)


def set_up(form: str = "text", secrets: Iterable[str] = ()) -> None:
    """Write what is logged to the standard error: of us what is worth knowing, of others what is wrong.

    Parameters
    ----------
    form
        One of `FORMATS`.
    secrets
        What must not be written, wherever it stands; what looks like a secret is hidden anyway.
    """
    # Their loggers write by themselves, past what hides secrets.
    for module in HANDLE_THEMSELVES:
        importlib.import_module(module)
    param.parameterized.logger = param.parameterized.get_logger()  # else it makes another handler when there is none
    for known in list(logging.root.manager.loggerDict.values()):
        if isinstance(known, logging.Logger) and known.handlers:
            known.handlers.clear()
            known.setLevel(logging.NOTSET)
            known.propagate = True
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    handler.addFilter(Hiding(secrets))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


class Hiding(logging.Filter):
    """Takes secrets out of records.

    Parameters
    ----------
    secrets
        Known ones, which are found in any form.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        long = [secret for secret in secrets if len(secret) >= SHORTEST]
        self._known = sorted({*long, *(quote(secret, safe="") for secret in long)}, key=len, reverse=True)
        self._formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, its exception too; let it pass."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # the formatter would print it with all arguments
            message = f"{record.msg} {record.args}"
        record.msg, record.args = self.hide(message), None
        if record.exc_info:
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.hide(record.exc_text)
        if record.stack_info:
            record.stack_info = self.hide(record.stack_info)
        return True

    def hide(self, text: str) -> str:
        """Return a text without its secrets."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        for pattern, by in PATTERNS:
            text = pattern.sub(by, text)
        return text


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if more := "\n".join(part for part in (record.exc_text, record.stack_info) if part):
            told["exception"] = more
        return json.dumps(told)
