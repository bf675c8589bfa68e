package vmpool

import (
	"strconv"
	"time"

	"starling"
)

// A Stream says who printed a line.
type Stream uint8

const (
	Stdout   Stream = iota // the code
	Stderr                 // the code
	Platform               // START, END, REPORT and what the platform says of a call's end
)

var streamNames = [...]string{"stdout", "stderr", "platform"}

// String returns "stdout", "stderr" or "platform".
func (s Stream) String() string { return streamNames[s] }

// A LogLine is one line without its newline; its bytes are data, never trusted.
type LogLine struct {
	Stream Stream
	Text   []byte
}

// A LogRecord is lines of one instance that became known together. Function, version, instance and
// request are set by the host only.
type LogRecord struct {
	Time     time.Time
	Function starling.FunctionRef
	Version  starling.VersionID
	Number   starling.VersionNumber
	Instance starling.InstanceID
	Request  starling.RequestID // zero for lines that belong to no single call
	Lines    []LogLine
}

// A LogSink takes what functions print. Append must not block: a full sink drops and counts. The record and
// its lines are valid until Append returns.
type LogSink interface {
	Append(rec *LogRecord)
}

// DiscardLogs is a LogSink that keeps nothing.
type DiscardLogs struct{}

// Append drops rec.
func (DiscardLogs) Append(*LogRecord) {}

// The lines below are those of AWS Lambda, byte for byte: people parse them.

func appendStart(b []byte, id starling.RequestID, version string) []byte {
	b = append(b, "START RequestId: "...)
	b = id.Append(b)
	b = append(b, " Version: "...)
	return append(b, version...)
}

func appendEnd(b []byte, id starling.RequestID) []byte {
	b = append(b, "END RequestId: "...)
	return id.Append(b)
}

func appendReport(b []byte, id starling.RequestID, run, init time.Duration, memoryMiB int, memoryMax int64) []byte {
	b = append(b, "REPORT RequestId: "...)
	b = id.Append(b)
	b = append(b, "\tDuration: "...)
	b = appendHundredths(b, run)
	b = append(b, " ms\tBilled Duration: "...)
	b = strconv.AppendInt(b, int64((run+init+time.Millisecond-1)/time.Millisecond), 10)
	b = append(b, " ms\tMemory Size: "...)
	b = strconv.AppendInt(b, int64(memoryMiB), 10)
	b = append(b, " MB\tMax Memory Used: "...)
	b = strconv.AppendInt(b, (memoryMax+1<<20-1)>>20, 10)
	b = append(b, " MB\t"...)
	if init > 0 {
		b = append(b, "Init Duration: "...)
		b = appendHundredths(b, init)
		b = append(b, " ms\t"...)
	}
	return b
}

// appendHundredths writes d in milliseconds with two digits after the point.
func appendHundredths(b []byte, d time.Duration) []byte {
	n := int64((d + 5*time.Microsecond) / (10 * time.Microsecond))
	b = strconv.AppendInt(b, n/100, 10)
	return append(b, '.', byte('0'+n/10%10), byte('0'+n%10))
}

// versionWord is what START says.
func versionWord(n starling.VersionNumber) string {
	if n == starling.Latest {
		return "$LATEST"
	}
	return strconv.FormatUint(uint64(n), 10)
}
