package warden

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/packet"
	"starling/vmpool/gvisor/inside"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// startMax bounds the start of a sandbox; only a machine that is far over its means takes longer.
const startMax = 30 * time.Second

// Clone makes a sandbox and waits until its first process runs or, for provided, waits for code.
func (w *warden) Clone(b *box, m *link.Message, fds []int) (listener []int, err error) {
	pid := 0
	b.use.Lock()
	listener, pid, err = w.make(b, m, fds)
	b.use.Unlock()
	if pid != 0 {
		w.adopt(b, pid)
		go w.mourn(b)
		if err != nil {
			err = errors.Join(err, b.Group.Kill())
			<-b.Done()
		}
	} else {
		err = errors.Join(err, w.remove(b))
		w.ward.Gone(b, nil)
	}
	if err != nil {
		packet.CloseAll(listener)
		return nil, err
	}
	return listener, nil
}

// make prepares the group and the folder and has runsc start the sandbox; pid is the sentry's, 0 when there is none.
func (w *warden) make(b *box, m *link.Message, fds []int) (listener []int, pid int, err error) {
	err = b.Group.Create(cgroup.Limits{MemoryBytes: m.MemoryBytes, CPU: 1, Weight: m.Weight, Processes: w.setup.Processes})
	if err == nil {
		err = w.folder(b)
	}
	if err != nil {
		return nil, 0, err
	}
	o := inside.Orders{TmpBytes: w.setup.Jail.TmpBytes, TmpInodes: w.setup.Jail.TmpInodes, Argv: m.Argv, Env: m.Env}
	inner := fds
	if len(m.Argv) == 0 {
		o.Listen = w.setup.Jail.Listen
		var theirs [2]int
		if b.control, theirs, err = newControl(); err != nil {
			return nil, 0, err
		}
		defer unix.Close(theirs[0])
		defer unix.Close(theirs[1])
		inner = append(inner[:len(inner):len(inner)], theirs[:]...)
		fd, err := listen(b.at("var/api.sock"))
		if err != nil {
			return nil, 0, err
		}
		listener = []int{fd}
	}
	if len(inner) != 4 {
		return listener, 0, fmt.Errorf("%d descriptors, want stdout, stderr and perhaps those of calls and answers", len(fds))
	}
	if err := w.writeBundle(b, o); err != nil {
		return listener, 0, err
	}
	if pid, err = w.runsc(b, inner, len(m.Argv) == 0); err != nil {
		return listener, pid, err
	}
	if b.control != nil {
		err = b.control.waits()
	}
	return listener, pid, err
}

// folder makes what the sandbox sees as /var: a mount of its own, so that the warden can mount code below it later, with
// the runtimes and the first process's program.
func (w *warden) folder(b *box) error {
	for _, d := range []string{"", "var", "var/task", "var/opt", "var/opt/lib", "var/runtime"} {
		if err := os.Mkdir(b.at(d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Link(baseDir+"/guest", b.at("var/starling-guest")); err != nil {
		return err
	}
	if err := unix.Mount(b.at("var"), b.at("var"), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount box: %w", err)
	}
	b.mounted = true
	if err := unix.Mount("", b.at("var"), "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share box: %w", err)
	}
	if err := unix.Mount(rootDir+"/var/runtime", b.at("var/runtime"), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount runtimes: %w", err)
	}
	return nil
}

// listen opens the listener of the Runtime API where the sandbox's relay finds it.
func listen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err == nil {
		err = unix.Listen(fd, 256)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen for the Runtime API: %w", err)
	}
	return fd, nil
}

// runsc starts the sandbox inside the box's cgroup: a process waits, is placed, and only then becomes runsc, so that the
// sentry and the gofer are never anywhere else. fds are stdout, stderr, and two descriptors for the first process.
func (w *warden) runsc(b *box, fds []int, provided bool) (pid int, err error) {
	r, release, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer release.Close()
	uds := "none"
	if provided {
		uds = "open"
	}
	cmd := exec.Command("/proc/self/exe", "gvisor-enter", w.setup.Runsc, "--root", stateDir, "--log", b.at("log"), "--ignore-cgroups", "--network=none", "--platform=systrap",
		"--overlay2=none", "--host-settings=ignore", "--file-access=exclusive", "--host-uds="+uds, "--fdlimit=8192", "run", "--detach", "--bundle", b.at(""), "--pid-file", b.at("pid"), "--pass-fd=3:3", "--pass-fd=4:4", b.name())
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		if files[i], err = dup(fd); err != nil {
			return 0, err
		}
		defer files[i].Close()
	}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = files[0], files[1], []*os.File{files[2], files[3], r}
	helper, ended, err := w.start(b, cmd)
	if err != nil {
		return 0, fmt.Errorf("start runsc: %w", err)
	}
	err = b.Group.Place(helper)
	if err == nil && w.ward.Wanted(b) {
		_, err = release.Write([]byte{1})
	}
	release.Close() // without the word it ends
	var status unix.WaitStatus
	select {
	case status = <-ended:
	case <-time.After(startMax):
		return 0, errors.Join(fmt.Errorf("runsc did not start the sandbox in %v", startMax), b.Group.Kill())
	}
	if text, rerr := os.ReadFile(b.at("pid")); rerr == nil {
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	switch {
	case err != nil:
		return pid, fmt.Errorf("place in cgroup: %w", err)
	case status != 0 || pid == 0:
		return pid, fmt.Errorf("runsc ended with status %d: %s", status.ExitStatus(), lastWords(b.at("log")))
	}
	return pid, nil
}

func (b *box) name() string { return "b" + strconv.FormatUint(b.ID, 10) }

func dup(fd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "inherited"), nil
}

// lastWords is the last line of a log, for people.
func lastWords(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "it left no log"
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(lines[len(lines)-1][:min(len(lines[len(lines)-1]), 500)])
}

// A control speaks with the first process of provided.
type control struct {
	in  *json.Decoder
	r   *os.File
	out *os.File
}

// newControl returns the warden's end, and the sandbox's two.
func newControl() (*control, [2]int, error) {
	var to, from [2]int
	if err := unix.Pipe2(to[:], unix.O_CLOEXEC); err != nil {
		return nil, [2]int{}, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.Pipe2(from[:], unix.O_CLOEXEC); err != nil {
		unix.Close(to[0])
		unix.Close(to[1])
		return nil, [2]int{}, fmt.Errorf("make pipe: %w", err)
	}
	_ = unix.SetNonblock(from[0], true) // cannot fail on a fresh pipe; for the deadlines below
	_ = unix.SetNonblock(to[1], true)
	c := &control{r: os.NewFile(uintptr(from[0]), "events"), out: os.NewFile(uintptr(to[1]), "orders")}
	c.in = json.NewDecoder(c.r)
	return c, [2]int{to[0], from[1]}, nil
}

func (c *control) close() {
	c.r.Close()
	c.out.Close()
}

// event waits for the next word of the first process.
func (c *control) event() (e inside.Event, err error) {
	if err := c.r.SetReadDeadline(time.Now().Add(startMax)); err != nil {
		return e, err
	}
	if err := c.in.Decode(&e); err != nil {
		return e, fmt.Errorf("hear the first process: %w", err)
	}
	return e, nil
}

// waits returns when the first process waits for code.
func (c *control) waits() error {
	e, err := c.event()
	if err == nil && !e.Waits {
		err = errors.New("the first process does not wait for code")
	}
	return err
}
