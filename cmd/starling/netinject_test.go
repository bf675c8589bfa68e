package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"starling"
	"starling/frontend/client"
)

// crash kills a node and starts it again after a while. Whatever ran under it must be gone by then.
func (j *injector) crash(n *netNode) {
	under := family(n.cmd.Process.Pid)
	n.end(j.t, syscall.SIGKILL)
	j.gone(under)
	j.wait(j.length(3))
	j.c.start(j.t, n)
	j.c.ready(j.t, n, 30*time.Second)
}

func (j *injector) crashAll() {
	for _, n := range j.c.nodes[1:] {
		n.end(j.t, syscall.SIGKILL)
	}
	for _, n := range j.c.nodes[1:] {
		j.c.start(j.t, n)
	}
	for _, n := range j.c.nodes[1:] {
		j.c.ready(j.t, n, 30*time.Second)
	}
}

// freeze stops a node for 1 to 5 s and lets it go on.
func (j *injector) freeze(n *netNode) {
	n.cmd.Process.Signal(syscall.SIGSTOP)
	j.until(2*time.Second, func() bool { return processState(n.cmd.Process.Pid) == "T" }, n.name+" was not stopped")
	j.wait(time.Second/2 + j.length(4.5))
	n.cmd.Process.Signal(syscall.SIGCONT)
}

// cut drops all packets of some ways for a while, by rules of the receivers' packet filters.
func (j *injector) cut(d time.Duration, ways ...[]way) {
	rules := map[*netNode][]string{}
	for _, list := range ways {
		for _, w := range list {
			// What from says to to comes from the back port of the pair, and where to called, from the front port of from.
			rules[w.to] = append(rules[w.to], fmt.Sprintf("udp sport { %d, %d } counter drop", backPort(w.from.number, w.to.number), frontPort(w.from.number)))
		}
	}
	j.filter(d, rules)
}

func (j *injector) filter(d time.Duration, rules map[*netNode][]string) {
	for n, r := range rules {
		if err := j.c.net.spaces[n.number].rules(r...); err != nil {
			j.t.Fatal(err)
		}
	}
	j.wait(d)
	for n := range rules {
		hits, err := j.c.net.spaces[n.number].hits()
		if err != nil {
			j.t.Fatal(err)
		}
		j.hits[j.now] += hits
		if err := j.c.net.spaces[n.number].rules(); err != nil {
			j.t.Fatal(err)
		}
	}
}

// lose drops 1, 5 or 20 % of what one node or every node receives.
func (j *injector) lose() {
	rule := fmt.Sprintf("meta l4proto udp numgen random mod 100 < %d counter drop", []int{1, 5, 20}[j.rng.IntN(3)])
	rules, all := map[*netNode][]string{}, j.rng.IntN(2) == 0
	one := j.any()
	for _, n := range j.c.nodes[1:] {
		if all || n == one {
			rules[n] = []string{rule}
		}
	}
	j.filter(j.length(5), rules)
}

// choke leaves one node 1 Mbit/s for what it sends.
func (j *injector) choke() {
	s := j.c.net.spaces[j.any().number]
	s.run(j.t, "tc qdisc add dev eth0 root tbf rate 1mbit burst 3kb latency 200ms")
	j.wait(j.length(4))
	j.hits[j.now] += s.shed(j.t)
	s.run(j.t, "tc qdisc del dev eth0 root")
}

// roll restarts every node as an operator does.
func (j *injector) roll() {
	for _, n := range j.c.nodes[1:] {
		n.end(j.t, syscall.SIGTERM)
		j.c.start(j.t, n)
		j.c.ready(j.t, n, 30*time.Second)
	}
}

// forget takes a node's disk away: its membership is ended, and it joins anew. At most twice in a run: it takes long.
func (j *injector) forget() {
	if j.forgets++; j.forgets > 2 {
		return
	}
	n, other := j.pair()
	n.end(j.t, syscall.SIGKILL)
	if err := os.RemoveAll(n.dir); err != nil {
		j.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); !j.remove(other, n.name); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			j.t.Fatalf("%s, whose disk is lost, could not be removed", n.name)
		}
	}
	j.c.start(j.t, n, j.c.invitation(j.t, other)...)
	j.c.ready(j.t, n, 30*time.Second)
	j.c.voters(j.t, 3, 30*time.Second)
}

// remove ends the membership of every node of the name, as by knows it.
func (j *injector) remove(by *netNode, name string) bool {
	ctx, cancel := context.WithTimeout(j.t.Context(), 5*time.Second)
	defer cancel()
	nodes, err := by.admin.Nodes(ctx)
	for _, n := range nodes {
		if n.Name == name {
			if e := by.admin.RemoveNode(ctx, n.ID, true); e != nil && starling.KindOf(e) != starling.NotFound {
				err = e
			}
		}
	}
	return err == nil
}

// answers reports whether every function answers through every node.
func (j *injector) answers(functions ...starling.FunctionName) bool {
	for _, n := range j.c.nodes[1:] {
		for _, f := range functions {
			ctx, cancel := context.WithTimeout(j.t.Context(), 10*time.Second)
			r, err := n.http.Invoke(ctx, client.Call{Function: f, Payload: []byte(`{"n":1}`)})
			cancel()
			if err != nil || r.Err() != nil || !strings.Contains(string(r.Payload), "n") {
				j.last = fmt.Sprintf("%s through %s: %v %+v", f, n.name, err, r)
				return false
			}
		}
	}
	return true
}
