package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// starts runs one function after the other on a thread that lives as long as the process.
var starts = sync.OnceValue(func() chan<- func() {
	todo := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range todo {
			f()
		}
	}()
	return todo
})

// startChild starts a process that the kernel kills when this one ends, however it ends: also at its time limit, when no cleanup runs. The
// kernel goes by the thread that started it, which is why one thread starts all.
func startChild(cmd *exec.Cmd) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan struct{})
	starts() <- func() {
		defer close(done)
		err = cmd.Start()
	}
	<-done
	return err
}

// A test that is killed, or runs out of time, leaves no node behind.
func TestChildrenEndWithTheTest(t *testing.T) {
	const parent = "STARLING_TEST_PARENT"
	if os.Getenv(parent) != "" {
		cmd := exec.Command("sleep", "60")
		if err := startChild(cmd); err != nil {
			t.Fatal(err)
		}
		fmt.Println(cmd.Process.Pid)
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestChildrenEndWithTheTest$")
	cmd.Env = append(os.Environ(), parent+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startChild(cmd); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	status := "/proc/" + strings.TrimSpace(line) + "/status"
	for range 500 {
		text, err := os.ReadFile(status)
		if err != nil || strings.Contains(string(text), "State:\tZ") { // its new parent may take a while to bury it
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s outlived the test that started it", strings.TrimSpace(line))
}
