package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/internal/crash"
)

// crashBinary builds the program that can be told to crash at a point.
func crashBinary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"starling", "starling-guest"} {
		build := exec.Command("go", "build", "-trimpath", "-tags", "crashpoints", "-ldflags", "-s -w", "-o", filepath.Join(dir, program), "./cmd/"+program)
		build.Dir = repo(t)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s with crash points: %v\n%s", program, err, out)
		}
	}
	return filepath.Join(dir, "starling")
}

// crashFile tells the node where to crash.
func (n *netNode) crashFile() string { return n.dir + ".crash" }

// pointsMet counts crashes by point: tried, and met.
type pointsMet struct {
	order      []crash.Point // those that are left to try, drawn anew when all were
	tried, met map[crash.Point]int
}

// next returns the points in an order drawn by chance, again and again.
func (p *pointsMet) next(rng *rand.Rand) crash.Point {
	if p.tried == nil {
		p.tried, p.met = map[crash.Point]int{}, map[crash.Point]int{}
	}
	if len(p.order) == 0 {
		p.order = slices.Clone(crash.All)
		rng.Shuffle(len(p.order), func(a, b int) { p.order[a], p.order[b] = p.order[b], p.order[a] })
	}
	point := p.order[0]
	p.order = p.order[1:]
	p.tried[point]++
	return point
}

func (p *pointsMet) report(t *testing.T) {
	if p.tried == nil {
		return
	}
	var missed []crash.Point
	for _, point := range crash.All {
		if p.tried[point] > 0 && p.met[point] == 0 {
			missed = append(missed, point)
		}
	}
	t.Logf("fault 6  points: %d exist, %d were tried, %d crashed a node; tried and not met in time: %v", len(crash.All), len(p.tried), len(p.met), missed)
	if len(p.met) == 0 {
		t.Error("no node crashed at a point")
	}
}

// crashAtPoints has a node end itself at the next point that one comes by: some, as after a snapshot of the state, are not met
// in a short run.
func (j *injector) crashAtPoints() {
	for tries := 0; tries < 4 && !j.crashAtPoint(); tries++ {
	}
}

// crashAtPoint has a node end itself at the next point, at work or while it starts, and starts it again. It reports whether
// that happened.
func (j *injector) crashAtPoint() (crashed bool) {
	point := j.points.next(j.rng)
	before := j.points.met[point]
	n := j.any()
	if strings.HasPrefix(string(point), "ack-") {
		n = j.leader()
	}
	arm := func(text string) {
		if err := os.WriteFile(n.crashFile(), []byte(text), 0o600); err != nil {
			j.t.Fatal(err)
		}
	}
	arm(fmt.Sprintf("%s %d", point, 1+j.rng.IntN(3)))
	n.cmd.Process.Signal(syscall.SIGUSR2)
	dead := func() bool { return processState(n.cmd.Process.Pid) == "Z" }
	patience := 2 * time.Second
	if strings.HasPrefix(string(point), "handover-") {
		patience *= 3 // another node must order a change that this one has a part in
	}
	for end := time.Now().Add(patience); !dead() && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.HasPrefix(string(point), "code-") {
			j.freshCode(n)
		}
	}
	if !dead() { // it may come by the point when it stops or starts
		arm(string(point) + " 1")
		n.cmd.Process.Signal(syscall.SIGUSR2)
		n.end(j.t, syscall.SIGTERM)
		if n.last.Sys().(syscall.WaitStatus).Signaled() {
			j.points.met[point]++
			arm("")
		}
		j.c.start(j.t, n)
		for end := time.Now().Add(3 * time.Second); !dead() && !j.c.says(n, "/readyz", "") && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		}
	}
	arm("")
	if dead() {
		j.points.met[point]++
		n.end(j.t, syscall.SIGKILL) // it only collects what is dead
		j.wait(j.length(1.5))
		j.c.start(j.t, n)
	} else {
		n.cmd.Process.Signal(syscall.SIGUSR2)
	}
	j.t.Logf("point %s at %s: crashes so far %d of %d", point, n.name, j.points.met[point], j.points.tried[point])
	j.c.ready(j.t, n, 30*time.Second)
	return j.points.met[point] > before
}

// freshCode deploys a package that no node has seen and calls it through n.
func (j *injector) freshCode(n *netNode) {
	old, err := zip.OpenReader(filepath.Join(repo(j.t), "bin/functions/echo-go.zip"))
	if err != nil {
		j.t.Fatal(err)
	}
	defer old.Close()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range old.File {
		if err := w.Copy(f); err != nil {
			j.t.Fatal(err)
		}
	}
	salt, err := w.Create("salt")
	if err == nil {
		_, err = fmt.Fprint(salt, j.rng.Uint64())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		j.t.Fatal(err)
	}
	// Whatever the cluster answers: it may be in the middle of a fault, and the node may have crashed as it should.
	code, err := n.http.PutCode(j.t.Context(), &b, int64(b.Len()))
	if err != nil {
		return
	}
	config := starling.Config{Runtime: starling.Provided, TimeoutMS: 5000}
	name := starling.FunctionName(fmt.Sprintf("fresh%d", j.rng.Uint32()))
	if _, err := n.http.CreateFunction(j.t.Context(), protocol.FunctionSpec{Name: name, Config: &config, Code: code.Hash}); err == nil {
		_, _ = n.http.Invoke(j.t.Context(), client.Call{Function: name, Payload: []byte(`{"n":1}`)})
	}
}

// shiftClock sets one node's wall clock wrong by an hour, lets it run away by a tenth, and for half of the times leaves it so
// until the node's life ends.
func (j *injector) shiftClock() {
	n := j.any()
	w, err := newWallClock(n.cmd.Process.Pid)
	if err != nil {
		j.t.Fatal(err)
	}
	defer w.close()
	offset, drift := time.Hour, 0.1
	if j.rng.IntN(2) == 0 {
		offset = -offset
	}
	if j.rng.IntN(2) == 0 {
		drift = -drift
	}
	began := time.Now()
	for end := began.Add(j.length(5)); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := w.set(offset + time.Duration(drift*float64(time.Since(began)))); err != nil {
			j.t.Fatal(err)
		}
	}
	if seen, err := j.c.date(n); err == nil && (time.Until(seen)-offset).Abs() > time.Minute {
		j.t.Errorf("%s says it is %v, with a wall clock that is wrong by %v", n.name, seen, offset)
	}
	if j.rng.IntN(2) == 0 {
		if err := w.set(0); err != nil {
			j.t.Fatal(err)
		}
	}
}

// until waits until ok, or fails the test.
func (j *injector) until(limit time.Duration, ok func() bool, what string) {
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			j.t.Errorf("%s within %v", what, limit)
			return
		}
	}
}

// processState returns the letter of a process's state, "" when there is none.
func processState(pid int) string {
	state, _, _ := processStat(pid)
	return state
}

// processStat returns state, parent and start time of a process.
func processStat(pid int) (state string, parent int, start string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, ""
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent, fields[19]
}

// family returns the processes under a process, with their start times.
func family(pid int) map[int]string {
	parents, starts := map[int]int{}, map[int]string{}
	list, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range list {
		id, _ := strconv.Atoi(filepath.Base(p))
		_, parents[id], starts[id] = processStat(id)
	}
	under := map[int]string{}
	for id := range parents {
		for up := parents[id]; up > 1; up = parents[up] {
			if up == pid {
				under[id] = starts[id]
				break
			}
		}
	}
	return under
}

// gone waits until none of some processes lives, and counts those that do.
func (j *injector) gone(under map[int]string) {
	j.family += len(under)
	alive := func() (n int) {
		for id, began := range under {
			if state, _, start := processStat(id); start == began && state != "Z" && state != "" {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); alive() > 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	j.orphans += alive()
}
