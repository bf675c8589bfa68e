package protocol

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"starling"
)

func sampleCall() CallHead {
	return CallHead{Request: starling.RequestID{1, 2}, Number: 7, Within: 3 * time.Second, Tail: true, Total: 5, Function: "resize",
		ContentType: "image/png", Trace: "00-ab", ClientContext: "e30=", Payload: []byte("hello")}
}

func sampleEnd() Ending {
	return Ending{Request: starling.RequestID{9}, Number: 1, Status: starling.Handled, Run: time.Millisecond, Phases: starling.Phases{Queue: 1000, Start: 2000},
		ErrorType: "ValueError", ContentType: "application/json", LogTail: []byte("log"), Body: []byte("{}")}
}

func TestFramesReadBackAsWritten(t *testing.T) {
	c := sampleCall()
	var c2 CallHead
	if err := c2.Decode(append(c.Append(nil), c.Payload...)); err != nil || !reflect.DeepEqual(c, c2) {
		t.Fatalf("%+v, %v", c2, err)
	}
	e := sampleEnd()
	var e2 Ending
	if err := e2.Decode(append(e.Append(nil), e.Body...)); err != nil || !reflect.DeepEqual(e, e2) {
		t.Fatalf("%+v, %v", e2, err)
	}
	h := Hello{Version, "stk_x", "acme"}
	if h2, err := DecodeHello(h.Append(nil)); err != nil || h2 != h {
		t.Fatalf("%+v, %v", h2, err)
	}
	r, err := DecodeRefusal(AppendRefusal(nil, starling.Overloaded, ErrorBody{Reason: "QueueFull", Message: "no"}, time.Second))
	if err != nil || r.Kind != starling.Overloaded || r.Reason != "QueueFull" || r.After != time.Second {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestTornFramesAreRefused(t *testing.T) {
	c, e := sampleCall(), sampleEnd()
	call, end := c.Append(nil), e.Append(nil)
	for i := range call {
		if err := new(CallHead).Decode(call[:i]); starling.KindOf(err) != starling.Invalid {
			t.Fatalf("a call cut at %d: %v", i, err)
		}
	}
	for i := range end {
		if err := new(Ending).Decode(end[:i]); starling.KindOf(err) != starling.Invalid {
			t.Fatalf("an end cut at %d: %v", i, err)
		}
	}
}

func FuzzClientFrames(f *testing.F) {
	c, e := sampleCall(), sampleEnd()
	f.Add(KindCall, append(c.Append(nil), c.Payload...))
	f.Add(KindEnd, append(e.Append(nil), e.Body...))
	f.Add(KindHello, (&Hello{Version, "stk_x", "acme"}).Append(nil))
	f.Add(KindRefusal, AppendRefusal(nil, starling.Invalid, ErrorBody{Reason: "r", Message: "m"}, 0))
	f.Add(KindHead, AppendHead(nil, "text/plain"))
	f.Add(KindCredit, AppendCredit(nil, 7))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		switch kind {
		case KindCall:
			var c, again CallHead
			if c.Decode(body) != nil {
				return
			}
			back := append(c.Append(nil), c.Payload...)
			if again.Decode(back) != nil || !reflect.DeepEqual(c, again) {
				t.Fatalf("%+v came back as %+v", c, again)
			}
		case KindEnd:
			var e, again Ending
			if e.Decode(body) != nil {
				return
			}
			back := append(e.Append(nil), e.Body...)
			if again.Decode(back) != nil || !bytes.Equal(e.Body, again.Body) || e.ErrorType != again.ErrorType || e.Phases != again.Phases {
				t.Fatalf("%+v came back as %+v", e, again)
			}
		case KindHello:
			if h, err := DecodeHello(body); err == nil {
				if again, err := DecodeHello(h.Append(nil)); err != nil || again != h {
					t.Fatalf("%+v came back as %+v", h, again)
				}
			}
		case KindRefusal:
			DecodeRefusal(body)
		case KindHead:
			DecodeHead(body)
		case KindCredit:
			DecodeCredit(body)
		case KindWelcome:
			DecodeWelcome(body)
		}
	})
}
