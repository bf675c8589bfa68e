package inside

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/jail"
)

// A Start is the warden's word that the code is there.
type Start struct {
	Env []string `json:"env"`
}

// An Event is what the first process of provided says: that it waits, then what became of the bootstrap.
type Event struct {
	Waits      bool   `json:"waits,omitempty"`
	Runs       bool   `json:"runs,omitempty"`
	Entrypoint string `json:"entrypoint,omitempty"` // why the bootstrap cannot run, which is its developer's fault
}

// serve listens for the Runtime API, waits for the code, runs the bootstrap as a child and ends as it does. When the
// warden lets go it ends too.
func serve(o *Orders) error {
	if err := listen(o.Listen); err != nil {
		return fmt.Errorf("listen for the Runtime API: %w", err)
	}
	in, out := bufio.NewReader(os.NewFile(CallsFD, "warden")), json.NewEncoder(os.NewFile(AnswersFD, "warden"))
	if err := out.Encode(Event{Waits: true}); err != nil {
		return err
	}
	var s Start
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fmt.Errorf("wait for code: %w", err)
	}
	bootstrap, why := jail.FindBootstrap()
	if why != "" {
		return out.Encode(Event{Entrypoint: why})
	}
	cmd := &exec.Cmd{Path: bootstrap, Args: []string{bootstrap}, Env: s.Env, Dir: "/var/task", Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: User, Gid: User}, Setsid: true}}
	if err := cmd.Start(); err != nil {
		return out.Encode(Event{Entrypoint: refused(err)})
	}
	if err := out.Encode(Event{Runs: true}); err != nil {
		return err
	}
	go func() {
		_, _ = in.ReadByte() // nothing more is said: this is the end of the warden
		os.Exit(1)
	}()
	_ = cmd.Wait() // its state says all
	os.Exit(statusOf(cmd.ProcessState))
	return nil
}

// statusOf is the exit status that stands for the end of the bootstrap: a shell's.
func statusOf(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

func refused(err error) string {
	if errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.ENOENT) {
		return "bootstrap cannot run here: build it for linux and this machine, static or with an interpreter the sandbox has: " + err.Error()
	}
	return fmt.Sprintf("execute bootstrap: %v", err)
}
