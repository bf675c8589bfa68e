package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/client"
)

type invokeFlags struct {
	file, version, request string
	contentType            string
	quic, tail, timing     bool
	timeout                time.Duration
}

// invocation is the JSON of a call: what the function answered and what is known about the call.
type invocation struct {
	Request   string             `json:"requestId"`
	Version   string             `json:"version"`
	Status    string             `json:"status"`
	ErrorType string             `json:"errorType,omitempty"`
	Payload   string             `json:"payload"`
	LogTail   string             `json:"logTail,omitempty"`
	Timing    map[string]float64 `json:"timingMS,omitempty"`
}

func invokeCommand(a *app) *cobra.Command {
	var f invokeFlags
	c := &cobra.Command{
		Use: "invoke NAME [PAYLOAD|-]", Short: "Call a function and print its answer", Args: cobra.RangeArgs(1, 2),
		Long: `Invoke sends the payload (the argument, the file of --file, or standard input for -) and writes the function's
answer to standard output as it comes. When the function fails, its error document goes to standard error and the
exit code is 6.`,
		Example: "  starling invoke hello '{\"name\":\"you\"}'\n  starling invoke resize --file photo.json > thumb.json\n" +
			"  echo '{}' | starling invoke hello - --quic --tail\n  starling invoke hello --version 3 --timing",
		ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			call, err := a.call(args, &f)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if f.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, f.timeout)
				defer cancel()
			}
			return a.invoke(ctx, call, &f)
		}}
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "read the payload from this file")
	fl.StringVar(&f.version, "version", "latest", "version to call: latest or a number")
	fl.StringVar(&f.request, "request-id", "", "UUID to name the call by (default: drawn by the server)")
	fl.StringVar(&f.contentType, "content-type", "", "type of the payload (default: JSON)")
	fl.BoolVar(&f.quic, "quic", false, "call over QUIC (the address is --quic-addr) instead of HTTP")
	fl.BoolVar(&f.tail, "tail", false, "also print the end of the call's output, to standard error")
	fl.BoolVar(&f.timing, "timing", false, "also print where the time went, to standard error")
	fl.DurationVar(&f.timeout, "timeout", 0, "give up waiting after this (default: the function's own limit)")
	return c
}

// call reads the payload and the other words of one call.
func (a *app) call(args []string, f *invokeFlags) (client.Call, error) {
	call := client.Call{Function: starling.FunctionName(args[0]), ContentType: f.contentType, Tail: f.tail}
	var err error
	if err = call.Function.Validate(); err != nil {
		return call, err
	}
	if call.Version, err = starling.ParseVersionNumber(f.version); err != nil {
		return call, err
	}
	if f.request != "" {
		id, ok := starling.ParseRequestID(f.request)
		if !ok {
			return call, usagef("--request-id %q is no UUID", f.request)
		}
		call.Request = id
	}
	var in io.Reader
	switch {
	case f.file != "" && len(args) == 2:
		return call, usagef("give the payload as an argument or by --file, not both")
	case f.file != "":
		file, err := os.Open(f.file)
		if err != nil {
			return call, usagef("read payload: %v", err)
		}
		defer file.Close()
		in = file
	case len(args) == 2 && args[1] == "-":
		in = a.in
	case len(args) == 2:
		in = strings.NewReader(args[1])
	default:
		in = strings.NewReader("{}")
	}
	call.Payload, err = io.ReadAll(io.LimitReader(in, starling.PayloadMax+1))
	if err != nil {
		return call, fmt.Errorf("read payload: %w", err)
	}
	if len(call.Payload) > starling.PayloadMax {
		return call, starling.Errorf(starling.TooLarge, "invoke function", "the payload has more than %s", size(starling.PayloadMax))
	}
	return call, nil
}

func (a *app) invoke(ctx context.Context, call client.Call, f *invokeFlags) error {
	structured := a.flags.output != "table"
	began := time.Now()
	var r *client.Result
	var err error
	switch {
	case f.quic:
		r, err = a.invokeQUIC(ctx, call)
	case structured:
		r, err = a.client().Invoke(ctx, call)
	default:
		r, err = a.client().Stream(ctx, call, a.out)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && err != nil {
		return starling.Errorf(starling.Timeout, "invoke function", "no answer within %s; the function may still run", f.timeout)
	}
	if err != nil {
		return err
	}
	took := time.Since(began)
	if structured {
		return a.printInvocation(r)
	}
	if f.quic && r.Err() == nil {
		if _, err := a.out.Write(r.Payload); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
	if isTerminal(a.out) {
		fmt.Fprintln(a.out)
	}
	if f.tail {
		fmt.Fprintf(a.err, "--- output of the call\n%s", printable(string(r.LogTail)))
	}
	if f.timing {
		fmt.Fprintf(a.err, "--- request %s, version %s: %s, %s in all\n", r.Request, r.Version, timings(r), took.Round(10*time.Microsecond))
	}
	if err := r.Err(); err != nil {
		fmt.Fprintf(a.err, "%s\n", printable(string(r.Payload)))
		return err
	}
	return nil
}

func (a *app) printInvocation(r *client.Result) error {
	v := invocation{Request: r.Request.String(), Version: r.Version, Status: statusWord(r.Status), ErrorType: r.ErrorType, LogTail: string(r.LogTail),
		Timing: map[string]float64{}}
	v.Payload = string(r.Payload)
	if !utf8.Valid(r.Payload) {
		return usagef("the answer is no text: leave out -o %s and redirect standard output to a file", a.flags.output)
	}
	for k, d := range r.Timing {
		v.Timing[k] = float64(d) / float64(time.Millisecond)
	}
	if err := a.say(v, ""); err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		return quiet{err}
	}
	return nil
}

func statusWord(s starling.Status) string {
	return [...]string{"succeeded", "handled", "unhandled"}[min(int(s), 2)]
}

func timings(r *client.Result) string {
	var parts []string
	for _, k := range []string{"queue", "place", "start", "init", "run"} {
		if d, ok := r.Timing[k]; ok {
			parts = append(parts, fmt.Sprintf("%s %s", k, d.Round(time.Microsecond)))
		}
	}
	for k := range r.Timing {
		if !slices.Contains([]string{"queue", "place", "start", "init", "run"}, k) {
			parts = append(parts, fmt.Sprintf("%s %s", k, r.Timing[k].Round(time.Microsecond)))
		}
	}
	return strings.Join(parts, ", ")
}
