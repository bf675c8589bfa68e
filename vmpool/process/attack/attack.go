// Package attack runs hostile functions in real sandboxes and judges from the host what they reached. Each row is one
// attack; each row may make several attempts. The suite is for every driver: what a sandbox is made of is not its
// business, only what got out.
package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"starling/vmpool"
)

// Runtime is the program that must run in the sandboxes: it executes Python source that comes as JSON lines over
// descriptor 3 and answers on descriptor 4 with the variable out.
const Runtime = `
import json, os
buf, space = b"", {"__name__": "attack"}
while True:
    i = buf.find(b"\n")
    if i < 0:
        got = os.read(3, 65536)
        if not got: break
        buf += got
        continue
    line, buf = buf[:i], buf[i+1:]
    space["out"] = None
    try:
        exec(compile(json.loads(line), "attack", "exec"), space)
        answer = {"out": space["out"]}
    except BaseException as e:
        answer = {"err": type(e).__name__ + ": " + str(e)}
    answer = json.dumps(answer).encode() + b"\n"
    while answer: answer = answer[os.write(4, answer):]
`

// ReadyRuntime is Runtime that says when it is ready, for drivers that wait for that.
const ReadyRuntime = `
import os
os.write(4, b"\n")` + Runtime

// A Box is a sandbox in which Runtime runs.
type Box struct {
	vmpool.Sandbox
	in *bufio.Reader
}

// NewBox clones a sandbox, which the end of the test closes.
func NewBox(t testing.TB, tpl vmpool.Template) *Box {
	t.Helper()
	s, err := tpl.Clone(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &Box{Sandbox: s}
	if c := s.Channel(); c != nil {
		b.in = bufio.NewReader(c)
	}
	return b
}

// Python runs source inside and returns its out, or the exception it raised.
func (b *Box) Python(source string) (out any, err error) {
	q, err := json.Marshal(source)
	if err != nil {
		return nil, err
	}
	if err := b.Channel().SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, err
	}
	if _, err := b.Channel().Write(append(q, '\n')); err != nil {
		return nil, err
	}
	line := []byte{'\n'}
	for len(line) == 1 { // a sign of life
		if line, err = b.in.ReadBytes('\n'); err != nil {
			return nil, err
		}
	}
	var a struct {
		Out any
		Err string
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, err
	}
	if a.Err != "" {
		return nil, errors.New(a.Err)
	}
	return a.Out, nil
}

// A Target is what the suite attacks.
type Target struct {
	Template  vmpool.Template // sandboxes that run Runtime
	MemoryMiB int             // given with the code
	MostMiB   int             // with code where a row makes as many calls as it can; 0 for the same
	TmpBytes  int64           // of /tmp
	TmpInodes int
	Processes int
	Files     int
	SpareMiB  int // what the sandbox may take beyond the memory of the code
	// OwnKernel says that system calls reach a kernel of the sandbox's own. Then attempts are judged by what became of the host,
	// and not by what that kernel answered.
	OwnKernel bool
	// Secrets are words that must never be seen inside: paths and names of the host.
	Secrets []string
	// MachineMiB is the memory of a sandbox that is a machine of its own; 0 for one that is none.
	MachineMiB int
	// CPUs is what a sandbox may take at most where its memory does not say it; 0 for where it does.
	CPUs float64
	// PIDs are the processes of the sandbox as the host sees them.
	PIDs func(vmpool.Sandbox) []int
	// Few says that a part of the rows is enough, unless the flag -attacks asks for others.
	Few bool
}

var asked = flag.String("attacks", "", `rows to try: "all", or some as "A1,B21"; the rest is not run`)

// few are the rows that stand for the others where all take minutes: one for each way out.
var few = []string{"A1", "A2", "A3", "A6", "A12", "B1", "B2", "B5", "B14", "B16", "B21", "C1", "C4", "F2", "F4", "G1", "G2"}

// elsewhere are the rows of the list that no sandbox can show, and why.
var elsewhere = []row{
	{id: "B24", name: "race before the jail is complete", why: "needs the warden's hand: TestFirstProcessWaitsForItsCgroup"},
	{id: "C10", name: "crash loop", why: "the back-off of failing starts is the scheduler's: sched/testdata and cmd/starling/bad_fault_test.go"},
	{id: "D1-D10", name: "network", why: "there is no way out of a sandbox but the gateway's, whose suite is vpcproxy's; C7 and B20 try what there is"},
	{id: "E1-E3, E7-E11", name: "function protocol", why: "the same code for every driver: tests and fuzz targets of vmpool/framed, vmpool/runtimeapi and frontend"},
	{id: "F1, F3, F6, F8", name: "packages at upload", why: "the code store refuses them before any driver: TestStoreRefusesHostilePackages, FuzzZip, TestABlobThatIsReplacedIsRefused, cmd/starling/bad_request_test.go"},
	{id: "G4-G12, H", name: "tenants at the frontend, and nodes", why: "no sandbox has a part in it"},
}

// chosen returns the rows to try, and the names of those that are left out.
func chosen(all []row, target Target) (take []row, leave []string) {
	want := strings.Split(*asked, ",")
	for _, r := range all {
		switch {
		case *asked == "all", *asked == "" && !target.Few, *asked == "" && slices.Contains(few, r.id), slices.Contains(want, r.id):
			take = append(take, r)
		default:
			leave = append(leave, r.id)
		}
	}
	return take, leave
}

// A verdict says what came of one row.
type verdict int

const (
	refused   verdict = iota // nothing was reached: an error to the function, or its end
	contained                // it worked, and hurt nobody but its own instance
	escaped                  // something was reached that must not be
)

var verdictNames = [...]string{"refused", "contained", "ESCAPED"}

// A result is one row's verdict with its grounds.
type result struct {
	verdict  verdict
	attempts int
	detail   string
}

func fail(attempts int, format string, args ...any) result {
	return result{escaped, attempts, fmt.Sprintf(format, args...)}
}

// A row is one attack.
type row struct {
	id, name string
	run      func(*arena) result
	why      string // it is not run
}

// An arena is a fresh sandbox with code, the hostile helpers loaded, and things on the host to protect.
type arena struct {
	*Box
	t      testing.TB
	target Target
	code   string // folder of the code on the host
	canary string // file on the host that nobody inside may see
}

// Run tries the rows that are asked for, and names the others. One escape fails the test.
func Run(t *testing.T, target Target) {
	var count [len(verdictNames)]int
	attempts := 0
	take, leave := chosen(slices.Concat(fileRows, kernelRows, resourceRows, packageRows, reuseRows), target)
	for _, r := range take {
		t.Run(r.id, func(t *testing.T) {
			began := time.Now()
			res := r.run(newArena(t, target))
			count[res.verdict]++
			attempts += res.attempts
			t.Logf("%-4s %-40s %-9s %s (%v)", r.id, r.name, verdictNames[res.verdict], res.detail, time.Since(began).Round(100*time.Millisecond))
			if res.verdict == escaped {
				t.Errorf("%s escaped: %s", r.id, res.detail)
			}
		})
	}
	for _, r := range elsewhere {
		t.Logf("%s: %s: not run: %s", r.id, r.name, r.why)
	}
	if len(leave) > 0 {
		t.Logf("%s: not asked for: -args -attacks all", strings.Join(leave, " "))
	}
	t.Logf("%d attempts in %d rows: %d refused, %d contained, %d escaped", attempts, len(take), count[refused], count[contained], count[escaped])
}

func newArena(t testing.TB, target Target) *arena {
	t.Helper()
	a := &arena{Box: NewBox(t, target.Template), t: t, target: target, code: t.TempDir()}
	a.check(os.Chmod(a.code, 0o755))
	a.check(os.WriteFile(filepath.Join(a.code, "main.py"), []byte("answer = 42\n"), 0o644))
	a.canary = filepath.Join(t.TempDir(), "canary")
	a.check(os.WriteFile(a.canary, []byte("host secret"), 0o644))
	a.target.Secrets = append(slices.Clone(target.Secrets), a.code, a.canary)
	a.check(a.attach())
	return a
}

// attach gives the sandbox its code and loads the hostile helpers.
func (a *arena) attach() error {
	a.t.Helper()
	if err := a.Attach(context.Background(), vmpool.Code{Dir: a.code, MemoryMiB: a.target.MemoryMiB}); err != nil {
		return err
	}
	if s, ok := a.Sandbox.(vmpool.Settler); ok {
		a.check(s.Settle()) // the bounds are those of calls
	}
	a.do(prelude)
	return nil
}

func (a *arena) check(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// do runs source that must not fail.
func (a *arena) do(source string) any {
	a.t.Helper()
	out, err := a.Python(source)
	if err != nil {
		a.t.Fatalf("%v in:\n%s", err, source)
	}
	return out
}

// attempts runs source, which leaves in out a list of [what, result], where a result that begins with "ok" means that
// the act succeeded. All must have been refused.
func (a *arena) attempts(source string) result {
	a.t.Helper()
	var before witness
	if a.target.OwnKernel {
		before = a.witness()
	}
	out, died := a.lethal(source)
	if died {
		if what := a.witness().changed(before); what != "" {
			return fail(1, "%s after an attempt that ended the instance", what)
		}
		return a.alone(newArena(a.t, a.target), 1)
	}
	list, ok := out.([]any)
	if !ok || len(list) == 0 {
		a.t.Fatalf("no attempt was made by:\n%s", source)
	}
	var bad, kinds []string
	for _, x := range list {
		pair := x.([]any)
		what, got := fmt.Sprint(pair[0]), fmt.Sprint(pair[1])
		if strings.HasPrefix(got, "ok") {
			bad = append(bad, what+": "+got)
		}
		kind, _, _ := strings.Cut(got, " ")
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	switch {
	case len(bad) > 0 && a.target.OwnKernel:
		return a.obeyed(list, bad, before)
	case len(bad) > 0:
		return fail(len(list), "%s", strings.Join(bad, "; "))
	}
	return result{refused, len(list), fmt.Sprintf("%d attempts: %s", len(list), strings.Join(kinds, " "))}
}

// lethal runs source that may end the instance, as far as its own kernel meets a limit of the host's; died tells.
func (a *arena) lethal(source string) (out any, died bool) {
	a.t.Helper()
	out, err := a.Python(source)
	if err == nil {
		return out, false
	}
	if a.target.OwnKernel {
		select {
		case <-a.Done():
			return nil, true
		case <-time.After(10 * time.Second):
		}
	}
	a.t.Fatalf("%v in:\n%s", err, source)
	return nil, false
}

// alone judges an instance that its own attack ended: a neighbour must live.
func (a *arena) alone(neighbour *arena, attempts int) result {
	if _, err := neighbour.Python("out = 1"); err != nil {
		return fail(attempts, "a neighbour ended with the instance: %v", err)
	}
	return result{contained, attempts, "the instance ended of it, its neighbour did not"}
}

// simple makes a row of one source run by attempts.
func simple(id, name, source string) row {
	return row{id: id, name: name, run: func(a *arena) result { return a.attempts(source) }}
}

// prelude is loaded into every hostile function. t tries a call and notes how it went; sc makes a raw system call.
const prelude = `
import ctypes, errno, os, resource, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def sc(nr, *args):
    ctypes.set_errno(0)
    args = [ctypes.c_void_p(x) if isinstance(x, int) else x for x in args]
    r = libc.syscall(ctypes.c_long(nr), *args)
    if r == -1: raise OSError(ctypes.get_errno(), "")
    return r
def t(what, f):
    try: r = "ok " + str(f())[:200]
    except OSError as e: r = errno.errorcode.get(e.errno, str(e.errno) or type(e).__name__)
    except BaseException as e: r = type(e).__name__ + " " + str(e)[:100]
    return [what, r]
def many(**calls): return [t(k, (lambda v: lambda: sc(*v))(v)) for k, v in calls.items()]
def child(f):
    "Runs f in a child and returns its wait status."
    p = os.fork()
    if p == 0:
        try: f()
        except BaseException: os._exit(99)
        os._exit(0)
    return os.waitpid(p, 0)[1]
`
