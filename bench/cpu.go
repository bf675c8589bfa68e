package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Meter tells how much CPU a server used so far.
type Meter interface {
	CPU(ctx context.Context) (time.Duration, error)
}

// Pids meters processes of this machine by /proc, each with its children that still live.
type Pids []int

const clockTick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on

// CPU sums user and system time.
func (p Pids) CPU(context.Context) (time.Duration, error) {
	var total time.Duration
	for _, pid := range p {
		d, err := treeCPU(pid, 0)
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}

func treeCPU(pid, depth int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU of process %d: %w", pid, err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("read CPU of process %d: short stat", pid)
	}
	var ticks int64
	for _, f := range fields[11:15] { // utime, stime, and those of children that were waited for
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU of process %d: %w", pid, err)
		}
		ticks += n
	}
	total := time.Duration(ticks) * clockTick
	kids, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || depth > 8 {
		return total, nil // a kernel without that file, or a process that just ended
	}
	for _, k := range strings.Fields(string(kids)) {
		if n, err := strconv.Atoi(k); err == nil {
			if d, err := treeCPU(n, depth+1); err == nil {
				total += d
			}
		}
	}
	return total, nil
}

// Admin meters nodes by their admin addresses: process_cpu_seconds_total, without the functions' own CPU.
type Admin []string

// CPU asks every address.
func (a Admin) CPU(ctx context.Context) (time.Duration, error) {
	var total float64
	for _, addr := range a {
		m, err := Scrape(ctx, addr)
		if err != nil {
			return 0, err
		}
		total += m["process_cpu_seconds_total"]
	}
	return time.Duration(total * float64(time.Second)), nil
}

// Scrape reads the metrics of an admin address ("http://host:port"): series with labels → value.
func Scrape(ctx context.Context, admin string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(admin, "/")+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read metrics of %s: %s", admin, res.Status)
	}
	return parseMetrics(io.LimitReader(res.Body, 64<<20))
}

// parseMetrics reads the text format; lines that are no sample are passed over.
func parseMetrics(r io.Reader) (map[string]float64, error) {
	out := map[string]float64{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := sc.Text()
		if l == "" || l[0] == '#' {
			continue
		}
		end := strings.LastIndexByte(l, '}') + 1
		if end == 0 {
			end = strings.IndexByte(l, ' ')
		}
		if end <= 0 {
			continue
		}
		value, _, _ := strings.Cut(strings.TrimSpace(l[end:]), " ") // a timestamp may follow
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			out[l[:end]] = v
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return out, nil
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
