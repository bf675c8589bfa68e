package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// nodeNice is the nice value of a host's node. Its threads are short and everybody's calls pass them: beside functions
// that take all the CPU they get, a node without it waits as long as each of them, and so does every tenant.
const nodeNice = -10

// prefer gives every thread of this process nodeNice; threads to come inherit it. Without the right to do so the node
// competes with its functions as an equal. A value that somebody chose for the service is kept.
func prefer() {
	for range 2 { // a thread made meanwhile by one not yet raised is found the second time
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, t := range tasks {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			// The system call answers 20 minus the value, so that no answer is negative.
			if was, err := unix.Getpriority(unix.PRIO_PROCESS, id); err == nil && was == 20 {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, nodeNice)
			}
		}
	}
}
