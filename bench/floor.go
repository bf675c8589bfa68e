package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// ServeFloor is the floor: a bare net/http server that answers with the bytes it was sent. It writes its
// address as one line to out and ends when in ends, so it never outlives the run that started it.
func ServeFloor(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	buffers := sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.ContentLength >= 0 && r.ContentLength <= 64<<10 {
			p := buffers.Get().(*[]byte)
			defer buffers.Put(p)
			b := (*p)[:r.ContentLength]
			if _, err := io.ReadFull(r.Body, b); err == nil {
				w.Write(b)
			}
			return
		}
		io.Copy(w, r.Body)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	if _, err := fmt.Fprintf(out, "http://%s/\n", l.Addr()); err != nil {
		srv.Close()
		return fmt.Errorf("tell address: %w", err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		srv.Close()
		return fmt.Errorf("wait for the end: %w", err)
	}
	err = srv.Close()
	<-served
	return err
}

// A Floor is a floor server in a process of its own.
type Floor struct {
	URL string
	Pid int
	cmd *exec.Cmd
	in  io.Closer
}

// StartFloor runs command, which must call ServeFloor on its standard streams.
func StartFloor(ctx context.Context, command ...string) (*Floor, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start floor: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start floor: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start floor: %w", err)
	}
	f := &Floor{Pid: cmd.Process.Pid, cmd: cmd, in: in}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("start floor: it told no address: %w", err)
	}
	f.URL = strings.TrimSpace(line)
	return f, nil
}

// Close ends the process and waits for it.
func (f *Floor) Close() error {
	f.in.Close()
	return f.cmd.Wait()
}
