package runtimeapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"starling"
)

var (
	replyAccepted = []byte("HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"status\":\"OK\"}\n")
	replyWrongID  = reply("400 Bad Request", "InvalidRequestID", "no call with this id is in flight")
	replyBad      = reply("400 Bad Request", "InvalidRequest", "this is not a request of the Runtime API")
	replyGone     = reply("410 Gone", "RequestExpired", "the call ended before this answer: its deadline passed")
	replyForbid   = reply("403 Forbidden", "InvalidStateTransition", "more calls were asked for than the function's concurrency")
	replyNotFound = reply("404 Not Found", "NotFound", "the Runtime API has no such address")
	replyMethod   = reply("405 Method Not Allowed", "MethodNotAllowed", "use GET for next and POST for answers")
	replyTooLarge = reply("413 Content Too Large", starling.ErrResponseSize, "the answer is over the limit: stream it or return less")
	replyPart     = reply("400 Bad Request", "InvalidRequest", "the answer ended before its body did")
)

func reply(status, kind, message string) []byte {
	body := fmt.Sprintf(`{"errorMessage":%q,"errorType":%q}`, message, kind)
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

var (
	pathNext     = []byte("/2018-06-01/runtime/invocation/next")
	pathCalls    = []byte("/2018-06-01/runtime/invocation/")
	pathInit     = []byte("/2018-06-01/runtime/init/error")
	pathRegister = []byte("/2020-01-01/extension/register")
	pathEvents   = []byte("/2020-01-01/extension/event/next")
	response     = []byte("/response")
	failure      = []byte("/error")
)

// errHangup ends a connection whose stream cannot be trusted any more.
var errHangup = errors.New("hang up")

// serve answers requests until the connection ends. It is the connection's only goroutine.
func (c *conn) serve() {
	defer c.s.leave(c)
	defer c.release()
	for {
		err := c.readHead()
		if errors.Is(err, errBad) {
			c.waitUnparked()
			c.write(replyBad)
			return
		}
		if err != nil {
			return
		}
		c.waitUnparked() // a pipelined request is answered in its turn
		closes := c.req.close
		if c.handle() != nil || closes && !c.isParked() {
			return
		}
		if closes {
			// The client closes after the call is written: read on until it does.
			io.Copy(io.Discard, io.LimitReader(c.sock.nc, drainMax))
			return
		}
	}
}

func (c *conn) release() {
	if c.large != nil {
		largeBuffers.Put(c.large)
		c.large, c.buf = nil, nil
	}
	c.mu.Lock()
	c.parked = false
	c.mu.Unlock()
}

func (c *conn) isParked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked
}

func (c *conn) waitUnparked() {
	c.mu.Lock()
	for c.parked {
		c.freed.Wait()
	}
	c.mu.Unlock()
}

// handle carries out one request; an error ends the connection.
func (c *conn) handle() error {
	get, post := string(c.req.method) == "GET", string(c.req.method) == "POST"
	path := c.req.path
	switch {
	case !get && !post:
		return c.refuse(replyMethod)
	case bytes.Equal(path, pathNext):
		if !get || c.req.length != 0 {
			return c.refuse(replyMethod)
		}
		return c.then(c.park)
	case post && bytes.HasPrefix(path, pathCalls):
		return c.answer(path[len(pathCalls):])
	case post && bytes.Equal(path, pathInit):
		return c.initError()
	case post && bytes.Equal(path, pathRegister):
		return c.register()
	case get && bytes.Equal(path, pathEvents):
		// No event is ever sent: the code learns of its end by its end. The connection stays until then.
		io.Copy(io.Discard, c.sock.nc)
		return errHangup
	}
	return c.refuse(replyNotFound)
}

// refuse answers with an error and keeps the connection when the body is short.
func (c *conn) refuse(text []byte) error {
	if c.req.expect {
		c.write(text)
		return errHangup // the client may or may not send the body now
	}
	if !c.drain() {
		c.write(text)
		return errHangup
	}
	return c.write(text)
}

// answer takes POST {id}/response and {id}/error.
func (c *conn) answer(rest []byte) error {
	const idSize = 36
	if len(rest) < idSize {
		return c.refuse(replyNotFound)
	}
	failed := bytes.Equal(rest[idSize:], failure)
	if !failed && !bytes.Equal(rest[idSize:], response) {
		return c.refuse(replyNotFound)
	}
	id, ok := starling.ParseRequestID(rest[:idSize])
	if !ok {
		return c.refuse(replyWrongID)
	}
	k, no := c.s.answering(id, c)
	if k == nil {
		return c.refuse(no)
	}
	if failed {
		return c.callError(k)
	}
	return c.callResponse(k)
}

// callResponse passes the body to the sink of the call.
func (c *conn) callResponse(k *call) error {
	content := c.s.contentType(c.req.contentType)
	// aws-lambda-go sends everything in chunks and never says the mode; a reader that a function returned is what it sends as no JSON.
	streaming := c.req.streaming || c.req.length < 0 && len(c.req.contentType) > 0 && !strings.HasPrefix(content, "application/json")
	if !streaming && c.req.length > starling.PayloadMax {
		return c.tooLarge(k)
	}
	if err := c.continues(); err != nil {
		return c.broke(k, err)
	}
	k.sink.Start(content, streaming)
	gone, total := false, int64(0)
	for {
		b, err := c.some()
		if err != nil {
			return c.broke(k, err)
		}
		if b == nil {
			break
		}
		if total += int64(len(b)); total > starling.PayloadMax && !streaming {
			return c.tooLarge(k)
		}
		if !gone {
			_, err := k.sink.Write(b)
			gone = err != nil // the call runs on, its further bytes are dropped
		}
	}
	var out starling.Outcome
	if c.trailerType != "" || c.trailerBody != nil {
		out = starling.Outcome{Status: starling.Handled, ErrorType: errorDocument(c.trailerType, c.trailerBody), Error: c.trailerBody}
	}
	return c.ended(k, out)
}

// callError takes the error document of a call.
func (c *conn) callError(k *call) error {
	given := errorWord(c.req.errorType)
	if err := c.continues(); err != nil {
		return c.broke(k, err)
	}
	doc, tooLarge, err := c.document()
	if tooLarge {
		return c.tooLarge(k)
	}
	if err != nil {
		return c.broke(k, err)
	}
	return c.ended(k, starling.Outcome{Status: starling.Handled, ErrorType: errorDocument(given, doc), Error: doc})
}

func (c *conn) ended(k *call, out starling.Outcome) error {
	if !c.s.finish(k, out) {
		c.write(replyGone)
		return errHangup
	}
	return c.then(c.accept)
}

func (c *conn) accepted() error { return c.write(replyAccepted) }

// parkNow waits for a call.
func (c *conn) parkNow() error {
	if !c.s.park(c) {
		return c.write(replyForbid)
	}
	return nil
}

func (c *conn) tooLarge(k *call) error {
	c.s.finish(k, starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrResponseSize})
	c.write(replyTooLarge)
	return errHangup
}

// broke ends a call whose answer broke off or was no HTTP.
func (c *conn) broke(k *call, err error) error {
	kind := starling.ErrExit
	if errors.Is(err, errBad) {
		kind = starling.ErrProtocol
	}
	c.s.finish(k, starling.Outcome{Status: starling.Unhandled, ErrorType: kind})
	c.write(replyPart)
	return errHangup
}

// initError takes the reason why the code cannot serve.
func (c *conn) initError() error {
	given := errorWord(c.req.errorType)
	if err := c.continues(); err != nil {
		return err
	}
	doc, tooLarge, err := c.document()
	if err != nil || tooLarge {
		return errHangup
	}
	c.s.isReady(initFailure(given, doc))
	return c.write(replyAccepted)
}

// register takes an extension: aws-lambda-go registers one to be told of SIGTERM.
func (c *conn) register() error {
	if len(c.req.extensionName) == 0 {
		return c.refuse(replyBad)
	}
	if err := c.continues(); err != nil {
		return err
	}
	if !c.drain() {
		return errHangup
	}
	body := fmt.Sprintf(`{"functionName":%q,"functionVersion":%q,"handler":%q}`, c.s.cfg.Name, c.s.cfg.Version, c.s.cfg.Handler)
	return c.write(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Extension-Identifier: %s\r\nContent-Length: %d\r\n\r\n%s",
		extensionID, len(body), body))
}

// extensionID is the same for all: the socket tells the sandbox, and nothing is asked of an extension.
const extensionID = "6f1d5a36-0000-4000-8000-000000000001"
