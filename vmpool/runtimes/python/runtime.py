"""The Python runtime of Starling: reads calls of one function from file descriptor 3 and answers on 4.

It starts before any code is known (the pool keeps it warm), says ready, learns handler and environment
from the init frame, loads the code, and then answers one call at a time with one read and one write.
The frames are those of vmpool/framed. Only modules that cost little memory are imported here: os reads
and writes the descriptors itself, so that neither socket nor selectors is loaded.

Both are close-on-exec and closed in children made by os.fork. A child that the function made
with other means, and that kept them, can only forge answers of this one instance: the host binds
what it reads to the instance that the pipe belongs to.
"""

import gc
import json
import os
import sys
import time
import types
from binascii import a2b_base64
from importlib import import_module
from struct import Struct

CALLS, ANSWERS = 3, 4
FRAME_MAX = 1 << 20
PART = 512 << 10
INIT, CALL, MORE = 1, 2, 3
READY, INIT_OK, INIT_ERROR, HEAD, CHUNK, END, ANSWER = 15, 16, 17, 18, 19, 20, 21

_header = Struct("<IB")
_call = Struct("<16sIIHHH")
_last = Struct("<IB16sBB")
_head = Struct("<IB16sBQB")
_chunk = Struct("<IB16s")
_binary = ("image/", "audio/", "video/", "application/octet-stream", "application/zip", "application/pdf")

_layers = ("/opt/python/lib/python3.11/site-packages", "/opt/python")  # where layers have modules

_buffer = None
_filled = 0


def _read(need):
    """Reads until need bytes are buffered."""
    global _buffer, _filled
    if len(_buffer) < need:
        _buffer += bytes(need - len(_buffer))
    view = memoryview(_buffer)
    while _filled < need:
        n = os.readv(CALLS, [view[_filled:]])
        if n == 0:
            os._exit(0)  # the host closed the channel: the instance is over
        _filled += n


def _drop(used):
    """Forgets the first used bytes."""
    global _filled
    rest = _filled - used
    if rest:
        _buffer[:rest] = _buffer[used:_filled]
    _filled = rest


def _write(data):
    n = os.write(ANSWERS, data)
    if n == len(data):
        return
    view = memoryview(data)
    while n < len(data):
        n += os.write(ANSWERS, view[n:])


def _frame():
    _read(5)
    length, kind = _header.unpack_from(_buffer)
    _read(4 + length)
    return kind, length - 1


class _Identity:
    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self):
        self.cognito_identity_id = None
        self.cognito_identity_pool_id = None


class _ClientContext:
    __slots__ = ("custom", "env", "client")

    def __init__(self, text):
        fields = json.loads(a2b_base64(text))
        self.custom = fields.get("custom")
        self.env = fields.get("env")
        client = fields.get("client")
        self.client = types.SimpleNamespace(**client) if isinstance(client, dict) else None


class LambdaContext:
    """What a handler gets as its second argument; the fields of AWS Lambda's."""

    function_name = function_version = invoked_function_arn = log_group_name = log_stream_name = ""
    memory_limit_in_mb = "0"
    identity = _Identity()

    def __init__(self, request, deadline, trace, client, content):
        self._request = request
        self._deadline = deadline
        self._client = client
        self.trace = trace
        self.content_type = content

    @property
    def aws_request_id(self):
        h = self._request.hex()
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    @property
    def client_context(self):
        return _ClientContext(self._client) if self._client else None

    def get_remaining_time_in_millis(self):
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def log(self, msg):
        sys.stdout.write(str(msg))


def _document(kind, message, trace=()):
    return json.dumps({"errorMessage": message, "errorType": kind, "stackTrace": list(trace)}).encode()


def _trace(error, skip):
    from traceback import extract_tb, format_list

    frames = [f for f in extract_tb(error.__traceback__)[skip:] if not f.filename.startswith("<frozen importlib")]
    return format_list(frames)


def _load(setup):
    """Imports the module and returns the handler, or raises _InitFailure."""
    module, _, name = setup["handler"].rpartition(".")
    module = module.replace("/", ".")
    try:
        loaded = import_module(module)
    except ImportError as e:
        raise _InitFailure("Runtime.ImportModuleError", f"Unable to import module '{module}': {e}") from e
    except SyntaxError as e:
        where = f"{e.filename}:{e.lineno}" if e.filename else module
        raise _InitFailure("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module}': {e.msg} ({where})") from e
    except Exception as e:
        raise _InitFailure(type(e).__name__, str(e), _trace(e, 1)) from e
    handler = getattr(loaded, name, None)
    if not callable(handler):
        raise _InitFailure("Runtime.HandlerNotFound", f"Handler '{name}' missing on module '{module}'")
    return handler


class _InitFailure(Exception):
    def __init__(self, kind, message, trace=()):
        super().__init__(message)
        self.document = _document(kind, message, trace)
        self.text = f"[ERROR] {kind}: {message}\n" + "".join(trace)  # for the log


def _attach(setup):
    """Becomes the function: identity, environment, path, fresh random numbers."""
    os.environ.clear()
    os.environ.update(setup["env"])
    time.tzset()
    root = setup["root"]
    extra = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    sys.path[:0] = [root, *extra, *_layers]
    for path in _layers:  # nothing lay there when this was a clone of nobody's
        sys.path_importer_cache.pop(path, None)
    sys.path += ["/usr/local/lib/python3.11/dist-packages", "/usr/lib/python3/dist-packages"]
    if "random" in sys.modules:  # a clone must not repeat its template's numbers
        sys.modules["random"].seed()
    try:
        os.chdir(root)
    except OSError:
        pass  # an absent root shows as an import error, which has a better sentence
    c = LambdaContext
    c.function_name = setup.get("function", "")
    c.function_version = setup.get("version", "")
    c.invoked_function_arn = setup.get("arn", "")
    c.log_group_name = setup.get("logGroup", "")
    c.log_stream_name = setup.get("logStream", "")
    c.memory_limit_in_mb = str(setup.get("memoryMiB", 0))


def _event(payload, content):
    if content.startswith(_binary):
        return payload
    if not payload:
        return {}
    try:
        return json.loads(payload)
    except ValueError:
        if content and "json" not in content:
            return payload
        raise


def _fail(request, error, skip=1):
    kind = type(error).__name__
    _end(request, kind, _document(kind, str(error), _trace(error, skip)))


def _end(request, kind, document):
    word = kind.encode()[:255]
    _flush()
    _write(_last.pack(19 + len(word) + len(document), END, request, 1, len(word)) + word + document)


def _flush():
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # the function closed or replaced its streams


def _send(request, content, body):
    """Sends a whole answer: one frame when it fits."""
    size = len(body)
    _flush()
    if size < PART:
        _write(_last.pack(19 + len(content) + size, ANSWER, request, 0, len(content)) + content + body)
        return
    _write(_head.pack(27 + len(content), HEAD, request, 0, size, len(content)) + content)
    view = memoryview(body)
    for at in range(0, size, PART):
        _part(request, view[at : at + PART])
    _write(_last.pack(19, END, request, 0, 0))


def _part(request, data):
    _write(_chunk.pack(17 + len(data), CHUNK, request) + bytes(data))


def _stream(request, chunks):
    """Sends what a generator yields, as it comes. The first chunk decides the content type."""
    started = False
    try:
        for chunk in chunks:
            if isinstance(chunk, str):
                content, chunk = b"text/plain; charset=utf-8", chunk.encode()
            else:
                content, chunk = b"application/octet-stream", memoryview(chunk).cast("B")
            if not started:
                _write(_head.pack(27 + len(content), HEAD, request, 1, 0, len(content)) + content)
                started = True
            for at in range(0, len(chunk), PART):
                _part(request, chunk[at : at + PART])
    except Exception as e:
        return _fail(request, e)
    _flush()
    if not started:
        return _send(request, b"application/octet-stream", b"")
    _write(_last.pack(19, END, request, 0, 0))


def _answer(handler, request, event, context):
    try:
        result = handler(event, context)
    except Exception as e:
        return _fail(request, e)
    if isinstance(result, (bytes, bytearray, memoryview)):
        return _send(request, b"application/octet-stream", result if isinstance(result, bytes) else bytes(result))
    if isinstance(result, types.GeneratorType):
        return _stream(request, result)
    try:
        body = json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as e:
        message = f"Unable to marshal response: {e}"
        return _end(request, "Runtime.MarshalError", _document("Runtime.MarshalError", message))
    _send(request, b"application/json", body)


def _serve(handler):
    while True:
        _answer_next(handler)


def _answer_next(handler):
    kind, length = _frame()
    if kind != CALL:
        os._exit(70)
    request, remaining, total, ntrace, nclient, ncontent = _call.unpack_from(_buffer, 5)
    deadline = time.monotonic() + remaining / 1000
    at = 35
    trace = _buffer[at : at + ntrace].decode("ascii", "replace")
    at += ntrace
    client = bytes(_buffer[at : at + nclient])
    at += nclient
    content = _buffer[at : at + ncontent].decode("ascii", "replace")
    at += ncontent
    payload = bytes(_buffer[at : 5 + length])
    _drop(5 + length)
    if len(payload) < total:
        payload = _rest(payload, total)
    context = LambdaContext(request, deadline, trace, client, content)
    try:
        event = _event(payload, content)
    except ValueError as e:
        message = f"Unable to unmarshal input: {e}"
        return _end(request, "Runtime.UnmarshalError", _document("Runtime.UnmarshalError", message))
    _answer(handler, request, event, context)


def _rest(payload, total):
    global _buffer
    parts = [payload]
    have = len(payload)
    while have < total:
        kind, length = _frame()
        if kind != MORE:
            os._exit(70)
        parts.append(bytes(_buffer[5 : 5 + length]))
        have += length
        _drop(5 + length)
    if _filled == 0:
        _buffer = bytearray(16 << 10)
    return b"".join(parts)


def _rehearse():
    """Walks the way of a first call with code of our own: imports it from a file, as the function will be, and lets
    it answer. What the interpreter does and touches for the first time is done before anybody waits for it."""
    global _write, _flush, _buffer, _filled
    kept = _write, _flush, dict(sys.modules), list(sys.path), dict(os.environ)
    _write = _flush = lambda *_: None
    here = os.path.dirname(os.path.abspath(__file__))
    context = LambdaContext
    saved = {k: v for k, v in vars(context).items() if isinstance(v, str)}
    _attach({"root": here, "env": kept[4], "memoryMiB": 0})
    handler = _load({"handler": "rehearsal.handler"})
    request, body = bytes(16), b'{"warm": [1, 2.5, "x", null]}'
    frame = _call.pack(request, 1000, len(body), 0, 0, 16) + b"application/json" + body
    for _ in range(2):
        _buffer[: 5 + len(frame)] = _header.pack(1 + len(frame), CALL) + frame
        _filled = 5 + len(frame)
        _answer_next(handler)
    for name, value in saved.items():
        setattr(context, name, value)
    _write, _flush, modules, sys.path[:], _ = kept
    for name in [n for n in sys.modules if n not in modules]:
        del sys.modules[name]
    sys.path_importer_cache.pop(here, None)
    os.chdir("/")


def main():
    global _buffer
    for fd in (CALLS, ANSWERS):
        os.set_blocking(fd, True)
        os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=lambda: os.closerange(CALLS, ANSWERS + 1))
    sys.stdout.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")
    _buffer = bytearray(16 << 10)
    _rehearse()
    gc.collect()
    gc.freeze()
    _write(_header.pack(1, READY))
    kind, length = _frame()
    if kind != INIT:
        os._exit(70)
    setup = json.loads(bytes(_buffer[5 : 5 + length]))
    _drop(5 + length)
    _attach(setup)
    try:
        handler = _load(setup)
    except _InitFailure as e:
        print(e.text, end="", file=sys.stderr)
        _flush()
        _write(_header.pack(1 + len(e.document), INIT_ERROR) + e.document)
        os._exit(1)
    _flush()
    _write(_header.pack(1, INIT_OK))
    try:
        _serve(handler)
    finally:
        _flush()
